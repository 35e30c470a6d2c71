"""Run folders: what is written, what is refused, and what a fault leaves behind."""
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_torch
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE
from nmc_workbench.runs.checkpoints import load_checkpoint, load_state
from nmc_workbench.runs.folder import Run, provenance
from nmc_workbench.runs.index import list_runs
from nmc_workbench.runs.metrics_log import MetricsLog, read_metrics
from tests.test_basics import one_line, small_files, tiny_disk

CONFIG = dict(method='NMCE', epochs=3, lr=.1, device='cpu')
QUICK = dict(epochs=4, cluster_epochs=2, finetune_epochs=2, n_init=2, batch_size=50, hidden_dim=16, checkpoint_every=2,
             device='cpu')
FILES = {'config.json', 'provenance.json', 'metrics.jsonl', 'checkpoint.pt', 'results.json', 'predictions.npy',
         'embeddings.npy', 'ids.npy', 'model.pt'}


@pytest.fixture(scope='module')
def images(): return load('digits', limit=100)


@pytest.fixture(scope='module')
def done(images, tmp_path_factory):
    "A finished run, for copies."
    folder = tmp_path_factory.mktemp('done') / 'run'
    return NMCE(**QUICK, run_dir=str(folder)).fit(images)


@pytest.fixture
def copy(done, tmp_path): return shutil.copytree(done.run_dir, tmp_path / 'run')


def same(model, other, folder=None):
    for a, b in zip(model.network_.state_dict().values(), other.network_.state_dict().values()): assert a.equal(b)
    assert [r['loss'] for r in model.history_] == [r['loss'] for r in other.history_]
    if folder: assert [r['loss'] for r in read_metrics(folder)] == [r['loss'] for r in model.history_]


# --- what a run holds


def test_a_finished_run_holds_what_it_says(done, images):
    folder = Path(done.run_dir)
    assert FILES <= set(os.listdir(folder))
    assert not [p for p in folder.rglob('*') if p.name.endswith('.tmp')]
    assert (np.load(folder / 'predictions.npy') == done.labels_).all()
    assert (np.load(folder / 'embeddings.npy') == done.embedding_).all()
    assert (np.load(folder / 'ids.npy') == images.ids).all()
    config, where = (json.loads((folder / f).read_text()) for f in ('config.json', 'provenance.json'))
    assert config['method'] == 'NMCE' and config['data'] == images.fingerprint() == where['data']
    assert {k: config[k] for k in done.config_.to_dict()} == done.config_.to_dict()
    assert None not in (config['lr'], config['n_clusters'])
    assert where['versions']['torch'] == torch.__version__ and where['device'] == 'cpu' and where['seed'] == 0
    assert where['seconds'] > 0
    assert where['threads'] == torch.get_num_threads()
    assert {'python', 'git_commit', 'command', 'started', 'platform'} <= where.keys()
    results = json.loads((folder / 'results.json').read_text())
    assert {k: results[k] for k in done.results_} == done.results_


def test_one_row_per_epoch_in_order(done):
    rows = read_metrics(done.run_dir)
    epochs = dict(representation=4, cluster_heads=2, fine_tune=2)
    assert [(r['stage'], r['epoch']) for r in rows] == [(stage, e) for stage, n in epochs.items() for e in range(n)]
    assert rows == done.history_ and [r['step'] for r in rows] == [2, 4, 6, 8, 2, 4, 2, 4]
    assert all({'loss', 'R', 'similarity', 'seconds', 'views_per_second'} <= r.keys() for r in rows)
    for r in rows:
        alone = r['stage'] == 'representation'
        assert ('lr' in r) == alone and ('lr_head' in r) != alone


def test_tensorboard_reads_the_same_numbers(done):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(Path(done.run_dir) / 'events')).Reload()
    losses = [e.value for e in events.Scalars('representation/loss')]
    assert losses == pytest.approx([r['loss'] for r in done.history_[:4]])


def test_provenance_reads_the_commit_of_the_library():
    got, root = provenance(torch.device('cpu'), 3, 'abc'), Path(__file__).parents[1]
    head = subprocess.run(['git', 'rev-parse', '--verify', 'HEAD'], cwd=root, capture_output=True, text=True)
    assert (got['git_commit'] or '').rstrip('+') == (head.stdout.strip() if head.returncode == 0 else '')
    assert (got['seed'], got['data']) == (3, 'abc') and json.dumps(got)


