"NMC: what it finds, what can be set after the fit, what it writes, and what it refuses."
import dataclasses
import json
import typing
import urllib.error
import warnings

import numpy as np
import pytest
import torch
from nbdev.showdoc import docments

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_torch
from nmc_workbench.data import load
from nmc_workbench.evaluation.features import extract
from nmc_workbench.methods.base import open_run
from nmc_workbench.methods.nmc import encoders as nmc_encoders
from nmc_workbench.methods.nmc import mode_clustering
from nmc_workbench.methods.nmc.network import participation
from nmc_workbench.methods import NMC, NMCConfig, NMCE
from nmc_workbench.methods.config import RunConfig, with_recipe
from nmc_workbench.methods.nmc.config import RECIPES, recipe
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.metrics_log import read_metrics

from . import killed
from .bench.bench_nmc import mixture

OPEN = {'limit', 'size', 'n_clusters', 'run_dir', 'recipe', 'cfgs', 'num_workers', 'encoder_weights', 'augment',
        'embedding_dim', 'tau', 'encoder', 'encoder_views', 'features_dir', 'train_encoder', 'n_devices', 'n_nodes'}
SMALL = dict(epochs=20, batch_size=100, potential_hidden=32, device='cpu')


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.fixture(scope='module')
def encoder(digits, tmp_path_factory):
    "The folder of a run that ends with its first stage."
    folder = tmp_path_factory.mktemp('encoder') / 'run'
    first_stage = dict(stages='representation', clusters='kmeans', epochs=15, batch_size=100, device='cpu')
    NMCE(**first_stage, run_dir=str(folder)).fit(digits)
    return folder


