"""Layers and their probes: folding and pools against SeLa's code, training against a plain loop, validation by hand,
bad input, resumption.

The folder of golden values can be replaced with NMC_GOLDEN_SELA: shapes and classes are read from the files."""
import copy
import json
import os
import typing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastcore.docments import docments
from torch import nn

from nmc_workbench.augment import Augment, preset
from nmc_workbench.augment.operations import CentreCrop, Flip, Normalise, Resize, ResizedCrop
from nmc_workbench.core.errors import InputError
from nmc_workbench.training.batches import Batches
from nmc_workbench.data import load
from nmc_workbench.evaluation.features import halves
from nmc_workbench.nets.layers import conv_outputs, fold_batchnorm, frozen, layer_names
from nmc_workbench.methods import NMCE
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet
from nmc_workbench.evaluation.probes import (VOLUME, LayerProbes, LinearEvaluation, ProbeConfig, _probe_net, fit_stage,
                                             layer_probes, linear_evaluation, pool_for, probe, ten_crops)
from nmc_workbench.optim import stepped_rate
from nmc_workbench.data.readers import as_images

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', ROOT / 'tests/golden/sela'))


def golden(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


def tensor(x): return torch.from_numpy(x)


def net(name='smallconv', **options): return lived_in(initialised(lambda: backbone(name, **options)[0], 0))


def lived_in(module, seed=0):
    "Batch norms with statistics as after training."
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for t in (m.running_mean, m.running_var, m.weight, m.bias):
                low, high = (.6, 1.4) if t is m.running_var or t is m.weight else (-.2, .2)
                t.data.uniform_(low, high, generator=g)
    return module.eval()


@pytest.fixture(scope='module')
def digits(): return halves(load('digits', limit=300))


FAST = dict(views='digits', epochs=3, batch_size=50, device='cpu')


# ---- folding


def test_folding_golden():
    g = golden('probes')
    side = g['w'].shape[-1]
    conv = nn.Conv2d(*g['w'].shape[1::-1], side, padding=side // 2).double()
    norm = nn.BatchNorm2d(len(g['gamma']), eps=float(g['eps'])).double()
    conv.load_state_dict(dict(weight=tensor(g['w']), bias=tensor(g['b'])))
    norm.load_state_dict(dict(
        weight=tensor(g['gamma']), bias=tensor(g['beta']), running_mean=tensor(g['mean']), running_var=tensor(g['var']),
        num_batches_tracked=torch.tensor(0)))
    folded = fold_batchnorm(nn.Sequential(conv, norm))
    for found, wanted in [
        (folded[0].weight, g['w_folded']),
        (folded[0].bias, g['b_folded']),
        (folded(tensor(g['x'])), g['conv_bn_out'])]:
        np.testing.assert_allclose(found.detach(), wanted, rtol=1e-10, atol=1e-12)
    assert isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize('name, channels, size, left', [
    ('smallconv(stages=3)', 1, 8, 0),
    ('resnet10imgs', 1, 32, 0),
    ('resnetv2', 3, 32, 16),
    ('torchvision:mobilenet_v2', 3, 32, 0),
    ('torchvision:densenet121', 3, 32, 62)])
def test_folding_computes_the_same(name, channels, size, left):
    "Norms that follow a sum or a concatenation stay."
    g = torch.Generator().manual_seed(1)
    plain, x = net(name).double(), torch.rand(2, channels, size, size, generator=g).double()
    folded = fold_batchnorm(plain)
    with torch.no_grad(): torch.testing.assert_close(folded(x), plain(x))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left
    assert [n for n, _ in folded.named_modules()] == [n for n, _ in plain.named_modules()] and not folded.training


def test_folding_of_linear_grouped_and_bare_norms():
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False)).double()
    for n in (1, 5): layers[n].running_mean.uniform_(-1, 1), layers[n].running_var.uniform_(.5, 2)
    layers.eval()[6].train()
    x, before = torch.rand(3, 4, 4, 4).double(), copy.deepcopy(layers.state_dict())
    folded = fold_batchnorm(layers)
    assert isinstance(folded[6], nn.BatchNorm1d) and isinstance(folded[5], nn.Identity)
    assert not folded[2].inplace and layers[2].inplace
    torch.testing.assert_close(folded[:6](x), layers[:6](x))
    assert all(torch.equal(v, before[k]) for k, v in layers.state_dict().items())


