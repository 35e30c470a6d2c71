"Who may import whom: the rooms of the package, in one order, read from the imports themselves."
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'nmc_workbench'
# From the ground up. A room imports from the rows above its own, and from its own row; methods never from each other.
FLOORS = [
    {'core'},
    {'losses', 'optim', 'metrics', 'subspaces', 'persistence', 'transport', 'anchors', 'projection', 'lloyd', 'cluster',
     'k_rules', 'data', 'augment', 'nets'},
    {'modes', 'runs'},
    {'diagnostics', 'training'},
    {'methods'},
    {'evaluation'},
    {'plotting'},
    {'widgets'},
    {'explore', 'sweeps', 'reports'},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
NEVER = {('plotting', 'training'), ('plotting', 'methods'), ('widgets', 'training'), ('widgets', 'methods')}


def module_of(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')


_LEFT_OUT = PACKAGE / '_modidx.py', PACKAGE / '__init__.py'
FILES = {module_of(p): p for p in sorted(PACKAGE.rglob('*.py')) if p not in _LEFT_OUT}


def absolute(node, path):
    "The module that an import statement names, without the package's name; `None` where it is not ours."
    name = node.module or ''
    if not node.level: return name.removeprefix('nmc_workbench.') if name.startswith('nmc_workbench') else None
    folder = path.parent.relative_to(PACKAGE).parts
    return '.'.join([*folder[:len(folder) - node.level + 1], *((node.module or '').split('.') if node.module else [])])


def arrows(path):
    "Every module that a file imports, anywhere in it, and the name taken from there."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((a.name.removeprefix('nmc_workbench.'),
                         None) for a in node.names if a.name.startswith('nmc_workbench'))
        elif isinstance(node, ast.ImportFrom) and (base := absolute(node, path)) is not None:
            for a in node.names:
                inner = f'{base}.{a.name}'.strip('.')
                yield (inner, None) if inner in FILES else (base, a.name)


def room(module): return module.split('.')[0]
def method(module): return module.split('.')[1] if module.count('.') == 2 and room(module) == 'methods' else None


ARROWS = {name: sorted(set(arrows(path)), key=str) for name, path in FILES.items()}


@pytest.mark.parametrize('name', FILES)
def test_a_module_imports_no_room_above_its_own(name):
    for other, _ in ARROWS[name]:
        assert FLOOR[room(other)] <= FLOOR[room(name)], f'{name} imports {other}, which is above it'
        assert (room(name), room(other)) not in NEVER, f'{name} imports {other}'


@pytest.mark.parametrize('name', FILES)
def test_no_method_imports_another(name):
    for other, _ in ARROWS[name]:
        if method(name): assert method(other) in (None, method(name)), f'{name} imports {other}'


@pytest.mark.parametrize('name', FILES)
def test_no_private_name_leaves_its_room(name):
    for other, taken in ARROWS[name]:
        if room(other) != room(name): assert not (taken or '').startswith('_'), f'{name} takes {taken} from {other}'


def circles(edges):
    "Nodes that are on a circle."
    left = {a: set(b) for a, b in edges.items()}
    while True:
        done = {a for a, b in left.items() if not b & left.keys()}
        if not done: return sorted(left)
        for a in done: del left[a]


def test_no_circle_of_modules():
    assert circles({a: {b for b, _ in ARROWS[a] if b != a} for a in FILES}) == []


def test_no_circle_of_rooms():
    edges = {}
    for a in FILES: edges.setdefault(room(a), set()).update(room(b) for b, _ in ARROWS[a] if room(b) != room(a))
    assert circles(edges) == []


def test_circles_are_found():
    assert circles({'a': {'b'}, 'b': {'a'}, 'c': {'a'}, 'd': set()}) == ['a', 'b', 'c']


def test_the_top_level_is_small():
    "Beside the rooms, the mathematics that people import by name."
    assert len([p for p in PACKAGE.glob('*.py') if p.name != '__init__.py']) <= 12
    assert {room(m) for m in FILES} <= set(FLOOR)


def test_notebooks_lie_where_their_modules_do():
    import json
    import re
    folders = {}
    for path in (PACKAGE.parent / 'nbs').glob('*/**/*.ipynb'):
        if any(part.startswith('.') for part in path.parts): continue
        text = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
        module = re.search(r'^#\| default_exp (\S+)', text, re.M)[1]
        folders[module] = path.parent.relative_to(PACKAGE.parent / 'nbs').as_posix()
        at = '/'.join(module.split('.')[:-1]) or 'mathematics'
        assert folders[module] == at, f'{path} exports {module}'
    empty = {m for m, p in FILES.items() if p.name == '__init__.py' and not p.read_text().strip()}
    assert {m.removesuffix('.__init__') for m in folders} == set(FILES) - empty
