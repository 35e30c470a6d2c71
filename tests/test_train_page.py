"""The page of a finished train notebook: the box at its top, what is folded, tables that fit, and what it says of
clusters without labels."""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_json
from nmc_workbench.data import load
from nmc_workbench.data.readers import as_images
from nmc_workbench.diagnostics.diagnosis import Evidence, weigh
from nmc_workbench.evaluation.baselines import evidence
from nmc_workbench.methods import NMCE
from nmc_workbench.methods.base import open_run
from nmc_workbench.plotting.confusion import confusion_matrix
from nmc_workbench.plotting.geometry import angle_matrix, rate_bars
from nmc_workbench.reports.html import html_copy
from nmc_workbench.reports.summary import RunBox, run_html, time_table
from nmc_workbench.runs.label_history import LabelHistory, read_label_history
from nmc_workbench.training.timing import PARTS
from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ['train_nmce', 'train_nmc', 'train_sela', 'train_deepcluster', 'train_and']
METHODS = ['nmce', 'nmc', 'sela', 'deep_cluster', 'anchors']


def cells(name): return json.loads((ROOT / f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def notebooks(): return [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]


# --- what the notebook has

@pytest.mark.parametrize('name', TRAIN)
def test_the_box_comes_first_and_the_last_cell_fills_it(name):
    code = [c for c in cells(name) if c['cell_type'] == 'code']
    assert 'box = RunBox()' in source(code[0]) and 'parameters' in code[1]['metadata']['tags']
    shown = [source(c) for c in code if not source(c).startswith('#| hide')]
    assert 'box.fill(model.run_.folder' in shown[-1]


@pytest.mark.parametrize('name, records', [
    ('nmce', ['nmce_digits', 'nmce_coil20', 'nmce_mnist', 'nmce_cifar10_cpu']),
    ('nmc', ['nmc_digits', 'nmc_study', 'nmc_study_mnist', 'nmc_study_coil20']),
    ('sela', ['sela_digits', 'sela_mnist', 'sela_cifar10_cpu']),
    ('deepcluster', ['deepcluster_digits', 'deepcluster_study', 'deepcluster_strategies']),
    ('and', ['and_digits', 'and_mnist', 'and_cifar10'])])
def test_tables_of_other_runs_stand_on_the_page_of_the_method(name, records):
    text = '\n'.join(map(source, cells(f'train_{name}')))
    assert '<!-- bench:' not in text and 'mean ± std' not in text
    assert f'../docs/pages/methods/{name}.md' in text
    page = (ROOT / f'docs/pages/methods/{name}.md').read_text(encoding='utf-8')
    for record in records: assert re.search(rf'<!-- bench:{record} -->\n\|', page), record


@pytest.mark.parametrize('name', TRAIN)
def test_the_page_does_not_ask_whether_it_worked(name):
    text = '\n'.join(map(source, cells(name)))
    assert 'Did it work' not in text and 'does not say that the clusters are right' in text
    assert 'evidence(model, images)' in text


def test_no_text_says_left_of_a_picture_that_may_have_one_panel():
    for path in notebooks():
        found = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells']
                 if re.search(r'(?<!\w)\(left\)', source(c))]
        assert not found, (path, [c['id'] for c in found])


def test_cells_for_tests_are_folded_in_jupyterlab_too():
    count = 0
    for path in notebooks():
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            hidden = c['cell_type'] == 'code' and source(c).startswith('#| hide')
            assert c['metadata'].get('jupyter', {}) == (dict(source_hidden=True) if hidden else {}), (path, c['id'])
            count += hidden
    assert count >= 15


# --- the box

@pytest.mark.parametrize('method', METHODS)
def test_the_box_of_a_run(method, tiny_run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run(method), folder)
    said = dict(sentence='No sign of collapse: <b>.', measured=dict(n_used=3, n_clusters=4),
                clusters=dict(sentence='These clusters are doubtful.'))
    write_json(folder / 'diagnosis.json', said)
    results = json.loads((folder / 'results.json').read_text())
    html = run_html(folder)
    assert '3 of 4 clusters' in html and f'{results["seconds"] / 60:.1f} minutes' in html and str(folder) in html
    assert '&lt;b&gt;.' in html and '<b>.' not in html
    if 'acc' in results: assert all(f'<td>{results[k]:.3f}</td>' in html for k in ('acc', 'nmi', 'ari'))
    else: assert 'no labels' in html and 'These clusters are doubtful.' in html and '<table>' not in html


def test_the_box_of_a_run_that_is_not_finished(tmp_path):
    write_json(tmp_path / 'config.json', dict(method='NMCE'))
    with pytest.raises(InputError, match='no finished run'): run_html(tmp_path)


def test_outside_a_notebook_the_box_stays_away(tiny_run, capsys):
    RunBox().fill(tiny_run('nmce'))


BOX = 'from nmc_workbench.reports.summary import RunBox\nbox = RunBox()'
FILL = '''from matplotlib.figure import Figure
from nmc_workbench.plotting.figure import Picture
box.fill(FOLDER, Picture(Figure(), caption='first rows'))'''


@pytest.mark.slow
@pytest.mark.parametrize('times', [1, 2])
def test_the_box_is_filled_where_it_stands_also_when_all_cells_run_again(times, tiny_run, tmp_path):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    code = [BOX, '1 + 1', FILL.replace('FOLDER', repr(str(tiny_run('nmce'))))]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in code])
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3')
    with client.setup_kernel():
        for _ in range(times):
            for i, c in enumerate(notebook.cells): client.execute_cell(c, i)
    first, last = notebook.cells[0].outputs, notebook.cells[-1].outputs
    assert len(first) == 2 and not last
    assert 'NMCE on digits' in first[0].data['text/html'] and 'image/png' in first[1].data
    text = first[0].data['text/plain']
    assert re.search(r'NMCE on digits, seed 0: (\d+ of )?10 clusters', text) and '<' not in text
    nbformat.write(notebook, tmp_path / 'out.ipynb')
    page = html_copy(tmp_path / 'out.ipynb').read_text()
    assert 'NMCE on digits' in page and first[1].data['image/png'].strip() in page and 'not come to its end' not in page


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAIN)
def test_a_finished_train_notebook_has_its_box_filled(name, tmp_path):
    "As papermill saves it, and in its HTML copy, where parameters and code for tests are folded away."
    nbformat = pytest.importorskip('nbformat')
    command = python('-m', 'papermill', str(ROOT / f'nbs/{name}.ipynb'), str(tmp_path / 'out.ipynb'),
                     '--no-progress-bar', '-p', 'seed', '0')
    env = {**os.environ, 'IN_TEST': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    notebook = nbformat.read(tmp_path / 'out.ipynb', as_version=4)
    box = next(c for c in notebook.cells if 'RunBox()' in c.source)
    text, picture = box.outputs
    assert 'on digits, seed 0:' in text.data['text/plain'] and 'ACC NMI ARI' in text.data['text/plain']
    assert 'minutes' in text.data['text/plain'] and 'Run folder' in text.data['text/plain']
    assert picture.data['text/plain'].startswith('Picture: nearest and farthest')
    page = html_copy(tmp_path / 'out.ipynb').read_text()
    assert picture.data['image/png'].strip() in page and 'IN_TEST' not in page
    folds = re.findall(r'<details class="source"( open="")?><summary>parameters</summary>', page)
    assert folds == ['', ' open=""']            # all of them, and below what this run was given


# --- the HTML copy

def test_parameters_are_folded_and_cells_for_tests_are_left_out(tmp_path):
    v4 = pytest.importorskip('nbformat').v4
    import nbformat
    given = v4.new_code_cell('epochs = 3', metadata=dict(tags=['parameters']))
    out = v4.new_output('stream', name='stdout', text='of a test')
    notebook = v4.new_notebook(cells=[given, v4.new_code_cell('#| hide\nassert x', outputs=[out])])
    nbformat.write(notebook, tmp_path / 'run.ipynb')
    page = html_copy(tmp_path / 'run.ipynb').read_text()
    assert '<details class="source"><summary>parameters</summary>' in page
    assert page.count('<details') == 1 and 'assert' not in page and 'of a test' in page


def log(stages=('representation', 'cluster_heads', 'fine_tune')):
    parts = {f'seconds_{p}': .1 for p in (*PARTS, 'other')}
    return [dict(stage=s, epoch=e, seconds=.5, views_per_second=14429.3, **parts) for s in stages for e in range(150)]


def test_time_table():
    table = time_table(log())
    assert list(table) == ['representation', 'cluster_heads', 'fine_tune']
    assert table['fine_tune']['epochs'] == '150' and table['fine_tune']['share of backward'] == '20%'
    assert table['fine_tune']['views per second, median'] == '14,429' and time_table([]) == {}


@pytest.mark.parametrize('width', [1280, 1920])
def test_no_table_is_cut(width, new_page, tmp_path):
    import nbformat
    import pandas as pd
    shown = [pd.DataFrame(time_table(log())).to_html()]
    output = [nbformat.v4.new_output('display_data', data={'text/html': t}) for t in shown]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('table', outputs=output)])
    nbformat.write(notebook, tmp_path / 'run.ipynb')
    page = new_page(width, 900)
    page.goto(f'file://{html_copy(tmp_path / "run.ipynb")}')
    cut = 'document.querySelectorAll(".jp-OutputArea-child")'
    assert page.evaluate(f'[...{cut}].filter(e => e.scrollWidth > e.clientWidth + 1).length') == 0


