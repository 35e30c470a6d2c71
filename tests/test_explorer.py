"The explorer without a browser: its widgets' callbacks work without a kernel."
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_array, write_json
from nmc_workbench.explore.explorer import COLOURS, Explorer
from nmc_workbench.explore.explorer_figures import cluster_label
from nmc_workbench.explore.gallery_order import ORDERS
from nmc_workbench.explore.umap_process import MapJob
from nmc_workbench.cluster import centre_distances, confidence, separation
from nmc_workbench.runs.finished import FinishedRun
from nmc_workbench.runs.index import run_choices

HOSTILE = '<script>alert("x")</script> & \'quotes\' 😀' + 'x' * 250


def made(folder, n=120, with_images=True, seed=0):
    "Make the folder of a run with three groups, with the images of the digits or without images."
    from nmc_workbench.data import load
    digits = load('digits', limit=n)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 4)).astype('f4') + 4 * np.eye(4)[labels].astype('f4')
    labels[:5] = -1
    config = dict(method='NMCE', seed=seed, dataset='digits')
    config |= dict(limit=n, data=digits.fingerprint()) if with_images else dict(data='other')
    write_json(folder / 'config.json', config)
    write_json(folder / 'results.json', dict(acc=.5))
    arrays = dict(embeddings=x, predictions=labels, ids=digits.ids, true_labels=digits.labels.numpy())
    for name, a in arrays.items(): write_array(folder / f'{name}.npy', a)
    rows = [dict(stage='s', epoch=e, step=e, loss=1. / (e + 1), lr=.1) for e in range(3)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


@pytest.fixture
def explorer(tmp_path):
    e = Explorer(made(tmp_path / 'run'), map_method='pca')
    assert e.ui is not None
    return e


def test_every_view_follows_one_selection(explorer):
    e = explorer
    e.map.calls['lasso'](np.array([9, 3, 4]))
    assert e.selection.tolist() == e.run.ids[[3, 4, 9]].tolist()
    assert e.map.selected.tolist() == [3, 4, 9] and sorted(e.tiles.shown) == [3, 4, 9]
    e.tiles.heard(dict(click=4, held=True), [])         # a tile takes its sample out
    assert e.selected.tolist() == [3, 9] == sorted(e.tiles.shown) and '2 of 120' in e.about.value
    e.bars._on_click[0]('size', e.clusters.index(1))
    assert (e.labels[e.selected] == 1).all() and len(e.selected) == (e.labels == 1).sum()
    assert e.cluster_list.value == (1,)
    e.bars._on_click[0]('size', e.clusters.index(2))   # a second bar adds to the first
    assert e.chosen == [1, 2] and not e.buttons['Merge'].disabled
    row, column = 0, 1
    e.matrix._on_click[0]('cells', [row, column])
    k, c = e._rows[row], e._columns[column]
    assert e.selected.tolist() == np.flatnonzero((e.labels == k) & (e.run.class_labels == c)).tolist()
    assert e.matrix.figure.layout.shapes[0].x0 == column - .5
    e.map.calls['click'](-1)
    e.tiles.heard(dict(heading=1), [])                  # a cluster's line in the gallery
    assert e.chosen == [e.clusters[1]] and (e.labels[e.selected] == e.clusters[1]).all()
    e.map.calls['click'](-1)
    assert not len(e.selected) and e.map.selected is None and len(e.tiles.shown)


def test_selection_by_ids(explorer):
    explorer.selection = list(explorer.run.ids[[7, 2]])
    assert explorer.selected.tolist() == [2, 7]
    explorer.selection = explorer.run.ids[8]
    assert explorer.selected.tolist() == [8]
    with pytest.raises(InputError, match='1 of 2 ids are not in this run, such as .nobody.; expected ids such as'):
        explorer.selection = [explorer.run.ids[0], 'nobody']
    assert explorer.selected.tolist() == [8]


def test_orders_and_pages(explorer):
    e = explorer
    e.per_page = 10
    e.select(np.flatnonzero(e.labels == 0))
    seen = []
    while True:
        seen += e.tiles.shown.tolist()
        if e.on.disabled: break
        e.on.click()
    assert sorted(seen) == e.selected.tolist() and (np.diff(e.own[seen]) >= 0).all()
    for order in ORDERS[1:]:
        e.order_menu.value = order
        assert len(e.tiles.shown) == 10 and e.page == 0
    assert (np.diff(e.sure[e.tiles.shown]) >= 0).all()                  # the last of them: least sure


def test_colours(explorer):
    for how in COLOURS:
        explorer.colour_menu.value = how
        assert explorer.map._told['codes'].max() < len(explorer.map._told['palette'])
    explorer.edit('noise', explorer.run.ids[10:12])
    assert np.flatnonzero(explorer.map._told['codes']).tolist() == [i for i in (10, 11) if explorer.run.labels[i] >= 0]


def test_editing_from_the_buttons(explorer):
    e, before = explorer, explorer.labels.copy()
    e.cluster_list.value = (0, 1)
    e.buttons['Merge'].click()
    assert (e.labels == np.where(before == 1, 0, before)).all() and e.chosen == [0] and 'was' in e.scores_line.value
    e.name_box.value = HOSTILE
    e.buttons['Name'].click()
    assert e.curation.names[0] == HOSTILE and '<script>' not in e.about.value and '&lt;script&gt;' in e.about.value
    assert '<script>' not in e.bars.figure.data[0].customdata[e.clusters.index(0)]
    e.parts.value = 2
    e.buttons['Split'].click()
    assert len(e.clusters) == 4 and (np.isin(e.labels, e.clusters)).all()
    e.select([0, 1, 2])
    e.buttons['Move to'].click()                       # a new cluster
    assert len(set(e.labels[:3])) == 1 and e.labels[0] not in before
    e.buttons['Noise'].click()
    assert (e.labels[:3] == -1).all()
    for _ in range(5): e.buttons['Undo'].click()
    assert (e.labels == before).all() and e.buttons['Undo'].disabled and not e.curation.names
    for _ in range(5): e.buttons['Redo'].click()
    assert (e.labels[:3] == -1).all()


def test_what_cannot_be_done_is_said(explorer):
    explorer.choose([0])
    explorer.buttons['Merge'].click()
    assert 'color:#b00020' in explorer.message.value
    with pytest.raises(InputError, match='unknown cluster 77'): explorer.choose([77])


def test_saved_edits_come_back(explorer, tmp_path):
    explorer.edit('merge', [0, 1])
    explorer.edit('rename', 0, 'both')
    explorer.buttons['Save'].click()
    again = Explorer(tmp_path / 'run', map_method='pca')
    assert (again.labels == explorer.labels).all() and again.curation.names == {0: 'both'}
    assert 'replayed 2 edits' in again.message.value
    (tmp_path / 'run/curation.json').write_text('{"edits": [')
    damaged = Explorer(tmp_path / 'run', map_method='pca')
    assert (damaged.labels == damaged.run.labels).all() and 'color:#b00020' in damaged.message.value
    assert not (tmp_path / 'run/curation.json').exists() and (tmp_path / 'run/curation.json.damaged').is_file()


def test_exports(explorer, tmp_path):
    explorer.buttons['Export CSV'].click()
    explorer.buttons['Export folders'].click()
    assert len((tmp_path / 'run/labels.csv').read_text().splitlines()) == 121
    assert len(list((tmp_path / 'run/clusters').rglob('*.png'))) == 120
    explorer.buttons['Export folders'].click()
    assert 'color:#b00020' in explorer.message.value      # it does not overwrite what is there


def test_another_run(tmp_path):
    first, second = made(tmp_path / 'a'), made(tmp_path / 'deep/b', 90, seed=1)
    e = Explorer.of_runs(tmp_path, first, map_method='pca')
    assert e.ui is not None and len(e.run_menu.options) == 2
    e.select([1, 2])
    e.run_menu.value = str(second)
    assert len(e.run) == 90 and not len(e.selected) and e.map.n == 90 and e.map in e._left.children
    assert [folder for _, folder in run_choices(tmp_path)] == [str(second), str(first)]
    with pytest.raises(InputError, match='holds no finished run'): Explorer.of_runs(tmp_path / 'nothing')


def test_a_run_without_images(tmp_path):
    e = Explorer(made(tmp_path / 'run', with_images=False), map_method='pca')
    assert e.ui is not None and 'no images' in e.scores_line.value and e.map.calls['hover'](3)[1] is None
    e.select([1, 2])
    assert e.tiles._told['sprite'] == b'' and e.tiles._told['texts'][0].startswith('all/')
    e.buttons['Export folders'].click()
    assert 'no images' in e.message.value
    assert [type(p).__name__ for p in e.pictures()] == ['Picture'] * 2


def test_pictures(explorer):
    pictures = explorer.pictures()
    assert len(pictures) == 3 and all(p.png()[:4] == b'\x89PNG' for p in pictures)


@pytest.mark.slow
def test_umap_is_made_beside_and_kept(tmp_path):
    e = Explorer(made(tmp_path / 'run'))
    assert e.map_menu.value == 'PCA' and e.bar.layout.display == ''
    e._job.wait(300)
    kept = np.load(tmp_path / 'run/map2d.npy')
    assert e.map_menu.value == 'UMAP' and (e.where == kept).all() and e.bar.layout.display == 'none'
    e.map_menu.value = 'PCA'
    assert not np.allclose(e.where, kept)
    assert FinishedRun.open(tmp_path / 'run').kept_map()[1] == 'map2d.npy'


def test_confidence_and_separation_against_a_plain_loop():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 3)), rng.integers(-1, 4, 60)
    own, other = centre_distances(x, labels)
    centres = {k: x[labels == k].mean(0) for k in range(4)}
    for i in range(60):
        far = {k: np.linalg.norm(x[i] - c) for k, c in centres.items()}
        a = min(far.values()) if labels[i] < 0 else far[labels[i]]
        b = min(v for k, v in far.items() if k != labels[i])
        assert np.isclose(own[i], a, atol=1e-4) and np.isclose(other[i], b, atol=1e-4)
        assert np.isclose(separation(own, other)[i], max(0, 1 - a / b), atol=1e-3)
        same = [j for j in range(60) if labels[j] == labels[i] >= 0 and j != i]
        rank = np.mean([own[j] / other[j] > own[i] / other[i] for j in same]) if same else float(labels[i] >= 0)
        assert np.isclose(confidence(own, other, labels)[i], rank, atol=1e-6)


def test_names_are_text():
    assert cluster_label(3, {3: '<b>"x"</b>'}) == '3 &lt;b&gt;&quot;x&quot;&lt;/b&gt;'
    assert len(cluster_label(3, {3: 'y' * 300})) == 30 and cluster_label(-1, {}) == 'noise'


START = '''import time
from nmc_workbench.explore.umap_process import MapJob
job = MapJob({folder!r}, print, print)
print(job._process.pid, flush=True)
time.sleep(60)'''


@pytest.mark.slow
def test_a_map_that_is_stopped_leaves_nothing(tmp_path):
    "It is stopped, or the kernel that wanted it dies."
    run = made(tmp_path / 'run')
    job = MapJob(run, lambda share: None, lambda found: pytest.fail('it was stopped'))
    job.stop()
    job.wait(300)
    assert not (run / 'map2d.npy').exists()
    code = START.format(folder=str(run))
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    for _ in range(100):
        if not alive(child): break
        time.sleep(.2)
    assert not alive(child)


def alive(pid):
    "Whether a process runs; a zombie, which has ended, does not."
    try: return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False
