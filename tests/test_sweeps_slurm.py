"""A sweep on a real SLURM, which the test starts: munged, slurmctld and slurmd of Debian's slurm-wlm on this machine.

Where they are not installed or cannot be started the tests are skipped and say so; with NMC_NEED_SLURM set, as CI has
it, they fail."""
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.sweeps.launch import sweep
from nmc_workbench.sweeps.table import table
from tests.sweep_toys import ROOT, STEPS, STEPS_PARAMETERS, check, notebook, overlaps, spans, workers

DAEMONS = 'munged', 'slurmctld', 'slurmd'
LACKS = [d for d in (*DAEMONS, 'sbatch') if not shutil.which(d)]
pytestmark = pytest.mark.slow
CONF = '''
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={place}/munge.socket
SlurmctldPort={port}
SlurmdPort={port1}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
'''


def lacks():
    "Why SLURM cannot be started at all, or None."
    if getattr(os, 'getuid', lambda: 1)() != 0: return 'only root can start SLURM'
    if LACKS: return f'SLURM is not installed ({", ".join(LACKS)}): apt-get install slurm-wlm'


def missing(why):
    "Skip, or fail where SLURM must be there."
    if os.environ.get('NMC_NEED_SLURM'): pytest.fail(f'{why}, and NMC_NEED_SLURM is set')
    pytest.skip(why)


def start(place):
    "The daemons, each in the background; what they said where they do not start."
    for name in 'state', 'spool': (place / name).mkdir(parents=True)
    port = random.SystemRandom().randrange(20000, 30000)
    (place / 'slurm.conf').write_text(CONF.format(host=socket.gethostname(), place=place, port=port, port1=port + 1))
    (place / 'munge.key').write_bytes(os.urandom(1024))
    (place / 'munge.key').chmod(0o400)
    files = [f'--{n}-file={place}/munge.{n}' for n in ('key', 'pid', 'log', 'seed')]
    for command in (['munged', '--force', f'--socket={place}/munge.socket', *files], ['slurmctld', '-c'], ['slurmd']):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode: return f'{command[0]}: {done.stderr.strip()[-200:]}'
    return until_idle()


def until_idle():
    "Wait for the node; what SLURM says where it does not come."
    for _ in range(60):
        said = subprocess.run(['sinfo', '-h', '-o', '%T'], capture_output=True, text=True)
        if said.stdout.strip() == 'idle': return None
        time.sleep(.5)
    return f'the node is {(said.stdout or said.stderr).strip()[-200:]}'


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    if why := lacks(): missing(why)
    place = tmp_path_factory.mktemp('slurm')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_CONF', str(place / 'slurm.conf'))
        wrong = start(place)
        try:
            if wrong: missing(f'SLURM cannot be started here: {wrong}')
            yield place
        finally:
            subprocess.run(['scancel', '-u', 'root'], capture_output=True, timeout=30)
            for pid in (place / f'{n}.pid' for n in ('slurmctld', 'slurmd', 'munge')):
                with suppress(OSError, ValueError): os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.fixture
def toy(tmp_path): return notebook(tmp_path / 'toy.ipynb', STEPS_PARAMETERS, STEPS)


def test_a_partition_that_does_not_exist(slurm, toy, tmp_path):
    "SLURM's own words, in one line."
    with pytest.raises(InputError, match='invalid partition specified: nowhere.*nothing was started') as e:
        sweep(toy, dict(seed=[0, 1]), tmp_path / 'sweep', where='slurm', slurm=dict(partition='nowhere'))
    assert '\n' not in str(e.value)
    assert table(tmp_path / 'sweep').counts == {'waiting': 2}


def requeue(folder, chance):
    "Send one of the jobs that run back into the queue, as SLURM does when it needs its place."
    jobs = subprocess.run(['squeue', '-h', '-r', '-t', 'R', '-o', '%i'], capture_output=True, text=True).stdout.split()
    if jobs: subprocess.run(['scontrol', 'requeue', chance.choice(jobs)], capture_output=True)


CELLS, ROWS, KILLS = int(os.environ.get('SWEEP_CELLS', 24)), 6, 5


def test_a_job_array_that_is_killed_and_requeued(slurm, toy, tmp_path):
    "24 runs, 2 at a time; five times a job is requeued or its worker is killed, with the launcher."
    folder, chance = tmp_path / 'sweep', random.Random(0)
    command = [sys.executable, '-m', 'nmc_workbench.sweeps', str(toy), '-p', 'seed', ','.join(map(str, range(CELLS))),
               '--folder', str(folder), '--where', 'slurm', '--at-once', '2']
    for kill in range(KILLS):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
            while not (running := workers(folder)) and launcher.poll() is None: time.sleep(.1)
            if kill % 2: requeue(folder, chance)
            elif running:
                with suppress(ProcessLookupError): os.kill(chance.choice(running), signal.SIGKILL)
            launcher.kill()
    for _ in range(3):      # a worker that was killed is not in the queue any more: the sweep is given again
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=400)
        if not done.returncode: break
    found = check(folder, CELLS, ROWS)
    assert f'{CELLS} cells: {CELLS} done' in done.stdout and sum(r['starts'] for r in found.rows) > CELLS
    assert overlaps(spans(folder)) <= 2
    assert len(list(folder.glob('.jobs/*_submission.sh'))) <= KILLS + 3
