"What users hand over: parameters, labels, folders and value ranges are taken as meant, or refused in one line."
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import as_images, load
from nmc_workbench.data.images import SUFFIXES, FilePixels, Images, decode, natural
from nmc_workbench.evaluation.baselines import pixel_baseline
from nmc_workbench.evaluation.probes import ProbeConfig
from nmc_workbench.evaluation.protocols import EvaluateConfig
from nmc_workbench.methods import NMC, NMCE, NMCConfig, NMCEConfig, SeLa, SeLaConfig

CONFIGS = [NMCConfig, NMCEConfig, SeLaConfig, EvaluateConfig, ProbeConfig]
SMALL = dict(n_clusters=10, batch_size=60, device='cpu')
FITS = dict(nmce=lambda **o: NMCE(**{**SMALL, **o}, epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1),
            nmc=lambda **o: NMC(**{**SMALL, 'n_clusters': None, **o}, epochs=1, potential_hidden=16),
            sela=lambda **o: SeLa(**{**SMALL, **o}, dataset='digits', backbone='smallconv', n_heads=1, epochs=1,
                                  n_label_updates=1))


def one_line(match, make, *args, **kwargs):
    with pytest.raises(InputError) as e: make(*args, **kwargs)
    text = str(e.value)
    assert '\n' not in text and match in text, text
    return text


# --------------------------------------------------------------------------- parameters

@pytest.mark.parametrize('name, value, right', [
    ('limit', np.int64(300), 300), ('limit', np.array(300), 300), ('lr', np.float32(.5), .5),
    ('lr', torch.tensor(.5, dtype=torch.bfloat16), .5), ('resume', np.bool_(True), True),
    ('resume', torch.tensor(True), True), ('n_clusters', torch.tensor(7), 7), ('run_dir', Path('runs/a'), 'runs/a'),
    ('run_dir', np.str_('runs/a'), 'runs/a')])
def test_numpy_torch_and_path_values_are_taken(name, value, right):
    got = getattr(NMCEConfig.from_names({name: value}), name)
    assert got == right and type(got) is type(right)


@pytest.mark.parametrize('config', CONFIGS)
@pytest.mark.parametrize('value', [np.int64(9), np.float32(1), torch.tensor(9), torch.ones(3, 3), np.zeros((50, 50)),
                                   Path('a'), b'a', 1j, {1}])
def test_a_misspelled_name_is_refused_whatever_its_value(config, value):
    one_line("unknown parameter 'run_dri'; did you mean 'run_dir'", config.from_names, dict(run_dri=value))


@pytest.mark.parametrize('config', CONFIGS)
@pytest.mark.parametrize('value', [np.zeros((50, 50)), torch.ones(1), b'a', 1j, {1},
                                   object(), len, os, np.array(['a'])])
def test_a_value_that_is_none_of_a_parameter_is_refused_and_never_ignored(config, value):
    one_line('run_dir', config.from_names, dict(run_dir=value))


def test_aliases_take_the_same_values():
    assert NMCConfig.from_names(dict(save_dir=Path('runs/a'))).run_dir == 'runs/a'
    assert SeLaConfig.from_names(dict(ncl=np.int64(9), wd=np.float64(.5))).n_clusters == 9
    one_line('ncl', SeLaConfig.from_names, dict(ncl=np.zeros(3)))


def test_the_message_of_a_large_value_is_one_line():
    assert len(one_line('limit=array', NMCEConfig(limit=np.zeros((50, 50))).checked)) < 250


# --------------------------------------------------------------------------- labels beside images

@pytest.fixture(scope='module')
def digits(): return load('digits', limit=120)


def fitting(method, images):
    "What a method fits in these tests: the images, or for NMC their pixels as points."
    return replace(images, pixels=images.pixels.flatten(1).float()) if method == 'nmc' else images


@pytest.mark.parametrize('method', FITS)
def test_labels_beside_images_are_used(method, digits):
    digits, y = fitting(method, digits), digits.labels.numpy()
    bare = replace(digits, labels=None, class_names=[])
    from_array, from_images = (FITS[method]().fit(x, y).results_ for x in (bare.pixels.numpy(), bare))
    assert from_images['nmi'] == from_array['nmi'] and from_images['acc'] == from_array['acc']
    one_line('y differs from the labels in X for', FITS[method]().fit, digits, np.zeros(120, int))
    one_line('3 samples', as_images, replace(bare.subset([0, 1, 2])), y)


def test_labels_beside_images_count_the_clusters(digits):
    bare = replace(digits, labels=None, class_names=[])
    assert FITS['nmce'](n_clusters=None).prepare(bare, digits.labels.numpy()) is not None
    assert as_images(digits, digits.labels) is digits
    named = as_images(replace(digits, labels=None), digits.labels.numpy())      # the names are kept
    assert named.class_names == digits.class_names and torch.equal(named.labels, digits.labels)
    one_line('label 10 of image 0 is no class', as_images, replace(digits, labels=None), np.full(120, 10))


# --------------------------------------------------------------------------- labels

X = np.zeros((6, 8, 8), np.uint8)
CAT = ['cat', 'dog']

