"NMCE in parts: which stages run, what they start from, clusters found in the embedding, points that never end."
import re

import numpy as np
import pytest
import torch

from nmc_workbench.augment import preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.training.batches import Batches
from nmc_workbench.data import load
from nmc_workbench.evaluation.features import extract
from nmc_workbench.methods import NMCE
from nmc_workbench.methods.nmce.stages import scheduled
from nmc_workbench.methods.nmce.config import RECIPES, recipe

QUICK = dict(epochs=2, cluster_epochs=2, finetune_epochs=2, n_init=2, batch_size=60, hidden_dim=32, device='cpu')


def make(**options): return NMCE(**{**QUICK, **options})
def weights(model): return {k: v.clone() for k, v in model.network_.state_dict().items()}
def part(model, name): return {k: v for k, v in weights(model).items() if k.startswith(name)}
def equal(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.fixture(scope='module')
def images(): return load('digits', limit=120)


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory):
    "A run of all three stages, with its folder."
    return make(run_dir=str(tmp_path_factory.mktemp('runs') / 'whole')).fit(images)


# --- stages


def test_a_stage_can_start_from_what_the_stage_before_left(images, whole):
    "The heads' starts follow from the seed and are in the file too, so the second half alone gives the same model."
    rest = make(stages='cluster_heads,fine_tune', start_from=str(whole.run_.folder)).fit(images)
    assert equal(weights(rest), weights(whole)) and (rest.labels_ == whole.labels_).all()
    last = make(stages='fine_tune', start_from=str(whole.run_.folder)).fit(images)
    assert equal(weights(last), weights(whole))


def test_a_stage_can_start_from_a_file(images, whole):
    for name in ('representation.pt', 'model.pt'):
        model = make(stages='cluster_heads', start_from=str(whole.run_.folder / name)).fit(images)
        assert [r['stage'] for r in model.history_] == ['cluster_heads'] * 2
    assert equal(part(model, 'backbone.0.'), part(whole, 'backbone.0.'))       # weights frozen; running statistics move


def test_heads_of_another_size_may_stand_on_old_features(images, whole):
    start = str(whole.run_.folder)
    model = make(stages='cluster_heads,fine_tune', start_from=start, n_clusters=4, z_dim=16).fit(images)
    assert model.embedding_.shape == (120, 16) and set(model.labels_) <= set(range(4))


def original(model, stage):
    "The file that the original code would have written."
    heads = ('subspace', 'cluster') if stage == 1 else ('projection',)
    kept = {k: v for k, v in weights(model).items() if not k.startswith(heads)}
    net = {f'module.{k}'.replace('.downsample.', '.shortcut.'): v for k, v in kept.items()}
    optimizer = dict(state={}, param_groups=[dict(lr=.3)])
    return dict(net=net, optimizer=optimizer, scheduler=dict(T_max=600, last_epoch=600))


def test_checkpoints_of_the_original_code(images, tmp_path):
    options = dict(backbone='resnet10imgs', augment='coil(size=32)')
    model = make(**options).fit(images)
    for stage, stages in ((1, 'cluster_heads,fine_tune'), (2, 'fine_tune')):
        torch.save(original(model, stage), tmp_path / 'model-epoch600.pt')
        other = make(**options, seed=5, stages=stages, start_from=tmp_path / 'model-epoch600.pt')
        other.prepare(images)
        for name in ('backbone', 'pre_feature', *(() if stage == 1 else ('subspace', 'cluster'))):
            assert equal(part(other, name), part(model, name))
        assert equal(part(other, 'projection'), part(model, 'projection')) == (stage == 1)


WRONG = [
    (dict(backbone='smallconv(width=8)'), 'cluster_heads',
     'has other shapes: backbone.0.weight (16, 1, 3, 3) instead of (8, 1, 3, 3)'),
    (dict(backbone='resnet10imgs', augment='coil(size=32)'), 'cluster_heads',
     'misses: backbone.bn1.bias, backbone.bn1.num_batches_tracked'),
    (dict(hidden_dim=16), 'cluster_heads', 'has other shapes: pre_feature.0.bias (32,) instead of (16,)'),
    (dict(hidden_dim=0), 'cluster_heads', 'has unknown: pre_feature.0.bias'),
    (dict(n_clusters=4), 'fine_tune', 'has other shapes: cluster.bias (10,) instead of (4,)')]


