"""Reads a committed notebook as a page.

nbdev's directives are obeyed, exported code becomes entries of the reference, and long code is folded."""
import ast
import json
import re
from pathlib import Path

import nbformat

from nbdev_execute import LIBRARY, ROOT, files_behind, outputs_of, tree

FLAGS = {'slow', 'gpu'}         # as tst_flags in settings.ini
SHOWN = 10                      # lines of code that are not folded
_DIRECTIVE = re.compile(r'#\|\s*([\w-]+):?\s*(.*)')
_PARAMETER = re.compile(r'(\w+): [\w.]+ = (.*?)  # (.*)')


def directives(source):
    "What the `#|` lines on top of a cell say, and the cell without them."
    said, lines = {}, source.splitlines()
    while lines and (m := _DIRECTIVE.fullmatch(lines[0].strip())): said[m[1]], lines = m[2], lines[1:]
    return said, '\n'.join(lines).strip('\n')


def read(path):
    "A notebook's cells: kind, directives, source, tags."
    for c in json.loads(Path(path).read_text(encoding='utf-8'))['cells']:
        said, source = {}, ''.join(c['source'])
        if c['cell_type'] == 'code': said, source = directives(source)
        yield c['cell_type'], said, source, c['metadata'].get('tags', [])


def public(source):
    "The functions and classes that a cell exports."
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return [o for o in ast.parse(source).body if isinstance(o, kinds) and not o.name.startswith('_')]


def passed_on(source):
    "The names that a room offers from its modules: `_all_` of its own notebook."
    for o in ast.parse(source).body:
        if isinstance(o, ast.Assign) and ast.unparse(o.targets[0]) == '_all_': yield from ast.literal_eval(o.value)


def module_of(path):
    "The module a notebook exports, or None, and the line under its title."
    name, line = None, ''
    for kind, said, source, _ in read(path):
        if 'default_exp' in said: name = f'{LIBRARY}.{said["default_exp"]}'.removesuffix('.__init__')
        if kind == 'markdown' and not line: line = quoted(source)
    return name, line


def quoted(source):
    "The first sentence that a cell of text quotes with `> `, or nothing."
    found = re.search(r'^> .*(?:\n> .*)*', source, re.M)
    return found[0][2:].replace('\n> ', ' ') if found else ''


def code(source, *tags, prompt=None):
    "A cell of code, folded under a prompt if there is one."
    metadata = dict(tags=list(tags))
    if prompt:
        metadata['tags'].append('hide-input')
        metadata['mystnb'] = dict(code_prompt_show=prompt, code_prompt_hide=prompt)
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def entries(source, module):
    "The reference entries of what a cell exports, in place."
    for o in public(source):
        kind, options = 'function', ''
        if isinstance(o, ast.ClassDef):
            derived = any(not ast.unparse(b).split('.')[-1].startswith('_') for b in o.bases)
            kind, options = 'class', '\n   :members:' + derived * '\n   :show-inheritance:'
        yield rst(f'.. auto{kind}:: {module}.{o.name}{options}')


def rst(text):
    "A cell of reST."
    return nbformat.v4.new_markdown_cell(f'```{{eval-rst}}\n{text}\n```')


def only_imports(body):
    "Whether all statements are imports."
    return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body)


def exported(source, module, off):
    "An exported cell: its entries, and its source folded below them; imports alone are not shown."
    if only_imports(ast.parse(source).body): return [code(source, 'remove-cell', *off)]
    return [*entries(source, module), code(source, *off, prompt='Source')]


def table(source):
    "The cell of parameters as a table, behind a fold; the comments above groups of them become headings in it."
    lines = source.replace('|', '\\|').splitlines()
    rows = [row for line in lines if (row := table_row(line))]
    n = sum(bool(_PARAMETER.fullmatch(line)) for line in lines)
    fold = [f'````{{dropdown}} {n} parameters and their defaults',
            '| name | default | meaning |', '| --- | --- | --- |']
    return nbformat.v4.new_markdown_cell('\n'.join([*fold, *rows, '````']))


def table_row(line):
    "A row for a line of the cell of parameters; nothing for a blank one."
    if m := _PARAMETER.fullmatch(line): return f'| `{m[1]}` | `{m[2]}` | {m[3]} |'
    return f'| | | **{line[2:]}** |' if line.startswith('# ') else ''


def is_silent(body, source):
    "Whether a cell shows nothing when it runs."
    last = ast.Assert, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign
    return not body or isinstance(body[-1], last) and not re.search(r'\b(print|display|show)\(', source)


def example(source, tags):
    "A cell that is shown: whole if it is short, else folded; a check that shows nothing is folded too."
    body = tree(source).body
    quiet = is_silent(body, source)
    if quiet and any(isinstance(o, ast.Assert) for o in body): return code(source, *tags, prompt='Check')
    if quiet and only_imports(body): return code(source, *tags, prompt='Imports')
    return code(source, *tags, prompt='Code' if source.count('\n') >= SHOWN else None)


def cells_of(path, parameters, run):
    "The cells of the page."
    module, line = module_of(path)
    skip = [] if run else ['skip-execution']
    for kind, said, source, tags in read(path):
        off = ['skip-execution'] if said.get('eval') == 'false' or FLAGS & set(said) else skip
        if kind == 'markdown': yield nbformat.v4.new_markdown_cell(source)
        elif kind == 'raw' or 'default_exp' in said or not source: continue
        elif 'hide' in said: yield code(source, 'remove-cell', *off)
        elif 'exporti' in said or 'export' in said: yield from exported(source, module, off)
        elif 'parameters' in tags:
            yield table(source)
            yield code(source, 'remove-cell', *off)
            if parameters: yield code('\n'.join(f'{k} = {v!r}' for k, v in parameters.items()), *off)
        else: yield example(source, off)


def top(path, module, line):
    "What stands under the title: the module, for links and the index; or the screenshots of a notebook of widgets."
    if module: return [rst(f'.. py:module:: {module}\n   :synopsis: {line}')]
    shots = sorted((ROOT / 'docs/images').glob(f'{Path(path).stem}*.png'))
    return [nbformat.v4.new_markdown_cell(f'![{line}](/docs/images/{p.name})') for p in shots]


def as_page(path, parameters=None, run=True):
    "The notebook as it is run and shown, and the files of the library that its outputs depend on."
    module, line = module_of(path)
    cells = list(cells_of(path, parameters, run))
    found = nbformat.v4.new_notebook(cells=[*cells[:1], *top(path, module, line), *cells[1:]])
    found.metadata.kernelspec = dict(name='python3', display_name='python3', language='python')
    found.metadata.language_info = dict(name='python', pygments_lexer='ipython3')
    for i, c in enumerate(found.cells): c.id = f'c{i}'
    return found, files_behind(module, [c.source for c in cells if c.cell_type == 'code'])


def source_read(app, docname, source):
    "Sphinx's event: a file has been read."
    path = Path(app.env.doc2path(docname))
    if path.suffix != '.ipynb': return
    run = docname not in app.config.nbdev_not_run
    notebook, files = as_page(path, app.config.nbdev_parameters.get(docname), run)
    for f in files: app.env.note_dependency(str(f))
    if run and app.config.nbdev_execute: outputs_of(docname, notebook, files)
    source[0] = nbformat.writes(notebook)


def setup(app):
    app.add_config_value('nbdev_not_run', [], 'env')
    app.add_config_value('nbdev_parameters', {}, 'env')
    app.add_config_value('nbdev_execute', True, 'env')
    app.connect('source-read', source_read)
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
