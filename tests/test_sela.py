"""SeLa: what the original computed, label updates, resuming, ranks, and what is refused."""
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
from fastcore.docments import docments
from torch import nn

from nmc_workbench.cluster import kmeans_labels
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
from nmc_workbench.methods.nmc.encoders import _rebuilt
from nmc_workbench.methods.sela.estimator import _label_preset, head_agreement
from nmc_workbench.methods.sela.stages import SelfLabelling, SelfLabels, turnover
from nmc_workbench.methods.sela.config import RECIPES, balanced_labels, label_steps, label_times, learning_rate
from nmc_workbench.methods.sela.config import weight_decay_of
from nmc_workbench.methods.sela.weights import as_original
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet
from nmc_workbench.projection import umap_rows
from nmc_workbench.data.readers import as_images
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics
from tests import killed
from tests.ranks import member, together

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden' / 'sela'))
QUICK = dict(epochs=3, n_label_updates=4, n_heads=2, batch_size=50, checkpoint_every=1)
NOTEBOOK = ROOT / 'nbs/train_sela.ipynb'


def golden(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.fixture(scope='module')
def run(digits, tmp_path_factory):
    return SeLa(**QUICK, weight_decay=1e-4, run_dir=tmp_path_factory.mktemp('sela') / 'run').fit(digits)


# --- schedules


def test_label_times():
    case = golden('schedule_main')
    for i, (epochs, n, updates) in enumerate(case['cases']):
        ours = label_times(n, epochs + 1, updates)                                      # E + 1 epochs run there
        np.testing.assert_allclose(ours, case[f'times_{i}'][:0:-1], rtol=1e-12)
    case = golden('schedule_cifar')
    for i, (epochs, n, updates) in enumerate(case['cases']):
        ours = label_times(n, epochs, updates, 'linear')
        np.testing.assert_allclose(ours, case[f'times_{i}'][:0:-1], rtol=1e-12)


def test_steps_at_which_labels_are_updated():
    case = golden('events')
    for i, (epochs, n, batch, updates) in enumerate(case['main_cases']):
        ran = case[f'main_events_{i}']
        if case[f'main_crashed_{i}']: ran = ran[:-1]            # before it crashed it made one update too many
        assert label_steps(n, epochs + 1, batch, label_times(n, epochs + 1, updates)) == ran.tolist()
    for i, (epochs, n, batch, updates, heads) in enumerate(case['cifar_cases']):
        steps = np.array(label_steps(n, epochs, batch, label_times(n, epochs, updates, 'linear')))
        at = steps // -(-n // batch)
        np.testing.assert_array_equal(np.stack([at, at % heads], 1), case[f'cifar_events_{i}'])


def test_learning_rates():
    case = golden('lr')
    for i in range(2):
        lr, drop, epochs = case[f'main_{i}_params']
        length = int(epochs) + 1
        ours = [learning_rate(e, length, lr, 'steps', int(drop)) for e in range(length)]
        np.testing.assert_allclose(ours, case[f'main_{i}'], rtol=1e-12)
    for epochs in (200, 400, 800, 1600):
        ours = [learning_rate(e, epochs, float(case[f'cifar_{epochs}_lr']), 'cifar') for e in range(epochs)]
        np.testing.assert_allclose(ours, case[f'cifar_{epochs}'], rtol=1e-12)


def test_initial_labels_fill_clusters_alike():
    case = golden('init')
    for i, (n, k) in enumerate(case['cases']):
        labels = balanced_labels(int(n), int(k), len(case[f'counts_{i}']))
        for row, counts in zip(labels, case[f'counts_{i}']):
            np.testing.assert_array_equal(np.bincount(row, minlength=k), counts)
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


def weights_at(g, when, heads):
    "The stored weights of a moment, under the names of `HeadsNet`."
    tops = [f'top_layer{h}' for h in range(heads)] if heads > 1 else ['top_layer']
    trunk = {f'backbone.0.{w}': g[f'{when}.features.0.{w}'] for w in ('weight', 'bias')}
    return trunk | {f'heads.{h}.{w}': g[f'{when}.{top}.{w}'] for h, top in enumerate(tops) for w in ('weight', 'bias')}


def stage_of(g):
    "The stage of a stored run: its network in float64, its batches and its first labels."
    n, d, hidden, k, heads, epochs, batch, updates = (int(v) for v in g['params'][:8])
    lr, drop, momentum, decay, power = g['params'][8:]
    net = HeadsNet(nn.Sequential(nn.Linear(d, hidden), nn.ReLU()), hidden, k, heads).double()
    net.load_state_dict({key: torch.from_numpy(v) for key, v in weights_at(g, 'init', heads).items()})
    asked = dict(n_clusters=k, n_heads=heads, epochs=epochs + 1, batch_size=batch, n_label_updates=updates, lr=lr,
                 lr_drop=int(drop), momentum=momentum, weight_decay=weight_decay_of(float(decay)), power=float(power))
    batches = InOrder(torch.from_numpy(g['x']), batch)
    stage = SelfLabelling(net, epochs + 1, SeLaConfig(**{**RECIPES['imagenet'], **asked}).checked(), batches)
    def features():
        return torch.arange(n), torch.cat([net.backbone(v[0]) for _, v in batches.full_pass('labels', 0)])
    stage.self_labels.features = features               # in float64
    stage.self_labels.labels.copy_(torch.from_numpy(g['init_labels']))
    stage.optimisers = stage.start()
    return stage, batches


def train_epoch(stage, batches, epoch):
    "Mean loss of an epoch, and the labels after each update in it."
    total, updates, sgd = 0., [], stage.optimisers['main']
    stage.before_epoch(epoch)
    for index, views in batches.epoch('', epoch):
        before = stage.updated
        loss, _ = stage.step(index, views)
        if stage.updated > before: updates.append(stage.self_labels.labels.clone())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        total += loss.item() * len(index)
    return total / len(batches.images), updates


@pytest.mark.parametrize('name', ['train_single', 'train_multi'])
def test_training_as_the_original(name):
    g = golden(name)
    stage, batches = stage_of(g)
    net, losses, updates = stage.network, [], []
    for epoch in range(stage.epochs):
        loss, new = train_epoch(stage, batches, epoch)
        losses.append(loss), updates.extend(new)
        trunk = net.backbone[0].weight.detach()
        np.testing.assert_allclose(trunk, g['epoch_feat_w'][epoch], rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(torch.stack(updates), g['event_labels'])
    assert [u['iterations'] for u in stage.self_labels.log] == g['sk_iters'].tolist()
    np.testing.assert_allclose(losses, g['epoch_loss'], rtol=1e-8)
    for key, value in weights_at(g, 'final', len(net.heads)).items():
        np.testing.assert_allclose(net.state_dict()[key], value, rtol=1e-6, atol=1e-12)


# --- label updates


def labels_of(digits, **options):
    asked = {**RECIPES['digits'], 'n_clusters': 10, 'n_heads': 3, 'batch_size': 50, **options}
    torch.manual_seed(0)
    network, batches = HeadsNet(*backbone('smallconv'), 10, 3), Batches(digits, preset('digits'), 50, 1, whole=True)
    return SelfLabels(network, batches, SeLaConfig(**asked).checked())


def test_an_update_changes_all_heads_or_the_one_whose_turn_it_is(digits):
    every, one = labels_of(digits), labels_of(digits, label_heads='one')
    before = every.labels.clone()
    every.update(0, epoch=4), one.update(0, epoch=4)
    assert (every.labels != before).any(1).all() and (one.labels != before).any(1).tolist() == [False, True, False]
    assert [u['head'] for u in every.take_log()] == [0, 1, 2] and every.log == []
    assert [u['head'] for u in one.take_log()] == [1]


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
    assert updates and all(u['largest'] < 45 and u['smallest'] > 15 for u in updates)
    assert all(0 <= u['moved'] <= 1 and 0 <= u['nmi_last'] <= 1 for u in updates)
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])
    assert turnover(a, a) == dict(moved=0., nmi_last=1.) and turnover(a, b) == dict(moved=1., nmi_last=1.)


