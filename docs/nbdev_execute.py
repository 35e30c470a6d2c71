"""Runs notebooks for their pages and keeps their outputs.

They are run again when the code of the notebook, or a file of the library behind it, has changed."""
import ast
import hashlib
import json
import re
import time
from pathlib import Path

import nbformat
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = 'nmc_workbench'
KEPT = ROOT / '_docs/executed'
log = logging.getLogger(__name__)


def tree(source):
    "The syntax tree of a cell, without its magics, which are no Python."
    try: return ast.parse(source)
    except SyntaxError: return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))


def imported(parsed, package=LIBRARY):
    "The modules that a syntax tree may import; `package` is where its dots start."
    for o in ast.walk(parsed):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        if not isinstance(o, ast.ImportFrom): continue
        base = absolute(o, package)
        yield base
        yield from (f'{base}.{a.name}' for a in o.names)


def absolute(node, package):
    "The module that a `from ... import` names, without leading dots."
    if not node.level: return node.module
    parts = package.split('.')
    return '.'.join([*parts[:len(parts) - node.level + 1], *filter(None, [node.module])])


def with_rooms(module):
    "A module and the rooms it lives in, whose `__init__` Python runs first; the package itself imports nothing."
    parts = module.split('.')
    return ['.'.join(parts[:i]) for i in range(2, len(parts) + 1)]


def file_of(module):
    "The file of a module of the library, or None."
    if module.split('.')[0] != LIBRARY: return None
    path = ROOT / module.replace('.', '/')
    return next((p for p in (path.with_suffix('.py'), path / '__init__.py') if p.is_file()), None)


def wholly(sources):
    "Whether a cell imports the package itself, whose names are found only when they are used."
    return any(isinstance(o, ast.Import) and any(a.name == LIBRARY for a in o.names)
               for s in sources for o in ast.walk(tree(s)))


def files_behind(module, sources):
    "The library's files that a module and these sources import, however indirectly, with the scripts beside them."
    if wholly(sources): return sorted(p for p in (ROOT / LIBRARY).rglob('*') if p.suffix in ('.py', '.js'))
    found, todo = {}, [*filter(None, [module]), *(m for s in sources for m in imported(tree(s)))]
    while todo:
        for path in filter(None, map(file_of, with_rooms(todo.pop()))):
            if path in found: continue
            found[path] = path.with_suffix('.js')       # of a widget
            todo += imported(ast.parse(path.read_bytes()), '.'.join(path.relative_to(ROOT).parent.parts))
    return sorted([*found, *(p for p in found.values() if p.is_file())])


def kept_at(docname, notebook, files):
    "The file for the outputs; its name depends on the code that makes them."
    code = json.dumps([c.source for c in notebook.cells if c.cell_type == 'code'])
    key = hashlib.sha256(code.encode() + b''.join(f.read_bytes() for f in files)).hexdigest()[:16]
    return KEPT / f'{docname.replace("/", "-")}.{key}.json'


def run(notebook, folder):
    "Run a notebook in a kernel of its own; drop what a page cannot show: widgets and standard error."
    from nbclient import NotebookClient
    where = dict(metadata=dict(path=str(folder)))
    client = NotebookClient(notebook, timeout=900, kernel_name='python3', store_widget_state=False, resources=where)
    client.execute()
    for c in notebook.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if shown(o)]


def shown(output):
    "Whether a page shows this output."
    return output.get('name') != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in output.get('data', {})


def outputs_of(docname, notebook, files):
    "Put the outputs into the notebook: those that were kept, or those of a new run."
    path, cells = kept_at(docname, notebook, files), [c for c in notebook.cells if c.cell_type == 'code']
    if not path.is_file():
        start = time.monotonic()
        try: run(notebook, (ROOT / docname).parent)
        except Exception as e: return log.warning(f'{docname} does not run: {e}', location=docname)
        log.info(f' ran in {time.monotonic() - start:.0f} s')
        keep(path, [c.outputs for c in cells], docname)
    for c, outputs in zip(cells, json.loads(path.read_text(encoding='utf-8'))):
        c.outputs = [nbformat.from_dict(o) for o in outputs]


def keep(path, outputs, docname):
    "Write the outputs, and delete those of older code."
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix('.draft')
    draft.write_text(json.dumps(outputs), encoding='utf-8')
    for old in path.parent.glob(f'{docname.replace("/", "-")}.*.json'): old.unlink()
    draft.replace(path)
