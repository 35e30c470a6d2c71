"""Errors in one line, checks of arrays, files that are complete or absent, seeds, devices."""
import errno
import json
import os
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nmc_workbench.core.checks import as_array, as_finite, as_integers, as_numbers
from nmc_workbench.core.devices import pick_device
from nmc_workbench.core.errors import InputError, TrainingError, one_of
from nmc_workbench.core.files import clear_errors, write_array, write_file, write_json, write_torch
from nmc_workbench.core.seeds import generator, seed_of


@contextmanager
def small_files(size):
    "No file may grow beyond `size` bytes: what a full disk looks like to a process that is not root."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def tiny_disk(path, size='1m'):
    "A file system of `size` mounted at `path`; skips where that is not allowed."
    path.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', path]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('needs to mount a tmpfs')
    try: yield path
    finally: subprocess.run(['umount', '-l', path], check=True)


def one_line(error):
    text = str(error.value)
    assert '\n' not in text and len(text) > 20
    return text


def test_errors_show_as_one_line():
    for kind in (InputError, TrainingError):
        assert kind('a=1 > b=0')._render_traceback_() == [f'{kind.__name__}: a=1 > b=0']


def test_unknown_names_are_listed_with_the_nearest():
    assert one_of('mnist', ['digits', 'mnist'], 'data set') == 'mnist'
    with pytest.raises(InputError, match=r"unknown data set 'minst'; did you mean 'mnist'\? known: digits, mnist"):
        one_of('minst', ['digits', 'mnist'], 'data set')
    with pytest.raises(InputError, match='unknown data set None; known: digits'): one_of(None, ['digits'], 'data set')


def test_arrays_of_any_kind_are_taken():
    half = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert as_array(half).dtype == np.float32 and as_finite(half, 'z', n=2, d=3).tolist() == [[1] * 3] * 2
    assert as_finite([[1, 2]], 'z').dtype == np.float32 and as_finite([[1, 2]], 'z', dtype=None).dtype == np.int64
    assert as_numbers([np.nan], 'x', ndim=1).shape == (1,)
    assert as_numbers(np.zeros((0, 2)), 'x', least=0).shape == (0, 2)
    assert as_integers([[0, 1]], 'edges', d=2).dtype == np.int64 and as_integers([True, False], 'y').tolist() == [1, 0]
    assert as_integers(np.zeros(0, int), 'y').shape == (0,)
    assert as_integers([-1, 4], 'y', low=-1, high=4).tolist() == [-1, 4]


@pytest.mark.parametrize('call, message', [
    (lambda: as_array([[1], [2, 3]], 'prob'), 'prob has rows of several lengths'),
    (lambda: as_numbers(np.zeros(3), 'z'), r'z has shape \(3,\); expected \(n, d\) with at least 1 row'),
    (lambda: as_numbers(np.zeros((3, 0)), 'z', n=3), r'z has shape \(3, 0\); expected \(3, d\)$'),
    (lambda: as_numbers(np.zeros((3, 2)), 'z', d=4), r'z has shape \(3, 2\); expected \(n, 4\)'),
    (lambda: as_numbers(None, 'z'), r'z has shape \(\); expected'),
    (lambda: as_numbers(np.zeros(1), 'height', ndim=1, least=2), r'expected \(n,\) with at least 2 entries'),
    (lambda: as_numbers(['a'], 'height', ndim=1), 'height has dtype <U1; expected real numbers'),
    (lambda: as_numbers([[1j]], 'z'), 'z has dtype complex128; expected real numbers'),
    (lambda: as_finite([[1, np.inf], [np.nan, 0]], 'z'), 'z holds 2 values that are NaN or infinite; expected none'),
    (lambda: as_integers([.5], 'y'), r'y has shape \(1,\) and dtype float64; expected whole numbers of shape \(n,\)'),
    (lambda: as_integers([[0, 1, 2]], 'edges', d=2), r'edges has shape \(1, 3\) .* of shape \(n, 2\)'),
    (lambda: as_integers(np.zeros(0, int), 'y', least=1), r'of shape \(n,\) with at least 1 entry'),
    (lambda: as_integers([1, 2], 'labels', 3), 'labels has 2 entries; expected 3, one per sample'),
    (lambda: as_integers([0, -2], 'labels', low=-1), 'labels holds -2; expected -1 or more'),
    (lambda: as_integers([0, 7], 'labels', high=6), 'labels holds 7; expected 6 or less'),
])
def test_what_is_wrong_with_an_array(call, message):
    with pytest.raises(InputError, match=message) as error: call()
    one_line(error)


def test_write_file_makes_folders_and_replaces(tmp_path):
    target = tmp_path / 'a/b/c.bin'
    for content in (b'one', b'two'):
        with write_file(target) as f:
            f.write(content)
            assert not target.exists() or target.read_bytes() == b'one'      # nothing half under the good name
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ['c.bin']


def test_the_new_file_takes_the_name_of_the_old_one_at_once(tmp_path):
    "By renaming: who has the old file open goes on reading the old content."
    path = tmp_path / 'a.json'
    write_json(path, 'old')
    with open(path) as old:
        write_json(path, 'new')
        assert json.load(old) == 'old' and json.loads(path.read_text()) == 'new'


