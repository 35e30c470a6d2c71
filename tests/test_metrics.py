"""Cluster scores against brute force, hand-made tables and symmetries."""
from itertools import permutations

import numpy as np
import pytest
import torch

from nmc_workbench import metrics
from nmc_workbench.core.errors import InputError

ALL = ('accuracy', 'greedy_accuracy', 'merge_accuracy', 'purity', 'nmi', 'ari', 'ami')


def draw(n, classes, clusters, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return y, np.where(rng.random(n) < .5, y % clusters, rng.integers(0, clusters, n))


def brute_accuracy(y, labels):
    "Over all one-to-one maps of the cluster ids present into class ids and unused ones."
    clusters, classes = [k for k in np.unique(labels) if k >= 0], list(np.unique(y))
    targets = classes + [-2 - i for i in range(len(clusters))]
    return max(sum(np.sum((labels == k) & (y == t)) for k, t in zip(clusters, p)) for p in permutations(targets, len(clusters))) / len(y)


@pytest.mark.parametrize('classes, clusters', [(2, 2), (4, 4), (3, 5), (5, 3), (6, 2), (1, 3)])
def test_accuracy_is_the_best_over_permutations(classes, clusters):
    for seed in range(4):
        y, labels = draw(40, classes, clusters, seed)
        labels[::7] = -1
        best = brute_accuracy(y, labels)
        assert metrics.accuracy(y, labels) == pytest.approx(best)
        paired = metrics.match(y, labels)
        assert np.mean([paired.get(k) == c for k, c in zip(labels.tolist(), y.tolist())]) == pytest.approx(best)
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
    assert metrics.accuracy(y, [4, 4, -1, -1]) == metrics.greedy_accuracy(y, [4, 4, -1, -1]) == metrics.purity(y, [4, 4, -1, -1]) == .5
    nothing = [-1] * 4
    assert metrics.accuracy(y, nothing) == metrics.greedy_accuracy(y, nothing) == metrics.purity(y, nothing) == 0 and metrics.match(y, nothing) == {}
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
    assert metrics.cluster_sizes(labels) == {k: n for k, n in zip(clusters.tolist(), table.sum(1).tolist())} and clusters[0] == -1


BAD = [(([0, 1], [0]), 'y has 2 entries, labels 1'), (([], []), r'y has shape \(0,\)'), (([0., 1.], [0, 1]), 'y holds float64'),
       (([0, 1], torch.rand(2)), 'labels holds float32'), (([[0, 1]], [0, 1]), r'y has shape \(1, 2\)'), (([0, -1], [0, 1]), '1 of 2'), ((['a'], [1]), 'y holds')]


@pytest.mark.parametrize('args, message', BAD)
def test_bad_input_is_one_line(args, message):
    for name in (*ALL, 'confusion', 'match', 'scores'):
        with pytest.raises(InputError, match=message) as e: getattr(metrics, name)(*args)
        assert '\n' not in str(e.value)
