"The tutorial on own images, from a folder as people have it to the folders it leaves; and that folder's own oddities."
import csv
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from nmc_workbench.data import load
from nmc_workbench.runs.finished import read_run
from tests import tiny
from tests.photographs import write_photographs
from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs/pages/tutorials/own_images.md').read_text(encoding='utf-8')


def steps():
    "The page's blocks of Python and of the shell, in their order."
    return re.findall(r'^```(python|bash)\n(.*?)^```', PAGE, re.S | re.M)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    "Weights drawn at random where torchvision keeps those that it has downloaded."
    folder = tmp_path / 'torch/hub/checkpoints'
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / Path(ResNet18_Weights.DEFAULT.url).name)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))


def run_command(line, folder):
    words = shlex.split(line.replace('\\\n', ' '))
    assert words[0].endswith('papermill')
    (folder / 'runs').mkdir(exist_ok=True)
    command = [*python('-m', 'papermill'), str(ROOT / words[1]), *words[2:], '--no-progress-bar']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {'IN_TEST': ''})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_page_from_its_first_line_to_its_last(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    page = types.ModuleType('page')
    monkeypatch.setitem(sys.modules, 'page', page)
    for language, text in steps():
        if language == 'bash': run_command(text, tmp_path)
        else: exec(compile(text, 'own_images', 'exec'), vars(page))
    run = read_run('runs/photos')
    assert len(run.labels) == 120 and run.class_labels is None
    assert (tmp_path / 'runs/photos.ipynb').is_file() and list((tmp_path / 'runs/features').glob('*.npy'))
    with open('groups.csv', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    copies = [p for p in (tmp_path / 'groups').rglob('*') if p.is_file()]
    assert len(rows) == 120 == len(copies) and any(p.parent.name.endswith('the first group') for p in copies)


def test_a_folder_with_sizes_modes_and_names_of_all_kinds(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16), dtype=np.uint8)
    truth = write_photographs(pixels, np.arange(24) % 3, tmp_path / 'photos')
    images = load('unlabelled_folder', root=tmp_path / 'photos', size=32)
    assert sorted(images.ids.tolist()) == sorted(truth) and images.labels is None
    assert images.take(torch.arange(24)).shape == (24, 3, 32, 32)
    assert '1 .txt' in str(images.skipped) and '1 in hidden folders' in str(images.skipped)


@pytest.fixture(scope='module')
def small_encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp('encoder') / 'small.pt')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['nmce', 'nmc', 'sela', 'deepcluster', 'and'])
def test_every_train_notebook_takes_an_encoder(method, small_encoder, tmp_path):
    words = [*python('-m', 'papermill'), str(ROOT / f'nbs/train_{method}.ipynb'), 'out.ipynb', '--no-progress-bar',
             '-p', 'encoder', f'file:{small_encoder}', '-p', 'input_size', '8']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {'IN_TEST': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
