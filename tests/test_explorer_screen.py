"What the explorer shows and how it answers, without a browser; test_browser.py looks at the same in Chromium."
import shutil

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.labels import counted
from nmc_workbench.explore.curation import Curation
from nmc_workbench.explore.explorer import Explorer
from nmc_workbench.explore.explorer_figures import bars_figure, matrix_figure
from nmc_workbench.explore.label_history_lab import FollowedHistory
from nmc_workbench.plotting.confusion import confusion_matrix, matched_counts
from nmc_workbench.plotting.embedding import embedding_map
from nmc_workbench.projection import densest_point
from tests.test_compare import run
from tests.test_explorer import made


@pytest.fixture
def explorer(tmp_path):
    e = Explorer(made(tmp_path / 'run'), map_method='pca')
    assert e.ui is not None
    return e


def test_matrix_and_curves_stand_on_tabs(explorer, tmp_path, tiny_run):
    titles = 'matrix', 'sizes', 'curves', 'table', 'marks', 'duplicates'
    assert explorer._tabs.titles == titles and explorer._tabs.selected_index == 0
    assert explorer._tabs.children[:4] == (explorer.matrix, explorer.bars, explorer.curves, explorer.cluster_table)
    hills = Explorer(shutil.copytree(tiny_run('nmc'), tmp_path / 'hills'), map_method='pca')
    assert hills.ui is not None and hills._tabs.titles[0] == 'threshold'


def test_after_a_merge_no_empty_row_stays(explorer):
    explorer.edit('merge', [0, 1])
    assert explorer._rows == explorer.clusters
    assert len(explorer.matrix.figure.data[0].z) == len(explorer.clusters) == len(explorer.bars.figure.data[0].y)
    still = explorer.pictures()[-1].still.axes[0]
    assert len(still.get_yticklabels()) == len(explorer.clusters)


def test_empty_clusters_show_only_where_they_are_asked_for():
    y, labels = np.repeat([0, 1, 2], 5), np.repeat([0, 3, 3], 5)
    assert matched_counts(y, labels)[1] == [0, 1, 3, 2] or len(matched_counts(y, labels)[1]) == 4
    assert sorted(matched_counts(y, labels, empty=False)[1]) == [0, 3]
    assert sorted(matrix_figure(y, labels, ['a', 'b', 'c'])[1]) == [0, 3]
    assert len(confusion_matrix(y, labels, empty=False).still.axes[0].get_yticklabels()) == 2


def test_the_colours_are_explained(explorer):
    assert '⬤' in explorer.frames_key.value and 'frame: class' in explorer.frames_key.value
    keys = {}
    for how in ('cluster', 'class', 'confidence', 'edited'):
        explorer.colour_menu.value = how
        keys[how] = explorer.map._told['key']
    assert keys['confidence']['ends'] == ['0', '1'] and keys['confidence']['title'].startswith('confidence')
    assert keys['class']['title'] == 'class' and len(keys['class']['entries']) == len(set(explorer.run.class_labels))
    assert [text for _, text in keys['edited']['entries']] == ['as at the start', 'edited']
    assert not keys['cluster']['title'] and not keys['cluster']['entries']


def test_names_of_classes_are_text(explorer):
    explorer.run.class_names[:] = ['<script>'] * 10
    explorer.draw_gallery()
    assert '<script>' not in explorer.frames_key.value and '&lt;script&gt;' in explorer.frames_key.value


@pytest.mark.parametrize('seed', range(5))
def test_a_number_stands_where_its_cluster_is_densest(seed):
    "Not between two parts, nor at a few samples that lie apart."
    rng = np.random.default_rng(seed)
    wide, tight = rng.normal(size=(40, 2)), .3 * rng.normal(size=(60, 2)) + [20, 0]
    far = np.full((8, 2), 50.)
    at = densest_point(np.concatenate([wide, tight, far]))
    assert np.linalg.norm(at - [20, 0]) < 1.5
    assert densest_point(wide[:1]).tolist() == wide[0].tolist() and densest_point(wide[:2]) in wide[:2]


def test_every_map_writes_numbers_at_samples(explorer):
    e = explorer
    for x, y, text in e.map._told['texts']:
        mine = e.where[e.labels == int(text.split()[0])]
        assert np.isclose(mine, [x, y]).all(1).any()
    still = embedding_map(e.where, e.labels).still.axes[0]
    written = [t for t in still.texts if t.get_text().isdigit()]
    assert written
    for t in written: assert np.isclose(e.where[e.labels == int(t.get_text())], t.get_position()).all(1).any()


@pytest.mark.parametrize('n, text', [(0, '0 edits'), (1, '1 edit'), (2, '2 edits'), (1200, '1,200 edits')])
def test_numbers_of_things(n, text): assert counted(n, 'edit') == text


