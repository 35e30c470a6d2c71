"Sweeps: grids that are refused, runs that fail, hang, are hopeless or are killed, and what is left of it in folders."
import errno
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from nmc_workbench.core.errors import InputError
from nmc_workbench.sweeps import launch
from nmc_workbench.sweeps.__main__ import main
from nmc_workbench.sweeps.grid import cells_of, read_grid
from nmc_workbench.sweeps.launch import prepare, room, sweep
from nmc_workbench.sweeps.table import Live, table
from nmc_workbench.sweeps.worker import Claim, Rule, is_held, put_json, run_cell, state_of
from tests.sweep_toys import ROOT, STEPS, STEPS_PARAMETERS, check, notebook, overlaps, rows, spans, workers

COMMAND = [sys.executable, '-m', 'nmc_workbench.sweeps']


@pytest.fixture
def toy(tmp_path): return notebook(tmp_path / 'toy.ipynb', STEPS_PARAMETERS, STEPS)


def one_line(match, call, *args, **kwargs):
    with pytest.raises(InputError, match=match) as e: call(*args, **kwargs)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400


# ---- before anything starts
@pytest.mark.parametrize('grid, fixed, says', [
    (dict(seeed=[0, 1]), None, "unknown parameter of toy.ipynb 'seeed'; did you mean 'seed'.*nothing was started"),
    (dict(seed=[0]), dict(stepps=3), "did you mean 'steps'"),
    ({}, None, 'the grid is empty'), ([], None, 'the grid is empty'), ([{}], None, 'the grid is empty'),
    (dict(seed=[]), None, 'seed has no values'),
    (dict(seed=[1, 2, 1]), None, 'cells 1 and 3 are the same'), ([dict(seed=1), dict(seed='1')], None, 'are the same'),
    (dict(seed=['a']), None, "seed='a' is a str; expected int"), (dict(seed=[None]), None, 'expected int'),
    (dict(seed=[.5]), None, 'expected int'), (dict(pause=['soon']), None, 'expected float'),
    (dict(run_dir=['a', 'b']), None, 'run_dir is set by the sweep'), (dict(resume=[True]), None, 'set by the sweep'),
    (dict(seed=[1]), dict(seed=2), 'seed stands in the grid and among the fixed'),
    ('seed', None, 'expected names with values'), ([1], None, 'expected names with values'),
    ({1: [2]}, None, 'expected names with values')])
def test_a_grid_that_does_not_fit_is_refused(grid, fixed, says, toy, tmp_path):
    one_line(says, sweep, toy, grid, tmp_path / 'sweep', fixed)
    assert not (tmp_path / 'sweep').exists()


def test_notebooks_without_parameters(tmp_path):
    one_line('has no cell tagged "parameters"', cells_of, notebook(tmp_path / 'a.ipynb', None), dict(seed=[1]))
    one_line('No such file', cells_of, tmp_path / 'none.ipynb', dict(seed=[1]))
    (tmp_path / 'b.ipynb').write_text('{}')
    one_line('is no notebook', cells_of, tmp_path / 'b.ipynb', dict(seed=[1]))
    one_line('is no Python', cells_of, notebook(tmp_path / 'c.ipynb', 'seed = = 1'), dict(seed=[1]))


def test_ids_follow_from_the_parameters_alone(toy, tmp_path):
    "The same set finds its folder again, whatever the order, the notation, and the rest of the grid."
    ids = {c.id: c.parameters for c in cells_of(toy, dict(seed=range(3), pause=[.1, 1]))}
    again = cells_of(notebook(tmp_path / 'other.ipynb', STEPS_PARAMETERS), [dict(pause='1.0', seed='2')])[0]
    assert len(ids) == 6 and ids[again.id] == again.parameters == dict(seed=2, pause=1.)
    assert re.fullmatch('[0-9a-f]{10}', again.id)


@pytest.mark.parametrize('path', sorted((ROOT / 'nbs').glob('train_*.ipynb')), ids=lambda p: p.stem)
def test_every_train_notebook_can_be_swept(path):
    cells = cells_of(path, read_grid('seed 0,1; limit 50,none; amp off,bf16; cfgs ["a,b"]'))
    assert len(cells) == 8 and cells[-1].parameters == dict(seed=1, limit=None, amp='bf16', cfgs='a,b')


@pytest.mark.parametrize('text, says', [
    ('seed', 'is no name with values'), ('seed 1; seed 2', 'seed is given twice'), ('seed [1', 'is no list')])