# --- pictures

def embedded(n=120, k=3):
    z = np.random.default_rng(0).normal(size=(n, 8)) + 3 * np.eye(8)[np.arange(n) % k]
    return z / np.linalg.norm(z, axis=1, keepdims=True), np.arange(n) % k


@pytest.mark.parametrize('draw', [lambda z, y: confusion_matrix(y, y), lambda z, y: angle_matrix(z, y),
                                  lambda z, y: rate_bars(z, y, .2)], ids=['confusion', 'angles', 'rates'])
def test_titles_of_axes_stand_clear_of_the_ticks(draw):
    pytest.importorskip('plotly')
    layout = draw(*embedded()).interactive.to_dict()['layout']
    titled = [a for k, a in layout.items() if re.match(r'[xy]axis', k) and a.get('title', {}).get('text')]
    assert titled and all(a['title'].get('standoff', 0) >= 8 for a in titled if a['title']['text'] != 'nats')


def test_dashed_lines_of_the_rates_are_named():
    pytest.importorskip('plotly')
    picture = rate_bars(*embedded(), .2)
    layout = picture.interactive.to_dict()['layout']
    assert 'dashed: 3 orthogonal subspaces' in layout['xaxis']['title']['text']
    assert sum('dashed: 3 orthogonal subspaces' in str(a.get('title')) for k, a in layout.items() if 'axis' in k) == 2
    assert any('dashed: 3 orthogonal' in ax.get_xlabel() for ax in picture.still.axes)