def test_wall_time_adds_up(tmp_path):
    for _ in range(3):
        run = Run(tmp_path / 'a', CONFIG, resume=True)
        run.save_provenance(dict(seconds=0.))
        run._since -= 10
        run.clock()
    assert 30 <= json.loads((tmp_path / 'a/provenance.json').read_text())['seconds'] < 31


# --- which folder


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    Run(tmp_path / 'a', CONFIG)
    differences = 'epochs=3 there, 4 here; lr=0.1 there, 0.2 here; new=None there, 1 here'
    for resume in (True, False):
        with pytest.raises(InputError, match=rf'another configuration \({differences}\)') as error:
            Run(tmp_path / 'a', {**CONFIG, 'epochs': 4, 'lr': .2, 'new': 1}, resume)
        one_line(error)
    assert json.loads((tmp_path / 'a/config.json').read_text()) == CONFIG and os.listdir(tmp_path) == ['a']
    # these change nothing that is computed
    Run(tmp_path / 'a', {**CONFIG, 'device': 'cuda', 'resume': True, 'checkpoint_every': 1}, resume=True)


def test_other_data_is_another_configuration(copy, images):
    with pytest.raises(InputError, match="another configuration .*data='"):
        NMCE(**QUICK, run_dir=str(copy), resume=True).fit(load('digits', limit=101))


def test_without_resume_the_earlier_run_is_set_aside(tmp_path):
    for i in range(3): (Run(tmp_path / 'a', CONFIG).path(f'{i}.txt')).write_text('')
    assert sorted(os.listdir(tmp_path)) == ['a', 'a.previous']
    assert '2.txt' in os.listdir(tmp_path / 'a') and '1.txt' in os.listdir(tmp_path / 'a.previous')
    assert len(os.listdir(tmp_path / 'a')) == 2


def test_the_current_folder_can_be_a_run(tmp_path, monkeypatch):
    (tmp_path / 'a').mkdir()
    monkeypatch.chdir(tmp_path / 'a')
    Run('.', CONFIG)
    Run('.', CONFIG)
    assert sorted(os.listdir(tmp_path)) == ['a', 'a.previous']


@pytest.mark.parametrize('resume', [True, False])
def test_a_foreign_folder_is_left_alone(tmp_path, resume):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/thesis.tex').write_text('x')
    (tmp_path / 'a/.swap.1.tmp').write_text('x')
    (tmp_path / 'file').write_text('x')
    for name in ('a', 'file'):
        message = f'{tmp_path}/{name} is not empty and not a run folder; choose another run_dir'
        with pytest.raises(InputError, match=message):
            Run(tmp_path / name, CONFIG, resume)
    assert sorted(os.listdir(tmp_path / 'a')) == ['.swap.1.tmp', 'thesis.tex']
    assert (tmp_path / 'file').read_text() == 'x'


def test_an_empty_folder_and_a_missing_one_will_do(tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('empty', 'not/there/yet'):
        Run(tmp_path / name, CONFIG, resume=True)
        assert os.listdir(tmp_path / name) == ['config.json']


@pytest.mark.parametrize('content', ['{"method": "NM', '', '[]', 'null', '\0\0\0\0'])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    Run(tmp_path / 'a', CONFIG).path('config.json').write_text(content)
    for resume in (True, False):
        with pytest.raises(InputError, match='a/config.json is damaged; choose another run_dir or delete the folder'):
            Run(tmp_path / 'a', CONFIG, resume)
    assert (tmp_path / 'a/config.json').read_text() == content


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / 'a').mkdir()
    for name in ('.config.json.123.tmp', '.checkpoint.pt.9.tmp', '.predictions.npy.9.tmp'):
        (tmp_path / 'a' / name).write_text('half')
    Run(tmp_path / 'a', CONFIG, resume=True)
    assert os.listdir(tmp_path / 'a') == ['config.json']


def test_a_read_only_folder_is_named(tmp_path, images):
    with tiny_disk(tmp_path / 'disk') as disk:
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        message = f'cannot write {disk}/run.*Read-only file system; choose a folder'
        with pytest.raises(InputError, match=message) as error:
            NMCE(**QUICK, run_dir=f'{disk}/run').fit(images)
        one_line(error)


