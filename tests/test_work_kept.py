"""What must not be lost or damaged: a run folder with two processes, work of a person, a log, a pickle."""
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import clear_leftovers, is_leftover, write_array, write_file, write_json
from nmc_workbench.data import load
from nmc_workbench.methods import NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.runs.folder import Run
from nmc_workbench.runs.index import list_runs
from nmc_workbench.runs.metrics_log import MetricsLog, read_metrics
from nmc_workbench.training.precision import AMP, Precision
from nmc_workbench.training.timing import Stopwatch
from tests.ranks import member, together
from tests.test_basics import one_line

CONFIG = dict(method='NMCE', epochs=3, lr=.1, device='cpu')
DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
FEW = dict(batch_size=60, device='cpu', checkpoint_every=3)
MAKE = dict(
    NMCE=lambda **more: NMCE(n_clusters=10, **dict(epochs=5, cluster_epochs=5, finetune_epochs=1, n_init=1,
                                                   hidden_dim=16) | FEW | more),
    NMC=lambda **more: NMC(epochs=5, potential_hidden=16, **FEW | more),
    SeLa=lambda **more: SeLa(backbone='smallconv', n_clusters=6, n_heads=1, power=12, epochs=5, n_label_updates=2,
                             **FEW | more),
    DeepCluster=lambda **more: DeepCluster(backbone='smallconv', n_clusters=6, n_pseudo_labels=12, epochs=5,
                                           **FEW | more))
STAGE_OF_A_KILL = dict(NMCE=8, NMC=4, SeLa=4, DeepCluster=4)       # rows of the log; NMCE is in its second stage


class Killed(Exception): pass


@pytest.fixture(scope='module')
def images(): return load('digits', limit=120)


@pytest.fixture(scope='module')
def points(): return np.random.default_rng(0).normal(size=(120, 2)).astype('f4')


@pytest.fixture
def data(images, points): return lambda method: points if method == 'NMC' else images


def interrupted(model, x, rows):
    def watch(log):
        if len(log) == rows: raise Killed
    with pytest.raises(Killed): model.prepare(x).train(watch=watch)
    return model


# --- the picture of the log


def scalars(folder):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(folder / 'events'), size_guidance=dict(scalars=0)).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()['scalars']}


@pytest.mark.parametrize('method', MAKE)
def test_tensorboard_shows_every_epoch_once_after_a_resume(tmp_path, data, method):
    run = tmp_path / 'run'
    interrupted(MAKE[method](run_dir=str(run)), data(method), STAGE_OF_A_KILL[method])
    MAKE[method](run_dir=str(run), resume=True).fit(data(method))
    found, rows = scalars(run), read_metrics(run)
    for stage in dict.fromkeys(r['stage'] for r in rows):
        mine = [r for r in rows if r['stage'] == stage]
        assert [e.step for e in found[f'{stage}/loss']] == [r['epoch'] for r in mine] == list(range(len(mine)))
        assert [e.value for e in found[f'{stage}/loss']] == pytest.approx([r['loss'] for r in mine])
        times = [e.wall_time for e in found[f'{stage}/loss']]
        assert times == sorted(times)


def test_events_that_a_kill_kept_from_the_disk_are_there_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path)
    for e in range(3): log.append(dict(stage='one', epoch=e, loss=1., seconds=2.))
    log.close()
    for p in (tmp_path / 'events').iterdir(): p.write_bytes(p.read_bytes()[:100])
    again = MetricsLog(tmp_path)
    again.rewind(2)
    again.append(dict(stage='one', epoch=2, loss=3., seconds=2.))
    again.close()
    found = scalars(tmp_path)['one/loss']
    assert [(e.step, e.value) for e in found] == [(0, 1.), (1, 1.), (2, 3.)]


# --- pickles


@pytest.mark.parametrize('method', MAKE)
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('amp', ['off', 'bf16', 'fp16'])
def test_a_fitted_model_can_be_pickled(tmp_path, data, method, device, amp):
    if amp == 'fp16' and device == 'cpu': pytest.skip('fp16 needs CUDA')
    x = data(method)
    model = MAKE[method](device=device, amp=amp, run_dir=str(tmp_path / 'run')).fit(x)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(x) == model.predict(x)).all() and (again.labels_ == model.labels_).all()


