"""Data sets: every format from tiny real files, downloads from a local server, and every way the input can be wrong."""
import bz2, functools, gzip, hashlib, http.server, io, os, pickle, socket, struct, subprocess, sys
import tarfile, threading, time, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from nmc_workbench.data import archives
from nmc_workbench.data import readers
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import generator
from nmc_workbench.data import describe, load, names
from nmc_workbench.data.catalog import double_spiral
from nmc_workbench.data.images import FilePixels, Images, decode, join, list_images, natural

RNG = np.random.default_rng(0)


def pixels(*shape): return RNG.integers(0, 256, shape, dtype=np.uint8)
def md5(data): return hashlib.md5(data).hexdigest()
def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
def tar_of(members, mode='w:gz'):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for name, data in members.items(): z.writestr(name, data)
    return buffer.getvalue()
def encoded(array, kind='png', **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()
def tree(root): return sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())


def refused(match, *args, **kwargs):
    "`load` refuses with one line that holds `match`, and returns it."
    with pytest.raises(InputError) as e: load(*args, **kwargs)
    text = str(e.value)
    assert '\n' not in text and match in text, text
    return text


@pytest.fixture
def serve(tmp_path):
    "`serve(name=bytes)` -> address of a local server; `serve.stop()` ends it; `serve.asked` lists the requests."
    site = tmp_path / 'site'
    site.mkdir()
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self): start.asked.append(self.path); super().do_GET()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    def start(files):
        for name, data in files.items(): put(site / name, data)
        return f'http://127.0.0.1:{server.server_port}/'
    def stop():
        if start.open: server.shutdown(); server.server_close()
        start.open = False
    start.stop, start.asked, start.open = stop, [], True
    yield start
    stop()


# --------------------------------------------------------------------------- the small formats

