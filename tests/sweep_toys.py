"Small notebooks for the tests of sweeps, and what their runs leave."
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = dict(name='python3', display_name='python3', language='python')

# A run that is cut goes on after its last row, as a training does after its checkpoint: the log is both at once. A row
# that stands there twice was written by two processes.
STEPS = '''
import json, os, time
from pathlib import Path
run = Path(run_dir)
log = run / 'metrics.jsonl'
assert resume == (run / 'config.json').is_file()
run.mkdir(exist_ok=True)
(run / 'config.json').write_text('{}')
file = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
for step in range(len(log.read_text().splitlines()), steps):
    time.sleep(pause)
    row = dict(stage='toy', epoch=step, step=step, seconds=pause, loss=seed - step / steps, pid=os.getpid(),
               time=time.time(), gpu=os.environ.get('CUDA_VISIBLE_DEVICES'))
    os.write(file, (json.dumps(row) + '\\n').encode())
(run / 'results.json').write_text(json.dumps(dict(acc=seed / 100)))
'''
STEPS_PARAMETERS = '''seed: int = 0  # also the loss
steps: int = 6  # rows of the log
pause: float = .1  # seconds of each
run_dir: str = None
resume: bool = False'''


def notebook(path, parameters, *codes):
    "Write a notebook; without parameters, none of its cells is tagged."
    texts = [parameters or '1 + 1', *codes]
    cells = [dict(cell_type='code', id=f'c{i}', metadata=dict(tags=['parameters'] if parameters and not i else []),
                  source=text, outputs=[], execution_count=None) for i, text in enumerate(texts)]
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=KERNEL), nbformat=4, nbformat_minor=5)))
    return path


def rows(cell):
    "The log of a cell."
    return [json.loads(line) for line in (cell / 'run/metrics.jsonl').read_text().splitlines()]


def workers(folder):
    "Processes of the workers that run a cell."
    from nmc_workbench.sweeps.worker import state_of
    states = [state_of(p.parent) for p in folder.glob('*/state.json')]
    return [s['pid'] for s in states if s['status'] == 'running']


def check(folder, n, steps):
    "Every cell done, none lost, none done twice, and the table right."
    from nmc_workbench.sweeps.table import table
    found = table(folder)
    assert found.counts == {'done': n}, found
    assert sorted(r['parameters']['seed'] for r in found.rows) == list(range(n))
    for r in found.rows:
        assert [row['epoch'] for row in rows(folder / r['id'])] == list(range(steps)), r
        assert (r['epoch'], r['acc']) == (steps - 1, r['parameters']['seed'] / 100) and r['seconds'] > 0
    return found


def overlaps(spans):
    "The largest number of spans of time that overlap."
    ends = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
    most = now = 0
    for _, step in ends:
        now += step
        most = max(most, now)
    return most


def spans(folder, gpu=None):
    "First and last row that each kernel wrote, of all kernels or of those with one GPU."
    found = {}
    for cell in folder.glob('*/run'):
        for row in rows(cell.parent):
            if gpu in (None, row['gpu']): found.setdefault(row['pid'], []).append(row['time'])
    return [(min(t), max(t)) for t in found.values()]
