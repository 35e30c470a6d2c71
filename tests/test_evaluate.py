"""Protocols against the original's arrays, plain re-computations and scikit-learn; features of a run; what it is
evaluated on."""
import json
import os
import re
import typing
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastcore.docments import docments
from sklearn.decomposition import PCA
from sklearn.svm import LinearSVC

from nmc_workbench import metrics
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import generator, seed_of
from nmc_workbench.data import load
from nmc_workbench.evaluation.protocols import (EvaluateConfig, PROTOCOLS, cluster_scores, evaluate, kmeans_accuracy,
                                                linear_probe, linear_svm, protocol_names, results_table)
from nmc_workbench.evaluation.features import extract, halves, train_and_test
from nmc_workbench.methods.base import open_run, registered
from nmc_workbench.methods import NMCE
from nmc_workbench.metrics import (knn_accuracy, knn_predict, nearest_subspace_accuracy, nearest_subspace_predict,
                                   topk_accuracy)
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.heads import KINDS

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get('NMC_GOLDEN_NMCE', ROOT / 'tests/golden/nmce')) / 'evals.npz'


def golden():
    with np.load(GOLDEN) as f: return {k: f[k] for k in f.files}


def named(pattern):
    "What the file holds of the arrays whose name matches, with the groups of the match."
    found = [m.groups() for k in golden() if (m := re.fullmatch(pattern, k))]
    assert found
    return found


def blobs(n=300, d=8, classes=4, spread=1., seed=0):
    rng = np.random.default_rng(seed)
    centre, y = np.random.default_rng(99).normal(size=(classes, d)), rng.integers(0, classes, n)
    return centre[y] + spread * rng.normal(size=(n, d)), y


# ---- nearest neighbours


@pytest.mark.parametrize('k', named(r'knn(\d+)_pred'))
def test_knn_golden(k):
    g, k = golden(), int(k[0])
    sets = g['train_x'], g['train_y'], g['test_x']
    assert (knn_predict(*sets, k, normalise=False) == g[f'knn{k}_pred']).all()
    assert knn_accuracy(*sets, g['test_y'], k, normalise=False) == pytest.approx(g[f'knn{k}_acc'].item(), abs=1e-12)


@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('temperature', [None, .1])
def test_knn_one_by_one(normalise, temperature):
    (x, y), (tx, _) = blobs(), blobs(60, seed=1)
    y, names = np.array([7, -3, 20, 4])[y], [-3, 4, 7, 20]
    got = knn_predict(x, y, tx, 10, normalise, temperature)
    for row, guess in zip(tx, got):
        rows, point = x, row
        if normalise: rows, point = x / np.linalg.norm(x, axis=1, keepdims=True), row / np.linalg.norm(row)
        s = rows @ point
        near = np.argsort(-s)[:10]
        weight = np.ones(10) if temperature is None else np.exp((s[near] - s.max()) / temperature)
        votes = [weight[y[near] == c].sum() for c in names]
        assert guess == names[int(np.argmax(votes))]


def test_knn_ties_chunks_and_types():
    x = np.eye(4)
    assert knn_predict(x, [3, 1, 1, 3], [[1, 1, 1, 1]], k=4) == 1            # two against two: the smaller
    assert knn_predict(x, [3, 1, 1, 3], [[1, 0, 0, 0]], k=1) == 3
    assert knn_predict(x, [3, 1, 1, 3], [[1, 0, 0, 0]], k=99) == 1           # no more neighbours than there are
    (x, y), (tx, ty) = blobs(5000, 4), blobs(5000, 4, seed=1)                # 25 million pairs: more than a chunk holds
    whole = knn_predict(x, y, tx)
    assert (np.concatenate([knn_predict(x, y, part) for part in np.split(tx, 5)]) == whole).all()
    assert (knn_predict(torch.tensor(x), torch.tensor(y), torch.tensor(tx)) == whole).all()
    assert knn_accuracy(x.astype('f4'), y, tx.astype('f4'), ty) == pytest.approx(knn_accuracy(x, y, tx, ty), abs=.002)
    # large temperatures count votes, small ones take the nearest; neither overflows
    assert (knn_predict(x, y, tx, temperature=1e6) == whole).mean() > .9
    sharp = knn_predict(1e3 * x, y, 1e3 * tx, temperature=1e-3, normalise=False)
    assert (sharp == knn_predict(x, y, tx, k=1, normalise=False)).all()


