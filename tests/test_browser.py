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
    page.locator('.nmc-map-title', has_text='NMCE, digits').first.wait_for()      # the label history follows
    drawn(page, '.nmc-map')
    drawn(page, '.nmc-tiles')
    page.locator('.js-plotly-plot').nth(2).wait_for(state='attached')
    to_top(page)
    # hover: id, cluster and the image itself
    page.mouse.move(*point(page, 7))
    page.locator('.nmc-tip').get_by_text('confidence').wait_for()
    assert page.locator('.nmc-tip img').first.evaluate('e => e.complete && e.naturalWidth') == 8
    # draw around two points: the map marks them, and so does the gallery
    near = [point(page, i) for i in (3, 11)]
    seconds_until(page, lambda: lasso(page, around(near)), '.nmc-tiles')
    page.locator('.nmc-about', has_text='drawn around').wait_for()
    marked = int(page.locator('.nmc-map').first.get_attribute('data-marked'))
    tiles = page.locator('.nmc-tiles').first.locator('.nmc-tile')
    assert marked >= 2 and tiles.count() == min(marked, 96) and f'{marked:,} of 300' in about(page)
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
EDGES = '''() => [...document.querySelectorAll(".nmc-map, .nmc-tiles, .js-plotly-plot")].filter(
  (e) => e.offsetParent).map((e) => {
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
    page.locator('.js-plotly-plot').nth(2).wait_for(state='attached')
    time.sleep(1)
    edges = page.evaluate(EDGES)
    assert len(edges) >= 3 and all(right <= edge + 1 and wide > 200 for right, edge, wide in edges)
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
        page.locator('.js-plotly-plot').nth(2).wait_for(state='attached')
        seconds_until(page, lambda: page.locator('.nmc-clusters select').select_option(index=[0]), '.nmc-tiles')
        page.locator('.nmc-about', has_text='cluster 0').wait_for()
        assert page.locator('.jp-InputArea-editor').count() == 0 and page.outside == [] and page.errors == []
        assert page.title() == 'NMCE, digits, seed 0 · runs0/digits'.replace('runs0', runs.name)
        assert page.locator('table', has_text='measured').count() == 0 and page.locator('h1').count() == 0


# Which of these are wholly inside the window, and whether a tile is cut by the gallery's edge.
IN_SIGHT = '''() => [".nmc-map", ".nmc-tiles", ".nmc-clusters select", ".nmc-save"].map((s) => {
  const r = document.querySelector(s).getBoundingClientRect();
  return [s, Math.round(r.left), Math.round(r.top), Math.round(r.right), Math.round(r.bottom)];
})'''
CUT_TILES = '''() => {
  const box = document.querySelector(".nmc-tiles"), {right, bottom} = box.getBoundingClientRect(), cut = [];
  for (const tile of box.querySelectorAll(".nmc-tile")) {
    const t = tile.getBoundingClientRect(), line = tile.parentElement.getBoundingClientRect();
    const hidden = t.top >= Math.min(line.bottom, bottom) - 1;
    if (!hidden && (t.right > right + 1 || t.bottom > Math.min(line.bottom, bottom) + 1)) cut.push(tile.dataset.i);
  }
  return cut;
}'''

CUT_TITLES = '''() => [...document.querySelectorAll(".jupyter-widget-TabPanel-tabBar .lm-TabBar-tabLabel")].filter(
  (e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.innerText)'''


@pytest.mark.parametrize('width, height, theme', [(1280, 800, 'light'), (1280, 800, 'dark'), (1920, 1080, 'light')])
def test_one_screen(new_page, lab, runs, width, height, theme):
    "Map, gallery and the list of clusters are in sight together, no tile is cut, and the figures stand on tabs."
    page = new_page(width, height)
    opened(page, lab, runs, f'one{width}{theme}.ipynb', run_dir=str(runs / 'digits'))
    page.evaluate(THEME, theme.title())
    page.evaluate("""() => {
      window.jupyterapp.commands.execute('application:toggle-left-area');
      window.jupyterapp.commands.execute('notebook:hide-all-cell-code');
    }""")
    page.wait_for_timeout(1000)
    to_top(page)
    for selector, left, top, right, bottom in page.evaluate(IN_SIGHT):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height - 24, selector        # a status line below
    assert page.evaluate(CUT_TILES) == []
    tabs = page.locator('.jupyter-widget-TabPanel-tabBar .lm-TabBar-tab:visible')
    assert tabs.all_inner_texts() == ['matrix', 'sizes', 'curves', 'table', 'marks', 'duplicates']
    assert page.evaluate(CUT_TITLES) == []
    for i in range(3):
        tabs.nth(i).click()
        page.wait_for_function('[...document.querySelectorAll(".js-plotly-plot")].filter(e => e.offsetParent)'
                               '.some(e => e.clientWidth > 300)')
    assert page.errors == []


def test_a_tile_opens_large_and_escape_lets_go(page, lab, runs):
    "A click on a tile of a selection shows it large with what is known of it; Esc goes back, then lets go."
    opened(page, lab, runs, 'large.ipynb', run_dir=str(runs / 'digits'))
    to_top(page)
    seconds_until(page, lambda: page.locator('.nmc-clusters select').select_option(index=[0]), '.nmc-tiles')
    page.locator('.nmc-tile').nth(2).click()
    large = page.locator('.nmc-large')
    large.get_by_text('8 × 8 pixels').wait_for()
    text = large.inner_text()
    assert 'all/' in text and 'cluster ' in text and 'class ' in text and 'confidence ' in text
    assert large.locator('img').evaluate('e => e.complete && e.naturalWidth') == 8
    before = text
    page.keyboard.press('ArrowRight')
    page.wait_for_function('t => document.querySelector(".nmc-large")?.innerText !== t', arg=before)
    page.keyboard.press('Escape')
    large.wait_for(state='detached')
    assert 'of 300' in about(page)
    page.keyboard.press('Escape')
    page.locator('.nmc-about', has_text='nothing is selected').wait_for()
    page.wait_for_function('document.querySelector(".nmc-map").dataset.marked === ""')
    assert page.errors == []


def test_the_colours_are_explained(page, lab, runs):
    "A scale for confidence, a key for classes, on the map and below the tiles."
    opened(page, lab, runs, 'colours.ipynb', run_dir=str(runs / 'digits'))
    assert '9' in page.locator('.nmc-frames').inner_text()
    menu = page.locator('.widget-dropdown', has_text='colour').locator('select')
    menu.select_option('confidence')
    page.locator('.nmc-key', has_text='confidence').first.wait_for()
    assert 'gradient' in page.locator('.nmc-key').first.inner_html()
    menu.select_option('class')
    page.locator('.nmc-key', has_text='class').first.wait_for()
    menu.select_option('cluster')
    page.wait_for_function('document.querySelector(".nmc-key").textContent === ""')


def test_two_explorers_in_two_windows(new_page, lab, runs):
    "The second to save is told, and merges with a click."
    import json
    import shutil
    edits = shutil.ignore_patterns('curation.json')                  # of other tests
    shutil.copytree(runs / 'digits', lab.work / 'shared/digits', ignore=edits)
    first, second = new_page(), new_page()
    for page, name in ((first, 'one.ipynb'), (second, 'two.ipynb')):
        opened(page, lab, lab.work / 'shared', name, run_dir=str(lab.work / 'shared/digits'))
    for page, i, name in ((first, 0, 'ours'), (second, 1, 'theirs')):
        page.locator('.nmc-clusters select').select_option(index=[i])
        page.locator('.nmc-about', has_text='cluster').wait_for()
        page.locator('.nmc-name-box input').fill(name)
        page.locator('.nmc-name-box input').press('Enter')
        page.locator('.nmc-name').click()
        page.locator('.nmc-clusters option', has_text=name).wait_for(state='attached')
        page.locator('.nmc-save').click()
        if page is first: page.locator('.nmc-message', has_text='saved 1 edit to').wait_for()
    second.locator('.nmc-message', has_text='saved elsewhere').wait_for()
    second.locator('.nmc-merge-and-save').click()
    second.locator('.nmc-message', has_text='saved 2 edits to').wait_for()
    second.locator('.nmc-merge-and-save').wait_for(state='hidden')
    names = json.loads((lab.work / 'shared/digits/curation.json').read_text())['names']
    assert sorted(names.values()) == ['ours', 'theirs']
    assert first.errors == [] == second.errors
