"The table of runs: what a row says of a run, the index that rebuilds itself, the best, means over seeds, and exports."
import csv
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import nmc_workbench as nmc
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_array, write_json
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE
from nmc_workbench.runs.folder import Run
from nmc_workbench.runs.index import list_runs
from nmc_workbench.runs.table import best, over_seeds, runs, table_text, write_table

pandas = pytest.importorskip('pandas')
SHORT = dict(dataset='digits', limit=100, epochs=2, cluster_epochs=1, finetune_epochs=1, n_init=1, batch_size=50,
             device='cpu')
INDEX = '.runs_index.json'


def make(root, name, scores=None, age=100, **config):
    "A run folder as a run leaves it, of which every file is as many seconds old."
    folder = Path(root, name)
    write_json(folder / 'config.json', dict(method='NMCE', dataset='digits', seed=0, data='a') | config)
    write_json(folder / 'provenance.json', dict(started='2030-01-01T00:00:00+0100', seconds=7., device='cpu',
                                                git_commit='0123456789abcdef+'))
    if scores is not None:
        write_json(folder / 'results.json', dict(seconds=10.) | scores)
        write_array(folder / 'predictions.npy', np.zeros(3, int))
        write_array(folder / 'embeddings.npy', np.zeros((3, 2)))
    older(folder, age)
    return folder


def older(folder, age=100):
    "Give a folder and its files a time that many seconds ago."
    for path in (*Path(folder).iterdir(), Path(folder)): os.utime(path, (time.time() - age,) * 2)


