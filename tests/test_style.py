"""Lines of at most 120 characters and functions one can read: notebooks, library, tests, pages.

What is exempt is named here, with its reason, and never more than 60 lines in all."""
import ast
import json
import re
import subprocess
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
WIDTH, MOST_EXEMPT = 120, 60
# Beginning of a path -> why its lines may be wider.
EXEMPT = {
    'README.md': 'tables of measurements, one line per row, made by tools/tables.py',
    'nbs/index.ipynb': 'the same tables, of which README.md is made',
    'docs/pages/': 'tables, one line per row',
    'nbs/train_': 'tables of measurements',
}
DATA = ('docs/records/', 'docs/images/', 'tests/golden/', 'tests/saved_runs/', 'nbs/images/', 'LICENSE')
TEXT = {'.py', '.md', '.js', '.css', '.sh', '.toml', '.ini', '.yaml', '.ipynb', '.cfg', ''}


def files():
    "What git tracks and people read."
    command = ['git', 'ls-files', '-co', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name.startswith(DATA) or path.suffix not in TEXT or path.name == '_modidx.py' or not path.is_file(): continue
        yield name, path


def lines(path):
    "The lines a reader sees; of a notebook, those of its cells."
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.ipynb': return text.split('\n')
    return [line for c in json.loads(text)['cells'] for line in ''.join(c['source']).split('\n')]


def wide():
    return {name: found for name, path in files() if (found := [x for x in lines(path) if len(x) > WIDTH])}


def test_no_line_is_wider_than_120():
    left = {name: len(found) for name, found in wide().items() if not name.startswith(tuple(EXEMPT))}
    assert left == {}


def test_exempt_lines_are_few_and_tables():
    found = [x for name, rows in wide().items() if name.startswith(tuple(EXEMPT)) for x in rows]
    assert len(found) <= MOST_EXEMPT
    assert [x for x in found if not re.match(r'\s*\|', x)] == []


def bodies():
    "Lines of every function of the library, without its docstring."
    for path in (ROOT / 'nmc_workbench').rglob('*.py'):
        if path.name == '_modidx.py': continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body: yield body[-1].end_lineno - body[0].lineno + 1, f'{path.relative_to(ROOT)}:{node.name}'


def test_functions_are_short():
    found = sorted(bodies(), reverse=True)
    sizes = [n for n, _ in found]
    assert [f for f in found if f[0] > 40] == []
    assert median(sizes) <= 4
    assert quantiles(sizes, n=10)[-1] <= 12, found[:20]


def test_ruff_measures_the_same_width():
    import sys
    if sys.version_info < (3, 11): return
    import tomllib
    ruff = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['ruff']
    assert ruff['line-length'] == WIDTH and 'E501' in ruff['lint']['select']
