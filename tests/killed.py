"Fits on the digits in processes of their own, killed after an epoch, for the tests of resume to the bit."
import json
import signal
import subprocess
from pathlib import Path

from tests.processes import python

ROOT = Path(__file__).parents[1]
SCRIPT = '''
import json, os, signal, sys, time, torch
torch.set_num_threads(1)
from nmc_workbench import methods
from nmc_workbench.data import load
from nmc_workbench.training.trainer import Trainer
method, options, at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
record = Trainer._record
def die(self, row):
    record(self, row)
    if row['epoch'] == at: os.kill(os.getpid(), signal.SIGKILL)
Trainer._record = die
if len(sys.argv) > 4:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4]))
start = time.perf_counter()
getattr(methods, method)(**options).fit(load('digits', limit=300))
print('seconds', time.perf_counter() - start)
'''


def fit(method, options, at=None):
    "Fit to the end, or until the log has the row of epoch `at`; the seconds that a whole fit took, without imports."
    command = python('-c', SCRIPT, method, json.dumps(options), str(-1 if at is None else at))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if at is None else -signal.SIGKILL), done.stderr[-2000:]
    return float(done.stdout.split()[-1]) if at is None else None


def fit_for(method, options, seconds):
    "Fit until a clock ends the process, wherever it is; whether it was ended before it had come to its end."
    command = python('-c', SCRIPT, method, json.dumps(options), '-1', str(seconds))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGALRM), done.stderr[-2000:]
    return done.returncode != 0


def whole_and_parts(method, options, folder, at, more=lambda name: {}):
    "The folders of two runs: one without interruption, and one killed in epoch `at` and resumed."
    for name in ('whole', 'parts'):
        given = {**options, 'run_dir': str(folder / name), **more(name)}
        if name == 'parts': fit(method, given, at)
        fit(method, given | dict(resume=name == 'parts'))
    return folder / 'whole', folder / 'parts'