def test_the_global_random_state_stays_as_it_was(digits):
    one, state = net(), torch.get_rng_state()
    fold_batchnorm(one), layer_probes(one, *digits, **FAST), linear_evaluation(one, *digits, **FAST)
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_sees_what_folding_would_change():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x): return self.two(self.norm(self.one(x)))

    x, crossed = torch.rand(4, 1, 5, 5), lived_in(Crossed())
    with torch.no_grad(): assert torch.equal(frozen(crossed, x)(x), crossed(x))
    assert isinstance(frozen(crossed, x).norm, nn.BatchNorm2d)
    assert isinstance(frozen(net(), torch.rand(2, 1, 8, 8))[1], nn.Identity)


# ---- layers


DENSE = [f'features.{part}{i}' for i in (1, 2, 3) for part in ('denseblock', 'transition')]


@pytest.mark.parametrize('name, wanted', [
    ('alexnet', ['features.2', 'features.6', 'features.10', 'features.13', 'features.16']),
    ('smallconv', ['2', '6', '9', '12']),
    ('mlp(depth=3)', ['1', '3', '5']),
    ('resnet18cifar', ['relu', 'layer1', 'layer2', 'layer3', 'layer4']),
    ('torchvision:resnet50', ['relu', 'layer1', 'layer2', 'layer3', 'layer4']),
    ('resnetv1', ['features.2', *(f'features.{i}' for i in range(4, 8))]),
    ('resnetv2', [f'features.{i}' for i in range(1, 6)]),
    ('torchvision:vgg11_bn', [f'features.{i}' for i in (2, 6, 10, 13, 17, 20, 24, 27)]),
    ('torchvision:densenet121', ['features.relu0', *DENSE, 'features.denseblock4']),
    ('torchvision:shufflenet_v2_x1_0', ['conv1', 'stage2', 'stage3', 'stage4', 'conv5'])])
def test_layer_names(name, wanted):
    with torch.device('meta'): module = backbone(name)[0]
    assert layer_names(module) == wanted


def test_layer_names_below_one_way_in():
    inner = net()
    outer = nn.Sequential(nn.Sequential(inner), nn.Linear(64, 3))
    assert layer_names(outer) == [f'0.0.{n}' for n in layer_names(inner)]
    with pytest.raises(InputError, match='no convolution and no linear layer'): layer_names(nn.ReLU())


def test_outputs_of_layers():
    module, x = net(), torch.rand(3, 1, 8, 8)
    found = conv_outputs(module, x, ['2', '12', ''])
    with torch.no_grad():
        assert torch.equal(found['2'], module[:3](x)) and torch.equal(found[''], module(x))
        assert list(found) == ['2', '12', '']
    assert not any(m._forward_hooks for m in module.modules())
    points = net('mlp')
    assert [m.shape for m in conv_outputs(points, torch.rand(5, 2)).values()] == [(5, 128)] * 5


def test_outputs_of_layers_refuse():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.split, self.idle = nn.Conv2d(1, 2, 1), Split(), nn.ReLU()

        def forward(self, x): return self.split(self.conv(x))[0]

    class Split(nn.Module):
        def forward(self, x): return x, x

    for layer, message in [('layer9', "unknown layer 'layer9'"), ('split', 'gives no map'), ('idle', 'gives no map')]:
        with pytest.raises(InputError, match=message): conv_outputs(Pair(), torch.rand(1, 1, 4, 4), [layer])


# ---- probes