def many(root, n=24):
    for i in range(n): make(root, f'sweep/{i:02}', dict(acc=i / 100, nmi=.5), seed=i % 3, eps=.1 * (1 + i // 3))
    return Path(root)


def row_of(root, name, **options):
    frame = runs(root, **options)
    return frame[frame.folder == str(Path(root, name))].iloc[0]


# --------------------------------------------------------------------------- rows

def test_a_row_says_what_a_run_is(tmp_path):
    make(tmp_path, 'a', dict(acc=.9, n_clusters=9, kmeans_pixels=dict(acc=.5)), eps=.1, n_clusters=10, lr=1e-3)
    make(tmp_path, 'deep/b', dict(acc=.8, n_clusters=10), eps=.2, n_clusters=10, seed=1, lr=1e-3)
    frame = runs(tmp_path)
    assert list(frame) == ['folder', 'method', 'dataset', 'seed', 'eps', 'acc', 'n_clusters', 'status', 'reason',
                           'seconds', 'device', 'commit', 'date', 'notebook', 'setting']
    a = row_of(tmp_path, 'a')
    assert (a.method, a.seed, a.acc, a.n_clusters, a.status, a.seconds) == ('NMCE', 0, .9, 9, 'done', 10.)
    assert (a.device, a.commit, str(a.date)) == ('cpu', '0123456789+', '2029-12-31 23:00:00+00:00')
    asked = runs(tmp_path, columns=['lr', 'n_clusters_given', 'n_clusters', 'kmeans_pixels.acc'])
    assert list(asked)[4:8] == ['lr', 'n_clusters_given', 'n_clusters', 'kmeans_pixels.acc']
    assert set(asked.n_clusters_given) == {10} and asked['kmeans_pixels.acc'].max() == .5
    assert sorted(frame.folder) == sorted(r['folder'] for r in list_runs(tmp_path))


def test_parts_of_runs_and_what_was_set_aside_are_no_rows(tmp_path):
    for name in ('a', 'a/encoder', 'a_encoder', 'a.previous', 'b.kept'): make(tmp_path, name, dict(acc=.5))
    assert sorted(runs(tmp_path).folder) == [str(tmp_path / n) for n in ('a', 'b.kept')]
    assert runs(tmp_path / 'a').folder.tolist() == [str(tmp_path / 'a')] and not (tmp_path / 'a' / INDEX).exists()


def test_a_real_run_stands_in_the_table(tmp_path):
    NMCE(**SHORT, run_dir=tmp_path / 'run').fit(load('digits', limit=100))
    row = runs(tmp_path, columns=['epochs', 'acc']).iloc[0]
    assert (row.status, row.reason, row.method, row.epochs) == ('done', '', 'NMCE', 2) and 0 <= row.acc <= 1
    assert not (tmp_path / 'run/failed.json').exists() and not (tmp_path / 'run/.lock').exists()


# --------------------------------------------------------------------------- status

def locked(folder, process, host, age):
    (folder / '.lock').write_text(f'process {process} on {host} since 2030-01-01 00:00:00')
    os.utime(folder / '.lock', (time.time() - age,) * 2)


@pytest.mark.parametrize('process, host, age, status, reason', [
    (1, 'another', 2, 'running', 'after 3 epochs of fine_tune; sign of life '),
    (1, 'another', 1200, 'interrupted', 'no sign of life for 20 minutes, after 3 epochs of fine_tune'),
    (os.getpid(), socket.gethostname(), 2, 'running', 'sign of life '),
    (2 ** 22 + 1, socket.gethostname(), 2, 'interrupted', 'process 4194305 is gone, after 3 epochs of fine_tune'),
    (None, None, None, 'interrupted', 'ended without results, after 3 epochs of fine_tune')],
    ids=['elsewhere', 'elsewhere, long ago', 'here', 'here, its process is gone', 'nobody'])
def test_running_or_interrupted(tmp_path, process, host, age, status, reason):
    folder = make(tmp_path, 'a')
    (folder / 'metrics.jsonl').write_text('{"stage": "fine_tune", "epoch": 2}\n{"stage": "fine_tune", "ep')
    older(folder, 2000)
    if process: locked(folder, process, host, age)
    row = runs(tmp_path).iloc[0]
    assert row.status == status and reason in row.reason
    if status == 'interrupted' and age == 1200: assert row_of(tmp_path, 'a', stale=3600).status == 'running'


def failing(stage, error):
    def after_epoch(epoch): raise error
    stage.after_epoch = after_epoch


@pytest.mark.parametrize('error, status', [(RuntimeError('out of memory\nand more'), 'failed'),
                                           (KeyboardInterrupt(), 'interrupted')])
def test_a_fit_that_raises_leaves_why_and_resume_forgets_it(tmp_path, error, status):
    model = NMCE(**SHORT, run_dir=tmp_path / 'run')
    failing(model.prepare(load('digits', limit=100)).stages[1], error)
    with pytest.raises(type(error)): model.trainer_.train()
    row = runs(tmp_path).iloc[0]
    reason = 'RuntimeError: out of memory' if status == 'failed' else 'stopped by KeyboardInterrupt, after 2 epochs'
    assert row.status == status and row.reason.startswith(reason)
    assert 'after_epoch' in json.loads((tmp_path / 'run/failed.json').read_text())['traceback']
    again = NMCE(**SHORT, run_dir=tmp_path / 'run', resume=True).fit(load('digits', limit=100))
    whole = NMCE(**SHORT, run_dir=tmp_path / 'whole').fit(load('digits', limit=100))
    assert not (tmp_path / 'run/failed.json').exists() and set(runs(tmp_path).status) == {'done'}
    assert (again.embedding_ == whole.embedding_).all()


def test_an_error_after_the_last_stage_is_noted(tmp_path, monkeypatch):
    model = NMCE(**SHORT, run_dir=tmp_path / 'run')
    model.prepare(load('digits', limit=100)).train()
    monkeypatch.setattr(NMCE, '_results', lambda self, images: 1 / 0)
    with pytest.raises(ZeroDivisionError): model.finish()
    assert runs(tmp_path).iloc[0].reason == 'ZeroDivisionError: division by zero'
    monkeypatch.undo()
    model.finish()
    assert runs(tmp_path).iloc[0].status == 'done'


def test_a_failure_is_never_noted_in_a_folder_that_is_gone(tmp_path):
    run = Run(tmp_path / 'a', {})
    shutil.rmtree(tmp_path / 'a')
    run.note_failure(ValueError('x'))
    assert not (tmp_path / 'a').exists()


def test_a_training_beats_at_most_every_few_seconds(tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr('nmc_workbench.runs.folder._Lock.touch', lambda self: times.append(time.monotonic()))
    model = NMCE(**SHORT, run_dir=tmp_path / 'run')
    model.prepare(load('digits', limit=100)).train('representation')
    assert len(times) == 1
    monkeypatch.setattr('nmc_workbench.runs.folder._BEAT', 0)
    model.run_._next_beat = 0.
    model.trainer_.train('cluster_heads')
    assert len(times) > 10


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes cannot be forked here')
def test_a_killed_process_is_seen_at_once(tmp_path):
    pid = os.fork()
    if not pid:
        try:
            run = Run(tmp_path / 'run', {})
            run.save_provenance({})
        finally: os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    row = runs(tmp_path).iloc[0]
    assert row.status == 'interrupted' and 'is gone, before the end of its first epoch' in row.reason


def cut(path): path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize('name, words', [
    ('config.json', 'config.json is damaged'), ('results.json', 'results.json is damaged'),
    ('provenance.json', 'provenance.json is damaged'), ('predictions.npy', 'predictions.npy is damaged'),
    ('embeddings.npy', 'embeddings.npy is damaged'), ('model.pt', 'model.pt is cut off')])
def test_what_is_damaged_is_named(tmp_path, name, words):
    folder = make(tmp_path, 'a', dict(acc=.9))
    torch.save(dict(x=torch.zeros(3)), folder / 'model.pt')
    make(tmp_path, 'b', dict(acc=.8))
    assert set(runs(tmp_path).status) == {'done'}
    cut(folder / name)
    row = row_of(tmp_path, 'a')
    assert row.status == 'damaged' and row.reason.startswith(words) and str(tmp_path) not in row.reason
    assert best(runs(tmp_path)).acc.tolist() == [.8]


def test_scores_that_no_run_has_are_damage_as_in_list_runs(tmp_path):
    make(tmp_path, 'a', dict(acc=7.))
    assert 'expected at most 1' in list_runs(tmp_path)[0]['damaged'] and runs(tmp_path).status.tolist() == ['damaged']


def test_a_damaged_log_of_a_run_that_goes_on(tmp_path):
    folder = make(tmp_path, 'a')
    (folder / 'metrics.jsonl').write_text('{"stage": 3\n')
    assert runs(tmp_path).reason[0].startswith('metrics.jsonl is damaged')


# --------------------------------------------------------------------------- notebooks

def notebook(path, parameters=None, error=None, ended=True, printed=''):
    "A notebook as papermill writes it."
    outputs = [dict(output_type='stream', name='stdout', text=[printed])] if printed else []
    if error: outputs.append(dict(output_type='error', ename=error[0], evalue=error[1], traceback=[]))
    states = ['completed', 'completed' if ended else 'running']
    cells = [dict(cell_type='code', metadata=dict(papermill=dict(status=s)), outputs=outputs) for s in states]
    end = '2030-01-01T00:00:05+00:00' if ended else None
    told = dict(parameters=parameters or {}, exception=bool(error) or None, duration=5. if ended else None,
                start_time='2030-01-01T00:00:00.5+00:00', end_time=end)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(papermill=told), nbformat=4, nbformat_minor=5)))
    return path


