"""A JupyterLab server on 127.0.0.1, and a Chromium that cannot leave the machine.

Without Chromium or playwright the tests that need them are skipped and say so; with NMC_NEED_BROWSER set, as CI has it,
they fail."""
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, _BROWSERS)), '')
# WebGL comes from software; CI runs as root, where Chromium has no sandbox.
FLAGS = '''--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync'''.split()

# Files that take longest, the longest first.
LONG = '''test_browser test_own_images test_right_numbers test_damaged_runs test_many_ranks test_train_page
    test_deep_cluster test_work_kept test_sweeps test_resume test_command_line test_pages test_many_devices
    test_sweeps_slurm test_input test_and test_training test_nmc test_live_curves'''.split()


def pytest_configure(config):
    """Under pytest-xdist kernels are forks of one process that has loaded torch and the other libraries; where a few
    tests are run by themselves, Jupyter starts each kernel as it does for everybody."""
    if not getattr(config.option, 'numprocesses', None) or hasattr(config, 'workerinput'): return
    sys.path.append(str(ROOT / 'tools'))
    from warm import Nursery
    folder = tempfile.TemporaryDirectory()
    nursery = Nursery(folder.name)
    os.environ.update(nursery.environment)
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(nursery.close)               # the last is called first


@pytest.hookimpl(trylast=True)                      # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    """What another chosen test of its file tries anyway, as a sample for those who leave slow tests out, is left out.
    Under pytest-xdist the tests of a file stay in one process, so that what they share is made once; those of the
    browser and those that measure seconds share one process. Long files begin first."""
    chosen = {(item.path, item.originalname) for item in items}
    def double(item): return any((item.path, mark.args[0]) in chosen for mark in item.iter_markers('part_of'))
    config.hook.pytest_deselected(items=list(filter(double, items)))
    items[:] = [item for item in items if not double(item)]
    for item in items:
        alone = item.get_closest_marker('timing') or {'browser', 'lab', 'page', 'new_page'} & set(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group('alone' if alone else item.path.stem))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def missing(what):
    "Skip, or fail where a browser must be there."
    if os.environ.get('NMC_NEED_BROWSER'): pytest.fail(f'{what}, and NMC_NEED_BROWSER is set')
    pytest.skip(f'no browser test: {what}')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serve(command, url, cwd, home, timeout=180):
    "Run a server with a home of its own until it answers, and end it afterwards with all its kernels."
    places = dict(HOME='', JUPYTER_CONFIG_DIR='cfg', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='run',
                  IPYTHONDIR='ipython')
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = {**os.environ, **{k: str(home / v) for k, v in places.items()}, 'PATH': path}
    env.pop('IN_TEST', None)
    log = home / 'server.log'
    with open(log, 'w') as f:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=f, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            end = time.monotonic() + timeout
            while not answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f'the server did not start:\n{log.read_text()[-3000:]}')
                time.sleep(.3)
            yield process
        finally:
            process.terminate()
            try: process.wait(20)
            except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)


def answers(url):
    try: urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError: return True
    except OSError: return False
    return True


@contextlib.contextmanager
def lab_server(home):
    "JupyterLab on copies of the notebooks: a function from a notebook's path to its address; `work` is their folder."
    work = home / 'work'
    shutil.copytree(ROOT / 'nbs', work, ignore=shutil.ignore_patterns('.*'))
    # no window of news, which would swallow clicks; and every output in the page, also where it is out of sight
    for name, text in {'apputils-extension/notification': '{"fetchNews": "false", "checkForUpdates": false}',
                       'notebook-extension/tracker': '{"windowingMode": "none"}'}.items():
        path = home / f'settings/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    port, token = free_port(), secrets.token_hex(8)
    command = [
        sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser',
        '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
        f'--ServerApp.root_dir={work}', f'--LabApp.user_settings_dir={home / "settings"}']
    def address(path): return f'http://127.0.0.1:{port}/lab/tree/{path}?token={token}&reset'
    address.work = work
    with serve(command, f'http://127.0.0.1:{port}/api', work, home): yield address


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory):
    "A function from a name in tests.tiny to the folder of a finished run, made once; copy the folder to change it."
    from tests.tiny import made_once
    base = tmp_path_factory.getbasetemp()
    return lambda name: made_once(name, (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'tiny')


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    with lab_server(tmp_path_factory.mktemp('lab')) as address: yield address


@pytest.fixture(scope='session')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing('playwright is not installed (pip install playwright)')
    if not CHROMIUM: missing('there is no chromium (apt-get install chromium, or set CHROMIUM to its path)')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    "Pages whose requests to other hosts are refused and kept in `page.outside`, script errors in `page.errors`."
    contexts = []
    def new(width=1400, height=1000, **options):
        context = browser.new_context(viewport=dict(width=width, height=height), **options)
        contexts.append(context)
        page = context.new_page()
        page.outside, page.errors = [], []
        def gate(route):
            url = route.request.url
            if url.startswith(('http://127.0.0.1', 'data:', 'blob:', 'file:')): return route.continue_()
            page.outside.append(url)
            route.abort()
        context.route('**/*', gate)
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.set_default_timeout(60_000)
        return page
    yield new
    for context in contexts: context.close()


@pytest.fixture
def page(new_page): return new_page()
