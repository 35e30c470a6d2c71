"DBSCAN against scikit-learn's, in every regime of its own; modes against slow means; inputs that cannot work."
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN
from sklearn.datasets import make_circles, make_moons

from nmc_workbench.modes import dbscan as m
from nmc_workbench.core.errors import InputError
from nmc_workbench.modes.dbscan import dbscan
from nmc_workbench.modes.endpoints import assign, deduplicate


@pytest.fixture(params=[False, True], ids=['large blocks', 'small blocks'])
def blocks(request, monkeypatch):
    "The same with blocks and balls so few and small that every loop goes round."
    if request.param:
        for name, value in dict(_ROWS=64, _COLUMNS=96, _MOST=20).items(): monkeypatch.setattr(m, name, value)


def jitter(n, d, k, scatter, seed=0):
    "Points around k modes, in an order that does not follow them."
    g = np.random.default_rng(seed)
    return (2 * g.normal(size=(k, d)) / d ** .5)[g.integers(0, k, n)] + scatter * g.normal(size=(n, d))


def same(x, eps, min_samples=5):
    found, wanted = dbscan(x, eps, min_samples, small=0), DBSCAN(eps=eps, min_samples=min_samples).fit_predict(x)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, wanted)
    return found


# In 128 dimensions the pairs of one mode are 16 times as far apart as the scatter.
# .02 and .031 lie on either side of half of eps, .04 beyond eps.
@pytest.mark.parametrize('scatter, groups', [
    (0, 7), (.005, 7), (.02, 7), (.028, 7), (.031, None), (.033, None), (.04, 0)])
def test_collapsed_and_less_collapsed(scatter, groups, blocks):
    labels = same(jitter(1200, 128, 7, scatter), .5)
    if groups is not None: assert labels.max() + 1 == groups


@pytest.mark.parametrize('eps', [.02, .05, .1, .2, .5])
@pytest.mark.parametrize('min_samples', [1, 2, 5, 30])
@pytest.mark.parametrize('shape', ['moons', 'circles', 'plane', 'cube'])
def test_shapes(shape, eps, min_samples, blocks):
    g = np.random.default_rng(1)
    x = dict(moons=make_moons(700, noise=.05, random_state=0)[0],
             circles=make_circles(700, noise=.03, factor=.7, random_state=0)[0],
             plane=g.uniform(size=(700, 2)), cube=g.uniform(size=(700, 6)))[shape]
    same(x, eps, min_samples)


@pytest.mark.parametrize('eps', [1, 2, 2 ** .5])
@pytest.mark.parametrize('min_samples', [3, 5, 9])
def test_distances_that_equal_the_radius(eps, min_samples, blocks):
    g = np.random.default_rng(2)
    x = g.integers(0, 30, (500, 2)).astype(float)
    for y in (x, x + 1000, np.pad(x, ((0, 0), (0, 3)))): same(y, eps, min_samples)


def test_dense_and_thin_at_once(blocks):
    thin = 3 * np.random.default_rng(0).normal(size=(300, 20))
    x = np.r_[jitter(600, 20, 4, .02), thin, jitter(300, 20, 40, .02, seed=5)]
    labels = same(x[np.random.default_rng(1).permutation(1200)], .4)
    assert 4 <= labels.max() and (labels < 0).any()


def test_a_chain_of_clusters_that_touch_through_border_points(blocks):
    x = np.r_[np.linspace(0, 1, 200), [1.45], np.linspace(1.9, 3, 200), [3.45], 3.9 + np.linspace(0, .2, 100)][:, None]
    x = x[np.random.default_rng(0).permutation(len(x))]
    for min_samples in (2, 5, 12, 60): same(x, .45, min_samples)
    same(x, .4499)


def test_far_from_the_origin_and_large(blocks):
    x = jitter(800, 8, 5, .02)
    labels = same(x, .3)
    changed = [(x + 1e5, .3), (x * 1e4, 3e3), (x * 1e-6, 3e-7), (np.r_[x, [[1e6] * 8]], .3)]
    for y, eps in changed: np.testing.assert_array_equal(same(y, eps)[:800], labels)


def test_types_and_small_sets():
    x = jitter(300, 4, 3, .02)
    wanted = DBSCAN(eps=.3).fit_predict(x.astype('f4'))
    for y in (x.astype('f4'), torch.tensor(x.astype('f4'))):
        for small in (0, 2000): np.testing.assert_array_equal(dbscan(y, .3, small=small), wanted)
    assert dbscan([[0.], [1.]], .5, 1, small=0).tolist() == [0, 1] and dbscan([[0.]], .5, 5, small=0).tolist() == [-1]


