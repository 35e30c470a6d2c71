"What nbdev does not check by itself, and that the pages say what the records say."
import json
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
from argument_comments import comments  # noqa: E402
import tables  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(q.startswith(('.', '_')) for q in p.relative_to(ROOT).parts))
TRAIN = [p for p in NOTEBOOKS if p.name.startswith('train_')]
name = lambda path: path.stem


def read(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])


def config_of(path):
    from nmc_workbench import methods
    wanted = f'{path.stem.removeprefix("train_")}config'
    return next(v for k, v in vars(methods).items() if k.lower() == wanted)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_form(path):
    notebook = read(path)
    assert notebook['nbformat_minor'] >= 5 and all(c.get('id') for c in notebook['cells'])    # else each export invents ids
    assert notebook['metadata']['kernelspec']['name'] == 'python3'                             # the one name every venv has
    code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    assert not any(c['outputs'] or c['execution_count'] for c in code)
    assert source(notebook['cells'][0]).startswith('# ')
    assert not any('import *' in source(c) for c in code)


@pytest.mark.parametrize('path', TRAIN, ids=name)
def test_parameters_cell_is_the_config(path):
    tagged = [c for c in read(path)['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1                                                                    # else papermill's -p is silently overwritten
    config = config_of(path)
    hints, said = typing.get_type_hints(config), comments(config)
    assert all(said.get(f.name) for f in fields(config))
    def kind(t): return next(k for k in (*typing.get_args(t), t) if k is not type(None)).__name__
    wanted = [f'{f.name}: {kind(hints[f.name])} = {f.default!r}  # {said[f.name]}' for f in fields(config)]
    assert source(tagged[0]).splitlines() == wanted


@pytest.mark.parametrize('path', TRAIN, ids=name)
def test_papermill_reads_every_parameter(path):
    out = subprocess.run([sys.executable, '-m', 'papermill', '--help-notebook', str(path)], capture_output=True, text=True, check=True).stdout
    for f in fields(config_of(path)): assert f'  {f.name}: ' in out
    assert 'Unknown type' not in out


def test_numbers_order_the_imports():
    "A notebook imports only exported modules of notebooks that come before it."
    order, seen = {}, {}
    for path in NOTEBOOKS:
        if not path.name[0].isdigit(): continue
        cells = [source(c) for c in read(path)['cells'] if c['cell_type'] == 'code']
        module = next(line.split()[-1] for c in cells for line in c.splitlines() if line.startswith('#| default_exp'))
        order[module.removesuffix('.__init__')] = (path.name, [line for c in cells if '#| export' in c for line in c.splitlines() if line.startswith('from nmc_workbench.')])
    for module, (file, lines) in order.items():
        for line in lines:
            imported = line.split()[1].removeprefix('nmc_workbench.')
            assert order[imported][0] < file, f'{file} imports {imported} of {order[imported][0]}'
            seen[imported] = True
    assert len(seen) > 8


def test_pages_say_what_the_records_say():
    filled = 0
    for path in NOTEBOOKS:
        for cell in read(path)['cells']:
            for match in tables.PLACE.finditer(source(cell)):
                assert match[0] == tables.fill(match)
                filled += 1
    assert filled >= 3


def test_readme_is_the_index(tmp_path):
    before = (ROOT / 'README.md').read_text()
    subprocess.run([sys.executable, str(ROOT / 'tools/readme.py')], check=True)
    assert (ROOT / 'README.md').read_text() == before


def record(name): return json.loads((ROOT / f'docs/records/{name}.json').read_text())
def mean_acc(name): return mean(r['acc'] for r in record(name)['rows'])


def test_records_hold_what_is_promised():
    digits = record('nmce_digits')
    acc = [r['acc'] for r in digits['rows']]
    assert [r['seed'] for r in digits['rows']] == [0, 1, 2, 3, 4]
    assert mean(acc) >= .93 and min(acc) >= .80 > digits['kmeans_pixels']['acc']
    speed = record('speed')
    assert speed['augment']['ratio'] >= 5 and speed['import']['ratio_package'] <= 1.15 and speed['subspace']['threads_1']['ratio'] >= 10
    assert all(speed['coding_rate'][f'threads_{t}']['ratio'] >= 2 for t in (1, 2))


def test_records_of_the_small_recipes():
    for name in ('nmce_coil20', 'nmce_mnist'): assert mean_acc(name) >= .9 and [r['seed'] for r in record(name)['rows']] == [0, 1, 2]
    cifar = record('nmce_cifar10_cpu')
    assert mean_acc('nmce_cifar10_cpu') >= 1.5 * cifar['kmeans_pixels']['acc']
    assert max(r['seconds'] for r in record('nmce_coil20')['rows']) < 15 * 60


def test_record_of_the_spiral():
    spiral = record('nmce_spiral')
    assert [r['seed'] for r in spiral['ours']] == [0, 1, 2] and {r['seed'] for r in spiral['original']} >= {0, 1}
    assert all(r['acc'] >= .9995 and r['cpu_seconds'] < 110 for r in spiral['ours'])


def test_records_of_nmc():
    digits, mixtures = record('nmc_digits')['rows'], record('nmc_mixtures')['rows']
    assert [r['seed'] for r in digits] == [0, 1, 2, 3, 4] and all(8 <= r['n_clusters'] <= 15 for r in digits)
    assert mean(r['nmi'] for r in digits) >= .8 and mean(r['nmi'] for r in digits) > mean(r['kmeans']['nmi'] for r in digits)
    for name, k in (('2-d, 5 modes', 5), ('16-d, 8 modes', 8)): assert len(mixtures[name]) == 5 and all(r['n_clusters'] == k and r['acc'] == 1 for r in mixtures[name])
