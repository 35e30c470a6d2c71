"""Backbones and heads: sizes, names, initial weights, gradients, refusals."""
import pytest
import torch
import torchvision

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone, names
from nmc_workbench.nets.heads import KINDS, SubspaceNet, check_input

# name: parameters, channels, feature dimension, side of a small input
TABLE = dict(
    resnet10mnist=(4_896_960, 1, 512, 16),
    resnet10imgs=(1_226_336, 1, 256, 32),
    resnet18imgs=(2_794_976, 1, 256, 32),
    resnet18cifar=(11_168_832, 3, 512, 16),
    resnet34cifar=(21_276_992, 3, 512, 16),
    resnet50cifar=(23_500_352, 3, 2048, 16),
    resnet101cifar=(42_492_480, 3, 2048, 16),
    resnet18stl10=(11_171_904, 3, 512, 32),
    resnet34stl10=(21_280_064, 3, 512, 32))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize('name', TABLE)
def test_parameters_and_shapes(name):
    n, channels, dim, side = TABLE[name]
    net, feature_dim = backbone(name)
    assert (count(net), feature_dim) == (n, dim)
    assert net.eval()(torch.rand(2, channels, side, side)).shape == (2, dim)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions and all(m.bias is None for m in convolutions)


@pytest.mark.parametrize('name', ['resnet18cifar', 'resnet50cifar'])
def test_same_function_as_torchvision(name):
    "With the same weights, an own net equals torchvision's with its first layer replaced."
    net, _ = backbone(name)
    ref = torchvision.models.get_model(name.removesuffix('cifar'), weights=None)
    ref.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    ref.maxpool, ref.fc = torch.nn.Identity(), torch.nn.Identity()
    ref.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for mode in (True, False): torch.testing.assert_close(net.train(mode)(x), ref.train(mode)(x))


@pytest.mark.parametrize('name, fan_out', [('resnet18cifar', True), ('resnet18cifar(fan_out=False)', False),
                                           ('resnet18stl10', False)])
def test_initial_weights(name, fan_out):
    net, _ = initialised(lambda: backbone(name), seed=0)
    for conv in (net.layer1[0].conv1, net.layer3[0].conv1, net.layer3[0].downsample[0], net.layer4[1].conv2):
        fan_in, outs = conv.weight[0].numel(), conv.weight[:, 0].numel()
        # normal with that deviation; or uniform within 1 / sqrt(fan in)
        want = (2 / outs) ** .5 if fan_out else (1 / (3 * fan_in)) ** .5
        assert conv.weight.std().item() == pytest.approx(want, rel=.02)
    fan_in = net.conv1.weight[0].numel()
    assert net.conv1.weight.abs().max().item() <= fan_in ** -.5 + 1e-6       # the first layer starts as PyTorch's own


def test_original_has_as_many_parameters():
    net = SubspaceNet(*backbone('resnet18cifar'), z_dim=128, n_clusters=10)
    assert count(net) - count(net.projection) == 13_843_658 and count(net.pre_feature) == 2_109_440
    keys = {k for k in net.state_dict() if not k.startswith('backbone')}
    hidden = ('0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked')
    assert keys == {f'pre_feature.{k}' for k in hidden} | {
        f'{h}.{k}' for h in ('projection', 'subspace', 'cluster') for k in ('weight', 'bias')}
    assert {f'backbone.{k}' for k in ('conv1.weight', 'bn1.running_var', 'layer1.0.conv1.weight',
                                      'layer2.0.downsample.0.weight')} <= set(net.state_dict())


@pytest.mark.parametrize('side', [8, 16, 28])
def test_smallconv(side):
    net, dim = backbone('smallconv', width=16)
    assert dim == 64 and net(torch.rand(3, 1, side, side)).shape == (3, 64)
    x = torch.rand(3, 1, side, side)
    want, last = net.eval()(x), torch.channels_last
    torch.testing.assert_close(want, net.to(memory_format=last)(x.to(memory_format=last)), rtol=1e-4, atol=1e-5)


def test_mlp():
    net, dim = backbone('mlp', width=32, depth=3)
    assert dim == 32 and [type(m).__name__ for m in net] == ['Linear', 'ELU'] * 3
    assert net(torch.rand(5, 2)).shape == (5, 32)


