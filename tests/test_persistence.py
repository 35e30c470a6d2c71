"""Merge trees against a sweep over levels, under changes of the height that must not matter, and on inputs that are
hardly graphs."""
import sys
from time import perf_counter

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError

pytest.importorskip('gudhi')

from nmc_workbench.persistence import MergeTree, knn_density, knn_edges, merge_tree, tomato


def random_graph(seed, n=60, degree=1.5, levels=None):
    "Edges in random directions; heights that all differ, or a few levels."
    rng = np.random.default_rng(seed)
    height = rng.permutation(n) / 8 if levels is None else rng.integers(0, levels, n)
    return rng.integers(0, n, (int(degree * n), 2)), height.astype(float)


def components(inside, edges):
    "The connected pieces of the vertices inside, as sets, slowly."
    pieces, left = [], set(inside)
    neighbours = {v: {int(b) for a, b in np.r_[edges, edges[:, ::-1]] if a == v and b in left} for v in left}
    while left:
        piece, front = set(), [left.pop()]
        while front:
            v = front.pop()
            piece.add(v)
            front += neighbours[v] & left
            left -= neighbours[v]
        pieces.append(piece)
    return pieces


def sweep(edges, height):
    "Birth and death by looking at every level anew: pairs of positive persistence, and the births that never die."
    pairs, before = [], []
    for level in np.unique(height)[::-1]:
        now = components(np.flatnonzero(height >= level), edges)
        for piece in now:
            births = sorted((max(height[list(old)]) for old in before if old <= piece), reverse=True)
            pairs += [(b, level) for b in births[1:]]
        before = now
    return sorted(pairs), sorted(max(height[list(piece)]) for piece in before)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('levels', [None, 4])
def test_diagram_is_that_of_a_sweep_over_levels(seed, levels):
    edges, height = random_graph(seed, levels=levels)
    tree = merge_tree(edges, height)
    pairs, immortal = sweep(edges, height)
    assert sorted(map(tuple, tree.diagram.tolist())) == pairs and tree.immortal_births.tolist() == immortal


def climb(edges, height, tau):
    "The original algorithm for one threshold, vertex by vertex: the mode each vertex ends up with."
    neighbours = [set() for _ in height]
    for a, b in edges: neighbours[a].add(int(b)), neighbours[b].add(int(a))
    root = {}
    def find(v):
        while root[v] != v: v = root[v]
        return v
    for v in np.argsort(-height).tolist():
        above = sorted((u for u in neighbours[v] if height[u] > height[v]), key=lambda u: -height[u])
        root[v] = find(above[0]) if above else v
        for u in above[1:]:
            elder, younger = sorted((find(v), find(u)), key=lambda m: -height[m])
            if elder != younger and height[younger] - height[v] < tau: root[younger] = elder
    return [find(v) for v in range(len(height))]


def simple_tree(seed, n=150):
    "A random tree with at most three neighbours a vertex, and heights with which no three hills meet at one saddle."
    rng = np.random.default_rng(seed)
    edges, free = [], [0, 0, 0]
    for v in range(1, n):
        edges.append((free.pop(rng.integers(len(free))), v))
        free += [v, v]
    around = [[a + b - v for a, b in edges if v in (a, b)] for v in range(n)]
    height = rng.permutation(n) / 8
    def pits(): return [v for v in range(n) if len(around[v]) == 3 and height[v] < height[around[v]].min()]
    while pits():
        v = pits()[0]
        u = rng.choice(around[v])
        height[[u, v]] = height[[v, u]]
    return np.array(edges), height


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('shape', ['tree', 'ring'])
def test_labels_are_those_of_the_original_algorithm(seed, shape):
    edges, height = simple_tree(seed)
    if shape == 'ring': edges = np.stack([np.arange(150), (np.arange(150) + 1) % 150], 1)
    tree = merge_tree(edges, height)
    for tau in (0, *np.percentile(tree.persistence[tree.mortal], (10, 30, 60, 90, 100)), np.inf):
        labels, modes = tree.labels(tau=tau), tree.modes[tree.persistence >= tau]
        assert modes[labels].tolist() == climb(edges, height, tau)


def test_a_hill_goes_across_its_saddle_not_to_the_highest_it_has_met():
    "Hill 4 meets hill 10, which has met hill 12 before; with a threshold that keeps both it goes to its neighbour."
    tree = merge_tree([[0, 1], [1, 2], [2, 3], [3, 4]], [12, 5, 10, 3, 4])
    assert tree.parents.tolist() == [-1, 0, 1]
    assert tree.labels(tau=2).tolist() == [0, 0, 1, 1, 1] and tree.labels(tau=6).tolist() == [0] * 5


@pytest.mark.parametrize('seed', range(30))
@pytest.mark.parametrize('degree', [1.1, 3])
def test_labels_are_gudhi_s(seed, degree):
    from gudhi.clustering.tomato import Tomato
    edges, height = random_graph(seed, n=150, degree=degree)
    height += 1e-3 * np.random.default_rng(seed).random(150)      # so that no two persistences are equal
    neighbours = [sorted({int(a + b - v) for a, b in edges if v in (a, b)} - {v}) for v in range(150)]
    theirs = Tomato(graph_type='manual', density_type='manual').fit(neighbours, weights=height)
    tree = merge_tree(edges, height)
    for k in range(len(tree.immortal_births), len(tree.births) + 1, 3):
        theirs.n_clusters_ = k
        np.testing.assert_array_equal(tree.labels(n_clusters=k), theirs.labels_)