def idx_files(n, prefix):
    x, y = pixels(n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
    images = struct.pack('>4i', 2051, n, 28, 28) + x.tobytes()
    labels = struct.pack('>2i', 2049, n) + y.tobytes()
    return x, y, {f'{prefix}-images-idx3-ubyte.gz': gzip.compress(images),
                  f'{prefix}-labels-idx1-ubyte.gz': gzip.compress(labels)}


@pytest.fixture
def mnist_site(serve, monkeypatch):
    def make(source):
        (x, y, train), (xt, yt, test) = idx_files(20, 'train'), idx_files(10, 't10k')
        url = serve(train | test)
        monkeypatch.setattr(source, 'mirrors', ['http://127.0.0.1:9/', url])
        monkeypatch.setattr(source, 'resources', [(f, md5(d)) for f, d in (train | test).items()])
        return x, y, xt, yt
    return make


@pytest.mark.parametrize('name, source', [('mnist', datasets.MNIST), ('fashion_mnist', datasets.FashionMNIST),
                                          ('kmnist', datasets.KMNIST)])
def test_mnist_family(name, source, mnist_site, serve, tmp_path):
    x, y, xt, yt = mnist_site(source)
    root = tmp_path / 'data'
    first = load(name, root=root)          # the first mirror does not answer, the second does
    assert first.pixels.dtype == torch.uint8 and first.shape == (1, 28, 28) and first.n_classes == 10
    assert np.array_equal(first.pixels[:, 0], x) and first.labels.tolist() == y.tolist()
    assert len(serve.asked) == 2           # the test files were not asked for
    load(name, 'test', root=root)
    serve.stop()
    both = load(name, 'all', root=root, download=False)
    assert np.array_equal(both.pixels[:, 0], np.concatenate([x, xt])) and both.labels.tolist() == [*y, *yt]
    assert list(both.ids[[0, 19, 20, 29]]) == ['train/0', 'train/19', 'test/0', 'test/9']
    assert load(name, root=root).fingerprint() == first.fingerprint() != load(name, 'test', root=root).fingerprint()
    assert not [f for f in tree(root) if 'tmp' in f or 'unpack' in f]


def test_mnist_damaged_files(mnist_site, serve, tmp_path):
    mnist_site(datasets.MNIST)
    load('mnist', root=tmp_path / 'data')
    serve.stop()
    raw = tmp_path / 'data/MNIST/raw'
    images, gz = raw / 'train-images-idx3-ubyte', raw / 'train-images-idx3-ubyte.gz'
    images.write_bytes(images.read_bytes()[:-100])
    assert 'delete it' in refused(str(images), 'mnist', root=tmp_path / 'data')
    images.unlink()
    assert len(load('mnist', root=tmp_path / 'data')) == 20     # unpacked again from the archive, which is still there
    images.unlink()
    gz.write_bytes(gz.read_bytes()[:-100])
    assert 'md5' in refused(str(gz), 'mnist', root=tmp_path / 'data')
    assert not images.exists()


def usps_file(n):
    x, y = pixels(n, 256), np.arange(n) % 10
    def line_of(row): return ' '.join(f'{i + 1}:{v / 127.5 - 1:.6f}' for i, v in enumerate(row))
    lines = [f'{label + 1} {line_of(row)}' for label, row in zip(y, x)]
    return x, y, bz2.compress(('\n'.join(lines) + '\n').encode())


def test_usps(serve, monkeypatch, tmp_path):
    x, y, data = usps_file(12)
    url = serve({'usps.bz2': data})
    monkeypatch.setattr(datasets.USPS, 'split_list', {'train': [url + 'usps.bz2', 'usps.bz2', md5(data)]})
    usps = load('usps', root=tmp_path / 'data')
    assert usps.shape == (1, 16, 16) and usps.labels.tolist() == y.tolist()
    assert np.abs(usps.pixels.numpy().reshape(12, 256).astype(int) - x).max() <= 1     # the text keeps six decimals
    file = tmp_path / 'data/usps.bz2'
    file.write_bytes(data[:-20])
    refused(str(file), 'usps', root=tmp_path / 'data')


def test_svhn(monkeypatch, tmp_path):
    from scipy.io import savemat
    x, y = pixels(32, 32, 3, 7), np.array([[1], [10], [2], [3], [10], [9], [4]], np.uint8)
    savemat(tmp_path / 'train_32x32.mat', dict(X=x, y=y))
    data = (tmp_path / 'train_32x32.mat').read_bytes()
    published = ['http://127.0.0.1:9/train_32x32.mat', 'train_32x32.mat', md5(data)]
    monkeypatch.setattr(datasets.SVHN, 'split_list', {'train': published})
    svhn = load('svhn', root=tmp_path)
    assert svhn.labels.tolist() == [1, 0, 2, 3, 0, 9, 4] and svhn.shape == (3, 32, 32)
    assert np.array_equal(svhn.pixels[4].permute(1, 2, 0), x[..., 4])
    put(tmp_path / 'train_32x32.mat', data[:-10])
    assert 'md5' in refused('train_32x32.mat', 'svhn', root=tmp_path)


# --------------------------------------------------------------------------- CIFAR

def cifar_site(serve, monkeypatch, source, n=10):
    "A tiny CIFAR in the real layout, behind the local server."
    fine, meta_key = (True, 'fine_label_names') if source is datasets.CIFAR100 else (False, 'label_names')
    members, x = {}, {}
    for file, _ in source.train_list + source.test_list:
        x[file] = pixels(n, 3072)
        labels = [int(i) for i in RNG.integers(0, 10, n)]
        entry = dict(data=x[file], labels=labels)
        if fine: entry = dict(data=x[file], fine_labels=labels, coarse_labels=[i % 3 for i in labels])
        x[file, 'y'] = labels
        members[file] = pickle.dumps(entry)
    meta = {meta_key: [f'class {i}' for i in range(10)], 'coarse_label_names': ['a', 'b', 'c']}
    members[source.meta['filename']] = pickle.dumps(meta)
    archive = tar_of({f'{source.base_folder}/{f}': d for f, d in members.items()})
    monkeypatch.setattr(source, 'url', serve({source.filename: archive}) + source.filename)
    monkeypatch.setattr(source, 'tgz_md5', md5(archive))
    monkeypatch.setattr(source, 'train_list', [[f, md5(members[f])] for f, _ in source.train_list])
    monkeypatch.setattr(source, 'test_list', [[f, md5(members[f])] for f, _ in source.test_list])
    monkeypatch.setattr(source, 'meta', {**source.meta, 'md5': md5(members[source.meta['filename']])})
    return x, archive


def test_cifar10(serve, monkeypatch, tmp_path):
    x, archive = cifar_site(serve, monkeypatch, datasets.CIFAR10)
    first = load('cifar10', root=tmp_path / 'data')
    serve.stop()
    again = load('cifar10', root=tmp_path / 'data')
    assert first.fingerprint() == again.fingerprint() and len(again) == 50 and again.shape == (3, 32, 32)
    assert np.array_equal(again.pixels[10:20].reshape(10, -1), x['data_batch_2'])
    assert again.labels[10:20].tolist() == x['data_batch_2', 'y']
    assert again.class_names[3] == 'class 3' and len(load('cifar10', 'all', root=tmp_path / 'data')) == 60

    batch = tmp_path / 'data/cifar-10-batches-py/data_batch_3'
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    assert 'md5' in refused(str(batch), 'cifar10', root=tmp_path / 'data')
    batch.unlink()
    restored = load('cifar10', root=tmp_path / 'data')      # from the archive beside it
    assert restored.fingerprint() == first.fingerprint()
    batch.unlink()
    packed = tmp_path / 'data/cifar-10-python.tar.gz'
    packed.write_bytes(archive[:-10])
    assert 'damaged or incomplete' in refused(str(packed), 'cifar10', root=tmp_path / 'data')


def test_a_pickle_with_another_checksum_is_never_opened(serve, monkeypatch, tmp_path):
    cifar_site(serve, monkeypatch, datasets.CIFAR10)
    load('cifar10', root=tmp_path / 'data')
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'evil'),)
    put(tmp_path / 'data/cifar-10-batches-py/data_batch_1', pickle.dumps(Evil()))
    refused('data_batch_1', 'cifar10', root=tmp_path / 'data')
    assert not (tmp_path / 'evil').exists()


def test_cifar100_fine_and_coarse(serve, monkeypatch, tmp_path):
    x, _ = cifar_site(serve, monkeypatch, datasets.CIFAR100)
    root = tmp_path / 'data'
    fine, coarse = load('cifar100', 'test', root=root), load('cifar100coarse', 'test', root=root)
    assert fine.labels.tolist() == x['test', 'y'] and coarse.labels.tolist() == [i % 3 for i in x['test', 'y']]
    assert coarse.class_names == ['a', 'b', 'c'] and coarse.name == 'cifar100coarse'
    assert torch.equal(fine.pixels, coarse.pixels)
    assert len(serve.asked) == 1


# --------------------------------------------------------------------------- STL-10

