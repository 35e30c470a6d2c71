"""Cluster scores against brute force, hand-made tables and symmetries."""
from itertools import permutations

import numpy as np
import pytest
import torch

from nmc_workbench import metrics
from nmc_workbench.core.errors import InputError
from nmc_workbench.metrics import match_labels, renumbered

ALL = ('accuracy', 'greedy_accuracy', 'merge_accuracy', 'purity', 'nmi', 'ari', 'ami')


def draw(n, classes, clusters, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return y, np.where(rng.random(n) < .5, y % clusters, rng.integers(0, clusters, n))


def brute_accuracy(y, labels):
    "Over all one-to-one maps of the cluster ids present into class ids and unused ones."
    clusters, classes = [k for k in np.unique(labels) if k >= 0], list(np.unique(y))
    targets = classes + [-2 - i for i in range(len(clusters))]
    def agreed(p): return sum(np.sum((labels == k) & (y == t)) for k, t in zip(clusters, p))
    return max(map(agreed, permutations(targets, len(clusters)))) / len(y)


@pytest.mark.parametrize('classes, clusters', [(2, 2), (4, 4), (3, 5), (5, 3), (6, 2), (1, 3)])
def test_accuracy_is_the_best_over_permutations(classes, clusters):
    for seed in range(4):
        y, labels = draw(40, classes, clusters, seed)
        labels[::7] = -1
        best = brute_accuracy(y, labels)
        assert metrics.accuracy(y, labels) == pytest.approx(best)
        paired = match_labels(y, labels)
        agreed = [paired.get(k) == c for k, c in zip(labels.tolist(), y.tolist())]
        assert np.mean(agreed) == pytest.approx(best)
        assert len(set(paired.values())) == len(paired) == min(len(np.unique(y)), len(np.unique(labels[labels >= 0])))
        assert metrics.greedy_accuracy(y, labels) <= best + 1e-12 <= metrics.purity(y, labels) + 2e-12


def test_six_by_six_against_all_permutations():
    y, labels = draw(60, 6, 6, 0)
    table = metrics.confusion(y, labels)[0]
    best = max(sum(table[i, p[i]] for i in range(6)) for p in permutations(range(6)))
    assert metrics.accuracy(y, labels) == pytest.approx(best / 60)


@pytest.mark.parametrize('name', ALL)
def test_renaming_and_order_do_not_matter(name):
    score = getattr(metrics, name)
    y, labels = draw(80, 4, 6, 3)
    order = np.random.default_rng(0).permutation(80)
    names = np.array([70, 3, 11, 900, 5, 0])
    want = score(y, labels)
    assert score(y[order], labels[order]) == pytest.approx(want, abs=1e-9)
    assert score(np.array([9, 2, 40, 1])[y], names[labels]) == pytest.approx(want, abs=1e-9)
    for kind in (list, torch.tensor, lambda a: torch.tensor(a, dtype=torch.uint8), lambda a: a.astype(np.int16)):
        assert score(kind(y), kind(labels)) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize('name', ALL)
def test_perfect_clusters_score_one(name):
    y = np.arange(30) % 5
    assert getattr(metrics, name)(y, 7 - y) == pytest.approx(1)


def test_noise_counts_as_wrong():
    y = [0, 0, 1, 1]
    for score in (metrics.accuracy, metrics.greedy_accuracy, metrics.purity):
        assert score(y, [4, 4, -1, -1]) == .5 and score(y, [-1] * 4) == 0
    assert match_labels(y, [-1] * 4) == {}
    s = metrics.scores(y, [4, 4, 4, -1])
    assert s['n_clusters'] == 1 and s['noise'] == .25 and s['acc'] == .5
    assert set(s) == {'acc', 'nmi', 'ari', 'ami', 'purity', 'n_clusters', 'noise'}
    assert all(type(v) in (int, float) for v in s.values())


def test_confusion_and_sizes():
    y, labels = draw(50, 3, 4, 1)
    labels[:5] = -1
    table, clusters, classes = metrics.confusion(y, labels)
    for i, k in enumerate(clusters):
        for j, c in enumerate(classes): assert table[i, j] == np.sum((labels == k) & (y == c))
    assert metrics.cluster_sizes(labels) == dict(zip(clusters.tolist(), table.sum(1).tolist())) and clusters[0] == -1


@pytest.mark.parametrize('n', [1, 3, 12, 40])
def test_the_usual_number_decides_only_where_the_choice_is_free(n):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels, y, usual = rng.integers(-1, 4, n), rng.integers(-1, 4, n), rng.permutation(4)
        both = (labels >= 0) & (y >= 0)
        def worth(p): return sum(np.array(p)[labels[both]] == y[both]), sum(np.array(p) == usual)
        found = match_labels(y, labels, usual)
        assert list(found) == [0, 1, 2, 3] and sorted(found.values()) == [0, 1, 2, 3]
        assert worth([*found.values()]) == max(map(worth, permutations(range(4))))


def test_usual_needs_each_number_once():
    for usual in ([0, 0], [1, 2], [-1, 0]):
        with pytest.raises(InputError, match='usual'): match_labels([0, 1], [0, 1], usual)
    for y, labels in (([0, 2], [0, 1]), ([0, 1], [0, 2]), ([0], [0, 1])):
        with pytest.raises(InputError, match='expected'): match_labels(y, labels, [1, 0])
    assert match_labels([-1, -1], [-1, -1], np.arange(0)) == {}


def test_renumbered_takes_the_numbers_of_the_reference():
    for seed in range(20):
        labels, reference = draw(30, 5, 4, seed)
        labels[::7], reference[::5] = -1, -1
        found = renumbered(labels, reference, free=7)
        assert ((found < 0) == (labels < 0)).all() and found.dtype == np.int64
        pairs = {k: set(found[labels == k].tolist()) for k in np.unique(labels[labels >= 0]).tolist()}
        numbers = [n for [n] in pairs.values()]
        assert len(set(numbers)) == len(numbers)
        alone = sorted(n for n in numbers if n not in reference)
        assert alone == list(range(7, 7 + len(alone)))
        assert all(((labels == k) & (reference == n)).any() for k, [n] in pairs.items() if n < 7)
        known = reference >= 0
        best = brute_accuracy(reference[known], labels[known]) * known.sum()
        assert (found[known] == reference[known]).sum() == pytest.approx(best)


def test_renumbered_by_hand():
    assert renumbered([5, 5, 2, 2, 9, -1], [0, 0, 1, 1, 1, 0]).tolist() == [0, 0, 1, 1, 2, -1]
    assert renumbered([3, 3], [-1, -1]).tolist() == [0, 0] and renumbered([3, 3], [-1, -1], free=4).tolist() == [4, 4]
    assert renumbered([-1, -1], [0, 1]).tolist() == [-1, -1]
    assert renumbered([0, 1, 1], [8, 8, 8]).tolist() == [9, 8, 8]
    with pytest.raises(InputError, match='reference has 1 entries'): renumbered([0, 1], [0])
    with pytest.raises(InputError, match='whole numbers'): renumbered([.5], [0])


BAD = [
    (([0, 1], [0]), 'y has 2 entries, labels 1'),
    (([], []), r'y has shape \(0,\)'),
    (([0., 1.], [0, 1]), 'y has .* dtype float64; expected whole numbers'),
    (([0, 1], torch.rand(2)), 'labels has .* dtype float32; expected whole numbers'),
    (([[0, 1]], [0, 1]), r'y has shape \(1, 2\)'),
    (([0, -1], [0, 1]), '1 of 2'),
    ((['a'], [1]), 'y has .* dtype <U1'),
]


@pytest.mark.parametrize('args, message', BAD)
def test_bad_input_is_one_line(args, message):
    for name in (*ALL, 'confusion', 'match_labels', 'scores'):
        with pytest.raises(InputError, match=message) as e: getattr(metrics, name)(*args)
        assert '\n' not in str(e.value)