def test_the_head_is_chosen_without_classes(digits, run):
    assert run.head_ == run.head_agreement_.argmax() and len(run.head_agreement_) == 2
    unlabelled = Images(digits.pixels, None, [], digits.ids, 'digits', 'train')
    other = SeLa(**QUICK, weight_decay=1e-4, n_clusters=10, dataset='digits').fit(unlabelled)
    assert (other.labels_ == run.labels_).all() and 'acc' not in other.results_
    g = np.random.default_rng(0)
    y = g.integers(0, 4, 500)
    assert head_agreement(np.stack([y, y, g.integers(0, 4, 500)])).argmin() == 2


# --- the estimator


def test_every_parameter_is_documented():
    comments = {k: v for cls in (RunConfig, SeLaConfig) for k, v in docments(cls).items() if v}
    for f in dataclasses.fields(SeLaConfig):
        assert len(comments[f.name]) > 5 and f.metadata and not comments[f.name].endswith('.'), f.name


ENCODER = 'encoder', 'encoder_weights', 'encoder_views', 'input_size', 'features_dir', 'train_encoder'


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_set_every_open_parameter(name):
    config = SeLaConfig(**RECIPES[name]).checked()
    left = {f for f in SeLaConfig.names() if getattr(config, f) is None}
    assert left <= {'limit', 'size', 'n_clusters', 'recipe', 'cfgs', 'run_dir', 'backbone_width', 'start_from',
                    'label_augment', 'num_workers', 'comment', 'n_devices', 'n_nodes', 'n_final_clusters',
                    *ENCODER}, left