TAKEN = [
    ('bytes', np.array([b'cat', b'dog'] * 3), CAT, [0, 1] * 3),
    ('list of bytes', [b'cat', b'dog'] * 3, CAT, [0, 1] * 3),
    ('objects', np.array(CAT * 3, object), CAT, [0, 1] * 3),
    ('-1', [-1, 0, 1] * 2, ['0', '1'], [-1, 0, 1] * 2),
    ('-1 in floats', [-1., 0, 1] * 2, ['0', '1'], [-1, 0, 1] * 2),
    ('None', [None, 'cat'] * 3, ['cat'], [-1, 0] * 3),
    ('None among numbers', np.array([None, 3, 5] * 2, object), ['3', '5'], [-1, 0, 1] * 2),
    ('None among bytes', [None, b'cat', b'dog'] * 2, CAT, [-1, 0, 1] * 2),
    ('bool', np.array([True, False] * 3), ['False', 'True'], [1, 0] * 3),
    ('bytes that are numbers', np.array([1, 2] * 3, np.uint8), ['1', '2'], [0, 1] * 3),
    ('torch', torch.tensor([4, 7] * 3), ['4', '7'], [0, 1] * 3),
]
REFUSED = [
    ('inf', [0., np.inf] * 3), ('nan', [0., np.nan] * 3), ('half', [0., .5] * 3), ('complex', [0, 1j] * 3),
    ('structured', np.zeros(6, [('a', int)])), ('dates', np.array(['2020-01-01'] * 6, 'M8[D]')),
    ('names and numbers', ['cat', 1] * 3), ('negative', [-2, 0, 1] * 2), ('bytes of no text', [b'\xff', b'a'] * 3),
    ('-1 and 1', [-1, 1] * 3), ('too few', [0, 1]), ('a scalar', 1), ('lists', [[0, 1]] * 6),
    ('objects', np.array([{}] * 6, object)), ('ragged', [[0], [0, 1]] * 3),
]


@pytest.mark.parametrize('y, names, labels', [t[1:] for t in TAKEN], ids=[t[0] for t in TAKEN])
def test_labels_as_people_have_them(y, names, labels, tmp_path):
    images = as_images(X, y)
    assert images.class_names == names and images.labels.tolist() == labels
    y = np.asarray(y)
    if y.dtype.kind == 'O': return      # these are no plain npz
    np.savez(tmp_path / 'a.npz', x=X, y=y)
    assert load('npz', root=tmp_path).labels.tolist() == labels


@pytest.mark.parametrize('y', [t[1] for t in REFUSED], ids=[t[0] for t in REFUSED])
def test_labels_that_are_none(y, tmp_path):
    one_line('y', as_images, X, y)
    one_line('y', as_images, as_images(X), y)
    a = np.empty(0)
    try: a = np.asarray(y)
    except ValueError: pass
    if a.dtype.kind in 'OU' or not a.size: return       # numpy made names of all of them
    np.savez(tmp_path / 'a.npz', x=X, y=a)
    one_line(str(tmp_path), load, 'npz', root=tmp_path)


@pytest.mark.parametrize('y', [[-1] * 6, [None] * 6])
def test_nothing_but_unlabelled_is_no_labels(y):
    images = as_images(X, y)
    assert images.labels is None and images.n_classes == 0


@pytest.mark.parametrize('labels, names', [([0, 1, 2], CAT), ([0, 1, -2], CAT), ([0, 1, -2], []), ([0, np.inf, 1], CAT),
                                           ([0, 1j, 1], CAT), (CAT + ['cat'], CAT), ([0, 1, 2 ** 40], CAT),
                                           (torch.tensor([0, .5, 1]), CAT), (torch.tensor([0, 1j, 1]), CAT)])
def test_images_refuse_labels_without_a_class(labels, names):
    one_line('a all', Images, torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels, names, list('abc'), 'a', 'all')


@pytest.mark.parametrize('method', FITS)
def test_unlabelled_images_are_left_out_of_scores_and_of_k(method, digits):
    y = digits.labels.numpy().copy()
    y[::3] = -1
    some = as_images(fitting(method, digits).pixels.numpy(), y)
    model = FITS[method](n_clusters=None).fit(some) if method != 'sela' else FITS[method]().fit(some)
    known = y >= 0
    if method == 'nmce': assert model.n_clusters_ == 10 == some.n_classes
    from nmc_workbench.metrics import scores
    want = scores(y[known], model.labels_[known])
    assert {k: model.results_[k] for k in ('acc', 'nmi', 'ari')} == {k: want[k] for k in ('acc', 'nmi', 'ari')}


def test_unlabelled_images_elsewhere(digits):
    some = replace(digits, labels=torch.where(torch.arange(120) % 3 == 0, -1, digits.labels))
    assert len(some.labelled()) == 80 and int(some.labelled().labels.min()) == 0
    part = some.limit(60)
    assert int((part.labels < 0).sum()) == 20
    assert 0 < pixel_baseline(some, 10)['acc'] < 1
    one_line('scoring needs labels', some.subset([0, 3]).need_labels, 'scoring')


# --------------------------------------------------------------------------- published sets