@pytest.mark.parametrize('model, dim, side', [('resnet18', 512, 64), ('mobilenet_v3_small', 1024, 64),
                                              ('densenet121', 1024, 64), ('convnext_tiny', 768, 64),
                                              ('shufflenet_v2_x0_5', 1024, 64), ('googlenet', 1024, 64)])
def test_torchvision_models_without_their_last_layer(model, dim, side):
    net, feature_dim = backbone(f'torchvision:{model}', channels=1)
    assert feature_dim == dim and net(torch.rand(2, 1, side, side)).shape == (2, dim)


def test_heads():
    net = SubspaceNet(*backbone('smallconv', width=8), z_dim=6, n_clusters=4, hidden=20)
    x = torch.rand(5, 1, 8, 8)
    net.eval()
    out = {k: net.features(x, k) for k in KINDS}
    want = dict(pool=(5, 32), pre_feature=(5, 20), projection=(5, 6), subspace=(5, 6), cluster=(5, 4))
    assert {k: tuple(v.shape) for k, v in out.items()} == want
    for k in ('projection', 'subspace'): torch.testing.assert_close(out[k].norm(dim=1), torch.ones(5))
    z, logits = net(x)
    assert torch.equal(z, out['subspace']) and torch.equal(logits, out['cluster'])
    assert torch.equal(net.project(x), out['projection'])
    assert net.features(x.bfloat16().float(), 'pool').dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16): assert net.project(x).dtype == torch.float32


def test_detach_freezes_the_trunk_but_not_its_statistics():
    net = SubspaceNet(*backbone('smallconv', width=8), z_dim=6, n_clusters=4, hidden=20)
    before = net.pre_feature[1].running_mean.clone()
    z, logits = net.subspace_and_logits(torch.rand(5, 1, 8, 8), detach=True)
    (z[:, 0] + logits[:, 0]).sum().backward()
    trained = {k for k, p in net.named_parameters() if p.grad is not None}
    assert trained == {'subspace.weight', 'subspace.bias', 'cluster.weight', 'cluster.bias'}
    assert not torch.equal(before, net.pre_feature[1].running_mean)
    with torch.no_grad(): assert not net.trunk(torch.rand(5, 1, 8, 8)).requires_grad


def test_initialised_leaves_the_global_state():
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = (initialised(lambda: backbone('mlp')[0], s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), want)
    assert torch.equal(one[0].weight, two[0].weight) and not torch.equal(one[0].weight, other[0].weight)


BAD = [
    (lambda: backbone('resnet18'), 'unknown backbone .*resnet18cifar.*torchvision:<model>'),
    (lambda: backbone('torchvision:resnet19'), "did you mean 'resnet18'"),
    (lambda: backbone('torchvision:'), 'unknown backbone'),
    (lambda: backbone('torchvision:squeezenet1_0'), 'ends in a convolution'),
    (lambda: backbone('smallconv', channels=0), 'channels=0'),
    (lambda: backbone('smallconv', widht=3), "unknown option of smallconv 'widht'"),
    (lambda: backbone('resnet18cifar', width=3), "unknown option of resnet18cifar"),
    (lambda: check_input(backbone('smallconv')[0], (4, 3, 8, 8)), r'3 channels; the net takes 1'),
    (lambda: check_input(backbone('smallconv')[0], (4, 1, 8)), '4 dimensions'),
    (lambda: check_input(backbone('smallconv')[0], (4, 1, 1, 1)), r'\(4, 1, 1, 1\) does not pass'),
    (lambda: check_input(backbone('mlp')[0], (4, 3)), 'the net takes 2'),
    (lambda: SubspaceNet(*backbone('mlp'), 3, 2, None).features(torch.rand(4, 2), 'z'), "unknown kind of feature 'z'"),
]


@pytest.mark.parametrize('call, message', BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)


def test_check_input_leaves_the_net_as_it_was():
    net, _ = backbone('smallconv')
    state = {k: v.clone() for k, v in net.state_dict().items()}
    check_input(net, (64, 1, 8, 8))
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert set(TABLE) < set(names())
