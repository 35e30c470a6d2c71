"""Looking closer: similar samples of 60,000, and the point map in a browser beside jupyter-scatter.

    python -m tests.bench find_similar
    python -m tests.bench point_map         needs chromium and playwright; with jupyter-scatter installed, both maps"""
import os
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

from tests.browsing import notebook, run_all


def similar(n=60_000, d=512, times=21):
    "Milliseconds to find the 48 samples most like one, and what is paid once."
    import torch
    from nmc_workbench.explore.similar import Similar
    x = np.random.default_rng(0).normal(size=(n, d)).astype('f4')
    start = time.perf_counter()
    s, found = Similar(x), []
    once, cpu = time.perf_counter() - start, time.process_time()
    for i in range(times):
        start = time.perf_counter()
        s.of(i * 997 % n, 48)
        found.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    return dict(n=n, d=d, threads=torch.get_num_threads(), load=_load(), once_ms=round(1000 * once),
                cpu_ms=round(1000 * cpu / times, 1), ms=round(1000 * median(found), 1),
                largest_ms=round(1000 * max(found), 1))


def _load(): return round(os.getloadavg()[0], 1)     # how busy the machine was with other work


# What each map is made of in a notebook; `heard` collects (seconds since the epoch, what, number).
DATA = '''
import json, time
import numpy as np
from ipywidgets.embed import dependency_state
rng, n = np.random.default_rng(0), {n}
y = rng.integers(0, 10, n)
where = (rng.normal(size=(10, 2))[y] * 4 + rng.normal(size=(n, 2))).astype('f4')
heard = []
def note(what, value): heard.append((time.time(), what, value))
'''
OWN = '''
from nmc_workbench.plotting.colours import cluster_colours
from nmc_workbench.widgets.scatter import PointMap
points = PointMap(where, y, cluster_colours(10), height=500)
points.on_lasso(lambda index: note('lasso', len(index)))
points.on_hover(lambda i: (note('hover', int(i)) or f'sample {i}', None))
note('made', 0)
points'''
OTHER = '''
import jscatter, pandas as pd
frame = pd.DataFrame(dict(x=where[:, 0], y=where[:, 1], c=pd.Categorical(y)))
points = jscatter.Scatter(data=frame, x='x', y='y', color_by='c', height=500)
points.widget.observe(lambda change: note('lasso', int(np.size(change.new))), 'selection')
points.widget.observe(lambda change: note('hover', change.new), 'hovering')
note('made', 0)
points.show()'''
# All cells are run at the start; the mode changes when this one is run again.
LASSO = '''
turns = globals().get('turns', 0) + 1
if turns > 1 and hasattr(points, 'widget'): points.widget.mouse_mode = 'lasso'
print('turn', turns)'''
ASKED = '''
root = getattr(points, 'widget', points)
size = len(json.dumps(dependency_state([root], drop_defaults=True)))
print('SAID' + json.dumps(dict(heard=heard, size=size)))'''
# Count what is drawn on canvases, and when the first point is to be seen on one.
COUNT = '''
  window.nmcFrames = 0;
  const seen = new WeakMap();
  for (const name of ['putImageData', 'drawImage']) {
    const own = CanvasRenderingContext2D.prototype[name];
    CanvasRenderingContext2D.prototype[name] = function(...given) {
      own.apply(this, given);
      if (!this.canvas.isConnected || this.canvas.width < 200) return;
      window.nmcFrames++;
      if (window.nmcFirst) return;
      const {data} = this.getImageData(0, 0, this.canvas.width, this.canvas.height);
      for (let o = 0; o < data.length; o += 4)
        if (data[o + 3] > 200 && Math.max(data[o], data[o + 1], data[o + 2]) - Math.min(data[o], data[o + 1],
            data[o + 2]) > 60) { window.nmcFirst = Date.now() / 1000; return; }
    };
  }
'''
LARGEST = '''() => [...document.querySelectorAll('.jp-OutputArea canvas')].map(c => c.getBoundingClientRect()).filter(
  r => r.width > 200).map(r => [r.left, r.top, r.width, r.height])[0]'''
RELEASED = '''() => addEventListener('pointerup', () => { window.nmcReleased = Date.now() / 1000; }, true)'''


def run_cell(page, cell):
    page.evaluate(f"() => {{ window.jupyterapp.shell.currentWidget.content.activeCellIndex = {cell}; }}")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")


def asked(page, cell):
    "Run the last cell, and return what it says."
    import json
    run_cell(page, cell)
    said = page.locator('.jp-Cell').nth(cell).locator('.jp-OutputArea-output', has_text='SAID')
    said.wait_for()
    for _ in range(100):
        try: return json.loads(said.inner_text().split('SAID')[1])
        except ValueError: page.wait_for_timeout(100)
    raise TimeoutError('the kernel did not answer')


