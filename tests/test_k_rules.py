"Rules for the number of clusters: known answers, the order of rows, repeated calls, wrong input, new samples."
import importlib.util
import json

import numpy as np
import pytest
import torch

from nmc_workbench import k_rules
from nmc_workbench.core.errors import InputError
from nmc_workbench.k_rules import RULES, KFound, cosine_silhouette, find_k
from nmc_workbench.metrics import ari

PACKAGES = dict(silhouette_umap='umap', evoc='evoc', plscan='fast_plscan')
QUICK = dict(communities=dict(n_init=1), stability=dict(k_max=7, draws=3), silhouette=dict(k_max=8),
             evoc=dict(min_cluster_size=50))


def there(rule): return importlib.util.find_spec(PACKAGES.get(rule, 'numpy')) is not None
def marks(rule):
    skipped = [pytest.mark.skipif(not there(rule), reason=f'{rule} needs a package')]
    return skipped + [pytest.mark.slow] * (rule == 'silhouette_umap')       # a first map takes its time
def options(rule): return QUICK.get(rule, {})


HERE = [pytest.param(r, marks=marks(r)) for r in RULES]
OWN = [r for r in RULES if r not in PACKAGES]


def directions(n, k=10, d=128, noise=.06, seed=0):
    "Unit vectors around k directions at right angles, and the direction of each."
    g = np.random.default_rng(seed)
    y = g.integers(0, k, n)
    z = np.linalg.qr(g.normal(size=(d, k)))[0].T[y] + noise * g.normal(size=(n, d))
    return (z / np.linalg.norm(z, axis=1)[:, None]).astype('float32'), y


