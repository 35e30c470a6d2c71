"""Retraining with rotation: the turns against Pillow, the loss head by head, rates of SeLa's code, accuracies in closed
form, bad input, resumption.

The folder of golden values can be replaced with NMC_GOLDEN_SELA: rates, drops and epochs are read from the file."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from nmc_workbench.augment import Augment, preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.evaluation.features import halves
from nmc_workbench.nets.imagenet import AlexNet
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.evaluation.probes import layer_probes
from nmc_workbench.optim import stepped_rate
from nmc_workbench.data.readers import as_images
from nmc_workbench.evaluation.rotation import (RotationNet, RotationStage, retrain_with_rotation, rotation_accuracy,
                                              rotations)

GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden/sela')) / 'lr.npz'
OPTIONS = dict(name='smallconv(width=8)', views='digits', epochs=3, batch_size=50, device='cpu')


@pytest.fixture(scope='module')
def digits(): return halves(load('digits', limit=300))


@pytest.fixture(scope='module')
def labels(digits): return torch.stack([digits[0].labels, digits[0].labels % 3])


def network(n_heads=2): return initialised(lambda: RotationNet(*backbone('smallconv'), 5, n_heads), 0)


# ---- turns


def test_rotations_are_pillows():
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    found = rotations(pixels).view(4, 5, 3, 16, 16)
    for k, turned in enumerate(found):
        for image, wanted in zip(turned, pixels):
            wanted = Image.fromarray(wanted.permute(1, 2, 0).numpy()).rotate(90 * k)    # Pillow turns counter-clockwise
            assert (image.permute(1, 2, 0).numpy() == np.asarray(wanted)).all()


def test_rotations_form_a_group():
    x = torch.rand(4, 2, 7, 7)
    whole, half, third = (rotations(x)[i * 4:i * 4 + 4] for i in (0, 2, 3))
    assert torch.equal(whole, x) and torch.equal(half, x.flip(2, 3)) and torch.equal(rotations(third)[4:8], x)
    assert torch.equal(rotations(rotations(x)[4:8])[4:8], half)


@pytest.mark.parametrize('shape', [(2, 3, 8, 9), (3, 8, 8), (2, 5)])
def test_rotations_refuse(shape):
    with pytest.raises(InputError, match='square images'): rotations(torch.zeros(shape))


# ---- network and stage


@pytest.mark.parametrize('n_heads', [1, 2, 4])
def test_loss_head_by_head(n_heads):
    net, labels = network(n_heads).eval(), torch.randint(0, 5, (n_heads, 30))
    index, x = torch.randperm(30)[:9], torch.rand(1, 9, 1, 8, 8)
    loss, log = RotationStage(net, 1, labels).step(index, x)
    turned = [x[0].rot90(k, (2, 3)) for k in range(4)]
    logits = [net.rotation(net.backbone(t)) for t in turned]
    rotation = torch.stack([F.cross_entropy(l, torch.full((9,), k)) for k, l in enumerate(logits)]).mean()
    features = net.backbone(x[0])
    own = torch.stack([F.cross_entropy(h(features), labels[i, index]) for i, h in enumerate(net.heads)]).mean()
    torch.testing.assert_close(loss, rotation + own)
    torch.testing.assert_close(log['rotation_loss'], rotation.detach())
    torch.testing.assert_close(log['label_loss'], own.detach())
    alone, log = RotationStage(net, 1, None).step(index, x)
    torch.testing.assert_close(alone, rotation)
    assert set(log) == {'rotation_loss', 'rotation_accuracy'}


def test_rates_golden():
    with np.load(GOLDEN) as f: wanted, (lr, _, epochs) = f['rotnet'], f['rotnet_params']
    found = [stepped_rate(e, int(epochs), lr, RotationStage.drops, RotationStage.of) for e in range(len(wanted))]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_everything_learns_and_alexnets_start_small():
    stage = RotationStage(network(), 1, torch.zeros(2, 9))
    group, = stage.start()['main'].param_groups
    assert len(group['params']) == len(list(stage.network.parameters()))
    assert (group['lr'], group['momentum'], group['weight_decay']) == (.05, .9, 1e-5)

    class Stub(AlexNet):
        def __init__(self): nn.Module.__init__(self)

    net = initialised(lambda: RotationNet(Stub(), 4096, 50, 2), 0)
    for head in (*net.heads, net.rotation):
        assert head.weight.std().item() == pytest.approx(.01, rel=.03) and (head.bias == 0).all()


# ---- accuracy


class Corner(nn.Module):
    "One number per corner: the brightest tells the direction."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x): return torch.stack([x[:, 0, 0, 0], x[:, 0, -1, 0], x[:, 0, -1, -1], x[:, 0, 0, -1]], 1)


@pytest.mark.parametrize('answer, wanted', [
    (torch.eye(4), 1.),
    (torch.eye(4)[:, [1, 0, 2, 3]], .5),
    (torch.zeros(4, 4), .25),
    (torch.eye(4).roll(1, 0), 0.)])
def test_accuracy_counts_all_four(answer, wanted):
    pixels = torch.zeros(30, 1, 6, 6, dtype=torch.uint8)
    pixels[:, :, 0, 0] = 255
    net = RotationNet(Corner(), 4)
    net.rotation.load_state_dict(dict(weight=answer, bias=torch.zeros(4)))
    for batch in (7, 256): assert rotation_accuracy(net, as_images(pixels), Augment([]), batch) == wanted


def test_accuracy_of_symmetric_images():
    "No network tells directions apart that look the same."
    plain = as_images(np.full((20, 8, 8), 77, np.uint8))
    net, found = retrain_with_rotation(plain, None, **{**OPTIONS, 'batch_size': 20, 'views': Augment([])})
    assert found == .25


# ---- all of it


def test_labels_and_rotation_are_learned(digits, labels):
    train, test = digits
    views = preset('digits', degrees=5., size=None)
    longer = {**OPTIONS, 'epochs': 12, 'batch_size': 25, 'name': 'smallconv', 'views': views}
    net, found = retrain_with_rotation(train, labels, **longer, test=test)
    with torch.no_grad(): logits = net(test.pixels / 255)
    assert found > .6 and float((logits[0].argmax(1) == test.labels).float().mean()) > .6
    assert logits.shape == (2, 150, 10) and not net.training
    assert found == rotation_accuracy(net, test, preset('digits'))
    # a network like any other
    assert len(layer_probes(net, train, test, views='digits', epochs=1, device='cpu')) == 4


def test_rotation_alone(digits):
    net, found = retrain_with_rotation(digits[0], None, **OPTIONS)
    assert len(net.heads) == 0 and found == rotation_accuracy(net, digits[0], preset('digits'))
    assert net.features(digits[0].pixels[:2] / 255).shape == (2, 32)


def test_one_head_in_any_form(digits, labels):
    "The original fails where there is one head."
    forms = labels[0], labels[:1], labels[0].numpy(), labels[0].tolist(), labels[0].to(torch.int32)
    states = [retrain_with_rotation(digits[0], y, **{**OPTIONS, 'epochs': 1})[0].state_dict() for y in forms]
    assert all(torch.equal(s[k], states[0][k]) for s in states for k in s)
    other = retrain_with_rotation(digits[0], labels[0], **{**OPTIONS, 'epochs': 1}, seed=1)[0].state_dict()
    assert not torch.equal(other['rotation.weight'], states[0]['rotation.weight'])


def test_an_interrupted_run_ends_as_an_uninterrupted_one(digits, labels, tmp_path, monkeypatch):
    options = {**OPTIONS, 'epochs': 4, 'checkpoint_every': 1}
    whole, accuracy = retrain_with_rotation(digits[0], labels, **options, run_dir=tmp_path / 'whole')
    before = RotationStage.before_epoch
    def killed(self, epoch):
        if epoch == 2: raise KeyboardInterrupt
        return before(self, epoch)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(RotationStage, 'before_epoch', killed)
        retrain_with_rotation(digits[0], labels, **options, run_dir=tmp_path / 'cut')
    assert not (tmp_path / 'cut/results.json').exists()
    for _ in range(2):                                      # the second time there is nothing left to train
        net, found = retrain_with_rotation(digits[0], labels, **options, run_dir=tmp_path / 'cut', resume=True)
        assert found == accuracy
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), whole.state_dict().values()))
    rows = [json.loads(line) for line in (tmp_path / 'cut/metrics.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in rows] == [0, 1, 2, 3] and all(0 <= r['rotation_accuracy'] <= 1 for r in rows)
    assert json.loads((tmp_path / 'cut/results.json').read_text())['rotation_accuracy'] == accuracy
    for bad in (dict(labels=labels.flip(1)), dict(labels=None), dict(lr=.1), dict(name='smallconv')):
        with pytest.raises(InputError, match='belongs to another configuration'):
            given = {**dict(images=digits[0], labels=labels), **options, **bad}
            retrain_with_rotation(**given, run_dir=tmp_path / 'cut', resume=True)


# ---- bad input


def test_refuses(digits, labels, tmp_path):
    oblong = as_images(np.zeros((9, 8, 12), np.uint8))
    cases = [
        (dict(labels=labels[:, :9]), r'shape \(2, 9\) for 150 images; expected \(150,\) or \(heads, 150\)'),
        (dict(labels=labels[None]), 'expected'),
        (dict(labels=labels.float()), 'labels of type float32; expected whole numbers'),
        (dict(labels=labels - 1), 'a label of image .* is -1'),
        (dict(labels=labels * 0), 'all labels are 0'),
        (dict(images=oblong, labels=None, views=Augment([])), 'square images'),
        (dict(images=load('spiral', limit=50), labels=None), 'holds points'),
        (dict(name='alexnet', views=Augment([])), 'alexnet takes 223'),
        (dict(name='lenet'), "unknown backbone 'lenet'"),
        (dict(views='digitz'), "unknown preset 'digitz'"),
        (dict(device='cuda:77'), "device 'cuda:77'"),
        (dict(amp='fp16'), 'fp16 needs a CUDA device')]
    for bad, message in cases:
        if bad.get('name') == 'alexnet': bad['images'] = digits[0]
        with pytest.raises(InputError, match=message) as e:
            given = {**dict(images=digits[0], labels=labels), **OPTIONS, **bad}
            retrain_with_rotation(**given, run_dir=tmp_path / 'run')
        assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()
