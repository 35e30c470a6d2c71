"""The explorer on 60,000 images in a real browser: seconds from what a person does to what they see.

    python -m tests.bench explorer --data FOLDER        with mnist.npz in it; needs chromium and playwright"""
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from tests.browsing import drawn, lasso, notebook, run_all, seconds_until, times_drawn

CELL = '''
from nmc_workbench.explore.explorer import Explorer
explorer = Explorer.of_runs({root!r}, {first!r}, map_method='pca')
explorer
'''
MEMORY = '''
import re
status = open('/proc/self/status').read()
print(*(word for key in ('VmRSS', 'VmHWM') for word in (key, re.search(key + r':\\s+(\\d+)', status)[1])))
'''


def large_run(folder, data, n=60_000, k=10):
    "A run folder of MNIST: 32 principal components, k-means, and the first two components as its map."
    from sklearn.cluster import MiniBatchKMeans
    from nmc_workbench.core.files import write_array, write_json
    from nmc_workbench.data import load
    images = load('npz', root=data, limit=n) if n < 60_000 else load('npz', root=data)
    x = images.pixels.flatten(1).numpy().astype('f4') / 255
    x -= x.mean(0)
    _, v = np.linalg.eigh(x.T @ x)
    z = x @ v[:, ::-1][:, :32]
    labels = MiniBatchKMeans(k, random_state=0, n_init=3).fit_predict(z)
    limit = None if n == len(images) and n == 60_000 else n
    config = dict(method='NMCE', dataset='npz', data_dir=str(data), split='train', seed=0, limit=limit)
    write_json(folder / 'config.json', dict(config, data=images.fingerprint()))
    write_json(folder / 'results.json', dict(acc=0.))
    arrays = dict(embeddings=z, predictions=labels, ids=images.ids, true_labels=images.labels.numpy(), map2d=z[:, :2])
    for name, array in arrays.items(): write_array(folder / f'{name}.npy', array)
    return folder


def small_run(folder):
    "Another run, to start with."
    from nmc_workbench.core.files import write_array, write_json
    x = np.random.default_rng(0).normal(size=(60, 2)).astype('f4')
    write_json(folder / 'config.json', dict(method='NMCE', dataset='digits', seed=0))
    arrays = dict(embeddings=x, predictions=np.arange(60) % 3)
    for name, array in arrays.items(): write_array(folder / f'{name}.npy', array)
    return folder


def drag_around(page, share):
    "The corners of a square around the middle of the map that takes that share of its sides."
    box = page.locator('.nmc-map canvas').bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    half = share * min(box['width'], box['height']) / 2
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def marked(page): return int(page.locator('.nmc-map').first.get_attribute('data-marked') or 0)


def about(page, wanted, low=.02, high=1.):
    "The share of a lasso that takes about as many points as wanted, by halving."
    for _ in range(12):
        share = (low + high) / 2
        before = times_drawn(page, '.nmc-tiles')
        lasso(page, drag_around(page, share))
        drawn(page, '.nmc-tiles', before + 1)
        page.wait_for_timeout(300)
        if abs(marked(page) - wanted) < .04 * wanted: return share
        low, high = (share, high) if marked(page) < wanted else (low, share)
    return share


def released(page, corners):
    "Seconds from the end of a lasso until the gallery is drawn."
    page.mouse.move(*corners[0])
    page.mouse.down()
    for x, y in [*corners[1:], corners[0]]: page.mouse.move(x, y, steps=3)
    return seconds_until(page, page.mouse.up, '.nmc-tiles')


def used(page, address, work, root, first):
    "What a person would wait for, in one session."
    notebook(work / 'bench.ipynb', CELL.format(root=str(root), first=str(first)), MEMORY)
    run_all(page, address('bench.ipynb'))
    drawn(page, '.nmc-map'), drawn(page, '.nmc-tiles')
    start = time.perf_counter()
    mnist = [o for o in page.locator('.nmc-run option').all() if o.inner_text().endswith('mnist')][0]
    page.locator('.nmc-run select').select_option(value=mnist.get_attribute('value'))
    page.locator('.nmc-map-title', has_text='npz').wait_for()
    drawn(page, '.nmc-map')
    first_map = time.perf_counter() - start
    drawn(page, '.nmc-tiles')
    out = dict(first_picture_s=round(first_map, 2), with_gallery_s=round(time.perf_counter() - start, 2))
    page.locator('.nmc-about', has_text='nothing is selected').wait_for()
    page.wait_for_timeout(2000)
    corners = drag_around(page, about(page, 5000))
    times = []
    for _ in range(7):
        times.append(released(page, corners))
        page.wait_for_timeout(700)
    turned = []
    for _ in range(7):
        turned.append(seconds_until(page, page.get_by_title('next page').click, '.nmc-tiles'))
        page.wait_for_timeout(300)
    page.evaluate("() => { const c = window.jupyterapp.shell.currentWidget.content; c.activeCellIndex = 1; }")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")
    text = page.locator('.jp-OutputArea-output', has_text='VmRSS').inner_text().split()
    return out | dict(lasso_points=marked(page),
                      lasso_ms=round(1000 * median(times)), lasso_largest_ms=round(1000 * max(times)),
                      page_ms=round(1000 * median(turned)), page_largest_ms=round(1000 * max(turned)),
                      kernel_mb=round(int(text[1]) / 1000), kernel_peak_mb=round(int(text[3]) / 1000))


def measure(data):
    "A server, a browser, a run of MNIST."
    from playwright.sync_api import sync_playwright
    from tests.conftest import CHROMIUM, FLAGS, lab_server
    folder = Path(tempfile.mkdtemp())
    try:
        root = folder / 'runs'
        large_run(root / 'mnist', Path(data) / 'mnist.npz')
        first = small_run(root / 'small')
        os.utime(first / 'config.json')
        with lab_server(folder) as address, sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
            page = browser.new_page(viewport=dict(width=1600, height=1100))
            page.set_default_timeout(180_000)
            out = used(page, address, address.work, root, first)
            browser.close()
        return dict(n=60_000, **out)
    finally: shutil.rmtree(folder, ignore_errors=True)