def test_stl10(serve, monkeypatch, tmp_path):
    source, n = datasets.STL10, dict(train=4, test=3, unlabeled=5)
    x = {s: pixels(k, 3, 96, 96) for s, k in n.items()}
    # the file is column by column
    members = {f'{s}_X.bin': v.transpose(0, 1, 3, 2).tobytes() for s, v in x.items()}
    members |= {f'{s}_y.bin': (np.arange(n[s]) % 10 + 1).astype(np.uint8).tobytes() for s in ('train', 'test')}
    members['class_names.txt'] = '\n'.join(f'kind {i}' for i in range(10)).encode()
    archive = tar_of({f'stl10_binary/{f}': d for f, d in members.items()})
    monkeypatch.setattr(source, 'url', serve({source.filename: archive}) + source.filename)
    monkeypatch.setattr(source, 'tgz_md5', md5(archive))
    for table in ('train_list', 'test_list'):
        monkeypatch.setattr(source, table, [[f, md5(members[f])] for f, _ in getattr(source, table)])
    root = tmp_path / 'data'
    train = load('stl10', root=root)
    serve.stop()
    assert np.array_equal(train.pixels, x['train']) and train.labels.tolist() == [0, 1, 2, 3]
    assert train.class_names[9] == 'kind 9'
    assert np.array_equal(load('stl10', 'all', root=root).pixels, np.concatenate([x['train'], x['test']]))
    more = load('stl10', 'train+unlabeled', root=root)
    assert np.array_equal(more.pixels, np.concatenate([x['train'], x['unlabeled']])) and more.labels is None
    with pytest.raises(InputError, match='accuracy needs labels, and stl10 unlabeled has none'):
        load('stl10', 'unlabeled', root=root).need_labels('accuracy')
    # a damaged file stops only the splits that need it
    put(root / 'stl10_binary/unlabeled_X.bin', members['unlabeled_X.bin'][:-1])
    assert len(load('stl10', 'train', root=root)) == 4
    refused('unlabeled_X.bin', 'stl10', 'unlabeled', root=root)


# --------------------------------------------------------------------------- sets of files

def test_gtsrb(tmp_path):
    base = tmp_path / 'gtsrb'
    wide = pixels(20, 30, 3)
    for label, n in [(0, 3), (14, 2)]:
        for i in range(n): save(base / f'GTSRB/Training/{label:05d}/0000{i}.ppm', wide)
        put(base / f'GTSRB/Training/{label:05d}/GT-{label:05d}.csv', b'Filename;Width\n')
    train = load('gtsrb', root=tmp_path, size=20)
    assert train.labels.tolist() == [0, 0, 0, 14, 14] and train.n_classes == 43 and train.class_names[14] == 'stop'
    assert np.array_equal(train.pixels[0].permute(1, 2, 0), wide[:, 5:25]) and all(p.is_file() for p in train.paths)
    assert load('gtsrb', root=tmp_path).shape == (3, 32, 32)
    for i in range(2): save(base / f'GTSRB/Final_Test/Images/0000{i}.ppm', wide)
    put(base / 'GT-final_test.csv', b'Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n'
                                    b'00000.ppm;30;20;1;1;9;9;16\n00001.ppm;30;20;1;1;9;9;1\n')
    assert load('gtsrb', 'test', root=tmp_path).labels.tolist() == [16, 1]
    assert len(load('gtsrb', 'all', root=tmp_path)) == 7
    put(base / 'GT-final_test.csv', b'Filename;Width\n00000.ppm;30\n')
    refused('GT-final_test.csv', 'gtsrb', 'test', root=tmp_path)


def tiny_zip():
    def photo(): return encoded(pixels(64, 64, 3), 'jpeg')
    x = {f'train/{w}/images/{w}_{i}.JPEG': photo() for w in ('n02', 'n01') for i in (0, 1, 10)}
    x |= {f'val/images/val_{i}.JPEG': photo() for i in range(4)}
    x |= {'test/images/test_0.JPEG': encoded(pixels(64, 64), 'jpeg')}
    val = ''.join(f'val_{i}.JPEG\t{w}\t0\t0\t9\t9\n' for i, w in enumerate(['n01', 'n02', 'n01', 'n01']))
    texts = {'wnids.txt': 'n02\nn01\n', 'words.txt': 'n01\tcat, tabby\nn02\tdog, hound\nn03\tbird\n',
             'val/val_annotations.txt': val,
             'train/n01/n01_boxes.txt': ''}
    return {f'tiny-imagenet-200/{k}': v for k, v in (x | texts).items()}


def test_tiny_imagenet(serve, monkeypatch, tmp_path):
    members = tiny_zip()
    data = zip_of(members)
    monkeypatch.setattr(readers, 'TINY_IMAGENET', serve({'tiny-imagenet-200.zip': data}) + 'tiny-imagenet-200.zip')
    monkeypatch.setattr(readers, 'TINY_IMAGENET_MD5', md5(data))
    root = tmp_path / 'data'
    train = load('tiny_imagenet', root=root)
    serve.stop()
    assert train.class_names == ['dog', 'cat'] and train.shape == (3, 64, 64)
    assert list(train.ids[:3]) == [f'train/n01/images/n01_{i}.JPEG' for i in (0, 1, 10)]
    assert train.labels.tolist() == [1, 1, 1, 0, 0, 0]
    expected = np.asarray(Image.open(io.BytesIO(members['tiny-imagenet-200/' + train.ids[4]])))
    assert np.array_equal(train.pixels[4].permute(1, 2, 0), expected)
    val = load('tiny_imagenet', 'val', root=root, size=32)
    assert val.labels.tolist() == [1, 0, 1, 1] and val.shape == (3, 32, 32)
    assert load('tiny_imagenet', 'test', root=root).labels is None
    assert len(load('tiny_imagenet', 'all', root=root)) == 10
    put(root / 'tiny-imagenet-200/val/val_annotations.txt', b'val_0.JPEG\tn01\n')
    refused('val_annotations.txt', 'tiny_imagenet', 'val', root=root)


def coil_members(folder, n_objects, channels):
    x = {(o, v): pixels(4, 4, *channels) for o in range(n_objects) for v in range(72)}
    files = {f'{folder}/obj{o + 1}__{v}.png': encoded(a, compress_level=1) for (o, v), a in x.items()}
    return x, files | {f'{folder}/readme.txt': b'text'}


