"""Damaged and edited files of a run: every file of tiny runs of all methods, in many ways. Whatever is done to one run,
lists and menus show the others, and who opens the damaged one gets one line."""
import json
import os
import resource
import shutil
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_array, write_json
from nmc_workbench.core.processes import memory_mb
from nmc_workbench.data import load
from nmc_workbench.diagnostics.diagnosis import diagnose_run
from nmc_workbench.evaluation.agreement import compare
from nmc_workbench.explore.explorer import Explorer
from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.methods.base import keeps_merge_tree, open_run
from nmc_workbench.reports.summary import summary
from nmc_workbench.runs import folder
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.finished import read_run
from nmc_workbench.runs.index import list_runs, newest_of_one_set, newest_run, run_choices, scores_table
from nmc_workbench.runs.label_history import read_label_history

METHODS = dict(nmce=NMCE, nmc=NMC, sela=SeLa, deep_cluster=DeepCluster, anchors=AND)
DEEP = b'[' * 100_000
HUGE = int('9' * 400)


@pytest.fixture(scope='session')
def interrupted_run(tmp_path_factory):
    "A function from a name in METHODS to the folder of a run that stopped after one epoch of its first stage."
    made = {}
    def make(name, finished):
        if name not in made:
            made[name] = tmp_path_factory.mktemp('interrupted') / name
            config = json.loads((finished / 'config.json').read_text()) | dict(epochs=2)
            model(name, config, made[name]).prepare(data(name)).train(seconds=0)
        return made[name]
    return make


def model(name, config, folder):
    kind = METHODS[name]
    own = {k: v for k, v in config.items() if k in kind.config_class.names()}
    return kind(**own | dict(run_dir=str(folder), resume=True, device='cpu'))


@cache
def data(name):
    "Read once, since it is the same for every damage."
    if name != 'nmc': return load('digits', limit=120)
    return np.random.default_rng(0).normal(size=(100, 2)).astype('f4')


@pytest.fixture(autouse=True, scope='module')
def the_same_is_found_out_once():
    "The digits, which come from a compressed table, the versions of packages and the commit; the disk is not awaited."
    patch = pytest.MonkeyPatch()
    for where, what in ((sklearn.datasets, 'load_digits'), (metadata, 'version'), (folder, '_git_commit')):
        patch.setattr(where, what, cache(getattr(where, what)))
    patch.setattr(os, 'fsync', lambda fd: None)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope='module')
def no_damage_takes_the_memory():
    "What a damaged file asks for beyond 12 GB is a MemoryError, which `tried` names; otherwise the system ends pytest."
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_mb('VmSize') * 2 ** 20) + 12 * 10 ** 9, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(params=list(METHODS))
def name(request): return request.param


@pytest.fixture
def place(tmp_path, tiny_run, name):
    "A function that puts a fresh copy of the run into `bad`, beside `good`; returns the copy."
    run = tiny_run(name)
    shutil.copytree(run, tmp_path / 'good')
    def fresh(source=run):
        shutil.rmtree(tmp_path / 'bad', ignore_errors=True)
        return Path(shutil.copytree(source, tmp_path / 'bad'))
    return fresh


# ---- ways to damage a file