@pytest.mark.parametrize('seed', range(5))
def test_parts_of_the_tree_agree(seed):
    edges, height = random_graph(seed, n=200)
    t = merge_tree(edges, height)
    m = t.mortal
    assert (np.diff(t.births) <= 0).all() and (t.parents < np.arange(len(t.parents))).all()
    assert (t.births == height[t.modes]).all() and (t.deaths[m] == height[t.saddles[m]]).all()
    assert (t.saddles[~m] == -1).all() and (t.deaths[~m] == -np.inf).all()
    assert (t.persistence[t.parents[m]] >= t.persistence[m]).all()
    assert (t.leaf[t.modes] == np.arange(len(t.modes))).all()


def test_a_shift_moves_births_and_deaths_only():
    edges, height = random_graph(3, n=300)
    a, b = merge_tree(edges, height), merge_tree(edges, height + 64)
    np.testing.assert_allclose(b.diagram, a.diagram + 64)
    for key in ('modes', 'saddles', 'parents', 'leaf'): np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    np.testing.assert_array_equal(a.labels(n_clusters=30), b.labels(n_clusters=30))


@pytest.mark.parametrize('rescale', [np.exp, np.cbrt, lambda h: 4 * h - 5])
def test_a_monotone_rescale_keeps_the_pairing(rescale):
    "Not the parents, which depend on which persistence is larger, except where persistences keep their order."
    edges, height = random_graph(4, n=300)
    height = height / 8 - 2
    a, b = merge_tree(edges, height), merge_tree(edges, rescale(height))
    keys = ('modes', 'saddles', 'leaf') + ('parents',) * bool(rescale(1.) == -1)
    for key in keys: np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    np.testing.assert_array_equal(b.births, rescale(a.births))


def test_names_of_the_vertices_do_not_matter():
    edges, height = random_graph(5, n=300)
    p = np.random.default_rng(0).permutation(300)
    a, b = merge_tree(edges, height), merge_tree(np.argsort(p)[edges], height[p])
    np.testing.assert_array_equal(a.diagram, b.diagram)
    np.testing.assert_array_equal(a.labels()[p], b.labels())


def test_directions_repetitions_and_loops_do_not_matter():
    edges, height = random_graph(6)
    messy = np.r_[edges, edges[:20, ::-1], [[4, 4], [0, 0]], edges]
    a, b = merge_tree(edges, height), merge_tree(torch.tensor(messy), torch.tensor(height))
    for key in ('births', 'deaths', 'modes', 'saddles', 'parents', 'leaf'):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))


def test_no_edges_and_one_vertex():
    tree = merge_tree([], [1., 3., 2.])
    assert tree.labels(percentile=30).tolist() == [2, 0, 1]
    assert tree.diagram.shape == (0, 2) and tree.immortal_births.tolist() == [1, 2, 3]
    one = merge_tree(np.zeros((0, 2), int), np.float32([4]))
    assert one.labels(tau=np.inf).tolist() == [0] and one.n_clusters(9) == 1
    assert one.tau_of(30) == 0 and one.tau_for(1) == 0
    assert 'immortal' in repr(one)


def test_a_plateau_is_one_component_in_any_order():
    edges, height = random_graph(7, n=80, levels=2)
    for seed in range(5):
        p = np.random.default_rng(seed).permutation(80)
        tree = merge_tree(np.argsort(p)[edges], height[p])
        assert sorted(tree.immortal_births) == sweep(edges, height)[1] and (tree.persistence > 0).all()


def test_equal_heights_apart():
    line = [[0, 1], [1, 2], [2, 3], [3, 4]]
    tree = merge_tree(line, [2, 1, 2, 0, 2])
    assert tree.modes.tolist() == [0, 2, 4] and tree.parents.tolist() == [-1, 0, 0]
    assert tree.labels(tau=1.5).tolist() == [0, 0, 0, 0, 1]


def test_three_ways_to_say_a_threshold():
    edges, height = random_graph(8, n=100)
    tree = merge_tree(edges, height)
    least = len(tree.immortal_births)
    for k in {tree.n_clusters(t) for t in (0, *tree.persistence)}:
        assert tree.n_clusters(tree.tau_for(k)) == k == tree.labels(n_clusters=k).max() + 1
    assert tree.n_clusters(tree.tau_for(least)) == least and np.isfinite(tree.tau_for(least))
    p = np.sort(tree.persistence[tree.mortal])
    assert tree.tau_of(0) == p[0] and tree.tau_of(100) == p[-1]
    assert tree.threshold(percentile=30) == np.percentile(p, 30) and tree.threshold() == 0
    with pytest.raises(InputError, match=f'expected {least} .* to {len(tree.births)}'):
        tree.labels(n_clusters=least - 1)
    with pytest.raises(InputError, match=f'{len(tree.births)}'): tree.tau_for(len(tree.births) + 1)
    with pytest.raises(InputError, match='expected one of them'): tree.labels(tau=0, n_clusters=3)