@pytest.mark.parametrize('label', [255, 10])
def test_a_label_beyond_the_digits(label, tmp_path):
    raw = tmp_path / 'MNIST/raw'
    raw.mkdir(parents=True)
    (raw / 'train-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, 2, 28, 28) + bytes(2 * 784))
    (raw / 'train-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, 2) + bytes([7, label]))
    text = one_line(f'label {label} of image 1', load, 'mnist', root=tmp_path, download=False)
    assert str(raw) in text and '0 to 9' in text


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize('label', [99, -1, 43])
def test_a_sign_beyond_the_classes(label, tmp_path):
    base = tmp_path / 'gtsrb'
    for i in range(2): save(base / f'GTSRB/Final_Test/Images/0000{i}.ppm', np.full((9, 9, 3), 200, np.uint8))
    (base / 'GT-final_test.csv').write_text(f'Filename;ClassId\n00000.ppm;16\n00001.ppm;{label}\n')
    one_line(f'label {label} of image 1', load, 'gtsrb', 'test', root=tmp_path)
    if label < 0: return
    for c in (0, label): save(base / f'GTSRB/Training/{c:05d}/0.ppm', np.full((9, 9, 3), 200, np.uint8))
    one_line(f'label {label} of image 1', load, 'gtsrb', root=tmp_path)


# --------------------------------------------------------------------------- folders

BRIGHT = np.random.default_rng(0).integers(100, 256, (16, 16, 3), dtype=np.uint8)
CLASSES = ('ant', 'bee', 'cow')


def tree(root, *places, n=4):
    for place in places:
        for i in range(n): save(root / place / f'{i}.png', np.roll(BRIGHT, i, 0))
    return root


def splits(root, *names): return tree(root, *(f'{s}/{c}' for s in names for c in CLASSES))


def look(root, name='folder', split='train'):
    images = load(name, split, root=root, size=16)
    return images.class_names, len(images)


LOADERS = pytest.mark.parametrize('name', ['folder', 'imagenet_folder'])


@LOADERS
@pytest.mark.parametrize('names', [('train', 'test'), ('Train', 'Test'), ('training', 'testing'), ('TRAIN', 'val'),
                                   ('train',), ('train', 'unlabelled'), ('Train', 'Validation')])
def test_split_folders_however_they_are_written(name, names, tmp_path):
    splits(tmp_path, *names)
    for extra in ('annotations', '__MACOSX', '.cache'): (tmp_path / extra).mkdir()
    (tmp_path / 'annotations/boxes.csv').write_text('x')
    save(tmp_path / '__MACOSX/train/ant/._0.png', BRIGHT)
    save(tmp_path / '.cache/0.png', BRIGHT)
    save(tmp_path / 'annotations/.thumbs/0.png', BRIGHT)
    assert look(tmp_path, name) == (list(CLASSES), 12)
    images = load(name, root=tmp_path, size=16)
    assert all(p.is_file() for p in images.paths) and images.ids[0] == f'{names[0]}/ant/0.png'


@LOADERS
@pytest.mark.parametrize('odd', ['extra', 'annotations', 'cow'])
def test_a_folder_with_images_beside_the_splits_is_refused_by_name(name, odd, tmp_path):
    tree(splits(tmp_path, 'train', 'test'), odd)
    one_line(f'beside them the images in {odd}', look, tmp_path, name)


def test_two_folders_for_one_split(tmp_path):
    splits(tmp_path, 'train', 'training')
    one_line('train and training', look, tmp_path)


@LOADERS
def test_hidden_and_empty_folders_are_no_classes(name, tmp_path):
    tree(tmp_path, *CLASSES)
    save(tmp_path / 'hidden/.0.png', BRIGHT)
    save(tmp_path / 'deep/.thumbs/0.png', BRIGHT)
    save(tmp_path / '.git/0.png', BRIGHT)
    (tmp_path / 'empty/inner').mkdir(parents=True)
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text/a.txt').write_text('a')
    assert look(tmp_path, name) == (list(CLASSES), 12)


@LOADERS
@pytest.mark.parametrize('place', ['photos', 'photos/all', 'train', 'train/photos', 'test'])
def test_one_folder_is_no_class(name, place, tmp_path):
    images = load(name, root=tree(tmp_path, place), size=16)
    assert images.labels is None and images.class_names == [] and len(images) == 4
    one_line('no labels to count, so n_clusters must be given', NMCE(dataset='folder').config, images)


def test_a_folder_in_a_folder_counts_as_that_folder(tmp_path):
    assert look(tree(tmp_path / 'a', *(f'pets/{c}' for c in CLASSES))) == (list(CLASSES), 12)
    assert look(splits(tmp_path / 'b/pets', 'train', 'test').parent) == (list(CLASSES), 12)
    assert look(tree(tmp_path / 'c',
                     *(f'{s}/images/{c}' for s in ('train', 'test') for c in CLASSES)))[0] == list(CLASSES)
    images = load('folder', root=tmp_path / 'b', size=16)
    assert images.ids[0] == 'pets/train/ant/0.png' and images.paths[0].is_file()


def test_links_take_no_images_from_a_class(tmp_path):
    tree(tmp_path / 'in', 'bee', 'cow')
    outside = tree(tmp_path / 'out', 'x') / 'x'
    for link, target in [('aaa', 'bee'), ('zzz', 'cow'), ('up', '.'), ('bee/back', '..'), ('bee/side', 'cow')]:
        (tmp_path / 'in' / link).symlink_to(tmp_path / 'in' / target)
    for link in ('linked', 'linked2'): (tmp_path / 'in' / link).symlink_to(outside)
    assert look(tmp_path / 'in') == (['bee', 'cow', 'linked'], 12)
    splits(tmp_path / 's', 'train', 'test')
    (tmp_path / 's/latest').symlink_to(tmp_path / 's/train')
    assert look(tmp_path / 's') == (list(CLASSES), 12)


def test_a_class_kept_in_a_hidden_folder_and_linked(tmp_path):
    tree(tmp_path, 'bee', '.store/ant')
    (tmp_path / 'ant').symlink_to(tmp_path / '.store/ant')
    assert look(tmp_path) == (['ant', 'bee'], 8)


def test_what_is_no_regular_file_is_not_listed(tmp_path):
    tree(tmp_path, 'ant', 'bee')
    os.mkfifo(tmp_path / 'ant/pipe.png')
    (tmp_path / 'ant/gone.png').symlink_to(tmp_path / 'nowhere.png')
    (tmp_path / 'ant/loop.png').symlink_to(tmp_path / 'ant/loop.png')
    (tmp_path / 'ant/loop').symlink_to(tmp_path / 'ant/loop')
    (tmp_path / 'ant/folder.png').mkdir()
    assert look(tmp_path) == (['ant', 'bee'], 8)


@LOADERS
def test_class_numbers_are_the_same_in_every_process(name, tmp_path):
    for c in ('1', '01', '001', '2', 'x1', 'x01'):
        save(tmp_path / c / '1.png', BRIGHT), save(tmp_path / c / '01.png', BRIGHT)
    code = (f'from nmc_workbench.data import load; x = load({name!r}, root={str(tmp_path)!r}, size=16); '
            'print(x.class_names, list(x.ids), x.fingerprint())')
    def run(seed):
        env = {**os.environ, 'PYTHONHASHSEED': seed}
        return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout
    assert len({run(seed) for seed in '0123'}) == 1
    assert load(name, root=tmp_path, size=16).class_names == ['001', '01', '1', '2', 'x01', 'x1']


def test_the_order_depends_on_the_names_alone():
    names = ['1', '01', '001', 'a', 'a1', 'a01', 'b2', 'b10']
    assert sorted(names, key=natural) == sorted(names[::-1], key=natural)


# --------------------------------------------------------------------------- value ranges

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))
GREYS = [('png', np.uint16, 1023), ('png', np.uint16, 4095), ('png', np.uint16, 16383), ('png', np.uint16, 65535),
         ('png', np.uint16, 255), ('tif', np.uint16, 1023), ('tif', np.uint16, 4095), ('tif', np.int32, 255),
         ('tif', np.int32, 4095), ('tif', np.int32, 65535)]