def test_coil20(serve, monkeypatch, tmp_path):
    x, members = coil_members('coil-20-proc', 20, ())
    data = zip_of(members)
    monkeypatch.setitem(readers.COIL['coil20'], 'url', serve({'coil-20-proc.zip': data}) + 'coil-20-proc.zip')
    root = tmp_path / 'data'
    coil = load('coil20', root=root, size=4)
    serve.stop()
    assert len(coil) == 1440 and coil.shape == (1, 4, 4) and coil.labels.bincount().tolist() == [72] * 20
    assert list(coil.ids[[0, 1, 72]]) == ['obj1__0.png', 'obj1__1.png', 'obj2__0.png']           # not obj10 after obj1
    assert np.array_equal(coil.pixels[:, 0], np.stack([x[o, v] for o in range(20) for v in range(72)]))
    assert (root / 'coil-20-proc.zip.sha256').read_text().split()[0] == hashlib.sha256(data).hexdigest()
    assert load('coil20', 'all', root=root, size=4).fingerprint() == coil.fingerprint()
    assert load('coil20', root=root / 'coil-20-proc', size=4).fingerprint() == coil.fingerprint()    # the folder itself

    (root / 'coil-20-proc/obj7__3.png').unlink()
    refused('1439 images', 'coil20', root=root, size=4)
    for p in (root / 'coil-20-proc').iterdir(): p.unlink()
    (root / 'coil-20-proc').rmdir()
    members['coil-20-proc/readme.txt'] = b'other'
    put(root / 'coil-20-proc.zip', zip_of(members))
    assert 'sha256' in refused('coil-20-proc.zip', 'coil20', root=root, size=4)
    assert not (root / 'coil-20-proc').exists()