def raw(path):
    "Damages of any file, by name."
    whole = path.read_bytes()
    return {'empty': b'', 'half': whole[:len(whole) // 2], 'zeros': bytes(len(whole)), 'text': b'hello\n',
            'deep': DEEP, 'pickle': b'\x80\x04K\x01.', 'tail': whole + b'\0\n[', 'newline': b'\n\n'}


WRONG = (None, True, -1, 2 ** 31, 10 ** 12, HUGE, 1e308, float('nan'), '', 'x' * 5000, '/', '\0', '~nobody/x', [],
         [[1]], {}, {'a': 1})


def json_edits(path):
    "The object of a JSON file with each value replaced by others, and other JSON values."
    whole = json.loads(path.read_text())
    for key in whole:
        for value in WRONG: yield f'{key}={str(value)[:20]}', json.dumps(whole | {key: value}).encode()
        yield f'no {key}', json.dumps({k: v for k, v in whole.items() if k != key}).encode()
        deep = json.dumps(whole | {key: 'DEEP'}).replace('"DEEP"', '[' * 300 + ']' * 300)
        yield f'deep {key}', deep.encode()
    for value in WRONG: yield f'only {str(value)[:20]}', json.dumps(value).encode()


def line_edits(path):
    "A log with each value of its second row replaced by others."
    lines = path.read_text().splitlines()
    at = min(1, len(lines) - 1)
    row = json.loads(lines[at])
    for key in row:
        for value in WRONG:
            edited = [*lines[:at], json.dumps(row | {key: value}), *lines[at + 1:]]
            yield f'{key}={str(value)[:20]}', '\n'.join([*edited, '']).encode()
    for value in WRONG: yield f'only {str(value)[:20]}', '\n'.join([*lines, json.dumps(value), '']).encode()


def array_edits(path):
    "Arrays of other shapes and kinds."
    x = np.load(path)
    yield 'one less', x[:-1]
    yield 'none', x[:0]
    yield 'number', np.array(3)
    yield 'more dimensions', x[..., None]
    yield 'words', np.full(x.shape, 'a')
    yield 'NaN', np.full(x.shape, np.nan)
    yield 'complex', np.zeros(x.shape, complex)
    yield 'times', np.zeros(x.shape, 'M8[s]')
    yield 'records', np.zeros(x.shape, [('a', 'i4')])
    for value in (2 ** 31, 2 ** 62, -2, -2 ** 31):
        other = np.zeros(x.shape, np.int64)
        other.reshape(-1)[:1] = value
        yield f'{value}', other
    if x.dtype.kind == 'f':
        for value in (np.inf, 1e300, 3e38):
            other = x.astype('f8')
            other.reshape(-1)[0] = value
            yield f'{value}', other


def claims(path):
    "An array whose header claims far more than the file holds."
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 9), }"
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode()


def damages(path):
    "Every damage of a file: its name, and a function that does it."
    def put(content): return lambda: path.write_bytes(content)
    yield from ((k, put(v)) for k, v in raw(path).items())
    if path.suffix == '.json': yield from ((k, put(v)) for k, v in json_edits(path))
    if path.suffix == '.jsonl': yield from ((k, put(v)) for k, v in line_edits(path))
    if path.suffix == '.npy':
        yield from ((k, lambda x=x: write_array(path, x)) for k, x in array_edits(path))
        yield 'claims', put(claims(path))
    if path.suffix == '.pt': yield from ((k, lambda x=x: torch.save(x, path)) for k, x in torch_edits(path))


VALUES = (None, True, -1, 99, 'x', [], {}, 1.5, float('nan'), torch.zeros(3), torch.tensor(float('nan')), [7, 7, 7],
          {'a': torch.ones(2)})


def torch_edits(path):
    "A checkpoint with each value, of itself and of what is in it, missing or replaced by others."
    whole = load_checkpoint(path)
    yield 'nothing', {}
    yield 'list', [1]
    for keys in sorted(paths_of(whole), key=str):
        yield f'no {keys}', changed(whole, keys)
        old = at(whole, keys)
        others = VALUES if len(keys) < 3 else VALUES[:1] + VALUES[4:5] + VALUES[8:10]
        for value in others: yield f'{keys}={str(value)[:20]}', changed(whole, keys, value)
        if isinstance(old, torch.Tensor):
            for k, v in tensor_edits(old): yield f'{keys} {k}', changed(whole, keys, v)


def tensor_edits(x):
    yield 'one more', torch.cat([x.reshape(-1), x.reshape(-1)[:1]])
    yield 'complex', x.to(torch.complex64)
    if x.is_floating_point():
        yield 'NaN', torch.full_like(x, float('nan'))
        yield 'infinite', torch.full_like(x, float('inf'))
        yield 'whole', torch.zeros(x.shape, dtype=torch.int64)
    else:
        for v in (2 ** 31 - 1, -2): yield str(v), torch.full_like(x, v) if x.dtype != torch.bool else x
        yield 'real', x.double() + .5


def paths_of(x, depth=4, of_each=6):
    "The keys of what is in nested dictionaries, the first few of large ones."
    if not isinstance(x, dict) or not depth: return
    keys = list(x)
    for k in keys if len(keys) < 60 and depth > 2 else keys[:of_each]:
        yield k,
        yield from ((k, *rest) for rest in paths_of(x[k], depth - 1))


def at(x, keys):
    for k in keys: x = x[k]
    return x


MISSING = object()


def changed(x, keys, value=MISSING):
    "A copy of nested dictionaries with one entry replaced or taken out."
    (k, *rest), copy = keys, dict(x)
    if rest: copy[k] = changed(x[k], rest, value)
    elif value is MISSING: del copy[k]
    else: copy[k] = value
    return copy