def test_a_notebook_without_a_run_is_a_row(tmp_path):
    notebook(tmp_path / 'early.ipynb', dict(dataset='digits', seed=3), ('InputError', 'eps=-1; expected more'))
    notebook(tmp_path / 'done.ipynb', dict(dataset='digits'))
    notebook(tmp_path / 'now.ipynb', dict(dataset='digits'), ended=False)
    (tmp_path / 'mine.ipynb').write_text(json.dumps(dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path / 'cut.ipynb').write_text('{"cells": [')
    frame = runs(tmp_path).set_index('notebook')
    rows = {Path(p).stem: (r.status, r.reason) for p, r in frame.iterrows()}
    assert rows.pop('early') == ('failed', 'InputError: eps=-1; expected more')
    assert rows.pop('done') == ('done', '')
    assert rows['now'][0] == 'running' and rows.pop('now')[1].startswith('in cell 1')
    assert rows.pop('cut')[0] == 'damaged' and rows == {}
    assert frame.seed[str(tmp_path / 'early.ipynb')] == 3
    os.utime(tmp_path / 'now.ipynb', (1, 1))
    assert 'interrupted' in runs(tmp_path).status.tolist()


@pytest.mark.parametrize('told', ['parameter', 'printed'])
def test_a_notebook_belongs_to_its_run(tmp_path, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, 'runs/a', dict(acc=.9))
    make(tmp_path, 'runs/b')
    for name in 'ab':
        where = f'runs/{name}'
        more = dict(parameters=dict(run_dir=where)) if told == 'parameter' else dict(printed=f'run folder: {where}\n')
        notebook(tmp_path / f'runs/{name}.ipynb', error=('ValueError', 'no map'), **more)
    monkeypatch.chdir('/')              # the folder where papermill was started is found from the notebook's own
    frame = runs(tmp_path / 'runs').set_index('folder')
    a, b = (frame.loc[str(tmp_path / f'runs/{name}')] for name in 'ab')
    assert len(frame) == 2 and (a.status, b.status) == ('done', 'failed') and b.notebook.endswith('b.ipynb')
    assert a.reason == 'its notebook failed afterwards: ValueError: no map' and b.reason == 'ValueError: no map'


# --------------------------------------------------------------------------- index

def read_anew(monkeypatch, root, **options):
    "The folders that a call reads, and its frame."
    from nmc_workbench.runs import table
    seen, read = [], table._run_record
    with monkeypatch.context() as m:
        m.setattr(table, '_run_record', lambda folder, inside: seen.append(Path(folder).name) or read(folder, inside))
        return seen, runs(root, **options)


def test_the_index_reads_only_what_changed(tmp_path, monkeypatch):
    many(tmp_path)
    first = read_anew(monkeypatch, tmp_path)
    seen, frame = read_anew(monkeypatch, tmp_path)
    assert len(first[0]) == 24 and seen == [] and (tmp_path / INDEX).is_file()
    pandas.testing.assert_frame_equal(first[1], frame)
    pandas.testing.assert_frame_equal(runs(tmp_path, index=False), frame)
    write_json(tmp_path / 'sweep/03/results.json', dict(acc=.999))
    path = tmp_path / 'sweep/04/results.json'
    path.write_text(path.read_text().replace('0.04', '0.44'))       # in its place, with the same size
    make(tmp_path, 'sweep/05', None)
    (tmp_path / 'sweep/05/results.json').unlink()
    shutil.rmtree(tmp_path / 'sweep/06')
    make(tmp_path, 'sweep/new', dict(acc=.2))
    seen, frame = read_anew(monkeypatch, tmp_path)
    assert sorted(seen) == ['03', '04', '05', 'new'] and len(frame) == 24
    rows = frame.assign(name=[Path(f).name for f in frame.folder]).set_index('name')
    assert (rows.acc['03'], rows.acc['04'], rows.status['05']) == (.999, .44, 'interrupted') and '06' not in rows.index


def test_a_change_within_the_clock_s_tick_is_seen(tmp_path):
    many(tmp_path)
    path = tmp_path / 'sweep/03/results.json'
    path.write_text(path.read_text())
    runs(tmp_path)
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace('0.03', '0.33'))
    os.utime(path, ns=(before, before))
    assert row_of(tmp_path, 'sweep/03').acc == .33


