"What a fitted model and an opened run tell of their clusters, and how they are joined."
import shutil

import numpy as np
import pytest
from sklearn.base import clone

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.diagnostics.clusters import COLUMNS, Edits, cluster_table, hierarchy, merge, reduce_noise
from nmc_workbench.diagnostics.clusters import representatives, tree_hierarchy
from nmc_workbench.methods import NMC, NMCE
from nmc_workbench.methods.base import open_run
from nmc_workbench.persistence import tomato
from nmc_workbench.runs.finished import FinishedRun
from nmc_workbench.runs.label_history import LabelHistory

from .bench.bench_nmc import mixture

KINDS = ['nmce', 'nmc', 'sela', 'deep_cluster', 'anchors']


def groups(n=120, k=4, d=5, seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (g.normal(size=(n, d)) + 9 * np.eye(k, d)[y]).astype('float32'), y


HILLS = mixture(16, 5, seed=0, n_each=60)[0]


def data_of(kind): return load('digits', limit=120) if kind != 'nmc' else HILLS


@pytest.fixture(scope='module')
def run_of(tiny_run, tmp_path_factory):
    "A function from a method to the folder of a run with three clusters or more, where the tiny one has a single one."
    root = tmp_path_factory.mktemp('runs')
    digits = dict(dataset='digits', limit=120, batch_size=60, device='cpu', epochs=1, cluster_epochs=1)
    NMCE(**digits, finetune_epochs=1, n_init=1, hidden_dim=32, z_dim=12, clusters='kmeans',
         run_dir=str(root / 'nmce')).fit(data_of('nmce'))
    NMC(epochs=60, batch_size=100, potential_hidden=32, device='cpu', n_clusters=3,
        run_dir=str(root / 'nmc')).fit(HILLS)
    return lambda kind: root / kind if (root / kind).is_dir() else tiny_run(kind)


def two_of(model): return np.unique(model.found().labels)[-2:].tolist()


# --- arrays


@pytest.mark.parametrize('how', ['shift', 'scale', 'rotation'])
def test_tightness_has_no_unit_and_no_origin(how):
    x, y = groups()
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    z = dict(shift=x + 50, scale=x * 1e-3, rotation=x @ q)[how]
    assert np.allclose(cluster_table(y, x).tightness, cluster_table(y, z).tightness, atol=1e-4)


def test_tightness_is_a_share_of_the_whole():
    x, y = groups()
    t = cluster_table(y, x)
    within = np.average(1 - t.tightness, weights=t['size'])
    assert np.isclose(within, sum(x[y == k].var(0).sum() * (y == k).sum() for k in range(4)) / 120 / x.var(0).sum())
    assert np.isclose(cluster_table(np.zeros(120, int), x).tightness[0], 0, atol=1e-6)
    assert np.isnan(cluster_table([0, 0, 1], np.ones((3, 2))).tightness).all()
    assert cluster_table([0, 1, 1], np.array([[5.], [0], [1]])).tightness[0] == 1


def test_noise_comes_first_and_every_column_is_there():
    x, y = groups()
    labels = np.where(y == 2, -1, y)
    t = cluster_table(labels, x)
    assert t.cluster.tolist() == [-1, 0, 1, 3] and t.columns.tolist() == list(COLUMNS)
    assert t.name.tolist() == ['noise', 'cluster 0', 'cluster 1', 'cluster 3'] and t['size'].tolist() == [30] * 4
    assert np.isnan(t.stability).all() and set(t.stability_over) == {''} and (t.nearest >= 0).all()
    assert cluster_table(np.zeros(120, int), x).nearest.isna().all()
    assert cluster_table(np.full(120, -1), x).name.tolist() == ['noise']
    assert cluster_table(labels, x, names={1: 'owls'}).name[2] == 'owls'


def test_stability_under_views_and_over_epochs():
    x, y = groups()
    views = np.stack([y, np.where((y == 1) & (np.arange(120) < 60), 0, y)])
    views[:, -8:] = -2
    t = cluster_table(y, x, views=views)
    assert t.stability[[0, 2, 3]].tolist() == [1, 1, 1] and set(t.stability_over) == {'2 views'}
    assert np.isclose(t.stability[1], 1 - 15 / (2 * 28))
    past = np.stack([(y + 1) % 4] * 18 + [np.roll(y, 4), (np.where(np.arange(120) == 0, 1, y) + 2) % 4])
    history = LabelHistory(past, [('a', i) for i in range(20)])
    t = cluster_table(y, x, history=history)
    assert set(t.stability_over) == {'last 2 epochs'} and t.stability[1:].tolist() == [1, 1, 1]
    assert np.isclose(t.stability[0], 1 - 1 / 60)


def test_classes_count_where_they_are_known():
    x, y = groups()
    classes = np.where(y == 0, -1, y)
    classes[1], classes[5] = 3, -1
    t = cluster_table(y, x, classes=classes, class_names=['a', 'b'])
    assert t.top_class.tolist() == ['', 'b', '2', '3'] and np.isnan(t.top_share[0])
    assert np.isclose(t.top_share[1], 28 / 29)


def test_probability_is_that_of_the_own_cluster():
    x, y = groups()
    p = np.full((120, 4), .1) + .6 * np.eye(4)[y]
    assert np.allclose(cluster_table(y, x, proba=p).probability, .7)


def test_prototypes_are_the_representatives():
    x, y = groups()
    ids = np.array([f's{i}' for i in range(120)])
    t = cluster_table(y, x, ids=ids)
    for k in range(4): assert t.prototypes[k] == ids[representatives(y, x, k, 3)].tolist()
    far = np.linalg.norm(x[y == 1] - x[y == 1].mean(0), axis=1)
    assert representatives(y, x, 1, 30).tolist() == np.flatnonzero(y == 1)[far.argsort()].tolist()
    spread = representatives(y, x, 1, 9, spread=True)
    assert len(set(spread.tolist())) == 9 and (y[spread] == 1).all()
    assert set(spread.tolist()) != set(representatives(y, x, 1, 9).tolist())


def test_ward_counts_sizes():
    "A merger costs what the sum of squares grows by."
    x, y = groups(90, 3)
    y[:30] = 0
    first = hierarchy(y, x).merges.iloc[0]
    def squares(labels): return sum(x[labels == k].var(0).sum() * (labels == k).sum() for k in np.unique(labels))
    grown = squares(merge(y, first['first'] + first['second'])) - squares(y)
    assert np.isclose(first.distance, np.sqrt(2 * grown), rtol=1e-4)


def test_the_linkage_is_valid_for_scipy():
    from scipy.cluster.hierarchy import dendrogram, is_valid_linkage
    x, y = groups(300, 7, 9)
    h = hierarchy(np.where(y == 5, -1, 3 * y), x)
    assert is_valid_linkage(h.linkage) and len(dendrogram(h.linkage, no_plot=True)['leaves']) == 6
    assert h.merges.n_clusters.tolist() == [5, 4, 3, 2, 1] and h.merges['size'].iloc[-1] == (y != 5).sum()
    assert h.groups(6) == [[k] for k in (0, 3, 6, 9, 12, 18)]
    assert len(hierarchy(np.zeros(3, int), x[:3]).merges) == 0


def test_a_merge_tree_gives_the_order_of_its_threshold():
    from scipy.cluster.hierarchy import is_valid_linkage
    tree = tomato(np.random.default_rng(0).normal(size=(300, 2)), 8, 8)
    for tau in (0., float(np.median(tree.persistence[tree.mortal]))):
        labels = tree.labels(tau=tau)
        h = tree_hierarchy(tree, labels, tau)
        assert is_valid_linkage(h.linkage) and h.sizes.sum() == 300
        for n in range(len(h.clusters), int((~tree.mortal).sum()) - 1, -1):
            coarse = tree.labels(n_clusters=n)
            assert sorted(h.groups(n)) == sorted(np.unique(labels[coarse == k]).tolist() for k in range(n))


def test_edits_follow_each_other():
    x, y = groups()
    labels = np.where(np.arange(120) < 8, -1, y)
    one = Edits().merging(labels, [1, 3])
    after = one.apply(labels, x)
    two = one.reducing_noise(after, x)
    assert (two.apply(labels, x) == np.where(y == 3, 1, y)).all() and (reduce_noise(labels, x) == y).all()
    three = two.merging(two.apply(labels, x), [0, 1])
    again = Edits.from_state(three.state())
    for e in (three, again): assert (e.apply(labels, x) == np.where(y == 2, 2, 0)).all() and e.n_gone == 2
    assert labels[0] == -1


X, Y = groups()
BAD = {
    'no such cluster': (lambda: representatives(Y, X, 9), 'clusters with samples: 0, 1, 2, 3'),
    'no noise': (lambda: representatives(Y, X, -1), 'no sample is in noise'),
    'one cluster': (lambda: merge(Y, [1]), 'two or more'),
    'one cluster twice': (lambda: merge(Y, [1, 1]), 'two or more'),
    'merge an unknown one': (lambda: merge(Y, [1, 9]), 'no sample is in cluster 9'),
    'merge noise': (lambda: merge(np.where(Y == 0, -1, Y), [1, -1]), 'at least 0'),
    'merge a number': (lambda: merge(Y, 3), 'a list of values'),
    'all noise': (lambda: reduce_noise(np.full(120, -1), X), 'all samples are noise'),
    'a hierarchy of noise': (lambda: hierarchy(np.full(120, -1), X), 'all samples are noise'),
    'labels out of step': (lambda: cluster_table(Y[:-1], X), 'labels has 119 entries; expected 120'),
    'nan': (lambda: cluster_table(Y, X * np.nan), 'NaN'),
    'views out of step': (lambda: cluster_table(Y, X, views=[Y[:-1]]), r'expected \(V, 120\)'),
    'ids out of step': (lambda: cluster_table(Y, X, ids=['a']), 'one id per sample'),
    'too few columns': (lambda: cluster_table(Y, X, proba=np.ones((120, 3))), 'a column for each'),
    'classes out of step': (lambda: cluster_table(Y, X, classes=[1]), 'expected 120'),
    'too many groups': (lambda: hierarchy(Y, X).groups(5), 'at most as many'),
    'history out of step': (lambda: cluster_table(Y, X, history=LabelHistory(np.zeros((3, 5), int), [('a', 0)] * 3)),
                            'not of one run'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_line(what):
    call, message = BAD[what]
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)


# --- every method, as it was opened


@pytest.mark.parametrize('kind', KINDS)
def test_an_opened_run_tells_of_its_clusters(run_of, kind):
    run, model = FinishedRun.open(run_of(kind)), open_run(run_of(kind), 'cpu')
    t = model.info()
    assert t.cluster.tolist() == np.unique(run.labels).tolist() and t['size'].sum() == len(run)
    assert set(t.stability_over) == ({'2 views'} if kind != 'nmc' else {''})
    assert (t.stability.isna() | t.stability.between(0, 1)).all() and set(sum(t.prototypes, [])) <= set(run.ids)
    k = int(t.cluster.iloc[-1])
    assert set(model.representatives(k)) <= set(run.ids[run.labels == k])
    assert len(model.representatives(k, 2, spread=True)) <= 2
    assert sorted(model.hierarchy().clusters.tolist()) == np.unique(run.labels).tolist()
    over = model.info(n_views=0).stability_over.unique()
    assert over.tolist() in ([''], ['last 2 epochs'], ['last 1 epoch'])


@pytest.mark.parametrize('kind', KINDS)
def test_a_merger_holds_for_new_samples_and_is_undone(run_of, kind, tmp_path):
    folder, X = run_of(kind), data_of(kind)
    model = open_run(folder, 'cpu')
    before, n = model.predict(X), model.n_clusters_
    labels, pair = model.found().labels, two_of(model)
    assert model.merge(pair) is model and model.n_clusters_ == n - 1
    expected = np.where(before == pair[1], pair[0], before)
    assert (model.predict(X) == expected).all() and (model.labels_ == merge(labels, pair)).all()
    assert pair[1] not in model.predict_views(X, 2) and pair[1] not in model.info().cluster.tolist()
    assert pair[1] not in model.hierarchy().clusters
    with pytest.raises(InputError, match='no sample is in cluster'): model.merge(pair)
    model.save(tmp_path / 'model.pt')
    kept = type(model).load(tmp_path / 'model.pt', 'cpu')
    assert (kept.predict(X) == expected).all() and (kept.labels_ == model.labels_).all() and kept.n_clusters_ == n - 1
    again = open_run(folder, 'cpu')
    assert (again.predict(X) == before).all() and again.n_clusters_ == n and pair[1] in again.info().cluster.tolist()


@pytest.mark.parametrize('kind', ['sela', 'anchors'])
def test_merged_probabilities_are_added(run_of, kind):
    X, model = data_of(kind), open_run(run_of(kind), 'cpu')
    before, pair = model.predict_proba(X), two_of(model)
    after = model.merge(pair).predict_proba(X)
    assert np.allclose(after.sum(1), 1, atol=1e-5) and after.shape == before.shape and (after[:, pair[1]] == 0).all()
    assert np.allclose(after[:, pair[0]], before[:, pair].sum(1))


# --- fitted, and what undoes a merger


def test_a_fitted_model_as_its_run_and_a_fit_undoes_a_merger(tmp_path):
    images = data_of('nmce')
    model = NMCE(dataset='digits', limit=120, batch_size=60, device='cpu', epochs=1, cluster_epochs=1, n_init=1,
                 finetune_epochs=1, hidden_dim=32, z_dim=12, clusters='kmeans', run_dir=str(tmp_path / 'run'))
    model.fit(images)
    opened = open_run(tmp_path / 'run', 'cpu')
    for n_views in (0, 2): assert model.info(n_views).astype(str).equals(opened.info(n_views).astype(str))
    first, pair = model.labels_.copy(), two_of(model)
    model.merge(pair)
    assert set(model.labels_) == set(first) - {pair[1]} and (np.load(tmp_path / 'run/predictions.npy') == first).all()
    assert not vars(clone(model)).get('_edits_of')
    model.run_dir = None
    model.fit(images)
    assert (model.labels_ == first).all() and (model.predict(images) == first).all() and model.n_clusters_ == 10


def test_another_threshold_undoes_a_merger(run_of):
    model = open_run(run_of('nmc'), 'cpu')
    assert model.n_clusters_ == 3
    groups_of_two = model.hierarchy().groups(2)
    pair = next(g for g in groups_of_two if len(g) == 2)
    joined = model.merge(pair).labels_.copy()
    assert model.n_clusters_ == 2
    model.n_clusters_ = 2
    assert len({*zip(joined.tolist(), model.labels_.tolist())}) == 2      # the tree's own order
    model.n_clusters_ = 3
    assert model.n_clusters_ == 3 and len(np.unique(model.labels_)) == 3


def test_noise_of_a_method_goes_to_the_nearest_cluster(run_of, monkeypatch):
    X, kind = data_of('deep_cluster'), type(open_run(run_of('deep_cluster'), 'cpu'))
    usual = kind._label
    def noisy(self, embedding, logits):
        labels = usual(self, embedding, logits)
        return np.where(np.arange(len(labels)) % 3 == 0, -1, labels)
    monkeypatch.setattr(kind, '_label', noisy)
    model = open_run(run_of('deep_cluster'), 'cpu')
    found = model.found()
    model.labels_ = noisy(model, found.embedding, None)
    assert model.info().cluster[0] == -1
    wanted = reduce_noise(model.labels_, found.embedding)
    model.reduce_noise()
    assert (model.labels_ == wanted).all() and (model.predict(X) >= 0).all() and model.info().cluster[0] == 0
    assert (model.predict(X) == wanted).mean() > .99


@pytest.mark.parametrize('name', ['info', 'hierarchy', 'reduce_noise', 'merge', 'representatives'])
def test_what_is_not_fitted_says_so(name, run_of, tmp_path):
    arguments = dict(merge=[[0, 1]], representatives=[0]).get(name, [])
    for model in (NMCE(), NMC()):
        with pytest.raises(InputError, match='not fitted'): getattr(model, name)(*arguments)
    shutil.copy(run_of('nmce') / 'model.pt', tmp_path / 'model.pt')
    with pytest.raises(InputError, match='loaded without its run'):
        getattr(NMCE.load(tmp_path / 'model.pt', 'cpu'), name)(*arguments)


def test_labels_of_another_fit_are_refused(run_of):
    model = open_run(run_of('nmce'), 'cpu')
    model.labels_ = np.zeros(7, int)
    with pytest.raises(InputError, match='labels has 7 entries; expected 120'): model.info(n_views=0)
