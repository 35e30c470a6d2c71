"""Elastic-net codes against stored optima, scikit-learn, optimality conditions and symmetries, and their clusters."""
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import ElasticNet

from nmc_workbench import metrics
from nmc_workbench.core.errors import InputError
from nmc_workbench.subspaces import affinity, elastic_net_codes, kkt_residual, spectral_labels, subspace_clustering

GOLDEN = Path(os.environ.get('NMC_GOLDEN_NMCE', Path(__file__).parent / 'golden' / 'nmce')) / 'ensc.npz'
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)


def union(n=90, d=12, n_subspaces=3, dim=3, noise=.05, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_subspaces
    bases = np.stack([np.linalg.qr(rng.normal(size=(d, dim)))[0] for _ in range(n_subspaces)])
    return unit(np.einsum('ndk,nk->nd', bases[y], rng.normal(size=(n, dim))) + noise * rng.normal(size=(n, d))), y


def objective(x, codes, gamma, tau):
    "The objective of each code, as the equation reads."
    gram = np.abs(x @ x.T)
    np.fill_diagonal(gram, 0)
    alpha = gram.max(1) / (tau * gamma)
    penalty = tau * np.abs(codes).sum(1) + (1 - tau) / 2 * (codes ** 2).sum(1)
    return alpha * penalty + ((x - codes @ x) ** 2).sum(1) / 2


def golden():
    "(solver and rest of the name, gamma); the README gives gamma as 100 unless the name says otherwise."
    with np.load(GOLDEN) as f: stored = {k: f[k] for k in f.files}
    names = [k[:-2] for k in stored if k.endswith('_C')]
    assert names
    def gamma(name): return float(stored.get(f'{name}_gamma', m[1] if (m := re.search(r'_g(\d+)', name)) else 100))
    return [(n, gamma(n)) for n in names]


@pytest.mark.parametrize('name, gamma', golden())
def test_golden(name, gamma):
    with np.load(GOLDEN) as f: x, y, want, graph = f['x'], f['y'], f[f'{name}_C'], f[f'{name}_A']
    codes = elastic_net_codes(x, gamma, n_nonzero=50)
    tolerance = 5e-3 if name.startswith('cd') else 1e-6
    np.testing.assert_allclose(codes.toarray(), want, atol=tolerance, rtol=0)
    np.testing.assert_allclose(affinity(codes).toarray(), graph, atol=tolerance, rtol=0)
    np.testing.assert_allclose(affinity(want).toarray(), graph, atol=1e-9, rtol=0)      # the graph alone is exact
    assert kkt_residual(x, elastic_net_codes(x, gamma), gamma).max() < 1e-8
    # labels hang on the k-means starts, so only that clusters are about as good as the original's
    with np.load(GOLDEN) as f: acc = f[f'{name}_acc'].item()
    assert metrics.accuracy(y, subspace_clustering(x, len(np.unique(y)), gamma)) > acc - .15


@pytest.mark.parametrize('gamma, tau', [(20, 1.), (100, 1.), (20, .9), (50, .5), (3, .1)])
def test_against_coordinate_descent(gamma, tau):
    x, _ = union()
    codes = elastic_net_codes(x, gamma, tau).toarray()
    for j in (0, 31, 89):
        others = np.delete(x, j, 0)
        alpha = np.abs(others @ x[j]).max() / (tau * gamma)
        model = ElasticNet(alpha / x.shape[1], l1_ratio=tau, fit_intercept=False, tol=1e-14, max_iter=200_000)
        one = model.fit(others.T, x[j]).coef_
        np.testing.assert_allclose(np.delete(codes[j], j), one, atol=1e-6)
        assert codes[j, j] == 0


@pytest.mark.parametrize('gamma, tau', [(10, 1.), (100, 1.), (1000, 1.), (100, .9), (30, .3)])
@pytest.mark.parametrize('n, d', [(200, 16), (30, 60), (400, 3)])
def test_optimality(n, d, gamma, tau):
    x = unit(np.random.default_rng(n).normal(size=(n, d)))
    codes = elastic_net_codes(x, gamma, tau)
    assert kkt_residual(x, codes, gamma, tau).max() < 1e-8
    if tau == 1: assert (codes != 0).sum(1).max() <= d
    # the conditions are what they say: nearby codes are worse
    base = objective(x, codes.toarray(), gamma, tau)
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-4):
        nudge = size * rng.normal(size=(n, n)) * ((codes.toarray() != 0) | (rng.random((n, n)) < .05))
        np.fill_diagonal(nudge, 0)
        assert (objective(x, codes.toarray() + nudge, gamma, tau) >= base - 1e-14).all()