@pytest.mark.parametrize('spoil', [
    lambda b: b[:-100], lambda b: b'', lambda b: b'\0' * 100, lambda b: b.replace(b'0.01', b'0.91'), lambda b: b[:10],
    lambda b: b'[0' + b[2:], lambda b: b + b'x', lambda b: b'[' * 100_000])
def test_a_damaged_index_is_made_again(tmp_path, spoil):
    many(tmp_path)
    frame, path = runs(tmp_path), tmp_path / INDEX
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pandas.testing.assert_frame_equal(runs(tmp_path), frame)
    assert path.read_bytes() == whole


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'), OSError(28, 'No space left on device')])
def test_a_root_that_takes_no_index_gives_the_frame_and_one_warning(tmp_path, monkeypatch, error):
    many(tmp_path)
    def refused(*a, **k): raise error
    monkeypatch.setattr('nmc_workbench.core.files.os.replace', refused)
    with pytest.warns(UserWarning) as told: frame = runs(tmp_path)
    assert len(told) == 1 and 'its index could not be kept' in str(told[0].message) and len(frame) == 24
    assert [p.name for p in tmp_path.iterdir()] == ['sweep']


def test_an_index_is_not_written_for_a_few_runs(tmp_path):
    many(tmp_path, 6)
    runs(tmp_path)
    assert not (tmp_path / INDEX).exists()


