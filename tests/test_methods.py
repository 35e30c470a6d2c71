"""The estimator's contract and NMCE's stages, on a hundred digits."""
import ast
import inspect
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from nmc_workbench.core.errors import InputError, TrainingError
from nmc_workbench.data import load
from nmc_workbench.losses import coding_rate, max_coding_rate, nt_xent, optimal_reduction
from nmc_workbench.methods import NMCE, NMCEConfig, base
from nmc_workbench.methods.base import keeps_merge_tree, method_of, open_run, registered
from nmc_workbench.methods.nmce import stages
from nmc_workbench.methods.nmce.config import recipe
from nmc_workbench.methods.nmce.stages import ClusterHeads
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics

PACKAGE = Path(__file__).resolve().parents[1] / 'nmc_workbench'
QUICK = dict(epochs=2, cluster_epochs=2, finetune_epochs=2, n_init=2, batch_size=40, hidden_dim=16, device='cpu')


def make(**options): return NMCE(**{**QUICK, **options})


@pytest.fixture(scope='module')
def digits(): return load('digits')


@pytest.fixture(scope='module')
def images(digits): return digits.subset(range(120))


@pytest.fixture(scope='module')
def held_out(digits): return digits.subset(range(120, 190))


@pytest.fixture(scope='module')
def model(images): return make().fit(images)


