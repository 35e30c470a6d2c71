"""One run on many devices: started from Python and from a notebook, on a CPU, where gloo joins the processes.

The methods are those of tests/test_many_ranks.py, whose losses do not depend on which process has a sample."""
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError, TrainingError
from nmc_workbench.data import load
from nmc_workbench.data.images import Images
from nmc_workbench.methods import DeepCluster, NMC, NMCE
from nmc_workbench.methods.base import open_run
from nmc_workbench.methods.deep_cluster.stages import AlternateClustering
from nmc_workbench.runs.folder import Run
from nmc_workbench.sweeps.grid import cells_of
from nmc_workbench.sweeps.launch import room, sweep
from nmc_workbench.training import launch
from nmc_workbench.training.launch import Ranks, join_group, read_job, slurm_request, start_on_slurm, wanted_ranks
from nmc_workbench.training.launch import write_job
from tests.sweep_toys import notebook
from tests.test_many_ranks import METHODS, samples

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/pages/howto/many_devices.md'
TINY = dict(epochs=1, batch_size=60, device='cpu')


def refused(match, call, *args, **kwargs):
    with pytest.raises(InputError, match=match) as e: call(*args, **kwargs)
    assert '\n' not in str(e.value) and len(str(e.value)) < 300


def losses(model): return [r['loss'] for r in model.trainer_.history]


# ---- before anything starts
@pytest.fixture
def nothing_starts(monkeypatch):
    def start(*_): raise AssertionError('a process was started')
    monkeypatch.setattr(launch, 'start_here', start)
    monkeypatch.setattr(launch, 'start_on_slurm', start)


@pytest.mark.parametrize('options, says', [
    (dict(n_devices=3, batch_size=50), 'batch_size=50 is not a multiple of the 3 ranks'),
    (dict(n_devices=3, cluster_batch_size=50), 'batch_size=50 is not a multiple of the 3 ranks'),
    (dict(n_devices=60), r'batch_size=60 on 60 rank\(s\); batch normalisation'),
    (dict(n_devices=2, device='cuda'), 'device'), (dict(n_nodes=2), 'n_nodes=2 without n_devices'),
    (dict(n_devices=2, n_nodes=2), 'n_nodes needs run_dir'), (dict(n_devices=0), 'n_devices=0 is too small'),
    (dict(n_devices=10_000), r'n_devices=10000; this machine has \d+ cores')])