@pytest.fixture(scope='module')
def run(digits, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('nmc') / 'run'
    return NMC(encoder=f'run:{encoder}', run_dir=str(folder), **SMALL).fit(digits)


# --- parameters


def test_every_parameter_is_documented():
    comments = {k: v for cls in (RunConfig, NMCConfig) for k, v in docments(cls).items() if v}
    for f in dataclasses.fields(NMCConfig):
        assert len(comments[f.name]) > 5 and f.metadata and not comments[f.name].endswith('.'), f.name
    hints = typing.get_type_hints(NMCConfig)
    for f in dataclasses.fields(NMCConfig): assert f.default is None or isinstance(f.default, hints[f.name]), f.name


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_set_every_open_parameter(name):
    config = with_recipe(NMCConfig(), RECIPES[name])
    assert {k for k, v in config.to_dict().items() if v is None} <= OPEN


def test_options_of_the_original_have_their_names():
    asked = '''dataset data_dir batch_size input_size num_workers embedding_dim potential_hidden potential_depth
               train_projection epochs lr lambda_inv inv_mode step_size max_steps tau_percentile cache_embeddings
               amp seed save_dir plot tau dbscan_eps dbscan_min_samples k_neighbors potential_norm dsm_weight encoder'''
    assert set(asked.split()) <= set(NMCConfig.names()) | set(NMCConfig.aliases)
    values = dict(
        embedding_dim=128, potential_hidden=512, potential_depth=4, epochs=50, batch_size=256, lr=1e-3, lambda_inv=.1,
        inv_mode='endpoint', step_size=.2, max_steps=20, dbscan_eps=.5, dbscan_min_samples=5, k_neighbors=10,
        tau_percentile=30, input_size=224, clip=5)
    assert {k: RECIPES['seed'][k] for k in values} == values


def test_save_dir_is_run_dir():
    assert NMCConfig.from_names(dict(save_dir='runs/here')).run_dir == 'runs/here'
    assert NMC(save_dir='runs/here').run_dir == 'runs/here'
    with pytest.raises(InputError, match='name the same parameter'): NMC(save_dir='runs/here', run_dir='runs/there')


def test_none_is_a_value_where_it_is_a_choice():
    assert NMCConfig(potential_norm='none').checked().potential_norm == 'none'
    assert NMCConfig(encoder='none').checked().encoder is None


# --- what it finds


@pytest.mark.parametrize('d, n_modes', [(2, 5), (16, 8)])
def test_mixtures_have_as_many_clusters_as_modes(d, n_modes):
    x, y = mixture(d, n_modes, seed=0)
    model = NMC(device='cpu').fit(x, y)
    assert model.n_clusters_ == n_modes and model.results_['acc'] == 1 and not model.fallback_


def test_digits_need_no_number_of_clusters(run):
    assert run.config_.n_clusters is None
    assert run.results_['n_clusters'] == run.n_clusters_ == len(set(run.labels_.tolist()))
    np.testing.assert_allclose(np.linalg.norm(run.embedding_, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(run.endpoints_, axis=1), 1, atol=1e-5)


# --- thresholds


def test_thresholds_relabel_from_the_tree(run, monkeypatch):
    monkeypatch.setattr(mode_clustering, 'ascend', None)        # nothing is climbed again
    kept, most, least = run.tau_, len(run.diagram_), int(np.isinf(run.diagram_.deaths).sum())
    for k in range(least, most + 1):
        run.n_clusters_ = k
        assert len(set(run.labels_.tolist())) == run.n_clusters_ == k == run.tree_.tree.n_clusters(run.tau_)
    run.tau_percentile_ = 100
    top = run.tau_
    assert top == max(np.r_[0, run.diagram_.persistence[np.isfinite(run.diagram_.persistence)]])
    run.tau_ = top * 2 + 1
    assert run.n_clusters_ == least and run.tau_percentile_ == 100
    for name, bad in (('tau_', -1), ('tau_percentile_', 101), ('n_clusters_', most + 1)):
        before = run.labels_
        with pytest.raises(InputError): setattr(run, name, bad)
        assert run.labels_ is before and run.tau_ == top * 2 + 1
    run.tau_ = kept


def test_n_clusters_as_a_parameter_sets_the_threshold():
    model = NMC(n_clusters=3, device='cpu').fit(*mixture(16, 8, seed=0))
    assert len(model.diagram_) == 8 and model.n_clusters_ == 3 == len(set(model.labels_.tolist()))


def test_the_diagram_tells_members_and_deaths(run):
    d = run.diagram_
    assert sorted(np.concatenate([d.members(i) for i in range(len(d))]).tolist()) == list(range(len(run.labels_)))
    assert (d.births[:-1] >= d.births[1:]).all() and (np.isinf(d.deaths) == np.isnan(d.passes).all(1)).all()
    assert (d.persistence > 0).all()
    heights = run.network_.potential(torch.from_numpy(d.passes[np.isfinite(d.deaths)]).float()).detach().numpy()
    np.testing.assert_allclose(heights, d.deaths[np.isfinite(d.deaths)], atol=.05)


# --- estimator


def test_predict_agrees_with_the_fit_and_survives_the_disk(run, digits, encoder, tmp_path):
    assert (run.predict(digits) == run.labels_).mean() > .99
    run.save(tmp_path / 'model.pt')
    (moved := encoder.with_name('gone')).exists() or encoder.rename(moved)       # a saved model holds its encoder
    try: other = NMC.load(tmp_path / 'model.pt', 'cpu')
    finally: moved.rename(encoder)
    np.testing.assert_allclose(other.transform(digits), run.transform(digits), atol=1e-6)
    assert (other.labels_ == run.labels_).all() and other.tau_ == run.tau_
    assert (other.predict(digits) == run.predict(digits)).all()
    other.n_clusters_ = len(other.diagram_)
    assert len(set(other.labels_.tolist())) == len(other.diagram_)


def test_a_run_opens_and_its_features_can_be_taken(run, digits):
    model = open_run(run.run_.folder, 'cpu')
    assert extract(model, digits).shape == run.embedding_.shape and extract(model, digits, 'pool').shape == (300, 512)


def test_another_run_can_use_its_encoder(run, digits):
    model = NMC(encoder=f'run:{run.run_.folder}', encoder_kind='projection', **{**SMALL, 'epochs': 2}).fit(digits)
    assert len(model.labels_) == 300


def test_all_that_the_original_writes(run, digits):
    folder = run.run_.folder
    saved = torch.load(folder / 'nmc_model.pt', weights_only=True)
    assert saved.keys() == {'projection', 'potential', 'config'}
    assert saved['potential'].keys() == run.network_.potential.state_dict().keys()
    arrays = dict(predictions=run.labels_, true_labels=digits.labels.numpy(), endpoints=run.endpoints_,
                  endpoints_aug=run.endpoints_aug_)
    for name, value in arrays.items():
        assert np.array_equal(np.load(folder / f'{name}.npy'), value)
    results = json.loads((folder / 'results.json').read_text())
    assert results.keys() >= {
        'acc', 'nmi', 'ari', 'n_clusters', 'n_classes', 'loss_history', 'tau_value', 'n_immortals',
        'stability_threshold', 'Stability@Aug', 'Stability@Aug(eps)', 'Stability@Assign'}
    assert len(results['loss_history']) == 20 and results['n_classes'] == 10
    rows = (folder / 'comparison.csv').read_text().splitlines()
    assert rows[0] == 'method,acc,nmi,ari,n_clusters' and rows[1].startswith('NMC,') and len(rows) >= 3
    assert (folder / 'latex_table.tex').read_text().count(r'\\') == len(rows)


def test_stability_in_closed_form():
    a = np.array([[0., 0], [1, 0], [5, 0], [6, 0]])
    b = a + [[0, .1], [0, .2], [0, .3], [0, 4.]]
    found = mode_clustering.stability(a, b, np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1]), .5)
    assert found['Stability@Aug'] == .5 and found['stability_threshold'] == pytest.approx(.25)
    assert found['Stability@Aug(eps)'] == .75 and found['Stability@Assign'] == .75