@pytest.mark.parametrize('width', ['big', 'small'])
def test_probes_of_alexnet_are_the_published_ones(width):
    wanted = golden('probes')[f'probe_weight_shapes_{width}']
    with torch.device('meta'):
        alexnet = backbone('alexnet', width=width)[0]
        probes = _probe_net(alexnet, None, (3, 224, 224), int(wanted[0, 0]), VOLUME, 0).probes
    assert [(p[-1].out_features, p[-1].in_features) for p in probes] == [(n, int(np.prod(rest))) for n, *rest in wanted]
    pools = [(p[0].kernel_size, p[0].stride, p[0].padding) for p in probes]
    assert pools == [(6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0)]


SHAPES = (3, 5, 5), (64, 32, 32), (512, 4, 4), (2048, 7, 7), (100, 30, 10), (20_000, 3, 3), (64, 1, 1)


@pytest.mark.parametrize('shape', SHAPES)
def test_pool_keeps_as_much_as_allowed(shape):
    def volume(pool): return F.max_pool2d(torch.zeros(1, *shape, device='meta'), *pool).numel()
    pool = pool_for(shape, 9600)
    every = [volume((k, k, p)) for k in range(1, min(shape[1:]) + 1) for p in range(k // 2 + 1)]
    best = max((v for v in every if v <= 9600), default=min(every))
    assert volume(pool) >= best and (volume(pool) <= 9600 or volume(pool) == shape[0])
    if np.prod(shape) <= 9600: assert pool == (1, 1, 0)


def test_probe_starts_as_published():
    one = probe((16, 9, 9), 5)
    linear = one[-1]
    assert (linear.bias == 0).all() and not one[1].affine
    side = one[0](torch.zeros(1, 16, 9, 9)).shape[2]
    bound = (6 / (side ** 2 * (16 + 5))) ** .5          # a convolution's: fan in 16 h w, fan out 5 h w
    assert .95 * bound < linear.weight.abs().max() <= bound


@pytest.mark.parametrize('stage, name, epochs', [
    (LayerProbes, 'linear_probes', 36),
    (LinearEvaluation, 'eval_resnet', 146)])
def test_rates_golden(stage, name, epochs):
    wanted = golden('lr')[name]
    assert len(wanted) == epochs
    found = [stepped_rate(e, epochs, stage.lr, stage.drops, stage.of) for e in range(epochs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize('epochs', [1, 3, 7, 36, 72, 200])
def test_rates_fall_at_the_same_shares(epochs):
    found = [stepped_rate(e, epochs, 1., (10, 20, 30), 36) for e in range(epochs)]
    for drop, below in zip((10, 20, 30), (.5, .05, .005)):
        assert sum(r >= below for r in found) == -(-drop * epochs // 36)


# ---- training


def test_probes_learn_as_in_a_plain_loop(digits):
    train, _ = digits
    x, y = train.pixels.float() / 255, train.labels
    def build(): return _probe_net(fold_batchnorm(net()), None, (1, 8, 8), 10, VOLUME, 3)
    stage, batches = LayerProbes(build(), 5, y, seed=1, lr=.05), Batches(train, Augment([]), 50, 1, 1, whole=True)
    fit_stage(stage, batches, {})
    plain = build()
    before = copy.deepcopy(plain.backbone.state_dict())
    sgd = torch.optim.SGD(plain.probes.parameters(), .05, .9, weight_decay=1e-5)
    plain.probes.train()
    for epoch in range(5):
        sgd.param_groups[0]['lr'] = .05 * .1 ** sum(epoch >= 5 * share for share in (10 / 36, 20 / 36, 30 / 36))
        for index, _ in batches.epoch('layer_probes', epoch):
            sgd.zero_grad()
            maps = conv_outputs(plain.backbone, x[index]).values()
            sum(F.cross_entropy(p(m), y[index]) for p, m in zip(plain.probes, maps)).backward()
            sgd.step()
    for a, b in zip(stage.network.probes.state_dict().values(), plain.probes.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in stage.network.backbone.state_dict().items())


@pytest.fixture(scope='module')
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'nmce'
    quick = dict(epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1, batch_size=50, device='cpu')
    model = NMCE(dataset='digits', **quick, run_dir=folder).fit(digits[0])
    return model, folder


def test_estimator_folder_and_network_agree(digits, run):
    model, folder = run
    before = {k: v.clone() for k, v in model.network_.state_dict().items()}
    rows = layer_probes(model, *digits, **FAST)
    for same in (str(folder), model.network_, model.network_.backbone):
        assert rows == layer_probes(same, *digits, **FAST)
    assert [r['layer'] for r in rows] == layer_names(model.network_.backbone)
    assert [r['width'] for r in rows] == [1024, 512, 1024, 1024]
    assert all(0 < r['top1'] <= r['top5'] <= 1 for r in rows)
    assert all(torch.equal(v, before[k]) for k, v in model.network_.state_dict().items())
    assert all(p.requires_grad for p in model.network_.backbone.parameters())
    short, own = {**FAST, 'epochs': 1}, model._augment(model.config_)
    with_own = layer_probes(model.network_, *digits, **{**short, 'views': own})
    assert layer_probes(model, *digits, **{**short, 'views': None}) == with_own


def test_probes_follow_the_seed_and_the_layers(digits):
    rows = layer_probes(net(), *digits, ['12', '2'], **FAST, seed=5)
    again, other = (layer_probes(net(), *digits, ['12', '2'], **FAST, seed=s) for s in (5, 6))
    assert rows == again != other
    assert [r['layer'] for r in rows] == ['12', '2']
    assert [r['width'] for r in layer_probes(net(), *digits, **FAST, volume=64)] == [16 * 4, 32, 64, 64]


def test_probes_find_what_is_there():
    "Classes that a pixel tells are read off any layer, and off the features."
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (300,), generator=g)
    x = torch.randint(0, 60, (300, 1, 8, 8), dtype=torch.uint8, generator=g)
    x[y == 1] += 150
    train, test = (as_images(x[s].numpy(), y[s].numpy()) for s in (slice(200), slice(200, 300)))
    rows = layer_probes(net(), train, test, epochs=6, batch_size=20, device='cpu')
    assert all(r['top1'] == r['top5'] == 1 for r in rows)
    assert linear_evaluation(net(), train, test, epochs=6, batch_size=20, device='cpu')['top1'] == 1


def test_points(tmp_path):
    train, test = load('spiral', limit=200), load('spiral', 'test', limit=100)
    rows = layer_probes(net('mlp(width=16, depth=2)'), train, test, views='spiral', epochs=2, device='cpu')
    assert [(r['layer'], r['width']) for r in rows] == [('1', 16), ('3', 16)]


def test_linear_evaluation_leaves_the_network_alone(digits):
    network = HeadsNet(net(), 64, 5, 2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    held, drifted = (linear_evaluation(network, *digits, **FAST, frozen_bn_eval=mode) for mode in (True, False))
    assert held['layer'] == 'features' and held['width'] == 64 and held != drifted
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize('mode', [True, False])
def test_batch_norms_drift_only_where_that_is_wanted(digits, mode):
    from nmc_workbench.evaluation.probes import ProbeNet
    trunk = net()
    stage = LinearEvaluation(ProbeNet(trunk, {'': nn.Linear(64, 10)}), 1, digits[0].labels, frozen=mode)
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    fit_stage(stage, Batches(digits[0], Augment([]), 50, 1), {})
    same = {k: torch.equal(v, before[k]) for k, v in trunk.state_dict().items()}
    assert all(v for k, v in same.items() if mode or 'running' not in k and 'tracked' not in k)
    assert all(same.values()) == mode


def test_last_batch_of_one_image(digits):
    layer_probes(net(), digits[0].subset(range(101)), digits[1], **FAST)


# ---- validation


@pytest.mark.parametrize('n_crops', [1, 10])
def test_hits_by_hand(digits, n_crops):
    from nmc_workbench.evaluation.probes import _hits
    train, test = digits
    views = Augment([Flip()], plain=[CentreCrop(.75), Resize(8), Normalise((.5,), (.5,))])
    network = _probe_net(fold_batchnorm(net()), None, (1, 8, 8), 10, VOLUME, 0).eval()
    found = _hits(network, test, views, (8, 8), n_crops, 40)
    x = ten_crops(test.pixels, views, (8, 8)) if n_crops == 10 else views.plain(test.pixels)[None]
    with torch.no_grad(): logits = torch.stack([network(v) for v in x]).mean(0)         # (L, n, C)
    order = logits.argsort(2, descending=True)
    for layer in range(4):
        assert found[layer, 0] == pytest.approx(float((order[layer, :, 0] == test.labels).double().mean()), abs=.011)
        top5 = (order[layer, :, :5] == test.labels[:, None]).any(1)
        assert found[layer, 1] == pytest.approx(float(top5.double().mean()), abs=.011)


def test_ten_crops():
    pixels = torch.randint(0, 256, (3, 3, 32, 24), dtype=torch.uint8)
    views = Augment([], plain=[CentreCrop(.75), Resize((24, 18)), Normalise((.1, .2, .3), (.5, .6, .7))])
    crops = ten_crops(pixels, views, (24, 18))
    colour = Augment([], plain=[Normalise((.1, .2, .3), (.5, .6, .7))]).plain
    for crop, (top, left) in zip(crops, [(0, 0), (0, 6), (8, 0), (8, 6), (4, 3)]):
        torch.testing.assert_close(crop, colour(pixels[:, :, top:top + 24, left:left + 18]))
    torch.testing.assert_close(crops[4], views.plain(pixels))
    assert torch.equal(crops[5:], crops[:5].flip(-1))
    assert ten_crops(pixels[..., :24, :], preset('sela', size=24), (24, 24)).shape == (10, 3, 3, 24, 24)


def test_views_of_another_size_than_the_plain_transform(digits):
    views = Augment([ResizedCrop(6, scale=(.5, 1.))])
    for n in (1, 10): assert len(layer_probes(net(), *digits, **{**FAST, 'views': views, 'epochs': 1}, n_crops=n)) == 4


def test_files_as_they_stream(digits, tmp_path):
    from PIL import Image
    train, test = (part.subset(range(60)) for part in digits)
    for name, part in (('train', train), ('val', test)):
        for i, (p, y) in enumerate(zip(part.pixels, part.labels)):
            path = tmp_path / name / f'{y}' / f'{i:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(p[0].numpy()).save(path)
    streamed = [load('imagenet_folder', s, tmp_path, size=8, channels=1) for s in ('train', 'val')]
    assert all(s.streams for s in streamed)
    resident = [s.resident() for s in streamed]
    assert layer_probes(net(), *streamed, **FAST) == layer_probes(net(), *resident, **FAST)


# ---- runs


def test_an_interrupted_run_ends_as_an_uninterrupted_one(digits, tmp_path, monkeypatch):
    options = dict(views='digits', epochs=4, batch_size=50, device='cpu', checkpoint_every=1)
    whole = layer_probes(net(), *digits, **options, run_dir=tmp_path / 'whole')
    before = LayerProbes.before_epoch
    def killed(self, epoch):
        if epoch == 3: raise KeyboardInterrupt
        return before(self, epoch)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(LayerProbes, 'before_epoch', killed)
        layer_probes(net(), *digits, **options, run_dir=tmp_path / 'cut')
    assert layer_probes(net(), *digits, **options, run_dir=tmp_path / 'cut', resume=True) == whole
    states = [torch.load(tmp_path / n / 'layer_probes.pt', weights_only=True) for n in ('whole', 'cut')]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states)))
    results = json.loads((tmp_path / 'cut/results.json').read_text())
    assert results['layers'] == whole
    assert json.loads((tmp_path / 'cut/config.json').read_text())['task'] == 'layer_probes'
    # a finished run is only scored
    assert layer_probes(net(), *digits, **options, run_dir=tmp_path / 'cut', resume=True) == whole
    for other in (dict(model=net('smallconv(stages=3)')), dict(lr=.5), dict(seed=1)):
        with pytest.raises(InputError, match='belongs to another configuration'):
            given = {**dict(model=net(), train=digits[0], test=digits[1]), **options, **other}
            layer_probes(**given, run_dir=tmp_path / 'cut', resume=True)


# ---- bad input


def test_refuses(digits, tmp_path):
    train, test = digits
    bare = as_images(train.pixels)
    one, few = train.subset(train.labels == 3), train.subset(train.labels < 4)
    few = type(few)(few.pixels, few.labels, [], few.ids, few.name, few.split)
    twice = as_images(np.zeros((9, 16, 16), np.uint8), np.arange(9))
    tiny = dict(model=net('smallconv(stride=2, stages=3)', channels=1), views=Augment([Resize(2)], plain=[Resize(2)]))
    cases = [
        (dict(train=bare), 'needs labels'),
        (dict(test=bare), 'needs labels'),
        (dict(train=one), 'of one class'),
        (dict(train=few), 'training images have 4 classes'),
        (dict(test=twice), 'expected the same'),
        (dict(layers=['2', 'conv9']), "unknown layer 'conv9'"),
        (dict(n_crops=5), 'n_crops=5'),
        (dict(views='digitz'), "unknown preset 'digitz'"),
        (dict(model=NMCE()), 'not fitted'),
        (dict(model=str(tmp_path)), 'not a run folder'),
        (dict(model=net('resnet18cifar')), '1 channels'),
        (tiny, 'does not pass the net'),
        (dict(device='cuda:77'), "device 'cuda:77'"),
        (dict(amp='fp16'), 'fp16 needs a CUDA device')]
    for bad, message in cases:
        with pytest.raises(InputError, match=message) as e:
            layer_probes(**{**dict(model=net(), train=train, test=test, epochs=1, device='cpu'), **bad})
        assert '\n' not in str(e.value)
        if 'layers' not in bad:
            with pytest.raises(InputError, match=message):
                linear_evaluation(**{**dict(model=net(), train=train, test=test, epochs=1, device='cpu'), **bad})
    negative = type(train)(train.pixels, train.labels - 1, train.class_names, train.ids, train.name, train.split)
    with pytest.raises(InputError, match='is negative'): layer_probes(net(), negative, test, device='cpu')
    with pytest.raises(InputError, match='points have no crops'):
        points = load('spiral', limit=50)
        layer_probes(net('mlp'), points, points, views='spiral', n_crops=10, device='cpu')


def test_images_too_small_for_alexnet():
    with torch.device('meta'): module = backbone('alexnet', channels=1)[0]
    small = as_images(np.zeros((4, 8, 8), np.uint8), np.arange(4))
    with pytest.raises(InputError, match='alexnet takes 223'):
        layer_probes(module.to_empty(device='cpu'), small, small, device='cpu')


# ---- the notebook


def test_parameters_cell_is_the_config():
    cells = json.loads((ROOT / 'nbs/probe_layers.ipynb').read_text())['cells']
    tagged = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    hints, comments = typing.get_type_hints(ProbeConfig), docments(ProbeConfig)
    def kind(t): return next(k for k in (*typing.get_args(t), t) if k is not type(None)).__name__
    def line(f): return f'{f.name}: {kind(hints[f.name])} = {f.default!r}  # {comments[f.name]}'
    assert [t.splitlines() for t in tagged] == [[line(f) for f in fields(ProbeConfig)]]
    assert ProbeConfig(layers='layer1, relu').checked().layer_list() == ['layer1', 'relu']
    assert ProbeConfig().layer_list() is None