def test_equal_persistences_go_together():
    tree = merge_tree([[0, 1], [1, 2], [2, 3], [3, 4]], [9, 1, 3, 1, 3])
    with pytest.raises(InputError, match='expected 1 or 3'): tree.tau_for(2)
    assert tree.n_clusters(tree.tau_for(3)) == 3 and tree.n_clusters(tree.tau_for(1)) == 1


@pytest.mark.parametrize('edges, height, why', [
    ([[0, 3]], [1, 2, 3], 'vertices 0 to 3; expected 0 to 2'),
    ([[-1, 0]], [1, 2], 'vertices -1 to 0'),
    ([[0, 1]], [1, np.nan], '1 values'),
    ([[0, 1]], [np.inf, 0], '1 values'),
    ([[0., 1.]], [1, 2], 'float64'),
    ([[0, 1, 2]], [1, 2, 3], r'\(1, 3\)'),
    ([0, 1], [1, 2], r'\(2,\)'),
    ([], [], r'\(0,\)'),
    ([], [[1.]], r'\(1, 1\)'),
    ([], ['a'], 'real numbers')])
def test_bad_graphs(edges, height, why):
    with pytest.raises(InputError, match=why) as e: merge_tree(edges, height)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('wrong', [
    dict(tau=-.1), dict(tau=np.nan), dict(percentile=-1), dict(percentile=100.5), dict(percentile=np.nan)])
def test_bad_thresholds(wrong):
    with pytest.raises(InputError, match='expected'): merge_tree([], [1, 2]).labels(**wrong)


def test_without_gudhi_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gudhi.clustering.tomato', None)
    with pytest.raises(InputError, match='pip install gudhi'): merge_tree([], [1., 2.])


@pytest.mark.timing
def test_relabelling_is_quick():
    rng = np.random.default_rng(0)
    tree = merge_tree(rng.integers(0, 10_000, (15_000, 2)), rng.normal(size=10_000))
    start = perf_counter()
    for p in np.linspace(0, 100, 50): tree.labels(percentile=p)
    assert len(tree.births) > 1000 and perf_counter() - start < 1      # the bench has the figure


def test_a_tree_is_its_arrays(tmp_path):
    tree = merge_tree(*random_graph(9))
    np.savez(tmp_path / 'tree.npz', **vars(tree))
    with np.load(tmp_path / 'tree.npz') as f: again = MergeTree(**f)
    np.testing.assert_array_equal(again.labels(percentile=50), tree.labels(percentile=50))


# from points

def slow_edges(x, k):
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(d, np.inf)
    near = [(i, int(j)) for i, row in enumerate(d) for j in np.argsort(row)[:k] if row[j] < np.inf]
    return sorted({tuple(sorted(pair)) for pair in near})


@pytest.mark.parametrize('n, d, k', [(1, 2, 3), (2, 2, 10), (7, 3, 10), (50, 2, 3), (80, 30, 5)])
def test_nearest_neighbours(n, d, k):
    x = np.random.default_rng(n).normal(size=(n, d))
    edges = knn_edges(x, k)
    assert edges.dtype == np.int64 and edges.shape[1:] == (2,) and list(map(tuple, edges.tolist())) == slow_edges(x, k)


def test_density():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2))
    f = knn_density(x, 50)
    assert np.corrcoef(f, -(x ** 2).sum(1) / 2)[0, 1] > .95      # the normal's own logarithm, up to a constant
    np.testing.assert_allclose(knn_density(10 * x, 50), f - 2 * np.log(10))
    same = np.r_[np.zeros((20, 2)), x[:100]]
    assert np.isfinite(knn_density(same, 5)).all() and (knn_density(np.zeros((9, 2)), 3) == 0).all()
    assert knn_density([[1., 2.]], 3).tolist() == [0]


def test_points_to_clusters():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 5
    x = 8 * np.eye(16)[y] + rng.normal(size=(600, 16))
    tree = tomato(torch.tensor(x), k=15, density_k=40)
    labels = tree.labels(n_clusters=5)
    assert len(set(zip(labels, y))) == 5
    same = merge_tree(knn_edges(x, 15), knn_density(x, 40))
    np.testing.assert_array_equal(same.labels(), tree.labels())
    assert len(tomato([[1., 2.]]).births) == 1


@pytest.mark.parametrize('call, why', [
    (lambda: knn_edges(np.zeros(3)), r'\(3,\)'),
    (lambda: knn_edges([[np.nan]]), 'NaN'),
    (lambda: knn_edges(np.zeros((3, 2)), 0), 'k=0'),
    (lambda: knn_density(np.zeros((0, 2))), r'\(0, 2\)'),
    (lambda: tomato(np.zeros((3, 2)), density_k=0), 'density_k=0')])
def test_bad_points(call, why):
    with pytest.raises(InputError, match=why): call()