def test_final_clusters_follow_neighbours(digits, tmp_path):
    "They are those of UMAP and k-means on the features; a saved model gives them again, but no probabilities."
    options = dict(n_clusters=30, n_heads=2, epochs=1, n_label_updates=2, device='cpu')
    model = SeLa(n_final_clusters=6, run_dir=tmp_path / 'run', **options).fit(digits)
    wanted = kmeans_labels(umap_rows(model.embedding_, model.config_.seed), 6, model.config_.seed)
    assert (model.labels_ == wanted).all() and model.n_clusters_ == 6 and model.self_labels_.max() == 29
    opened = open_run(tmp_path / 'run', 'cpu')
    assert (opened.predict(digits) == model.predict(digits)).all() and opened.n_clusters_ == 6
    with pytest.raises(InputError, match='without probabilities'): opened.predict_proba(digits)
    state = model._extra_state()
    for k, says in ((None, 'with points'), (3, 'labels')):
        opened.config_ = dataclasses.replace(model.config_, n_final_clusters=k)
        with pytest.raises(InputError, match=says): opened._set_extra_state(state)
    opened.config_ = model.config_
    with pytest.raises(InputError, match='without points'): opened._set_extra_state(state | dict(nearest=None))
    with pytest.raises(InputError, match='14 samples; UMAP needs 15'):
        SeLa(n_final_clusters=3, **options | dict(n_clusters=4, batch_size=7)).prepare(load('digits', limit=14))
    with pytest.raises(InputError, match='n_final_clusters=200 > n_samples=100'):
        SeLa(n_final_clusters=200, **options).prepare(load('digits', limit=100))


@pytest.mark.slow
def test_the_notebook_takes_other_final_clusters_than_those_of_a_head(tmp_path):
    given = dict(dataset='digits', limit=300, n_clusters=30, n_final_clusters=6, n_heads=2, epochs=1, batch_size=100,
                 n_label_updates=2, device='cpu', run_dir=str(tmp_path / 'run'))
    papermill.execute_notebook(NOTEBOOK, tmp_path / 'out.ipynb', given, progress_bar=False)
    found = diagnose_run(tmp_path / 'run')
    assert json.loads((tmp_path / 'run/results.json').read_text())['n_clusters'] == 6
    assert 'empty' not in str(found) and 'of 30' not in str(found)


