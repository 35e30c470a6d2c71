"What nbdev does not check by itself."
import ast
import importlib
import json
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
from argument_comments import comments  # noqa: E402
import parameters  # noqa: E402
from tests.processes import python  # noqa: E402

def hidden(path): return any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts)


NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not hidden(p))
TRAIN = [p for p in NOTEBOOKS if p.name.startswith('train_')]
name = lambda path: path.stem


def read(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])


def config_of(path):
    from nmc_workbench import methods
    wanted = f'{path.stem.removeprefix("train_")}config'
    return next(v for k, v in vars(methods).items() if k.lower() == wanted)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / 'nbs').as_posix())
def test_form(path):
    notebook = read(path)
    # without ids each export invents some
    assert notebook['nbformat_minor'] >= 5 and all(c.get('id') for c in notebook['cells'])
    # the one name that every venv has
    assert notebook['metadata']['kernelspec']['name'] == 'python3'
    code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    assert not any(c['outputs'] or c['execution_count'] for c in code)
    assert source(notebook['cells'][0]).startswith('# ')
    assert not any('import *' in source(c) for c in code)


@pytest.mark.parametrize('path', TRAIN, ids=name)
def test_parameters_cell_is_the_config(path):
    "Names in their order, types, defaults and comments; a comment ends with the value of the default recipe."
    cell = parameters_cell(path)
    config = config_of(path)
    hints, said, recipe = typing.get_type_hints(config), comments(config), recipe_of(config)
    found = re.findall(r'^(\w+): (\w+) = (.+?)  # (.+)$', cell, re.M)
    assert [name for name, *_ in found] == [f.name for f in fields(config)]
    for f, (name, kind, default, comment) in zip(fields(config), found):
        assert kind == next(k for k in (*typing.get_args(hints[name]), hints[name]) if k is not type(None)).__name__
        assert ast.literal_eval(default) == f.default
        text, _, value = comment.partition('; digits: ')
        assert text == said[name]
        if f.default is None and recipe.get(name) is not None: assert same_value(value, recipe[name]), (name, value)
        else: assert not value, f'{name}: no recipe gives {value}'


def parameters_cell(path):
    "The source of the one cell with this tag; with two, papermill's -p would be silently overwritten."
    tagged = [c for c in read(path)['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1
    return source(tagged[0])


def recipe_of(config):
    "The recipe of the default data set, by name."
    return importlib.import_module(config.__module__).RECIPES[config().dataset]


def same_value(said, value):
    "Whether a comment says a recipe's value; `name(option=2)` is said as `name with option 2`."
    if not isinstance(value, str): return ast.literal_eval(said) == value
    return re.findall(r'[\w.]+', said.replace(' with ', ' ')) == re.findall(r'[\w.]+', value)


@pytest.mark.parametrize('path', TRAIN, ids=name)
def test_parameters_cell_is_grouped(path):
    "What matters most comes first, and every group has a heading; `make export` writes the cell."
    cell, config = parameters_cell(path), config_of(path)
    assert cell == parameters.cell(*parameters.config_of(path))
    groups = [g.splitlines() for g in cell.split('\n\n')[1:]]
    assert all(g[0].startswith('# ') and not any(line.startswith('#') for line in g[1:]) for g in groups)
    first = [line.partition(':')[0] for line in groups[0][1:]]
    assert first == ['dataset', 'recipe', 'n_clusters', 'epochs', 'seed', 'run_dir']
    assert len(groups) >= 6 and sum(len(g) - 1 for g in groups) == len(fields(config))
    assert max(map(len, cell.splitlines())) <= 120


@pytest.mark.parametrize('path', TRAIN, ids=name)
def test_papermill_reads_every_parameter(path):
    "With its comment, whatever stands between the lines."
    command = python('-m', 'papermill', '--help-notebook', str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out, said = ' '.join(done.stdout.split()), comments(config_of(path))
    for f in fields(config_of(path)): assert f' {f.name}: ' in done.stdout and said[f.name] in out
    assert 'Unknown type' not in out and 'Unable to parse' not in out + done.stderr


def exported(path):
    "The module that a notebook exports, and the modules that its exported cells import."
    cells = [source(c) for c in read(path)['cells'] if c['cell_type'] == 'code']
    module = next(line.split()[-1] for c in cells for line in c.splitlines() if line.startswith('#| default_exp'))
    lines = [line for c in cells if '#| export' in c for line in c.splitlines()]
    words = [line.split() for line in lines if line.startswith('from nmc_workbench.')]
    # `from room import module` is of the module
    found = [(w[1].removeprefix('nmc_workbench.'), w[3]) for w in words]
    return module.removesuffix('.__init__'), found


def test_numbers_order_the_imports():
    "Within a room, a notebook imports only exported modules of notebooks that come before it."
    places, needs = {}, {}
    for path in NOTEBOOKS:
        if not path.name[0].isdigit(): continue
        module, needs[path] = exported(path)
        places[module] = path
    for path, modules in needs.items():
        for other in (places.get(f'{m}.{n}') or places[m] for m, n in modules):
            if other.parent == path.parent: assert other.name < path.name, f'{path} imports {other}'
    assert len(places) > 80