"""DeepCluster: what a run leaves, how it goes on, what it starts from, and what it refuses."""
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from nmc_workbench import lloyd
from nmc_workbench.augment.presets import preset
from nmc_workbench.cluster import kmeans, kmeans_labels
from nmc_workbench.core.errors import InputError, TrainingError
from nmc_workbench.core.ranks import ShardedRows
from nmc_workbench.core.seeds import seed_of
from nmc_workbench.data import as_images, load
from nmc_workbench.methods import NMCE, DeepCluster, DeepClusterConfig, SeLa
from nmc_workbench.methods.base import open_run
from nmc_workbench.methods.deep_cluster.stages import METRICS, Preprocessing, matched_rows
from nmc_workbench.metrics import accuracy
from nmc_workbench.projection import fit_pca, pca, umap_rows
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.finished import read_run
from nmc_workbench.runs.label_history import read_label_history
from nmc_workbench.runs.metrics_log import read_metrics
from tests import killed
from tests.bench.bench_deep_cluster import FAMILIES, NETWORKS, architecture
from tests.ranks import member, still, together

QUICK = dict(dataset='digits', epochs=2, n_pseudo_labels=20, batch_size=100, device='cpu')
ENGINES = [e for e in lloyd.ENGINES if lloyd.available(e)]


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.fixture(scope='module')
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run') / 'run'
    return DeepCluster(**QUICK, run_dir=folder).fit(digits)


# ---- a run


def test_a_run_leaves_what_other_pages_open(finished, digits):
    run, opened = read_run(finished.run_.folder), open_run(finished.run_.folder, 'cpu')
    assert np.array_equal(opened.predict(digits), finished.labels_) and finished.n_clusters_ == 10
    assert np.array_equal(opened.transform(digits), finished.embedding_)
    assert np.array_equal(opened.pseudo_labels_, finished.pseudo_labels_)
    assert set(finished.pseudo_labels_) <= set(range(20)) and run.results['n_pseudo_labels'] == 20
    assert run.results['pseudo_nmi'] > .3 and len(read_metrics(run.folder)) == 2
    with pytest.raises(InputError, match='without probabilities'): opened.predict_proba(digits)


def test_a_row_has_the_clustering_before_its_epoch(finished):
    first, second = finished.history_
    assert first['moved'] == first['drift'] == 1 and 'nmi_last' not in first
    assert 0 < second['moved'] < 1 and 0 < second['nmi_last'] < 1 and 0 < second['drift'] < 1
    assert {'loss', 'accuracy', 'true_accuracy', 'nmi_true_pred', 'features_time', 'pca_time', 'cluster_time',
            'largest_share', 'n_used', 'objective'} <= first.keys()


def test_accuracy_is_that_of_the_clusters_in_any_order(digits):
    order = np.argsort(digits.labels.numpy(), kind='stable')
    for images in (digits, digits.subset(torch.from_numpy(order))):
        model = DeepCluster(**QUICK | dict(n_pseudo_labels=10, epochs=1)).fit(images)
        direct = accuracy(images.labels.numpy(), model.pseudo_labels_)
        assert model.history_[0]['true_accuracy'] == pytest.approx(direct)


def test_the_seed_decides_everything(finished, digits):
    again = DeepCluster(**QUICK).fit(digits)
    assert np.array_equal(again.embedding_, finished.embedding_) and np.array_equal(again.labels_, finished.labels_)
    other = DeepCluster(**QUICK, seed=1).fit(digits)
    assert not np.array_equal(other.embedding_, finished.embedding_)


def test_without_labels_nothing_is_scored(digits):
    images = as_images(digits.pixels)
    model = DeepCluster(**QUICK | dict(epochs=1), n_clusters=5).fit(images)
    assert 'acc' not in model.results_ and 'nmi_true_pred' not in model.history_[0]


def test_the_history_has_the_labels_of_every_clustering(finished):
    history = read_label_history(finished.run_.folder)
    assert history.labels.shape == (2, 300) and np.array_equal(history.labels[-1], finished.pseudo_labels_)


