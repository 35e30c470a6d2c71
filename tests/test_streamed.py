"""Sets larger than memory: files, packs and Hugging Face's datasets go through every method as sets in memory do."""
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.augment.presets import preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import images as data_images
from nmc_workbench.data import load, pack, packs
from nmc_workbench.data.__main__ import main
from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.methods.config import RunConfig, load_images
from nmc_workbench.runs.finished import FinishedRun
from nmc_workbench.training.batches import Batches
from tests import tiny

CLASSES = 'ant', 'bee', 'cat'


def jpegs(root, n=60, splits=('',)):
    "n tiny photographs of each of three kinds, of several sizes."
    g = np.random.default_rng(0)
    for split in splits:
        for kind in CLASSES:
            base = g.integers(0, 256, (4, 4, 3))
            (root / split / kind).mkdir(parents=True)
            for i in range(n):
                x = np.clip(base + g.integers(-40, 40, base.shape), 0, 255).astype(np.uint8)
                Image.fromarray(x).resize((16 + i % 3, 20), 2).save(root / split / kind / f'{i:03}.jpg')
    return root


def refused(match, f):
    with pytest.raises(InputError) as e: f()
    text = str(e.value)
    assert match in text and '\n' not in text, text
    return text


def same(a, b):
    "Two sets hold the same images, labels and ids."
    assert torch.equal(a.resident().pixels, b.resident().pixels) and a.ids.tolist() == b.ids.tolist()
    assert (a.labels is None) == (b.labels is None) and (a.labels is None or a.labels.equal(b.labels))
    assert a.class_names == b.class_names


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return jpegs(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def photos(folder): return load('imagenet_folder', root=folder, size=8, channels=1)


@pytest.fixture
def packed(photos, tmp_path): return pack(photos, tmp_path / 'packs')


# --------------------------------------------------------------------------- every method

COMMON = dict(recipe='digits', batch_size=60, device='cpu', size=8)
METHODS = dict(
    nmce=lambda **o: NMCE(**o, epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1, hidden_dim=32, z_dim=12),
    nmc=lambda **o: NMC(**o, epochs=1, potential_hidden=16, input_size=8),
    sela=lambda **o: SeLa(**o, n_clusters=3, n_heads=2, power=12, epochs=1, n_label_updates=1),
    deep_cluster=lambda **o: DeepCluster(**o, n_clusters=3, n_pseudo_labels=6, epochs=1),
    anchors=lambda **o: AND(**o, rounds=1, epochs=1))


def fitted(name, images, run_dir, dataset, encoder, **more):
    encoder = dict(encoder=f'file:{tiny.encoder(encoder)}') if name == 'nmc' else {}
    return METHODS[name](**COMMON, dataset=dataset, run_dir=str(run_dir), **encoder, **more).fit(images)


def weights(model): return {k: v.clone() for k, v in model.network_.state_dict().items()}


@pytest.mark.parametrize('name', METHODS)
def test_every_method_reads_files_and_packs_as_it_reads_memory(name, photos, tmp_path):
    sets = dict(resident=photos.resident(), files=photos, pack=pack(photos, tmp_path / 'packs'))
    found = {}
    for kind, images in sets.items():
        model = fitted(name, images, tmp_path / kind, 'imagenet_folder', tmp_path / 'encoder.pt')
        found[kind] = weights(model), model.labels_, model.predict(images), model.transform(images)
    for kind in ('files', 'pack'):
        for k, v in found['resident'][0].items(): assert torch.equal(v, found[kind][0][k]), k
        for a, b in zip(found['resident'][1:], found[kind][1:]): assert np.array_equal(a, b)


def test_a_run_on_a_pack_finds_its_images_again(photos, tmp_path):
    pack(photos, tmp_path / 'packs')
    config = RunConfig(dataset='pack', data_dir=str(tmp_path / 'packs'), limit=120)
    images = load_images(config)
    fitted('sela', images, tmp_path / 'run', 'pack', None, data_dir=config.data_dir, limit=120)
    run = FinishedRun.open(tmp_path / 'run')
    assert run.images is not None and run.images.paths[0].is_file() and len(run.images) == 120
    assert run.images.fingerprint() == images.fingerprint()


# --------------------------------------------------------------------------- packs

@pytest.mark.parametrize('split', ['train', 'all'])
def test_a_pack_gives_what_its_images_give(split, tmp_path):
    root = jpegs(tmp_path / 'photos', 5, ('train', 'val'))
    for s in ('train', 'val'): pack(load('imagenet_folder', s, root, size=12), tmp_path / 'packs')
    found, images = load('pack', split, tmp_path / 'packs'), load('imagenet_folder', split, root, size=12)
    assert found.streams and found.pixels.packed and found.shape == (3, 12, 12) and 'pack' in repr(found)
    same(found, images)
    index = torch.tensor([14, 3, 3, 0])
    assert torch.equal(found.take(index), images.take(index))
    same(found.subset(index), images.subset(index))
    assert found.limit(6).labels.bincount().tolist() == [2, 2, 2]
    assert found.pixels.pictures([2])[0].size == (12, 12)
    prints = {x.fingerprint() for x in (found, found.subset(index), found.subset(index.flip(0)))}
    assert len(prints) == 3 and load('pack', split, tmp_path / 'packs').fingerprint() in prints


def make(images, **more): return Batches(images, preset('mnist'), 25, 2, seed=3, **more)


@pytest.mark.parametrize('room', [0, 1 << 40])
def test_batches_of_a_pack_are_those_of_memory(room, photos, packed, monkeypatch):
    "Whether the pack is read from the disk or lies on the device for good."
    monkeypatch.setattr(data_images, 'room_on', lambda device: room)
    batches = make(packed)
    assert batches.images.streams == (room == 0)
    if room: assert make(packed).images.pixels is batches.images.pixels     # one copy, however many ask for it
    for (i, a), (j, b) in zip(batches.epoch('one', 2), make(photos.resident()).epoch('one', 2), strict=True):
        assert torch.equal(i, j) and torch.equal(a, b)
    for (_, a), (_, b) in zip(batches.plain(50), make(photos).plain(50), strict=True): assert torch.equal(a, b)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_set_in_memory_can_be_packed_at_another_size(split, tmp_path):
    digits = replace(load('digits', limit=50), split=split)
    assert packs.pack_size(digits, 16) == 50 * 16 * 16
    found = pack(digits, tmp_path, 16)
    assert found.shape == (1, 16, 16) and found.labels.equal(digits.labels) and found.root is None
    same(pack(digits, tmp_path / 'same'), digits)
    assert load('pack', split, tmp_path).class_names == digits.class_names


def test_unlabelled_images_stay_so(tmp_path, photos):
    bare = replace(photos, labels=None, class_names=[])
    assert pack(bare, tmp_path / 'bare').labels is None
    some = replace(photos, labels=torch.where(torch.arange(180) < 90, -1, photos.labels))
    assert pack(some, tmp_path / 'some').labels.equal(some.labels)


def test_a_pack_that_was_cut_off_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, '_PIECE', 64 * 20)           # 20 images
    written, put = [], packs._put
    def end(f, pixels):
        if len(written) == 4: raise KeyboardInterrupt
        written.append(len(pixels))
        return put(f, pixels)
    monkeypatch.setattr(packs, '_put', end)
    with pytest.raises(KeyboardInterrupt): pack(photos, tmp_path)
    refused('no pack in', lambda: load('pack', root=tmp_path))
    written[:] = [0] * 5                                    # the next ones are counted behind these
    same(pack(photos, tmp_path), photos)
    assert sum(written) == 100 and sorted(p.name for p in tmp_path.iterdir()) == ['all']
    assert pack(photos, tmp_path).pixels.marks().tolist() == pack(photos, tmp_path / 'new').pixels.marks().tolist()