# --- training


# a strong view that is always the same
STILL = 'digits(degrees=0., shift=0., zoom=(1., 1.), shear=0., brightness=None)'


def test_cached_and_uncached_training_have_one_loss_curve(digits, encoder):
    def curve(cache):
        model = NMC(encoder=f'run:{encoder}', augment=STILL, lambda_inv=.1, cache_embeddings=cache,
                    **{**SMALL, 'epochs': 4})
        return [r['loss'] for r in model.prepare(digits).train()]
    np.testing.assert_allclose(curve(True), curve(False), rtol=1e-4)


def test_a_stale_or_broken_cache_is_made_again(digits, encoder, tmp_path):
    def batches(seed=0):
        model = NMC(encoder=f'run:{encoder}', cache_embeddings=False, seed=seed, **SMALL)
        return model.prepare(digits).batches
    first = batches()
    path = nmc_encoders.cache_features(first, tmp_path)
    again = batches()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert nmc_encoders.cache_features(again, tmp_path) == path and again.cached.equal(first.cached)
        assert nmc_encoders.cache_features(batches(1), tmp_path) != path       # another seed draws other views
    saved = load_checkpoint(path)
    write_torch(path, dict(saved, key=dict(saved['key'], encoder='another'), features=saved['features'] + 1))
    with pytest.warns(UserWarning, match='was made from something else; it is made again'):
        nmc_encoders.cache_features(fresh := batches(), tmp_path)
    assert fresh.cached.equal(first.cached)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match='cannot be read; it is made again'):
        nmc_encoders.cache_features(fresh := batches(), tmp_path)
    assert fresh.cached.equal(first.cached) and load_checkpoint(path)['key'] == saved['key']


def test_the_weights_that_stay_are_those_of_the_best_epoch(digits, encoder):
    model = NMC(encoder=f'run:{encoder}', **{**SMALL, 'epochs': 6})
    trainer = model.prepare(digits)
    stage, seen = trainer.stages[0], []
    sums = [3., 1., 2., 5., 1., 6.]             # what the losses of an epoch shall sum to
    after = stage.after_epoch
    def told(epoch):
        seen.append({k: v.clone() for k, v in model.network_.potential.state_dict().items()})
        stage.total.fill_(sums[epoch])
        return after(epoch)
    stage.after_epoch = told
    rows = trainer.train()
    assert all(v.equal(seen[1][k]) for k, v in model.network_.potential.state_dict().items())
    assert not seen[1]['layers.0.weight'].equal(seen[5]['layers.0.weight'])
    assert [round(r['best_loss'] * 3, 5) for r in rows] == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize('options', [
    dict(recipe='seed', cache_embeddings=True),
    dict(recipe='seed', potential_norm='none', dsm_weight='sigma2', inv_mode='gradcos'),
    dict(projection='xavier', train_projection=True, embedding_dim=8, lambda_inv=.1),
    dict(amp='bf16', lambda_inv=.1)], ids=['seed', 'gradcos', 'projection', 'bf16'])
