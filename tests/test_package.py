"`import nmc_workbench as nmc` costs nothing and offers everything, when it is asked for."
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

import nmc_workbench as nmc

OFFERED = '''load as_images preset backbone NMCE NMC SeLa open_run read_run list_runs evaluate diagnose compare Explorer
    losses optim metrics subspaces persistence transport cluster projection
    core data augment nets modes runs training methods diagnostics evaluation plotting widgets explore
    reports DeepCluster AND lloyd anchors k_rules run_table sweeps
    encoder embed quality sweep'''.split()


@pytest.mark.parametrize('name', OFFERED)
def test_what_it_offers(name):
    assert getattr(nmc, name) is not None and name in nmc.__all__ and name in dir(nmc)


def test_it_offers_nothing_else():
    assert set(nmc.__all__) == set(OFFERED)
    assert nmc.NMCE is nmc.methods.NMCE and nmc.load is nmc.data.load


def test_rooms_are_those_of_the_package():
    package = Path(nmc.__file__).parent
    rooms = {p.stem for p in package.iterdir() if not p.name.startswith('_') and (p.is_dir() or p.suffix == '.py')}
    assert rooms == {n for n in OFFERED if type(getattr(nmc, n)).__name__ == 'module'}


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'sinkhorn'; it offers load"): nmc.sinkhorn
    from nmc_workbench import data
    assert data is nmc.data


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - start


@pytest.mark.timing
def test_importing_it_costs_nothing():
    "At most 20 ms beyond the start of Python, in turns."
    for _ in range(3):
        turns = [(seconds('pass'), seconds('import nmc_workbench')) for _ in range(9)]
        extra = median(b for _, b in turns) - median(a for a, _ in turns)
        if extra < .02: return
    assert extra < .02


@pytest.mark.parametrize('module, source', [
    ('losses', '2006.08558'), ('transport', '1911.05371'), ('methods.nmce.estimator', '2201.10000'),
    ('methods.sela.estimator', '1911.05371'), ('modes.potential', 'denoising autoencoders')])
def test_a_module_says_in_its_docstring_what_the_notebook_says_first(module, source):
    import importlib
    text = importlib.import_module(f'nmc_workbench.{module}').__doc__
    assert len(text.split('\n\n')) == 2 and source in text