def test_knn_does_not_see_scale_or_rotation():
    (x, y), (tx, _) = blobs(), blobs(100, seed=1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    scale = np.random.default_rng(1).uniform(.1, 9, (len(x), 1))
    assert (knn_predict(scale * x @ turn, y, 5 * tx @ turn) == knn_predict(x, y, tx)).all()


# ---- nearest subspace


@pytest.mark.parametrize('n, form', named(r'nearsub(\d+)_(pca|svd)_pred'))
def test_nearest_subspace_golden(n, form):
    g = golden()
    sets = g['train_x'], g['train_y'], g['test_x']
    assert (nearest_subspace_predict(*sets, int(n), form) == g[f'nearsub{n}_{form}_pred']).all()
    found, wanted = nearest_subspace_accuracy(*sets, g['test_y'], int(n), form), g[f'nearsub{n}_{form}_acc'].item()
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize('n, d', [(200, 10), (80, 40)])      # classes with more samples than features, and with fewer
@pytest.mark.parametrize('n_components', [1, 4])
def test_nearest_subspace_by_singular_vectors(n, d, n_components):
    (x, y), (tx, _) = blobs(n, d, spread=2), blobs(50, d, spread=2, seed=1)
    affine, linear = [], []
    for c in range(4):
        pca = PCA(n_components, svd_solver='full').fit(x[y == c])
        affine.append(np.linalg.norm(tx - pca.inverse_transform(pca.transform(tx)), axis=1))
        v = np.linalg.svd(x[y == c], full_matrices=False)[2][:n_components]
        linear.append(np.linalg.norm(tx - tx @ v.T @ v, axis=1))
    assert (nearest_subspace_predict(x, y, tx, n_components) == np.argmin(affine, 0)).all()
    assert (nearest_subspace_predict(x, y, tx, n_components, 'svd') == np.argmin(linear, 0)).all()
    # rounding of float32 may tip a sample that is equally far from two
    rounded = nearest_subspace_predict(x.astype('f4'), y, tx.astype('f4'), n_components)
    assert (rounded == np.argmin(affine, 0)).mean() > .97


def test_nearest_subspace_where_components_are_missing():
    "Copies of few samples span less than asked for; what is not there takes nothing away from the distance."
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 2, 9))
    x, y = np.concatenate([np.repeat(b, 10, 0) for b in base]), np.repeat([0, 1], 20)
    for form in ('pca', 'svd'):
        for wide in (x, np.pad(x, ((0, 0), (0, 60)))): assert nearest_subspace_accuracy(wide, y, wide, y, 8, form) == 1


# ---- with labels


def test_linear_svm():
    (x, y), (tx, ty) = blobs(), blobs(200, seed=1)
    found = linear_svm(x, y, tx, ty)
    plain = LinearSVC(dual=False, random_state=10).fit(x, y)
    assert found == dict(acc=plain.score(tx, ty), train_acc=plain.score(x, y))
    g = golden()
    found = linear_svm(g['train_x'], g['train_y'], g['test_x'], g['test_y'])
    # liblinear's stopping point moves between versions: a sample may
    assert found['train_acc'] == pytest.approx(g['svm_acc_train'].item(), abs=1.01 / len(g['train_y']))
    assert found['acc'] == pytest.approx(g['svm_acc_test'].item(), abs=1.01 / len(g['test_y']))


