"Runs notebooks for their pages, and keeps the outputs until the code of the notebook, or a file of the library behind it, has changed."
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
    "The syntax tree of a cell, without its magics."
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M))


def imported(parsed, package=LIBRARY):
    "The modules that a syntax tree may import; `package` is where its dots start."
    for o in ast.walk(parsed):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        if not isinstance(o, ast.ImportFrom): continue
        parts = package.split('.')
        base = '.'.join([*parts[:len(parts) - o.level + 1], *filter(None, [o.module])]) if o.level else o.module
        yield base
        yield from (f'{base}.{a.name}' for a in o.names)


def file_of(module):
    "The file of a module of the library, or None."
    path = ROOT / module.replace('.', '/')
    return next((p for p in (path.with_suffix('.py'), path / '__init__.py') if p.is_file()), None) if module.startswith(LIBRARY) else None


def files_behind(module, sources):
    "The library's files that a module and these sources import, however indirectly, with the scripts beside them."
    found, todo = {}, [*filter(None, [module]), *(m for s in sources for m in imported(tree(s)))]
    while todo:
        path = file_of(todo.pop())
        if path is None or path in found: continue
        found[path] = path.with_suffix('.js')
        todo += imported(ast.parse(path.read_bytes()), '.'.join(path.relative_to(ROOT).parent.parts))
    return sorted([*found, *(p for p in found.values() if p.is_file())])


def kept_at(docname, notebook, files):
    "Where the outputs are kept: another place for other code."
    code = json.dumps([c.source for c in notebook.cells if c.cell_type == 'code'])
    key = hashlib.sha256(code.encode() + b''.join(f.read_bytes() for f in files)).hexdigest()[:16]
    return KEPT / f'{docname.replace("/", "-")}.{key}.json'


def run(notebook, folder):
    "Run a notebook in a kernel of its own; what a page cannot show is dropped: widgets, and what goes to stderr."
    from nbclient import NotebookClient
    NotebookClient(notebook, timeout=900, kernel_name='python3', store_widget_state=False, resources=dict(metadata=dict(path=str(folder)))).execute()
    for c in notebook.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if shown(o)]


def shown(output):
    "Whether a page shows this output."
    return output.get('name') != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in output.get('data', {})


def outputs_of(docname, notebook, files):
    "Put the outputs into the notebook, from what is kept, or by running it."
    path, cells = kept_at(docname, notebook, files), [c for c in notebook.cells if c.cell_type == 'code']
    if not path.is_file():
        start = time.monotonic()
        try: run(notebook, (ROOT / docname).parent)
        except Exception as e: return log.warning(f'{docname} does not run: {e}', location=docname)
        log.info(f' ran in {time.monotonic() - start:.0f} s')
        keep(path, [c.outputs for c in cells], docname)
    for c, outputs in zip(cells, json.loads(path.read_text(encoding='utf-8'))): c.outputs = [nbformat.from_dict(o) for o in outputs]


def keep(path, outputs, docname):
    "Write the outputs, and forget those of older code."
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix('.draft')
    draft.write_text(json.dumps(outputs), encoding='utf-8')
    for old in path.parent.glob(f'{docname.replace("/", "-")}.*.json'): old.unlink()
    draft.replace(path)