@pytest.mark.parametrize('what', [KeyboardInterrupt, RuntimeError, OSError, InputError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, what):
    write_json(tmp_path / 'a.json', 1)
    with pytest.raises(what):
        with write_file(tmp_path / 'a.json') as f:
            f.write(b'half')
            raise what('stop')
    assert json.loads((tmp_path / 'a.json').read_text()) == 1 and os.listdir(tmp_path) == ['a.json']


WRITERS = dict(json=lambda p: write_json(p, list(range(10_000))), npy=lambda p: write_array(p, np.zeros(10_000)),
               pt=lambda p: write_torch(p, dict(a=torch.zeros(10_000))))


@pytest.mark.parametrize('kind', WRITERS)
def test_full_disk_leaves_the_old_file(tmp_path, kind):
    path = tmp_path / f'a.{kind}'
    path.write_bytes(b'old')
    with small_files(8192), pytest.raises(InputError, match='disk full') as error: WRITERS[kind](path)
    assert str(path) in one_line(error)
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('kind', WRITERS)
def test_full_file_system_leaves_the_old_file(tmp_path, kind):
    with tiny_disk(tmp_path / 'disk', '32k') as disk:
        path = disk / f'a.{kind}'
        path.write_bytes(b'old')
        with pytest.raises(InputError, match='disk full') as error: WRITERS[kind](path)
        one_line(error)
        assert path.read_bytes() == b'old' and os.listdir(disk) == [path.name]


def test_a_read_only_file_system_is_named(tmp_path):
    with tiny_disk(tmp_path / 'disk') as disk:
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        for path in (disk / 'a.json', disk / 'deep/er/a.json'):
            with pytest.raises(InputError, match=f'cannot write {path}: Read-only') as error: write_json(path, 1)
            one_line(error)


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*args, **options): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr('builtins.open', refuse)
    with pytest.raises(InputError, match='cannot write .*a.json: Permission denied; choose'):
        write_json(tmp_path / 'a.json', 1)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file/a.json', tmp_path / 'file/b/a.json'):
        with pytest.raises(InputError, match=f'cannot write {path}'): write_json(path, 1)


def test_other_system_errors_stay_as_they_are():
    with pytest.raises(OSError, match='odd') as error:
        with clear_errors('a'): raise OSError(errno.EIO, 'odd')
    assert not isinstance(error.value, InputError)


def test_json_of_numpy_and_torch(tmp_path):
    torches = dict(c=torch.tensor([1]), e=torch.float32, f=torch.device('cpu'))
    write_json(tmp_path / 'a.json', dict(a=np.float32(.5), b=np.arange(2), d=tmp_path, g='ü', **torches))
    want = dict(a=.5, b=[0, 1], c=[1], d=str(tmp_path), e='torch.float32', f='cpu', g='ü')
    assert json.loads((tmp_path / 'a.json').read_text()) == want
    with pytest.raises(InputError, match='a set, which has no JSON form'): write_json(tmp_path / 'a.json', {1, 2})
    with pytest.raises(ValueError): write_array(tmp_path / 'b.npy', np.array([object()]))       # would need pickle
    assert os.listdir(tmp_path) == ['a.json']


def test_seeds_are_a_function_of_the_names_alone():
    seeds = {seed_of(s, *n) for s in range(20) for n in [(), ('a',), ('b',), ('a', 'b'), ('a', 1), ('a', 11)]}
    assert len(seeds) == 120 and all(0 <= s < 2 ** 63 for s in seeds)
    before = torch.get_rng_state()
    a, b = (torch.rand(3, generator=generator(0, 'x', 1)) for _ in range(2))
    assert a.equal(b) and not a.equal(torch.rand(3, generator=generator(0, 'x', 2)))
    assert before.equal(torch.get_rng_state())


def test_the_streams_of_a_seed_do_not_change_between_versions():
    "A checkpoint of an older version must resume on the same streams."
    import hashlib
    digest = hashlib.blake2b(b'7/stage/3/noise/0', digest_size=8).digest()
    assert seed_of(7, 'stage', 3, 'noise', 0) == int.from_bytes(digest, 'little') // 2


def test_devices(monkeypatch):
    assert pick_device('cpu') == pick_device(torch.device('cpu')) == torch.device('cpu')
    with pytest.raises(InputError, match="unknown device 'gpu'; here: auto, cpu"): pick_device('gpu')
    with pytest.raises(InputError, match="unknown device ''"): pick_device('')
    with pytest.raises(InputError, match="'cuda:99' is not on this machine; here: auto, cpu"): pick_device('cuda:99')


def test_devices_of_a_machine_with_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    assert str(pick_device('auto')) == str(pick_device('cuda')) == 'cuda:0' and str(pick_device('cuda:1')) == 'cuda:1'
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert str(pick_device('auto')) == str(pick_device('cuda')) == 'cuda:1' and str(pick_device('cuda:0')) == 'cuda:0'
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(InputError, match='not on this machine; here: auto, cpu, cuda:0, cuda:1'): pick_device('auto')
