"Plots show the numbers they are given, where they belong."
import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.labels import cluster_name
from nmc_workbench.metrics import accuracy, match_labels
from nmc_workbench.plotting.confusion import confusion_matrix, matched_counts, sizes
from nmc_workbench.plotting.curves import _apart, _stage_levels, curves
from nmc_workbench.plotting.embedding import embedding_map, points
from nmc_workbench.plotting.geometry import spectra
from nmc_workbench.projection import map2d

from tests.toys import clustering, metrics, png

pytest.importorskip('matplotlib')

@pytest.fixture(scope='module')
def toy(): return clustering()

# curves

def test_stages_are_laid_end_to_end():
    axes = curves(metrics(), [('loss', ['loss'])]).still.axes[0]
    x, y = axes.lines[0].get_data()
    assert x[~np.isnan(y)].tolist() == list(range(1, 9))
    assert np.isnan(y).sum() == 1           # a break, so that no line joins two stages
    assert [t.get_text() for t in axes.texts] == ['first', 'second']
    assert any(np.allclose(line.get_xdata(), 5.5) for line in axes.lines)

def test_a_repeated_epoch_counts_once_and_missing_metrics_leave_no_panel():
    rows = metrics() + [dict(stage='second', epoch=2, loss=7.)]
    axes = curves(rows, [('loss', ['loss']), ('absent', ['nothing'])]).still.axes
    assert len(axes) == 1
    y = axes[0].lines[0].get_ydata()
    assert len(y) == 9 and y[-1] == 7

def test_limits_are_drawn_still_and_interactive():
    limits = {'R': (3., 'largest'), 'loss': (.25, 'least')}
    picture = curves(metrics(R=2.), [('loss', ['loss']), ('rate', ['R'])], limits)
    for axes, value, text in zip(picture.still.axes, (.25, 3.), ('least', 'largest')):
        assert any(line.get_linestyle() == '--' and np.allclose(line.get_ydata(), value) for line in axes.lines)
        assert text in [t.get_text() for t in axes.texts] and axes.get_ylim()[0] < value < axes.get_ylim()[1]
    layout = picture.interactive.to_plotly_json()['layout']
    assert {3., .25} <= {s['y0'] for s in layout['shapes']}
    assert {'least', 'largest'} <= {a['text'] for a in layout['annotations']}

def test_texts_of_close_limits_do_not_overlap():
    at = _apart([1.0, 1.01, .99, 5], 0, 5)
    assert np.diff(np.sort(at)).min() >= .08 - 1e-9 and at[2] < at[0] < at[1] < at[3] <= 1
    assert _apart([], 0, 1) == []

@pytest.mark.parametrize('rows, key, said', [
    ([], 'a', 'no dict with an "epoch"'),
    ([dict(loss=1)], 'loss', 'no dict with an "epoch"'),
    ([dict(epoch=0, loss=1.)], 'acc', 'no row has any of acc; .* logged metrics: loss')])
def test_curves_without_anything_to_show(rows, key, said):
    with pytest.raises(InputError, match=said): curves(rows, [('a', [key])])

@pytest.mark.parametrize('n, columns', [(1, 1), (2, 2), (3, 3), (4, 2), (5, 2)])
def test_up_to_three_panels_share_a_row(n, columns):
    picture = curves(metrics(), [(f'loss {i}', ['loss']) for i in range(n)])
    assert picture.still.axes[0].get_gridspec().ncols == columns
    assert [a.get_title('left') for a in picture.still.axes[:n]] == [f'loss {i}' for i in range(n)]
    figure = picture.interactive
    starts = [figure.layout[f'xaxis{i + 1 if i else ""}'].domain[0] for i in range(n)]
    assert len(set(starts)) == columns
    titles = [a for a in figure.layout.annotations if '<b>' in a.text]
    assert [a.text for a in titles] == [f'<b>loss {i}</b>' for i in range(n)]
    # a title begins where its panel does; the mode bar is a column in the margin
    wanted = [(0, f'x{i + 1 if i else ""} domain', 'left') for i in range(n)]
    assert [(a.x, a.xref, a.xanchor) for a in titles] == wanted and figure.layout.modebar.orientation == 'v'

