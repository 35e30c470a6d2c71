"""The explorer notebook in a real JupyterLab, used by a real Chromium as a person would use it.

No test waits for a time if it can wait for what a person would see.
What needs no browser is tested in test_explorer.py: a widget's callbacks work without a kernel."""
import csv
import time

import numpy as np
import pytest

from tests.conftest import ROOT, free_port, serve
from tests.browsing import around, drawn, lasso, notebook, point, prepared, run_all, seconds_until

pytestmark = pytest.mark.slow
HOSTILE = '<script>alert("x")</script> & \'quotes\' 😀 <b>bold</b>'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run with images, and one whose number of clusters follows a threshold."
    from nmc_workbench.data import load
    from nmc_workbench.methods import NMC, NMCE
    root = tmp_path_factory.mktemp('runs')
    y = np.arange(400) % 4
    centres = np.array([[0, 0], [5, 0], [0, 5], [8, 8]])
    points = (centres[y] + np.random.default_rng(0).normal(size=(400, 2))).astype('f4')
    nmc = NMC(epochs=100, batch_size=64, potential_hidden=64, noise_low=.05, noise_high=.3, lr=1e-2, tau=0.,
              device='cpu', run_dir=str(root / 'hills'))
    nmc.fit(points, y)
    nmce = NMCE(dataset='digits', limit=300, batch_size=100, epochs=4, cluster_epochs=15, finetune_epochs=2, n_init=2,
                device='cpu', run_dir=str(root / 'digits'))
    nmce.fit(load('digits', limit=300))
    return root


def opened(page, lab, runs, name='explore.ipynb', **parameters):
    "Open the explorer on these runs; return when its map is drawn."
    prepared('nbs/explore_run.ipynb', lab.work / name, root=str(runs), map_method='pca', **parameters)
    run_all(page, lab(name))
    page.locator('.nmc-run select').wait_for()
    drawn(page, '.nmc-map')
    drawn(page, '.nmc-tiles')


def clusters(page): return page.locator('.nmc-clusters option').all_inner_texts()
def about(page): return page.locator('.nmc-about').inner_text()


def to_top(page):
    "Bring the explorer into sight."
    page.locator('.nmc-run').evaluate('e => e.scrollIntoView()')
    page.wait_for_timeout(300)


def pick(page, run):
    "Choose a run from the menu."
    options = page.locator('.nmc-run option').all()
    value = next(o.get_attribute('value') for o in options if o.inner_text().endswith(run))
    page.locator('.nmc-run select').select_option(value)


OPTIONS = 'document.querySelectorAll(".nmc-clusters option")'
ERRORS = '[data-mime-type="application/vnd.jupyter.stderr"]'
LARGEST_CELL = '''e => {
  const {xaxis, yaxis} = e._fullLayout, r = e.getBoundingClientRect(), z = e._fullData[0].z;
  let best = [0, 0];
  z.forEach((row, i) => row.forEach((value, j) => { if (value > z[best[0]][best[1]]) best = [i, j]; }));
  return [r.left + xaxis._offset + xaxis.c2p(best[1]), r.top + yaxis._offset + yaxis.c2p(best[0])];
}'''


def test_a_sitting(page, lab, runs):
    "Open, run all, pick a run, hover, lasso, click a cell, merge, undo, name, export."
    opened(page, lab, runs, run_dir=str(runs / 'hills'))
    page.locator('.nmc-map-title', has_text='NMC, ').wait_for()
    pick(page, 'digits')
    page.locator('.nmc-map-title', has_text='NMCE, digits').wait_for()
    drawn(page, '.nmc-map')
    drawn(page, '.nmc-tiles')
    page.locator('.js-plotly-plot').nth(2).wait_for()
    to_top(page)
    # hover: id, cluster and the image itself
    page.mouse.move(*point(page, 7))
    page.locator('.nmc-tip').get_by_text('confidence').wait_for()
    assert page.locator('.nmc-tip img').evaluate('e => e.complete && e.naturalWidth') == 8
    # draw around two points: the map marks them, and so does the gallery
    near = [point(page, i) for i in (3, 11)]
    seconds_until(page, lambda: lasso(page, around(near)), '.nmc-tiles')
    page.locator('.nmc-about', has_text='drawn around').wait_for()
    marked = int(page.locator('.nmc-map').first.get_attribute('data-marked'))
    assert marked >= 2 and page.locator('.nmc-tile').count() == min(marked, 96) and f'{marked:,} of 300' in about(page)
    # a cell of the matrix
    cells = page.locator('.js-plotly-plot', has=page.locator('.heatmaplayer')).first
    cells.wait_for()
    cells.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    where = cells.evaluate(LARGEST_CELL)
    page.mouse.move(where[0] - 2, where[1] - 2)
    page.mouse.move(*where)
    page.wait_for_timeout(300)                      # plotly takes a click only where the pointer has come to rest
    seconds_until(page, lambda: page.mouse.click(*where), '.nmc-tiles')
    page.locator('.nmc-about', has_text=', class ').wait_for()
    # merge two clusters of the list, and undo
    before = clusters(page)
    page.locator('.nmc-clusters select').select_option(index=[0, 1])
    page.locator('.nmc-about', has_text='cluster').wait_for()
    page.locator('.nmc-merge').click()
    page.wait_for_function(f'n => {OPTIONS}.length === n', arg=len(before) - 1)
    page.locator('.nmc-undo').click()
    page.wait_for_function(f'n => {OPTIONS}.length === n', arg=len(before))
    assert clusters(page) == before
    # a name that would do harm were it HTML
    page.on('dialog', lambda d: page.errors.append(d.message))
    page.locator('.nmc-clusters select').select_option(index=[1])
    page.locator('.nmc-name-box input').fill(HOSTILE)
    page.locator('.nmc-name-box input').press('Enter')
    page.locator('.nmc-name').click()
    page.locator('.nmc-clusters option', has_text='<script>').wait_for(state='attached')
    page.locator('.nmc-export-csv').click()
    page.locator('.nmc-message', has_text='labels.csv').wait_for()
    page.locator('.nmc-save').click()
    page.locator('.nmc-message', has_text='curation.json').wait_for()
    rows = list(csv.DictReader(open(runs / 'digits/labels.csv', encoding='utf-8', newline='')))
    assert len(rows) == 300 and list(rows[0]) == ['id', 'path', 'cluster', 'name', 'confidence']
    assert [r['id'] for r in rows] == np.load(runs / 'digits/ids.npy').tolist()
    assert [int(r['cluster']) for r in rows] == np.load(runs / 'digits/predictions.npy').tolist()
    assert HOSTILE in {r['name'] for r in rows}
    assert page.outside == [] and page.errors == []
    # a reloaded page shows the present state
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    page.locator('.nmc-clusters option', has_text='<script>').wait_for(state='attached')
    drawn(page, '.nmc-map')
    assert page.locator(ERRORS).all_inner_texts() == [] and page.outside == [] and page.errors == []