def test_one_of_a_thing_has_no_s(explorer):
    e = explorer
    e.edit('rename', 0, 'zero')
    assert '1 edit' in e.scores_line.value and '1 edits' not in e.scores_line.value
    e.save()
    assert 'saved 1 edit to' in e.message.value
    e.select([3])
    assert e.pages.value.endswith('1 image')
    one = Curation(['a'], [0], np.zeros((1, 2)))
    assert repr(one) == 'Curation(1 sample, 1 cluster, 0 edits)'
    with pytest.raises(InputError, match='with 1 sample; expected a cluster of at least two'): one.split(0)
    assert '1 sample<br>' in bars_figure([0], np.array([1]), np.array([.5])).data[0].customdata[0]


def test_a_click_on_a_tile_opens_it_large(explorer):
    e = explorer
    first, second = map(int, e.tiles.shown[:2])
    e.tiles.heard(dict(click=first))
    assert e.tiles.enlarged == first and not len(e.selected)
    e.tiles.heard(dict(large='next'))                           # without a selection, the next of the page
    assert e.tiles.enlarged == second
    e.select(np.arange(5, 12))
    order = e.tiles.shown.tolist()
    e.tiles.heard(dict(click=order[0]))
    assert e.tiles.enlarged == order[0] and len(e.selected) == 7
    lines = e.tiles._told['large']['lines']
    assert lines[0] == e.run.ids[order[0]] and '8 × 8 pixels' in lines
    assert any(s.startswith('class ') for s in lines) and any(s.startswith('confidence ') for s in lines)
    assert any(s.startswith('cluster ') for s in lines)
    for what, i in (('next', 1), ('next', 2), ('back', 1)):
        e.tiles.heard(dict(large=what))
        assert e.tiles.enlarged == order[i]
    e.tiles.heard(dict(large='take out'))
    assert e.tiles.enlarged is None and order[1] not in e.selected and len(e.selected) == 6
    e.look(order[0])
    e.tiles.heard(dict(large='close'))
    assert e.tiles.enlarged is None and len(e.selected) == 6
    e.tiles.heard(dict(large='anything else'))
    e.tiles.heard(dict(click=order[0], held=True))              # with Ctrl it is taken out
    assert order[0] not in e.selected


def test_the_large_view_turns_pages(explorer):
    e = explorer
    e.per_page = 3
    e.select(np.arange(5, 12))
    e.look(int(e.tiles.shown[2]))
    e.tiles.heard(dict(large='next'))
    assert e.page == 1 and e.tiles.enlarged == e.tiles.shown[0]


def test_paths_of_images_that_are_files(explorer, tmp_path):
    from PIL import Image
    from nmc_workbench.data import load
    for i in range(len(explorer.run)):
        path = tmp_path / f'files/{i % 2}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (6, 4)).save(path)
    explorer.run.images = load('folder', 'train', str(tmp_path / 'files'))
    lines = explorer.facts_of(4)
    assert lines[1] == str(explorer.run.images.paths[4]) and lines[2].endswith(' pixels')


def test_escape_lets_go(explorer):
    explorer.choose([0])
    explorer.map.heard(dict(click=-1))                          # what the page sends when Esc is pressed
    assert not len(explorer.selected) and explorer.map.selected is None


def test_the_label_history_follows_the_chosen_run(tmp_path, tiny_run):
    first = shutil.copytree(tiny_run('nmce'), tmp_path / 'a')
    second = made(tmp_path / 'b')
    e = Explorer.of_runs(tmp_path, first, map_method='pca')
    history = FollowedHistory(e)
    assert history.ui is not None and history.lab.run is e.run and history.lab.ui in history.ui.children
    e.open(second)
    assert history.lab is None and 'label history' in history.why and history.why in repr(history)
    e.run_menu.value = str(first)
    assert history.lab.run is e.run and history.lab.ui in history.ui.children


def test_the_tab_is_named_after_the_run(tmp_path):
    from tools.app_notebook import title_of
    folder = made(tmp_path / 'demo/run')
    assert title_of(folder) == 'NMCE, digits, seed 0 · demo/run'
    assert Explorer(folder, map_method='pca').map._told['tab'] == title_of(folder)


def test_captions_say_what_label_and_runs_say():
    from nmc_workbench.evaluation.agreement import Comparison
    from nmc_workbench.explore.compare_lab import CompareLab
    truth = np.repeat(np.arange(3), 50)
    x = np.random.default_rng(0).normal(size=(150, 2)).astype('f4') + 6 * np.eye(3, 2)[truth]
    y, other = truth.copy(), (truth + 1) % 3
    y[0], other[60] = 2, 0
    names = ['zero', 'one', 'two']
    c = Comparison([run(truth, x, y=y, names=names), run(other, x, seed=1, y=y, names=names)])
    assert c.said(0) == 'labelled two, all runs say zero' and c.said(3) == 'labelled zero, all runs say zero'
    assert c.said(60) == 'labelled one, the runs say one, two'
    assert CompareLab(c).tiles['label_errors']._told['captions'] == ['labelled two, all runs say zero']
    assert Comparison([run(truth, x), run(other, x, seed=1)]).said(0) == ''