# --- clusters without labels

def past(*labels): return LabelHistory(np.stack(labels), [('one', e) for e in range(len(labels))])


def groups(n=900, k=3):
    "Embedding and labels of k groups that stand apart."
    labels = np.arange(n) % k
    return 3 * np.eye(8)[labels] + np.random.default_rng(0).normal(size=(n, 8)), labels


def test_clusters_that_stand_apart_raise_no_doubt_and_are_not_called_good():
    z, labels = groups()
    found = weigh(z, labels, views=[labels, labels], history=past(labels, labels),
                  pixel_labels=np.random.default_rng(0).integers(0, 3, len(labels)))
    assert found.doubts == {} and found.same_in_views == 1 and found.moved == 0
    assert found.silhouette == pytest.approx(found.silhouette_kmeans, abs=.02) and found.as_kmeans > .95
    assert found.by_chance == pytest.approx(1 / 3)
    assert 'does not prove' in str(found) and 'k-means on the same embedding' in str(found)
    assert not re.search(r'\b(good|worked|success|correct)', str(found), re.I)


def test_mixed_clusters_are_doubtful():
    z, labels = groups()
    rng = np.random.default_rng(1)
    mixed = rng.permutation(labels)
    found = weigh(z, mixed, views=rng.integers(0, 3, (2, 500)), history=past(*rng.integers(0, 3, (12, len(labels)))),
                  pixel_labels=mixed)
    assert set(found.doubts) == {'silhouette', 'same_in_views', 'moved', 'as_pixels'}
    assert str(found).startswith('These clusters are doubtful: k-means separates') and 'To try: ' in str(found)
    assert found.silhouette < .05 < found.silhouette_kmeans and abs(found.same_in_views - found.by_chance) < .1
    assert '\n' not in str(found) and found.to_dict()['sentence'] == str(found)
    table = found._repr_markdown_().splitlines()
    assert all(line.count('|') == 4 for line in table[2:])