def test_what_cannot_be_is_refused(options, says, nothing_starts, monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    refused(says, NMCE(**TINY | options).fit, load('digits', limit=120))


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert wanted_ranks(2, device='cuda') == wanted_ranks(2) == 2 and wanted_ranks(8, 4, 'cuda') == 32
    refused('n_devices=3; this machine has 2 GPUs', wanted_ranks, 3, None, 'cuda')
    refused('device=cuda:1, which is one device', wanted_ranks, 2, None, 'cuda:1')


def test_the_batch_is_cut_to_what_the_ranks_can_share():
    images = load('digits', limit=101)
    one, two = (NMCE(device='cpu', n_devices=n).config(images).batch_size for n in (None, 2))
    assert (one, two) == (101, 100)


def test_in_a_group_nothing_is_started(nothing_starts, tmp_path, monkeypatch):
    "Of one process here; the number must be that of the group, or none."
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    try:
        refused('n_devices=2 asks for 2 processes, but this one is of a group of 1', NMC(n_devices=2, **TINY).fit,
                samples())
        monkeypatch.setenv('WORLD_SIZE', '2')
        for n in (None, 1): assert NMC(n_devices=n, potential_hidden=8, **TINY).prepare(samples()).train()
    finally: torch.distributed.destroy_process_group()


def test_a_process_joins_what_torchrun_describes(monkeypatch):
    joined = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', joined.append)
    monkeypatch.setattr(launch.atexit, 'register', lambda f: None)
    for name in ('WORLD_SIZE', 'RANK', 'MASTER_ADDR'): monkeypatch.delenv(name, raising=False)
    join_group('cpu')
    monkeypatch.setenv('WORLD_SIZE', '2')
    join_group('cpu')                               # no rank: another program's variable
    assert joined == []
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    join_group('cpu')
    assert joined == ['gloo']


# ---- what the processes get
def test_pixels_are_mapped_and_not_copied(tmp_path):
    images = load('digits', limit=500)
    big = np.arange(40_000, dtype=np.float32)
    write_job(tmp_path / 'job.pt', dict(given=dict(X=images, X_aug=big)))
    found = read_job(tmp_path / 'job.pt')['given']
    assert isinstance(found['X'], Images) and found['X'].pixels.equal(images.pixels)
    assert found['X'].fingerprint() == images.fingerprint() and (found['X_aug'] == big).all()
    maps = Path('/proc/self/maps')
    if maps.exists():
        ranges = [[int(x, 16) for x in line.split()[0].split('-')] for line in maps.read_text().splitlines()
                  if 'job.pt' in line]
        for address in (found['X'].pixels.data_ptr(), found['X_aug'].ctypes.data):
            assert any(a <= address < b for a, b in ranges)


def test_a_run_that_is_lent_goes_on(tmp_path):
    run = Run(tmp_path / 'run', dict(a=1, n_devices=2), runtime=('n_devices',))
    run.save_provenance(dict(command='here'))
    with run.lent():
        other = Run(tmp_path / 'run', dict(a=1, n_devices=None), resume=True, runtime=('n_devices',))
        other.save_provenance(dict(command='there', seconds=0))
        other._since -= 100
        other.clock()
        other._lock.release()
    told = json.loads((tmp_path / 'run/provenance.json').read_text())
    assert told['command'] == 'here' and told['seconds'] >= 100
    assert json.loads((tmp_path / 'run/config.json').read_text())['n_devices'] == 2
    assert run.clock() < told['seconds'] + 5


# ---- runs
@pytest.mark.slow
def test_two_devices_have_the_losses_and_labels_of_one():
    "Sinkhorn and its features are shared; there is no folder, so nothing is left behind."
    alone = METHODS['SeLa']().fit(samples())
    two = METHODS['SeLa'](n_devices=2).fit(samples())
    np.testing.assert_allclose(losses(two), losses(alone), rtol=1e-5)
    assert (two.labels_ == alone.labels_).all() and (two.self_labels_ == alone.self_labels_).all()
    assert (two.predict(samples()) == two.labels_).all() and two.run_dir is None and two.trainer_.done


@pytest.mark.slow
def test_two_devices_end_what_one_began(tmp_path):
    "k-means on the first process, its labels on all."
    make, folder = METHODS['DeepCluster'], str(tmp_path / 'run')
    alone = make().fit(samples())
    make(run_dir=folder).prepare(samples()).train(seconds=0)
    seen = []
    two = make(run_dir=folder, resume=True, n_devices=2)
    trainer = two.prepare(samples())
    trainer.train(watch=lambda rows: seen.append(len(rows)))
    two.finish()
    np.testing.assert_allclose(losses(two), losses(alone), rtol=1e-5)
    assert (two.labels_ == alone.labels_).all() and (two.pseudo_labels_ == alone.pseudo_labels_).all()
    assert seen == [2, 3] and len(open_run(folder, 'cpu').predict(samples())) == 120
    assert two.label_history().labels.shape == (3, 120) and trainer.train() is trainer.history


@pytest.mark.slow
def test_an_interrupted_kernel_ends_the_ranks(tmp_path):
    "And one device ends what two began."
    folder, started = str(tmp_path / 'run'), []
    def stop(rows): raise KeyboardInterrupt
    real = launch.start_here
    def start(*args):
        started.append(real(*args))
        return started[0]
    make = METHODS['AND']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, 'start_here', start)
        trainer = make(run_dir=folder, n_devices=2, checkpoint_every=1).prepare(samples())
        with pytest.raises(KeyboardInterrupt): trainer.train(watch=stop)
    assert all(p.poll() is not None for p in started[0].processes)
    assert 'KeyboardInterrupt' in (tmp_path / 'run/failed.json').read_text()
    again, alone = make(run_dir=folder, resume=True), make()
    for model in (again, alone): model.prepare(samples()).train()
    np.testing.assert_allclose(losses(again), losses(alone), rtol=1e-5)


class _Fails(AlternateClustering):
    "Its second process fails in the second epoch, while the first one waits for it."
    def before_epoch(self, epoch):
        if epoch and os.environ.get('LOCAL_RANK') == '1': raise ArithmeticError('first line\nthe planted one')
        super().before_epoch(epoch)


class _Failing(DeepCluster):
    def _stages(self, config):
        stage, = super()._stages(config)
        stage.__class__ = _Fails
        return [stage]


@pytest.mark.slow
def test_a_rank_that_fails_ends_all(tmp_path):
    options = dict(n_clusters=5, n_pseudo_labels=8, epochs=3, engine='torch', sampling='images', batch_size=40)
    model = _Failing(**options, backbone='mlp(width=32)', augment='spiral(noise=0)', device='cpu', n_devices=2,
                     run_dir=str(tmp_path / 'run'))
    with pytest.raises(TrainingError, match='^rank 1 of 2 failed: ArithmeticError: the planted one$'):
        model.fit(samples())
    told = json.loads((tmp_path / 'run/failed.json').read_text())
    assert 'the planted one' in told['error'] and 'before_epoch' in told['traceback']


def test_of_several_errors_the_first_counts(tmp_path):
    ranks = Ranks({}, 3)
    for rank, at, kind, text in ((0, 2., 'RuntimeError', 'closed by peer'), (1, 1., 'InputError', 'the first')):
        (ranks.folder / f'failed_{rank}.json').write_text(json.dumps(dict(at=at, kind=kind, text=text, trace='')))
    refused('^the first$', ranks._check, {0: '', 1: ''})
    with pytest.raises(TrainingError, match='rank 2 of 3: it was killed by signal 9: the memory may be full'):
        ranks._check({0: '', 2: launch._killed_by(9)})