@pytest.mark.parametrize('suffix, dtype, top', GREYS)
def test_greys_of_more_than_8_bits_use_the_whole_range(suffix, dtype, top, tmp_path):
    Image.fromarray((RAMP * top).astype(dtype)).save(tmp_path / f'a.{suffix}')
    a = np.asarray(decode(tmp_path / f'a.{suffix}', None, 1))
    assert a.max() == 255 and a.min() == 0 and len(np.unique(a)) == 64
    assert np.abs(a.astype(float) - RAMP * 255).max() <= 1.01 + 255 / top


@pytest.mark.parametrize('low, high', [(-5, 255), (0, 70000), (0, 2 ** 31 - 1)])
def test_greys_without_a_range_are_refused(low, high, tmp_path):
    Image.fromarray((low + RAMP * (high - low)).astype(np.int32)).save(tmp_path / 'a.tif')
    one_line('expected 0 to 65535', decode, tmp_path / 'a.tif')


def wide_png(path, top):
    "A colour file of 16 bits per channel."
    import zlib
    rows = (RAMP * top).astype('>u2')
    data = b''.join(b'\0' + np.repeat(r, 3).tobytes() for r in rows)
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    head = struct.pack('>2I5B', 64, 64, 16, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT',
        zlib.compress(data)) + chunk(b'IEND', b''))


def test_colours_of_16_bits_are_never_nearly_black(tmp_path):
    wide_png(tmp_path / 'a.png', 4095)
    one_line('16 bits per channel', decode, tmp_path / 'a.png')
    wide_png(tmp_path / 'a.png', 65535)
    assert np.asarray(decode(tmp_path / 'a.png')).max() == 255


MASKS = np.random.default_rng(0).random((10, 8, 8)) > .5


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.int64, np.float32])
def test_masks_are_black_and_white(dtype, tmp_path):
    wanted = torch.from_numpy(MASKS[:, None].astype(np.uint8) * 255)
    assert torch.equal(as_images(MASKS.astype(dtype)).pixels, wanted)
    np.savez(tmp_path / 'a.npz', x=MASKS.astype(dtype))
    assert torch.equal(load('npz', root=tmp_path).pixels, wanted)


def test_mask_files_are_black_and_white(tmp_path):
    for i, m in enumerate(MASKS): save(tmp_path / f'{i}.png', m.astype(np.uint8))
    assert set(load('folder', root=tmp_path).pixels.unique().tolist()) == {0, 255}


