"An encoder that learns with the method: what a run keeps, how it goes on, where it starts, and what is refused."
import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.evaluation.features import extract
from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.methods.base import open_run
from nmc_workbench.nets.encoders import encoder
from nmc_workbench.training.trainer import Trainer
from tests import tiny

KINDS = dict(NMCE=NMCE, SeLa=SeLa, DeepCluster=DeepCluster, AND=AND)
MORE = dict(NMCE=dict(stages='representation', clusters='kmeans'), SeLa={}, DeepCluster={}, AND=dict(rounds=1))
FEW = dict(epochs=2, batch_size=50, device='cpu', n_clusters=3, input_size=8, checkpoint_every=1)


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=150)


@pytest.fixture(scope='module')
def name(tmp_path_factory):
    "A small network under the name that methods take."
    return f"file:{tiny.encoder(tmp_path_factory.mktemp('encoder') / 'small.pt')}"


def options(kind, name, folder):
    return FEW | MORE[kind] | dict(encoder=name, train_encoder=True, run_dir=str(folder))


@pytest.fixture(scope='module', params=KINDS)
def fitted(request, digits, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / 'run'
    return KINDS[request.param](**options(request.param, name, folder)).fit(digits), folder


def weights(model): return model.network_.backbone.net.state_dict()


def test_the_encoder_has_learned_and_an_opened_run_has_it(fitted, digits, name):
    model, folder = fitted
    first = encoder(name, size=8).net.state_dict()
    assert any(not torch.equal(v, first[k]) for k, v in weights(model).items())
    opened = open_run(folder, 'cpu')
    assert all(v.equal(weights(opened)[k]) for k, v in weights(model).items())
    assert np.array_equal(opened.predict(digits), model.labels_)
    assert np.allclose(opened.transform(digits), model.embedding_, atol=1e-5)
    assert opened.predict_views(digits.subset(torch.arange(4)), 2).shape == (2, 4)
    assert len(extract(opened, digits.subset(torch.arange(4)))) == 4
    assert model.info(n_views=0)['size'].sum() == len(digits)


def test_an_interrupted_run_ends_as_another(fitted, digits, name, tmp_path, monkeypatch):
    model, _ = fitted
    given, record = options(type(model).__name__, name, tmp_path / 'run'), Trainer._record
    def stop(self, row):
        record(self, row)
        if row['epoch'] == 0: raise KeyboardInterrupt
    monkeypatch.setattr(Trainer, '_record', stop)
    with pytest.raises(KeyboardInterrupt): type(model)(**given).fit(digits)
    monkeypatch.setattr(Trainer, '_record', record)
    again = type(model)(**given, resume=True).fit(digits)
    assert all(v.equal(weights(again)[k]) for k, v in weights(model).items())
    assert np.array_equal(again.labels_, model.labels_)


def test_fine_tuning_starts_from_the_heads_of_a_frozen_run(digits, name, tmp_path):
    "Before its first step, a network with the encoder in it gives what the heads gave on its features."
    stages = dict(stages='representation,cluster_heads', clusters='heads', cluster_epochs=1, finetune_epochs=1)
    given = FEW | stages | dict(encoder=name)
    frozen = NMCE(**given, run_dir=str(tmp_path / 'frozen')).fit(digits)
    tuned = NMCE(**given | dict(stages='fine_tune'), train_encoder=True, start_from=str(tmp_path / 'frozen'),
                 run_dir=str(tmp_path / 'tuned'))
    tuned.prepare(digits)
    assert np.allclose(tuned.transform(digits), frozen.embedding_, atol=1e-4)
    tuned.trainer_.train(), tuned.finish()
    assert not np.allclose(tuned.embedding_, frozen.embedding_, atol=1e-4)


@pytest.mark.parametrize('kind, given, said', [
    (NMCE, {}, 'give encoder, the network whose weights shall learn'),
    (NMC, dict(encoder='torchvision:resnet18'), 'NMC keeps its encoder frozen: leave train_encoder out')])
def test_where_no_encoder_can_learn(kind, given, said, digits):
    with pytest.raises(InputError, match=said): kind(train_encoder=True, device='cpu', **given).fit(digits)