# ---- SLURM, without a cluster
@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    "An sbatch that keeps what it is given; returns a function that reads it."
    place = tmp_path / 'bin'
    place.mkdir()
    for name in ('sbatch', 'srun', 'squeue', 'scancel'):
        path = place / name
        path.write_text(f'#!/bin/sh\n[ {name} = sbatch ] && cp "$1" {place}/asked && echo "Submitted batch job 7"\n:\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', f'{place}:{os.environ["PATH"]}')
    return lambda: dict(re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', (place / 'asked').read_text(), re.M))


def test_what_a_run_on_nodes_asks_for(sbatch, tmp_path):
    start_on_slurm(tmp_path, slurm_request(4, 2, 'auto'))
    asked = sbatch()
    assert (asked['nodes'], asked['ntasks-per-node'], asked['gpus-per-node']) == ('2', '4', '4') and 'requeue' in asked
    start_on_slurm(tmp_path, slurm_request(4, 2, 'cpu'))
    assert 'gpus-per-node' not in sbatch()


def test_nodes_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    refused('there is no SLURM on this machine', start_on_slurm, tmp_path, slurm_request(4, 2, 'auto'))


@pytest.mark.parametrize('given, options, gpus, cpus', [
    (dict(n_devices=2), {}, '2', None), (dict(n_devices=2, device='cpu'), {}, None, '2'), ({}, {}, None, None),
    (dict(n_devices=2), dict(gpus=4), '4', None), (dict(n_devices=2, n_nodes=2), {}, None, None),
    (dict(n_devices=2, device='cpu'), dict(slurm=dict(cpus_per_task=8)), None, '8')])
def test_what_a_cell_of_a_sweep_asks_for(given, options, gpus, cpus, sbatch, tmp_path):
    toy = notebook(tmp_path / 'toy.ipynb', "seed: int = 0\ndevice: str = 'auto'\nn_devices: int = None\n"
                                           'n_nodes: int = None')
    sweep(toy, dict(seed=[0]), tmp_path / 'sweep', fixed=given, where='slurm', wait=False, **options)
    asked = sbatch()
    assert (asked.get('gpus-per-node'), asked.get('cpus-per-task')) == (gpus, cpus)


def test_a_cell_takes_as_many_cores_as_it_has_devices(tmp_path, monkeypatch):
    toy = notebook(tmp_path / 'toy.ipynb', "device: str = 'auto'\nn_devices: int = None\nn_nodes: int = None")
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr('nmc_workbench.sweeps.launch._cores', lambda: 8)
    assert [room(cells_of(toy, [dict(n_devices=n)]))[0] for n in (1, 2, 16)] == [8, 4, 1]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    assert room(cells_of(toy, [dict(n_devices=8, n_nodes=2)]))[:2] == (2, 1)


# ---- the page
def test_the_commands_of_the_page():
    "Of sweeps; those of papermill are checked in tests/test_pages.py, and torchrun below."
    from nmc_workbench.sweeps.__main__ import _cells, _parser
    found = re.findall(r'```console\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S)
    commands = [shlex.split(line.removeprefix('$ ')) for block in found for line in block.splitlines()]
    assert len(commands) == 2
    for words in commands:
        asked = _parser().parse_args(words[words.index('nmc_workbench.sweeps') + 1:])
        asked.notebook = str(ROOT / asked.notebook)
        cells = _cells(asked)
        assert len(cells) == 3 and all(c.parameters['n_devices'] == 2 for c in cells)


@pytest.mark.slow
def test_the_script_of_the_page_under_torchrun(tmp_path):
    script, = re.findall(r'```py\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S)
    command, = re.findall(r'^.venv/bin/(torchrun .*)$', PAGE.read_text(encoding='utf-8'), re.M)
    (tmp_path / 'train.py').write_text(script)
    program, *words = shlex.split(command)
    done = subprocess.run([Path(sys.executable).with_name(program), '--standalone', *words], cwd=tmp_path,
                          env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)), capture_output=True,
                          text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'runs/torchrun/results.json').is_file()


@pytest.mark.slow
def test_a_notebook_on_two_devices(tmp_path):
    "Its run is like any other."
    import papermill
    given = dict(dataset='digits', limit=120, epochs=1, batch_size=60, n_label_updates=1, n_heads=2, device='cpu',
                 run_dir=str(tmp_path / 'run'), n_devices=2)
    papermill.execute_notebook(str(ROOT / 'nbs/train_sela.ipynb'), str(tmp_path / 'out.ipynb'), given, cwd=tmp_path,
                               progress_bar=False)
    names = {p.name for p in (tmp_path / 'run').iterdir()}
    assert {'config.json', 'provenance.json', 'metrics.jsonl', 'checkpoint.pt', 'model.pt', 'results.json',
            'predictions.npy', 'embeddings.npy', 'self_labels.npy', 'label_history.bin', 'figures'} <= names
    assert not [n for n in names if n.startswith(('.', 'ranks', 'failed'))]
    assert json.loads((tmp_path / 'run/config.json').read_text())['n_devices'] == 2
    assert len(open_run(tmp_path / 'run', 'cpu').predict(load('digits', limit=120))) == 120
    said = json.dumps(json.loads((tmp_path / 'out.ipynb').read_text()))
    assert 'self_labelling: 100%' in said