def test_predict_agrees_with_the_fit_and_survives_the_disk(run, digits):
    assert (run.predict(digits) == run.labels_).all()
    again = SeLa.load(run.run_.folder)
    assert (again.predict(digits) == run.labels_).all() and again.head_ == run.head_
    assert (again.self_labels_ == run.self_labels_).all()
    proba = again.predict_proba(digits)
    assert np.allclose(proba.sum(1), 1, atol=1e-5) and (proba.argmax(1) == run.labels_).all()


def test_a_run_opens_and_its_features_can_be_taken(run, digits):
    z = extract(open_run(run.run_.folder), digits)
    assert z.shape == (300, 64) and np.allclose(z, run.embedding_, atol=1e-5)
    assert extract(str(run.run_.folder), digits, 'cluster').shape == (300, 10)
    assert np.array_equal(np.load(run.run_.path('self_labels.npy')), run.self_labels_)
    assert str(diagnose_run(run.run_.folder))


def test_a_finished_run_that_is_resumed_keeps_its_labels(run, digits):
    again = SeLa(**QUICK, weight_decay=1e-4, run_dir=run.run_.folder, resume=True).fit(digits)
    assert (again.self_labels_ == run.self_labels_).all() and (again.labels_ == run.labels_).all()


def test_logs_and_pictures_that_are_asked_for(digits, tmp_path):
    folder = tmp_path / 'run'
    model = SeLa(**QUICK, log_steps=2, filters_every=2, comment='a note', run_dir=folder).fit(digits)
    assert [len(r['losses']) for r in model.history_] == [3, 3, 3]
    pictures = sorted(p.name for p in (folder / 'figures').glob('filters*'))
    assert pictures == ['filters_0000.png', 'filters_0002.png']
    assert json.loads((folder / 'config.json').read_text())['comment'] == 'a note'


def test_starting_from_another_run(run, digits):
    model = SeLa(**QUICK, start_from=run.run_.folder)
    model.prepare(digits)
    assert all(v.equal(model.network_.state_dict()[k]) for k, v in run.network_.state_dict().items())
    model = SeLa(**{**QUICK, 'n_heads': 3}, start_from=run.run_.folder)          # other heads: the backbone alone
    model.prepare(digits)
    first, theirs = (m.network_.backbone.state_dict()['0.weight'] for m in (model, run))
    assert first.equal(theirs)


def test_starting_from_the_originals_form(tmp_path):
    old = HeadsNet(*backbone('resnetv1(depth=18)'), 10, 2)
    torch.save(dict(state_dict=as_original(old), epoch=3), tmp_path / 'old.pth')
    pictures = as_images(torch.randint(0, 256, (60, 3, 40, 40), dtype=torch.uint8))
    model = SeLa(**{**QUICK, 'batch_size': 20}, n_clusters=10, backbone='resnetv1(depth=18)',
                 augment='sela_cifar(size=40)', start_from=tmp_path / 'old.pth')
    model.prepare(pictures)
    assert model.network_.heads[1].weight.equal(old.heads[1].weight)


def test_levels_of_augmentation_and_of_the_label_pass(digits):
    pictures = as_images(torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8))
    model = SeLa(epochs=1, n_label_updates=1, n_heads=1, n_clusters=4, batch_size=20, backbone='smallconv',
                 augment='sela(level=3, size=32)', label_augment='sela(level=0, size=32)').fit(pictures)
    assert model._label_batches.augment.operations != model.trainer_.batches.augment.operations
    for level in (3, '3'):
        last = SeLa()._augment(SeLaConfig(augment=level).checked()).operations[-1]
        assert last.mean == (.485, .456, .406)