@pytest.mark.parametrize('method', MAKE)
def test_a_model_that_was_interrupted_can_be_pickled(tmp_path, data, method):
    model = interrupted(MAKE[method](run_dir=str(tmp_path / 'run'), amp='bf16'), data(method), 2)
    assert len(pickle.loads(pickle.dumps(model)).trainer_.history) == 2


def test_precision_and_stopwatch_can_be_pickled():
    for amp in AMP[:2]:
        with pickle.loads(pickle.dumps(Precision(amp, torch.device('cpu')))).cast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if amp == 'bf16' else torch.float32)
    watch = Stopwatch(torch.device('cpu'))
    watch.marks.append(('other', threading.Lock()))         # as little to be pickled as an event of CUDA
    pickle.loads(pickle.dumps(watch)).seconds()


# --- the clock


def test_a_clock_that_goes_backwards_gives_no_negative_seconds(tmp_path, monkeypatch, images):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, 'time', lambda: float(next(clock)))
    MAKE['NMCE'](run_dir=str(tmp_path / 'run')).fit(images)
    files = [json.loads((tmp_path / 'run' / f).read_text()) for f in ('results.json', 'provenance.json')]
    assert all(0 < f['seconds'] < 600 for f in files)
    assert all(v >= 0 for r in read_metrics(tmp_path / 'run') for k, v in r.items() if k == 'seconds')


# --- one process at a time


HOLD = """
import sys, time
from nmc_workbench.runs.folder import Run
run = Run(sys.argv[1], dict(method='NMCE', epochs=3, lr=.1, device='cpu'), resume=True)
print('held', flush=True)
sys.stdin.readline()
{end}
print('done', flush=True)
sys.stdin.readline()
"""


def holder(folder, end=''):
    "A process that holds the folder until it is told to go on."
    child = subprocess.Popen([sys.executable, '-c', HOLD.format(end=end), str(folder)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == 'held\n'
    return child


def go_on(child):
    child.stdin.write('\n')
    child.stdin.flush()


@pytest.mark.parametrize('resume', [True, False])
def test_a_second_process_is_refused_and_told_by_whom(tmp_path, resume):
    child = holder(tmp_path / 'run')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'run').iterdir()}
    with pytest.raises(InputError, match=rf'is in use by process {child.pid} on \S+ since \d{{4}}-.*; wait') as error:
        Run(tmp_path / 'run', CONFIG, resume)
    one_line(error)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / 'run').iterdir()}
    assert os.listdir(tmp_path) == ['run']
    child.send_signal(signal.SIGKILL)
    child.wait()
    Run(tmp_path / 'run', CONFIG, resume)               # taken over at once
    assert os.listdir(tmp_path / 'run') == ['config.json']


@pytest.mark.parametrize('end', ["run.finish({})", 'del run', 'sys.exit()'])
def test_the_folder_is_free_when_a_run_is_finished_or_its_process_ends(tmp_path, end):
    child = holder(tmp_path / 'run', end)
    go_on(child)
    child.stdout.readline()
    if 'exit' in end: child.wait()
    assert not (tmp_path / 'run/.lock').exists()
    Run(tmp_path / 'run', CONFIG, resume=True)
    child.kill()
    child.wait()


def test_a_finished_fit_leaves_no_lock_and_an_interrupted_one_gives_way_in_its_process(tmp_path, images):
    run = tmp_path / 'run'
    model = interrupted(MAKE['NMCE'](run_dir=str(run)), images, 4)
    assert (run / '.lock').is_file()
    again = MAKE['NMCE'](run_dir=str(run), resume=True).fit(images)
    assert not (run / '.lock').exists() and len(again.history_) == 11 and model.run_
    model.run_.clock()              # of a run that another took over