def weights(model): return {k: v.clone() for k, v in model.network_.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


# --- scikit-learn's habits


def test_the_constructor_only_stores():
    odd = dict(n_clusters='many', epochs=-1, dataset=object(), lr=[1])
    model = NMCE(**odd)
    assert all(getattr(model, k) is v for k, v in odd.items()) and not [k for k in vars(model) if k.endswith('_')]
    assert {p.kind for p in inspect.signature(NMCE).parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError): NMCE(10)


def test_parameters_go_round(model):
    model = make(lr=.5, augment='mnist')
    other = NMCE(**model.get_params())
    assert other.get_params() == model.get_params() and list(model.get_params()) == sorted(NMCEConfig.names())
    assert other.set_params(lr=.25, epochs=7) is other and (other.lr, other.epochs, model.lr) == (.25, 7, .5)
    with pytest.raises(ValueError, match="Invalid parameter 'epoch'"): other.set_params(epoch=1)


def test_clone_takes_parameters_and_leaves_the_fit(model):
    copy = clone(model)
    assert copy.get_params() == model.get_params() and not hasattr(copy, 'network_') and not hasattr(copy, 'labels_')


def test_repr_shows_what_was_changed():
    assert repr(NMCE(n_clusters=3, lr=.5)) == 'NMCE(lr=0.5, n_clusters=3)' and repr(NMCE()) == 'NMCE()'


def test_fit_does_not_change_parameters(model):
    assert model.get_params() == make().get_params()


def test_it_stands_at_the_end_of_a_pipeline(images):
    x = images.pixels.numpy()
    from sklearn.preprocessing import FunctionTransformer
    labels = make_pipeline(FunctionTransformer(), make(n_clusters=4)).fit_predict(x)
    assert (labels == make(n_clusters=4).fit(x).labels_).all()


# --- fitting


def test_what_a_fitted_model_has(model, images):
    assert model.labels_.shape == (120,) and model.labels_.dtype == np.int64 and 0 <= model.labels_.min()
    assert model.labels_.max() < 10
    assert model.n_clusters_ == 10 and model.embedding_.shape == (120, 64) and model.embedding_.dtype == np.float32
    assert model.run_ is None and {'acc', 'nmi', 'ari'} <= model.results_.keys()
    stages = ('representation', 'cluster_heads', 'fine_tune')
    assert [(r['stage'], r['epoch']) for r in model.history_] == [(s, e) for s in stages for e in range(2)]
    z = torch.from_numpy(model.embedding_)
    assert coding_rate(z, .2) < max_coding_rate(64, .2)
    for row in model.history_[2:]: assert -1e-3 <= row['R'] - row['Rc'] < optimal_reduction(64, 10, .2)


def test_the_same_seed_gives_the_same_model_and_another_does_not(model, images):
    again, other = make().fit(images), make(seed=1).fit(images)
    assert equal(weights(model), weights(again)) and (model.embedding_ == again.embedding_).all()
    assert (model.labels_ == again.labels_).all()
    assert [r['loss'] for r in model.history_] == [r['loss'] for r in again.history_]
    assert not equal(weights(model), weights(other)) and not (model.embedding_ == other.embedding_).all()


def test_fit_again_starts_anew(model, images, held_out):
    again = make().fit(held_out).fit(images)
    assert equal(weights(model), weights(again))


def test_fit_leaves_the_global_random_state(images):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    make(seed=5).fit(images)
    assert before[0].equal(torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


def test_fit_does_not_depend_on_the_global_random_state(model, images):
    torch.manual_seed(12345), np.random.seed(7)
    assert equal(weights(model), weights(make().fit(images)))


def test_labels_are_for_scoring_only(images):
    x, y = images.pixels.numpy(), images.labels.numpy()
    without, with_y, wrong = (make(n_clusters=10).fit(x, labels) for labels in (None, y, np.arange(120) % 2))
    assert equal(weights(without), weights(with_y)) and equal(weights(without), weights(wrong))
    assert (without.labels_ == with_y.labels_).all() and without.results_ == {}
    assert with_y.results_['acc'] != wrong.results_['acc']


def test_class_names_may_be_words(images):
    names = np.array(['b', 'a', 'c'])[np.arange(120) % 3]
    model = make().fit(images.pixels.numpy(), names)
    assert model.n_clusters_ == 3 and 'acc' in model.results_


def test_nothing_is_written_without_a_run_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make().fit(images).predict(images)
    assert os.listdir(tmp_path) == []


def test_accepted_layouts(images):
    grey = images.pixels                                                      # (N, 1, 8, 8)
    want = make(n_clusters=3).fit(grey.numpy()).labels_
    flat = grey[:, 0]
    for x in (flat.numpy(), grey, flat, grey.permute(0, 2, 3, 1).numpy(), grey.numpy() / 255., (grey / 255).numpy(),
              flat.long().numpy(), flat.tolist()):
        assert (make(n_clusters=3).fit(x).labels_ == want).all()
    colour = grey.repeat(1, 3, 1, 1)
    options = dict(n_clusters=3, backbone='smallconv', augment='coil')
    want = make(**options).fit(colour).labels_
    assert (make(**options).fit(colour.permute(0, 2, 3, 1).numpy()).labels_ == want).all() and want.shape == (120,)


def test_points(images):
    x = load('spiral', n=100).pixels.numpy()
    a = make(n_clusters=2).fit(x)
    assert (a.predict(x) == a.labels_).all() and a.config_.backbone == 'mlp' and a.config_.augment == 'spiral'


def test_the_batch_shrinks_to_the_set_unless_it_was_asked_for(images):
    model = make(batch_size=None).fit(images)
    assert model.config_.batch_size == 120 and model.history_[-1]['step'] == 2
    with pytest.raises(InputError, match='batch_size=121 > n_samples=120; choose a smaller batch_size'):
        make(batch_size=121).fit(images)


# --- after fitting


def test_fit_predict_and_fit_transform(images, model):
    assert (make().fit_predict(images) == model.labels_).all()
    assert (make().fit_transform(images) == model.embedding_).all()


def test_predict_is_the_largest_logit_in_any_order(model, images, held_out):
    assert (model.predict(images) == model.labels_).all()
    labels, proba, z = model.predict(held_out), model.predict_proba(held_out), model.transform(held_out)
    assert labels.shape == (70,) and (proba.argmax(1) == labels).all()
    assert proba.shape == (70, 10) and proba.dtype == np.float32 and (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert z.shape == (70, 64)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_allclose(model.transform(held_out.subset(order)), z[order], atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(held_out.pixels[:1]), proba[:1], atol=1e-6)     # one image alone


def test_predict_leaves_the_model_as_it_was(model, held_out):
    before = weights(model)
    model.predict(held_out)
    assert equal(before, weights(model)) and not model.network_.training


def test_as_many_clusters_as_samples_is_unusual_not_wrong():
    assert make().fit(np.zeros((50, 8, 8), np.uint8), np.arange(50)).n_clusters_ == 50


def test_a_longer_fit_finds_the_digits(digits):
    "A few seconds of training: far above chance, in and out of sample."
    images, rest = digits.subset(range(900)), digits.subset(range(900, 1797))
    longer = dict(epochs=8, cluster_epochs=8, finetune_epochs=4, n_init=4, batch_size=100, hidden_dim=64)
    model = NMCE(**longer, device='cpu').fit(images)
    from nmc_workbench.metrics import accuracy
    assert model.results_['acc'] > .5 and accuracy(rest.labels.numpy(), model.predict(rest)) > .5


@pytest.mark.parametrize('call', ['predict', 'predict_proba', 'transform'])
def test_before_fit(call, images):
    with pytest.raises(InputError, match='this NMCE is not fitted; call fit or load first'):
        getattr(make(), call)(images)


def test_images_of_another_shape_are_refused(model):
    images = (np.zeros((3, 9, 9), np.uint8), np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 2)))
    for x, shape in zip(images, ('(1, 9, 9)', '(3, 8, 8)', '(2,)')):
        message = re.escape(f'images have shape {shape}; this NMCE was fitted on (1, 8, 8)')
        with pytest.raises(InputError, match=message):
            model.predict(x)


# --- saving


def test_a_saved_model_predicts_the_same(model, held_out, tmp_path):
    model.save(tmp_path / 'deep/model.pt')
    other = NMCE.load(tmp_path / 'deep/model.pt')
    for a, b in ((other, model), (other.config_, model.config_)):
        assert all(getattr(a, k) == getattr(b, k) for k in NMCEConfig.names() if k not in NMCEConfig.runtime_names())
    assert other.n_clusters_ == 10
    for call in ('predict', 'predict_proba', 'transform'):
        assert (getattr(other, call)(held_out) == getattr(model, call)(held_out)).all()
    assert os.listdir(tmp_path / 'deep') == ['model.pt']


def test_a_run_folder_can_be_loaded(images, held_out, tmp_path, model):
    run = make(run_dir=str(tmp_path / 'run')).fit(images)
    other = NMCE.load(tmp_path / 'run')
    assert equal(weights(run), weights(model)) and (other.transform(held_out) == model.transform(held_out)).all()


def test_parameters_may_be_numpys_and_paths(images, tmp_path):
    "What is saved is what they mean, so that it loads without running anything."
    numpys = dict(n_clusters=np.int64(4), lr=np.float32(.001), frozen_bn_eval=np.bool_(True))
    model = make(**numpys, epochs='2', run_dir=tmp_path / 'run').fit(images)
    other = NMCE.load(tmp_path / 'run')
    assert other.n_clusters == 4 and type(other.n_clusters) is int and other.frozen_bn_eval is True
    assert other.run_dir is None      # to fit it again does not write where it came from
    assert (other.predict(images) == model.labels_).all()
    assert json.loads((tmp_path / 'run/config.json').read_text())['n_clusters'] == 4


def test_something_else_is_not_loaded(model, tmp_path):
    model.save(tmp_path / 'model.pt')
    whole = load_checkpoint(tmp_path / 'model.pt')
    for change, message in ((dict(method='SeLa'), 'was saved by SeLa, not NMCE'),
                            (dict(weights={}), 'does not fit this SubspaceNet: misses: backbone')):
        torch.save({**whole, **change}, tmp_path / 'other.pt')
        with pytest.raises(InputError, match=message): NMCE.load(tmp_path / 'other.pt')
    torch.save(whole['weights'], tmp_path / 'weights.pt')
    with pytest.raises(InputError, match='was saved by None, not NMCE'): NMCE.load(tmp_path / 'weights.pt')
    with pytest.raises(InputError, match='no checkpoint at .*/nothing'): NMCE.load(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no checkpoint at .*/empty/model.pt'): NMCE.load(tmp_path / 'empty')


def test_a_run_that_was_finished_gives_its_results_at_once(images, tmp_path, monkeypatch):
    whole = make(run_dir=str(tmp_path / 'run')).fit(images)
    def never(*args): raise AssertionError('trains')
    monkeypatch.setattr('nmc_workbench.training.trainer.Trainer._epoch', never)
    again = make(run_dir=str(tmp_path / 'run'), resume=True).fit(images)
    assert equal(weights(whole), weights(again))
    assert again.history_ == whole.history_ == read_metrics(tmp_path / 'run') and again.results_ == whole.results_


def test_one_can_look_between_stages(images, model):
    other = make()
    trainer = other.prepare(images)
    trainer.train(until='representation')
    middle = other.transform(images)
    trainer.train(until='cluster_heads')
    trainer.train()
    other.finish()
    assert equal(weights(model), weights(other)) and not (middle == model.embedding_).all()


# --- bad input


BAD = [
    (dict(n_clusters=1), 'n_clusters=1 is too small; expected at least 2'),
    (dict(n_clusters=0), 'n_clusters=0 is too small'),
    (dict(n_clusters=121), 'n_clusters=121 > n_samples=120'),
    (dict(n_clusters='ten'), "n_clusters='ten' is a str; expected int or None"),
    (dict(batch_size=1000), 'batch_size=1000 > n_samples=120'),
    (dict(epochs=0), 'epochs=0 is too small'),
    (dict(lr=0), 'lr=0.0; expected more than 0'),
    (dict(lr='nan'), 'lr=nan; expected a finite number'),
    (dict(momentum=1), 'momentum=1.0; expected less than 1'),
    (dict(loss='tcr'), "loss='tcr'; expected one of 'coding_rate', 'nt_xent'"),
    (dict(backbone='resnet19'), "unknown backbone 'resnet19'; did you mean"),
    (dict(augment='digit'), "unknown preset 'digit'; did you mean 'digits'"),
    (dict(device='cuda:99'), "device 'cuda:99' is not on this machine"),
    (dict(device='tpu'), "unknown device 'tpu'"),
    (dict(amp='fp16'), 'amp=fp16 needs a CUDA device'),
    (dict(amp='half'), "amp='half'; expected one of"),
    (dict(loss='nt_xent', n_views=1), "n_views=1 with loss='nt_xent'; a contrast needs at least 2"),
    (dict(augment='cifar_simclr_norm'), 'Normalise: 3 means for images of 1 channel'),
    (dict(backbone='mlp'), 'the net takes 2 dimensions'),
    (dict(augment='spiral'), 'points are torch.uint8'),
    (dict(seed=-1), 'seed=-1 is too small'),
    (dict(resume='maybe'), "resume='maybe' is a str; expected bool"),
    (dict(hidden_dim=2.5), 'hidden_dim=2.5 is a float; expected int or None')]


def said(v): return '-'.join(f'{k}={x}' for k, x in v.items()) if isinstance(v, dict) else ''


@pytest.mark.parametrize('options, message', BAD, ids=said)
def test_bad_parameters_are_named_and_leave_no_folder(images, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        make(run_dir=str(tmp_path / 'run'), **options).fit(images)
    assert '\n' not in str(error.value) and os.listdir(tmp_path) == []


def bad_arrays():
    x = np.zeros((50, 8, 8), np.uint8)
    return [
        (x, None, 'has no labels to count, so n_clusters must be given'),
        (x, np.zeros(50), 'n_clusters=1 is too small; expected at least 2'),
        (x, np.zeros(49), 'y has shape (49,) for 50 samples'),
        (np.full((50, 8, 8), np.nan), np.arange(50) % 2, 'holds NaN'),
        (np.zeros(50), None, 'has shape (50,)'),
        (x[:0], None, 'has shape (0, 8, 8)'),
        (x.astype(str), None, 'has dtype'),
        (np.zeros((50, 8, 8, 8)), None, 'expected 1 or 3 channels'),
        (x - 1., None, 'has values from -1 to -1'),
        (x[:1], [0], 'n_clusters=1 is too small')]


@pytest.mark.parametrize('x, y, message', bad_arrays(), ids=range(len(bad_arrays())))
def test_bad_arrays_are_named_and_leave_no_folder(tmp_path, x, y, message):
    model = make(run_dir=str(tmp_path / 'run'))
    with pytest.raises(InputError, match=re.escape(message)) as error: model.fit(x, y)
    assert '\n' not in str(error.value) and os.listdir(tmp_path) == []


# --- NMCE: options


@pytest.mark.parametrize('options', [
    dict(n_views=1),
    dict(n_views=3),
    dict(loss='nt_xent'),
    dict(loss='nt_xent_decoupled'),
    dict(loss='nt_xent', n_views=3),
    dict(optimizer='lars'),
    dict(optimizer='adamw'),
    dict(optimizer='lars', momentum=0),
    dict(frozen_bn_eval=True),
    dict(train_pre_feature=False),
    dict(cluster_z_weight=2.),
    dict(n_init=1),
    dict(batch_size=120),
    dict(amp='bf16'),
    dict(amp='bf16', loss='nt_xent', optimizer='lars'),
    dict(amp='bf16', n_views=3, frozen_bn_eval=True),
    dict(z_weight=0., weight_decay=0.)],
                         ids=lambda d: '-'.join(f'{k}={v}' for k, v in d.items()))
def test_every_option_trains(images, options):
    model = make(**options).fit(images)
    assert all(np.isfinite(v) for r in model.history_ for v in r.values() if isinstance(v, float))
    assert len(model.history_) == 6
    assert all(v.isfinite().all() for v in weights(model).values()) and np.isfinite(model.embedding_).all()
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights(model).values())
    assert model.embedding_.dtype == np.float32


def test_bf16_is_close_to_full_precision(images, model):
    half = make(amp='bf16').fit(images)
    assert half.history_[0]['loss'] != model.history_[0]['loss']
    assert half.history_[0]['loss'] == pytest.approx(model.history_[0]['loss'], rel=.05)


def first_step(images, **options):
    "Loss and log of stage 1's first step, with the embeddings of its views."
    model = make(**options)
    trainer = model.prepare(images)
    stage = trainer.stages[0]
    stage.optimisers = stage.start()
    stage.before_epoch(0), stage.train()
    index, views = next(iter(trainer.batches.epoch(stage.name, 0)))
    loss, log = stage.step(index, views)
    with torch.no_grad(): z = model.network_.project(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    return loss.item(), {k: v.item() for k, v in log.items()}, z


def slow_rate(z, eps): return torch.logdet(torch.eye(z.shape[1]) + z.shape[1] / (len(z) * eps) * z.T @ z).item() / 2


@pytest.mark.parametrize('n_views', [1, 2, 3])
def test_the_objective_of_stage_1_is_its_definition(images, n_views):
    loss, log, z = first_step(images, n_views=n_views, z_weight=7., eps=.3)
    rate = np.mean([slow_rate(v, .3) for v in z])
    pairs = [(z[a] * z[b]).sum(1).mean().item() for a in range(n_views) for b in range(a)] or [1.]
    assert log == pytest.approx(dict(R=rate, similarity=np.mean(pairs)), rel=1e-4)
    assert loss == pytest.approx(-rate - 7 * np.mean(pairs), rel=1e-4)


@pytest.mark.parametrize('kind', ['nt_xent', 'nt_xent_decoupled'])
def test_the_contrastive_objectives_are_theirs(images, kind):
    loss, log, z = first_step(images, loss=kind, temperature=.3)
    assert loss == pytest.approx(nt_xent(z.flatten(0, 1), .3, 2, decoupled=kind.endswith('decoupled')).item(), rel=1e-5)
    assert log['R'] == pytest.approx(np.mean([slow_rate(v, .2) for v in z]), rel=1e-4)


@pytest.mark.parametrize('optimizer', ['lars', 'adamw'])
def test_learning_rates_follow_their_schedules(images, optimizer):
    model = make(optimizer=optimizer, epochs=6, warmup_epochs=3, lr=.01, cluster_epochs=4, cluster_lr=.02, head_lr=.03,
                 finetune_epochs=4, finetune_lr=.004).fit(images)
    rows = {s: [r for r in model.history_ if r['stage'] == s] for s in ('representation', 'cluster_heads', 'fine_tune')}
    rates = [r['lr'] for r in rows['representation']]
    assert rates[:3] == pytest.approx([.01 / 3, .02 / 3, .01]) and rates[2] > rates[3] > rates[4] > rates[5] > 0
    cosine = [(1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)]
    for stage, main, head in (('cluster_heads', .02, .03), ('fine_tune', .004, .03 if optimizer == 'lars' else .004)):
        assert [r['lr_main'] for r in rows[stage]] == pytest.approx([main * c for c in cosine])
        heads = [head] * 4 if optimizer == 'lars' else [head * c for c in cosine]
        assert [r['lr_head'] for r in rows[stage]] == pytest.approx(heads)


# --- NMCE: what learns


def parts(model):
    "The parameters, not the buffers, of each part of the network."
    def joined(m): return torch.cat([p.detach().flatten().clone() for p in m.parameters()])
    return {k: joined(m) for k, m in model.network_.named_children()}


def buffers(model): return torch.cat([b.flatten().double() for b in model.network_.buffers()])


def changed(before, after): return {k for k in before if not before[k].equal(after[k])}


@pytest.mark.parametrize('optimizer', ['lars', 'adamw'])
@pytest.mark.parametrize('frozen_bn_eval, train_pre_feature', [(False, True), (True, False)])
def test_each_stage_changes_its_parts_and_no_other(images, optimizer, frozen_bn_eval, train_pre_feature):
    model = make(optimizer=optimizer, frozen_bn_eval=frozen_bn_eval, train_pre_feature=train_pre_feature, n_init=1)
    trainer = model.prepare(images)
    states, statistics = [parts(model)], []
    for stage in ('representation', 'cluster_heads', 'fine_tune'):
        trainer.train(until=stage)
        states.append(parts(model)), statistics.append(buffers(model))
    moved = [changed(a, b) for a, b in zip(states, states[1:])]
    last = {'backbone', 'subspace', 'cluster'} | ({'pre_feature'} if train_pre_feature else set())
    assert moved == [{'backbone', 'pre_feature', 'projection'}, {'subspace', 'cluster'}, last]
    assert statistics[0].equal(statistics[1]) == frozen_bn_eval and not statistics[1].equal(statistics[2])


@pytest.mark.parametrize('late', range(4))
def test_the_heads_with_the_largest_reduction_over_the_last_epoch_are_kept(images, monkeypatch, late):
    "Not the largest of all epochs, nor the first."
    model, reductions, calls = make(n_init=4, cluster_epochs=3), stages.reduction_terms, []
    def biased(*args):
        R, *rest = reductions(*args)
        epoch, head = len(calls) // 12, len(calls) % 4        # three steps an epoch, four heads a step
        calls.append(head)
        return R + 1000 * (epoch < 2 and head == (late + 1) % 4) + 100 * (epoch == 2 and head == late), *rest
    trainer = model.prepare(images)
    trainer.train(until='representation')
    monkeypatch.setattr(stages, 'reduction_terms', biased)
    trainer.train(until='cluster_heads')
    heads, net = trainer.stages[1], model.network_
    assert len(calls) == 36 and net.cluster.weight.equal(heads.clusters[late].weight)
    assert net.subspace.weight.equal(heads.subspaces[late].weight)
    equals = sum(net.cluster.weight.equal(c.weight) for c in heads.clusters)
    assert equals == (1 if late == 0 else 2)            # the first pair is the network's own


def test_heads_learn_apart(images):
    "The first of four heads takes the path it takes alone."
    rates = {}
    for n_init in (1, 4):
        model = make(n_init=n_init, optimizer='adamw')
        trainer = model.prepare(images)
        trainer.train(until='representation')
        stage = trainer.stages[1]
        stage.finish = lambda: None
        noise = []
        before = stage.before_epoch
        def quiet(epoch):
            before(epoch)
            stage.noise = noise[0] if noise else None
        stage.before_epoch = quiet
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, 'gumbel_softmax', lambda logits, tau, generator: (logits / tau).softmax(1))
            trainer.train(until='cluster_heads')
        rates[n_init] = stage.clusters[0].weight.detach().clone()
    torch.testing.assert_close(rates[1], rates[4])


def test_starts_of_the_heads_differ_and_follow_from_the_seed(images):
    def heads(seed):
        return [c.weight.detach().clone() for c in make(n_init=3, seed=seed).prepare(images).stages[1].clusters]
    a, b, c = heads(0), heads(0), heads(1)
    assert all(x.equal(y) for x, y in zip(a, b)) and not any(x.equal(y) for x, y in zip(a, c))
    assert not any(a[i].equal(a[j]) for i in range(3) for j in range(i))


# --- a loss that is not a number


def test_a_loss_that_is_not_a_number_leaves_a_run_that_can_go_on(images, tmp_path, monkeypatch):
    options = dict(cluster_epochs=6, checkpoint_every=3)
    whole = make(**options).fit(images)
    step = ClusterHeads.step
    def bad(self, index, views):
        loss, log = step(self, index, views)
        self.steps = getattr(self, 'steps', -1) + 1
        return loss * (float('nan') if self.steps == 3 * 4 + 1 else 1), log       # epoch 4, step 1
    monkeypatch.setattr(ClusterHeads, 'step', bad)
    message = f'stage cluster_heads, epoch 4, step 1; the last good checkpoint is {tmp_path}/run/checkpoint.pt'
    with pytest.raises(TrainingError, match=message) as error:
        make(**options, run_dir=str(tmp_path / 'run')).fit(images)
    assert '\n' not in str(error.value)
    saved = load_checkpoint(tmp_path / 'run/checkpoint.pt')
    assert (saved['next_stage'], saved['next_epoch'], saved['rows']) == (1, 3, 5)
    assert all(v.isfinite().all() for v in saved['weights'].values())
    monkeypatch.setattr(ClusterHeads, 'step', step)
    again = make(**options, run_dir=str(tmp_path / 'run'), resume=True).fit(images)
    assert equal(weights(whole), weights(again))
    assert [r['loss'] for r in whole.history_] == [r['loss'] for r in again.history_]


def test_a_rate_far_too_large_stops_by_itself(images):
    message = ('the loss is not a number in stage representation, epoch .*, step .*; no checkpoint was made yet; '
               'try a smaller learning rate')
    with pytest.raises(TrainingError, match=message):
        make(optimizer='lars', lr=1e30, warmup_epochs=0, epochs=4).fit(images)


def test_everything_of_a_stage_lies_where_the_network_does():
    config = NMCE(n_clusters=10, **recipe('digits', (1, 8, 8)))
    network = NMCE._build(config, (1, 8, 8)).to('meta')
    stage = ClusterHeads(network, 1, config)
    assert {t.device.type for t in (*stage.parameters(), *stage.buffers())} == {'meta'}


# --- methods as guests


def test_the_benchmark_has_every_method():
    from nmc_workbench.sweeps.benchmark import METHODS
    own = {name for name, method in registered().items() if method.__module__.startswith('nmc_workbench.')}
    assert len(own) > 4 and own <= set(METHODS)


def test_nothing_outside_asks_for_a_method_by_its_name():
    """A method is asked for what it can do, so that a new one is not left out; the spiral's toy is made of NMCE, and
    the benchmark lists runs with their recipes."""
    found, by_name = [], ('_modidx.py', 'explore/spiral_lab.py', 'sweeps/benchmark.py')
    for path in PACKAGE.rglob('*.py'):
        place = path.relative_to(PACKAGE)
        if place.parts[0] == 'methods' or place.as_posix() in by_name: continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Constant) and node.value in registered(): found.append((str(place), node.lineno))
            if isinstance(node, ast.alias) and node.name in registered(): found.append((str(place), node.lineno))
    assert found == []


def test_what_a_method_can_do_is_asked_of_its_runs(model, images, tmp_path):
    model.save(tmp_path / 'model.pt')
    (tmp_path / 'config.json').write_text('{"method": "NMCE"}')
    assert method_of(tmp_path) is NMCE and not keeps_merge_tree(tmp_path)
    (tmp_path / 'config.json').write_text('{"method": "NMC"}')
    assert keeps_merge_tree(tmp_path)
    (tmp_path / 'config.json').write_text('{"method": "Unknown"}')
    assert not keeps_merge_tree(tmp_path)
    with pytest.raises(InputError, match="unknown method 'Unknown'; known: .*Import the module that defines it"):
        open_run(tmp_path)


def test_a_subclass_keeps_the_constructor_of_its_base():
    class Mine(NMCE): pass
    assert registered()['Mine'] is Mine and Mine(n_clusters=3).get_params()['n_clusters'] == 3
    assert inspect.signature(Mine) == inspect.signature(NMCE)
    with pytest.raises(TypeError, match="unexpected keyword argument 'clusterz'"): Mine(clusterz=3)
    base._METHODS.pop('Mine')