def test_a_draft_of_other_images_is_begun_anew(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(packs, 'write_array', lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError): pack(photos, tmp_path)
    (tmp_path / '.all.draft/pixels.npy').write_bytes(b'cut')
    few = photos.subset(np.arange(50))
    same(pack(few, tmp_path), few)


def test_a_pack_that_is_there_is_left_or_refused(photos, packed, tmp_path):
    before = os.stat(tmp_path / 'packs/all/pixels.npy')
    same(pack(photos, tmp_path / 'packs'), photos)
    assert os.stat(tmp_path / 'packs/all/pixels.npy') == before
    for other in (photos.subset([1, 2]), replace(photos, labels=None, class_names=[])):
        refused('holds another pack', lambda: pack(other, tmp_path / 'packs'))
    refused('size=16', lambda: load('pack', root=tmp_path / 'packs', size=16))
    refused('another pack', lambda: pack(photos, tmp_path / 'packs', 16))
    assert load('pack', root=tmp_path / 'packs', size=8).shape == (1, 8, 8)
    (tmp_path / 'mine/all').mkdir(parents=True)
    refused('is no pack', lambda: pack(photos, tmp_path / 'mine'))
    (tmp_path / 'file').write_text('')
    refused('cannot write', lambda: pack(photos, tmp_path / 'file'))


def test_a_second_writer_is_refused(photos, tmp_path):
    with packs._claimed(tmp_path / '.all.draft'):
        refused('another process is writing', lambda: pack(photos, tmp_path))


def test_a_full_disk_is_said_before_anything_is_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(packs.shutil, 'disk_usage', lambda path: namedtuple('usage', 'free')(1000))
    refused('disk full', lambda: pack(photos, tmp_path))
    monkeypatch.undo()
    assert len(pack(photos, tmp_path)) == 180


def cut(path, by=1): os.truncate(path, path.stat().st_size - by)


@pytest.mark.parametrize('match, harm', [
    ('is cut or damaged', lambda p: cut(p / 'pixels.npy')),
    ('is cut or damaged', lambda p: (p / 'pixels.npy').write_bytes(b'')),
    ('expected uint8', lambda p: np.save(p / 'pixels.npy', np.zeros((180, 1, 8, 8), np.int64))),
    ('pack.json says', lambda p: np.save(p / 'pixels.npy', np.zeros((170, 1, 8, 8), np.uint8))),
    ('cannot read', lambda p: (p / 'pixels.npy').unlink()),
    ('is damaged', lambda p: cut(p / 'ids.npy', 100)),
    ('lacks labels.npy', lambda p: (p / 'labels.npy').unlink()),
    ('lacks checksums.npy', lambda p: (p / 'checksums.npy').unlink()),
    ('is damaged', lambda p: cut(p / 'pack.json', 50)),
    ('no pack of form', lambda p: (p / 'pack.json').write_text('{}')),
    ('no pack in', lambda p: (p / 'pack.json').unlink())])
def test_a_damaged_pack_is_refused(match, harm, packed, tmp_path):
    harm(tmp_path / 'packs/all')
    refused(match, lambda: load('pack', root=tmp_path / 'packs'))


def test_the_folder_of_one_split_is_not_taken_for_the_pack(packed, tmp_path):
    refused('give root=', lambda: load('pack', root=tmp_path / 'packs/all'))
    refused('does not exist', lambda: load('pack', root=tmp_path / 'nowhere'))
    refused('split of pack', lambda: load('pack', 'val', tmp_path / 'packs'))


@pytest.mark.parametrize('change', [
    lambda p: shutil.copy(p / 'ant/000.jpg', p / 'ant/900.jpg'), lambda p: (p / 'bee/001.jpg').unlink(),
    lambda p: (p / 'cat/001.jpg').rename(p / 'cat/901.jpg'), lambda p: cut(p / 'cat/002.jpg')])
def test_a_pack_that_is_older_than_its_images_is_refused(change, tmp_path):
    pack(load('imagenet_folder', root=jpegs(tmp_path / 'photos', 4), size=8), tmp_path / 'packs')
    assert len(load('pack', root=tmp_path / 'packs')) == 12
    change(tmp_path / 'photos')
    refused('older than its images', lambda: load('pack', root=tmp_path / 'packs'))
    assert len(load('pack', root=tmp_path / 'packs', check=False)) == 12
    shutil.rmtree(tmp_path / 'photos')                  # as on another machine
    found = load('pack', root=tmp_path / 'packs')
    assert len(found) == 12 and found.paths is None


def test_a_pack_travels_to_another_process(packed):
    again = pickle.loads(pickle.dumps(packed.subset([5, 1])))
    assert len(pickle.dumps(packed.pixels)) < 5000 and torch.equal(again.take(torch.arange(2)),
                                                                   packed.take(torch.tensor([5, 1])))


def test_points_are_no_images(tmp_path):
    refused('points', lambda: pack(load('spiral', n=10), tmp_path))


def test_the_command(folder, tmp_path, capsys):
    main(['pack', 'imagenet_folder', str(tmp_path), '--root', str(folder), '--size', '8'])
    assert 'all: 0.0 MB' in capsys.readouterr().out
    same(load('pack', root=tmp_path), load('imagenet_folder', root=folder, size=8))
    main(['pack', 'digits', str(tmp_path / 'digits'), '--size', '12', '--limit', '20'])
    assert load('pack', root=tmp_path / 'digits').shape == (1, 12, 12)
    main([])
    assert 'imagenet_folder' in capsys.readouterr().out


def test_the_command_of_a_terminal_says_an_error_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'nmc_workbench.data', 'pack', 'folder', 'out', '--root', 'nowhere'],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'nowhere does not exist' in done.stderr and done.stderr.count('\n') == 1


