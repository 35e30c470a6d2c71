"The double spiral's notebook and pictures, small; what training reaches is measured by tests/bench/bench_spiral.py."
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.training.callbacks import EveryEpochs
from nmc_workbench.methods import NMCE
from nmc_workbench.methods.nmce.config import RECIPES
from nmc_workbench.explore.spiral_lab import ToyLab, outputs, toy_picture

from .processes import python
from .toys import png

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def points(): return load('spiral', n=400, fresh=True)


@pytest.fixture(scope='module')
def model(points): return NMCE(dataset='spiral', epochs=2, batch_size=100, device='cpu').fit(points)


def test_the_picture_shows_regions_and_embedding(model, points):
    picture = png(toy_picture(model.network_, points.pixels, points.labels, 'a title')).convert('RGB')
    left, right = np.asarray(picture)[:, :picture.width // 2], np.asarray(picture)[:, picture.width // 2:]
    def colours(part): return len(np.unique(part.reshape(-1, 3), axis=0))
    assert colours(left) > 50 and colours(right) > 20


def test_looking_does_not_disturb_training(points):
    def run(look):
        model = NMCE(dataset='spiral', epochs=3, batch_size=100, device='cpu')
        trainer = model.prepare(points)
        def draw(epoch): toy_picture(model.network_, points.pixels, points.labels)
        if look: trainer.callbacks.append(EveryEpochs(draw))
        trainer.train()
        return model.network_.state_dict()
    a, b = run(False), run(True)
    assert all(a[k].equal(b[k]) for k in a)


def test_outputs_are_those_of_the_estimator(model, points):
    z, p = outputs(model.network_, points.pixels)
    assert (p.argmax(1) == model.labels_).all()
    np.testing.assert_allclose(z, model.embedding_, atol=1e-6)


def test_images_are_refused(model):
    with pytest.raises(InputError, match=r'x has shape \(3, 1, 8, 8\); expected points in the plane'):
        toy_picture(model.network_, torch.zeros(3, 1, 8, 8), [0, 1, 0])


def test_stop_ends_the_training():
    lab = ToyLab(every=1, n_steps=2, epochs=1000)
    lab.batch_size.value = 128
    lab.start()
    lab.halt()
    lab.thread.join(60)
    assert not lab.thread.is_alive() and len(lab.trainer.history) < 1000
    assert lab.stop.disabled and not lab.train.disabled
    lab.z_weight.value = 10.
    lab.start()
    lab.halt()
    lab.thread.join(60)
    assert lab.model.config_.z_weight == 10.


def test_the_parameters_are_the_recipes():
    cells = json.loads((ROOT / 'nbs/spiral_toy.ipynb').read_text())['cells']
    cell = next(c for c in cells if 'parameters' in c['metadata'].get('tags', []))
    values = {}
    exec(''.join(cell['source']), values)
    for name in ('eps', 'z_weight'): assert values[name] == RECIPES['spiral'][name]
    assert values['noise'] == .1 and values['aug_noise'] == .2


@pytest.mark.slow
def test_papermill_runs_and_resumes(tmp_path):
    words = [str(ROOT / 'nbs/spiral_toy.ipynb'), str(tmp_path / 'out.ipynb'), '--no-progress-bar']
    given = dict(epochs=4, batch_size=64, show_every=2, device='cpu', run_dir=tmp_path / 'run')
    words += [w for k, v in given.items() for w in ('-p', k, str(v))]
    papermill = python('-m', 'papermill', *words)
    subprocess.run(papermill, check=True, capture_output=True, timeout=300)
    before = (tmp_path / 'run/model.pt').read_bytes()
    written = {p.name for p in (tmp_path / 'run/figures').iterdir()}
    assert written >= {'final.png', 'curves.png', 'spectra.png', 'step_000000.png', 'step_000200.png'}
    subprocess.run([*papermill, '-p', 'resume', 'True'], check=True, capture_output=True, timeout=300)
    assert (tmp_path / 'run/model.pt').read_bytes() == before
