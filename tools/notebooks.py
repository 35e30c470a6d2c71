"""Run every notebook of nbs/ once, two at a time, and say how long each took: `python tools/notebooks.py [PATH...]`.

What has run is kept for the site, under a name made of its code and of the library's files behind it. A notebook whose
code has not changed since is not run again, neither here nor by `make docs`; `--fresh` runs all. Their kernels are
forks of a process that has loaded torch and the other libraries once (tools/warm.py)."""
import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'docs'), str(ROOT / 'tools')]
# Small paths, one thread for each of the two kernels, and the library of this checkout.
os.environ.update(IN_TEST='1', OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE',
                  MPLBACKEND='module://matplotlib_inline.backend_inline')

from nbdev_execute import keep, kept_at, run  # noqa: E402
from nbdev_myst import as_page  # noqa: E402
from warm import Nursery  # noqa: E402

# The long ones, so that none is left alone at the end.
FIRST = 'train_', 'spiral', 'explore_', 'methods/', 'evaluation/'


def notebooks():
    "All of them, the long ones first."
    found = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(q.startswith(('.', '_')) for q in p.parts)]
    def place(path):
        name = path.relative_to(ROOT / 'nbs').as_posix()
        return next((i for i, start in enumerate(FIRST) if start in name), 9), path
    return sorted(found, key=place)


def page_of(path):
    "A notebook's name and its page, and the file where its outputs are kept."
    name = path.relative_to(ROOT).with_suffix('').as_posix()
    page, files = as_page(path)
    return name, page, kept_at(name, page, files)


def unchanged(path): return page_of(path)[2].is_file()


def started(run, *what):
    "Run; once again where the kernel did not start, since another process may have taken a port that was free."
    try: run(*what)
    except RuntimeError as e:
        if 'before replying to kernel_info' not in str(e): raise
        run(*what)


def run_one(path):
    "Seconds, and the error or None."
    name, page, kept = page_of(path)
    start = time.monotonic()
    try: started(run, page, path.parent)
    except Exception as e: return time.monotonic() - start, re.sub(r'\x1b\[[0-9;]*m', '', str(e))[-3000:]
    keep(kept, [c.outputs for c in page.cells if c.cell_type == 'code'], name)
    return time.monotonic() - start, None


@contextlib.contextmanager
def kernels(n):
    "Kernels that begin with the libraries loaded, where there are enough notebooks to make up for loading them."
    if n < 4: return (yield)
    with tempfile.TemporaryDirectory() as folder, Nursery(folder) as nursery:
        os.environ.update(nursery.environment)
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('paths', nargs='*', type=Path, help='notebooks; none: all')
    parser.add_argument('--fresh', action='store_true', help='run also what has not changed')
    asked = parser.parse_args()
    paths, start, failed = [p.resolve() for p in asked.paths] or notebooks(), time.monotonic(), []
    with ProcessPoolExecutor(2) as pool: kept = list(pool.map(unchanged, paths, chunksize=8))
    todo = [p for p, same in zip(paths, kept) if asked.fresh or not same]
    with kernels(len(todo)), ProcessPoolExecutor(2) as pool:
        for path, (seconds, error) in zip(todo, pool.map(run_one, todo)):
            print(f'{seconds:6.1f} s  {path.relative_to(ROOT)}{"  FAILED" if error else ""}', flush=True)
            if error: failed.append((path, error))
    for path, error in failed: print(f'\n--- {path.relative_to(ROOT)}\n{error}', file=sys.stderr)
    took = time.monotonic() - start
    print(f'notebooks: {len(todo)} run in {took:.0f} s, {len(paths) - len(todo)} unchanged, {len(failed)} failed')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
