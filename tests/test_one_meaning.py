"One word for one thing: ranks and directions, k-means, confidence, and the name and the colour of a cluster."
import csv
from html import unescape

import numpy as np
import pytest
import torch

from nmc_workbench.cluster import CONFIDENCE, centre_distances, confidence, kmeans_labels, separation
from nmc_workbench.metrics import accuracy, renumbered
from nmc_workbench.plotting.colours import CLASS_PALETTE, PALETTE, class_colour_of, class_colours, cluster_colours
from nmc_workbench.plotting.colours import colour_of, curve_colours
from nmc_workbench.runs.finished import FinishedRun

def groups(n=90, k=3, d=4, seed=0):
    "Samples of k groups, n in all, and the group of each."
    g = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (g.normal(size=(n, d)) + 6 * np.eye(k, d)[y]).astype('float32'), y

# palettes

def test_no_colour_is_of_two_kinds():
    three = cluster_colours(80), class_colours(80), curve_colours(80)
    assert len(set().union(*three)) == 240
    assert not set(PALETTE) & set(CLASS_PALETTE) and class_colours(3) == class_colours(200)[:3]
    assert [class_colour_of(c) for c in range(30)] == class_colours(30) and class_colour_of(2 ** 31).startswith('#')

def test_classes_have_the_colour_of_their_number_in_every_frame():
    from nmc_workbench.plotting.canvas import frame_colours
    y = np.array([5, 2, 5, -1])
    edges, legend = frame_colours(y, None, np.zeros(4, int))
    assert edges == [class_colour_of(c) for c in y]
    assert {text: c for c, text in legend}['5'] == class_colour_of(5)

def test_curves_have_no_colour_of_a_cluster():
    pytest.importorskip('matplotlib')
    from matplotlib.colors import to_hex
    from nmc_workbench.plotting.curves import curves
    rows = [dict(stage='one', epoch=e, step=e, a=1. / (e + 1), b=1., c=2.) for e in range(5)]
    lines = curves(rows, [('all', ['a', 'b', 'c'])]).still.axes[0].lines
    assert [to_hex(line.get_color()) for line in lines[:3]] == curve_colours(3)

# geometry

def texts(figure): return ' '.join(str(t.get_text()) for t in figure.findobj(lambda t: hasattr(t, 'get_text')))

def test_rank_and_directions_have_two_names():
    pytest.importorskip('matplotlib')
    from nmc_workbench.diagnostics.geometry import cluster_spectra, subspace_angles
    from nmc_workbench.plotting.geometry import angle_matrix, rate_bars
    g = np.random.default_rng(0)
    z = g.normal(size=(200, 20)) * np.geomspace(1, .03, 20)
    z, labels = (z / np.linalg.norm(z, axis=1)[:, None]).astype('float32'), np.arange(200) % 2
    ranks = [s.dimension for s in cluster_spectra(z, labels).values()]
    directions = subspace_angles(z, labels).dimensions
    assert min(ranks) > max(directions)             # two counts, which one word must not name
    rates, angles = rate_bars(z, labels, .1), angle_matrix(z, labels)
    assert 'rank of each cluster: singular values above 1 % of the largest' in texts(rates.still)
    assert 'directions with 95 % of the squares' in texts(angles.still)
    for picture in (rates, angles):
        assert 'dimension' not in texts(picture.still)
        if picture.interactive is not None: assert 'dimension' not in picture.interactive.to_json()

# k-means

@pytest.mark.parametrize('kind', ['nmce', 'nmc', 'sela', 'deep_cluster', 'anchors'])
def test_k_means_says_the_same_in_training_and_in_evaluate(tiny_run, kind):
    from nmc_workbench.evaluation.features import in_run_order
    from nmc_workbench.evaluation.protocols import evaluate
    run = FinishedRun.open(tiny_run(kind))
    k, x, y = 7, run.embedding, run.class_labels
    if y is None: y = np.arange(len(x)) % 3
    g = torch.Generator().manual_seed(1)
    place = torch.randperm(len(x), generator=g).numpy()
    one, two = np.sort(place[::2]), np.sort(place[1::2])
    order = in_run_order(np.concatenate([run.ids[one], run.ids[two]]), run.folder)
    whole = np.concatenate([x[one], x[two]])[order], np.concatenate([y[one], y[two]])[order]
    assert np.array_equal(whole[0], x)
    found = evaluate(x[one], y[one], x[two], y[two], ['kmeans'], whole, n_clusters=k, device='cpu')['kmeans']['acc']
    assert found == accuracy(y, kmeans_labels(x, k))