def test_a_grid_as_text(text, says): one_line(says, read_grid, text)


@pytest.mark.parametrize('given, says', [
    (dict(where='moon'), "unknown place 'moon'"), (dict(at_once=0), 'at_once=0'), (dict(retry=-1), 'retry=-1'),
    (dict(at_once=1.5), 'at_once=1.5'), (dict(stop_if='when bad'), "stop_if='when bad'"), (dict(gpus=-1), 'gpus=-1'),
    (dict(stop_if='loss > high'), 'expected a rule'), (dict(gpus=3), 'gpus=3 for each run; this machine has 2'),
    (dict(at_once=3), 'have room for 2'), (dict(gpus=2, at_once=2), 'have room for 1')])
def test_settings_that_cannot_be(given, says, toy, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7,8')
    one_line(says, sweep, toy, dict(seed=[1]), tmp_path / 'sweep', **given)
    assert not (tmp_path / 'sweep').exists()


def test_how_many_at_a_time(tmp_path, monkeypatch):
    toy = notebook(tmp_path / 'toy.ipynb', "device: str = 'auto'\nn_devices: int = 1")
    def cells(**values): return cells_of(toy, [values])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6')
    assert room(cells(device='auto')) == (3, 1, ['4', '5', '6'])
    assert room(cells(device='auto'), per_gpu=2)[:2] == (6, 1)
    assert room(cells(device='auto'), at_once=2, gpus=1)[:2] == (2, 1)
    assert room(cells(n_devices=2))[:2] == (1, 2)
    assert room(cells(device='cpu'))[1] == room(cells(device='auto'), gpus=0)[1] == 0
    one_line('device=cuda:1; every run sees 1 GPUs', room, cells(device='cuda:1'))
    one_line('gpus=4', room, cells(n_devices=4))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert room(cells(device='auto'))[1:] == (0, [])
    one_line('device=cuda;', room, cells(device='cuda'))


def test_a_folder_of_another_notebook(toy, tmp_path):
    prepare(cells_of(toy, dict(seed=[0])), tmp_path / 'sweep')
    other = notebook(tmp_path / 'other.ipynb', STEPS_PARAMETERS)
    one_line('holds a sweep of .*toy.ipynb', prepare, cells_of(other, dict(seed=[0])), tmp_path / 'sweep')
    (tmp_path / 'file').write_text('')
    one_line('cannot write', prepare, cells_of(toy, dict(seed=[0])), tmp_path / 'file')


def test_without_submitit(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, 'find_spec', lambda name: None)
    one_line('pip install', sweep, toy, dict(seed=[0]), tmp_path / 'sweep')


# ---- one process per cell
def test_a_claim_of_another_machine(tmp_path):
    "Its heartbeat counts where its lock is not seen."
    (tmp_path / '.lock').write_text(json.dumps(dict(host='elsewhere', pid=1)))
    with Claim(tmp_path) as claim: assert is_held(tmp_path) and not claim.take(.2)
    os.utime(tmp_path / '.lock', (0, time.time() - 200))
    with Claim(tmp_path) as claim: assert not is_held(tmp_path) and claim.take(.2)


def test_a_claim_goes_to_one_of_many(tmp_path):
    "Of eight processes that want it at once."
    code = (f'from nmc_workbench.sweeps.worker import Claim; import time\n'
            f'with Claim({str(tmp_path)!r}) as c:\n    print(int(mine := c.take(0))); time.sleep(2 if mine else 0)')
    tried = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert sum(int(p.communicate()[0]) for p in tried) == 1


def test_a_damaged_state_is_no_state(tmp_path):
    for text in ('', '[1]', '{"status"'):
        (tmp_path / 'state.json').write_text(text)
        assert state_of(tmp_path)['status'] == 'waiting'


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    put_json(tmp_path / 'state.json', dict(status='done'))
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    one_line('No space left on device; nothing that was done is lost', put_json, tmp_path / 'state.json', {})
    assert [p.name for p in tmp_path.iterdir()] == ['state.json'] and state_of(tmp_path)['status'] == 'done'


# ---- rules
LOG = [dict(stage=s, epoch=e, loss=v) for s, e, v in [('a', 0, 9.), ('a', 1, 4.), ('b', 0, 2.), ('b', 1, 5.)]]


@pytest.mark.parametrize('rule, hits', [
    ('loss > 3', [1, 2, 4]), ('loss>3 after epoch 1', [2, 4]), ('loss >= 5 in b', [4]), ('loss < 3', [3]),
    ('loss <= 5 after epoch 1 in a', [2]), ('rank > 0', []), (lambda log: len(log) == 3 and 'third', [3]), (None, [])])
def test_rules(rule, hits):
    assert [n for n in range(5) if Rule(rule).why(LOG[:n])] == hits


# ---- the table
def test_the_table_of_an_empty_folder_and_of_none(tmp_path):
    assert str(table(tmp_path)) == 'no cells' and table(tmp_path).flat() == [] and table(tmp_path)._repr_html_()
    one_line('is no folder', table, tmp_path / 'none')


def test_the_table_in_a_pipe_speaks_when_something_changes(toy, tmp_path, capsys):
    cells = prepare(cells_of(toy, dict(seed=[0, 1])), tmp_path / 'sweep')
    live = Live(tmp_path / 'sweep', every=0.)
    live(), live()
    put_json(tmp_path / 'sweep' / next(iter(cells)) / 'state.json', dict(status='stopped', reason='<b>'))
    live()
    assert capsys.readouterr().err.splitlines() == ['2 cells: 2 waiting', '2 cells: 1 waiting, 1 stopped']
    assert '&lt;b&gt;' in table(tmp_path / 'sweep')._repr_html_()


# ---- Kubernetes
def job(capsys, *words):
    main([*map(str, words), '--emit', 'k8s', '--folder', '/work/sweep'])
    return yaml.safe_load(capsys.readouterr().out)


def schema(): return json.loads((ROOT / 'tests/data/kubernetes_job.json').read_text())


def test_the_job_is_what_kubernetes_takes(toy, capsys):
    "The schema is that of batch/v1 in Kubernetes 1.37, strict, with the references it needs."
    jsonschema = pytest.importorskip('jsonschema')
    made = job(capsys, toy, '-p', 'seed', '0,1,2', '--gpus', 1, '--cpus', 4, '--memory', '8Gi', '--at-once', 2)
    check = jsonschema.Draft202012Validator(schema())
    check.check_schema(schema())
    assert list(check.iter_errors(made)) == []
    spec = made['spec']
    assert (spec['completionMode'], spec['completions'], spec['parallelism']) == ('Indexed', 3, 2)
    pod = spec['template']['spec']
    assert pod['containers'][0]['resources']['limits'] == {'cpu': '4', 'memory': '8Gi', 'nvidia.com/gpu': '1'}
    for wrong in (dict(completionMod='Indexed'), dict(completions='3'), dict(template=dict(spec=dict(containers=1)))):
        assert list(check.iter_errors({**made, 'spec': spec | wrong})), wrong


@pytest.mark.slow
def test_the_command_of_the_job_runs_its_cell(tmp_path, capsys, monkeypatch):
    code = 'assert seed != 1, "one is broken"'
    toy = notebook(tmp_path / 'toy.ipynb', 'seed: int = 0', code)
    command = job(capsys, toy, '-p', 'seed', '0,1')['spec']['template']['spec']['containers'][0]['command']
    assert command[:3] == ['python', '-m', 'nmc_workbench.sweeps'] and command[-1] == '--index'
    words = [str(tmp_path / 'sweep') if w == '/work/sweep' else w for w in command[3:]]
    codes = []
    for index in '0', '1', '0':
        monkeypatch.setenv('JOB_COMPLETION_INDEX', index)
        codes.append(main(words))
    assert codes == [0, launch.FAILED, 0]
    assert [r['starts'] for r in table(tmp_path / 'sweep').rows] == [1, 1]
    monkeypatch.delenv('JOB_COMPLETION_INDEX')
    one_line('needs JOB_COMPLETION_INDEX', main, words)


# ---- runs
FATES = '''
import json, time
from pathlib import Path
run = Path(run_dir)
run.mkdir(exist_ok=True)
if seed == 1 and not (run / 'tried').exists():
    (run / 'tried').touch()
    raise ValueError('not this time\\nsecond line')
if seed == 2: raise KeyError('never')
for epoch in range(400 if seed == 3 else 3):
    with open(run / 'metrics.jsonl', 'a') as f:
        f.write(json.dumps(dict(stage='toy', epoch=epoch, step=epoch, loss=float(seed), seconds=.1)) + '\\n')
    if seed == 3: time.sleep(.2)
'''


@pytest.mark.slow
def test_the_fates_of_runs(tmp_path):
    "One is done, one at its second try, one never, and one is stopped; given again, nothing runs unless asked for."
    toy = notebook(tmp_path / 'toy.ipynb', 'seed: int = 0\nrun_dir: str = None', FATES)
    folder = sweep(toy, dict(seed=range(4)), tmp_path / 'sweep', at_once=2, gpus=0, retry=1,
                   stop_if='loss > 2.5 after epoch 4')
    found = {r['parameters']['seed']: r for r in table(folder).rows}
    assert [found[i]['status'] for i in range(4)] == ['done', 'done', 'failed', 'stopped']
    assert [found[i]['starts'] for i in range(4)] == [1, 2, 2, 1]
    assert found[2]['reason'] == "KeyError: 'never'" and found[3]['reason'].startswith('loss > 2.5 after epoch 4: loss')
    assert 4 <= found[3]['epoch'] < 100
    sweep(toy, dict(seed=range(4)), folder, gpus=0)
    assert [r['starts'] for r in table(folder).rows] == [1, 2, 2, 1]
    assert not (folder / '.jobs').exists() or not any((folder / '.jobs').iterdir())


@pytest.mark.parametrize('damage', ['', '{}', None])
def test_a_run_whose_parameters_are_gone_is_not_run_with_others(damage, toy, tmp_path):
    folder = tmp_path / 'sweep' / next(iter(prepare(cells_of(toy, dict(seed=[1])), tmp_path / 'sweep')))
    kept = (folder / 'cell.json').read_text()
    if damage is None: (folder / 'cell.json').unlink()
    else: (folder / 'cell.json').write_text(damage)
    assert run_cell(toy, folder) == 'failed' and not (folder / 'run').exists()
    assert 'cell.json is gone or damaged' in state_of(folder)['reason']
    prepare(cells_of(toy, dict(seed=[1])), tmp_path / 'sweep')
    assert (folder / 'cell.json').read_text() == kept
    assert run_cell(toy, folder) == 'failed' and run_cell(toy, folder, retry=1) == 'done'


@pytest.mark.slow
def test_a_kernel_that_is_killed_is_started_again(tmp_path):
    "Its run goes on; a kernel that always dies is given up after three, without an end in itself."
    code = "import os, signal\nfrom pathlib import Path\nPath(run_dir).mkdir(exist_ok=True)\n" \
           "at = Path(run_dir) / 'n'\nn = len(at.read_text()) if at.exists() else 0\nat.write_text('x' * (n + 1))\n" \
           "if n < seed: os.kill(os.getpid(), signal.SIGKILL)"
    toy = notebook(tmp_path / 'toy.ipynb', 'seed: int = 0\nrun_dir: str = None', code)
    cells = prepare(cells_of(toy, dict(seed=[1])), tmp_path / 'sweep')
    folder = tmp_path / 'sweep' / next(iter(cells))
    assert run_cell(toy, folder) == 'done' and state_of(folder)['starts'] == 2
    cells = prepare(cells_of(toy, dict(seed=[9])), tmp_path / 'sweep')
    folder = tmp_path / 'sweep' / next(iter(cells))
    assert run_cell(toy, folder) == 'interrupted' and state_of(folder)['starts'] == 4
    assert state_of(folder)['reason'].startswith('the kernel died')


@pytest.mark.slow
def test_a_kernel_ends_with_its_worker(toy, tmp_path):
    "Also where the worker is killed before the kernel has begun to look after its parent: then the cell is free."
    folder = tmp_path / 'sweep' / next(iter(prepare(cells_of(toy, dict(seed=[1])), tmp_path / 'sweep')))
    code = f'from nmc_workbench.sweeps.worker import run_cell; run_cell({str(toy)!r}, {str(folder)!r})'
    for pause in 0., .3, 1.:
        with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT) as worker:
            while not (kernels := children(worker.pid)): time.sleep(.01)
            time.sleep(pause)
            worker.kill()
        end = time.monotonic() + 10
        while is_held(folder): assert time.monotonic() < end, (pause, kernels)
    assert run_cell(toy, folder) == 'done'