# ---- what is done with a run


def tables(folder, name):
    root = folder.parent
    rows = {Path(r['folder']).name: r for r in list_runs(root)}
    assert 'damaged' not in rows['good'] and set(rows) <= {'good', 'bad'}
    choices, newest = run_choices(root), newest_run(root)
    assert str(root / 'good') in [f for _, f in choices]
    assert newest and scores_table(root) is not None and newest_of_one_set(root) is not None
    if 'damaged' in rows.get('bad', {}):
        assert '\n' not in rows['bad']['damaged'] and 'bad' in rows['bad']['damaged']
        assert newest == choices[0][1] == str(root / 'good')
    for line, _ in choices: assert len(line) < 1000 and '\n' not in line


def read(folder, name):
    run = read_run(folder)
    assert repr(run) and run.results is not None and len(run.map()) == len(run) and run.rows is not None


def diagnosed(folder, name): assert repr(diagnose_run(folder))
def history(folder, name): assert read_label_history(folder).matched() is not None
def summed(folder, name): assert summary(folder)
def tree(folder, name): assert keeps_merge_tree(folder) in (True, False)
def other(folder, name): assert compare(folder, folder.parent / 'good').table()


def opened(folder, name):
    found = open_run(folder, 'cpu').predict(data(name)[:6] if name == 'nmc' else data(name).subset(range(6)))
    assert found.shape == (6,) and found.dtype.kind == 'i' and found.min() >= 0


def resumed(folder, name):
    config = json.loads((folder.parent / 'parameters.json').read_text())
    found = model(name, config, folder).fit(data(name))
    assert np.isfinite(found.embedding_).all()


USES = {'config.json': [tables, read, diagnosed, summed, tree, opened, history, resumed],
        'results.json': [tables, read, diagnosed, summed, history], 'provenance.json': [tables, resumed],
        'metrics.jsonl': [tables, read, diagnosed, resumed], 'label_history.bin': [tables, history, resumed],
        'model.pt': [tables, opened], 'checkpoint.pt': [tables, resumed], 'self_labels.npy': [tables, resumed],
        'predictions.npy': [tables, read, diagnosed, other], 'embeddings.npy': [tables, read, diagnosed],
        'ids.npy': [tables, read, other], 'true_labels.npy': [tables, read, other]}
def tried(use, folder, name, what):
    "Use a run; None, or the one line that refused."
    start = time.monotonic()
    try: use(folder, name)
    except InputError as e:
        assert '\n' not in str(e) and len(str(e)) < 1500, (what, use.__name__, str(e)[:300])
        assert use is not tables, (what, str(e))
        return str(e)
    except (Exception, RecursionError, MemoryError) as e:
        raise AssertionError(f'{what}: {use.__name__}: {type(e).__name__}: {str(e)[:300]}') from e
    finally: assert time.monotonic() - start < 20, (what, use.__name__)


# ---- every file, every damage


OPENED = set()


def note_what_is_opened(event, args):
    if event == 'open': OPENED.add(str(args[0]))


sys.addaudithook(note_what_is_opened)


def looked(use, folder, name, path, damage=None):
    "Whether a use opens a file, which stays as it is or is damaged just before."
    path.write_bytes(path.read_bytes()) if damage is None else damage()
    OPENED.clear()
    tried(use, folder, name, f'{path.name}, as it was or damaged')
    return str(path) in OPENED


def readers(file, name, fresh, source, uses):
    """The uses that ever open a file. The others, which open it neither whole nor in any damage of `raw`, look at most
    whether it is there and how large it is, and need not be tried with every other content."""
    found = []
    for use in uses:
        for damage in (None, *raw(source / file)):
            path = fresh(source) / file
            content = raw(path).get(damage)
            put = content if content is None else lambda: path.write_bytes(content)
            if looked(use, path.parent, name, path, put): break
        else: continue
        found.append(use)
    return found


def state(folder, file):
    "What shows whether anything but `file` was written in a folder, or beside it."
    found = [e for root, _, _ in os.walk(folder.parent) for e in os.scandir(root) if e.path != str(folder / file)]
    return {e.path: (s.st_mtime_ns * e.is_file(), s.st_size * e.is_file(), s.st_ino) for e in found if (s := e.stat())}