def test_the_threshold(page, lab, runs):
    "For a run of NMC the threshold merges clusters in every view."
    opened(page, lab, runs, 'hills.ipynb', run_dir=str(runs / 'hills'))
    n = len(clusters(page))
    assert n > 1
    handle = page.locator('.noUi-handle').first
    handle.focus()
    for _ in range(40):
        for _ in range(10): handle.press('ArrowRight')
        page.wait_for_timeout(150)
        if len(clusters(page)) < n: break
    assert len(clusters(page)) < n
    page.locator('.nmc-scores', has_text=f'{len(clusters(page))} clusters').wait_for()
    assert page.errors == [] and page.outside == []


def test_code_and_screen_agree(page, lab, runs):
    "What is set in Python shows; what is selected on the screen can be read in Python."
    notebook(lab.work / 'code.ipynb', f'''
from nmc_workbench.explore.explorer import Explorer
explorer = Explorer({str(runs / "digits")!r}, map_method='pca')
explorer''', 'explorer.selection = explorer.run.ids[[5, 9]]', 'print("selected:", *explorer.selection)')
    run_all(page, lab('code.ipynb'))
    page.locator('.nmc-about', has_text='2 of 300').wait_for()
    page.locator('.nmc-map[data-marked="2"]').first.wait_for()      # each view follows on its own
    page.wait_for_function('document.querySelectorAll(".nmc-tile").length === 2')
    ids = np.load(runs / 'digits/ids.npy')
    page.get_by_text(f'selected: {ids[5]} {ids[9]}').first.wait_for()


THEME = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab ' + name})"
EDGES = '''() => [...document.querySelectorAll(".nmc-map, .nmc-tiles, .js-plotly-plot")].map((e) => {
  const own = e.getBoundingClientRect(), output = e.closest(".jp-OutputArea-output").getBoundingClientRect();
  return [own.right, output.right, own.width];
})'''


@pytest.mark.parametrize('width, theme', [(1280, 'light'), (1920, 'dark')])
def test_screens(new_page, lab, runs, width, theme, tmp_path):
    "No view is wider than its output area, and none is narrow."
    page = new_page(width, 1080)
    opened(page, lab, runs, f'screen{width}.ipynb', run_dir=str(runs / 'digits'))
    page.evaluate(THEME, theme.title())
    page.locator(f'body[data-jp-theme-light="{str(theme == "light").lower()}"]').wait_for(state='attached')
    page.locator('.js-plotly-plot').nth(2).wait_for()
    time.sleep(1)
    edges = page.evaluate(EDGES)
    assert len(edges) >= 5 and all(right <= edge + 1 and wide > 200 for right, edge, wide in edges)
    page.screenshot(path=tmp_path / 'screen.png')


def test_the_app(page, runs, tmp_path):
    "The app shows no code, asks for a token, and sends no request to another host."
    port = free_port()
    address = f'http://127.0.0.1:{port}/'
    command = ['bash', 'tools/app.sh', str(runs / 'digits'), '--no-browser', f'--port={port}', '--Voila.token=secret']
    with serve(command, address, ROOT, tmp_path):
        page.goto(address)
        assert page.locator('.nmc-map').count() == 0 and 'login' in page.url
        page.goto(f'{address}?token=secret')
        page.locator('.nmc-map').first.wait_for()
        drawn(page, '.nmc-map')
        drawn(page, '.nmc-tiles')
        page.locator('.js-plotly-plot').nth(2).wait_for()
        seconds_until(page, lambda: page.locator('.nmc-clusters select').select_option(index=[0]), '.nmc-tiles')
        page.locator('.nmc-about', has_text='cluster 0').wait_for()
        assert page.locator('.jp-InputArea-editor').count() == 0 and page.outside == [] and page.errors == []
