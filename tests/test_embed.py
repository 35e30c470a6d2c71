"Features of a whole set: order, views, the file and its resumption, and what is refused."
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import initialised
from nmc_workbench.data import as_images, load
from nmc_workbench.methods import NMC
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.encoders import encoder
from nmc_workbench.training import embed as module
from nmc_workbench.training.embed import Features, embed
from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
N = 150


def tiny(seed=0, size=32):
    "A small network of random weights that takes colour."
    return encoder(initialised(lambda: backbone('smallconv', 3)[0], seed), size=size)


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=N)


@pytest.fixture(scope='module')
def net(): return tiny()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder of photographs of mixed sizes and modes, with odd names."
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for i, (size, mode) in enumerate([((40, 60), 'RGB'), ((90, 35), 'L'), ((64, 64), 'RGB'), ((33, 200), 'P')] * 3):
        path = root / f'{"ab"[i % 2]} ü' / f'{i} odd (name).png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(path)
    return root


def test_the_rows_are_those_of_the_images(digits, net):
    found = embed(digits, net, views=2, device='cpu')
    assert found.array.shape == (N, 3, 64) and found.array.dtype == np.float32 and found.dim == 64
    np.testing.assert_allclose(found.plain, net(net.prepare(digits.pixels)).numpy(), atol=1e-5)
    assert found.ids.tolist() == digits.ids.tolist() and found.labels.equal(digits.labels)
    assert np.abs(found.views[:, 0] - found.views[:, 1]).max() > 1e-3
    points = found.images()
    assert points.pixels.numpy().tobytes() == found.plain.tobytes() and points.ids.tolist() == digits.ids.tolist()
    assert points.class_names == digits.class_names and points.labels.equal(digits.labels)


def test_views_do_not_depend_on_the_batch_size(digits, net):
    a, b = (embed(digits, net, views=2, batch_size=n, device='cpu').views for n in (10, 100))
    np.testing.assert_allclose(a, b, atol=1e-4)
    c = embed(digits, net, views=2, seed=1, device='cpu').views
    assert np.abs(a - c).max() > .01


@pytest.mark.parametrize('augment', ['digits', 'sela'])
def test_views_are_normalised_by_the_encoder_alone(augment, net):
    "The preset sela ends with a normalisation of its own, which would come on top."
    grey = as_images(np.full((4, 3, 32, 32), 128, np.uint8))
    drawn = module._augmentation(net, augment)
    assert not any('Normalise' in repr(op) for op in drawn.operations)
    assert embed(grey, net, views=1, augment=augment, device='cpu').views.shape == (4, 1, 64)


def test_files_are_read_at_their_own_size(folder, net):
    images = load('imagenet_folder', 'all', folder, size=8)
    found = embed(images, net, views=1, device='cpu')
    seen = [Image.open(p).convert('RGB') for p in images.paths]
    wanted = net(net.scaled(net.pixels(seen))).numpy()
    np.testing.assert_allclose(found.plain, wanted, atol=1e-5)
    assert found.labels is not None and found.images().paths == images.paths


def test_two_images_are_enough(net):
    two = as_images(np.random.default_rng(0).integers(0, 256, (2, 3, 20, 20), dtype=np.uint8))
    assert embed(two, net, views=1, device='cpu').array.shape == (2, 2, 64)


def test_from_a_module(digits):
    mine = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    found = embed(digits, encoder(mine, size=8), device='cpu')
    assert found.plain.shape == (N, 5)
    with pytest.raises(InputError, match="encoder='resnet18'; expected"): embed(digits, 'resnet18')


def test_features_fit_like_points(digits, net):
    model = NMC(epochs=3, batch_size=50, device='cpu').fit(embed(digits, net, device='cpu').images())
    assert model.labels_.shape == (N,)


def test_the_network_of_a_run(tiny_run, digits):
    from nmc_workbench.methods.base import open_run
    path = tiny_run('nmce')
    found = embed(digits, f'run:{path}', views=1, device='cpu')
    np.testing.assert_allclose(found.plain, open_run(path, 'cpu').transform(digits), atol=1e-5)


def test_evaluation_takes_an_encoder(digits, net):
    from nmc_workbench.evaluation.features import extract
    np.testing.assert_array_equal(extract(net, digits, batch_size=64), embed(digits, net, batch_size=64).plain)
    views = embed(digits, net, views=3, batch_size=64, seed=2).views
    np.testing.assert_allclose(extract(net, digits, n_augmented=3, batch_size=64, seed=2), views.mean(1), atol=1e-6)
    with pytest.raises(InputError, match='leave kind out'): extract(net, digits, 'pool')
    with pytest.raises(InputError, match='there is no file nowhere'): extract('file:nowhere', digits)


# --- the file


def test_what_is_there_is_not_computed_again(digits, net, tmp_path, monkeypatch):
    first = embed(digits, net, views=1, folder=tmp_path, device='cpu')
    before = first.path.read_bytes()
    monkeypatch.setattr(module, '_fill', None)
    again = embed(digits, net, views=1, folder=tmp_path, device='cpu')
    assert isinstance(again.array, np.memmap) and np.array_equal(again.array, first.array)
    assert again.path == first.path and again.path.read_bytes() == before


OTHERS = dict(data=dict(limit=39), weights=dict(weights=1), size=dict(size=64), views=dict(views=2),
              seed=dict(seed=1), augment=dict(augment='digits'))