def test_values_come_back_from_the_index_as_they_were(tmp_path):
    many(tmp_path)
    odd = dict(a=1, b=True, c=1., d=None, e=[1, 2.], f='ü', g=0)
    make(tmp_path, 'odd0', {}, **odd)
    make(tmp_path, 'odd1', {}, **odd | dict(a=True, b=1, c=1, e=[1., 2], g=0.))
    first = runs(tmp_path, columns=list(odd))
    again = runs(tmp_path, columns=list(odd))
    assert [list(map(repr, first[k])) for k in odd] == [list(map(repr, again[k])) for k in odd]
    texts = {tuple(again[again.folder == str(tmp_path / f'odd{i}')][list('abe')].map(str).iloc[0]) for i in range(2)}
    assert texts == {('1', 'True', '[1, 2.0]'), ('True', '1', '[1.0, 2]')}


def test_hundreds_of_runs_are_quick(tmp_path):
    from tests.bench.bench_runs import make as synthetic
    synthetic(tmp_path, 300)
    runs(tmp_path, index=False)
    start = time.process_time()
    runs(tmp_path)
    cold, start = time.process_time() - start, time.process_time()
    frame = runs(tmp_path)
    assert len(frame) == 300 and cold < 1.5 and time.process_time() - start < .5


# --------------------------------------------------------------------------- best, seeds, exports

def test_over_seeds_takes_runs_that_differ_in_the_seed_alone(tmp_path):
    for seed, acc in enumerate((.8, .9)): make(tmp_path, f'a{seed}', dict(acc=acc), seed=seed, run_dir=f'a{seed}')
    make(tmp_path, 'other data', dict(acc=.1), seed=2, data='b')
    make(tmp_path, 'other', dict(acc=.2), seed=2, eps=.3)
    make(tmp_path, 'crashed', seed=3)
    write_json(tmp_path / 'crashed/failed.json', dict(error='X: y'))
    make(tmp_path, 'again', dict(acc=.7), seed=1)
    write_json(tmp_path / 'again/provenance.json', dict(started='2031-01-01T00:00:00+0000'))     # the newest of seed 1
    means = over_seeds(runs(tmp_path))
    assert sorted(means.seeds) == [1, 1, 2]
    row = means[means.seeds == 2].iloc[0]
    assert np.isclose(row.acc, .75) and np.isclose(row.acc_std, .05) and row.left_out == '1 failed'
    assert means[means.seeds == 1].acc_std.isna().all()


def test_the_same_means_as_the_table_of_scores(tmp_path):
    from nmc_workbench.runs.index import scores_table
    many(tmp_path)
    frame, rows = over_seeds(runs(tmp_path)), scores_table(tmp_path)
    assert sorted((round(a, 12), round(b, 12), n) for a, b, n in zip(frame.acc, frame.acc_std, frame.seeds)) \
        == sorted((round(r['acc'], 12), round(r['acc_std'], 12), r['seeds']) for r in rows)