def test_samples_that_a_run_does_not_hold_come_last(tmp_path):
    from nmc_workbench.evaluation.features import in_run_order
    np.save(tmp_path / 'ids.npy', np.array(['a', 'b', 'c']))
    assert in_run_order(np.array(['x', 'c', 'a']), tmp_path).tolist() == [2, 1, 0]
    assert in_run_order(np.array(['x', 'c', 'a']), tmp_path / 'none').tolist() == [0, 1, 2]

# confidence

def test_confidence_is_the_share_of_the_cluster_that_is_less_sure():
    x, labels = groups()
    labels = np.where(np.arange(90) < 4, -1, labels)
    own, other = centre_distances(x, labels)
    sure = confidence(own, other, labels)
    for k in range(3):
        mine = labels == k
        assert np.allclose(np.sort(sure[mine]), np.linspace(0, 1, mine.sum()))
        assert np.array_equal(np.argsort(sure[mine]), np.argsort(separation(own, other)[mine]))
    assert (sure[labels < 0] == 0).all()

@pytest.mark.parametrize('how', ['shift', 'scale', 'rotation'])
def test_confidence_does_not_depend_on_origin_and_unit(how):
    x, labels = groups(d=3)
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    moved = dict(shift=x + 5, scale=x * 1000, rotation=x @ q)[how].astype('float32')
    a, b = (confidence(*centre_distances(z, labels), labels) for z in (x, moved))
    assert np.abs(a - b).max() < .1 and np.abs(a - b).mean() < .005

def test_one_cluster_is_ranked_by_distance_and_one_sample_is_sure():
    x = np.array([[0.], [1.], [5.]])
    sure = confidence(*centre_distances(x, np.zeros(3, int)), np.zeros(3, int))
    assert sure.tolist() == [.5, 1, 0]
    assert confidence(*centre_distances(x, np.arange(3)), np.arange(3)).tolist() == [1, 1, 1]
    assert confidence(*centre_distances(x, -np.ones(3, int)), -np.ones(3, int)).tolist() == [0, 0, 0]

def test_its_meaning_stands_beside_it(tiny_run, tmp_path):
    pytest.importorskip('ipywidgets')
    from nmc_workbench.explore.explorer import Explorer
    e = Explorer(tiny_run('nmce'), map_method='pca')
    i = int(np.flatnonzero(e.labels >= 0)[0])
    assert f'confidence {e.sure[i]:.2f}: surer than {e.sure[i]:.0%} of its cluster' in e.text_of(i)
    e.colour_menu.value = 'confidence'
    assert e.map._told['key']['title'] == f'confidence: {CONFIDENCE}'
    path = e.export_csv(tmp_path / 'labels.csv')
    assert CONFIDENCE in unescape(e.message.value)
    rows = list(csv.DictReader(path.open(encoding='utf-8')))
    assert np.allclose([float(r['confidence']) for r in rows], e.sure, atol=1e-4)
    apart = separation(*centre_distances(e.run.embedding, e.labels))
    means = [apart[e.labels == k].mean() for k in e.clusters]
    assert np.allclose(e.bars.figure.data[1].y, means, atol=1e-3) and e.bars.figure.data[1].name == 'separation'

# one name and one colour per cluster