def hard():
    rng = np.random.default_rng(0)
    base = unit(rng.normal(size=(40, 10)))
    yield 'copies', np.concatenate([base] * 3)
    for power in (2, 3, 4, 6, 8):
        noise = 10. ** -power * rng.normal(size=(120, 10))
        yield f'copies to 1e-{power}', unit(np.concatenate([base] * 3) + noise)
    yield 'lattice', rng.integers(-1, 2, (120, 6)).astype(float)
    yield 'zeros and ones', unit(rng.integers(0, 2, (120, 8)) + 1e-12)
    yield 'a line', rng.normal(size=(40, 1)) @ rng.normal(size=(1, 8))
    yield 'low rank', rng.normal(size=(120, 3)) @ rng.normal(size=(3, 20))
    yield 'collapsed', unit(np.ones((100, 20)) + 1e-3 * rng.normal(size=(100, 20)))
    yield 'all the same', np.ones((50, 5))
    yield 'orthogonal', np.eye(20)
    yield 'empty rows', np.concatenate([base, np.zeros((3, 10))])
    yield 'large', 1e6 * base
    yield 'small', 1e-6 * base


@pytest.mark.parametrize('name, x', hard())
@pytest.mark.parametrize('gamma, tau', [(2, 1.), (100, 1.), (20, .9), (100, .5)])
def test_ties_copies_and_degenerate_samples(name, x, gamma, tau):
    codes = elastic_net_codes(x, gamma, tau)
    assert np.isfinite(codes.data).all() and codes.diagonal().max(initial=0) == 0
    assert kkt_residual(x, codes, gamma, tau).max() < (1e-6 if '1e-' in name else 1e-8)


def test_order_rotation_scale_and_batches(monkeypatch):
    x, _ = union()
    codes = elastic_net_codes(x, 50).toarray()
    rng = np.random.default_rng(0)
    order, turn = rng.permutation(len(x)), np.linalg.qr(rng.normal(size=(12, 12)))[0]
    np.testing.assert_allclose(elastic_net_codes(x[order], 50).toarray(), codes[np.ix_(order, order)], atol=1e-9)
    np.testing.assert_allclose(elastic_net_codes(x @ turn, 50).toarray(), codes, atol=1e-9)
    np.testing.assert_allclose(elastic_net_codes(3 * x, 50).toarray(), codes, atol=1e-9)
    np.testing.assert_allclose(elastic_net_codes(torch.tensor(x, dtype=torch.float32), 50).toarray(), codes, atol=1e-4)
    from nmc_workbench import subspaces
    monkeypatch.setattr(subspaces, '_batches', lambda x, tau, workers=1: torch.arange(len(x)).split(7))
    np.testing.assert_allclose(elastic_net_codes(x, 50).toarray(), codes, atol=1e-12)
    assert kkt_residual(x, codes, 50).max() < 1e-8


def test_memory_is_bounded():
    from nmc_workbench.subspaces import _batches
    for n, d, tau in [(720, 40, 1.), (7200, 200, 1.), (7200, 200, .5), (50_000, 128, 1.)]:
        rows = len(_batches(torch.empty(n, d), tau)[0])
        assert 1 <= rows <= n and rows * n * 8 * 6 <= 2 ** 28 and len(_batches(torch.empty(n, d), tau, 4)) >= 4


@pytest.mark.parametrize('threads', [1, 3])
def test_every_thread_works_and_their_number_stays(threads):
    before = torch.get_num_threads()
    x, _ = union()
    one = elastic_net_codes(x, 20).toarray()
    try:
        torch.set_num_threads(threads)
        np.testing.assert_allclose(elastic_net_codes(x, 20).toarray(), one, atol=1e-12)
        with pytest.raises(InputError): elastic_net_codes(x, 1)
        assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)


def test_the_residual_sees_every_violation():
    x, _ = union()
    codes = elastic_net_codes(x, 50).tolil()
    assert kkt_residual(x, codes, 50).max() < 1e-8
    j = 5
    column = codes[j].nonzero()[1][0]
    value = codes[j, column]
    for wrong in (0, -value, value * 1.001):
        codes[j, column] = wrong
        off = kkt_residual(x, codes, 50)
        assert off[j] > 1e-5 and np.delete(off, j).max() < 1e-8
    # an atom that has no place there
    codes[j, column] = value
    inactive = next(i for i in range(len(x)) if i != j and codes[j, i] == 0)
    codes[j, inactive] = 1e-3
    assert kkt_residual(x, codes, 50)[j] > 1e-5