def children(pid):
    "Processes that another started."
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()


KILLS, CELLS, ROWS = 5, 24, 6


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_given_again(toy, tmp_path):
    """24 runs, 2 at a time, a GPU each; the launcher and workers are killed at random, five times. What is given again
    does what is missing, and no GPU ever has two runs."""
    folder, chance = tmp_path / 'sweep', random.Random(0)
    command = [*COMMAND, str(toy), '-p', 'seed', ','.join(map(str, range(CELLS))), '--folder', str(folder)]
    options = dict(env=os.environ | dict(CUDA_VISIBLE_DEVICES='7,8'), cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, **options) as launcher:
            while not workers(folder): time.sleep(.05)
            time.sleep(chance.uniform(0, 2))
            for pid in chance.sample(running := workers(folder), chance.randint(0, len(running))):
                with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
            launcher.kill()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, **options)
    found = check(folder, CELLS, ROWS)
    assert done.returncode == 0 and f'{CELLS} cells: {CELLS} done' in done.stdout
    assert sum(r['starts'] for r in found.rows) > CELLS                 # some were cut and went on
    assert {row['gpu'] for c in folder.glob('*/run') for row in rows(c.parent)} == {'7', '8'}
    assert overlaps(spans(folder, '7')) == overlaps(spans(folder, '8')) == 1 and overlaps(spans(folder)) <= 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='only root can mount a small disk')
