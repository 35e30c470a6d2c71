"The bench of the GPU on a CPU and a few digits: it stops, goes on, survives a kill, and needs no notebooks or network."
import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.errors import InputError
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics
from nmc_workbench.training.timing import PARTS

from .bench import gpu

ROOT = Path(__file__).resolve().parents[1]
SMALL = ('--device', 'cpu', '--amp', 'off', '--no-compile', '--dataset', 'digits', '--recipe', 'digits', '--limit',
         '200', '--batch-size', '100', '--epochs', '8', '5', '3', '--steps', '2')

# The machine with the GPU has no notebooks, does not know the package as installed, and reaches nothing.
BARE = """
import runpy, socket, sys
from importlib import metadata
for name in 'IPython ipykernel ipywidgets faiss plotly papermill nbformat matplotlib'.split(): sys.modules[name] = None
version = metadata.version
def known(name):
    if name == 'nmc_workbench': raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = known
def refuse(*a, **k): raise OSError('no network')
socket.socket.connect = refuse
sys.argv[0] = 'gpu'
runpy.run_module('tests.bench.gpu', run_name='__main__')
"""


def start(folder, *more):
    threads = {k: '1' for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}
    return subprocess.Popen([sys.executable, '-c', BARE, *SMALL, '--run-dir', str(folder / 'run'), '--record',
                             str(folder / 'record.json'), *more], cwd=ROOT, env={**os.environ, **threads},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, 3), err[-2000:]
    return process.returncode, out.strip().splitlines()[-1]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    assert finish(start(folder)) == (0, f'bench-gpu: {scores(folder)}; wrote {folder / "record.json"}')
    return folder


def scores(folder):
    record = json.loads((folder / 'record.json').read_text())
    return ', '.join(f'{k} {record[k]:.3f}' for k in ('acc', 'nmi', 'ari'))


@pytest.mark.slow
def test_the_record_says_what_a_page_quotes(whole):
    r = json.loads((whole / 'record.json').read_text())
    assert {'command', 'date', 'python', 'device', 'versions', 'n', 'dataset', 'recipe', 'seed', 'amp', 'compile',
            'epochs', 'batch_size', 'minutes', 'acc', 'nmi', 'ari'} <= r.keys()
    assert r['command'].startswith('python -m tests.bench.gpu --device cpu')
    assert r['n'] == 200
    assert r['epochs'] == [8, 5, 3]
    assert r['versions']['torch']
    assert r['versions']['nmc_workbench'] is None
    assert [(s['stage'], s['epochs']) for s in r['stages']] == [('representation', 8), ('cluster_heads', 5),
                                                                ('fine_tune', 3)]
    for s in (*r['stages'], r['speed']['plain']['shares']):
        assert sum(s[k] for k in (*PARTS, 'other')) == pytest.approx(1, abs=1e-3)
    plain = r['speed']['plain']
    assert plain['views_per_second'] > 0
    assert plain['tflop_per_second'] == pytest.approx(plain['tflop_per_step'] * plain['views_per_second'] / 200,
                                                      rel=.05)
    assert plain['waits'] is None and 'compiled' not in r['speed'] and r['speed']['heads']['bf16']['within'] is True


@pytest.mark.slow
def test_a_killed_and_stopped_run_ends_like_a_whole_one(tmp_path, whole):
    killed = start(tmp_path)
    end = time.monotonic() + 90
    while len(read_metrics(tmp_path / 'run')) < 9:       # in the second stage
        assert killed.poll() is None and time.monotonic() < end, killed.communicate()
        time.sleep(.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / 'record.json').exists()
    # what was killed was epoch 1 of the second stage, at least
    code, line = finish(start(tmp_path, '--minutes', '0'))
    assert code == 3 and 'in cluster_heads, epoch 1 of 5, about 0 minutes to go; resume with the same command' in line
    assert load_checkpoint(tmp_path / 'run/checkpoint.pt')['next_epoch'] == 1
    assert finish(start(tmp_path))[0] == 0
    assert scores(tmp_path) == scores(whole) and len(read_metrics(tmp_path / 'run')) == 16
    for name in ('predictions.npy', 'embeddings.npy'):
        assert (tmp_path / 'run' / name).read_bytes() == (whole / 'run' / name).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_without_a_gpu_one_line_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['gpu', '--run-dir', str(tmp_path / 'run'), '--data', 'nowhere'])
    gpu.main()
    assert capsys.readouterr().out == 'bench-gpu: no CUDA device here, so nothing was measured\n'
    assert not list(tmp_path.iterdir())


# --- the images kept beside the run


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / f'images/train/{"ab"[i % 2]}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return argparse.Namespace(dataset='folder', data=str(tmp_path / 'images'), split='train', limit=None,
                              run_dir=str(tmp_path / 'run'))


@pytest.fixture
def decoded(monkeypatch):
    "How often the files were decoded."
    calls, load = [], gpu.load
    monkeypatch.setattr(gpu, 'load', lambda *a, **k: calls.append(a) or load(*a, **k))
    return calls


def test_files_are_decoded_once(tree, decoded):
    first, again = gpu.images_of(tree), gpu.images_of(tree)
    assert len(decoded) == 1
    assert first.fingerprint() == again.fingerprint()
    assert (first.ids == again.ids).all()
    assert again.class_names == ['a', 'b']


@pytest.mark.parametrize('change', ['a file', 'the limit', 'half a cache', 'another content', 'no images'])
def test_other_images_are_decoded_again(tree, decoded, change):
    gpu.images_of(tree)
    path = Path(f'{tree.run_dir}.images.pt')
    if change == 'a file': Image.new('RGB', (8, 8)).save(Path(tree.data) / 'train/a/7.png')
    if change == 'the limit': tree.limit = 4
    if change == 'half a cache': path.write_bytes(path.read_bytes()[:999])
    if change == 'another content':
        kept = load_checkpoint(path)
        kept['images']['pixels'][0] ^= 1
        torch.save(kept, path)
    if change == 'no images': torch.save(dict(other=1), path)
    fresh = gpu.images_of(tree)
    assert len(decoded) == 2 and len(fresh) == {'a file': 7, 'the limit': 4}.get(change, 6)
    assert gpu.images_of(tree).fingerprint() == fresh.fingerprint() and len(decoded) == 2


def test_arrays_and_sets_by_name(tree, tmp_path, decoded):
    np.savez(tmp_path / 'arrays.npz', x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4) % 2)
    tree.dataset, tree.data, tree.split = 'npz', str(tmp_path / 'arrays.npz'), 'all'
    assert len(gpu.images_of(tree)) == len(gpu.images_of(tree)) == 4 and len(decoded) == 1
    tree.dataset, tree.limit = 'digits', 10
    assert len(gpu.images_of(tree)) == 10


def test_a_wrong_path_is_named(tree, tmp_path):
    tree.data = str(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='nowhere'): gpu.images_of(tree)