def test_stage_names_do_not_overlap():
    assert _stage_levels([(1, 'first'), (51, 'second')], 100, .01) == [0, 0]
    assert _stage_levels([(1, 'first'), (3, 'second'), (4, 'third'), (90, 'last')], 100, .01) == [0, 1, 2, 0]
    assert _stage_levels([(1, '')], 100, .01) == []
    rows = [dict(stage=s, epoch=e, loss=1.) for s in ('self-supervised', 'heads', 'fine-tune') for e in range(3)]
    figure = curves(rows, [(f'loss {i}', ['loss']) for i in range(3)]).interactive
    shifts = [a.yshift for a in figure.layout.annotations if a.xref == 'x']
    assert shifts == [0, 12, 0]
    assert all(a.yshift > 24 for a in figure.layout.annotations if '<b>' in a.text)        # titles stand above them

# clusters against classes

def test_matched_pairs_are_on_the_diagonal_and_maximal():
    from itertools import permutations
    g = np.random.default_rng(1)
    y, labels = g.integers(0, 5, 300), g.integers(0, 5, 300)
    counts, rows, columns, pairs = matched_counts(y, labels)
    assert pairs == 5 and counts.sum() == 300
    assert np.trace(counts) == max(sum(counts[i, p[i]] for i in range(5)) for p in permutations(range(5)))
    for (i, j), n in np.ndenumerate(counts): assert n == ((labels == rows[i]) & (y == columns[j])).sum()

def test_diagonal_after_renaming_clusters():
    y = np.repeat(np.arange(4), 5)
    counts, rows, columns, _ = matched_counts(y, np.array([2, 0, 3, 1])[y])
    assert rows == [0, 1, 2, 3] and columns == [1, 3, 0, 2] and (counts == 5 * np.eye(4)).all()

@pytest.mark.parametrize('k, classes', [(2, 6), (7, 3), (1, 4), (1, 1)])
def test_more_clusters_than_classes_and_fewer(k, classes):
    g = np.random.default_rng(2)
    y = np.r_[np.arange(classes), g.integers(0, classes, 200)]
    labels = np.r_[np.zeros(classes, int), g.integers(0, k, 200)]
    labels[-9:], y[:1] = -1, -1         # some noise, one unknown class
    counts, rows, columns, pairs = matched_counts(y, labels)
    assert pairs == min(k, len(set(y[y >= 0]))) and rows[-1] == -1 and counts.sum() == (y >= 0).sum()
    assert sorted(rows[:-1]) == list(range(k)) and sorted(columns) == sorted(set(y[y >= 0].tolist()))
    assert png(confusion_matrix(y, labels)).width > 100

def test_noise_only_and_unknown_only():
    counts, rows, columns, pairs = matched_counts([0, 1, 1], [-1, -1, -1])
    assert rows == [-1] and pairs == 0 and counts.tolist() == [[1, 2]]
    assert png(confusion_matrix([0, 1, 1], [-1, -1, -1])).width > 100
    with pytest.raises(InputError, match='no known class'): matched_counts([-1, -1], [0, 1])

def test_confusion_hover_has_the_counts(toy):
    z = confusion_matrix(toy['y'], toy['labels'], list('abcd')).interactive.data[0]
    counts, rows, *_ = matched_counts(toy['y'], toy['labels'])
    assert np.allclose(np.asarray(z.z), (counts / counts.sum(1, keepdims=True)).round(4))
    assert f'{counts[0, 0]} samples' in z.customdata[0][0] and z.customdata[0][0].startswith(f'cluster {rows[0]}')

def test_matched_counts_agree_with_the_metrics():
    g = np.random.default_rng(3)
    for _ in range(50):
        k, classes, n = g.integers(1, 9, 3) + [0, 0, 10]
        y, labels = g.integers(0, classes, n), g.integers(-1, k, n)
        counts, rows, columns, pairs = matched_counts(y, labels)
        assert np.isclose(np.trace(counts[:pairs, :pairs]), accuracy(y, labels) * n)
        assert match_labels(y, labels).items() <= dict(zip(rows[:pairs], columns)).items()

def test_empty_clusters_have_a_row_unless_ids_are_far_apart():
    counts, rows, columns, pairs = matched_counts([0, 0, 1, 2], [0, 0, 3, 3])
    assert sorted(rows) == [0, 1, 2, 3] and pairs == 3 and counts.sum() == 4
    assert [counts.sum(1)[rows.index(k)] for k in (1, 2)] == [0, 0]
    assert matched_counts([0, 1], [5, 900])[1] == [5, 900]
    assert matched_counts([0, 1], [-2, 0])[1] == [0, -1]

# spectra and maps