def frames_while(page, act):
    "Frames per second while something goes on."
    before, start = page.evaluate('window.nmcFrames'), time.perf_counter()
    act()
    return round((page.evaluate('window.nmcFrames') - before) / (time.perf_counter() - start), 1)


def dragged(page, x, y, seconds=4):
    "Drag to and fro."
    page.mouse.move(x, y)
    page.mouse.down()
    end, k = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        k += 1
        page.mouse.move(x + 60 * np.sin(k / 6), y + 30 * np.cos(k / 6))
    page.mouse.up()


def drawn_around(page, x, y, half):
    "A lasso around a square."
    page.mouse.move(x - half, y - half)
    page.mouse.down()
    for dx, dy in ((1, -1), (1, 1), (-1, 1), (-1, -1)): page.mouse.move(x + dx * half, y + dy * half, steps=3)
    page.mouse.up()


def measured(page, address, kind, n):
    "One map in one notebook."
    name = f'{kind}{n}.ipynb'
    notebook(address.work / name, DATA.format(n=n), OWN if kind == 'own' else OTHER, LASSO, ASKED)
    page.add_init_script(COUNT)
    run_all(page, address(name))
    page.wait_for_function('window.nmcFirst', timeout=150_000)
    page.wait_for_timeout(1500)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:hide-all-cell-code')")
    page.locator('.jp-OutputArea canvas').first.scroll_into_view_if_needed()
    page.evaluate(RELEASED)
    page.wait_for_timeout(1000)
    first = page.evaluate('window.nmcFirst')
    left, top, width, height = page.evaluate(LARGEST)
    x, y = left + width / 2, top + height / 2
    if kind == 'own': page.get_by_text('move', exact=True).click()
    pan = frames_while(page, lambda: dragged(page, x, y))
    page.wait_for_timeout(500)
    if kind == 'own': page.get_by_text('lasso', exact=True).click()
    else: run_cell(page, 2)
    page.wait_for_timeout(1000)
    page.locator('.jp-OutputArea canvas').first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    left, top, width, height = page.evaluate(LARGEST)
    x, y = left + width / 2, top + height / 2
    released = []
    for half in (60, 80, 70)[:3 if n < 500_000 else 1]:        # a million may take seconds for each move of the mouse
        drawn_around(page, x, y, half)
        page.wait_for_timeout(2500 if n < 500_000 else 8000)
        released.append(page.evaluate('window.nmcReleased'))
    page.wait_for_timeout(500)
    moved = []
    for dx in (-40, 0, 40)[:3 if n < 500_000 else 1]:
        page.mouse.move(x + dx, y + 100)
        page.wait_for_timeout(300)
        moved.append(time.time())
        page.mouse.move(x + dx, y + dx / 4)
        page.wait_for_timeout(1500)
    said = asked(page, 3)
    made = next(t for t, what, _ in said['heard'] if what == 'made')
    return dict(first_frame_s=round(first - made, 2), pan_frames_per_s=pan,
                lasso_ms=_delay(said['heard'], 'lasso', released),
                lasso_points=max((v for _, w, v in said['heard'] if w == 'lasso'), default=0),
                hover_ms=_delay(said['heard'], 'hover', moved), state_bytes=said['size'])


def _delay(heard, what, starts):
    "The median of the milliseconds from each start until the kernel heard of it."
    found = [min((t - s for t, w, v in heard if w == what and v is not None and 0 <= t - s < 60), default=None)
             for s in starts]
    return None if None in found else round(1000 * median(found))


def point_map(sizes=(60_000, 1_000_000), kinds=('own', 'jupyter_scatter')):
    "Both maps at both sizes, each in a new page; what a page asked of other hosts is counted."
    from playwright.sync_api import sync_playwright
    from tests.conftest import CHROMIUM, FLAGS, lab_server
    if find_spec('jscatter') is None: kinds = ('own',)
    rows = []
    with tempfile.TemporaryDirectory() as home, lab_server(Path(home)) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        for n in sizes:
            for kind in kinds:
                page, outside = browser.new_page(viewport=dict(width=1400, height=900)), []
                page.set_default_timeout(120_000)
                page.on('request', lambda r, outside=outside: None if r.url.startswith(
                    ('http://127.0.0.1', 'ws://127.0.0.1', 'data:', 'blob:')) else outside.append(r.url))
                rows.append(dict(n=n, map=kind, **measured(page, address, kind, n), requests_outside=len(outside),
                                 load=_load()))
                print(rows[-1], flush=True)
                page.close()
        version = browser.version
        browser.close()
    other = {} if find_spec('jscatter') is None else dict(jupyter_scatter=metadata.version('jupyter-scatter'))
    return dict(browser=f'Chromium {version}, headless, WebGL in software', **other, rows=rows)