@pytest.mark.parametrize('given, sign', [
    (dict(views=np.r_[[np.arange(900) % 3], [(np.arange(900) + (np.arange(900) % 5 == 0)) % 3]]), 'same_in_views'),
    (dict(history=past(np.arange(900) % 3, (np.arange(900) + (np.arange(900) % 9 == 0)) % 3)), 'moved'),
    (dict(pixel_labels=(np.arange(900) + 1) % 3), 'as_pixels')])
def test_each_doubt_alone(given, sign):
    assert list(weigh(*groups(), **given).doubts) == [sign]


def test_one_cluster_noise_and_too_few_samples():
    z, labels = groups()
    assert 'few' in weigh(z, np.zeros(900, int)).doubts and 'few' in weigh(z, np.full(900, -1)).doubts
    noisy = np.where(np.arange(900) % 4 == 0, -1, labels)
    assert weigh(z, noisy).silhouette == pytest.approx(weigh(z[noisy >= 0], labels[noisy >= 0]).silhouette)
    assert weigh(z[:3], labels[:3]).silhouette is None and weigh(np.ones((9, 2)), np.arange(9) % 2).silhouette is None
    z[5] = np.nan
    assert np.isfinite(weigh(z, labels).silhouette)


def test_cluster_numbers_do_not_matter():
    z, labels = groups()
    one, other = (weigh(z, x, pixel_labels=labels, history=past(labels, x)) for x in (labels, (labels + 1) % 3))
    assert str(one) == str(other) and one.as_kmeans == pytest.approx(other.as_kmeans)


@pytest.mark.parametrize('bad', [dict(views=[0, 1]), dict(views=np.zeros((1, 5), int)), dict(views=np.zeros((2, 0))),
                                 dict(pixel_labels=[0, 1])])
def test_what_does_not_fit_is_refused_in_one_line(bad):
    with pytest.raises(InputError) as e: weigh(*groups(), **bad)
    assert '\n' not in str(e.value)


def test_nothing_measured_says_so_without_praise():
    assert str(Evidence(3)) == ('Nothing measured speaks against these clusters, which does not prove them: '
                                'so look at the gallery.')


@pytest.mark.parametrize('method', METHODS)
def test_views_of_a_fitted_run(method, tiny_run):
    model = open_run(tiny_run(method), 'cpu')
    X = np.random.default_rng(0).normal(size=(100, 2)).astype('f4') if method == 'nmc' else load('digits', limit=40)
    views = model.predict_views(X, 3, seed=1)
    assert views.shape == (3, len(X)) and views.max() < model.n_clusters_ and (views >= -1).all()
    assert (views == model.predict_views(X, 3, seed=1)).all()


def unlabelled(n=120): return as_images(load('digits', limit=n).pixels.numpy())


@pytest.mark.parametrize('labelled', [True, False])
def test_evidence_of_a_run(labelled, tmp_path):
    images = load('digits', limit=120) if labelled else unlabelled()
    small = dict(stages='representation', clusters='kmeans', epochs=1, hidden_dim=32, z_dim=12, batch_size=60)
    model = NMCE(dataset='digits', n_clusters=10, device='cpu', run_dir=str(tmp_path / 'run'), **small).fit(images)
    found = evidence(model, images, n_views_of=60)
    assert found.n_clusters == 10 and found.moved is None       # clusters were found once, at the end
    assert found.silhouette == pytest.approx(found.silhouette_kmeans, abs=.02) and found.as_kmeans > .5
    assert found.by_chance < found.same_in_views < .9 and 'same_in_views' in found.doubts
    assert 0 < found.as_pixels <= 1


@pytest.mark.parametrize('method, moved', [('nmce', True), ('nmc', False), ('sela', True), ('deep_cluster', True),
                                           ('anchors', True)])
def test_moves_come_from_the_label_history(method, moved, tiny_run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(tiny_run(method), folder)
    past = folder / 'label_history.bin'
    assert past.is_file() == moved
    if moved: assert len(read_label_history(folder).epochs) >= 1
