"""AlexNet and the residual nets of 50 layers: keys, shapes and outputs of the original code, initial weights, refusals.

The recorded outputs belong to weights that a hash of their positions gives.
NMC_GOLDEN_SELA names another folder of recorded outputs."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.nets.imagenet import AlexNet, ResNetV1, ResNetV2, initialise
from nmc_workbench.methods.sela.weights import as_original, original_weights, to_torchvision
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet, check_input
from nmc_workbench.runs.checkpoints import load_state

GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden' / 'sela'))
KINDS = dict(alexnet_big="alexnet(width='big')", alexnet_small="alexnet(width='small')",
             resnetv1='resnetv1', resnetv2='resnetv2')


def hashed(n, j, seed):
    "float64 (n,) in [-1, 1): numbers that follow from their position, the tensor's number and the seed."
    x = np.arange(n, dtype=np.uint32)
    x *= np.uint32(2654435761)
    x += np.uint32(((j + 1) * 40503 + seed * 97) % 2 ** 32)
    for shift, factor in ((16, 2246822519), (13, 3266489917)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x / 2. ** 31 - 1


def value(key, shape, s):
    "The value of a tensor from its numbers in [-1, 1)."
    if key.endswith('running_var'): return 1 + .25 * s
    if len(shape) > 1: return s * 3 ** .5 * (2 / np.prod(shape[1:])) ** .5
    return 1 + .2 * s if key.endswith('weight') else .1 * s


def filled(state, seed):
    "The state with every tensor but the counters replaced."
    kept, out = [k for k in state if not k.endswith('num_batches_tracked')], dict(state)
    for j, k in enumerate(kept):
        shape = state[k].shape
        out[k] = torch.from_numpy(value(k, shape, hashed(state[k].numel(), j, seed))).view(shape)
    return out


@pytest.fixture(scope='module')
def arch():
    with np.load(GOLDEN / 'arch.npz') as f: return {k: f[k] for k in f.files}


@pytest.fixture(scope='module')
def x(arch):
    seed = int(arch['seed'])
    return torch.from_numpy(hashed(2 * 3 * 224 * 224, 1000, seed)).view(2, 3, 224, 224)


def two_heads(kind):
    "The network with heads of 10 and 7 classes, as recorded."
    net = HeadsNet(*backbone(kind), n_clusters=10, n_heads=2)
    net.heads[1] = nn.Linear(net.heads[0].in_features, 7)
    return net.double().eval()


@pytest.mark.parametrize('name', KINDS)
def test_keys_shapes_and_outputs_of_the_original(arch, x, name):
    net = two_heads(KINDS[name])
    theirs = as_original(net)
    assert list(theirs) == list(arch[f'{name}_keys'])
    assert ['x'.join(map(str, v.shape)) for v in theirs.values()] == list(arch[f'{name}_shapes'])
    assert sum(p.numel() for p in net.parameters()) == arch[f'{name}_nparams']
    state = filled(theirs, int(arch['seed']))
    load_state(net, original_weights(state))
    with torch.no_grad():
        features = net.features(x)
        for got, key in ((features, 'feat'), (net.heads[0](features), 'head0'), (net.heads[1](features), 'head1')):
            want = arch[f'{name}_{key}']
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
        if name != 'resnetv1': return
        reference = torchvision.models.resnet50(num_classes=10).double().eval()
        reference.load_state_dict(to_torchvision(state))
        np.testing.assert_allclose(reference(x).numpy(), arch['resnetv1_head0'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kind, dim, parameters', [("alexnet(width='big')", 4096, 58_284_096),
                                                   ("alexnet(width='small')", 4096, 57_006_144),
                                                   ('resnetv1', 2048, 23_508_032),
                                                   ('resnetv1(depth=18)', 512, 11_176_512),
                                                   ('resnetv2', 2048, 23_496_256)])
def test_by_name(kind, dim, parameters):
    with torch.device('meta'): net, feature_dim = backbone(kind)
    assert (feature_dim, net.feature_dim, sum(p.numel() for p in net.parameters())) == (dim, dim, parameters)


def test_a_wider_v2():
    with torch.device('meta'): net, dim = backbone('resnetv2', expansion=2)
    assert dim == net.feature_dim == 4096
    assert net.features[0].out_channels == 128 and net.features[2][0].conv2.out_channels == 128


def test_initial_weights():
    net = initialised(lambda: AlexNet(width='small'), 0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d): want = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** .5
        elif isinstance(layer, nn.Linear): want = .01
        else: continue
        assert layer.weight.std().item() == pytest.approx(want, rel=.03) and not layer.bias.any()
    head = nn.Linear(4096, 50)
    head.apply(initialise)
    assert head.weight.std().item() == pytest.approx(.01, rel=.03) and not head.bias.any()
    net = initialised(lambda: ResNetV1(channels=2, depth=18), 0)
    for conv in (net.features[0], net.features[5][0].conv1):
        want = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** .5
        assert conv.weight.std().item() == pytest.approx(want, rel=.03)
    assert net.features[0].in_channels == 2


def test_any_side_for_the_residual_nets_and_larger_ones_for_alexnet():
    with torch.no_grad():
        for net in (ResNetV1(depth=18), ResNetV2()):
            assert net.eval()(torch.rand(1, 3, 64, 96)).shape == (1, net.feature_dim)
        net = initialised(lambda: AlexNet(channels=1, width='small'), 0).eval()
        x = torch.rand(1, 1, 223, 260)
        assert net(x).shape == (1, 4096)
        maps = net.features(x[..., :223])
        assert torch.equal(net.pool(maps), maps)                                 # exact where nothing is to be averaged


BAD = [
    (lambda: AlexNet(width='tiny'), "width='tiny'; expected one of 'big', 'small'"),
    (lambda: backbone("alexnet(width='tiny')"), "width='tiny'; expected one of"),
    (lambda: backbone('alexnet(depth=3)'), "unknown option of alexnet 'depth'"),
    (lambda: ResNetV1(depth=34), 'depth=34; expected one of 18, 50'),
    (lambda: ResNetV2(expansion=0), 'expansion=0; expected a whole number from 1'),
    (lambda: backbone('resnetv2(expansion=1.5)'), 'expansion=1.5; expected a whole number'),
    (lambda: check_input(AlexNet(), (8, 3, 32, 32)), '32 x 32 pixels; alexnet takes 223 per side or more'),
    (lambda: check_input(AlexNet(), (8, 1, 224, 224)), '1 channels; the net takes 3'),
]


@pytest.mark.parametrize('call, message', BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)