@pytest.mark.skipif(os.geteuid() == 0, reason='nothing is forbidden to root')
def test_a_folder_without_permission_is_named(tmp_path):
    (tmp_path / 'a').mkdir(mode=0o555)
    with pytest.raises(InputError, match='cannot write .*Permission denied'): Run(tmp_path / 'a/b', CONFIG)


# --- the log


def log_of(folder, n=3):
    log = MetricsLog(folder)
    for e in range(n): log.append(dict(stage='one', epoch=e, loss=1 / (e + 3)))
    log.close()
    return log


def test_numbers_come_back_to_the_bit(tmp_path):
    log_of(tmp_path)
    assert [r['loss'] for r in read_metrics(tmp_path)] == [1 / 3, 1 / 4, 1 / 5]
    assert read_metrics(tmp_path / 'none') == []


@pytest.mark.parametrize('cut', range(1, 45, 4))
def test_a_line_cut_by_a_kill_is_left_out(tmp_path, cut):
    path = log_of(tmp_path).path
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r['epoch'] for r in read_metrics(tmp_path)] == [0, 1]
    MetricsLog(tmp_path).rewind(2)
    MetricsLog(tmp_path).append(dict(stage='one', epoch=2))
    assert [r['epoch'] for r in read_metrics(tmp_path)] == [0, 1, 2]


def test_a_log_shorter_than_the_checkpoint_is_refused(tmp_path):
    log = log_of(tmp_path)
    with pytest.raises(InputError, match='has 3 rows, the checkpoint was made after 4'): log.rewind(4)
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.parametrize('junk', [b'{"stage": "on\n', b'\0\0\0\0\n', b'\xff\xfe\n', b'\n'])
def test_a_damaged_log_is_named(tmp_path, junk):
    path = log_of(tmp_path).path
    path.write_bytes(path.read_bytes() + junk + b'{"stage": "one", "epoch": 3}\n')
    with pytest.raises(InputError, match='metrics.jsonl is damaged') as error: read_metrics(tmp_path)
    one_line(error)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    log = log_of(tmp_path)
    before = log.path.read_bytes()
    with small_files(len(before) + 10):
        with pytest.raises(InputError, match='disk full while writing .*metrics.jsonl') as error:
            log.append(dict(stage='one', epoch=3, loss=1.))
    one_line(error)
    assert log.path.read_bytes() == before
    log.append(dict(stage='one', epoch=3))
    assert len(read_metrics(tmp_path)) == 4


# --- checkpoints


@pytest.mark.parametrize('keep', [0, 1, 100, 5_000, -1, -100])
def test_a_truncated_checkpoint_is_refused(copy, images, keep):
    path = copy / 'checkpoint.pt'
    path.write_bytes(path.read_bytes()[:keep])
    message = f'checkpoint {path} is truncated or not a checkpoint .*; delete it to start again'
    with pytest.raises(InputError, match=message) as error:
        NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images)
    one_line(error)


OTHERS = dict(module=nn.Linear(2, 2), tensor=torch.zeros(3), weights=nn.Linear(2, 2).state_dict())


@pytest.mark.parametrize('content', [b'not a checkpoint', b'\0' * 5000, b'PK\x03\x04' + b'\0' * 100, *OTHERS])
def test_something_else_is_refused(copy, images, content):
    path = copy / 'checkpoint.pt'
    if isinstance(content, bytes): path.write_bytes(content)
    else: torch.save(OTHERS[content], path)
    with pytest.raises(InputError, match='delete it to start again') as error:
        NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images)
    one_line(error)


class Harmful:
    "Leaves a file where it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


def test_a_checkpoint_with_code_in_it_is_not_run(copy, images, tmp_path):
    harm = Harmful(str(tmp_path / 'harm'))
    def by_pickle(path): path.write_bytes(pickle.dumps(harm, protocol=2))
    def by_torch(path): torch.save(dict(weights=harm), path)
    for save in (by_pickle, by_torch):
        for name in ('checkpoint.pt', 'model.pt'): save(copy / name)
        with pytest.raises(InputError, match='not a checkpoint') as error:
            NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images)
        one_line(error)
        with pytest.raises(InputError, match='not a checkpoint'): NMCE.load(copy)
    assert not (tmp_path / 'harm').exists()
    pickle.loads(pickle.dumps(harm))
    assert (tmp_path / 'harm').exists()      # it does when something runs it