def test_level_zero_is_a_level_for_the_label_pass_too():
    config = SeLaConfig(augment=3, label_augment=0).checked()
    assert repr(_label_preset(config)) == repr(preset('sela(level=0)')) != repr(preset('sela(level=3)'))


# --- names of the original

ORIGINAL = dict(
    ncl=30, hc=3, arch='alexnet', archspec='small', augs=2, paugs=1, nopts=7, times='linear', lamb=12., lrdrop=50,
    wd=-4., workers=3, log_intv=2, log_iter=5)
HERE = dict(
    n_clusters=30, n_heads=3, backbone='alexnet', backbone_width='small', augment=2, label_augment=1,
    n_label_updates=7, label_spacing='linear', power=12., lr_drop=50, weight_decay=1e-4, num_workers=3,
    filters_every=2, log_steps=5)


def test_options_of_the_original_have_their_names():
    asked = """epochs batch_size lr lrdrop wd dtype nopts augs paugs lamb arch archspec ncl hc workers comment log_intv
               log_iter resume momentum""".split()
    assert set(asked) <= set(SeLaConfig.names()) | set(SeLaConfig.aliases)
    assert set(ORIGINAL) == set(SeLaConfig.aliases) and not set(SeLaConfig.aliases) & set(SeLaConfig.names())


