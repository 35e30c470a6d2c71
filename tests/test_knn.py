"""Weighted nearest neighbours against the arrays of SeLa's CIFAR script, a plain loop, and closed forms.

The folder can be replaced with NMC_GOLDEN_SELA: sizes, neighbours and temperatures are read from the files."""
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from nmc_workbench.core.errors import InputError
from nmc_workbench.metrics import knn_accuracy, knn_predict, knn_votes

GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden' / 'sela'))
FILES = sorted(GOLDEN.glob('knn_*.npz'))
torch.set_num_threads(1)


@pytest.fixture(params=FILES, ids=lambda f: f.stem)
def case(request):
    with np.load(request.param) as f: return {k: f[k] for k in f.files}


def test_there_are_files():
    assert len(FILES) >= 3


def test_golden(case):
    "Where the last batch was smaller, the original's bank had a hole: `bankfix` is without it."
    which = 'bankfix' if 'bankfix_probs' in case else 'upstream'
    data = [case[k] for k in ('train_x', 'train_y', 'test_x')]
    n_components = 128 if case['use_pca'] else None
    for i, (k, t) in enumerate(product(case['K'].reshape(-1).tolist(), case['sigma'].reshape(-1).tolist())):
        options = dict(temperature=t, n_components=n_components)
        np.testing.assert_allclose(knn_votes(*data, k, **options), case[f'{which}_probs'][i], rtol=1e-10)
        np.testing.assert_array_equal(knn_predict(*data, k, **options), case[f'{which}_pred'][i])
        score = lambda top: knn_accuracy(*data, case['test_y'], k, **options, top=top)
        # to half a sample: the original gives percent or shares
        top1, n = case[f'{which}_top1'].reshape(-1)[i], len(case['test_y'])
        assert any(abs(score(1) * f - top1) < f / 2 / n for f in (1, 100))
        # fewer neighbours than five: the original lets classes without a vote fill up the five
        if (case[f'{which}_probs'][i] > 0).sum(1).min() >= 5:
            assert score(5) * n == pytest.approx(case[f'{which}_top5_hits'][i])
        assert score(5) >= score(1)


def data(n=90, m=40, d=6, seed=0):
    g = np.random.default_rng(seed)
    centre, y, ty = g.normal(size=(4, d)), g.integers(0, 4, n), g.integers(0, 4, m)
    return centre[y] + g.normal(size=(n, d)), 3 * y - 2, centre[ty] + g.normal(size=(m, d)), 3 * ty - 2


@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('temperature', [None, .2, 3.])
def test_votes_are_sums_over_the_neighbours(normalise, temperature):
    x, y, tx, _ = data()
    a, b = (r / np.linalg.norm(r, axis=1)[:, None] if normalise else r for r in (x, tx))
    for row, votes in zip(b @ a.T, knn_votes(x, y, tx, 7, temperature, normalise)):
        near = np.argsort(-row)[:7]
        weight = np.ones(7) if temperature is None else np.exp(row[near] / temperature)
        np.testing.assert_allclose(votes, [weight[y[near] == c].sum() for c in np.unique(y)], rtol=1e-10)


def test_all_neighbours_and_one():
    x, y, tx, ty = data()
    sizes = np.unique(y, return_counts=True)[1]
    np.testing.assert_array_equal(knn_votes(x, y, tx, 10 ** 6, None), np.tile(sizes, (len(tx), 1)))
    assert knn_accuracy(x, y, x, y, 1) == 1
    scores = [knn_accuracy(x, y, tx, ty, 90, temperature=.1, top=t) for t in (1, 2, 3, 4)]
    assert scores == sorted(scores) and scores[-1] == 1


def test_classes_that_are_not_known_are_not_found():
    x, y, tx, ty = data()
    assert knn_accuracy(x, y, tx, np.full(len(tx), 99), 9, top=4) == 0
    ranks = np.argsort(-knn_votes(x, y, tx, 20, .1), axis=1)
    hits = (np.unique(y)[ranks[:, :2]] == ty[:, None]).any(1)
    assert knn_accuracy(x, y, tx, ty, 20, temperature=.1, top=2) == hits.mean()


def test_components():
    x, y, tx, _ = data()
    pca = PCA(3).fit(x)
    found = knn_votes(x, y, tx, 5, .3, n_components=3)
    np.testing.assert_allclose(found, knn_votes(pca.transform(x), y, pca.transform(tx), 5, .3), rtol=1e-9)
    full = (x - x.mean(0), y, tx - x.mean(0))                       # all components: a rotation about the mean
    np.testing.assert_allclose(knn_votes(x, y, tx, 5, .3, n_components=6), knn_votes(*full, 5, .3), rtol=1e-9)
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(knn_votes(x[order], y[order], tx, 5, .3, n_components=3), found, rtol=1e-9)


def test_a_randomised_solver_gives_the_same_twice():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(1100, 600)).astype('f4'), np.arange(1100) % 3
    a, b = (knn_votes(x, y, x[:20], 5, .5, n_components=8) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_float32_does_not_overflow():
    x, y, tx, _ = data()
    votes = knn_votes(x.astype('f4'), y, tx.astype('f4'), 5, .005)      # exp(200): more than float32 holds
    assert np.isfinite(votes).all() and votes.max() > 1e39
    np.testing.assert_array_equal(np.unique(y)[votes.argmax(1)], knn_predict(x, y, tx, 5, temperature=.005))


@pytest.mark.parametrize('bad, message', [
    (dict(k=0), 'k=0.*at least 1'),
    (dict(temperature=0.), 'temperature=0.*above 0'),
    (dict(n_components=0), 'n_components=0.*expected 1 to 6'),
    (dict(n_components=7), '90 training samples of 6 features'),
])
def test_bad_input(bad, message):
    x, y, tx, _ = data()
    with pytest.raises(InputError, match=message) as e: knn_votes(x, y, tx, **bad)
    assert '\n' not in str(e.value)
    for top in (0, 5):
        with pytest.raises(InputError, match=f'top={top}'): knn_accuracy(x, y, tx, np.zeros(len(tx), int), top=top)
