"""SeLa: what the original computed, label updates, resuming, ranks, and what is refused."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.docments import docments
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.training.batches import Batches
from nmc_workbench.augment import preset
from nmc_workbench.data import load
from nmc_workbench.diagnostics.diagnosis import diagnose_run
from nmc_workbench.evaluation.features import extract
from nmc_workbench.methods.base import open_run
from nmc_workbench.data.images import Images
from nmc_workbench.methods import SeLa, SeLaConfig
from nmc_workbench.methods.config import RunConfig
from nmc_workbench.methods.sela.estimator import head_agreement
from nmc_workbench.methods.sela.stages import SelfLabelling, SelfLabels, turnover
from nmc_workbench.methods.sela.config import RECIPES, balanced_labels, label_steps, label_times, learning_rate
from nmc_workbench.methods.sela.weights import as_original
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet
from nmc_workbench.data.readers import as_images
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics
from tests.ranks import member, together

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden' / 'sela'))
QUICK = dict(epochs=3, nopts=4, hc=2, batch_size=50, checkpoint_every=1)


def golden(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.fixture(scope='module')
def run(digits, tmp_path_factory): return SeLa(**QUICK, run_dir=tmp_path_factory.mktemp('sela') / 'run').fit(digits)


# --- schedules


def test_label_times():
    case = golden('schedule_main')
    for i, (epochs, n, nopts) in enumerate(case['cases']): np.testing.assert_allclose(label_times(n, epochs + 1, nopts), case[f'times_{i}'][:0:-1], rtol=1e-12)      # E + 1 epochs run
    case = golden('schedule_cifar')
    for i, (epochs, n, nopts) in enumerate(case['cases']): np.testing.assert_allclose(label_times(n, epochs, nopts, 'linear'), case[f'times_{i}'][:0:-1], rtol=1e-12)


def test_steps_at_which_labels_are_updated():
    case = golden('events')
    for i, (epochs, n, batch, nopts) in enumerate(case['main_cases']):
        ran = case[f'main_events_{i}'][:-1] if case[f'main_crashed_{i}'] else case[f'main_events_{i}']          # before it crashed it made one update too many
        assert label_steps(n, epochs + 1, batch, label_times(n, epochs + 1, nopts)) == ran.tolist()
    for i, (epochs, n, batch, nopts, heads) in enumerate(case['cifar_cases']):
        steps = np.array(label_steps(n, epochs, batch, label_times(n, epochs, nopts, 'linear')))
        at = steps // -(-n // batch)
        np.testing.assert_array_equal(np.stack([at, at % heads], 1), case[f'cifar_events_{i}'])


def test_learning_rates():
    case = golden('lr')
    for i in range(2):
        lr, drop, epochs = case[f'main_{i}_params']
        np.testing.assert_allclose([learning_rate(e, int(epochs) + 1, lr, 'steps', int(drop)) for e in range(int(epochs) + 1)], case[f'main_{i}'], rtol=1e-12)
    for epochs in (200, 400, 800, 1600):
        np.testing.assert_allclose([learning_rate(e, epochs, float(case[f'cifar_{epochs}_lr']), 'cifar') for e in range(epochs)], case[f'cifar_{epochs}'], rtol=1e-12)


def test_initial_labels_fill_clusters_alike():
    case = golden('init')
    for i, (n, k) in enumerate(case['cases']):
        labels = balanced_labels(int(n), int(k), len(case[f'counts_{i}']))
        for row, counts in zip(labels, case[f'counts_{i}']): np.testing.assert_array_equal(np.bincount(row, minlength=k), counts)
        assert not labels[0].equal(labels[1])


# --- the original's training, step by step


class InOrder(Batches):
    "Samples in order, as they are: what the loader of the stored runs gave."
    def __init__(self, x, batch_size):
        images = Images(torch.zeros(len(x), 1), None, [], np.arange(len(x)).astype(str), 'golden', 'all')
        super().__init__(images, preset('spiral(noise=0)'), batch_size, 1, whole=True)
        self.x = x

    def full_pass(self, stage, number): return self.epoch(stage, number)

    def epoch(self, stage, epoch):
        for index in torch.arange(len(self.x)).split(self.batch_size): yield index, self.x[index][None]


@pytest.mark.parametrize('name', ['train_single', 'train_multi'])
def test_training_as_the_original(name):
    g = golden(name)
    n, d, hidden, k, heads, epochs, batch, nopts = (int(v) for v in g['params'][:8])
    lr, drop, momentum, decay, lamb = g['params'][8:]
    net = HeadsNet(nn.Sequential(nn.Linear(d, hidden), nn.ReLU()), hidden, k, heads).double()
    def at(when):
        head = [f'top_layer{h}' for h in range(heads)] if heads > 1 else ['top_layer']
        return {'backbone.0.weight': g[f'{when}.features.0.weight'], 'backbone.0.bias': g[f'{when}.features.0.bias'], **{f'heads.{h}.{w}': g[f'{when}.{t}.{w}'] for h, t in enumerate(head) for w in ('weight', 'bias')}}
    net.load_state_dict({key: torch.from_numpy(v) for key, v in at('init').items()})
    config = SeLaConfig(**{**RECIPES['imagenet'], 'n_clusters': k, 'hc': heads, 'epochs': epochs + 1, 'batch_size': batch, 'nopts': nopts, 'lr': lr, 'lrdrop': int(drop), 'momentum': momentum, 'wd': float(decay), 'lamb': float(lamb)}).checked()
    batches = InOrder(torch.from_numpy(g['x']), batch)
    stage = SelfLabelling(net, epochs + 1, config, batches)
    stage.self_labels.features = lambda: (torch.arange(n), torch.cat([net.backbone(v[0]) for _, v in batches.full_pass('labels', 0)]))      # in float64
    stage.self_labels.labels.copy_(torch.from_numpy(g['init_labels']))
    stage.optimisers, updates, losses = stage.start(), [], []
    sgd = stage.optimisers['main']
    for epoch in range(epochs + 1):
        stage.before_epoch(epoch)
        total = 0.
        for index, views in batches.epoch('', epoch):
            before = stage.updated
            loss, _ = stage.step(index, views)
            if stage.updated > before: updates.append(stage.self_labels.labels.clone())
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item() * len(index)
        losses.append(total / n)
        np.testing.assert_allclose(net.backbone[0].weight.detach(), g['epoch_feat_w'][epoch], rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(torch.stack(updates), g['event_labels'])
    assert [u['iterations'] for u in stage.self_labels.log] == g['sk_iters'].tolist()
    np.testing.assert_allclose(losses, g['epoch_loss'], rtol=1e-8)
    for key, value in at('final').items(): np.testing.assert_allclose(net.state_dict()[key], value, rtol=1e-6, atol=1e-12)


# --- label updates


def labels_of(digits, **options):
    config = SeLaConfig(**{**RECIPES['digits'], 'n_clusters': 10, 'hc': 3, 'batch_size': 50, **options}).checked()
    torch.manual_seed(0)
    return SelfLabels(HeadsNet(*backbone('smallconv'), 10, 3), Batches(digits, preset('digits'), 50, 1, whole=True), config)


def test_an_update_changes_all_heads_or_the_one_whose_turn_it_is(digits):
    every, one = labels_of(digits), labels_of(digits, label_heads='one')
    before = every.labels.clone()
    every.update(0, epoch=4), one.update(0, epoch=4)
    assert (every.labels != before).any(1).all() and (one.labels != before).any(1).tolist() == [False, True, False]
    assert [u['head'] for u in every.take_log()] == [0, 1, 2] and [u['head'] for u in one.take_log()] == [1] and every.log == []


def test_batch_norm_follows_the_pass_or_not(digits):
    def mean(mode):
        labels = labels_of(digits, label_mode=mode)
        net, = labels.net
        before = net.state_dict()['backbone.1.running_mean'].clone()
        labels.update(0, 0)
        assert net.training
        return not before.equal(net.state_dict()['backbone.1.running_mean'])
    assert mean('train') and not mean('eval')


def test_labels_are_balanced_and_turnover_is_measured(run):
    updates = [u for r in run.history_ for u in r.get('label_updates', [])]
    assert updates and all(u['largest'] < 45 and u['smallest'] > 15 for u in updates) and all(0 <= u['moved'] <= 1 and 0 <= u['nmi_last'] <= 1 for u in updates)
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])
    assert turnover(a, a) == dict(moved=0., nmi_last=1.) and turnover(a, b) == dict(moved=1., nmi_last=1.)


def test_the_head_is_chosen_without_classes(digits, run):
    assert run.head_ == run.head_agreement_.argmax() and len(run.head_agreement_) == 2
    other = SeLa(**QUICK, n_clusters=10, dataset='digits').fit(Images(digits.pixels, None, [], digits.ids, 'digits', 'train'))
    assert (other.labels_ == run.labels_).all() and 'acc' not in other.results_
    g = np.random.default_rng(0)
    y = g.integers(0, 4, 500)
    assert head_agreement(np.stack([y, y, g.integers(0, 4, 500)])).argmin() == 2


# --- the estimator


def test_every_parameter_is_documented():
    comments = {k: v for cls in (RunConfig, SeLaConfig) for k, v in docments(cls).items() if v}
    for f in dataclasses.fields(SeLaConfig): assert len(comments[f.name]) > 5 and f.metadata and not comments[f.name].endswith('.'), f.name


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_set_every_open_parameter(name):
    config = SeLaConfig(**RECIPES[name]).checked()
    left = {f for f in SeLaConfig.names() if getattr(config, f) is None}
    assert left <= {'limit', 'size', 'n_clusters', 'ncl', 'recipe', 'run_dir', 'archspec', 'start_from', 'paugs', 'workers', 'comment'}, left


def test_options_of_the_original_have_their_names():
    asked = 'epochs batch_size lr lrdrop wd dtype nopts augs paugs lamb arch archspec ncl hc workers comment log_intv log_iter resume momentum'.split()
    assert set(asked) <= set(SeLaConfig.names())


def test_predict_agrees_with_the_fit_and_survives_the_disk(run, digits):
    assert (run.predict(digits) == run.labels_).all()
    again = SeLa.load(run.run_.folder)
    assert (again.predict(digits) == run.labels_).all() and again.head_ == run.head_ and (again.self_labels_ == run.self_labels_).all()
    assert np.allclose(again.predict_proba(digits).sum(1), 1, atol=1e-5) and (again.predict_proba(digits).argmax(1) == run.labels_).all()


def test_a_run_opens_and_its_features_can_be_taken(run, digits):
    z = extract(open_run(run.run_.folder), digits)
    assert z.shape == (300, 64) and np.allclose(z, run.embedding_, atol=1e-5)
    assert extract(str(run.run_.folder), digits, 'cluster').shape == (300, 10)
    assert np.array_equal(np.load(run.run_.path('self_labels.npy')), run.self_labels_)
    assert str(diagnose_run(run.run_.folder))


def test_a_finished_run_that_is_resumed_keeps_its_labels(run, digits):
    again = SeLa(**QUICK, run_dir=run.run_.folder, resume=True).fit(digits)
    assert (again.self_labels_ == run.self_labels_).all() and (again.labels_ == run.labels_).all()


def test_logs_and_pictures_that_are_asked_for(digits, tmp_path):
    model = SeLa(**QUICK, log_iter=2, log_intv=2, comment='a note', run_dir=tmp_path / 'run').fit(digits)
    assert [len(r['losses']) for r in model.history_] == [3, 3, 3]
    assert [p.name for p in sorted((tmp_path / 'run/figures').glob('filters*'))] == ['filters_0000.png', 'filters_0002.png']
    assert json.loads((tmp_path / 'run/config.json').read_text())['comment'] == 'a note'


def test_starting_from_another_run_and_from_the_originals_form(run, digits, tmp_path):
    model = SeLa(**QUICK, start_from=run.run_.folder)
    model.prepare(digits)
    assert all(v.equal(model.network_.state_dict()[k]) for k, v in run.network_.state_dict().items())
    model = SeLa(**{**QUICK, 'hc': 3}, start_from=run.run_.folder)          # other heads: the backbone alone
    model.prepare(digits)
    assert model.network_.backbone.state_dict()['0.weight'].equal(run.network_.backbone.state_dict()['0.weight'])
    old = HeadsNet(*backbone('resnetv1(depth=18)'), 10, 2)
    torch.save(dict(state_dict=as_original(old), epoch=3), tmp_path / 'old.pth')
    pictures = as_images(torch.randint(0, 256, (60, 3, 40, 40), dtype=torch.uint8))
    model = SeLa(**{**QUICK, 'batch_size': 20}, n_clusters=10, arch='resnetv1(depth=18)', augs='sela_cifar(size=40)', start_from=tmp_path / 'old.pth')
    model.prepare(pictures)
    assert model.network_.heads[1].weight.equal(old.heads[1].weight)


def test_levels_of_augmentation_and_of_the_label_pass(digits):
    pictures = as_images(torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8))
    model = SeLa(epochs=1, nopts=1, hc=1, n_clusters=4, batch_size=20, arch='smallconv', augs='sela(level=3, size=32)', paugs='sela(level=0, size=32)').fit(pictures)
    assert model._label_batches.augment.operations != model.trainer_.batches.augment.operations
    for level in (3, '3'): assert SeLa()._augment(SeLaConfig(augs=level).checked()).operations[-1].mean == (.485, .456, .406)


KILLED = '''
import json, os, signal, sys, torch
torch.set_num_threads(1)
from nmc_workbench.data import load
from nmc_workbench.methods import SeLa
from nmc_workbench.training.trainer import Trainer
options, at = json.loads(sys.argv[1]), int(sys.argv[2])
record = Trainer._record
def die(self, row):
    record(self, row)
    if row['epoch'] == at: os.kill(os.getpid(), signal.SIGKILL)
Trainer._record = die
SeLa(**options).fit(load('digits', limit=300))
'''


@pytest.mark.parametrize('options', [{}, dict(label_heads='one', times='linear', label_mode='eval')], ids=['all heads', 'one head'])
def test_killed_and_resumed_ends_with_the_same_bits(options, tmp_path):
    def go(name, at=-1, **more): return subprocess.run([sys.executable, '-c', KILLED, json.dumps({**QUICK, 'epochs': 6, 'nopts': 6, 'checkpoint_every': 2, 'run_dir': str(tmp_path / name), **options, **more}), str(at)], cwd=ROOT, capture_output=True, text=True)
    assert go('whole').returncode == 0
    assert go('parts', at=4).returncode == -signal.SIGKILL and go('parts', resume=True).returncode == 0
    whole, parts = (load_checkpoint(tmp_path / n / 'model.pt') for n in ('whole', 'parts'))
    assert all(v.equal(parts['weights'][k]) for k, v in whole['weights'].items()) and whole['more']['self_labels'].equal(parts['more']['self_labels'])
    assert [r['loss'] for r in read_metrics(tmp_path / 'whole')] == [r['loss'] for r in read_metrics(tmp_path / 'parts')]


# --- two ranks


def still():
    "Points whose views are themselves, and a network without batch norm: nothing differs between the ranks' shares."
    g = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(5, 2, generator=g)
    return centres[torch.arange(130) % 5] + torch.randn(130, 2, generator=g)


def on_rank(rank, port, out):
    with member(rank, port): torch.save(learned(), f'{out}/rank{rank}.pt')


def learned():
    "Losses and labels."
    model = SeLa(n_clusters=5, hc=3, epochs=4, nopts=5, batch_size=20, arch='mlp(width=32)', augs='spiral(noise=0)', lr=.05, lamb=5)
    model.prepare(still()).train()
    return dict(losses=[r['loss'] for r in model.trainer_.history], labels=model.trainer_.stages[0].self_labels.labels)


def test_two_ranks_make_the_labels_of_one(tmp_path):
    one, two = learned(), together(on_rank, tmp_path)
    for other in two:
        assert one['labels'].equal(other['labels'])
        np.testing.assert_allclose(one['losses'], other['losses'], rtol=1e-6)


# --- bad input


@pytest.mark.parametrize('options, message', [
    (dict(ncl=400), 'n_clusters=400 > n_samples=300'),
    (dict(ncl=10, n_clusters=12), 'ncl=10 and n_clusters=12'),
    (dict(hc=0), 'hc=0 is too small; expected at least 1'),
    (dict(lamb=0), 'lamb=0.0; expected more than 0'),
    (dict(nopts=0), 'nopts=0'),
    (dict(arch='alexnet'), '223'),
    (dict(arch='smallconv', archspec='big'), 'only alexnet'),
    (dict(augs=7), '7'),
    (dict(paugs='nothing'), "'nothing'"),
    (dict(start_from='nowhere.pth'), 'nowhere.pth'),
    (dict(dtype='f16'), "'f64', 'f32'"),
    (dict(arch='alexnett'), 'did you mean'),
])
def test_bad_input_is_told_in_one_line(options, message, digits, tmp_path):
    with pytest.raises(InputError) as e: SeLa(**{**QUICK, **options}, run_dir=tmp_path / 'run').fit(digits)
    assert message in str(e.value) and '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_a_start_that_is_no_checkpoint(digits, tmp_path):
    (tmp_path / 'evil.pth').write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(InputError): SeLa(**QUICK, start_from=tmp_path / 'evil.pth').fit(digits)