def test_a_path_that_does_not_end_is_reported(monkeypatch):
    x, _ = union()
    from nmc_workbench import subspaces
    monkeypatch.setattr(subspaces, '_solve', lambda atoms, scale, rows, l1, l2: atoms.new_zeros(len(rows), len(atoms)))
    with pytest.warns(UserWarning, match='90 of 90 codes meet the optimality conditions only to') as caught:
        elastic_net_codes(x, 50)
    assert caught[0].filename == __file__


def test_no_warning_by_itself():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        elastic_net_codes(union()[0], 50)


def test_keeping_the_largest():
    x, _ = union()
    codes = elastic_net_codes(x, 100).toarray()
    few = elastic_net_codes(x, 100, n_nonzero=4).toarray()
    for full, part in zip(codes, few):
        kept = np.flatnonzero(part)
        assert len(kept) == 4 and (part[kept] == full[kept]).all()
        assert np.abs(full[kept]).min() >= np.abs(np.delete(full, kept)).max()
    graph = affinity(codes, keep=4).toarray()
    scaled = np.abs(unit(few))
    np.testing.assert_allclose(graph, (scaled + scaled.T) / 2, atol=1e-15)
    assert (graph == graph.T).all() and graph.min() >= 0


@pytest.mark.parametrize('n, n_clusters', [(60, 3), (2000, 4)])
def test_spectral_labels_of_blocks(n, n_clusters):
    "Dense eigenvectors and Lanczos find connected blocks."
    y = np.arange(n) % n_clusters
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, n, (30 * n, 2))
    pairs = pairs[(y[pairs[:, 0]] == y[pairs[:, 1]]) | (rng.random(len(pairs)) < .01)]
    graph = sparse.csr_matrix((np.ones(len(pairs)), pairs.T), (n, n))
    graph = graph + graph.T
    labels = spectral_labels(graph, n_clusters, seed=3)
    assert metrics.accuracy(y, labels) == 1 and (labels == spectral_labels(graph, n_clusters, seed=3)).all()


def test_a_sample_without_neighbours():
    graph = np.kron(np.eye(2), np.ones((10, 10)))
    graph = np.pad(graph, (0, 1))
    labels = spectral_labels(graph, 2)
    assert metrics.accuracy(np.arange(20) // 10, labels[:20]) == 1 and labels[20] in (0, 1)


def test_clusters_of_subspaces():
    x, y = union(n=150, d=20, n_subspaces=5, dim=3, noise=.02)
    for tau in (1., .9): assert metrics.accuracy(y, subspace_clustering(x, 5, gamma=50, tau=tau)) > .97
    assert (subspace_clustering(x, 5, seed=1) == subspace_clustering(x, 5, seed=1)).all()


X = union()[0]
BAD = [
    (lambda: subspace_clustering(X[:4], 5), 'n_clusters=5 > n_samples=4'),
    (lambda: subspace_clustering(X, 1), 'n_clusters=1'),
    (lambda: elastic_net_codes(X, 1), 'gamma=1'),
    (lambda: elastic_net_codes(X, float('nan')), 'gamma=nan'),
    (lambda: elastic_net_codes(X, tau=0), 'tau=0'),
    (lambda: elastic_net_codes(X, tau=1.1), 'tau=1.1'),
    (lambda: elastic_net_codes(np.where(X > .5, np.nan, X)), 'NaN or infinite'),
    (lambda: elastic_net_codes(X[0]), r'shape \(12,\)'),
    (lambda: elastic_net_codes(X[:1]), 'at least 2 rows'),
    (lambda: affinity(elastic_net_codes(X), keep=0), 'keep=0; expected a whole number of at least 1'),
    (lambda: spectral_labels(np.eye(3), 4), 'n_clusters=4, n_samples=3'),
]


@pytest.mark.parametrize('call, message', BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    x, y = union(n=300)
    codes = elastic_net_codes(torch.tensor(x, device='cuda'), 50)
    np.testing.assert_allclose(codes.toarray(), elastic_net_codes(x, 50).toarray(), atol=1e-8)
    on_gpu = subspace_clustering(torch.tensor(x, device='cuda'), 3, 50)
    assert metrics.accuracy(y, on_gpu) == metrics.accuracy(y, subspace_clustering(x, 3, 50))