def test_pairs_are_exact():
    g = np.random.default_rng(3)
    plain, far = g.normal(size=(200, 64)), g.normal(size=(200, 64)) + 1e7
    grid, line = g.integers(0, 4, (200, 12)) / 1., 1e9 + g.integers(0, 1000, (200, 1))
    every = np.arange(200)
    for x in (plain, far, grid, line):
        d = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
        for radius in np.unique(d)[[5, 30, -20]]:      # each the distance of some pair, to the bit
            np.testing.assert_array_equal(m._Pairs(x, radius).within(every, every, radius), d <= radius)


def test_balls_hold_their_points():
    x = np.random.default_rng(4).uniform(size=(900, 3))
    pairs, order = m._Pairs(x, .2), np.random.default_rng(0).permutation(900)
    leaders, ball = m._leaders(pairs, order, .2, 900)
    assert (ball >= 0).all() and (np.linalg.norm(x[order] - x[leaders[ball]], axis=1) <= .2).all()
    apart = np.linalg.norm(x[leaders][:, None] - x[leaders][None], axis=-1)
    assert (apart[~np.eye(len(leaders), dtype=bool)] > .2).all()
    few, ball = m._leaders(pairs, order, .2, 5)
    assert len(few) == 5 and (ball < 0).any() and (ball < 5).all()


# modes

def test_modes_are_means():
    x = jitter(3000, 16, 6, .01).astype('f4')
    phi = x[:, 0] ** 2
    found = deduplicate(torch.tensor(x), torch.tensor(phi))
    assert len(found) == 6 and not found.fallback and repr(found) == 'Modes: 6 of 3,000 end points, 0 noise'
    for k in range(6):
        np.testing.assert_allclose(found.centres[k], x[found.members == k].astype(float).mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.heights[k], phi[found.members == k].astype(float).mean(), rtol=1e-6)
    np.testing.assert_array_equal(assign(x, found.centres), found.members)


def test_noise_belongs_to_no_mode():
    x = np.r_[np.zeros((10, 3)), [[9., 9, 9]], np.ones((10, 3)) * 3]
    found = deduplicate(x, np.r_[np.ones(10), 100, np.zeros(10)])
    assert found.members[10] == -1
    assert np.allclose(found.heights, [1, 0]) and np.allclose(found.centres, [[0] * 3, [3] * 3])
    assert assign(x, found.centres)[10] == 1


@pytest.mark.parametrize('n, k', [(30, 4), (2000, 20), (150, 4), (6400, 64), (7000, 64)])
def test_kmeans_stands_in_and_says_so(n, k):
    x = 100 * np.random.default_rng(0).normal(size=(n, 5))
    with pytest.warns(UserWarning, match=f'k-means with {k} clusters stands in.*dbscan_eps') as caught:
        found = deduplicate(x, np.zeros(n), seed=1)
    assert caught[0].filename == __file__
    assert found.fallback and len(found) == k and 'k-means' in repr(found)
    assert sorted(np.unique(found.members)) == list(range(k)) and found.centres.shape == (k, 5)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if n < 200: np.testing.assert_array_equal(deduplicate(x, np.zeros(n), seed=1).members, found.members)


def test_nearest_centre():
    g = np.random.default_rng(0)
    for shift in (0, 1e5):
        x, c = g.normal(size=(500, 7)) + shift, g.normal(size=(40, 7)) + shift
        np.testing.assert_array_equal(assign(x, torch.tensor(c)), np.linalg.norm(x[:, None] - c, axis=-1).argmin(1))
    assert assign(x, c[:1]).tolist() == [0] * 500


@pytest.mark.parametrize('call, why', [
    (lambda x, p: deduplicate(x[:4], p[:4]), 'n_samples=4 < min_samples=5'),
    (lambda x, p: deduplicate(x, p[:-1]), '19 values for 20'),
    (lambda x, p: deduplicate(x * np.nan, p), 'endpoints holds 60'),
    (lambda x, p: deduplicate(x, p + np.inf), 'phi holds 20'),
    (lambda x, p: deduplicate(x, p, eps=0), 'eps=0'),
    (lambda x, p: dbscan(x, -1), 'eps=-1'),
    (lambda x, p: dbscan(x, .5, 0), 'min_samples=0'),
    (lambda x, p: dbscan(x[0]), r'\(3,\)'),
    (lambda x, p: assign(x, x[:, :2]), '3 dimensions and centres 2'),
    (lambda x, p: assign(x, x[:0]), r'centres has shape \(0, 3\)'),
    (lambda x, p: dbscan(x, np.nan), 'eps=nan')])
def test_bad_inputs(call, why):
    with pytest.raises(InputError, match=why) as e: call(np.zeros((20, 3)), np.zeros(20))
    assert '\n' not in str(e.value)