def test_what_comes_out_nearly_black_is_warned_of(tmp_path):
    x = np.random.default_rng(0).integers(0, 16, (6, 8, 8))
    for make in (lambda: as_images(x), lambda: as_images(x / 255)):
        with pytest.warns(UserWarning, match='nearly black'): make()
    for i in range(6): save(tmp_path / f'{i}.png', x[i].astype(np.uint8))
    for name in ('folder', 'imagenet_folder'):
        with pytest.warns(UserWarning, match='nearly black'): load(name, root=tmp_path, size=8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        as_images(np.zeros((6, 8, 8))), as_images(x * 16), as_images(x / 16)


@pytest.mark.parametrize('x', [np.full((3, 4, 4), 300), np.full((3, 4, 4), -1), np.full((3, 4, 4), 7.),
                               np.full((3, 4, 4), -.5), np.full((3, 4, 4), 4095, np.uint16), np.full((3, 4, 4), 1j)])
def test_other_ranges_are_refused(x): one_line('expected', as_images, x)


# --------------------------------------------------------------------------- paths that begin with ~

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder of its own, and another folder to stand in."
    (tmp_path / 'home').mkdir(), (tmp_path / 'here').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'home'


@pytest.mark.parametrize('config', CONFIGS)
def test_every_folder_of_a_config_may_be_at_home(config, home):
    for name in ('run_dir', 'data_dir'):
        if name not in config.names(): continue
        assert getattr(config.from_names({name: '~/a'}), name) == str(home / 'a')
        assert getattr(config.from_names({name: 'a/~b'}), name) == 'a/~b'
        one_line('no user of that name', config.from_names, {name: '~nobody_of_this_name/a'})


def reading_at_home(path):
    "Everything that takes a path and reads: name -> call, for a finished run in `path`."
    from nmc_workbench.diagnostics.diagnosis import diagnose_run
    from nmc_workbench.methods.base import keeps_merge_tree, method_of, open_run
    from nmc_workbench.reports.summary import summary
    from nmc_workbench.runs.checkpoints import load_checkpoint
    from nmc_workbench.runs.finished import FinishedRun, array_of, config_of
    from nmc_workbench.runs.index import list_runs, newest_run
    from nmc_workbench.runs.metrics_log import read_metrics
    return dict(open_run=lambda: open_run(path), method_of=lambda: method_of(path), load=lambda: NMCE.load(path),
                keeps_merge_tree=lambda: keeps_merge_tree(path), summary=lambda: summary(path),
                checkpoint=lambda: load_checkpoint(path + '/model.pt'), finished=lambda: FinishedRun.open(path),
                array_of=lambda: array_of(path, 'predictions')[0], config_of=lambda: config_of(path),
                list_runs=lambda: list_runs(path)[0], newest_run=lambda: newest_run(path)[0],
                read_metrics=lambda: read_metrics(path)[0], diagnose_run=lambda: diagnose_run(path))


def test_every_reader_and_writer_finds_what_is_at_home(home):
    from nmc_workbench.core.files import append_bytes, read_array, read_csv, read_json
    from nmc_workbench.core.files import write_array, write_csv, write_file, write_json, write_torch
    from nmc_workbench.evaluation.retrain import read_labels, write_labels
    from nmc_workbench.explore.curation import Curation
    tree(home / 'pets', 'ant', 'bee')
    np.savez(home / 'a.npz', x=BRIGHT[None])
    for name in ('folder', 'imagenet_folder'): assert len(load(name, root='~/pets', size=16)) == 8
    assert len(load('npz', root='~/a.npz')) == 1 and len(load('npz', root=Path('~'))) == 1
    assert decode('~/pets/ant/0.png').size == (16, 16)
    write_json('~/w/a.json', dict(a=1)), write_array('~/w/a.npy', [1]), write_torch('~/w/a.pt', {})
    write_csv('~/w/a.csv', [['a']]), append_bytes('~/w/a.log', b'a')
    with write_file('~/w/a.txt') as f: f.write(b'a')
    write_labels('~/w/l.csv', ['a'], [0])
    assert read_json('~/w/a.json') == dict(a=1) and read_array('~/w/a.npy').tolist() == [1]
    assert read_csv('~/w/a.csv') == [['a']] and read_labels('~/w/l.csv', ['a']).tolist() == [[0]]
    images = load('folder', root='~/pets', size=16)
    curation = Curation(images.ids, images.labels.numpy(), np.eye(8, 2))
    curation.save('~/w/c.json'), curation.export_labels('~/w/k.csv'), curation.export_folders('~/w/k', images)
    Curation.load('~/w/c.json', images.ids, images.labels.numpy(), np.eye(8, 2))
    assert len(list((home / 'w').iterdir())) == 10 and not list(Path.cwd().iterdir())


def test_a_run_at_home(home):
    model = FITS['nmce'](run_dir='~/runs/a', resume=False).fit(load('digits', limit=120))
    assert (home / 'runs/a/results.json').is_file() and not list(Path.cwd().iterdir())
    model.save('~/b.pt')
    assert NMCE.load('~/b.pt').n_clusters_ == 10
    for name, read in reading_at_home('~/runs/a').items(): assert read() is not None, name
    FITS['nmce'](run_dir='~/runs/b', start_from='~/runs/a').prepare(load('digits', limit=120))


# --------------------------------------------------------------------------- what must not be opened

SPECIAL = dict(pipe=os.mkfifo, device=lambda p: os.symlink('/dev/zero', p), folder=os.mkdir)


@pytest.mark.parametrize('kind', SPECIAL)
def test_a_pipe_or_device_among_files_is_named_and_never_opened(kind, tmp_path):
    from nmc_workbench.core.files import append_bytes, read_array, read_csv, read_json
    from nmc_workbench.data.archives import Archive, fetch, obtain
    from nmc_workbench.evaluation.retrain import read_labels
    from nmc_workbench.runs.index import list_runs
    path = tmp_path / 'x.npz'
    SPECIAL[kind](path)
    for read in (read_json, read_array, read_csv, decode, lambda p: append_bytes(p, b'a'),
                 lambda p: read_labels(p, ['a']), lambda p: fetch(Archive(('http://x',), p)),
                 lambda p: FilePixels([p], 8)[[0]]):
        one_line('no regular file', read, path)
    if kind != 'folder':
        one_line('no regular file', obtain, [path], [])
        one_line('no regular file', load, 'npz', root=path)
        one_line('holds 0 .npz files', load, 'npz', root=tmp_path)
        one_line('no regular file', load, 'usps', root=special_usps(tmp_path, kind), download=False)
    tree(tmp_path / 'pets', 'ant', 'bee')
    SPECIAL[kind](tmp_path / 'pets/ant/9.png')
    assert look(tmp_path / 'pets') == (['ant', 'bee'], 8)
    (tmp_path / 'runs/a').mkdir(parents=True)
    SPECIAL[kind](tmp_path / 'runs/a/config.json')
    list_runs(tmp_path / 'runs')


def special_usps(folder, kind):
    SPECIAL[kind](folder / 'usps.bz2')
    return folder


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'a'
    FITS['nmce'](run_dir=str(folder)).fit(load('digits', limit=120))
    return folder


@pytest.mark.parametrize('kind', SPECIAL)
@pytest.mark.parametrize('name', ['config.json', 'results.json', 'metrics.jsonl', 'model.pt', 'predictions.npy',
                                  'map2d.npy', 'label_history.bin', 'curation.json'])
def test_a_run_with_a_pipe_in_it_does_not_hang(name, kind, finished, tmp_path):
    from shutil import copytree
    from nmc_workbench.runs.finished import FinishedRun
    from nmc_workbench.runs.index import list_runs
    from nmc_workbench.runs.label_history import read_label_history
    folder = copytree(finished, tmp_path / 'a')
    (folder / name).unlink(missing_ok=True)
    SPECIAL[kind](folder / name)
    def history(p):
        try: read_label_history(p)
        except InputError: pass
    for look in (list_runs, NMCE.load, FinishedRun.open, history, lambda p: FinishedRun.open(p).rows):
        try: look(folder)
        except InputError as e: assert '\n' not in str(e)


# --------------------------------------------------------------------------- decoders and claims

@pytest.mark.parametrize('kind', ['EPS', 'PDF', 'ICO', 'TGA', 'PCX', 'SGI', 'IM', 'MSP', 'XBM'])
def test_only_the_decoders_of_the_listed_endings_open_a_file(kind, tmp_path):
    mode = '1' if kind in ('MSP', 'XBM') else 'RGB'
    Image.fromarray(BRIGHT).convert(mode).save(tmp_path / 'a.png', kind)
    one_line('cannot identify', decode, tmp_path / 'a.png')
    one_line('cannot identify', load, 'folder', root=tmp_path)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP', 'MPO'])
def test_the_listed_kinds_are_read_under_any_of_their_endings(kind, tmp_path):
    Image.fromarray(BRIGHT).save(tmp_path / 'a.png', kind)
    assert load('folder', root=tmp_path).shape == (3, 16, 16)


def claiming_png(w, h):
    import zlib
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>2I5B', w, h, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))


def claiming_npy(shape=(10 ** 6, 1000, 1000), descr='|u1'):
    import io
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, dict(descr=descr, fortran_order=False, shape=shape))
    return f.getvalue() + bytes(100)