def test_coil100_grey_and_resize(monkeypatch, tmp_path):
    from torchvision.transforms.v2 import functional as F
    monkeypatch.setitem(readers.COIL['coil100'], 'n_objects', 3)
    x, members = coil_members('coil-100', 3, (3,))
    for name, data in members.items(): put(tmp_path / name, data)
    grey = load('coil100', root=tmp_path, size=4)
    raw = np.stack([x[o, v] for o in range(3) for v in range(72)])
    assert np.array_equal(grey.pixels[:, 0], (raw.astype(int).sum(3) + 1) // 3)       # the rounded mean of three bytes
    colour = load('coil100', root=tmp_path, size=4, grey=False)
    assert np.array_equal(colour.pixels, raw.transpose(0, 3, 1, 2))
    assert torch.equal(load('coil100', root=tmp_path, size=2).pixels, F.resize(grey.pixels, [2, 2], antialias=True))
    assert load('coil100', root=tmp_path, limit=6).shape == (1, 64, 64)


def make_tree(root, shape=(8, 8, 3), per_class=4, classes=('cat', 'dog'), split=''):
    x = {f'{c}/{i}.png': pixels(*shape) for c in classes for i in range(per_class)}
    for name, a in x.items(): save(root / split / name, a)
    return x


def test_folder_of_classes(tmp_path):
    x = make_tree(tmp_path, per_class=12)
    put(tmp_path / 'cat/notes.txt', b'no image'), put(tmp_path / 'cat/.hidden.png', b'no image')
    (tmp_path / 'empty').mkdir()
    images = load('folder', root=tmp_path)
    assert images.shape == (3, 8, 8) and images.class_names == ['cat', 'dog']
    assert len(images) == 24 and images.split == 'all'
    assert list(images.ids[:4]) == [f'cat/{i}.png' for i in range(4)] and images.ids[11] == 'cat/11.png'
    for i in range(24): assert np.array_equal(images.pixels[i].permute(1, 2, 0), x[images.ids[i]])
    assert images.labels.tolist() == [0] * 12 + [1] * 12 and [p.is_file() for p in images.paths] == [True] * 24
    refused('known: train, all', 'folder', 'test', root=tmp_path)


def test_folder_with_splits_numbers_classes_once(tmp_path):
    make_tree(tmp_path, split='train')
    make_tree(tmp_path, split='test', classes=('dog', 'eel'))
    train, test, both = (load('folder', s, root=tmp_path) for s in ('train', 'test', 'all'))
    assert train.class_names == test.class_names == ['cat', 'dog', 'eel']
    assert train.labels.unique().tolist() == [0, 1] and test.labels.unique().tolist() == [1, 2]
    assert list(both.ids) == [*train.ids, *test.ids]
    assert torch.equal(both.labels, torch.cat([train.labels, test.labels]))
    refused('known: train, test, all', 'folder', 'val', root=tmp_path)


def test_a_class_called_train_is_no_split(tmp_path):
    make_tree(tmp_path, classes=('train', 'bus'))
    assert load('folder', root=tmp_path).class_names == ['bus', 'train']


def test_flat_folder_has_no_labels(tmp_path):
    for i in range(5): save(tmp_path / f'{i}.png', pixels(6, 6))
    images = load('folder', root=tmp_path)
    assert images.labels is None and images.n_classes == 0 and images.shape == (1, 6, 6)      # grey files: one channel
    assert load('folder', root=tmp_path, channels=3).shape == (3, 6, 6)
    assert len(load('folder', root=tmp_path, limit=2)) == 2
    save(tmp_path / 'colour.png', pixels(6, 6, 3))
    assert load('folder', root=tmp_path).shape == (3, 6, 6)
    assert load('folder', root=tmp_path, channels=1).shape == (1, 6, 6)


def test_folder_of_different_sizes(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / 'dog/other.png', pixels(10, 7, 3))
    text = refused('other.png is 7 x 10', 'folder', root=tmp_path)
    assert '0.png is 8 x 8' in text and 'size=' in text
    assert load('folder', root=tmp_path, size=6).shape == (3, 6, 6)


def test_folder_damaged_missing_and_empty(tmp_path):
    refused(str(tmp_path / 'nowhere'), 'folder', root=tmp_path / 'nowhere')
    refused(f'no images in {tmp_path}', 'folder', root=tmp_path)
    make_tree(tmp_path)
    damaged = {'a.png': encoded(pixels(8, 8, 3))[:150], 'b.jpg': b'nothing',
               'c.jpg': encoded(pixels(8, 8, 3), 'jpeg')[:-60]}
    for name, data in damaged.items():
        put(tmp_path / 'cat' / name, data)
        refused(f'cannot read the image {tmp_path}/cat/{name}', 'folder', root=tmp_path)
        (tmp_path / 'cat' / name).unlink()
    assert len(load('folder', root=tmp_path)) == 8


def test_imagenet_folder_streams(tmp_path):
    train = make_tree(tmp_path, (30, 20, 3), split='train')
    make_tree(tmp_path, (20, 20, 3), 2, split='val')
    images = load('imagenet_folder', root=tmp_path, size=20)
    assert images.streams and images.shape == (3, 20, 20) and images.labels.tolist() == [0] * 4 + [1] * 4
    index = torch.tensor([6, 1])
    batch = images.take(index)
    assert batch.dtype == torch.uint8
    for i, got in zip(index, batch):
        want = train[images.ids[i].removeprefix('train/')][5:25]
        assert np.array_equal(got.permute(1, 2, 0), want)
    assert torch.equal(images.resident().take(index), batch)
    assert torch.equal(images.subset(index).take(torch.arange(2)), batch)
    assert load('imagenet_folder', root=tmp_path).shape == (3, 96, 96)
    assert len(load('imagenet_folder', 'all', root=tmp_path)) == 12
    half = load('imagenet_folder', root=tmp_path, limit=4)
    assert half.streams and half.labels.tolist() == [0, 0, 1, 1]
    before = images.fingerprint()
    assert before == load('imagenet_folder', root=tmp_path, size=20).fingerprint() != half.fingerprint()
    with open(tmp_path / 'train' / 'cat/0.png', 'ab') as f: f.write(b'x')
    assert images.fingerprint() != before
    put(tmp_path / 'train/dog/1.png', b'broken')
    with pytest.raises(InputError, match='dog/1.png'): images.take(torch.arange(8))


# --------------------------------------------------------------------------- npz

def test_npz_layouts(tmp_path):
    x = pixels(6, 5, 7, 3)
    first = x.transpose(0, 3, 1, 2)
    layouts = dict(nhwc=(x, first), nchw=(first, first), nhw=(x[..., 0], x[:, None, ..., 0]),
                   float=(x / 255, first), int=(x.astype(np.int64), first), nhw1=(x[..., :1], x[:, None, ..., 0]))
    for name, (a, expected) in layouts.items():
        np.savez(tmp_path / f'{name}.npz', x=a)
        images = load('npz', root=tmp_path / f'{name}.npz')
        assert images.pixels.dtype == torch.uint8 and np.array_equal(images.pixels, expected), name
        assert images.labels is None and images.ids[5] == 'all/5'
    points = RNG.normal(size=(6, 4))
    np.savez(tmp_path / 'points.npz', x=points, y=np.arange(6) % 2)
    images = load('npz', root=tmp_path / 'points.npz')
    assert images.is_points and images.pixels.dtype == torch.float32 and np.allclose(images.pixels, points)


def test_npz_splits_share_class_numbers(tmp_path):
    np.savez(tmp_path / 'a.npz', x_train=pixels(4, 5, 5), y_train=np.array([3, 1, 1, 3]),
             x_test=pixels(3, 5, 5), y_test=np.array([[1], [7], [3]]))
    train, test, both = (load('npz', s, root=tmp_path) for s in ('train', 'test', 'all'))
    assert train.class_names == test.class_names == ['1', '3', '7']
    assert train.labels.tolist() == [1, 0, 0, 1] and test.labels.tolist() == [0, 2, 1]
    assert both.labels.tolist() == [1, 0, 0, 1, 0, 2, 1]
    refused('known: train, test, all', 'npz', 'val', root=tmp_path)


@pytest.mark.parametrize('match, arrays', [
    ('x holds NaN', dict(x=np.full((3, 4, 4), np.nan))),
    ('expected 0 to 1', dict(x=np.full((3, 4, 4), 7.))),
    ('expected 0 to 255', dict(x=np.full((3, 4, 4), 300))),
    ('expected 1 or 3 channels', dict(x=np.zeros((3, 4, 4, 4), np.uint8))),
    ('has shape (3,)', dict(x=np.zeros(3))),
    ('has shape (0, 4, 4)', dict(x=np.zeros((0, 4, 4)))),
    ('has dtype <U1', dict(x=np.full((3, 4, 4), 'a'))),
    ('y has shape (2,) for 3 samples', dict(x=np.zeros((3, 4, 4)), y=np.zeros(2, int))),
    ('not whole numbers', dict(x=np.zeros((3, 4, 4)), y=np.full(3, .5))),
    ('expected x (and y)', dict(data=np.zeros(3))),
    ('allow_pickle', dict(x=np.array([[1], None, {}], dtype=object))),
])
def test_npz_refuses(match, arrays, tmp_path):
    np.savez(tmp_path / 'a.npz', **arrays)
    assert str(tmp_path / 'a.npz') in refused(match, 'npz', root=tmp_path)


def test_npz_files(tmp_path):
    refused('0 .npz files', 'npz', root=tmp_path)
    refused('does not exist', 'npz', root=tmp_path / 'none.npz')
    for data in (b'', b'PK\x03\x04 and no more', b'text'):
        put(tmp_path / 'a.npz', data)
        refused(f'{tmp_path}/a.npz is damaged', 'npz', root=tmp_path)
    np.savez(tmp_path / 'a.npz', x=pixels(30, 30, 30))
    put(tmp_path / 'a.npz', (tmp_path / 'a.npz').read_bytes()[:-300])
    refused('a.npz is damaged', 'npz', root=tmp_path)
    whole = io.BytesIO()
    np.savez(whole, x=pixels(30, 30, 30))
    flipped = bytearray(whole.getvalue())
    flipped[2000] ^= 255
    put(tmp_path / 'a.npz', bytes(flipped))
    refused('a.npz is damaged', 'npz', root=tmp_path)                # the zip's own CRC
    put(tmp_path / 'b.npz', b'')
    refused('2 .npz files', 'npz', root=tmp_path)


# --------------------------------------------------------------------------- without files

def test_digits():
    from sklearn.datasets import load_digits
    d, digits = load_digits(), load('digits')
    assert np.array_equal(digits.pixels[:, 0], np.floor(d.images * 255 / 16 + .5))
    assert digits.labels.tolist() == d.target.tolist()
    assert digits.fingerprint() == load('digits', 'all').fingerprint() and digits.ids[7] == 'all/7'
    refused('known: train, all', 'digits', 'test')


def test_spiral_lies_on_its_arms():
    points, arm = double_spiral(1001, 0., generator(0))
    radius, angle = points.norm(dim=1), torch.atan2(points[:, 1], points[:, 0])
    assert torch.allclose(torch.cos(angle - radius - torch.pi * arm), torch.ones(1001), atol=1e-4)
    assert radius.min() >= 1.5 * torch.pi and radius.max() <= 4.5 * torch.pi and abs(arm.float().mean() - .5) < .001
    noisy, _ = double_spiral(200_000, .3, generator(1))
    clean, _ = double_spiral(200_000, 0., generator(1))
    assert abs((noisy - clean).std() - .3) < .005
    a, b, c = load('spiral', n=64), load('spiral', n=64), load('spiral', n=64, seed=1)
    assert torch.equal(a.pixels, b.pixels) and not torch.equal(a.pixels, c.pixels)
    assert not torch.equal(a.pixels, load('spiral', 'test', n=64).pixels)
    assert load('spiral', n=64, noise='0.0').pixels.dtype == torch.float32


# --------------------------------------------------------------------------- downloads that go wrong

@pytest.fixture
def offline(monkeypatch):
    "Every published address points to a port where nothing listens."
    monkeypatch.setattr(datasets.MNIST, 'mirrors', ['http://127.0.0.1:9/'])
    for source in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        monkeypatch.setattr(source, 'url', f'http://127.0.0.1:9/{source.filename}')
    for source in (datasets.USPS, datasets.SVHN):
        splits = {k: [f'http://127.0.0.1:9/{f}', f, m] for k, (_, f, m) in source.split_list.items()}
        monkeypatch.setattr(source, 'split_list', splits)
    monkeypatch.setattr(readers, 'TINY_IMAGENET', 'http://127.0.0.1:9/tiny-imagenet-200.zip')
    monkeypatch.setattr(readers, 'GTSRB', 'http://127.0.0.1:9/')
    for c in readers.COIL.values(): monkeypatch.setitem(c, 'url', 'http://127.0.0.1:9/' + c['url'].rsplit('/', 1)[1])


WHERE = dict(mnist='MNIST/raw/train-images-idx3-ubyte.gz', usps='usps.bz2', svhn='train_32x32.mat',
             cifar10='cifar-10-python.tar.gz',
             cifar100='cifar-100-python.tar.gz', cifar100coarse='cifar-100-python.tar.gz',
             stl10='stl10_binary.tar.gz', gtsrb='gtsrb/GTSRB-Training_fixed.zip',
             tiny_imagenet='tiny-imagenet-200.zip', coil20='coil-20-proc.zip', coil100='coil-100.zip')


@pytest.mark.timing
@pytest.mark.parametrize('name', WHERE)
def test_offline_says_which_file_goes_where(name, offline, tmp_path):
    start = time.perf_counter()
    text = refused(str(tmp_path / WHERE[name]), name, root=tmp_path)
    assert 'http://127.0.0.1:9/' in text and '-p dataset digits' in text and time.perf_counter() - start < 5
    assert 'download=False' in refused(str(tmp_path / WHERE[name]), name, root=tmp_path, download=False)
    assert tree(tmp_path) == []


def test_wrong_checksum_leaves_nothing(serve, monkeypatch, tmp_path):
    cifar_site(serve, monkeypatch, datasets.CIFAR10)
    monkeypatch.setattr(datasets.CIFAR10, 'tgz_md5', '0' * 32)
    assert 'expected 00000' in refused('cannot download', 'cifar10', root=tmp_path / 'data')
    assert tree(tmp_path / 'data') == []


def test_missing_on_the_server(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, 'url', serve({}) + 'gone.tar.gz')
    refused('HTTP Error 404', 'cifar10', root=tmp_path / 'data')


def raw_server(reply, wait=0.):
    "Answers one request with `reply`, then waits and closes."
    s = socket.create_server(('127.0.0.1', 0))
    def run():
        with s, s.accept()[0] as c: c.recv(65536); c.sendall(reply); time.sleep(wait)
    threading.Thread(target=run, daemon=True).start()
    return f'http://127.0.0.1:{s.getsockname()[1]}/cifar.tar.gz'


# fewer bytes than it announces
TOO_LITTLE = b'HTTP/1.0 200 OK\r\nContent-Length: 5000\r\n\r\n' + bytes(2000)


def test_broken_connection_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, 'url', raw_server(TOO_LITTLE))
    refused('2000', 'cifar10', root=tmp_path / 'data')
    assert tree(tmp_path / 'data') == []


