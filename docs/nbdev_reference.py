"The reference: comments of arguments as tables, names in prose as links, and what each module has."
import inspect
import re
from collections import defaultdict
from pathlib import Path

from argument_comments import comments
from docutils import nodes
from fastcore.docments import docments
from nbdev_myst import LIBRARY, module_of, passed_on, public, read
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

_PARTS = re.compile(r'(``?[^`]+``?)|(\$[^$]+\$)')


def rst(text):
    "Markdown of a comment or a docstring as reST."
    def part(m):
        if m[1]: return f'``{m[1].strip("`")}``\\ '
        return f':math:`{m[2].strip("$")}`\\ '
    out, at = [], 0
    for m in _PARTS.finditer(text):
        out += [re.sub(r'([\\*|_])', r'\\\1', text[at:m.start()]), part(m)]
        at = m.end()
    return ''.join([*out, re.sub(r'([\\*|_])', r'\\\1', text[at:])])


def typed(annotation):
    "A type as one reads it: without the modules it comes from."
    if annotation is inspect.Parameter.empty: return ''
    text = annotation if isinstance(annotation, str) else stringify_annotation(annotation, 'smart')
    return re.sub(r'~?\b[a-z_]\w*\.(?:\w+\.)*(?=\w)', '', text)


def defaulted(value):
    "A default as it is written."
    if value is inspect.Parameter.empty: return ''
    return getattr(value, '__name__', None) or repr(value)


def parameters(value):
    "Rows of the table: name, type, default, meaning."
    try: signature = inspect.signature(value).parameters
    except (TypeError, ValueError): return []
    said, stars = comments(value), {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    return [(stars.get(p.kind, '') + k, typed(p.annotation), defaulted(p.default), said[k])
            for k, p in signature.items() if said.get(k)]


def returned(value):
    "What is said of the value that comes back."
    try: found = docments(value, full=True).get('return')
    except Exception: return []
    return [('returns', typed(found.anno), '', found.docment)] if found and found.docment else []


def table(rows):
    "The rows as reST, without a column that is empty."
    if not rows: return []
    columns = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
    head = [f'**{h}**' if h else '' for h in ('', 'type', 'default', 'meaning')]
    lines = ['.. list-table::', '   :header-rows: 1', '   :class: parameters', '']
    for cells in [head, *([cell(i, text) for i, text in enumerate(row)] for row in rows)]:
        lines += [f'   {"*" if i == 0 else " "} - {cells[i]}' for i in columns]
    return ['', *lines, '']


def cell(column, text):
    "A cell of the table: the meaning as prose, the rest as code."
    if column == 3: return rst(text)
    return f'``{text}``' if text and text != 'returns' else text and f'*{text}*'


def documented(app, what, name, value, options, lines):
    "Sphinx's event: a docstring; the table of its parameters goes below it."
    lines[:] = [rst(line) for line in lines]
    if what not in ('function', 'method', 'class', 'property'): return
    value = getattr(value, 'fget', value)
    config = getattr(value, 'config_class', None) if what == 'class' else None
    if config:
        lines += ['', f'Its parameters are the fields of :py:class:`~{config.__module__}.{config.__name__}`.', '']
    else: lines += table([*parameters(value), *([] if what == 'class' else returned(value))])


def signed(app, what, name, value, options, signature, returns):
    "Sphinx's event: a signature; a long one is left out, since the table says the same."
    return ('(…)' if signature and len(signature) > 160 else signature), None


def derived(app, name, value, options, bases):
    "Sphinx's event: the bases of a class, without private ones."
    bases[:] = [b for b in bases if not b.__name__.startswith('_')]


def tidied(app, doctree):
    "Sphinx's event: a page is read. Entries made from reST point to documents of their own, which hold all of Sphinx."
    for node in doctree.findall(): node.document = doctree


# --- names in prose ------------------------------------------------------------------------------------

LEAST = dict(module=2, method=2, property=2, attribute=2)      # parts of a name that make it a link; of others one


def targets(env):
    "Every way to write the name of an object of the library, and the objects it may mean."
    found = defaultdict(set)
    for full, o in env.get_domain('py').objects.items():
        parts = full.split('.')
        for i in range(len(parts) - LEAST.get(o.objtype, 1) + 1):
            found['.'.join(parts[i:])].add((full, o.docname, o.node_id))
    return found


def linked(app, doctree, docname):
    "Sphinx's event: the page is whole; a name of the library between backticks becomes a link."
    known = targets(app.env)
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext().removesuffix('()')
        if name not in known or isinstance(node.parent, (nodes.reference, nodes.title)): continue
        at = {t for t in known[name] if t[1] == docname} or known[name]
        # a word that could be anything is a link only on the page that defines it
        plain = re.fullmatch('[a-z]+', node.astext()) and not node.get('names_of_module')
        if len(at) > 1 or plain and next(iter(at))[1] != docname: continue
        full, target, anchor = next(iter(at))
        address = app.builder.get_relative_uri(docname, target) + f'#{anchor}'
        link = nodes.reference('', '', refuri=address, internal=True, reftitle=full)
        node.replace_self(link)
        link += node


# --- what there is ---------------------------------------------------------------------------------------

class Modules(SphinxDirective):
    "A table of the modules that notebooks export, and a hidden table of contents; the argument is a pattern of paths."
    required_arguments, final_argument_whitespace = 1, True

    def run(self):
        self.env.note_reread()
        root = Path(self.env.srcdir)
        paths = sorted({p for pattern in self.arguments[0].split() for p in root.glob(f'{pattern}.ipynb')})
        if not paths: raise self.error(f'no notebook matches {self.arguments[0]}')
        docs = [p.relative_to(root).with_suffix('').as_posix() for p in paths]
        rows = [self.row(doc, *module_of(path), path) for doc, path in zip(docs, paths)]
        room = paths[0].parent.relative_to(root / 'nbs').as_posix().replace('/', '.')
        contents = ['```{toctree}', ':hidden:', f':caption: {room}', '', *(f'/{d}' for d in docs), '```']
        text = ['| module | | exports |', '| --- | --- | --- |', *rows, '', *contents]
        return self.parse_text_to_nodes('\n'.join(text))

    def row(self, doc, module, line, path):
        cells = [source for kind, said, source, _ in read(path) if 'export' in said]
        links = [f'{{py:obj}}`~{module}.{o.name}`' for source in cells for o in public(source)]
        links += [f'`{n}`' for source in cells for n in passed_on(source)]
        said = line.replace('|', '\\|')
        return f'| [`{module.removeprefix(LIBRARY + ".")}`](/{doc}.ipynb) | {said} | {", ".join(links)} |'


def setup(app):
    app.connect('autodoc-process-docstring', documented)
    app.connect('autodoc-process-signature', signed)
    app.connect('autodoc-process-bases', derived)
    app.connect('doctree-read', tidied)
    app.connect('doctree-resolved', linked)
    app.add_directive('modules', Modules)
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