def test_linear_probe_is_plain_sgd():
    (x, y), (tx, ty) = blobs(150, 5, 3), blobs(70, 5, 3, seed=1)
    x, tx = x.astype('f4'), tx.astype('f4')
    epochs, batch, lr, momentum, decay = 4, 40, .1, .9, 1e-2
    layer = initialised(lambda: torch.nn.Linear(5, 3), seed_of(3, 'probe'))
    w = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], 1).astype(float)
    speed, accuracies = np.zeros_like(w), []
    ones = lambda a: np.pad(a.astype(float), ((0, 0), (0, 1)), constant_values=1)
    for epoch in range(epochs):
        order = torch.randperm(150, generator=generator(3, 'probe', epoch)).numpy()
        for i in range(0, 120, batch):
            b = order[i:i + batch]
            p = np.exp(ones(x[b]) @ w.T)
            p /= p.sum(1, keepdims=True)
            p[np.arange(batch), y[b]] -= 1
            speed = momentum * speed + p.T @ ones(x[b]) / batch + decay * w
            w -= lr * speed
        accuracies.append(((ones(tx) @ w.T).argmax(1) == ty).mean())
    options = dict(epochs=epochs, batch_size=batch, lr=lr, momentum=momentum, weight_decay=decay)
    found = linear_probe(x, y, tx, ty, **options, seed=3)
    assert found['acc'] == pytest.approx(accuracies[-1], abs=1e-9)
    assert found['best'] == pytest.approx(max(accuracies), abs=1e-9)
    assert found['train_acc'] == pytest.approx(((ones(x) @ w.T).argmax(1) == y).mean(), abs=1e-9)
    assert 'top5' not in found


