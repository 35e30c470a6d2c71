"""A run that is killed, at any moment, and taken up again ends where an uninterrupted one ends: to the bit, on a CPU.

The runs are processes of their own, killed with SIGKILL. All have one thread: sums over batches are taken in another
order with another number of threads, so the claim is for equal numbers of threads."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics

LONG = dict(epochs=8, cluster_epochs=8, finetune_epochs=8, n_init=3, batch_size=100, checkpoint_every=3, hidden_dim=64,
            device='cpu')
SHORT = LONG | dict(epochs=3, cluster_epochs=3, finetune_epochs=3, n_init=2, checkpoint_every=2, hidden_dim=16)
STAGES = ('representation', 'cluster_heads', 'fine_tune')
THREADS = {k: '1' for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}

FIT = """
import json, sys, torch
torch.set_num_threads(1)
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE
NMCE(**json.loads(sys.argv[1])).fit(load('digits', limit=400))
"""

# Imports once, then runs each request in a process of its own, which it names and whose end it reports. `die` makes
# the process kill itself
# while it writes the file of that name for the n-th time: with half of the content there, or with all of it but
# before it has its name.
NURSERY = """
import json, os, re, signal, sys, torch
torch.set_num_threads(1)
from torch.utils.tensorboard import SummaryWriter
from nmc_workbench.core import files
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE

def arm(name, nth, half):
    sync, write, left = os.fsync, files._write_all, [nth]
    def now(found):
        left[0] -= name == found
        return name == found and left[0] == 0
    def deadly_sync(fd):
        if now(re.sub(r'^\\.|\\.\\d+\\.tmp$', '', os.path.basename(os.readlink(f'/proc/self/fd/{fd}')))):
            if half: os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)
    def deadly_write(f, data):
        if now('metrics.jsonl'):
            f.write(data[:len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(f, data)
    os.fsync, files._write_all = deadly_sync, deadly_write

for line in sys.stdin:
    ask = json.loads(line)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(120)
            sys.stderr = open(ask['log'], 'a')
            if ask['die']: arm(*ask['die'])
            NMCE(**ask['params']).fit(load('digits', limit=400))
            code = 0
        except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
        finally: os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Child:
    "A fit in a process of its own."
    def __init__(self, nursery, folder, params, resume, die):
        self.nursery, self.log = nursery, f'{folder}.log'
        ask = dict(params={**params, 'run_dir': str(folder), 'resume': resume}, die=die, log=self.log)
        nursery.stdin.write(json.dumps(ask) + '\n')
        nursery.stdin.flush()
        self.pid = int(nursery.stdout.readline())

    def kill(self): os.kill(self.pid, signal.SIGKILL)

    def wait(self): return int(self.nursery.stdout.readline())


@pytest.fixture(scope='module')
def fit(tmp_path_factory):
    "Starts a fit: fit(folder, params, resume, die) -> Child."
    nursery = subprocess.Popen([sys.executable, '-c', NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env={**os.environ, **THREADS})
    yield lambda folder, params, resume=False, die=None: Child(nursery, folder, params, resume, die)
    nursery.stdin.close()
    nursery.wait(20)


def by_itself(folder, params, resume=False):
    return subprocess.Popen(
                            [sys.executable, '-c', FIT,
                             json.dumps({**params, 'run_dir': str(folder), 'resume': resume})],
                            stderr=subprocess.DEVNULL, env={**os.environ, **THREADS})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "What nobody interrupted."
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert by_itself(folder, LONG).wait(300) == 0
    return folder


@pytest.fixture(scope='module')
def whole_short(tmp_path_factory, fit):
    folder = tmp_path_factory.mktemp('whole') / 'short'
    assert fit(folder, SHORT).wait() == 0
    return folder


def rows_in(folder):
    path = Path(folder) / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


def wait_for(rows, folder, pause, seconds=60):
    "Until the log has so many rows, and a moment longer."
    end = time.monotonic() + seconds
    while rows_in(folder) < rows:
        assert time.monotonic() < end, f'{rows_in(folder)} of {rows} rows after {seconds} s'
        time.sleep(.002)
    time.sleep(pause)


def compare(folder, whole):
    a, b = (load_checkpoint(Path(f) / 'model.pt')['weights'] for f in (folder, whole))
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    for name in ('model.pt', 'predictions.npy', 'embeddings.npy', 'ids.npy'):
        assert (Path(folder) / name).read_bytes() == (Path(whole) / name).read_bytes()
    def timed(k): return k.startswith('seconds') or k == 'views_per_second'
    a, b = ([{k: v for k, v in r.items() if not timed(k)} for r in read_metrics(f)] for f in (folder, whole))
    assert a == b and [r['stage'] for r in a] == [s for s in STAGES for _ in range(len(a) // 3)]
    results = [json.loads((Path(f) / 'results.json').read_text()) for f in (folder, whole)]
    assert {**results[0], 'seconds': 0} == {**results[1], 'seconds': 0}
    assert not [p for p in Path(folder).rglob('*') if p.name.endswith('.tmp')]


def test_a_run_has_what_the_others_are_compared_with(whole):
    assert rows_in(whole) == 24
    assert np.load(whole / 'predictions.npy').shape == (400,)
    assert len(load_checkpoint(whole / 'model.pt')['weights']) > 20
    assert len(set(np.load(whole / 'predictions.npy'))) > 5
    assert json.loads((whole / 'provenance.json').read_text())['threads'] == 1


def kill_between(fit, folder, first, last, pause):
    """A run killed a moment after its log has `first` rows, and before it has `last`; tried again where the machine was
    too busy to hit that."""
    for i in range(5):
        path = folder.with_name(f'{folder.name}try{i}')
        child = fit(path, LONG)
        wait_for(first, path, pause)
        child.kill()
        if child.wait() == -signal.SIGKILL and rows_in(path) < last: return path
    raise AssertionError(f'five runs had more than {last} rows before they could be killed')


@pytest.mark.slow
@pytest.mark.parametrize('stage', STAGES)
def test_killed_at_a_random_moment_of_a_stage(tmp_path, fit, whole, stage):
    rng, last = random.Random(stage), 8 * (STAGES.index(stage) + 1)
    pace = np.median([r['seconds'] for r in read_metrics(whole) if r['stage'] == stage])
    for i in range(2):
        folder = kill_between(fit, tmp_path / f'run{i}', last - 8 + rng.randrange(5), last, rng.uniform(0, 1.5) * pace)
        assert last - 8 <= rows_in(folder) < last and not (folder / 'results.json').exists()
        assert fit(folder, LONG, resume=True).wait() == 0
        compare(folder, whole)


@pytest.mark.slow
def test_killed_twice_in_processes_started_by_hand(tmp_path, whole):
    for resume, at, pause in ((False, 5, .03), (True, 14, .02)):
        run = by_itself(tmp_path / 'run', LONG, resume)
        wait_for(at, tmp_path / 'run', pause)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    assert by_itself(tmp_path / 'run', LONG, resume=True).wait(300) == 0
    compare(tmp_path / 'run', whole)


# The name of a file, and which of its writings it is killed in. A run of three times three epochs writes its
# checkpoint six times and its log nine times.
MOMENTS = [
    ('config.json', 1), ('provenance.json', 3),
    ('checkpoint.pt', 1), ('checkpoint.pt', 2), ('checkpoint.pt', 3), ('checkpoint.pt', 6),
    ('representation.pt', 1), ('model.pt', 1), ('predictions.npy', 1), ('results.json', 1),
    ('metrics.jsonl', 1), ('metrics.jsonl', 5), ('metrics.jsonl', 9)]


@pytest.mark.slow
def test_killed_while_writing(tmp_path, fit, whole_short):
    random.seed(0)
    for name, nth in MOMENTS:
        folder, half = tmp_path / f'{name}{nth}', random.random() < .5
        assert fit(folder, SHORT, die=(name, nth, half)).wait() == -signal.SIGKILL, (name, nth)
        good = folder / 'checkpoint.pt'
        if good.exists(): assert load_checkpoint(good)['rows'] <= rows_in(folder)
        assert fit(folder, SHORT, resume=True).wait() == 0, (name, nth, Path(f'{folder}.log').read_text()[-300:])
        compare(folder, whole_short)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, fit, whole_short):
    "Every process gets one file further, and is killed while it writes it."
    for i, (name, nth) in enumerate([('config.json', 1), ('metrics.jsonl', 2), ('checkpoint.pt', 2),
                                     ('checkpoint.pt', 2), ('cluster_heads.pt', 1), ('checkpoint.pt', 1),
                                     ('model.pt', 1), ('embeddings.npy', 1)]):
        assert fit(tmp_path / 'run', SHORT, resume=True,
                   die=(name, nth, i % 2 == 0)).wait() == -signal.SIGKILL, (name, nth)
    assert fit(tmp_path / 'run', SHORT, resume=True).wait() == 0
    compare(tmp_path / 'run', whole_short)


def test_started_anew_after_a_kill(tmp_path, fit, whole_short):
    "Without resume nothing of the killed run is used, and it is kept aside."
    assert fit(tmp_path / 'run', SHORT, die=('checkpoint.pt', 3, True)).wait() == -signal.SIGKILL
    assert fit(tmp_path / 'run', SHORT).wait() == 0
    compare(tmp_path / 'run', whole_short)
    assert rows_in(tmp_path / 'run.previous') >= 3


@pytest.mark.timing
def test_a_finished_run_gives_its_results_at_once(tmp_path, fit, whole):
    folder = shutil.copytree(whole, tmp_path / 'run')
    before = (folder / 'checkpoint.pt').stat().st_mtime_ns, (folder / 'metrics.jsonl').read_bytes()
    began = time.monotonic()
    assert fit(folder, LONG, resume=True).wait() == 0
    assert time.monotonic() - began < json.loads((whole / 'results.json').read_text())['seconds'] + 1
    # nothing was trained
    assert before == ((folder / 'checkpoint.pt').stat().st_mtime_ns, (folder / 'metrics.jsonl').read_bytes())
    compare(folder, whole)


def test_resume_where_nothing_lies_starts_anew(tmp_path, fit, whole_short):
    assert fit(tmp_path / 'run', SHORT, resume=True).wait() == 0
    compare(tmp_path / 'run', whole_short)