@pytest.mark.timing
def test_silent_server_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, 'TIMEOUT', .3)
    monkeypatch.setattr(datasets.CIFAR10, 'url', raw_server(TOO_LITTLE, wait=3))
    start = time.perf_counter()
    refused('timed out', 'cifar10', root=tmp_path / 'data')
    assert time.perf_counter() - start < 2
    assert tree(tmp_path / 'data') == []


@pytest.mark.parametrize('where', ['_move', '_extract'])
def test_interrupted_unpacking_leaves_only_the_archive(where, serve, monkeypatch, tmp_path):
    cifar_site(serve, monkeypatch, datasets.CIFAR10)
    real = getattr(archives, where)
    def interrupted(*args):
        if where == '_extract': real(*args)
        raise KeyboardInterrupt
    monkeypatch.setattr(archives, where, interrupted)
    with pytest.raises(KeyboardInterrupt): load('cifar10', root=tmp_path / 'data')
    assert tree(tmp_path / 'data') == ['cifar-10-python.tar.gz']
    monkeypatch.setattr(archives, where, real)
    assert len(load('cifar10', root=tmp_path / 'data')) == 50


@pytest.mark.parametrize('name, data', [
    ('a.zip', zip_of({'../out.txt': b'x'})), ('a.zip', zip_of({'/tmp/out.txt': b'x'})),
    ('a.tar.gz', tar_of({'../out.txt': b'x'})), ('a.tar.gz', tar_of({'ok.txt': b'', 'a/../../out.txt': b'x'}))],
    ids=['zip up', 'zip absolute', 'tar up', 'tar up later'])