def test_linear_probe_counts_every_sample_once():
    "Labels need not be 0 ... C-1, a class that was not trained is missed, and few samples make one batch."
    (x, y), (tx, ty) = blobs(400, 8, 7, .3), blobs(203, 8, 7, .3, seed=1)
    names = np.array([3, 8, 40, 41, 90, 91, 100])
    one = linear_probe(x, names[y], tx, names[ty], epochs=20)
    assert one['acc'] > .95 and one['top5'] > .99 and one == linear_probe(x, names[y], tx, names[ty], epochs=20)
    few = [linear_probe(x[:60], y[:60], tx, ty, epochs=1, seed=s)['acc'] for s in range(4)]
    assert len(set(few)) > 1
    keep = y != 6
    without = linear_probe(x[keep], y[keep], tx, ty, epochs=20)
    assert without['acc'] <= (ty != 6).mean() + 1e-9 and without['top5'] <= (ty != 6).mean() + 1e-9
    assert linear_probe(x[:50], y[:50], tx, ty, epochs=30)['train_acc'] > .9
    before = torch.random.get_rng_state()
    linear_probe(x, y, tx, ty, epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_topk():
    g = golden()
    for k, want in zip((1, 5), g['topk_acc']):
        found = 100 * topk_accuracy(g['topk_logits'], g['topk_target'], k)
        assert found == pytest.approx(want, abs=1e-5)           # upstream's percent is float32
    assert topk_accuracy(g['topk_logits'], g['topk_target'], g['topk_logits'].shape[1]) == 1


# ---- without labels


def test_clusters():
    x, y = blobs(400, 8, 4, .2)
    assert kmeans_accuracy(x, y) == kmeans_accuracy(x, y, 4) == 1 > kmeans_accuracy(x, y, 3)
    labels = np.where(np.random.default_rng(0).random(400) < .3, 0, y)
    s = cluster_scores(y, labels)
    assert s['greedy'] == metrics.greedy_accuracy(y, labels)
    assert {k: v for k, v in s.items() if k != 'greedy'} == metrics.scores(y, labels)
    g = golden()
    k = len(np.unique(g['kmeans_labels']))
    # the starts hang on scikit-learn's version: only about as good
    assert kmeans_accuracy(g['train_x'], g['train_y'], k) > g['kmeans_acc'].item() - .15


# ---- all of them


def in_own_unit(train, *others):
    "Features as `evaluate` takes them: about the mean of the training features, in units of their overall spread."
    centre = train.mean(0)
    return [(x - centre) / np.sqrt(((train - centre) ** 2).mean()) for x in (train, *others)]


def test_evaluate():
    (x, y), (tx, ty) = blobs(300, 8, 4, .3), blobs(100, 8, 4, .3, seed=1)
    options = dict(n_components=3, probe_epochs=10, k=5, gamma=20., device='cpu')
    found = evaluate(x, y, tx, ty, **options)
    given, (x, tx) = (x, tx), in_own_unit(x, tx)
    assert list(found) == list(PROTOCOLS) and json.dumps(found)
    assert found['knn']['acc'] == knn_accuracy(x, y, tx, ty, 5)
    beside = [np.c_[z, np.full(len(z), np.sqrt(8))] for z in (x, tx)]       # affine subspaces of the features
    assert found['nearest_subspace']['acc'] == nearest_subspace_accuracy(beside[0], y, beside[1], ty, 3, 'svd')
    assert found['nearest_subspace']['pca_acc'] == nearest_subspace_accuracy(x, y, tx, ty, 3)
    assert found['linear_probe']['acc'] == linear_probe(x, y, tx, ty, 10)['acc']
    assert found['svm']['acc'] == linear_svm(x, y, tx, ty)['acc']
    assert found['kmeans']['acc'] == kmeans_accuracy(x, y)
    for name, r in found.items():
        assert r['scored_on'] == ('training' if name in ('kmeans', 'ensc') else 'test') and r['seconds'] >= 0
    again = evaluate(given[0], y, given[1], ty, **options)
    for name in found: assert {**found[name], 'seconds': 0} == {**again[name], 'seconds': 0}
    rows = results_table(found)
    assert [r['protocol'] for r in rows] == [p[0] for p in PROTOCOLS.values()] and rows[1]['also'] == 'k=5'
    assert rows[4]['NMI'] == found['kmeans']['nmi']


def test_evaluate_some_and_whole():
    (x, y), (tx, ty) = blobs(100, 8, 4, .3), blobs(100, 8, 4, .3, seed=1)
    whole = np.concatenate([x, tx]), np.concatenate([y, ty])
    found = evaluate(x, y, tx, ty, ['kmeans', 'svm'], whole, device='cpu')
    assert list(found) == ['kmeans', 'svm'] and found['kmeans']['scored_on'] == 'all'
    assert found['kmeans']['acc'] == kmeans_accuracy(*whole)
    assert protocol_names(' svm, knn,svm ') == ['svm', 'knn']


def test_evaluate_refuses_before_it_starts(monkeypatch):
    (x, y), (tx, ty) = blobs(60), blobs(20, seed=1)
    monkeypatch.setitem(PROTOCOLS, 'svm', ('linear SVM', lambda *a: pytest.fail('a protocol ran')))
    cases = [
        (dict(n_components=8), 'n_components=8 with 8 features'),
        (dict(n_components=7, train=20), r'n_components=7 > \d training samples of class'),
        (dict(n_clusters=61), 'n_clusters=61, n_samples=60'),
        (dict(protocols=['svm', 'nothing']), 'unknown protocol'),
        (dict(device='cuda:9'), 'device'),
        (dict(gamma=1), 'gamma=1'),
        (dict(tau=0), 'tau=0'),
        (dict(k=0), 'k=0')]
    for bad, message in cases:
        n = bad.pop('train', 60)
        with pytest.raises(InputError, match=message) as e:
            evaluate(x[:n], y[:n], tx, ty, **{'device': 'cpu', 'n_components': 3, **bad})
        assert '\n' not in str(e.value)


X, Y = blobs(20, 3, 2)
BAD = [
    (lambda: knn_accuracy(X, Y, X, Y, k=0), 'k=0'),
    (lambda: knn_accuracy(X, Y, X, Y, temperature=0), 'temperature=0'),
    (lambda: knn_accuracy(X, Y, X[:, :2], Y), 'test_x has 2 features, train_x 3'),
    (lambda: knn_accuracy(X, Y[:9], X, Y), 'train_y 9 entries'),
    (lambda: knn_accuracy(X * np.nan, Y, X, Y), 'train_x holds values that are not finite'),
    (lambda: nearest_subspace_accuracy(X, Y, X, Y, 2, 'ica'), "form='ica'; expected one of 'pca', 'svd'"),
    (lambda: nearest_subspace_accuracy(X[:5], [0, 0, 0, 0, 1], X, Y, 2),
     'n_components=2 > 1 training samples of class 1'),
    (lambda: linear_svm(X, Y * 0, X, Y), 'at least 2 classes'),
    (lambda: linear_probe(X, Y, X, Y[:3]), 'test_y 3 entries'),
    (lambda: topk_accuracy(X, Y, 4), 'k=4 with 3 classes'),
    (lambda: protocol_names(' , '), 'names none'),
    (lambda: kmeans_accuracy(X, Y, 21), 'n_clusters=21 > n_samples=20')]


@pytest.mark.parametrize('call, message', BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)


# ---- features of a run


@pytest.fixture(scope='module')
def run(tiny_run):
    folder = tiny_run('nmce')
    model = open_run(folder, 'cpu')
    model.embedding_, model.labels_ = (np.load(folder / f'{k}.npy') for k in ('embeddings', 'predictions'))
    return SimpleNamespace(folder=folder, model=model, images=load('digits', limit=120))


def test_extract_is_what_the_method_gives(run):
    z, logits = extract(run.model, run.images), extract(run.model, run.images, 'cluster')
    np.testing.assert_allclose(z, run.model.embedding_, atol=1e-6)
    assert (logits.argmax(1) == run.model.labels_).all()
    assert extract(run.folder, run.images).tolist() == z.tolist()
    shapes = {k: extract(run.model, run.images, k).shape for k in KINDS}
    widths = dict(pool=64, pre_feature=32, projection=12, subspace=12, cluster=10)
    assert shapes == {k: (120, width) for k, width in widths.items()}
    np.testing.assert_allclose(extract(run.model, run.images, batch_size=17), z, atol=1e-6)
    assert z.dtype == np.float32 and not run.model.network_.training


@pytest.mark.parametrize('kind', KINDS)
def test_extract_averages_views(run, kind):
    z = extract(run.model, run.images, kind, n_augmented=3, seed=5)
    augment, net = run.model._augment(run.model.config_), run.model.network_
    with torch.no_grad():
        views = [net.features(augment(run.images.pixels, generator(5, 'features', i)), kind) for i in range(3)]
    mean = torch.stack(views).mean(0)
    if kind in ('projection', 'subspace'): mean = mean / mean.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(z, mean.numpy(), atol=2e-6)
    assert (z == extract(run.model, run.images, kind, n_augmented=3, seed=5)).all()
    assert (z != extract(run.model, run.images, kind, n_augmented=3, seed=6)).any()


def test_extract_plain_and_random(run):
    plain = extract(run.model, run.images)
    for n in (0, 1): assert (extract(run.model, run.images, n_augmented=n, seed=9) == plain).all()
    one = extract(run.model, run.images, seed=1, random=True)
    assert (one != plain).any() and (one == extract(run.model, run.images, n_augmented=1, seed=1, random=True)).all()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    def far(n):
        a, b = (extract(run.model, run.images, n_augmented=n, seed=s, random=True) for s in (1, 2))
        return np.linalg.norm(a - b)
    assert far(16) < .5 * far(1)


def test_extract_of_arrays_and_files(run, tmp_path):
    from PIL import Image
    some = run.images.subset(range(12))
    assert (extract(run.model, some.pixels[:, 0].numpy()) == extract(run.model, some)).all()
    for i, p in enumerate(some.pixels): Image.fromarray(p[0].numpy()).save(tmp_path / f'{i:02}.png')
    streamed = load('imagenet_folder', 'all', tmp_path, size=8, channels=1)
    assert streamed.streams
    np.testing.assert_allclose(extract(run.model, streamed, batch_size=5), extract(run.model, some), atol=1e-6)


def test_extract_refuses(run, tmp_path):
    cases = [
        (dict(kind='pixels'), 'unknown kind of feature'),
        (dict(n_augmented=-1), 'n_augmented=-1'),
        (dict(batch_size=0), 'batch_size=0'),
        (dict(images=np.zeros((3, 9, 9), np.uint8)), r'shape \(1, 9, 9\)'),
        (dict(model=NMCE()), 'not fitted'),
        (dict(model=tmp_path), 'not a run folder')]
    for bad, message in cases:
        with pytest.raises(InputError, match=message) as e: extract(**{'model': run.model, 'images': run.images, **bad})
        assert '\n' not in str(e.value)


def test_open_run(run, tmp_path):
    assert registered()['NMCE'] is NMCE and all(hasattr(m, 'load') for m in registered().values())
    assert isinstance(open_run(run.folder, 'cpu'), NMCE)
    config = json.loads((run.folder / 'config.json').read_text())
    cases = [
        ('other', {**config, 'method': 'SOM'}, "unknown method 'SOM'"),
        ('none', {'dataset': 'digits'}, 'names no method'),
        ('unfinished', config, 'not finished')]
    for name, content, message in cases:
        folder = tmp_path / name
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps(content))
        if name == 'other': (folder / 'model.pt').write_bytes(b'')
        with pytest.raises(InputError, match=message): open_run(folder)
    (folder / 'config.json').write_text('{"meth')
    with pytest.raises(InputError, match='damaged'): open_run(folder)