@pytest.mark.parametrize('options, stages, message', WRONG, ids=range(len(WRONG)))
def test_a_checkpoint_of_another_architecture_names_the_keys(images, whole, tmp_path, options, stages, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        make(**options, stages=stages, start_from=str(whole.run_.folder), run_dir=str(tmp_path / 'run')).fit(images)
    assert '\n' not in str(error.value) and str(whole.run_.folder) in str(error.value)
    assert not (tmp_path / 'run').exists()


BAD = [
    (dict(stages='cluster_heads'), 'starts from an untrained network'),
    (dict(stages='fine_tune,cluster_heads', start_from='x'), 'in this order'),
    (dict(stages='representation'), 'trains no cluster head'),
    (dict(stages='all'), "unknown stage 'all'"),
    (dict(start_from='nowhere'), 'no checkpoint at nowhere'),
    (dict(n_views=0), 'n_views=0 is too small; expected at least 1'),
    (dict(recipe='cifar'), "unknown recipe 'cifar'; did you mean 'cifar10'?"),
    (dict(augment='coil(distort=.3)'), "unknown option of preset coil 'distort'; did you mean 'distortion'?"),
    (dict(backbone='smallconv(width)'), "cannot be read"),
    (dict(optimizer='muon'), 'this backbone has none'),
    (dict(clusters='dbscan'), "clusters='dbscan'; expected one of 'heads', 'ensc', 'kmeans'"),
    (dict(backbone='smallconv(stride=3)'), 'stride=3; expected one of 1, 2'),
    (dict(ensc_gamma=1.), 'ensc_gamma=1.0; expected more than 1')]


@pytest.mark.parametrize('options, message', BAD, ids=range(len(BAD)))
def test_bad_options_are_named_and_leave_no_folder(images, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        make(run_dir=str(tmp_path / 'run'), **options).fit(images)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_a_file_without_weights_says_so(images, tmp_path):
    torch.save(dict(epoch=3), tmp_path / 'x.pt')
    with pytest.raises(InputError, match='x.pt holds no weights by name'):
        make(stages='cluster_heads', start_from=tmp_path / 'x.pt').fit(images)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='has none of representation.pt, model.pt'):
        make(stages='cluster_heads', start_from=tmp_path / 'empty').fit(images)


# --- clusters in the embedding


@pytest.mark.parametrize('how', ['ensc', 'kmeans'])
def test_clusters_found_in_the_embedding(images, tmp_path, how):
    model = make(stages='representation', clusters=how, rate_of='mean', optimizer='adam', run_dir=str(tmp_path / 'run'))
    model.fit(images)
    assert model.embedding_kind == 'projection' and (model.embedding_ == extract(model, images)).all()
    assert (model.predict(images) == model.labels_).all() and len(set(model.labels_)) == 10
    with pytest.raises(InputError, match=f'clusters={how} gives labels without probabilities'):
        model.predict_proba(images)
    again = NMCE.load(tmp_path / 'run')
    assert (again.predict(images) == model.labels_).all() and again.predict(images.subset([3])) == model.labels_[3]
    assert [r['stage'] for r in model.history_] == ['representation'] * 2
    assert np.load(tmp_path / 'run/predictions.npy').shape == (120,)


def test_more_clusters_than_samples_are_refused(images):
    with pytest.raises(InputError, match='n_clusters=121 > n_samples=120'):
        make(stages='representation', clusters='ensc', n_clusters=121).fit(images)


def test_the_mean_of_views_has_the_rate_of_the_coil_objective(images):
    "Of one view, both are the rate of that view; of two, the mean has another."
    def first(**options):
        return make(stages='representation', clusters='kmeans', **options).fit(images).history_[0]['R']
    assert first(rate_of='mean', n_views=1) == pytest.approx(first(rate_of='views', n_views=1), rel=1e-5)
    assert first(rate_of='mean') != pytest.approx(first(rate_of='views'), rel=1e-3)


# --- all in one, on points that never end


def test_joint_training_on_points_drawn_anew():
    points = load('spiral', n=400, fresh=True)
    model = NMCE(dataset='spiral', epochs=3, batch_size=100, device='cpu').fit(points)
    assert [r['stage'] for r in model.history_] == ['joint'] * 3 and model.config_.z_weight == 4000
    assert model.embedding_.shape == (400, 6)
    assert (model.predict(points) == model.labels_).all() and model.embedding_kind == 'subspace'
    fixed = NMCE(dataset='spiral', epochs=3, batch_size=100, device='cpu').fit(load('spiral', n=400))
    assert fixed.history_[0]['loss'] != model.history_[0]['loss']
    assert points.fingerprint() != load('spiral', n=400).fingerprint()


def test_fresh_points_follow_from_the_seed():
    def first(**options):
        batches = Batches(load('spiral', n=100, fresh=True), preset('spiral'), 50, **options)
        return next(iter(batches.epoch('joint', 1)))[1]
    assert first(seed=1).equal(first(seed=1)) and not first(seed=1).equal(first(seed=2))


def test_schedules():
    assert [scheduled('constant', e, 4, 2) for e in range(4)] == [.5, 1, 1, 1]
    assert [scheduled('linear', e, 5, 1) for e in range(5)] == [1, 1, .75, .5, .25]
    assert scheduled('cosine', 0, 4, 0) == 1 and scheduled('cosine', 2, 4, 0) == pytest.approx(.5)


# --- recipes


def test_recipes_of_the_original():
    cifar = dict(epochs=600, cluster_epochs=100, finetune_epochs=100, batch_size=1024, eps=.2, z_weight=30)
    coil20 = dict(epochs=2000, batch_size=1440, eps=.01, z_weight=20, ensc_gamma=400, beta2=.99, weight_decay=1e-5)
    coil100 = dict(epochs=10000, ensc_tau=.5)
    toy = dict(
        batch_size=4096, z_weight=4000, tau=.2, eps=.01, schedule='constant', optimizer='adam', lr=1e-3, momentum=.9,
        beta2=.99, weight_decay=1e-5, epochs=600)
    grey = (1, 64, 64)
    for found, values in ((recipe('cifar10', (3, 32, 32)), cifar), (recipe('coil20', grey), coil20),
                          (recipe('coil100', grey), coil100), (RECIPES['spiral_original'], toy)):
        assert {k: found[k] for k in values} == values


def test_muon_takes_the_hidden_matrices_and_its_rates_fall_together():
    model = NMCE(dataset='spiral', epochs=4, batch_size=100, device='cpu')
    stage = model.prepare(load('spiral', n=400, fresh=True)).stages[0]
    stage.optimisers = stage.start()
    muon, adam = (stage.optimisers[k].param_groups for k in ('main', 'rest'))
    network, c = stage.network, model.config_
    assert [p.shape for p in muon[0]['params']] == [(128, 128)] * 4 and muon[0]['weight_decay'] == c.muon_weight_decay
    assert all(any(p is m.bias for p in adam[1]['params']) for m in network.backbone if isinstance(m, torch.nn.Linear))
    assert len(adam[1]['params']) == 5
    assert sum(len(g['params']) for g in (*muon, *adam)) == len([p for p in network.parameters() if p.requires_grad])
    for epoch, share in ((0, 1), (1, .75), (3, .25)):
        stage.set_schedule(epoch)
        assert [g['lr'] for g in (*muon, *adam)] == pytest.approx([share * c.lr, share * c.adam_lr, share * c.bias_lr])


def test_a_recipe_by_name_on_other_data(images, tmp_path):
    model = make(recipe='coil20', epochs=2, batch_size=120, backbone='smallconv', run_dir=str(tmp_path / 'run'))
    c = model.fit(images).config_
    assert (c.recipe, c.rate_of, c.clusters, c.eps) == ('coil20', 'mean', 'ensc', .01)