# ---- options


OPTIONS = [dict(head='new'), dict(head='keep'), dict(head='keep', head_in_main=True), dict(sampling='images'),
           dict(restart_clustering=False), dict(cluster_every=2, epochs=3), dict(pca=False),
           dict(pca=False, unit_rows=False), dict(whiten=False), dict(contrast='labels'), dict(contrast='views'),
           dict(optimizer='adam', head_optimizer='adam'),
           dict(loss='l1'), dict(loss='l2'), dict(loss='mse'), dict(schedule='constant'), dict(reset_every=1),
           dict(contrast='views', view_rotation=10, view_jitter=True, view_autocontrast=True, view_equalize=True),
           dict(contrast='views', view_resize=10, view_crop=8, view_flip=True, view_vertical_flip=True),
           dict(contrast='views', view_flip=True, backbone='feedforward', augment='deepcluster(size=12, data="mnist")'),
           dict(sobel=True), dict(backbone='feedforward'), dict(n_pseudo_labels=None),
           dict(restart_head_optimizer=True),
           *[dict(engine=e) for e in ENGINES], dict(pca_engine='faiss'), dict(pca_engine='sklearn'), dict(verbose=True)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_every_option_trains(options, digits):
    model = DeepCluster(**QUICK | options).fit(digits)
    assert model.labels_.shape == (300,) and np.isfinite(model.embedding_).all()
    assert all(np.isfinite(r['loss']) for r in model.history_)


def test_filters_are_not_trained(digits):
    model = DeepCluster(**QUICK | dict(epochs=1, sobel=True))
    before = model.prepare(digits).network.filters.sobel.clone()
    model.trainer_.train()
    assert model.network_.filters.sobel.equal(before)
    assert not any('filters' in name for name, _ in model.network_.named_parameters())


@pytest.mark.parametrize('head, moves', [('new', True), ('keep', True)])
def test_the_head_learns(head, moves, digits):
    model = DeepCluster(**QUICK | dict(epochs=1, head=head))
    trainer = model.prepare(digits)
    before = model.network_.head.weight.detach().clone()
    trainer.train()
    assert (not model.network_.head.weight.equal(before)) == moves
    main, = (g['params'] for g in trainer.stages[0].start()['main'].param_groups)
    assert not any(p is model.network_.head.weight for p in main)


def test_a_matched_head_follows_its_clusters():
    before, swap = np.repeat(range(4), 10), np.array([2, 0, 3, 1])
    after = swap[before]
    rows = matched_rows(before, after, 4)
    assert (rows[after] == before).all()


def test_views_and_batches_of_the_plain_pass_have_one_scale():
    "The variant's training pass normalises twice; here both passes give the same statistics."
    x = (torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255).byte()
    augment = preset("deepcluster(data='mnist')", 28)
    views, plain = augment(x, torch.Generator().manual_seed(0)), augment.plain(x)
    assert abs(float(views.mean() - plain.mean())) < .05 and views.min() >= plain.min() - 1e-5


def test_a_collapsed_network_is_no_error(digits):
    x = torch.zeros(60, 12)
    c = DeepClusterConfig(pca=True, pca_dim=4, whiten=True, unit_rows=True, pca_engine='auto')
    z = Preprocessing.fit(x, c)(x)
    assert z.equal(torch.zeros(60, 4)) and kmeans(z, 3).labels.shape == (60,)
    black = as_images(np.zeros((80, 1, 8, 8), 'u1'), np.arange(80) % 3)
    model = DeepCluster(**QUICK | dict(epochs=1, batch_size=40)).fit(black)
    assert len(set(model.labels_)) >= 1 and model.history_[0]['largest_share'] > .5


# ---- starting from other weights


@pytest.mark.parametrize('kind', [NMCE, SeLa, DeepCluster], ids=lambda k: k.__name__)
def test_training_starts_from_a_run_of_any_method(kind, digits, tmp_path):
    more = dict(NMCE=dict(cluster_epochs=1, finetune_epochs=1), SeLa=dict(n_label_updates=1)).get(kind.__name__, {})
    kind(dataset='digits', epochs=1, batch_size=100, device='cpu', run_dir=tmp_path / 'run', **more).fit(digits)
    model = DeepCluster(**QUICK, start_from=f'run:{tmp_path}/run')
    model.prepare(digits)
    there = load_checkpoint(tmp_path / 'run/model.pt')['weights']
    own = {f'backbone.{k}': v for k, v in model.network_.backbone.state_dict().items()}
    assert all(v.equal(there[k]) for k, v in own.items())


def test_a_file_with_the_state_of_a_backbone(digits, tmp_path):
    torch.save(DeepCluster(**QUICK, seed=5)._build(DeepCluster(**QUICK, seed=5).config(digits), (1, 8, 8))
               .backbone.state_dict(), tmp_path / 'backbone.pt')
    model = DeepCluster(**QUICK, start_from=tmp_path / 'backbone.pt')
    model.prepare(digits)
    saved = torch.load(tmp_path / 'backbone.pt')
    assert all(v.equal(saved[k]) for k, v in model.network_.backbone.state_dict().items())


# ---- killed and resumed, several ranks


RESUMED = dict(
    torch=dict(engine='torch'), sklearn=dict(engine='sklearn'), matched=dict(head='match', restart_clustering=False),
    rarely=dict(cluster_every=3), reset=dict(reset_every=2, head='new', optimizer='adam'))


@pytest.mark.slow
@pytest.mark.parametrize('case', RESUMED)
def test_killed_and_resumed_ends_with_the_same_bits(case, tmp_path):
    longer = {**QUICK, 'epochs': 6, 'checkpoint_every': 2, **RESUMED[case]}
    def csv(name): return dict(metrics_file=str(tmp_path / f'{name}.csv'))
    folders = killed.whole_and_parts('DeepCluster', longer, tmp_path, 4, csv)
    whole, parts = (load_checkpoint(f / 'model.pt') for f in folders)
    assert all(v.equal(parts['weights'][k]) for k, v in whole['weights'].items())
    assert whole['more']['pseudo_labels'].equal(parts['more']['pseudo_labels'])
    assert whole['more']['centres'].equal(parts['more']['centres'])
    losses = [[r['loss'] for r in read_metrics(f)] for f in folders]
    assert losses[0] == losses[1]
    epochs = [[line.split(',')[0] for line in (tmp_path / f'{n}.csv').read_text().splitlines()[2:]]
              for n in ('whole', 'parts')]
    assert epochs[0] == epochs[1] == [str(e) for e in range(6)]


def learned():
    "Losses and labels."
    model = DeepCluster(n_clusters=5, n_pseudo_labels=8, epochs=4, batch_size=20, backbone='mlp(width=32)', lr=.01,
                        augment='spiral(noise=0)', engine='torch', sampling='images', device='cpu')
    model.prepare(still()).train()
    return dict(losses=[r['loss'] for r in model.trainer_.history], labels=model.trainer_.stages[0].labels)


def on_rank(rank, port, out):
    with member(rank, port): torch.save(learned(), f'{out}/rank{rank}.pt')


@pytest.mark.slow
def test_two_ranks_find_the_labels_of_one(tmp_path):
    one, two = learned(), together(on_rank, tmp_path)
    for other in two:
        assert one['labels'].equal(other['labels'])
        np.testing.assert_allclose(one['losses'], other['losses'], rtol=1e-5)


# ---- every network


@pytest.mark.slow
@pytest.mark.parametrize('backbone, family', zip(NETWORKS, itertools.cycle(FAMILIES)))
def test_every_network_trains_and_goes_on(backbone, family):
    found = architecture(backbone, family, 16, batch_size=8)
    assert found['finite'] and found['resumed']


@pytest.mark.parametrize('family', FAMILIES)
def test_a_network_trains_on_every_family(family):
    found = architecture('resnet18', family, 16, batch_size=8)
    assert found['finite'] and found['resumed']


def test_clusters_that_follow_neighbours(digits, tmp_path):
    "They are those of UMAP and k-means on the embedding; a saved model gives them again, also to new samples."
    model = DeepCluster(**QUICK, clusters='umap_kmeans', run_dir=tmp_path / 'run').fit(digits)
    seed = seed_of(model.config_.seed, 'kmeans', 'final') % 2 ** 32
    wanted = kmeans_labels(umap_rows(model.embedding_, seed), model.config_.n_clusters, seed)
    assert (model.labels_ == wanted).all() and len(set(model.labels_)) == model.config_.n_clusters
    opened = open_run(tmp_path / 'run', 'cpu')
    assert (opened.predict(digits) == model.predict(digits)).all()
    assert (np.load(tmp_path / 'run' / 'predictions.npy') == wanted).all()
    assert (model.predict(digits) == wanted).mean() > .99
    state = model._extra_state()
    for change, says in ((dict(clusters=None), 'with labels of points'), (dict(n_clusters=3), 'point_labels')):
        opened.config_ = replace(model.config_, **change)
        with pytest.raises(InputError, match=says): opened._set_extra_state(state)
    opened.config_ = model.config_
    with pytest.raises(InputError, match='14 samples; UMAP needs 15'):
        few = QUICK | dict(n_pseudo_labels=10, batch_size=7, clusters='umap_kmeans')
        DeepCluster(**few).prepare(load('digits', limit=14))
    del state['point_labels']
    with pytest.raises(InputError, match='without labels of points'): opened._set_extra_state(state)


def test_features_too_large_to_be_squared_say_so(digits):
    stage = DeepCluster(**QUICK).prepare(digits).stages[0]
    features = ShardedRows(torch.full((300, 64), 1e30))
    with pytest.raises(TrainingError, match='too large to be squared; choose a smaller lr'):
        stage._clusters(features, None, 0)


# ---- the variant's file


def test_the_csv_has_the_variants_columns(digits, tmp_path):
    file = tmp_path / 'new' / 'metrics.csv'
    DeepCluster(**QUICK, metrics_file=file).fit(digits)
    comment, header, *rows = file.read_text().splitlines()
    assert comment.startswith('# deepcluster_digits') and header.split(',') == list(METRICS) and len(rows) == 2
    with pytest.raises(InputError, match='metrics file of another run'):
        DeepCluster(**QUICK, metrics_file=file, seed=2, run_dir=tmp_path / 'run').fit(digits)
    assert not (tmp_path / 'run').exists() and file.read_text().splitlines()[0] == comment
    DeepCluster(**QUICK | dict(epochs=1), metrics_dir=tmp_path / 'more').fit(digits)
    assert len(list((tmp_path / 'more').glob('*.csv'))) == 1


# ---- what is refused


BAD = [
    (dict(n_clusters=400), 'n_clusters=400 > n_samples=300'),
    (dict(n_pseudo_labels=301), 'n_pseudo_labels=301 > n_samples=300'),
    (dict(pca_dim=65), r'pca_dim=65 > 64; the network gives 64 features of 300 samples'),
    (dict(backbone='alexnet'), '223'),
    (dict(backbone='vgg16'), '8 x 8 pixels; vgg16 takes 32 per side or more'),
    (dict(backbone='resnet19'), 'resnet19'),
    (dict(engine='cuml'), 'engine'),
    (dict(head='fresh'), 'new'),
    (dict(start_from='nowhere'), 'nowhere'),
    (dict(input_channels=3), 'input_channels=3; images of 1 channels'),
    (dict(lr=0), 'lr=0'),
    (dict(reset_keep=2), 'reset_keep=2'),
    (dict(loss='hinge'), 'cross_entropy')]


@pytest.mark.parametrize('options, message', BAD, ids=str)
def test_bad_input_is_one_line_before_a_folder_is_made(options, message, digits, tmp_path):
    with pytest.raises(InputError, match=message) as e:
        DeepCluster(**QUICK | options, run_dir=tmp_path / 'run').fit(digits)
    assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_edges_of_colours_are_refused(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    with pytest.raises(InputError, match='sobel=true on images of 3 channels.*grayscale'):
        DeepCluster(n_clusters=3, sobel=True, device='cpu', run_dir=tmp_path / 'run').fit(x)
    small = dict(n_clusters=3, epochs=1, batch_size=20, n_pseudo_labels=4, device='cpu')
    assert DeepCluster(**small, sobel=True, grayscale=True).fit(x).labels_.shape == (40,)


def test_an_engine_that_is_not_installed_names_its_package(digits, monkeypatch, tmp_path):
    monkeypatch.setattr('nmc_workbench.cluster.available', lambda engine: engine != 'faiss')
    with pytest.raises(InputError, match='engine=faiss is not installed; pip install faiss-cpu'):
        DeepCluster(**QUICK, engine='faiss', run_dir=tmp_path / 'run').fit(digits)
    assert not (tmp_path / 'run').exists()


def test_both_strategies_are_refused():
    with pytest.raises(InputError, match='name the same parameter'):
        DeepClusterConfig.from_names(dict(contrastive_strategy_1=True, contrastive_strategy_2=True))


# ---- engines


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_engines_agree_on_separated_groups(engine, dtype):
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(12, 5))
    x = (centres[np.arange(600) % 12] + rng.normal(size=(600, 5))).astype(dtype)
    one, two = (kmeans(x, 12, e, seed=3) for e in ('torch', engine))
    assert accuracy(one.labels, two.labels) == 1 and one.objective == pytest.approx(two.objective, rel=1e-4)


def test_large_sets_start_from_parts_and_are_no_worse():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30_000, 16, generator=g) + 3 * torch.randn(50, 16, generator=g)[torch.arange(30_000) % 50]
    quick, whole = kmeans(x, 64, 'torch'), kmeans(x, 64, 'torch', start=x[:64], rounds=40)
    assert quick.objective < 1.01 * whole.objective