def four(n=240, noise=.15, seed=1):
    "Four groups in eight dimensions, of four sizes, each around a direction of its own."
    g = np.random.default_rng(seed)
    y = g.permutation(np.repeat(np.arange(4), np.array([4, 3, 2, 1]) * (n // 10)))
    return (3 * np.eye(8)[y] + noise * g.normal(size=(len(y), 8))).astype('float32'), y


def test_communities_find_ten_spread_directions():
    z, y = directions(5000)
    found = find_k(z, 'communities', n_init=1, ks=())
    assert found.n_clusters == 10 and ari(y, found.labels) > .99 and found.more['k_range'] == [10, 10]
    assert found.more['covered'] > .99


@pytest.mark.parametrize('rule', HERE)
def test_four_clear_groups(rule):
    # the levels of `four` leave 4 out, and EVoC wants more samples
    sets = dict(hierarchy=lambda: directions(200, 4, 8, .01), evoc=lambda: directions(1000, 4, 32, .05))
    z, y = sets.get(rule, four)()
    found = find_k(z, rule, **options(rule))
    assert found.n_clusters == 4 and ari(y[found.labels >= 0], found.labels[found.labels >= 0]) > .97
    assert found.rule == rule and found.labels.dtype == np.int64 and found.labels.shape == (len(z),)
    assert found.settings['seed'] == 0 and found.settings.items() >= options(rule).items()
    json.dumps(found.summary())


@pytest.mark.parametrize('rule', HERE)
def test_the_order_of_rows_does_not_count_and_calls_agree(rule):
    z, _ = four(noise=.9)
    order = np.random.default_rng(0).permutation(len(z))
    found, again, shuffled = (find_k(a, rule, seed=3, **options(rule)) for a in (z, torch.from_numpy(z), z[order]))
    assert np.array_equal(found.labels, again.labels) and found.summary() == again.summary()
    there = np.array_equal if (found.labels < 0).any() else lambda a, b: ari(a, b) == 1
    assert there(np.unique(found.labels[order]), np.unique(shuffled.labels))
    assert ari(found.labels[order] + 1, shuffled.labels + 1) == 1


@pytest.mark.parametrize('rule', HERE)
def test_labels_go_by_size_and_then_by_smallest_member(rule):
    labels = find_k(four(noise=.9)[0], rule, **options(rule)).labels
    sizes = np.bincount(labels[labels >= 0])
    first = [np.flatnonzero(labels == i)[0] for i in range(len(sizes))]
    assert sizes.min() > 0 and (np.diff(sizes) <= 0).all()
    assert all(a < b for a, b, equal in zip(first, first[1:], np.diff(sizes) == 0) if equal)


@pytest.mark.parametrize('how', ['neighbours', 'centroid'])
@pytest.mark.parametrize('rule', ['communities', 'persistence'])
def test_new_samples(rule, how):
    z, _ = four()
    found = find_k(z, rule, **options(rule))
    new, truth = four(seed=2)
    assert ari(truth, found.predict(z, new, how)) > .99 and (found.predict(z, z, how) == found.labels).mean() > .99


@pytest.mark.parametrize('rule', [p for p in HERE if p.values[0] in ('evoc', 'plscan')])
def test_noise_joins_its_nearest_rows_or_stays(rule):
    z, _ = four(noise=.9)
    joined, kept = find_k(z, rule), find_k(z, rule, join=False)
    noise = kept.labels < 0
    assert noise.any() and (joined.labels >= 0).all() and joined.n_clusters == kept.n_clusters
    assert ari(joined.labels[~noise], kept.labels[~noise]) == 1
    assert joined.more == kept.more and kept.more['covered'] == (~noise).mean() < 1


def test_noise_does_not_vote():
    z, y = four()
    labels = np.where(np.arange(len(y)) % 2, y, -1)
    found = KFound(labels, 4, 'plscan', {}, dict(metric='euclidean'))
    assert (found.predict(z, z, k=1) == y).all() and (found.predict(z, z, 'centroid') == y).all()
    with pytest.raises(InputError, match='all samples are noise'):
        KFound(np.full(len(z), -1), 0, 'plscan', {}, dict(metric='cosine')).predict(z, z)


def test_cosine_silhouette_is_that_of_all_pairs():
    from sklearn.metrics import silhouette_score
    z, y = directions(300, 5, 16, .3)
    y[y == 4] = 3
    y[7] = 4                        # alone in its cluster
    expected = silhouette_score(z, y, metric='cosine')
    assert cosine_silhouette(torch.from_numpy(z), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-5)


def test_small_communities_join_the_most_similar_kept_row():
    z, y = four()
    labels = y.copy()
    labels[np.flatnonzero(y == 1)[:1]] = 4
    kept = k_rules._is_large(labels)
    assert kept.sum() == len(y) - 1
    assert (k_rules._join_others(k_rules._unit(z), labels, kept) == y).all()


def test_coding_length_of_two_groups_by_hand():
    "The bits of every partition into one and two groups, by the formula with a matrix per group."
    g = np.random.default_rng(0)
    x = np.r_[g.normal(size=(20, 2)) + [9, 0], g.normal(size=(20, 2)) - [9, 0]]
    x -= x.mean(0)
    eps2 = .1 * (x ** 2).sum(1).mean()
    def bits(w):
        m, mean, d = len(w), w.mean(0), w.shape[1]
        covariance = np.eye(d) + d / eps2 * np.cov(w.T, bias=True)
        return ((m + d) / 2 * np.log2(np.linalg.det(covariance)) + d / 2 * np.log2(1 + mean @ mean / eps2)
                + m * np.log2(len(x) / m))
    found = find_k(x, 'coding_length')
    assert found.n_clusters == 2 and set(found.labels[:20]) == {0}
    assert found.more['scores']['1'] == pytest.approx(bits(x), rel=1e-5)
    assert found.more['scores']['2'] == pytest.approx(bits(x[:20]) + bits(x[20:]), rel=1e-5)


def test_persistence_counts_pieces_that_never_meet():
    "Five groups so far apart that the graph of neighbours falls into five pieces."
    z = np.concatenate([np.random.default_rng(i).normal(size=(40, 2)) + 100 * i for i in range(5)])
    found = find_k(z, 'persistence')
    assert found.n_clusters == 5 == found.more['pieces']


def test_hierarchy_says_its_levels():
    found = find_k(four()[0], 'hierarchy')
    assert found.more['levels'] == sorted(found.more['levels'], reverse=True) and found.more['levels'][-1] == 1


@pytest.mark.parametrize('rule', OWN)
def test_few_and_repeated_rows(rule):
    g = np.random.default_rng(0)
    for z in (g.normal(size=(4, 3)), np.repeat(np.eye(2, 3) + 1, 10, 0)):
        found = find_k(z, rule)
        assert 1 <= found.n_clusters <= len(z) and len(set(found.labels)) == found.n_clusters


Z = four()[0]
WRONG = dict(
    unknown=(Z, dict(rule='silhuette'), "unknown rule .* did you mean 'silhouette'.* communities"),
    option=(Z, dict(rule='communities', gamma=1), "unknown option of communities 'gamma'.* resolution"),
    few=(Z[:3], {}, r'z has shape \(3, 8\); expected \(n, d\) with at least 4 rows'),
    one_dimension=(Z[:, 0], {}, 'z has shape'),
    nan=(np.where(np.arange(8) == 3, np.nan, Z), {}, 'NaN or infinite'),
    equal=(np.ones((9, 3)), {}, 'all equal'),
    zero=(np.r_[Z, np.zeros((1, 8))], {}, '1 rows of zeros'),
    k_max=(Z[:9], dict(rule='silhouette', k_max=10), 'k_max=10 > n_samples=9'),
    k_max_stability=(Z[:9], dict(rule='stability', k_max=10), 'k_max=10 > n_samples=9'),
    k_max_hierarchy=(Z[:9], dict(rule='hierarchy', k_max=10), 'k_max=10 > n_samples=9'),
    k_max_one=(Z, dict(rule='silhouette', k_max=1), 'k_max=1; expected a whole number of at least 2'),
    neighbours=(Z, dict(rule='communities', k=0), 'k=0'),
    seed=(Z, dict(seed=-1), 'seed=-1'),
    distortion=(Z, dict(rule='coding_length', distortion=0), 'distortion=0'),
    umap=(Z[:14], dict(rule='silhouette_umap'), 'at least 15'))


@pytest.mark.parametrize('name', WRONG)
def test_wrong_input_is_one_line(name):
    z, given, message = WRONG[name]
    with pytest.raises(InputError, match=message) as e: find_k(z, **given)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('rule, install', [('evoc', 'pip install evoc'), ('plscan', 'pip install fast-plscan'),
                                           ('silhouette_umap', 'pip install umap-learn')])
def test_a_package_that_is_absent(rule, install, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, PACKAGES[rule], None)
    with pytest.raises(InputError, match=install): find_k(Z, rule)


@pytest.mark.skipif(not there('silhouette_umap'), reason='needs UMAP')
def test_a_map_leaves_the_threads_of_torch():
    from nmc_workbench.projection import map2d
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        map2d(Z[:60])
        assert torch.get_num_threads() == 1
    finally: torch.set_num_threads(before)