def peak_of(make):
    "The memory in bytes that a call takes at most."
    import tracemalloc
    tracemalloc.start()
    try: make()
    finally: peak = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    return peak[0]


CLAIMS = {'png 13000': (lambda p: p.write_bytes(claiming_png(13_000, 13_000)), decode, '13,000 x 13,000'),
          'png 2 ** 31': (lambda p: p.write_bytes(claiming_png(2 ** 31 - 1, 2 ** 31 - 1)), decode, 'image'),
          'gif': (lambda p: p.write_bytes(b'GIF89a\xf0\xf0\xf0\xf0' + bytes(99)), lambda p: decode(p), 'image'),
          'npy': (lambda p: p.write_bytes(claiming_npy()), lambda p: npy_of(p), 'claims the shape'),
          'npy negative': (lambda p: p.write_bytes(claiming_npy((-5, 2))), lambda p: npy_of(p), 'damaged'),
          'npy beyond': (lambda p: p.write_bytes(claiming_npy((10 ** 300,))), lambda p: npy_of(p), 'damaged'),
          'npz member': (lambda p: npz_of(p, claiming_npy()), lambda p: load('npz', root=p), 'claims the shape'),
          'npz negative': (lambda p: npz_of(p, claiming_npy((-5, 2))), lambda p: load('npz', root=p), 'damaged'),
          'npz no array': (lambda p: npz_of(p, b'text'), lambda p: load('npz', root=p), 'damaged'),
          'npz size': (lambda p: npz_of(p, claiming_npy(), 10 ** 9), lambda p: load('npz', root=p), 'claims'),
          'npy named npz': (lambda p: p.write_bytes(claiming_npy()), lambda p: load('npz', root=p), 'damaged')}