# --------------------------------------------------------------------------- Hugging Face datasets

def encoded(x, kind='png'):
    buffer = BytesIO()
    Image.fromarray(x).save(buffer, kind)
    return buffer.getvalue()


PIXELS = np.random.default_rng(1).integers(0, 256, (12, 10, 10, 3), dtype=np.uint8)


def table(labels=None, names=CLASSES, image='image', label='label', pixels=PIXELS, **more):
    import datasets
    datasets.disable_progress_bars()
    features = {image: datasets.Image(), **{k: datasets.Value('int64') for k in more}}
    columns = {image: [dict(bytes=encoded(x), path=None) for x in pixels], **more}
    if labels is not None:
        columns[label], features[label] = labels, datasets.ClassLabel(names=list(names)) if names else None
    if not names: features = None
    found = datasets.Dataset.from_dict(columns, datasets.Features(features) if features else None)
    return found if features else found.cast_column(image, datasets.Image())


LABELS = [i % 3 for i in range(12)]


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    "No network, and an empty cache."
    import datasets
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


def test_a_saved_set_is_read(tmp_path, no_hub):
    import datasets
    datasets.DatasetDict(train=table(LABELS), test=table(LABELS).select(range(4))).save_to_disk(tmp_path / 'saved')
    images = load(f'hf:{tmp_path}/saved')
    assert images.streams and images.shape == (3, 10, 10) and images.class_names == list(CLASSES)
    assert images.labels.tolist() == LABELS and images.ids[3] == 'train/3' and 'datasets' in repr(images)
    assert np.array_equal(images.resident().pixels.permute(0, 2, 3, 1), PIXELS)
    assert torch.equal(images.take(torch.tensor([5, 0])), images.resident().pixels[[5, 0]])
    assert len(load(f'hf:{tmp_path}/saved', 'test')) == 4 and len(load(f'hf:{tmp_path}/saved', 'all')) == 16
    same(load('hf', root=tmp_path / 'saved'), images)
    assert load('hf', root=tmp_path / 'saved', size=6, channels=1).shape == (1, 6, 6)
    refused('known: train, test, all', lambda: load(f'hf:{tmp_path}/saved', 'val'))
    prints = [x.fingerprint() for x in (images, load(f'hf:{tmp_path}/saved'), images.limit(6), images.subset([1, 0]))]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_set_without_splits(tmp_path):
    table(LABELS).save_to_disk(tmp_path / 'one')
    for split in ('train', 'all'): assert load(f'hf:{tmp_path}/one', split).ids[0] == 'all/0'


