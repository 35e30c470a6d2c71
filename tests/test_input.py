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
from nmc_workbench.data.images import Images, decode, natural
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