def test_best_of_each_and_of_all(tmp_path):
    for i, (method, acc) in enumerate([('NMCE', .7), ('NMCE', .9), ('SeLa', .8), ('SeLa', .6)]):
        make(tmp_path, f'{i}', dict(acc=acc, seconds=10. - i), method=method, eps=i)
    make(tmp_path, 'unfinished', method='AND')
    frame = runs(tmp_path)
    assert best(frame).acc.tolist() == [.9, .8] and best(frame, by=()).acc.tolist() == [.9]
    assert best(frame, 'seconds', 'method', smallest=True).seconds.tolist() == [9., 7.]


def test_exports(tmp_path):
    odd = dict(dataset='=a|b_c%', lr=1e-5)
    for seed, acc in enumerate((.9, .95)): make(tmp_path, f'a{seed}', dict(acc=acc), seed=seed, **odd)
    make(tmp_path, 'b', dict(acc=.5), **odd | dict(lr=2e-5))
    frame = runs(tmp_path, columns=['lr', 'acc'])
    means = over_seeds(frame)
    lines = table_text(means, columns=['dataset', 'lr', 'acc', 'acc_std', 'seeds']).splitlines()
    assert lines[:2] == ['| dataset | lr | acc | seeds |', '| --- | ---: | ---: | ---: |']
    assert lines[2] == '| =a\\|b_c% | 1e-05 | 0.925 ± 0.025 | 2 |' and lines[3].endswith('| 0.500 | 1 |')
    latex = table_text(means, 'latex')
    assert r'0.925 $\pm$ 0.025' in latex and r'=a|b\_c\%' in latex and r'\toprule' in latex
    rows = list(csv.DictReader(io.StringIO(table_text(frame, 'csv'))))
    assert rows[0]['dataset'] == "'=a|b_c%" and float(rows[0]['lr']) in (1e-5, 2e-5) and rows[0]['seed'] in '01'
    for end in ('.md', '.tex', '.csv'): write_table(means, tmp_path / f'out{end}')
    assert (tmp_path / 'out.md').read_text() == table_text(means)


def test_names_in_cells_stay_in_one_line(tmp_path):
    make(tmp_path, 'a', dict(acc=.5), dataset='a\nb')
    make(tmp_path, 'b', dict(acc=.5), dataset='a\nb', note='x\ny')
    text = table_text(runs(tmp_path))
    assert len(text.splitlines()) == 4 and 'a\\nb' in text and 'x\\ny' in text


# --------------------------------------------------------------------------- bad input

def test_bad_input(tmp_path):
    make(tmp_path, 'a', dict(acc=.9), eps=.1)
    frame, empty = runs(tmp_path), runs(os.mkdir(tmp_path / 'nothing') or tmp_path / 'nothing')
    wrong = {
        'is no folder': lambda: runs(tmp_path / 'absent'),
        "did you mean 'eps'": lambda: runs(tmp_path, columns=['epss']),
        "did you mean 'acc'": lambda: best(frame, 'accc'),
        "unknown metric 'method'": lambda: best(frame, 'method'),
        "did you mean 'dataset'": lambda: best(frame, by='datasets'),
        'known: acc': lambda: over_seeds(frame, 'nothing'),
        'has no runs': lambda: best(empty),
        'frame is a list': lambda: over_seeds([]),
        'no finished run': lambda: best(frame.assign(status='failed')),
        "end of a table's name": lambda: write_table(frame, tmp_path / 'a.pdf'),
        "expected one of 'markdown'": lambda: table_text(frame, 'html')}
    for words, call in wrong.items():
        with pytest.raises(InputError) as e: call()
        assert words in str(e.value) and '\n' not in str(e.value), words
    assert len(empty) == 0 and list(empty)[:4] == ['folder', 'method', 'dataset', 'seed']
    with pytest.raises(InputError, match='has no runs'): over_seeds(empty)


def test_without_pandas_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(InputError, match=r"pip install 'nmc_workbench\[look\]'"): runs(tmp_path)


def test_it_has_a_name_at_the_top(): assert nmc.run_table is runs
