"""Every exported module stands on its own, and loads nothing it does not need."""
import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'nmc_workbench'


def name_of(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')


FILES = {name_of(p): p for p in sorted(PACKAGE.rglob('*.py'))
         if p.name != '_modidx.py' and p != PACKAGE / '__init__.py'}
MODULES = [f'nmc_workbench.{n}' for n in FILES]

# What a machine that only trains does not have, or has and should not wait for.
LATE = ('plotly', 'matplotlib', 'pandas', 'faiss', 'umap', 'IPython', 'ipywidgets', 'anywidget', 'tensorboard',
        'torch.utils.tensorboard', 'papermill', 'nbdev', 'fastcore', 'gudhi', 'dask', 'ipykernel', 'jupyter_core')

# Each module in its own process that has not loaded anything of the package: a fork of one that has loaded what every
# module may. Newer versions of scikit-learn load pandas if it is installed; what these libraries load is not counted.
NURSERY = """
import gc, importlib, json, os, sys, traceback
import numpy, scipy, sklearn.base, sklearn.cluster, sklearn.metrics, torch, torchvision, tqdm.auto, PIL.Image
gc.disable()                # it would walk through all that torch has made, in every fork
before = set(sys.modules)
late, modules = json.loads(sys.argv[1])
assert not [m for m in before if m.split('.')[0] == 'nmc_workbench']
for name in modules:
    pid = os.fork()
    if pid == 0:
        answer = dict(name=name, error=None, late=[], missing=[])
        try:
            module = importlib.import_module(name)
            answer['late'] = [m for m in late if m in sys.modules and m not in before]
            answer['missing'] = [n for n in getattr(module, '__all__', []) if not hasattr(module, n)]
        except BaseException: answer['error'] = traceback.format_exc()[-1000:]
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    command = [sys.executable, '-c', NURSERY, json.dumps([LATE, MODULES])]
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return {a['name']: a for a in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize('name', MODULES)
def test_a_module_alone(alone, name):
    answer = alone[name]
    assert answer['error'] is None, answer['error']
    assert answer['late'] == []
    assert answer['missing'] == []


def statements(tree, whole):
    "Import statements: at module level, or in the whole file."
    return [n for n in (ast.walk(tree) if whole else tree.body) if isinstance(n, (ast.Import, ast.ImportFrom))]


EARLY = {'torch', 'torchvision', 'numpy', 'scipy', 'sklearn', 'tqdm', 'PIL', 'yaml', *sys.stdlib_module_names}
ALONE = {'core.kernels': {'triton'}}        # it is imported where a kernel is asked for


@pytest.mark.parametrize('name', FILES)
def test_what_a_module_imports_at_once(name):
    "The libraries that a machine that trains has; nothing by star."
    for node in statements(ast.parse(FILES[name].read_text()), True): assert [a.name for a in node.names] != ['*']
    for node in statements(ast.parse(FILES[name].read_text()), False):
        roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [] if node.level else [node.module]
        assert {r.split('.')[0] for r in roots} <= EARLY | ALONE.get(name, set())
        assert 'torch.utils.tensorboard' not in roots


@pytest.mark.parametrize('name', FILES)
def test_public_names_have_a_line_of_documentation(name):
    module = importlib.import_module(f'nmc_workbench.{name}')
    for n in getattr(module, '__all__', []):
        value = getattr(module, n)
        if callable(value) and getattr(value, '__module__', '').startswith('nmc_workbench'):
            assert (value.__doc__ or '').strip(), f'{name}.{n} has no docstring'
            assert not value.__doc__.startswith(f'{n}('), f'{name}.{n} has only a signature for a docstring'


def test_the_names_that_others_import():
    "These stay where they are."
    names = dict(data='load names', augment='preset Augment', optim='Lars', metrics='accuracy nmi ari ami purity',
                 losses='coding_rate coding_rate_reduction view_similarity gumbel_softmax nt_xent', methods='NMCE')
    for module, wanted in names.items():
        module = importlib.import_module(f'nmc_workbench.{module}')
        for n in wanted.split(): assert hasattr(module, n), f'{module.__name__}.{n}'


def test_the_package_itself_loads_nothing():
    code = ("import sys, nmc_workbench; early = ('torch', 'sklearn', 'numpy', 'nmc_workbench'); "
            "print(sorted(m for m in sys.modules if m.split('.')[0] in early), nmc_workbench.__version__)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=os.sep).stdout
    assert out.startswith("['nmc_workbench'] ") and re.fullmatch(r'\d+\.\d+\.\d+', out.split()[-1])


def test_the_benchmark_of_imports_runs():
    from tests.bench import bench_import
    assert 'import torch, torchvision, sklearn' == bench_import.STATEMENTS['baseline']
    assert 0 < bench_import.seconds('import nmc_workbench') < 5