def test_members_that_leave_the_folder(name, data, tmp_path):
    path = put(tmp_path / 'in' / name, data)
    with pytest.raises(InputError, match='leads out of its folder'):
        archives.unpack(archives.Archive((), path, None, tmp_path / 'in'))
    assert tree(tmp_path) == [f'in/{name}']


@pytest.mark.parametrize('name, data', [('a.zip', zip_of({'a': bytes(9999)})),
                                        ('a.tar.gz', tar_of({'a': os.urandom(9999)})),
                                        ('a.gz', gzip.compress(os.urandom(9999)))],
                         ids=['zip', 'tar', 'gz'])
def test_truncated_archives(name, data, tmp_path):
    path = put(tmp_path / name, data[:len(data) // 2])
    with pytest.raises(InputError, match=f'{name} is damaged or incomplete'):
        archives.unpack(archives.Archive((), path, None, tmp_path))
    assert tree(tmp_path) == [name]


def test_full_disk_is_not_called_a_damaged_file(tmp_path):
    def full(): raise OSError(28, 'No space left on device', 'x')
    with pytest.raises(InputError, match='No space left') as e: archives.parse(full, [(tmp_path, None)])
    assert 'damaged' not in str(e.value)


def test_programming_errors_pass_through():
    with pytest.raises(TypeError): archives.parse(lambda: 1 + 'a', [(Path('x'), None)])
    with pytest.raises(AttributeError): archives.parse(lambda: None.shape, [(Path('x'), None)])


def test_unwritable_root(offline, tmp_path):
    put(tmp_path / 'file', b'')
    refused('root=', 'cifar10', root=tmp_path / 'file')


def test_folders_of_an_unlabelled_folder_are_no_classes(tmp_path):
    make_tree(tmp_path, (30, 20, 3))
    images = load('unlabelled_folder', root=tmp_path, size=20)
    assert images.streams and images.labels is None and images.class_names == [] and not images.skipped
    labelled = load('imagenet_folder', root=tmp_path, size=20)
    assert labelled.labels is not None and images.ids.tolist() == labelled.ids.tolist()
    at = torch.arange(3)
    assert torch.equal(images.take(at), labelled.take(at))


# --------------------------------------------------------------------------- names and options

def test_every_set_is_described():
    others = {'digits', 'spiral', 'fashion_mnist', 'kmnist', 'folder', 'imagenet_folder', 'unlabelled_folder',
              'npz', 'pack', 'hf'}
    assert set(names()) == set(WHERE) | others
    rows = {r['name']: r for r in describe()}
    assert rows['stl10']['splits'] == 'train, test, unlabeled, train+unlabeled, all'
    assert rows['coil100']['options'] == 'size=64, grey=True'


@pytest.mark.parametrize('match, kwargs', [
    ("did you mean 'mnist'", dict(name='minst')),
    ('known: train, test, all', dict(name='cifar10', split='val')),
    ('known: train, val, test, all', dict(name='tiny_imagenet', split='dev')),
    ("unknown option of digits 'size'", dict(name='digits', size=3)),
    ("did you mean 'limit'", dict(name='digits', limits=3)),
    ('limit=1798 is out of range', dict(name='digits', limit=1798)),
    ('limit=0 is out of range', dict(name='digits', limit=0)),
    ('limit=2.5', dict(name='digits', limit=2.5)),
    ("download='maybe'", dict(name='digits', download='maybe')),
    ('n=1 is too small', dict(name='spiral', n=1)),
    ('noise=nan', dict(name='spiral', noise=float('nan'))),
    ('size=0 is too small', dict(name='gtsrb', size=0)),
    ('channels=2', dict(name='folder', channels=2)),
])
def test_bad_requests(match, kwargs): refused(match, **kwargs)


# --------------------------------------------------------------------------- Images

def some(n=101, classes=7, name='some'):
    labels = torch.from_numpy(RNG.integers(0, classes, n))
    x, class_names = torch.from_numpy(pixels(n, 1, 3, 3)), [str(i) for i in range(classes)]
    return Images(x, labels, class_names, [f'train/{i}' for i in range(n)], name, 'train')


@pytest.mark.parametrize('n', [1, 3, 7, 50, 100, 101])
def test_limit_keeps_proportions_and_order(n):
    full = some()
    part = full.limit(n, seed=3)
    share = full.labels.bincount(minlength=7) * n / 101
    assert len(part) == n and (part.labels.bincount(minlength=7) - share).abs().max() < 1
    where = [int(i.split('/')[1]) for i in part.ids]
    assert where == sorted(set(where))
    assert torch.equal(part.pixels, full.pixels[where]) and torch.equal(part.labels, full.labels[where])


def test_limit_draws_without_favour():
    full = some(40, 2)
    def kept(seed): return torch.tensor([int(i[6:]) for i in full.limit(10, seed=seed).ids])
    drawn = sum(torch.isin(torch.arange(40), kept(s)).float() for s in range(400)) / 400
    assert drawn.min() > .15 and drawn.max() < .36           # 0.25 +- 5 standard deviations
    full.labels = None
    assert list(full.limit(10, seed=1).ids) == list(full.limit(10, seed=1).ids) != list(full.limit(10, seed=2).ids)


def test_take_subset_and_masks():
    full = some(20)
    index = torch.tensor([4, 4, 0])
    assert torch.equal(full.take(index), full.pixels[[4, 4, 0]])
    assert list(full.subset(np.array([4, 4, 0])).ids) == ['train/4', 'train/4', 'train/0']
    assert torch.equal(full.subset(full.labels == 1).labels, full.labels[full.labels == 1])
    assert repr(full) == 'Images(some train: 20 of 1 x 3 x 3, uint8 on cpu, 7 classes)'
    assert full.to('cpu').fingerprint() == full.fingerprint()


def test_lengths_must_agree():
    x, four = torch.zeros(4, 1, 2, 2), list('abcd')
    with pytest.raises(InputError, match='3 labels for 4 images'): Images(x, [0, 1, 2], [], four, 'x', 'train')
    with pytest.raises(InputError, match='2 ids for 4 images'): Images(x, None, [], list('ab'), 'x', 'train')
    with pytest.raises(InputError, match='differ in shape'): join([some(4), Images(x, None, [], four, 'x', 'test')])


def test_fingerprint_sees_every_part():
    base = some(12)
    parts = {f: getattr(base, f) for f in ('pixels', 'labels', 'class_names', 'ids', 'name', 'split')}
    def changed(**kw): return Images(**{**parts, **kw}).fingerprint()
    flipped, labels = base.pixels.clone(), base.labels.clone()
    flipped[11, 0, 2, 2] ^= 1
    labels[5] = (labels[5] + 1) % 7
    prints = [changed(), changed(name='x'), changed(split='test'), changed(labels=None), changed(labels=labels),
              changed(pixels=flipped), changed(pixels=base.pixels.view(12, 1, 9, 1))]
    assert len(set(prints)) == 7 and changed() == base.fingerprint()


def test_fingerprint_is_the_same_in_another_process():
    code = "from nmc_workbench.data import load; print(load('digits', limit=300).fingerprint())"
    env = {**os.environ, 'PYTHONHASHSEED': '7'}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == load('digits', limit=300).fingerprint()


# --------------------------------------------------------------------------- FilePixels

def test_resize_is_shorter_side_then_centre(tmp_path):
    smooth = np.kron(pixels(5, 9, 3), np.ones((40, 40, 1), np.uint8))            # 200 high, 360 wide
    save(tmp_path / 'a.png', smooth)
    got = np.asarray(decode(tmp_path / 'a.png', 50)).astype(int)
    resized = Image.fromarray(smooth).resize((90, 50), Image.Resampling.BILINEAR).crop((20, 0, 70, 50))
    assert np.abs(got - np.asarray(resized)).max() <= 2 and got.shape == (50, 50, 3)
    small = np.asarray(decode(tmp_path / 'a.png', 300))
    assert small.shape == (300, 300, 3)


def test_modes_come_out_as_bytes(tmp_path):
    grey = pixels(6, 6)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / '16.png')
    Image.fromarray(grey).convert('P').save(tmp_path / 'palette.png')
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(tmp_path / 'alpha.png')
    Image.fromarray(grey > 127).save(tmp_path / 'bits.png')
    files = FilePixels([tmp_path / f for f in ('16.png', 'palette.png', 'alpha.png')], channels=1)
    for got in files[torch.arange(3)]: assert np.abs(got[0].numpy().astype(int) - grey).max() <= 1
    assert set(np.unique(FilePixels([tmp_path / 'bits.png'], channels=1)[[0]])) <= {0, 255}
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / 'float.tiff')
    with pytest.raises(InputError, match='floating-point'): decode(tmp_path / 'float.tiff')


