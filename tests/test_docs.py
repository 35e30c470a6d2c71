"""The site, as `make docs` leaves it in _docs/html.

Where it has not been built these tests are skipped; with NMC_NEED_BROWSER set, as in CI, they fail."""
import functools
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import missing

SITE = Path(__file__).resolve().parents[1] / '_docs/html'
CURVES = 'nbs/plotting/03_curves'
PAGES = 'docs/pages/home', 'docs/pages/methods/nmce', 'nbs/train_nmce', 'nbs/mathematics/00_losses', CURVES


@pytest.fixture(scope='module')
def site():
    "The address of the site on 127.0.0.1."
    if not (SITE / 'index.html').is_file(): missing('the site is not built (make docs)')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


class Links(HTMLParser):
    "The addresses and the anchors of a page."
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [a[k] for k in ('href', 'src') if a.get(k)]


def test_no_link_leads_nowhere(site):
    "Every link within the site, and its place on the page where it names one."
    pages = {p: Links(p.read_text(encoding='utf-8')) for p in SITE.rglob('*.html') if '_static' not in p.parts}
    broken = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[target].ids if target in pages else None
            lost = parts.fragment and known is not None and unquote(parts.fragment) not in known
            if lost or not target.exists(): broken.append((page.relative_to(SITE).as_posix(), link))
    assert len(pages) > 80 and broken == []


def test_every_notebook_has_a_page(site):
    "In the reference or among the notebooks that run."
    root = SITE.parents[1]
    notebooks = [p.relative_to(root).with_suffix('.html') for p in root.glob('nbs/**/[a-z0-9]*.ipynb')]
    missing_pages = [p.as_posix() for p in notebooks if not (SITE / p).is_file()]
    assert len(notebooks) > 80 and missing_pages in ([], ['nbs/index.html'])


def test_nothing_is_fetched_from_elsewhere(site):
    "No script, style or picture of another host stands in any page."
    elsewhere = re.compile(r'<(?:script|img|iframe)[^>]*src="https?://|<link[^>]*rel="stylesheet"[^>]*href="https?://')
    for page in (p for p in SITE.rglob('*.html') if '_static' not in p.parts):
        assert not elsewhere.search(page.read_text(encoding='utf-8')), page


def has_formulas(path):
    "Whether the markdown of a page has a formula."
    source = SITE / f'_sources/{path}.md.txt'
    return source.is_file() and '$' in source.read_text(encoding='utf-8')


@pytest.mark.parametrize('path', PAGES)
def test_pages(site, new_page, path):
    "No error in the console, figures and formulas drawn, nothing wider than the window, also on a phone."
    for width, scheme in ((1280, 'light'), (1920, 'dark'), (390, 'light')):
        page = new_page(width, 1000, color_scheme=scheme)
        said = []
        page.on('console', lambda m: said.append(m.text) if m.type == 'error' else None)
        page.goto(f'{site}/{path}.html')
        page.wait_for_load_state('networkidle')
        assert page.evaluate('document.documentElement.scrollWidth') <= width + 1
        for figure in page.locator('.figure-to-draw').all():
            figure.scroll_into_view_if_needed()
            figure.locator('.main-svg, canvas').first.wait_for()
        if has_formulas(path): page.locator('mjx-container').first.wait_for()
        for image in page.locator('main img').all():
            image.scroll_into_view_if_needed()
            assert image.evaluate('e => e.decode().then(() => e.naturalWidth > 0)')
        assert said == [] and page.errors == [] and page.outside == []


def test_figures_are_interactive(site, new_page):
    page = new_page()
    page.goto(f'{site}/{CURVES}.html')
    figure = page.locator('.figure-to-draw').first
    figure.scroll_into_view_if_needed()
    figure.locator('.modebar').first.wait_for(state='attached')


def test_search_finds_coding_rate(site, new_page):
    page = new_page()
    page.goto(f'{site}/search.html?q=coding_rate')
    page.locator('.search li a', has_text='coding_rate').first.wait_for()
    assert page.outside == []


def test_no_wall_of_code_comes_first(site):
    "On a notebook's page no long code is open."
    for path in SITE.glob('nbs/**/*.html'):
        text = path.read_text(encoding='utf-8')
        opened = re.sub(r'<details.*?</details>', '', text, flags=re.S)
        blocks = re.findall(r'<div class="cell_input[^>]*>.*?<pre>(.*?)</pre>', opened, re.S)
        assert max((b.count('\n') for b in blocks), default=0) <= 12, path
        assert '#| export' not in text and '#| hide' not in text