# ---- what a run is evaluated on


def config(**values):
    defaults = dict(dataset='digits', data_dir='data', split='train', limit=None, size=None)
    return SimpleNamespace(**{**defaults, **values})


def test_halves():
    images = load('digits', limit=301)
    one, two = halves(images, 3)
    assert sorted([*one.ids, *two.ids]) == sorted(images.ids) and len(one) == 151
    assert (one.labels.bincount() - two.labels.bincount()).abs().max() <= 1
    assert list(one.ids) == list(halves(images, 3)[0].ids) != list(halves(images, 4)[0].ids)


def arrays(path, **splits):
    rng = np.random.default_rng(0)
    content = {}
    for name, (n, labelled) in splits.items():
        content[f'x_{name}'] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        if labelled: content[f'y_{name}'] = np.arange(n) % 3
    np.savez(path, **content)
    return str(path)


def test_train_and_test(tmp_path):
    train, test, what = train_and_test(config(limit=200), seed=1)
    assert len(train) == len(test) == 100 and train.split == test.split
    assert 'no labelled test split beside train' in what
    assert sorted([*train.ids, *test.ids]) == sorted(load('digits', limit=200).ids)          # what the run saw, no more
    assert len(train_and_test(config(), limit=90)[0]) == 45
    both = config(dataset='npz', data_dir=arrays(tmp_path / 'a.npz', train=(60, True), test=(30, True)))
    train, test, what = train_and_test(both)
    assert (len(train), len(test), train.split, test.split) == (60, 30, 'train', 'test')
    assert what == '60 images of train, 30 of test'
    train, test, _ = train_and_test(both, limit=40)
    assert (len(train), len(test)) == (40, 30)
    both.split = 'all'
    assert [len(part) for part in train_and_test(both)[:2]] == [45, 45]
    train, test, what = train_and_test(config(dataset='spiral'))
    assert (train.split, test.split) == ('train', 'test')
    moved = config(dataset='npz', data_dir='elsewhere')
    assert len(train_and_test(moved, both.data_dir)[0]) == 60


