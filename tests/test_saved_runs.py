"""Runs made before the package had rooms, and with SeLa's original names: they open, predict, resume and can be edited.

`saved_runs/` holds for each method a finished run and one that was stopped after its first epoch, on 60 digits (NMC
on a run's embedding, and on points), what each predicted when it was made, and a curation of the first."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench.data import load
from nmc_workbench.explore.curation import Curation
from nmc_workbench.methods import NMC, NMCE, SeLa
from nmc_workbench.methods.base import open_run
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.finished import read_run
from nmc_workbench.runs.label_history import read_label_history
from nmc_workbench.runs.metrics_log import read_metrics

SAVED = Path(__file__).parent / 'saved_runs'
DIGITS = dict(dataset='digits', limit=60, device='cpu', batch_size=20, checkpoint_every=1)
SMALL = 'smallconv(width=4, stages=2)'
MAKE = dict(
    nmce=lambda **k: NMCE(**DIGITS, backbone=SMALL, hidden_dim=8, z_dim=8, epochs=20, cluster_epochs=40,
                          finetune_epochs=10, n_init=2, **k),
    nmc=lambda **k: NMC(**DIGITS, epochs=2, potential_hidden=8, encoder='run:nmce', embedding_dim=4, max_steps=5,
                        dbscan_min_samples=2, **k),
    sela=lambda **k: SeLa(**DIGITS, backbone=SMALL, n_heads=2, n_clusters=10, epochs=30, n_label_updates=10,
                          weight_decay=1e-4, **k),
    nmc_points=lambda **k: NMC(epochs=150, batch_size=20, potential_hidden=32, device='cpu', checkpoint_every=50,
                               max_steps=30, dbscan_min_samples=2, **k))
NAMES = list(MAKE)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "A copy, in whose folder relative paths mean what they meant."
    shutil.copytree(SAVED, tmp_path / 'runs')
    monkeypatch.chdir(tmp_path / 'runs')
    torch.set_num_threads(1)
    return tmp_path / 'runs'


def data_of(name): return np.load(SAVED / 'points.npy') if name == 'nmc_points' else load('digits', limit=60)
def predicted(name): return np.load(SAVED / f'{name}_predicted.npy')


@pytest.mark.parametrize('name', NAMES)
def test_opens_and_predicts_the_same(runs, name):
    model = open_run(runs / name, 'cpu')
    assert (model.predict(data_of(name)) == predicted(name)).all()
    assert np.allclose(model.transform(data_of(name)), np.load(runs / name / 'embeddings.npy'), atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_a_finished_run_is_taken_up_without_training(runs, name, monkeypatch):
    before = (runs / name / 'metrics.jsonl').read_bytes()
    model = MAKE[name](run_dir=name, resume=True).fit(data_of(name))
    assert (model.labels_ == np.load(SAVED / name / 'predictions.npy')).all()
    assert (runs / name / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('name', NAMES)
def test_an_interrupted_run_goes_on(runs, name):
    folder = runs / f'{name}_interrupted'
    rows, saved = read_metrics(folder), load_checkpoint(folder / 'checkpoint.pt')
    assert saved['next_epoch'] == len(rows) > 0 and not (folder / 'results.json').exists()
    model = MAKE[name](run_dir=f'{name}_interrupted', resume=True).fit(data_of(name))
    assert read_metrics(folder)[:len(rows)] == rows and len(model.history_) == len(read_metrics(SAVED / name))
    losses = [[r['loss'] for r in read_metrics(f)] for f in (folder, SAVED / name)]
    assert np.allclose(losses[0][:5], losses[1][:5], rtol=1e-3)     # those of the run that nobody stopped
    assert (folder / 'results.json').is_file()


def test_the_arrays_and_the_label_history_are_read(runs):
    for name in ('nmce', 'nmc', 'sela'):
        run = read_run(runs / name)
        assert len(run) == 60
        assert run.images is not None
        assert (run.labels == np.load(runs / name / 'predictions.npy')).all()
    assert (runs / 'nmce/lineage.bin').is_file()
    assert len(read_label_history(runs / 'nmce').epochs) == 50


def test_a_curation_is_replayed(runs):
    run = read_run(runs / 'nmce')
    curation = Curation.load(runs / 'nmce/curation.json', run.ids, run.labels, run.embedding)
    edited = curation[0] if isinstance(curation, tuple) else curation
    assert (edited.labels == np.load(SAVED / 'nmce_curated.npy')).all() and 'first ones' in edited.names.values()


def test_a_changed_parameter_is_still_refused(runs):
    from nmc_workbench.core.errors import InputError
    with pytest.raises(InputError, match="n_heads=2 there, 3 here"):
        SeLa(**DIGITS, backbone=SMALL, n_heads=3, n_clusters=10, epochs=30, n_label_updates=10, weight_decay=1e-4,
             run_dir='sela', resume=True).fit(data_of('sela'))


def test_no_path_of_the_machine_that_made_them():
    for path in SAVED.rglob('*.json*'): assert '/work' not in path.read_text() and '/root' not in path.read_text()
    assert json.loads((SAVED / 'sela/config.json').read_text())['wd'] == -4