def run_through(file, name, fresh, source, uses, step):
    """Damage a file in every way of `raw`, and in every so many of the others, of which each method takes its own; use
    the run; returns how often, and what went through."""
    n, through = 0, []
    if not (source / file).is_file(): pytest.skip(f'{name} has no {file}')
    whole, first = readers(file, name, fresh, source, uses), len(raw(source / file))
    folder = fresh(source)
    before, begin = state(folder, file), list(METHODS).index(name)
    for i, (what, damage) in enumerate(list(damages(folder / file))):
        if i >= first and i % step != begin % step: continue
        for use in uses if i < first else whole:
            if state(folder, file) != before:
                folder = fresh(source)
                before = state(folder, file)
            damage()
            n += 1
            if tried(use, folder, name, f'{file} {what}') is None: through.append((use.__name__, what))
    return n, through


# The many values of configuration and log: one in so many is tried, all of them where tests may be slow.
STEP = {'config.json': 17, 'results.json': 7, 'provenance.json': 11, 'metrics.jsonl': 23, 'model.pt': 11,
        'checkpoint.pt': 9}


def hides_no_other(file, name, place, run, step):
    through = check(file, name, place, run, step)
    if file == 'model.pt': assert not [w for use, w in through if use == 'opened' and w.endswith(' NaN')]


@pytest.mark.part_of('test_every_damage')
@pytest.mark.parametrize('file', STEP)
def test_a_damaged_run_hides_no_other(file, name, place, tiny_run):
    hides_no_other(file, name, place, tiny_run(name), STEP[file])


@pytest.mark.parametrize('file', [f for f in USES if f not in STEP])
def test_every_damage_of_a_file_with_few(file, name, place, tiny_run):
    hides_no_other(file, name, place, tiny_run(name), 1)