def test_photographs_are_turned_upright(tmp_path):
    x = np.kron(pixels(2, 4, 3), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[274] = 6                # the camera was held upright: turn clockwise
    Image.fromarray(x).save(tmp_path / 'a.png', exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / 'a.png')), np.rot90(x, -1))


def test_many_files_keep_their_order_across_threads(tmp_path):
    for i in range(300): save(tmp_path / f'{i}.png', np.full((4, 4), i % 256, np.uint8))
    files = list_images(tmp_path)
    assert files == [f'{i}.png' for i in range(300)]
    index = torch.from_numpy(RNG.permutation(300))
    got = FilePixels([tmp_path / f for f in files], channels=1)[index]
    assert torch.equal(got[:, 0, 0, 0].long(), index % 256)


def test_links_that_lead_back_up_end(tmp_path):
    save(tmp_path / 'a/1.png', pixels(2, 2))
    (tmp_path / 'a/up').symlink_to(tmp_path)
    assert list_images(tmp_path) == ['a/1.png']
    assert sorted(['b10', 'b9', 'a'], key=natural) == ['a', 'b9', 'b10']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_images_on_the_device():
    full = some(20).to('cuda')
    index = torch.tensor([3, 1], device='cuda')
    assert full.take(index).device.type == 'cuda' and full.labels.device.type == 'cuda'
    assert full.subset(index).fingerprint() == full.to('cpu').subset(index.cpu()).fingerprint()
    assert full.take(index.cpu()).device.type == 'cpu' and len(full.limit(5)) == 5