def test_a_sweep_on_a_full_disk(toy, tmp_path):
    "A message; with space again, the same sweep goes on."
    (disk := tmp_path / 'disk').mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], capture_output=True)
    if mounted.returncode: pytest.skip('no small disk can be mounted here')
    try:
        given = dict(folder=disk / 'sweep', gpus=0, at_once=1)
        with suppress(OSError), open(disk / 'ballast', 'wb', 0) as f:
            while True: f.write(bytes(4096))
        os.truncate(disk / 'ballast', (disk / 'ballast').stat().st_size - 40_000)     # room for cell.json, no more
        with pytest.raises(InputError, match='No space left on device; nothing that was done is lost'):
            sweep(toy, dict(seed=range(2)), **given)
        (disk / 'ballast').unlink()
        check(sweep(toy, dict(seed=range(2)), **given), 2, ROWS)
    finally: subprocess.run(['umount', disk])


@pytest.mark.slow
def test_a_sweep_of_trainings_goes_on_from_the_checkpoint(tmp_path):
    "Two runs of NMCE; a worker is killed when its first run has a checkpoint."
    fixed = read_grid('limit 200; batch_size 100; epochs 2; cluster_epochs 2; finetune_epochs 1; n_init 1; device cpu; '
                      'checkpoint_every 1')
    words = [w for name, (value,) in fixed.items() for w in ('-f', name, value)]
    command = [*COMMAND, 'nbs/train_nmce.ipynb', '-p', 'seed', '0,1', *words, '--at-once', '2',
               '--folder', str(tmp_path / 'sweep')]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        while not (found := list(tmp_path.glob('sweep/*/run/checkpoint.pt'))):
            assert launcher.poll() is None
            time.sleep(.1)
        victim = found[0].parents[1]
        os.kill(json.loads((victim / 'state.json').read_text())['pid'], signal.SIGKILL)
        out, err = launcher.communicate(timeout=280)
    assert launcher.returncode == 0 and '2 cells: 2 done' in out, err[-2000:]
    for r in table(tmp_path / 'sweep').rows:
        log = [(row['stage'], row['epoch']) for row in rows(tmp_path / 'sweep' / r['id'])]
        assert len(log) == len(set(log)) == 5 and 0 < r['acc'] <= 1
    assert state_of(victim)['starts'] == 2
    ran = json.loads((victim / 'notebook.ipynb').read_text())
    assert 'resume = True' in ''.join(''.join(c['source']) for c in ran['cells'])


# ---- pages
def test_the_commands_of_the_page():
    "They are taken as they stand."
    page = (ROOT / 'docs/pages/howto/sweeps.md').read_text(encoding='utf-8')
    blocks = '\n'.join(re.findall(r'```console\n(.*?)```', page, re.S)).replace('\\\n', ' ')
    commands = [shlex.split(line) for line in blocks.splitlines() if 'nmc_workbench.sweeps' in line]
    from nmc_workbench.sweeps.__main__ import _cells, _parser, _slurm
    assert len(commands) >= 4
    for words in commands:
        asked = _parser().parse_args([w for w in words[words.index('nmc_workbench.sweeps') + 1:] if w != '>'][:])
        asked.notebook = str(ROOT / asked.notebook)
        assert Path(asked.notebook).is_file() and _slurm(asked.slurm) is not None
        if asked.p: assert len(_cells(asked)) > 1