@pytest.mark.parametrize('kind', ['parquet', 'imagefolder'])
def test_a_folder_of_files(kind, tmp_path, no_hub):
    root = tmp_path / 'set'
    if kind == 'imagefolder': jpegs(root, 4, ('train', 'test'))
    else:
        root.mkdir()
        table(LABELS).to_parquet(root / 'train-00000.parquet')
    images = load(f'hf:{root}', size=8)
    assert images.class_names == list(CLASSES) and len(images) == 12 and images.shape == (3, 8, 8)
    if kind == 'imagefolder': same(replace(images, ids=np.arange(12).astype(str)), replace(
        load('imagenet_folder', root=root, size=8), ids=np.arange(12).astype(str)))
    assert images.fingerprint() == load(f'hf:{root}', size=8).fingerprint()


@pytest.mark.parametrize('made, classes', [
    (dict(labels=LABELS, image='img', label='kind'), CLASSES), (dict(labels=['b', 'a', None] * 4, names=None), 'ab'),
    (dict(labels=[5, 7, 5] * 4, names=None), '57'), (dict(), ''), (dict(labels=[-1] * 12), CLASSES),
    (dict(labels=LABELS, more=[1] * 12), CLASSES)])
def test_columns_are_found(made, classes, tmp_path):
    table(**made).save_to_disk(tmp_path / 'saved')
    images = load(f'hf:{tmp_path}/saved')
    assert images.class_names == list(classes) and (images.labels is None) == (set(made.get('labels', [-1])) == {-1})
    if made.get('names', 1) is None: assert images.labels[:2].tolist() == ([1, 0] if classes == 'ab' else [0, 1])