def test_train_and_test_without_labels(tmp_path):
    half = config(dataset='npz', data_dir=arrays(tmp_path / 'a.npz', train=(60, True), test=(30, False)))
    train, test, what = train_and_test(half)
    assert len(train) == len(test) == 30 and 'no labelled test split' in what
    none = config(dataset='npz', data_dir=arrays(tmp_path / 'b.npz', train=(60, False), test=(30, False)))
    with pytest.raises(InputError, match='evaluation needs labels'): train_and_test(none)
    with pytest.raises(InputError, match='unknown data set'): train_and_test(config(dataset='minst'))
    with pytest.raises(InputError, match='limit=5000'): train_and_test(config(), limit=5000)


# ---- the notebook


def test_parameters_cell_is_the_config():
    cells = json.loads((ROOT / 'nbs/evaluate.ipynb').read_text())['cells']
    tagged = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1
    hints, comments = typing.get_type_hints(EvaluateConfig), docments(EvaluateConfig)
    def kind(t): return next(k for k in (*typing.get_args(t), t) if k is not type(None)).__name__
    def line(f): return f'{f.name}: {kind(hints[f.name])} = {f.default!r}  # {comments[f.name]}'
    assert tagged[0].splitlines() == [line(f) for f in fields(EvaluateConfig)]