def test_spectra_are_those_of_each_cluster():
    x = np.zeros((8, 3), 'f4')
    x[:3], x[3:6] = np.diag([4., 2, 1]), np.diag([6., 6, 0])
    axes = spectra(x, [0, 0, 0, 1, 1, 1, -1, -1]).still.axes
    assert [line.get_ydata().round(5).tolist() for line in axes[1].lines] == [[1, .5, .25], [1, 1, 0]]
    values, whole = np.linalg.svd(x)[1], axes[0].lines[0]
    assert np.allclose(whole.get_ydata(), values / values[0]) and whole.get_xdata()[0] == 1
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == ['0 · 3', '1 · 3']
    assert len(spectra(x, np.zeros(8, int), max_rank=2, log=True).still.axes[1].lines[0].get_ydata()) == 2

def test_pca_against_scikit_learn(toy):
    from sklearn.decomposition import PCA
    ours, theirs = map2d(toy['z'], 'pca'), PCA(2).fit_transform(toy['z'])
    assert np.allclose(np.abs((ours * theirs).sum(0)), (theirs ** 2).sum(0), rtol=1e-4)       # equal up to sign
    assert np.allclose(ours, map2d(torch.from_numpy(toy['z']), 'pca'))

def test_few_samples_and_one_dimension_fall_back_to_pca():
    assert map2d(np.random.default_rng(0).normal(size=(5, 3)), 'umap').shape == (5, 2)
    assert np.allclose(map2d(np.arange(4.)[:, None], 'pca')[:, 1], 0)
    with pytest.raises(InputError, match='tsne'): map2d(np.zeros((4, 2)), 'tsne')
    with pytest.raises(InputError, match='NaN'): map2d(np.full((4, 2), np.nan), 'pca')

@pytest.mark.slow
def test_umap_is_repeatable_and_quiet(toy, recwarn):
    pytest.importorskip('umap')
    first = map2d(toy['z'], seed=3)
    assert first.shape == (120, 2) and np.array_equal(first, map2d(toy['z'], seed=3))
    assert not [w for w in recwarn if 'n_jobs' in str(w.message)]

def test_map_points_stand_where_they_should(toy):
    x = np.random.default_rng(0).normal(size=(120, 2)).round(3)
    picture = embedding_map(x, toy['labels'], toy['y'], names=list('abcd'), hover=[f'id{i}' for i in range(120)])
    drawn = {tuple(p) for c in picture.still.axes[0].collections for p in np.asarray(c.get_offsets()).round(3).tolist()}
    assert len(drawn) == 120 and np.allclose(sorted(drawn), sorted(map(tuple, x.tolist())), atol=2e-3)
    texts = [t for trace in picture.interactive.data for t in (trace.text or ())]
    pairs = enumerate(zip(toy['labels'], toy['y']))
    assert sorted(texts) == sorted(f'id{i}<br>{cluster_name(k)}<br>class {"abcd"[c]}' for i, (k, c) in pairs)
    rings = [t for t in picture.interactive.data if t.name == 'outside matched class'][0]
    assert len(rings.x) == ((toy['labels'] != toy['y']) & (toy['labels'] >= 0)).sum()
    assert picture.still.axes[0].get_aspect() == 1 and picture.interactive.layout.yaxis.scaleanchor == 'x'

def test_large_maps_stay_small():
    g = np.random.default_rng(0)
    picture = embedding_map(g.normal(size=(20_000, 2)), g.integers(0, 5, 20_000))
    figure = picture.interactive
    assert sum(len(t.x) for t in figure.data) == 10_000 and '10,000 shown' in figure.layout.title.text
    assert len(figure.to_json()) < 1_000_000 and figure.data[0].type == 'scattergl'

def test_sizes_counts_and_the_equal_line():
    axes = sizes([0, 0, 0, 1, 3, -1, -1], n_clusters=5).still.axes[0]
    assert [b.get_height() for b in axes.patches] == [3, 1, 0, 1, 0, 2] and axes.lines[0].get_ydata()[0] == 1
    assert png(sizes([-1, -1])).width > 100

# inputs

@pytest.mark.parametrize('call', [
    lambda t: spectra(t['z'], t['z'][:, 0]),
    lambda t: confusion_matrix(t['y'][:4], t['labels']),
    lambda t: points(t['z']),
    lambda t: embedding_map(t['z'] * np.nan, t['labels']),
    lambda t: sizes([])])
def test_wrong_input_is_one_line(toy, call):
    with pytest.raises(InputError) as e: call(toy)
    assert '\n' not in str(e.value) and 'expected' in str(e.value)