def test_what_a_forked_process_does_at_its_end_leaves_the_lock(tmp_path):
    run = Run(tmp_path / 'run', CONFIG)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run._lock.release()
            try: Run(tmp_path / 'run', CONFIG, resume=True)
            except InputError: code = 0
        finally: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and (run.folder / '.lock').is_file()


FIT = """
import json, sys
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE
NMCE(dataset='digits', limit=120, n_clusters=10, epochs=60, cluster_epochs=2, finetune_epochs=1, n_init=1,
     batch_size=60, device='cpu', run_dir=sys.argv[1], checkpoint_every=5, resume=bool(int(sys.argv[2]))
     ).fit(load('digits', limit=120))
"""


@pytest.mark.parametrize('resume', [0, 1])
def test_the_same_command_twice_at_once(tmp_path, resume):
    folder = tmp_path / 'runs/x'
    command = [sys.executable, '-W', 'ignore', '-c', FIT, str(folder), str(resume)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(p.communicate()[1].strip().splitlines()[-1:], p.returncode) for p in both]
    assert sorted(code for _, code in ends) == [0, 1]
    said, = [text[0] for text, code in ends if code]
    assert 'is in use by' in said
    epochs = [(r['stage'], r['epoch']) for r in read_metrics(folder)]
    assert len(epochs) == len(set(epochs)) == 63 and epochs[0] == ('representation', 0)
    assert os.listdir(folder.parent) == ['x']


def _rank(rank, port, out):
    torch.set_num_threads(1)
    with member(rank, port):
        path = Path(out) / 'run'
        model = MAKE['NMCE'](run_dir=str(path), epochs=2, cluster_epochs=1).fit(load('digits', limit=120))
        torch.save(len(model.history_), f'{out}/rank{rank}.pt')


def test_two_ranks_share_the_lock(tmp_path):
    assert together(_rank, tmp_path) == [4, 4]
    assert not (tmp_path / 'run/.lock').exists()


# --- the folder goes away


def gone(folder): subprocess.run(['rm', '-rf', folder], check=True)
def renamed(folder): folder.rename(folder.with_name('elsewhere'))
def replaced(folder):
    renamed(folder)
    holder(folder).kill()


@pytest.mark.parametrize('method', MAKE)
@pytest.mark.parametrize('happens', [gone, renamed, replaced])
def test_a_folder_that_goes_away_during_training_is_said_in_one_line(tmp_path, data, method, happens):
    run = tmp_path / 'run'
    def watch(rows):
        if len(rows) == 2: happens(run)
    with pytest.raises(InputError, match=f'run folder {run} was deleted or renamed while this run was using') as error:
        MAKE[method](run_dir=str(run)).prepare(data(method)).train(watch=watch)
    one_line(error)
    if happens is not replaced: assert not run.exists()
    if happens is not gone: assert len(read_metrics(tmp_path / 'elsewhere')) == 2


def test_a_folder_that_is_gone_at_the_end_is_said(tmp_path):
    run = Run(tmp_path / 'run', CONFIG)
    gone(run.folder)
    for call in (run.clock, lambda: run.finish({}, a=np.arange(3)),
                 lambda: run.metrics.append(dict(stage='a', epoch=0))):
        with pytest.raises(InputError, match='was deleted or renamed') as error: call()
        one_line(error)
    assert not run.folder.exists()


def test_a_link_as_run_dir_is_refused(tmp_path):
    (tmp_path / 'there').mkdir()
    for name, to in (('link', 'there'), ('dangling', 'nowhere')):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(InputError, match=f'{name} is a symbolic link to {tmp_path}/{to}; ') as error:
            Run(tmp_path / name, CONFIG, resume=True)
        one_line(error)
    assert os.listdir(tmp_path / 'there') == [] and not (tmp_path / 'nowhere').exists()


# --- temporary files


def test_threads_may_write_the_same_file(tmp_path):
    wrong = []
    def write(i):
        try:
            for _ in range(50): write_json(tmp_path / 'a.json', dict(i=i, text='x' * 10_000))
        except Exception as e: wrong.append(e)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert wrong == [] and os.listdir(tmp_path) == ['a.json']
    assert json.loads((tmp_path / 'a.json').read_text())['i'] in range(4)