def test_options_train_and_give_finite_numbers(options, digits, encoder):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = NMC(encoder=f'run:{encoder}', **{**SMALL, 'epochs': 2, **options}).fit(digits)
    assert all(np.isfinite(r['loss']) for r in model.history_) and np.isfinite(model.endpoints_).all()
    assert len(model.labels_) == 300


def test_a_trainable_projection_learns_with_a_cache(digits, encoder):
    model = NMC(encoder=f'run:{encoder}', projection='xavier', train_projection=True, embedding_dim=8,
                cache_embeddings=True, **{**SMALL, 'epochs': 2})
    trainer = model.prepare(digits)
    before = model.network_.projection.weight.detach().clone()
    trainer.train()
    assert not before.equal(model.network_.projection.weight)


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    dict(),
    dict(recipe='seed', cache_embeddings=False, potential_hidden=16)], ids=['recipe', 'seed'])
def test_killed_and_resumed_ends_with_the_same_bits(options, encoder, tmp_path):
    given = {**SMALL, 'epochs': 6, 'encoder': f'run:{encoder}', 'checkpoint_every': 2, **options}
    folders = killed.whole_and_parts('NMC', given, tmp_path, 4)
    whole, parts = (load_checkpoint(f / 'model.pt')['weights'] for f in folders)
    assert all(v.equal(parts[k]) for k, v in whole.items())
    losses = [[r['loss'] for r in read_metrics(f)] for f in folders]
    assert losses[0] == losses[1]
    assert np.array_equal(*(np.load(f / 'predictions.npy') for f in folders))


# --- encoders