def npy_of(path):
    from nmc_workbench.core.files import read_array
    return read_array(path)


def npz_of(path, member, claimed=None):
    "An npz file with one member x, which may claim another size."
    import zipfile
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('x.npy', member)
    if claimed is None: return
    size, data = struct.pack('<I', len(member)), path.read_bytes()
    path.write_bytes(data.replace(size, struct.pack('<I', claimed)))


@pytest.mark.parametrize('make, read, match', CLAIMS.values(), ids=list(CLAIMS))
def test_what_a_header_claims_is_checked_before_memory_is_taken(make, read, match, tmp_path):
    path = tmp_path / 'a.x'
    make(path)
    assert peak_of(lambda: one_line(match, read, path)) < 20e6


@pytest.fixture
def a_small_machine(monkeypatch):
    "One that has a gigabyte left."
    from nmc_workbench.core import checks
    monkeypatch.setattr(checks, '_free_memory', lambda: 10 ** 9)


@pytest.mark.parametrize('options', [dict(name='spiral', n=10 ** 13), dict(name='spiral', n=2 ** 53),
                                     dict(name='folder', size=60_000), dict(name='gtsrb', split='test', size=60_000)])
def test_sizes_beyond_the_memory_are_refused_first(options, tmp_path, a_small_machine):
    tree(tmp_path, 'ant', 'bee')
    for i in range(2): save(tmp_path / f'gtsrb/GTSRB/Final_Test/Images/0000{i}.ppm', BRIGHT)
    (tmp_path / 'gtsrb/GT-final_test.csv').write_text('Filename;ClassId\n00000.ppm;16\n00001.ppm;3\n')
    assert peak_of(lambda: one_line('GB of memory', load, root=tmp_path, **options)) < 20e6


def test_a_size_beyond_the_memory_is_refused_when_images_stream(tmp_path, a_small_machine):
    images = load('imagenet_folder', root=tree(tmp_path, 'ant', 'bee'), size=60_000)
    one_line('GB of memory', images.take, torch.arange(2))


# --------------------------------------------------------------------------- COIL without a published checksum

def coil_zip(path, extra=0):
    import zipfile
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path.with_name('a.png'), BRIGHT[:, :, 0])
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for i in range(20):
            for j in range(72): z.write(path.with_name('a.png'), f'coil-20-proc/obj{i + 1}__{j}.png')
        if extra: z.writestr('big.bin', bytes(extra))
    path.with_name('a.png').unlink()


def test_the_checksum_of_the_first_coil_is_remembered(tmp_path):
    from shutil import rmtree
    coil_zip(tmp_path / 'coil-20-proc.zip')
    assert len(load('coil20', root=tmp_path, download=False)) == 1440
    assert (tmp_path / 'coil-20-proc.zip.sha256').is_file()
    rmtree(tmp_path / 'coil-20-proc')
    coil_zip(tmp_path / 'coil-20-proc.zip', 10)
    one_line('not the file of the first download', load, 'coil20', root=tmp_path, download=False)


def test_a_coil_archive_has_a_limit_packed_and_unpacked(tmp_path, monkeypatch):
    coil_zip(tmp_path / 'coil-20-proc.zip', 100_000_001)
    one_line('bytes unpacked, expected at most 100,000,000', load, 'coil20', root=tmp_path, download=False)
    assert not (tmp_path / 'coil-20-proc').exists() and not (tmp_path / 'big.bin').exists()
    with open(tmp_path / 'coil-20-proc.zip', 'wb') as f: f.truncate(100_000_001)
    one_line('expected at most 100,000,000', load, 'coil20', root=tmp_path, download=False)


def test_a_download_stops_at_its_limit(tmp_path):
    import http.server
    import threading
    from nmc_workbench.data.archives import Archive, fetch
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200), self.end_headers()
            try:
                while True: self.wfile.write(bytes(1 << 16))
            except OSError: pass
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/a.zip'
    one_line('more than 1,000,000 bytes', fetch, Archive((url,), tmp_path / 'a.zip', None, None, 10 ** 6))
    server.shutdown(), server.server_close()
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_on_the_disk_is_not_unpacked(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from nmc_workbench.data import archives
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda p: SimpleNamespace(free=1000))
    coil_zip(tmp_path / 'coil-20-proc.zip')
    one_line('disk full', load, 'coil20', root=tmp_path, download=False)


# --------------------------------------------------------------------------- files that are not read

def mixed(root):
    "Two classes of four images each, and files that are not read."
    tree(root, 'ant', 'bee')
    for place in ('.thumbs/0.png', 'ant/.cache/1.png', 'ant/.cache/deep/2.png'): save(root / place, BRIGHT)
    for place in ('ant/photo.heic', 'ant/a.CR2', 'bee/notes.txt', 'bee/more.txt', 'bee/README', '.git/config'):
        (root / place).parent.mkdir(exist_ok=True), (root / place).write_text('x')
    save(root / 'bee/._0.png', BRIGHT)
    os.mkfifo(root / 'bee/pipe.png')
    (root / 'bee/gone.png').symlink_to(root / 'nowhere.png')
    (root / 'bee/again').symlink_to(root / 'ant')
    return root


HEIC = pytest.mark.skipif('.heic' in SUFFIXES, reason='pillow-heif is installed')
TOLD = ('8 of 19 read; 3 in hidden folders, 2 .txt, 1 .cr2, 1 .heic (install pillow-heif to read it), 1 hidden, '
        '1 not a plain file, 1 with a broken link, 1 without an ending skipped')