def dead():
    "The number of a process that is gone."
    child = subprocess.Popen(['true'])
    child.wait()
    return child.pid


def test_what_killed_writers_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    Run(tmp_path / 'a', CONFIG)
    for n in ('123', f'{dead():07}000003', f'{os.getpid():07}999999'):
        for place in ('', 'figures/'):
            for name in ('labels.csv', 'curation.json', 'table.tex', 'report.html', 'map.png', 'label_history.bin'):
                path = tmp_path / 'a' / place / f'.{name}.{n}.tmp'
                path.parent.mkdir(exist_ok=True)
                path.write_text('half')
        (tmp_path / f'a/.clusters.{n}.tmp/00').mkdir(parents=True)
    used = f'.curation.json.{os.getppid():07}000001.tmp'        # of a process that runs
    (tmp_path / 'a' / used).write_text('half')
    with write_file(tmp_path / 'a/mine.csv') as f:
        Run(tmp_path / 'a', CONFIG, resume=True)
        f.write(b'whole')
    assert sorted(os.listdir(tmp_path / 'a')) == sorted([used, 'config.json', 'figures', 'mine.csv'])
    assert os.listdir(tmp_path / 'a/figures') == []


def test_a_writer_removes_what_it_left_anywhere(tmp_path):
    left = [f'.a.npy.{dead():07}000003.tmp', '.a.npy.77.tmp', '.b.npy.77.tmp']
    for name in left: (tmp_path / name).write_text('half')
    write_array(tmp_path / 'a.npy', np.arange(3))
    assert sorted(os.listdir(tmp_path)) == [left[2], 'a.npy']
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ['a.npy'] and not is_leftover('.a.npy.tmp') and not is_leftover('.thesis.tmp')


# --- what a person made


def made(folder, what):
    path = folder / what
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"edits": []}')


WORK = ['curation.json', 'labels.csv', 'mine.csv', 'clusters/00 dogs/a.png', 'my export/noise/a.png', 'other.json',
        'curation.json.damaged', 'encoder/curation.json']


