"""Pictures of the explorer for the docs, from a real JupyterLab.

    python -m tests.screens runs/demo/run docs/images"""
import sys
import tempfile
from pathlib import Path

from PIL import Image

from .browsing import around, drawn, lasso, point, prepared, run_all
from .conftest import CHROMIUM, FLAGS, lab_server

PANES = '''() => {
  const commands = window.jupyterapp.commands;
  commands.execute('application:toggle-left-area');
  commands.execute('application:set-mode', {mode: 'single-document'});
}'''
THEME = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab ' + name})"


def quiet(page, theme):
    "Show only the explorer: no side bar, no code."
    page.evaluate(PANES)
    page.evaluate(THEME, theme.title())
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:hide-all-cell-code')")
    page.locator('.js-plotly-plot').nth(2).wait_for(state='attached')
    page.wait_for_timeout(1500)
    page.locator('.nmc-run').evaluate('e => e.scrollIntoView()')
    page.wait_for_timeout(500)


def shot(page, path):
    "Save the page as a small PNG."
    page.screenshot(path=path)
    Image.open(path).convert('RGB').quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, Path(path).stat().st_size)


def main(run, out):
    from playwright.sync_api import sync_playwright
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, lab_server(Path(home)) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        for width, theme in ((1280, 'light'), (1280, 'dark'), (1920, 'light'), (1920, 'dark')):
            page = browser.new_page(viewport=dict(width=width, height=1080))
            page.set_default_timeout(120_000)
            name = f'{width}{theme}/explore_run.ipynb'
            (address.work / name).parent.mkdir()
            folder = run.resolve()
            prepared('nbs/explore_run.ipynb', address.work / name, run_dir=str(folder), root=str(folder.parent),
                     data_dir='data')
            run_all(page, address(name))
            drawn(page, '.nmc-map'), drawn(page, '.nmc-tiles')
            quiet(page, theme)
            if theme == 'light':
                x, y = point(page, 0)
                lasso(page, around([(x, y)], 45))
                page.mouse.move(x, y)
                page.locator('.nmc-tip').get_by_text('confidence').wait_for()
                page.wait_for_timeout(800)
            shot(page, out / f'explore_run_{width}_{theme}.png')
            page.close()
        browser.close()


if __name__ == '__main__': main(Path(sys.argv[1]), Path(sys.argv[2]))
