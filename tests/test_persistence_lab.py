"The persistence lab without a browser: what the widgets do, and what a page is sent."
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError

for name in ('gudhi', 'matplotlib', 'plotly', 'anywidget'): pytest.importorskip(name)

from nmc_workbench.data.images import Images
from nmc_workbench.explore.persistence_figures import tau_line, tau_of_line
from nmc_workbench.explore.persistence_lab import PersistenceLab
from nmc_workbench.methods import NMC
from nmc_workbench.metrics import accuracy, nmi, renumbered
from nmc_workbench.persistence import knn_edges, members, merge_tree, survivors, tomato, widest_gap
from nmc_workbench.plotting.colours import NOISE_COLOUR, cluster_colours, colour_of
from nmc_workbench.plotting.merge_tree import (
    component_colours, component_sheet, component_text, merging_picture, steps_picture)
from nmc_workbench.runs.index import newest_run

from .processes import python
from .toys import png

ROOT = Path(__file__).resolve().parents[1]


def groups(n=600, seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % 4
    return (np.array([[0, 0], [5, 0], [0, 5], [8, 8]])[y] + g.normal(size=(n, 2))).astype('f4'), y


@pytest.fixture()
def lab():
    x, y = groups()
    return PersistenceLab.of_points(x, 15, 25, class_labels=y)


@pytest.fixture(scope='module')
def runs(tiny_run, tmp_path_factory):
    "A run of NMC on points, and one of NMCE on images."
    root = tmp_path_factory.mktemp('runs')
    x, y = groups(400)
    nmc = NMC(epochs=40, batch_size=50, potential_hidden=48, noise_low=.05, noise_high=.3, lr=1e-2, device='cpu',
              run_dir=str(root / 'hills'))
    shutil.copytree(tiny_run('nmce'), root / 'digits')
    return root, nmc.fit(x, y)


def taus(tree): return sorted([0, *tree.persistence[tree.mortal], widest_gap(tree), np.inf])


@pytest.mark.parametrize('seed', range(4))
def test_survivors_and_members(seed):
    g = np.random.default_rng(seed)
    tree = merge_tree(knn_edges(g.normal(size=(150, 3)), 4), g.normal(size=150).round(1))       # with ties
    for tau in taus(tree):
        up = survivors(tree, tau)
        assert np.array_equal(np.unique(up[tree.leaf], return_inverse=True)[1], tree.labels(tau=tau))
        for start in range(len(up)):        # up the tree, one component at a time
            i = start
            while tree.persistence[i] < tau: i = tree.parents[i]
            assert up[start] == i
        for i in range(0, len(up), 7):
            found = members(tree, tree.leaf, i, tau)
            if up[i] == i: assert np.array_equal(found, np.flatnonzero(up[tree.leaf] == i))
            else: assert len(found) >= (tree.leaf == i).sum() > 0


def test_a_threshold_gives_labels_and_colours(lab):
    for tau in taus(lab.tree):
        lab.tau = tau
        colours = component_colours(lab.tree, tau)
        assert np.array_equal(lab.labels, lab.tree.labels(tau=tau))
        assert lab.n_clusters == lab.tree.n_clusters(tau) == lab.n_slider.value
        y, labels = lab.class_labels, lab.labels
        assert lab.scores() == dict(ACC=accuracy(y, labels), NMI=nmi(y, labels))
        assert (lab.colours == colours[lab.component]).all()
        assert lab.colours.tolist() == [colour_of(k) for k in lab.labels % 64]
        drawn = np.array(cluster_colours(64) + [NOISE_COLOUR])
        assert (drawn[lab.map.trace('samples').marker.color] == lab.colours).all()
        lives = lab.tree.persistence >= tau
        assert (drawn[lab.diagram.trace('points').marker.color] == np.where(lives, colours, NOISE_COLOUR)).all()
        assert f'<b>{lab.n_clusters}</b> of {len(lab.up)} components' in lab.summary.value


def test_the_survivors_take_the_numbers_of_the_run_s_clusters(lab):
    lab.n_clusters = 5
    run = np.array([7, 3, 0, 9, 4])[lab.labels]
    own = PersistenceLab(lab.tree, lab.component, lab.where, tau=lab.tau, run_labels=run)
    assert np.array_equal(own.labels, run) and own.colours.tolist() == [colour_of(k) for k in run]
    assert sorted(own.name(i) for i in own.alive) == [f'cluster {k}' for k in (0, 3, 4, 7, 9)]
    for n in (3, 8):
        own.n_clusters = n
        colours = own.colours.tolist()
        assert own.n_clusters == len(set(own.labels)) == n and colours == [colour_of(k) for k in own.labels]
        assert set(own.labels) <= set(run) if n == 3 else set(own.labels) >= set(run)


def test_sliders_line_and_attributes_do_the_same(lab):
    x, y = groups()
    other = PersistenceLab.of_points(x, 15, 25)
    for k in range(lab.n_slider.min, 8):
        lab.n_clusters, other.n_slider.value = k, k
        assert np.array_equal(lab.labels, other.labels) and lab.tau == other.tau and lab.n_clusters == k
    value = 37 * other.tau_slider.step
    lab.tau, other.tau_slider.value = value, value
    assert np.array_equal(lab.labels, other.labels) and lab.tau == other.tau == value
    other.diagram.answer(dict(shapes=[tau_line(lab.tree, 1.25 * value)]))
    lab.tau = 1.25 * value
    assert np.isclose(other.tau, lab.tau) and np.array_equal(lab.labels, other.labels)
    assert np.isclose(tau_of_line(lab.diagram.figure.layout.shapes[0]), lab.tau)


def test_clicks_and_attributes_do_the_same(lab):
    x, y = groups()
    other = PersistenceLab.of_points(x, 15, 25)
    def click(trace, point): other.diagram.answer(dict(click=[list(other.diagram._index).index(trace), point]))
    for chosen in (2, None):
        lab.select(chosen)
        click('points', 2)                  # the second click selects nothing again
        assert lab.selected == other.selected == chosen and lab.about.value == other.about.value
    click('bars', 1)
    assert other.selected == lab._order[1] and not other.clear.disabled
    other.clear.click()
    assert other.selected is None
    other.map.answer(dict(click=[0, 5]))
    assert other.selected == other.up[other.component[5]]


def test_a_threshold_is_kept_as_it_was_set(lab):
    for tau in (.123456789, 1e-9, 1e9, np.inf):
        lab.tau = tau
        assert lab.tau == tau
        lab._slid(type('change', (), dict(new=lab.tau_slider.value)))      # as a page may send it back
        lab.diagram.answer(dict(shapes=[tau_line(lab.tree, tau)]))
        assert lab.tau == tau


def test_selecting_shows_members_birth_and_death(lab):
    lab.n_clusters = 4
    for i in (0, 1, int(np.flatnonzero(lab.up != np.arange(len(lab.up)))[0])):
        lab.select(i)
        at = lab.map.trace('members')
        wanted = lab.where[lab.members()]
        assert np.array_equal(np.stack([at.x, at.y], 1), wanted)
        assert len(wanted) == len(members(lab.tree, lab.component, i, lab.tau)) > 0
        born, died = lab.map.trace('birth'), lab.map.trace('death')
        assert (born.x[0], born.y[0]) == tuple(lab.where[lab.tree.modes[i]]) and len(died.x) == int(lab.tree.mortal[i])
        assert f'{lab.name(i).capitalize()} is born at height' in lab.about.value
        assert (f'joins {lab.name(lab.tree.parents[i])}' in lab.about.value) == lab.tree.mortal[i]
    lab.select(None)
    assert not len(lab.map.trace('members').x) and lab.about.value == '' and not len(lab.members())


def test_a_text_tells_everything():
    tree = merge_tree([[0, 1], [1, 2], [2, 3], [3, 4]], [5., 1, 3, 2, 4])
    component = np.array([0, 2, 2, 1])
    never = component_text(tree, 0, 0, component)[1]
    assert never == 'It never dies: no way in the graph leads from it to a higher one.'
    born, dies, now = component_text(tree, 2, .5, component, lambda v: f'place {v}')
    assert born == 'Cluster 2 is born at height 3, at place 2.'
    assert dies == 'It dies at height 2, at place 3, where it joins cluster 1: persistence 1.'
    assert now == 'At τ = 0.5 it lives, as cluster 2, with 2 samples, 2 of them its own.'
    merged = component_text(tree, 2, 9, component)[2]
    assert 'merged into cluster 0; just before it died it had 2 samples' in merged


def test_one_message_a_figure(lab):
    sent = {}
    def record(name): getattr(lab, name).send = lambda content, buffers=None: sent.setdefault(name, []).append(content)
    for name in ('map', 'diagram'): record(name)
    lab.tau = widest_gap(lab.tree) / 2
    assert [len(m) for m in sent.values()] == [1, 1]
    samples = sent['map'][0]['change']['traces'][0]
    assert set(samples) == {'marker.color', 'marker.opacity'}           # one byte per sample, and no places
    assert len(json.dumps(sent['map'])) < 2 * len(lab.where) + 500


def test_ties_are_said():
    tree = merge_tree([[0, 1], [1, 2], [2, 3], [3, 4]], [5., 1, 4, 1, 4])       # two components of one persistence
    lab = PersistenceLab(tree, tree.leaf, np.eye(5, 2))
    lab.n_slider.value = 2
    assert lab.n_clusters == lab.n_slider.value != 2 and 'survive together' in lab.summary.value


FEW = dict(one=merge_tree([], [0.]), immortal=merge_tree([], [1., 2, 3]), equal=merge_tree([[0, 1]], [-7., -7]))


@pytest.mark.parametrize('tree', FEW.values(), ids=FEW)
def test_few_components(tree):
    n = len(tree.leaf)
    lab = PersistenceLab(tree, tree.leaf, np.arange(2 * n, dtype='f4').reshape(n, 2))
    for tau in (0, 1, np.inf):
        lab.tau = tau
        assert lab.n_clusters == len(tree.births)
    lab.select(0)
    assert png(lab.picture()).width == 2440 and png(steps_picture(tree, 1.)).width > 1000 and lab.ui


def test_many_components():
    g = np.random.default_rng(0)
    tree = merge_tree(knn_edges(g.normal(size=(3000, 3)), 2), g.normal(size=3000))
    lab = PersistenceLab(tree, tree.leaf, g.normal(size=(3000, 2)), class_labels=g.integers(-1, 3, 3000))
    assert len(tree.births) > 300 and len(lab.diagram.trace('bars').y) == 200 and 'and ' in lab.table.value
    lab.tau = 0
    lab.select(len(tree.births) - 1)
    assert len(lab.picture().png()) < 200_000


def test_pictures(lab):
    lab.n_clusters = 4
    picture = merging_picture(lab.tree, lab.component, lab.where, lab.tau, 'a title')
    from matplotlib.colors import to_hex
    assert [to_hex(c) for c in picture.still.axes[2].collections[0].get_facecolors()] == lab.colours.tolist()
    assert picture.caption == lab.picture().caption and '4 clusters of' in picture.caption


def test_images_come_a_few_at_a_time():
    x, y = groups(200)
    pixels = torch.randint(0, 255, (200, 1, 8, 8), dtype=torch.uint8)
    asked = []
    class Asked(Images):
        def take(self, index):
            asked.append(len(index))
            return super().take(index)
    ids = np.array([f'i{i}' for i in range(200)])
    images = Asked(pixels=pixels, labels=None, class_names=None, ids=ids, name='noise', split='all')
    lab = PersistenceLab.of_points(x, 8, images=images, ids=images.ids)
    lab.n_clusters = 7
    assert not asked and lab.gallery.value == b''           # nothing is drawn before it is shown
    assert lab.ui is lab.ui and asked and sum(asked[1:]) <= lab.per_page * 2 * lab.n_images
    first = lab.gallery.value
    assert lab.back.disabled and not lab.on.disabled and '1 to 5 of 7' in lab.rows.value
    lab.on.click()
    assert lab.gallery.value != first and lab.on.disabled and '6 to 7 of 7' in lab.rows.value
    lab.wait = .01
    lab.tau = lab.tree.tau_for(3)
    lab._timer.join(20)
    assert '1 to 3 of 3' in lab.rows.value
    lab.select(1)
    lab._timer.join(20)
    assert lab.rows.value == f'{lab.name(1)} · {len(lab.members())}' and lab.on.disabled


def test_a_sheet_of_few_images():
    g = np.random.default_rng(0)
    pixels = g.integers(0, 255, (5, 3, 9, 7), dtype=np.uint8)
    rows = [('none', '#000000', np.zeros(0, int)), ('all', '#ff0000', np.arange(5))]
    sheet = component_sheet(pixels, g.normal(size=(5, 2)).astype('f4'), rows)
    assert len(sheet.png()) < 250_000


def test_a_run_of_nmc(runs):
    root, hills = runs
    lab = PersistenceLab.of_run(root / 'hills')
    assert np.array_equal(lab.labels, hills.labels_) and lab.tau == hills.tau_
    assert np.array_equal(lab.component, hills.diagram_.component) and type(lab.model) is NMC
    assert lab.images is None and 'no images' in lab.notes[0] and np.array_equal(lab.class_labels, groups(400)[1])
    for k in range(1, min(5, len(lab.up) + 1)):
        lab.n_clusters = hills.n_clusters_ = k
        assert np.array_equal(lab.labels, hills.labels_)
    lab.select(0)
    assert 'at mode ' in lab.about.value and np.allclose(lab.modes, hills.diagram_.modes)
    assert np.allclose(lab.passes, hills.diagram_.passes, equal_nan=True)
    assert PersistenceLab.of_run(root / 'hills', tau=0.).n_clusters == len(hills.diagram_)


def test_a_run_of_another_method_opens_through_tomato(runs):
    folder = runs[0] / 'digits'
    lab = PersistenceLab.of_run(folder, k=7, density_k=12, method='pca')
    tree = tomato(np.load(folder / 'embeddings.npy'), 7, 12)
    run, found = np.load(folder / 'predictions.npy'), tree.labels(n_clusters=lab.n_clusters)
    assert lab.n_clusters == len(np.unique(run)) and lab.model is None
    assert np.array_equal(lab.labels, renumbered(found, run))
    assert len(lab.images) == 120 and 'PCA' in lab.title and lab.scores()
    assert lab.name_of(3) == f'sample {np.load(folder / "ids.npy")[3]}'
    np.save(folder / 'map2d.npy', np.arange(240, dtype='f4').reshape(120, 2))
    assert 'map2d.npy' in PersistenceLab.of_run(folder).title
    (folder / 'map2d.npy').unlink()
    assert newest_run(runs[0]) in (str(folder), str(runs[0] / 'hills')) and newest_run(folder / 'figures') is None


def copied(folder, to, *names):
    to.mkdir()
    for name in names: (to / name).write_bytes((folder / name).read_bytes())
    return to


def refuses(folder, match, **options):
    with pytest.raises(InputError, match=match): PersistenceLab.of_run(folder, **options)


def test_folders_that_cannot_be_opened(runs, tmp_path):
    folder = runs[0] / 'digits'
    refuses(tmp_path, 'is not a run folder')
    refuses(copied(folder, tmp_path / 'a', 'config.json'), 'has no embeddings.npy; run it to its end')
    b = copied(folder, tmp_path / 'b', 'config.json', 'embeddings.npy', 'predictions.npy')
    embeddings = b / 'embeddings.npy'
    embeddings.write_bytes(embeddings.read_bytes()[:300])
    refuses(b, 'embeddings.npy is damaged')
    np.save(embeddings, np.full((120, 3), np.nan))
    refuses(b, 'embeddings.npy holds 360 values that are NaN')
    np.save(embeddings, np.zeros((30, 3), 'f4') + np.arange(30)[:, None])
    refuses(b, r'has shape \(120,\), embeddings.npy 30 rows', method='pca')
    (b / 'config.json').write_text('{')
    refuses(b, 'config.json is damaged')


def test_a_model_of_other_samples_is_refused(runs, tmp_path):
    c = copied(runs[0] / 'hills', tmp_path / 'c', 'config.json', 'model.pt', 'embeddings.npy', 'predictions.npy')
    for name in ('embeddings', 'predictions'): np.save(c / f'{name}.npy', np.load(c / f'{name}.npy')[:50])
    refuses(c, 'model.pt has 400 samples, embeddings.npy 50')


def test_data_that_are_not_the_runs(runs, tmp_path):
    d = copied(runs[0] / 'digits', tmp_path / 'd', 'config.json', 'embeddings.npy', 'predictions.npy')
    config = json.loads((d / 'config.json').read_text())
    changes = ((dict(limit=150), 'no images: the run was fitted to arrays, or to other data'),
               (dict(dataset='mnist', data_dir=str(tmp_path)), 'no images:'),
               (dict(dataset='no such'), 'unknown data set'))
    for change, why in changes:
        (d / 'config.json').write_text(json.dumps(config | change))
        lab = PersistenceLab.of_run(d, method='pca')
        assert lab.images is None and why in lab.notes[0] and not lab.scores()
        assert why in lab.summary.value.replace('&#x27;', "'")


def test_bad_input():
    x, _ = groups(60)
    tree = tomato(x)
    def refused(match, **change):
        given = dict(tree=tree, component=tree.leaf, where=x) | change
        with pytest.raises(InputError, match=match): PersistenceLab(**given)
    refused('tree is a ndarray', tree=x)
    refused('component has 59 entries; expected 60', component=tree.leaf[1:])
    refused('component names 0 to 99', component=np.r_[tree.leaf[1:], 99])
    refused(r'where has shape \(60, 3\); expected \(60, 2\)', where=np.zeros((60, 3)))
    refused('where holds 120 values that are NaN', where=x * np.nan)
    refused('class_labels has 3 entries', class_labels=[0, 1, 2])
    refused('images has 5 entries; expected 60', images=np.zeros((5, 1, 8, 8), np.uint8))
    refused('ids has 2 entries', ids=['a', 'b'])
    refused(r'embedding has shape \(3, 2\)', embedding=np.zeros((3, 2)))
    refused('modes has shape', modes=np.zeros((1, 2, 2)))
    refused('tau=-1', tau=-1)
    lab = PersistenceLab(tree, tree.leaf, x)
    before = lab.tau
    for wrong in (-1, np.nan):
        with pytest.raises(InputError, match='tau='): lab.tau = wrong
    with pytest.raises(InputError, match='n_clusters=1000'): lab.n_clusters = 1000
    with pytest.raises(InputError, match='component 1000; expected 0 to'): lab.select(1000)
    assert lab.tau == before and lab.selected is None


def test_names_are_no_markup():
    x, _ = groups(40)
    lab = PersistenceLab.of_points(x, ids=['<script>alert(1)</script>'] * 40, title='<b>$x$</b>')
    lab.select(0)
    assert '<script>' not in lab.about.value + str(lab.map.figure.data[0].text[0]) + lab.map.figure.layout.title.text
    lab.picture().png()


@pytest.mark.slow
def test_papermill_opens_a_run(runs, tmp_path):
    out = tmp_path / 'out.ipynb'
    papermill = python('-m', 'papermill', str(ROOT / 'nbs/explore_persistence.ipynb'), str(out), '--no-progress-bar')
    given = dict(run_dir=runs[0] / 'digits', n_clusters=3, k=4, map_method='pca')
    words = [w for name, value in given.items() for w in ('-p', name, str(value))]
    subprocess.run([*papermill, *words], check=True, capture_output=True, timeout=300)
    cells = json.loads(out.read_text())['cells']
    printed = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    assert '3 clusters at tau' in printed and 'no landscape to draw' in printed and out.stat().st_size < 2_000_000
    bad = subprocess.run([*papermill, '-p', 'run_dir', str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert bad.returncode == 1 and 'is not a run folder' in bad.stderr