def test_columns_are_named(tmp_path, capsys):
    import datasets
    both = table(LABELS, label='fine').add_column('coarse', [i % 2 for i in range(12)], feature=None)
    both = both.cast_column('coarse', datasets.ClassLabel(names=['x', 'y']))
    other = both.select_columns(['image']).rename_column('image', 'other')
    both = datasets.concatenate_datasets([both, other], axis=1)
    both.save_to_disk(tmp_path / 'saved')
    assert load(f'hf:{tmp_path}/saved').class_names == list(CLASSES)
    assert 'labels from the column fine; for coarse give hf:...?label=' in capsys.readouterr().err
    assert load(f'hf:{tmp_path}/saved?label=coarse').class_names == ['x', 'y']
    refused("unknown column of images of", lambda: load(f'hf:{tmp_path}/saved?image=fine'))
    refused("unknown column of", lambda: load(f'hf:{tmp_path}/saved?label=corse'))
    refused("did you mean 'label'", lambda: load(f'hf:{tmp_path}/saved?labels=fine'))
    both.rename_column('image', 'one').save_to_disk(tmp_path / 'two')
    refused('images in one, other; say which', lambda: load(f'hf:{tmp_path}/two'))
    both.select_columns(['fine']).save_to_disk(tmp_path / 'none')
    refused('no column of images', lambda: load(f'hf:{tmp_path}/none'))


def test_grey_images_stay_grey_and_damaged_ones_are_named(tmp_path):
    table(pixels=PIXELS[..., 0]).save_to_disk(tmp_path / 'grey')
    assert load(f'hf:{tmp_path}/grey').shape == (1, 10, 10)
    wide = [*PIXELS[:3], np.zeros((5, 7, 3), np.uint8)]
    table(pixels=wide).save_to_disk(tmp_path / 'sizes')
    refused('give size=', lambda: load(f'hf:{tmp_path}/sizes').resident())
    assert load(f'hf:{tmp_path}/sizes', size=4).resident().shape == (3, 4, 4)
    import datasets
    broken = [dict(bytes=encoded(PIXELS[0]), path=None), dict(bytes=b'nothing', path='bad.png'), None]
    datasets.Dataset.from_dict(dict(image=broken), datasets.Features(image=datasets.Image())).save_to_disk(
        tmp_path / 'broken')
    images = load(f'hf:{tmp_path}/broken')
    refused('cannot read the image bad.png', lambda: images.take(torch.tensor([1])))
    refused('is empty', lambda: images.take(torch.tensor([2])))
    assert len(images.subset([0]).resident()) == 1


def test_a_set_of_the_hub_trains_and_packs(tmp_path):
    table([i % 3 for i in range(120)], pixels=np.repeat(PIXELS, 10, 0)[..., 0]).save_to_disk(tmp_path / 'saved')
    name = f'hf:{tmp_path}/saved'
    images = load(name, size=8)
    model = fitted('sela', images, tmp_path / 'run', name, None)
    assert len(model.labels_) == 120 and FinishedRun.open(tmp_path / 'run').images is not None
    same(replace(pack(images, tmp_path / 'packs'), name=name), images)


@pytest.mark.parametrize('name', ['hf:', 'hf:./nowhere', 'hf:/nowhere/at/all'])
def test_a_folder_that_is_not_there(name): refused('is no folder', lambda: load(name))


def test_a_folder_that_datasets_cannot_open(tmp_path, no_hub):
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes/a.bin').write_text('x')
    refused('cannot open', lambda: load(f'hf:{tmp_path}/notes'))


@pytest.mark.parametrize('download', [True, False])
def test_a_name_without_a_network(download, no_hub, monkeypatch):
    import datasets
    import huggingface_hub
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    text = refused('datasets cannot open some-one/no-such-set', lambda: load('hf:some-one/no-such-set',
                                                                             download=download))
    assert 'hf:FOLDER' in text and len(text) < 500


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    refused('pip install "nmc_workbench[hf]"', lambda: load(f'hf:{tmp_path}'))


def test_importing_the_library_loads_no_datasets():
    code = 'import sys, nmc_workbench.data.catalog; print("datasets" in sys.modules, "pyarrow" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['False', 'False'], done.stderr


def test_the_form_of_a_pack_is_written_down(packed, tmp_path):
    "Packs of this version must open in later ones."
    about = json.loads((tmp_path / 'packs/all/pack.json').read_text())
    assert about['form'] == 1 and about['shape'] == [180, 1, 8, 8] and about['class_names'] == list(CLASSES)
    assert set(about['source']) == {'name', 'split', 'root', 'fingerprint', 'below', 'files'}
    assert np.load(tmp_path / 'packs/all/pixels.npy').shape == (180, 1, 8, 8)