def test_a_torchvision_encoder_from_a_local_file(tmp_path):
    net, _ = backbone('torchvision:resnet18')
    last_layer = {'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)}
    write_torch(tmp_path / 'resnet18.pth', {**net.state_dict(), **last_layer})
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    weights = str(tmp_path / 'resnet18.pth')
    options = dict(encoder='torchvision:resnet18', input_size=32, dbscan_min_samples=2, potential_hidden=16, epochs=2,
                   batch_size=8, device='cpu')
    model = NMC(**options, encoder_weights=weights, recipe='seed', run_dir=str(tmp_path / 'run')).fit(images)
    assert model.embedding_.shape == (24, 128) and not model.network_.encoder.training
    x = model.network_.encoder.augment.plain(torch.from_numpy(images))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    torch.testing.assert_close(model.network_.encoder(x), net.eval()((x - mean) / std))
    grey = NMC(**options, encoder_weights=weights, recipe='seed').fit(images[:, :1])
    assert len(grey.labels_) == 24
    (tmp_path / 'resnet18.pth').unlink()
    loaded = NMC.load(tmp_path / 'run', 'cpu')          # the run holds the weights
    assert (loaded.predict(images) == model.predict(images)).all()
    write_torch(tmp_path / 'other.pth', {'conv1.weight': torch.zeros(1)})
    with pytest.raises(InputError, match='does not fit'):
        NMC(**options, encoder_weights=str(tmp_path / 'other.pth')).fit(images)


def test_weights_that_are_not_to_be_had(monkeypatch, tmp_path):
    def no_network(*args, **kwargs): raise urllib.error.URLError('no route to host')
    monkeypatch.setattr('nmc_workbench.nets.encoders.load_state_dict_from_url', no_network)
    images = np.zeros((20, 3, 32, 32), np.uint8)
    message = (r'the weights of torchvision:resnet18 are not to be had .*put resnet18-\w+\.pth from https.* '
               r'at .*checkpoints/resnet18-\w+\.pth, or give encoder_weights')
    with pytest.raises(InputError, match=message) as e:
        NMC(encoder='torchvision:resnet18', run_dir=str(tmp_path / 'run')).fit(images)
    assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_features_with_a_strong_view():
    x, y = mixture(3, 3, 0, n_each=40)
    strong = x + np.random.default_rng(1).normal(0, .1, x.shape).astype('float32')
    model = NMC(lambda_inv=.1, **{**SMALL, 'batch_size': 60}).fit(x, y, X_aug=strong)
    assert 0 < model.results_['stability_threshold'] and {'invariance'} <= model.history_[0].keys()
    np.testing.assert_array_equal(model.trainer_.batches.cached[1], strong)


def test_the_dimension_follows_from_the_spectrum():
    assert participation(torch.tensor([4., 4, 4, 0, 0])) == 3 and participation(torch.tensor([1., 0])) == 1
    spread = np.r_[np.full(6, 10.), np.full(34, .01)].astype('float32')
    x = np.random.default_rng(0).normal(size=(120, 40)).astype('float32') * spread
    model = NMC(**{**SMALL, 'epochs': 1, 'dbscan_min_samples': 2}).fit(x)
    assert model.embedding_.shape[1] in (5, 6) and recipe('array', (40,))['encoder'] == 'features'


# --- bad input


X = np.random.default_rng(0).normal(size=(30, 2)).astype('float32')


@pytest.mark.parametrize('options, data, message', [
    (dict(tau_percentile=101), X, 'tau_percentile=101.0 is too large; expected at most 100'),
    (dict(tau_percentile=-1), X, 'expected at least 0'),
    (dict(dbscan_min_samples=31), X, 'n_samples=30 < dbscan_min_samples=31'),
    (dict(noise_low=2.), X, 'noise_low=2.0 > noise_high=0.2'),
    (dict(retract='sphere'), X, 'retract=sphere needs embeddings on the sphere; set normalise=true'),
    (dict(encoder='features'), np.zeros((20, 1, 8, 8), np.uint8), 'encoder=features takes an array'),
    (dict(encoder='resnet18'), X, "encoder='resnet18'; expected torchvision:"),
    (dict(encoder='coding_rate'), np.zeros((20, 1, 8, 8), np.uint8), 'is trained by nbs/train_nmc.ipynb'),
    (dict(encoder='run:nowhere'), X, 'nowhere is not a run folder'),
    (dict(batch_size=31), X, 'batch_size=31 > n_samples=30'),
    (dict(projection='pca', embedding_dim=3), X, 'embedding_dim=3 > 2, the number of features'),
    (dict(), np.where(X > 1, np.nan, X), 'NaN|not finite'),
    (dict(), np.ones((30, 2), 'float32'), 'all embeddings are the same')])
def test_bad_input_is_told_in_one_line(options, data, message, tmp_path):
    with pytest.raises(InputError, match=message) as e:
        NMC(**{'batch_size': 10, 'epochs': 1, 'device': 'cpu', 'run_dir': str(tmp_path / 'run'), **options}).fit(data)
    assert '\n' not in str(e.value)


def test_views_out_of_step():
    with pytest.raises(InputError, match=r'views out of step: X has shape \(30, 2\), X_aug \(29, 2\)'):
        NMC().fit(X, X_aug=X[:29])


def test_an_encoder_for_other_images(encoder):
    with pytest.raises(InputError, match='takes images of 1 x 8 x 8; these are 3 x 8 x 8'):
        NMC(encoder=f'run:{encoder}').fit(np.zeros((20, 3, 8, 8), np.uint8))


def test_no_cluster_at_all_is_seen():
    with pytest.warns(UserWarning, match='DBSCAN found no cluster.*k-means'):
        model = NMC(dbscan_eps=1e-6, batch_size=10, epochs=1, device='cpu').fit(X)
    assert model.fallback_ and len(model.labels_) == 30


def test_one_mode_is_seen():
    with pytest.warns(UserWarning, match='all samples climb to one mode'):
        model = NMC(dbscan_eps=100., batch_size=10, epochs=1, device='cpu').fit(X)
    assert model.n_clusters_ == 1 and set(model.labels_.tolist()) == {0} and len(model.diagram_) == 1
    assert np.isinf(model.diagram_.deaths).all()


def test_thresholds_before_a_fit():
    with pytest.raises(InputError, match='is not fitted'): NMC().tau_ = 1.
    with pytest.raises(AttributeError): NMC().tau_