def config_of_the_notebook(**given):
    "The config that the train notebook makes of what papermill injects below its parameters cell."
    cells = json.loads((ROOT / 'nbs/train_sela.ipynb').read_text())['cells']
    at = next(i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', []))
    names = {}
    exec(''.join(cells[at]['source']), names)
    names |= given
    exec(''.join(cells[at + 1]['source']), names)
    return names['config']


def test_the_notebook_takes_the_originals_names():
    config = config_of_the_notebook(**ORIGINAL)
    assert {k: getattr(config, k) for k in HERE} == HERE
    assert config.to_dict() == config_of_the_notebook(**HERE).to_dict()
    assert config_of_the_notebook(ncl=10, arch='alexnet').to_dict() == SeLaConfig(
        n_clusters=10, backbone='alexnet').checked().to_dict()
    assert config_of_the_notebook(wd=5e-4).weight_decay == config_of_the_notebook(wd='5e-4').weight_decay == 5e-4
    for bad, message in ((dict(ncl=10, n_clusters=12), 'ncl=10 and n_clusters=12 name'),
                         (dict(nclusters=10), "did you mean 'n_clusters'"), (dict(wd='much'), "wd='much' is a str")):
        with pytest.raises(InputError, match=message): config_of_the_notebook(**bad)


def test_in_python_an_originals_name_is_taken_but_not_beside_the_one_here():
    assert SeLa(hc=10).n_heads == 10 and SeLa(wd=-5).weight_decay == 1e-5
    with pytest.raises(InputError, match='hc=10 and n_heads=3 name the same parameter'): SeLa(hc=10, n_heads=3)


def with_old_names(given):
    "Parameters as older versions saved them."
    names = {name: alias for alias, (name, _) in SeLaConfig.aliases.items()}
    old = {names.get(k, k): v for k, v in given.items()} | dict(n_clusters=given['n_clusters'])
    return old | dict(wd=None if given['weight_decay'] is None else -4.)


def age(folder):
    "Give a run's configuration, and its model where it is finished, the old names."
    path = folder / 'config.json'
    path.write_text(json.dumps(with_old_names(json.loads(path.read_text()))))
    if not (folder / 'model.pt').is_file(): return
    saved = load_checkpoint(folder / 'model.pt')
    torch.save(saved | {k: with_old_names(saved[k]) for k in ('params', 'config')}, folder / 'model.pt')


def test_a_run_of_an_older_version_is_read_and_resumed(run, digits, tmp_path):
    old = shutil.copytree(run.run_.folder, tmp_path / 'old')
    age(old)
    assert {'ncl', 'hc', 'wd'} <= json.loads((old / 'config.json').read_text()).keys()
    model = open_run(old)
    assert (model.predict(digits) == run.labels_).all() and model.config_.weight_decay == 1e-4 and model.n_heads == 2
    again = SeLa(**QUICK, weight_decay=1e-4, run_dir=old, resume=True).fit(digits)
    assert (again.self_labels_ == run.self_labels_).all()
    half = tmp_path / 'half'
    SeLa(**QUICK, weight_decay=1e-4, run_dir=half).prepare(digits).train(seconds=0)
    age(half)
    rest = SeLa(**QUICK, weight_decay=1e-4, run_dir=half, resume=True).fit(digits)
    assert [r['loss'] for r in rest.history_] == [r['loss'] for r in run.history_]


def test_a_run_of_an_older_version_serves_as_an_encoder(run, digits):
    source = dict(method='SeLa', config=with_old_names(run.config_.to_dict()), shape=[1, 8, 8], more=run._extra_state())
    model = _rebuilt(source)
    assert model.config_.to_dict() == run.config_.to_dict()
    model.network_.load_state_dict(run.network_.state_dict())


# --- killed and resumed


ONE_HEAD = dict(label_heads='one', label_spacing='linear', label_mode='eval')


@pytest.mark.parametrize('options', [{}, ONE_HEAD], ids=['all heads', 'one head'])
def test_killed_and_resumed_ends_with_the_same_bits(options, tmp_path):
    longer = {**QUICK, 'epochs': 6, 'n_label_updates': 6, 'checkpoint_every': 2, **options}
    folders = killed.whole_and_parts('SeLa', longer, tmp_path, 4)
    whole, parts = (load_checkpoint(f / 'model.pt') for f in folders)
    assert all(v.equal(parts['weights'][k]) for k, v in whole['weights'].items())
    assert whole['more']['self_labels'].equal(parts['more']['self_labels'])
    losses = [[r['loss'] for r in read_metrics(f)] for f in folders]
    assert losses[0] == losses[1]


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
    model = SeLa(n_clusters=5, n_heads=3, epochs=4, n_label_updates=5, batch_size=20, backbone='mlp(width=32)',
                 augment='spiral(noise=0)', lr=.05, power=5)
    model.prepare(still()).train()
    return dict(losses=[r['loss'] for r in model.trainer_.history], labels=model.trainer_.stages[0].self_labels.labels)


def test_two_ranks_make_the_labels_of_one(tmp_path):
    one, two = learned(), together(on_rank, tmp_path)
    for other in two:
        assert one['labels'].equal(other['labels'])
        np.testing.assert_allclose(one['losses'], other['losses'], rtol=1e-6)


# --- bad input


@pytest.mark.parametrize('options, message', [
    (dict(n_clusters=400), 'n_clusters=400 > n_samples=300'),
    (dict(n_heads=0), 'n_heads=0 is too small; expected at least 1'),
    (dict(power=0), 'power=0.0; expected more than 0'),
    (dict(n_label_updates=0), 'n_label_updates=0'),
    (dict(weight_decay=-5), 'weight_decay=-5.0 is too small'),
    (dict(backbone='alexnet'), '223'),
    (dict(backbone='smallconv', backbone_width='big'), 'only alexnet'),
    (dict(augment=7), '7'),
    (dict(label_augment='nothing'), "'nothing'"),
    (dict(start_from='nowhere.pth'), 'nowhere.pth'),
    (dict(dtype='f16'), "'f64', 'f32'"),
    (dict(backbone='alexnett'), 'did you mean'),
])
def test_bad_input_is_told_in_one_line(options, message, digits, tmp_path):
    with pytest.raises(InputError) as e: SeLa(**{**QUICK, **options}, run_dir=tmp_path / 'run').fit(digits)
    assert message in str(e.value) and '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_a_start_that_is_no_checkpoint(digits, tmp_path):
    (tmp_path / 'evil.pth').write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(InputError): SeLa(**QUICK, start_from=tmp_path / 'evil.pth').fit(digits)