def test_the_panel_of_an_explorer_names_and_paints_clusters_as_the_map_does(tiny_run):
    for name in ('gudhi', 'ipywidgets'): pytest.importorskip(name)
    from nmc_workbench.explore.explorer import Explorer
    e = Explorer(tiny_run('nmc'), map_method='pca')
    lab = e.threshold_lab
    for tau in {lab.tau, 0., float(np.median(lab.tree.persistence[lab.tree.mortal]) if lab.tree.mortal.any() else 0)}:
        lab.tau = tau
        assert np.array_equal(lab.labels, e.labels)
        codes = np.asarray(lab.diagram.trace('points').marker.color)
        palette = [c for _, c in lab.diagram.trace('points').marker.colorscale][::2]
        names = lab.diagram.trace('points').text
        for i in lab.alive.tolist():
            k = int(lab.labels[lab.component == i][0]) if (lab.component == i).any() else int(lab.numbers[i])
            assert palette[codes[i]] == colour_of(k % 64) and lab.name(i) == f'cluster {k}' == names[i][:-4]
            assert e._map_colours()[1][k] == colour_of(k)

def test_still_pictures_use_the_same_names_and_colours():
    for name in ('gudhi', 'matplotlib'): pytest.importorskip(name)
    from matplotlib.colors import to_hex
    from nmc_workbench.persistence import tomato
    from nmc_workbench.plotting.merge_tree import merging_picture
    from nmc_workbench.plotting.persistence import persistence_picture
    x, _ = groups(300, 3, 2)
    tree = tomato(x, 8, 8)
    tau = tree.tau_for(4)
    one, two = persistence_picture(tree, tau).still.axes[1], merging_picture(tree, tree.leaf, x, tau).still.axes
    assert [to_hex(b.get_facecolor()) for b in one.patches] == [to_hex(b.get_facecolor()) for b in two[1].patches]
    assert [t.get_text() for t in one.get_yticklabels()] == [t.get_text() for t in two[1].get_yticklabels()]
    painted = [to_hex(c) for c in two[2].collections[0].get_facecolors()]
    assert painted == [colour_of(k) for k in tree.labels(tau=tau)]

# the persistence page

def written(folder, x, labels):
    "The folder of a finished run of another method than NMC."
    from nmc_workbench.core.files import write_array, write_json
    write_json(folder / 'config.json', dict(method='NMCE', dataset='toy', seed=0))
    for name, array in dict(embeddings=x, predictions=labels, map2d=x[:, :2]).items():
        write_array(folder / f'{name}.npy', array)
    return folder

def test_a_run_opens_with_its_own_clusters(tmp_path):
    for name in ('gudhi', 'ipywidgets'): pytest.importorskip(name)
    from nmc_workbench.explore.persistence_lab import PersistenceLab
    x, y = groups(600, 4, 6)
    run = np.array([3, 0, 2, 1])[y]                 # numbers of its own
    lab = PersistenceLab.of_run(written(tmp_path / 'run', x, run))
    assert lab.n_clusters == 4 and (lab.labels == run).mean() > .95
    assert not [n for n in lab.notes if 'density' in n]
    lab.tau = 0
    assert np.array_equal(lab.labels, renumbered(lab.tree.labels(tau=0), run)) and lab.n_clusters >= 4

def test_it_says_where_the_density_does_not_support_the_run(tmp_path):
    for name in ('gudhi', 'ipywidgets'): pytest.importorskip(name)
    from nmc_workbench.explore.persistence_lab import PersistenceLab
    x, _ = groups(600, 4, 6)
    at_random = np.random.default_rng(0).integers(0, 4, 600)
    lab = PersistenceLab.of_run(written(tmp_path / 'run', x, at_random))
    said = [n for n in lab.notes if "does not support the run's 4 clusters" in n]
    assert lab.n_clusters == 4 and len(said) == 1 and '% of the samples' in said[0]
    assert said[0] in unescape(lab.summary.value)
    two = PersistenceLab.of_run(written(tmp_path / 'two', x, np.arange(600) % 2), k=5)
    if (~two.tree.mortal).sum() > 2:                # four groups apart: no threshold leaves two
        assert 'no threshold gives as many' in ' '.join(two.notes) and two.n_clusters >= 3

def test_one_page_tells_what_the_words_mean():
    from pathlib import Path
    root = Path(__file__).parents[1]
    assert 'other samples of its cluster that are less sure' in (root / 'docs/pages/howto/export_labels.md').read_text()