def test_a_deleted_checkpoint_starts_again(copy, images, done):
    (copy / 'checkpoint.pt').unlink()
    same(done, NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images), copy)


def test_another_architecture_names_the_keys(copy, images, tmp_path, done):
    other = NMCE(**{**QUICK, 'hidden_dim': 8}, run_dir=str(tmp_path / 'other')).fit(images)
    shutil.copy(tmp_path / 'other/checkpoint.pt', copy / 'checkpoint.pt')
    shapes = 'has other shapes: cluster.weight (10, 8) instead of (10, 16)'
    message = re.escape(f'checkpoint.pt does not fit this SubspaceNet: {shapes}')
    with pytest.raises(InputError, match=message) as error:
        NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images)
    one_line(error)
    assert other.n_clusters_ == done.n_clusters_


def test_a_checkpoint_of_other_stages_is_refused(copy, images):
    saved = load_checkpoint(copy / 'checkpoint.pt')
    write_torch(copy / 'checkpoint.pt', {**saved, 'stages': ['first', 'second']})
    message = 'has the stages first, second; this run has representation, cluster_heads, fine_tune'
    with pytest.raises(InputError, match=message):
        NMCE(**QUICK, run_dir=str(copy), resume=True).fit(images)


def test_load_state_changes_all_or_nothing():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    good = {k: v + 1 for k, v in before.items()}
    cases = {
        'misses: 1.bias': {k: v for k, v in good.items() if k != '1.bias'},
        'has unknown: 2.bias': {**good, '2.bias': torch.zeros(1)},
        r'has other shapes: 1.bias \(7,\) instead of \(2,\)': {**good, '1.bias': torch.zeros(7)}}
    for message, state in cases.items():
        with pytest.raises(InputError, match=f'a.pt does not fit this Sequential: {message}$'):
            load_state(net, state, 'a.pt')
        assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    with pytest.raises(InputError, match='misses: .* and 1 more; has unknown: a$'):
        load_state(nn.Sequential(*[nn.Linear(1, 1) for _ in range(3)]), dict(a=torch.zeros(1)))
    load_state(net, good)
    assert all(v.equal(good[k]) for k, v in net.state_dict().items())


def test_no_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match=f'no checkpoint at {tmp_path}/a.pt'): load_checkpoint(tmp_path / 'a.pt')


# --- a disk that fills up while training


def test_a_disk_that_fills_up_stops_with_the_last_checkpoint_good(tmp_path, images, done):
    with tiny_disk(tmp_path / 'disk', '1200k') as disk:
        run = disk / 'run'
        with pytest.raises(InputError, match='disk full while writing') as error:
            NMCE(**QUICK, run_dir=str(run)).fit(images)
        one_line(error)
        assert not [p for p in run.rglob('*') if p.name.endswith('.tmp')]
        saved, rows = load_checkpoint(run / 'checkpoint.pt'), read_metrics(run)
        assert 0 < saved['rows'] <= len(rows) < 8
        subprocess.run(['mount', '-o', 'remount,size=16m', disk], check=True)
        model = NMCE(**QUICK, run_dir=str(run), resume=True).fit(images)
        same(done, model, run)


# --- the table


def test_the_table_of_runs(tmp_path, copy):
    Run(tmp_path / 'b/unfinished', dict(method='NMC', dataset='spiral', seed=4))
    Run(tmp_path / 'c.previous', CONFIG)
    Run(tmp_path / 'd', CONFIG).path('config.json').write_text('{')
    rows = {Path(r['folder']).name: r for r in list_runs(tmp_path)}
    assert f'{tmp_path}/d/config.json is damaged' in rows.pop('d')['damaged']
    assert rows.keys() == {'unfinished', 'run'}
    assert rows['unfinished'] == dict(folder=str(tmp_path / 'b/unfinished'), method='NMC', dataset='spiral', seed=4)
    assert 0 < rows['run']['acc'] <= 1 and list_runs(tmp_path / 'nothing') == []