@pytest.mark.parametrize('what', WORK)
def test_work_of_a_person_is_kept_whenever_the_command_runs_again(tmp_path, capsys, what):
    for i in range(4):
        run = Run(tmp_path / 'a', CONFIG)
        if 'encoder' in what: Run(tmp_path / 'a/encoder', CONFIG)
        if i < 2: made(run.folder, what)
    assert sorted(os.listdir(tmp_path)) == ['a', 'a.kept', 'a.kept-2', 'a.previous']
    for kept in ('a.kept', 'a.kept-2'):
        assert (tmp_path / kept / what).is_file()
        assert kept in [Path(r['folder']).name for r in list_runs(tmp_path)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line, kept in zip(said, ('a.kept', 'a.kept-2')):
        assert what.split('/')[0] in line and line.endswith(f'is kept as {tmp_path}/{kept}')


def test_work_in_what_was_set_aside_is_kept_too(tmp_path, capsys):
    Run(tmp_path / 'a', CONFIG)
    Run(tmp_path / 'a', CONFIG)
    made(tmp_path / 'a.previous', 'curation.json')
    Run(tmp_path / 'a', CONFIG)
    assert (tmp_path / 'a.kept/curation.json').is_file() and 'a.kept' in capsys.readouterr().err


def test_something_else_with_the_name_of_what_is_set_aside_is_kept(tmp_path):
    Run(tmp_path / 'a', CONFIG)
    (tmp_path / 'a.previous').write_text('mine')
    Run(tmp_path / 'a', CONFIG)
    assert (tmp_path / 'a.kept').read_text() == 'mine' and (tmp_path / 'a.previous/config.json').is_file()


@pytest.mark.parametrize('method', MAKE)
def test_a_run_without_work_is_set_aside_as_before(tmp_path, data, method):
    for _ in range(3): MAKE[method](run_dir=str(tmp_path / 'run')).fit(data(method))
    assert sorted(p for p in os.listdir(tmp_path) if p.startswith('run')) == ['run', 'run.previous']


def test_exports_of_folders_at_once_do_not_share_a_draft(tmp_path, images):
    from nmc_workbench.explore.curation import Curation
    left = tmp_path / f'.clusters.{dead():07}000001.tmp/00'
    left.mkdir(parents=True)
    curation = Curation(images.ids, np.arange(120) % 3, np.zeros((120, 2)))
    wrong = []
    def export():
        try: curation.export_folders(tmp_path / 'clusters', images)
        except InputError: pass                 # the other was first
        except Exception as e: wrong.append(e)
    threads = [threading.Thread(target=export) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert wrong == [] and os.listdir(tmp_path) == ['clusters'] and len(list(tmp_path.rglob('*.png'))) == 120


# --- two explorers on one curation


def curations(path, n=2):
    "Some curations of the same samples, as each explorer has its own, after one edit that all have read."
    from nmc_workbench.explore.curation import Curation
    ids, labels = np.array([f'all/{i}' for i in range(40)]), np.arange(40) % 4
    of_run = ids, labels, np.random.default_rng(0).normal(size=(40, 2)) + 5 * np.eye(4, 2)[labels]
    first = Curation(*of_run)
    first.rename(0, 'zero')
    first.save(path)
    return [first, *(Curation.load(path, *of_run) for _ in range(n - 1))]


def test_a_curation_that_was_saved_elsewhere_is_not_overwritten(tmp_path):
    from nmc_workbench.explore.curation import Curation, SavedMeanwhile
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    a.merge([1, 2])
    a.save(path)
    before = path.read_bytes()
    b.rename(3, 'three')
    with pytest.raises(SavedMeanwhile, match='was saved elsewhere .*merge=True.*save_as') as e: b.save(path)
    assert one_line(e) and path.read_bytes() == before
    unread = Curation(a.ids, a.start, a.embedding)
    unread.noise(a.ids[0])
    with pytest.raises(SavedMeanwhile): unread.save(path)
    b.save(path, merge=True)
    assert [edit['kind'] for edit in b.edits] == ['rename', 'merge', 'rename'] and not b.skipped
    assert b.names == {0: 'zero', 3: 'three'} and (b.labels == a.labels).all()
    for _ in range(3): b.undo()
    assert (b.labels == b.start).all() and not b.names
    assert Curation.load(path, a.ids, a.start, a.embedding).names == {0: 'zero', 3: 'three'}


def test_saving_again_and_saving_the_same_is_no_conflict(tmp_path):
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    for k in range(3):
        a.rename(k, f'name {k}')
        a.save(path)
    for k in range(3): b.rename(k, f'name {k}')
    b.save(path)                                        # the very edits that are there
    path.unlink()
    b.save(path)                                        # nothing is there to be lost
    assert path.is_file()


def test_what_cannot_be_replayed_is_said(tmp_path):
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    a.merge([1, 2])
    a.save(path)
    b.rename(2, 'two')                                  # whose samples are in 1 there
    b.split(3, 2)
    b.save(path, merge=True)
    assert len(b.skipped) == 1 and 'rename, left out: no sample is in cluster 2' in b.skipped[0]
    assert [edit['kind'] for edit in b.edits] == ['rename', 'merge', 'split']


def test_numbers_that_both_gave_stay_apart(tmp_path):
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    a.split(0, 2)
    b.move(b.ids[[1, 5]], b.new_cluster())
    b.rename(4, 'mine')
    assert a.clusters == b.clusters == [0, 1, 2, 3, 4]
    a.save(path)
    b.save(path, merge=True)
    assert b.clusters == [0, 1, 2, 3, 4, 5] and b.names[5] == 'mine' and (b.labels[[1, 5]] == 5).all()
    assert (b.labels[a.labels == 4] == 4).all()


def test_an_edit_that_was_undone_on_one_side(tmp_path):
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    a.rename(1, 'one')
    a.save(path)
    b.undo()
    b.rename(2, 'two')
    b.save(path, merge=True)
    assert b.names == {0: 'zero', 1: 'one', 2: 'two'} and b.skipped == ['1 edit undone here, but not there']
    a.undo()
    a.undo()
    a.save(path, merge=True)
    assert len(a.skipped) == 1 and a.names == b.names


def test_a_new_name_is_free(tmp_path):
    path = tmp_path / 'curation.json'
    a, b = curations(path)
    assert [b.save_as(path).name for _ in range(2)] == ['curation-2.json', 'curation-3.json']
    assert a.save_as(tmp_path / 'new/mine.json') == tmp_path / 'new/mine.json'
    b.rename(1, 'one')
    b.save(tmp_path / 'curation-3.json')
    assert sorted(os.listdir(tmp_path)) == ['curation-2.json', 'curation-3.json', 'curation.json', 'new']


def test_a_script_of_a_later_format_is_not_overwritten(tmp_path):
    path = tmp_path / 'curation.json'
    a, _ = curations(path)
    path.write_text('{"format": 99}')
    with pytest.raises(InputError, match='saved elsewhere'): a.save(path)
    with pytest.raises(InputError, match='format 99'): a.save(path, merge=True)
    assert path.read_text() == '{"format": 99}'


SAVER = '''import sys
import numpy as np
from nmc_workbench.explore.curation import Curation
path, name = sys.argv[1:]
ids, labels = np.array([f"all/{i}" for i in range(40)]), np.arange(40) % 4
for i in range(12):
    c = Curation.load(path, ids, labels, np.zeros((40, 2)))
    c.rename(i % 4, f"{name} {i}")
    c.save(path, merge=True)
    assert not c.skipped'''


def test_two_processes_lose_no_edit(tmp_path):
    from nmc_workbench.explore.curation_script import read_script
    path = tmp_path / 'curation.json'
    curations(path)
    names = ['first', 'second']
    started = [subprocess.Popen([sys.executable, '-c', SAVER, str(path), name]) for name in names]
    assert [p.wait(120) for p in started] == [0, 0]
    found = [edit['name'] for edit in read_script(path)['edits'][1:]]
    assert sorted(found) == sorted(f'{name} {i}' for name in names for i in range(12))
    for name in names: assert [f for f in found if f.startswith(name)] == [f'{name} {i}' for i in range(12)]


def test_threads_lose_no_edit(tmp_path):
    path = tmp_path / 'curation.json'
    parts = curations(path, 6)
    def work(c, i):
        c.noise(c.ids[i])
        c.save(path, merge=True)
    threads = [threading.Thread(target=work, args=(c, i)) for i, c in enumerate(parts)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert set(np.flatnonzero(max(parts, key=lambda c: len(c.edits)).labels < 0)) == set(range(6))


def test_two_explorers_on_one_run(tmp_path):
    from nmc_workbench.explore.explorer import Explorer
    from tests.test_explorer import made
    run = made(tmp_path / 'run')
    a, b = (Explorer(run, map_method='pca') for _ in range(2))
    assert a.ui is not None and b.ui is not None
    first, second = a.clusters[:2]
    a.edit('rename', first, 'theirs')
    a.buttons['Save'].click()
    b.edit('rename', second, 'mine')
    assert b._offer.layout.display == 'none'
    b.buttons['Save'].click()
    assert 'saved elsewhere' in b.message.value and b._offer.layout.display == ''
    b.buttons['Merge and save'].click()
    assert b.curation.names == {first: 'theirs', second: 'mine'} and b._offer.layout.display == 'none'
    assert 'saved 2 edits' in b.message.value and 'theirs' in b.cluster_list.options[0][0]      # the views follow
    a.edit('rename', first, 'again')
    with pytest.raises(InputError, match='saved elsewhere'): a.save()
    a.buttons['Save as new'].click()
    assert (run / 'curation-2.json').is_file() and 'curation-2.json' in a.message.value
    a.edit('undo')
    a.save()                                            # goes to the new name
    assert Explorer(run, map_method='pca').curation.names == b.curation.names
    b.replay('curation-2.json')
    assert b.curation.names == {first: 'theirs'}