@HEIC
@LOADERS
def test_files_that_are_not_read_are_told_by_reason(name, tmp_path, capsys):
    images = load(name, root=mixed(tmp_path), size=16)
    assert capsys.readouterr().err == f'{name} train: {TOLD}\n'
    assert images.skipped.files['.thumbs/0.png'] == images.skipped.files['ant/.cache/deep/2.png'] == 'in hidden folders'
    assert images.skipped.files['bee/._0.png'] == 'hidden' and '.git/config' not in images.skipped.files
    assert len(images.skipped.files) == 11 and images.limit(4).skipped == images.skipped


@LOADERS
def test_nothing_is_said_where_everything_is_read(name, tmp_path, capsys):
    images = load(name, root=tree(tmp_path, 'ant', 'bee'), size=16)
    assert images.skipped is None and capsys.readouterr() == ('', '')


@LOADERS
def test_images_beside_the_splits_are_told(name, tmp_path, capsys):
    splits(tmp_path, 'train', 'val')
    for place in ('loose.png', 'more.jpg', '.hid/0.png', 'train/ant/a.txt', 'val/ant/b.txt'): save_any(tmp_path / place)
    load(name, root=tmp_path, size=16)
    said = capsys.readouterr().err
    assert said == f'{name} train: 12 of 16 read; 2 beside train and val, 1 .txt, 1 in hidden folders skipped\n'
    both = load(name, 'all', root=tmp_path, size=16)
    said = capsys.readouterr().err.strip()
    assert '24 of 29 read' in said and '2 beside train and val' in said and '2 .txt' in said
    assert both.skipped.files['loose.png'] == 'beside train and val' and len(both.skipped.files) == 5


def save_any(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('x') if path.suffix == '.txt' else save(path, BRIGHT)


def test_a_class_in_a_hidden_folder_that_is_linked_counts_once(tmp_path):
    tree(tmp_path, 'bee', '.store/ant')
    (tmp_path / 'ant').symlink_to(tmp_path / '.store/ant')
    assert load('folder', root=tmp_path, size=16).skipped is None


@LOADERS
def test_labels_that_one_split_lacks_are_told(name, tmp_path, capsys):
    tree(splits(tmp_path, 'train'), 'val')
    images = load(name, 'all', root=tmp_path, size=16)
    assert images.labels is None and 'no labels, since val has none' in capsys.readouterr().err
    load(name, 'train', root=tmp_path, size=16)
    assert capsys.readouterr().err == ''


def test_labels_that_one_split_of_an_npz_lacks_are_told(tmp_path, capsys):
    x = np.full((4, 8, 8), 200, np.uint8)
    np.savez(tmp_path / 'a.npz', x_train=x, y_train=[0, 1, 0, 1], x_test=x)
    assert load('npz', 'all', root=tmp_path).labels is None
    assert capsys.readouterr().err == 'npz all: 8 of 8 read; no labels, since test has none\n'


@LOADERS
def test_an_image_beside_the_classes_is_told(name, tmp_path, capsys):
    save(tree(tmp_path, 'ant', 'bee') / 'loose.png', BRIGHT)
    assert load(name, root=tmp_path, size=16).labels is None
    assert 'no labels, since loose.png lies beside the class folders' in capsys.readouterr().err


@pytest.mark.parametrize('method', ['nmce', 'sela'])
def test_a_run_keeps_the_names_of_the_files_that_were_not_read(method, tmp_path):
    from nmc_workbench.core.files import read_csv, read_json
    tree(mixed(tmp_path / 'pets'), 'ant', 'bee', n=40)
    images, run = load('folder', root=tmp_path / 'pets', size=16), tmp_path / 'run'
    FITS[method](n_clusters=2, batch_size=20, run_dir=str(run)).fit(images)
    told = read_json(run / 'provenance.json')['skipped']
    assert told == str(images.skipped) and told.startswith('80 of 91 read; 3 in hidden folders, 2 .txt')
    rows = read_csv(run / 'skipped.csv')
    assert rows[0] == ['file', 'why'] and ['bee/notes.txt', '.txt'] in rows and len(rows) == 12
    FITS[method](n_clusters=2, batch_size=20, run_dir=str(run)).fit(images)      # it is no work of a person
    assert sorted(p.name for p in tmp_path.iterdir()) == ['pets', 'run', 'run.previous']


def test_avif_is_read_where_pillow_can(tmp_path):
    if '.avif' not in SUFFIXES: pytest.skip('Pillow has no AVIF here')
    tree(tmp_path, 'ant', 'bee')
    Image.fromarray(BRIGHT).save(tmp_path / 'ant/9.avif')
    images = load('folder', root=tmp_path, size=16)
    assert len(images) == 9 and images.ids[4] == 'ant/9.avif' and int(images.pixels[4].max()) > 100


@pytest.mark.skipif('.heic' not in SUFFIXES, reason='pillow-heif is not installed')
def test_heic_is_read_where_its_package_is_installed(tmp_path):
    decode(tree(tmp_path, 'ant', 'bee') / 'ant/0.png')      # which registers the decoder
    Image.fromarray(BRIGHT).save(tmp_path / 'ant/9.heic')
    assert len(load('folder', root=tmp_path, size=16)) == 9