# The methods share what reads their files, so that each tries its own part of the damages; with NMC_ALL_DAMAGE=1 each
# tries them all.
EVERY = 1 if os.environ.get('NMC_ALL_DAMAGE') else len(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize('file', STEP)
def test_every_damage(file, name, place, tiny_run):
    hides_no_other(file, name, place, tiny_run(name), EVERY)


def check(file, name, fresh, run, step, source=None):
    config = json.loads(((source or run) / 'config.json').read_text())
    write_json(fresh().parent / 'parameters.json', config)
    # another configuration is refused by the folder already
    uses = [use for use in USES[file] if file != 'config.json' or use is not resumed]
    return run_through(file, name, fresh, source or run, uses, step)[1]


@pytest.mark.part_of('test_every_damage_of_a_checkpoint_in_the_middle_of_a_stage')
def test_a_checkpoint_in_the_middle_of_a_stage(name, place, tiny_run, interrupted_run):
    in_the_middle(name, place, tiny_run, interrupted_run, 6)


@pytest.mark.slow
def test_every_damage_of_a_checkpoint_in_the_middle_of_a_stage(name, place, tiny_run, interrupted_run):
    in_the_middle(name, place, tiny_run, interrupted_run, EVERY)


def in_the_middle(name, place, tiny_run, interrupted_run, step):
    run = tiny_run(name)
    through = check('checkpoint.pt', name, place, run, step, interrupted_run(name, run))
    through = [what for use, what in through if use == 'resumed']
    wrong = [w for w in through if w.endswith(' NaN') or 'next_' in w or 'rows' in w]
    assert not wrong, wrong


# ---- what is wrong is said


def edited(path, *keys, value):
    "Replace one entry of a checkpoint."
    torch.save(changed(load_checkpoint(path), keys, value), path)


def refusal(use, folder, name):
    found = tried(use, folder, name, 'edited')
    assert found, 'nothing was refused'
    return found


def test_nan_weights(name, place):
    folder = place()
    weights = load_checkpoint(folder / 'model.pt')['weights']
    key = next(k for k, v in weights.items() if v.is_floating_point())
    weights[key] = weights[key] * float('nan')
    edited(folder / 'model.pt', 'weights', value=weights)
    said = refusal(opened, folder, name)
    assert f'{folder}/model.pt' in said and f'NaN or infinite: {key}' in said


@pytest.mark.parametrize('key, value', [('next_stage', 9), ('next_stage', -1), ('next_epoch', 10 ** 6),
                                        ('rows', 10 ** 6), ('rows', 0), ('rows', '1'), ('stages', None),
                                        ('next_stage', True)])
def test_a_place_that_the_run_does_not_have(name, place, key, value):
    folder = place()
    write_json(folder.parent / 'parameters.json', json.loads((folder / 'config.json').read_text()))
    log = (folder / 'metrics.jsonl').read_bytes()
    edited(folder / 'checkpoint.pt', key, value=value)
    assert 'checkpoint.pt' in refusal(resumed, folder, name) and (folder / 'metrics.jsonl').read_bytes() == log


SELF_LABELS = [(np.full((2, 120), 6), 'holds 6; expected 5 or less'), (np.full((2, 120), -1), 'holds -1; expected 0'),
               (np.zeros((3, 120), int), 'shape (3, 120); expected (2, 120)'),
               (np.zeros((2, 7), int), 'expected (2, 120)'), (np.zeros((2, 120)), 'expected whole numbers')]


@pytest.mark.parametrize('labels, why', SELF_LABELS)
@pytest.mark.parametrize('name', ['sela'])
def test_self_labels(name, place, labels, why):
    folder = place()
    write_json(folder.parent / 'parameters.json', json.loads((folder / 'config.json').read_text()))
    write_array(folder / 'self_labels.npy', labels)
    said = refusal(resumed, folder, name)
    assert f'{folder}/self_labels.npy' in said and why in said


@pytest.mark.parametrize('more', [dict(head=2), dict(head='0'), dict(self_labels=torch.full((2, 120), 6))])
@pytest.mark.parametrize('name', ['sela'])
def test_what_a_model_remembers(name, place, more):
    folder = place()
    edited(folder / 'model.pt', 'more', value=load_checkpoint(folder / 'model.pt')['more'] | more)
    assert 'model.pt is damaged or was edited' in refusal(opened, folder, name)


@pytest.mark.parametrize('name', ['nmce'])
def test_a_large_label_takes_no_time(name, place):
    folder = place()
    labels = np.load(folder / 'predictions.npy')
    labels[5] = 2 ** 31
    write_array(folder / 'predictions.npy', labels)
    start = time.monotonic()
    rows = {Path(r['folder']).name: r for r in list_runs(folder.parent)}
    assert 'holds 2147483648; expected 119 or less' in rows['bad']['damaged'] and 'acc' in rows['bad']
    explorer = Explorer.of_runs(folder.parent, map_method='pca')
    assert explorer.run.folder == folder.parent / 'good'
    lines = [line for line, _ in explorer.run_menu.options]
    assert len(lines) == 2 and lines[1].startswith('damaged · bad · predictions.npy holds 2147483648')
    explorer.run_menu.value = str(folder)
    assert 'holds 2147483648' in explorer.message.value and explorer.run.folder == folder.parent / 'good'
    assert time.monotonic() - start < 20


@pytest.mark.parametrize('name', ['nmce'])
def test_an_embedding_that_is_nan_hides_no_other(name, place):
    folder = place()
    write_array(folder / 'embeddings.npy', np.full((120, 12), np.nan))
    (folder / 'config.json').touch()
    assert newest_run(folder.parent) == str(folder.parent / 'good')
    assert Explorer.of_runs(folder.parent, map_method='pca').run.folder == folder.parent / 'good'


@pytest.mark.parametrize('name, key', [('nmce', 'n_clusters'), ('sela', 'n_final_clusters'),
                                       ('deep_cluster', 'n_pseudo_labels')])
def test_a_number_of_clusters_that_no_run_has(name, key, place):
    "Nothing makes a list of two billion clusters."
    folder = place()
    config = json.loads((folder / 'config.json').read_text())
    assert key in config
    write_json(folder / 'config.json', config | {key: 2 ** 31})
    for use in (diagnosed, read, opened):
        assert f'{key} is larger than any that a run has' in refusal(use, folder, name)


@pytest.mark.parametrize('place_of_data', ['/', '/proc', '/usr', '\0', '~nobody/x', 'x' * 4000])
@pytest.mark.parametrize('name', ['nmce'])
def test_data_dir_is_somewhere_else(name, place, place_of_data):
    "A folder of images that is half the machine is not listed."
    folder, start = place(), time.monotonic()
    config = json.loads((folder / 'config.json').read_text())
    write_json(folder / 'config.json', config | dict(dataset='folder', data_dir=place_of_data, data='x'))
    run = read_run(folder)
    assert run.images is None and run.notes[0].startswith('no images: ') and '\n' not in run.notes[0]
    assert time.monotonic() - start < 10


def test_the_root_of_the_file_system_is_no_data_set():
    with pytest.raises(InputError, match='root of the file system'): load('folder', 'train', '/')