@pytest.mark.parametrize('what', OTHERS)
def test_other_inputs_have_another_file(what, digits, tmp_path):
    given = dict(limit=40, weights=0, size=32, views=1, seed=0, augment='nmc')
    def made(limit, weights, size, **options):
        some = digits.subset(range(limit))
        return embed(some, tiny(weights, size), folder=tmp_path, device='cpu', **options).path
    assert made(**given) != made(**given | OTHERS[what])


def damage_cut(path): path.write_bytes(path.read_bytes()[:-100])
def damage_grown(path): path.write_bytes(path.read_bytes()[:60])
def damage_gone(path): path.unlink()
def damage_shape(path): np.save(path, np.zeros((3, 2), np.float32))
def damage_note(path): path.with_suffix('.json').write_text('{"key"')
def damage_rows(path): change(path, rows=10 ** 6)
def damage_key(path): change(path, key=dict(data='other'))
def damage_no_note(path): path.with_suffix('.json').unlink()


def change(path, **values):
    note = path.with_suffix('.json')
    note.write_text(json.dumps({**json.loads(note.read_text()), **values}))


DAMAGE = {f.__name__: f for f in (damage_cut, damage_grown, damage_gone, damage_shape, damage_note, damage_rows,
                                  damage_key, damage_no_note)}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_file_that_does_not_fit_is_made_again(name, digits, net, tmp_path):
    some = digits.subset(range(40))
    first = embed(some, net, folder=tmp_path, device='cpu')
    before, path = np.array(first.array), first.path
    del first
    DAMAGE[name](path)
    with pytest.warns(UserWarning, match='so it is made again'):
        again = embed(some, net, folder=tmp_path, device='cpu')
    assert np.array_equal(again.array, before)


SCRIPT = '''
import os, signal, sys, torch
torch.set_num_threads(1)
from nmc_workbench.core.seeds import initialised
from nmc_workbench.data.catalog import load
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.training import embed as module
folder, last, saves = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'saved'
put = module._Store.put
def die(self, first, rows):
    put(self, first, rows)
    if saves: self.save()
    if first >= last: os.kill(os.getpid(), signal.SIGKILL)
module._Store.put = die
net = module.encoder_of(initialised(lambda: backbone('smallconv', 3)[0], 0), size=32)
module.embed(load('digits', limit=150), net, views=1, folder=folder, device='cpu', batch_size=32)
'''


def run(folder, last=0, saved='saved'):
    "Embed, with `last` in a process that kills itself once the batch from that row is written."
    if not last: embed(load('digits', limit=N), tiny(), views=1, folder=folder, device='cpu', batch_size=32)
    else:
        command = python('-c', SCRIPT, str(folder), str(last), saved)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    path = next(folder.glob('*.npy'))
    return path.read_bytes(), json.loads(path.with_suffix('.json').read_text())['rows']


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, monkeypatch, one_thread):
    whole, rows = run(tmp_path / 'whole')
    assert rows == N
    for saved, least in (('saved', 96), ('not', 0)):
        part, rows = run(tmp_path / saved, 64, saved)
        assert part != whole and least <= rows < N
    taken, prepare = [], module._Reader.__call__
    monkeypatch.setattr(module._Reader, '__call__', lambda self, i: taken.append(len(i)) or prepare(self, i))
    assert run(tmp_path / 'saved') == (whole, N) and taken == [32, 22]          # only what was missing
    assert run(tmp_path / 'not') == (whole, N)


def test_a_full_disk_is_an_input_error(digits, net, tmp_path, monkeypatch):
    import errno
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(module.os, 'posix_fallocate', full)
    with pytest.raises(InputError, match='disk full while writing .*features_'):
        embed(digits, net, folder=tmp_path, device='cpu')


# --- bad input


class NaN(nn.Module):
    def forward(self, x): return x.flatten(1).mean(1, keepdim=True) / (x.amax((1, 2, 3)) > 0)[:, None] * 0


def test_features_that_are_not_numbers(net):
    pixels = np.full((40, 1, 8, 8), 200, np.uint8)
    pixels[35] = 0
    broken = encoder(nn.Sequential(NaN()), size=8)
    with pytest.raises(InputError, match='NaN or infinite for .*35 .1 in this batch'):
        embed(as_images(pixels), broken, device='cpu')


@pytest.mark.parametrize('given, message', [
    (dict(images=np.zeros((1, 3, 8, 8), np.uint8)), 'has 1 image; embed takes 2 or more'),
    (dict(images=np.zeros((9, 5), np.float32)), 'holds points of 5 numbers, which are features already'),
    (dict(views=-1), 'views=-1'), (dict(views=1, augment='nothing'), "unknown preset 'nothing'"),
    (dict(amp='int8'), "amp='int8'"), (dict(device='gpu'), 'unknown device'), (dict(batch_size=0), 'batch_size=0'),
    (dict(encoder=3), 'encoder=3; expected torchvision:<model>'), (dict(seed=-1), 'seed=-1')])
def test_bad_input(given, message, digits, net):
    with pytest.raises(InputError, match=message) as e: embed(**{'images': digits, 'encoder': net, **given})
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('rows, ids, labels', [(3, 4, 3), (3, 3, 4), (3, 2, 2)])
def test_views_out_of_step(rows, ids, labels):
    with pytest.raises(InputError, match='views out of step with the images: 3 rows'):
        Features(np.zeros((rows, 2, 5), np.float32), [str(i) for i in range(ids)],
                 torch.zeros(labels, dtype=torch.long), ['a'], 'toy', 'all', 'none')


def test_features_of_a_wrong_shape():
    with pytest.raises(InputError, match=r'expected \(N, 1 \+ V, D\)'):
        Features(np.zeros((3, 5), np.float32), list('abc'), None, [], 'toy', 'all', 'none')