def test_no_cluster_stays_empty():
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    start = torch.cat([x[:5], torch.full((3, 3), 50.)])         # three centres that no sample is near
    assert (np.bincount(kmeans(x, 8, 'torch', start=start).labels, minlength=8) > 0).all()


@pytest.mark.parametrize('bad, message', [
    (dict(n_clusters=20), 'n_clusters=20 > n_samples=10'), (dict(engine='magic'), 'engine of k-means'),
    (dict(x=np.full((10, 2), np.nan)), 'NaN|finite')])
def test_bad_input_of_kmeans(bad, message):
    with pytest.raises(InputError, match=message): kmeans(**dict(x=np.random.rand(10, 2), n_clusters=3) | bad)


def test_pca_cuts_what_is_too_much_and_says_so():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r'n_components=9 > min\(n, d\) = 6'): assert pca(x, 9).shape == (20, 6)
    wide = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    found = fit_pca(wide, 4)
    assert torch.allclose(found.directions.T @ found.directions, torch.eye(4, dtype=torch.float64), atol=1e-6)


# ---- the doctor


def test_the_doctor_reads_its_curves(finished):
    from nmc_workbench.diagnostics.checks import committed
    from nmc_workbench.diagnostics.diagnosis import diagnose_run
    assert 'one_cluster' not in [f.sign for f in diagnose_run(finished.run_.folder).findings]
    early = [dict(stage='deep_cluster', epoch=e, drift=.1, moved=.3 if e < 3 else .002) for e in range(12)]
    late = [r | dict(moved=.3 if r['epoch'] < 9 else .002) for r in early]
    assert committed(early).sign == 'committed' and committed(late) is None
