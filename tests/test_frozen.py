"""Every method on the features of a frozen encoder: from its name, and from features that were made before."""
import numpy as np
import pytest
import torch

from nmc_workbench.augment.presets import preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.evaluation.feature_heads import TemiLoss, temi, turtle
from nmc_workbench.evaluation.features import extract
from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.methods.base import open_run
from nmc_workbench.metrics import accuracy
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.training.embed import Features

METHODS = dict(NMCE=dict(stages='representation', clusters='kmeans'), SeLa={}, DeepCluster={}, AND=dict(rounds=1),
               NMC={})
KINDS = dict(NMCE=NMCE, SeLa=SeLa, DeepCluster=DeepCluster, AND=AND, NMC=NMC)
FEW = dict(recipe='frozen', epochs=2, batch_size=50, device='cpu')


def options(name): return FEW | METHODS[name] | ({} if name == 'NMC' else dict(n_clusters=3))


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=150)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "A small network with weights drawn from a seed, as TorchScript."
    torch.manual_seed(0)
    net = backbone('smallconv')[0].eval()
    path = tmp_path_factory.mktemp('encoder') / 'small.pt'
    torch.jit.trace(net, torch.zeros(1, 1, 8, 8)).save(path)
    return path


@pytest.fixture(scope='module', params=KINDS)
def fitted(request, digits, file, tmp_path_factory):
    "A run of every method on the features of that network, all with one folder of features."
    folder = tmp_path_factory.mktemp(request.param)
    model = KINDS[request.param](encoder=f'file:{file}', input_size=8, run_dir=str(folder / 'run'),
                                 **options(request.param))
    return model.fit(digits), folder


@pytest.fixture(scope='module')
def groups():
    "Three groups far apart, with two views of every sample beside it."
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    plain = 6 * np.eye(12)[labels] + rng.normal(0, .5, (150, 12))
    array = np.stack([plain, *(plain + rng.normal(0, .2, (2, 150, 12)))], 1).astype(np.float32)
    ids = np.array([f'image {i}' for i in range(150)])
    return Features(array, ids, torch.from_numpy(labels), list('abc'), 'groups', 'all', 'none')


def test_an_opened_run_gives_the_same_clusters(fitted, digits):
    "New images pass the encoder, which is built again from its name, and the run knows the images, not the features."
    model, folder = fitted
    opened = open_run(folder / 'run', 'cpu')
    assert np.array_equal(opened.predict(digits), model.labels_)
    assert np.allclose(opened.transform(digits), model.embedding_, atol=1e-5)
    assert opened.config_.fitted_data == digits.fingerprint()
    assert opened.predict_views(digits.subset(torch.arange(4)), 3).shape == (3, 4)
    assert len(extract(opened, digits.subset(torch.arange(4)), n_augmented=2)) == 4


def test_another_encoder_is_refused(fitted, digits, file, tmp_path):
    "A run whose encoder has other weights says so; NMC keeps the weights in its own file."
    model, folder = fitted
    if isinstance(model, NMC): pytest.skip('NMC saves the encoder with the model')
    opened = open_run(folder / 'run', 'cpu')
    torch.manual_seed(1)
    other = torch.jit.trace(backbone('smallconv')[0].eval(), torch.zeros(1, 1, 8, 8))
    before = file.read_bytes()
    try:
        other.save(file)
        with pytest.raises(InputError, match='other weights than at the fit'): opened.predict(digits)
    finally: file.write_bytes(before)


def test_another_fit_has_its_own_encoder(file, digits, tmp_path):
    "An estimator that is fitted again with other parameters forgets the encoder of the first fit."
    torch.manual_seed(1)
    torch.jit.trace(backbone('smallconv')[0].eval(), torch.zeros(1, 1, 8, 8)).save(tmp_path / 'other.pt')
    given = options('SeLa') | dict(input_size=8, encoder=f'file:{tmp_path / "other.pt"}')
    alone = SeLa(**given).fit(digits)
    again = SeLa(**given | dict(encoder=f'file:{file}')).fit(digits).set_params(encoder=given['encoder']).fit(digits)
    assert np.array_equal(alone.embedding_, again.embedding_)


@pytest.mark.parametrize('name', KINDS)
def test_features_that_were_made_before(name, groups):
    "They have ids and labels, new features are points, and three groups far apart are found."
    epochs = dict(epochs=2 if name in ('NMCE', 'AND') else 20)
    few = dict(DeepCluster=dict(n_pseudo_labels=3, pca=False))
    model = KINDS[name](**options(name) | epochs | few.get(name, {})).fit(groups)
    assert np.array_equal(model.predict(groups), model.labels_)
    assert np.array_equal(model.predict(groups.plain), model.labels_)
    assert model.trainer_.batches.images.ids.tolist() == groups.ids.tolist()
    if name != 'NMC': assert model.results_['nmi'] > .9            # its potential takes far more steps than these


@pytest.mark.parametrize('name', KINDS)
def test_an_interrupted_run_ends_as_another(name, groups, tmp_path):
    "Cut after every epoch, on kept features, to the bit."
    whole = KINDS[name](**options(name)).fit(groups)
    again = KINDS[name](**options(name), run_dir=str(tmp_path / 'run'), checkpoint_every=1)
    again.prepare(groups).train(seconds=0)
    again = KINDS[name](**options(name), run_dir=str(tmp_path / 'run'), checkpoint_every=1, resume=True).fit(groups)
    assert np.array_equal(whole.embedding_, again.embedding_) and np.array_equal(whole.labels_, again.labels_)


def test_the_plain_view_and_drawn_ones():
    "The first of the kept views is the plain one; others are drawn for every sample, evenly, from a generator."
    kept = torch.arange(4.).repeat(1000, 1).repeat_interleave(2, 1)          # (B, 1 + 3 views of 2 numbers)
    augment = preset('cached(n=3)')
    drawn = augment(kept, torch.Generator().manual_seed(0))
    assert augment.plain(kept).unique().tolist() == [0.] and drawn.shape == (1000, 2)
    assert drawn.unique().tolist() == [1., 2., 3.] and min(drawn[:, 0].unique(return_counts=True)[1]) > 280
    assert torch.equal(drawn, augment(kept, torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match='takes 4 views side by side'): augment(torch.zeros(2, 6))
    scaled = augment.standardising((torch.tensor([1., 0.]), torch.tensor(2.)))
    assert scaled.plain(kept)[0].tolist() == [-.5, 0.]


def test_an_encoder_that_is_not_known(digits):
    with pytest.raises(InputError, match="did you mean 'torchvision:resnet18'"):
        SeLa(encoder='resnet18', **options('SeLa')).fit(digits)
    with pytest.raises(InputError, match='features already'):
        SeLa(encoder='torchvision:resnet18', **options('SeLa')).fit(np.zeros((60, 5), np.float32))


# --- heads of the field -------------------------------------------------------------------------------------

def test_heads_find_groups_far_apart(groups):
    y = groups.labels.numpy()
    assert accuracy(y, temi(groups.plain, 3, steps=300, n_heads=4)) > .97
    assert accuracy(y, turtle(groups.plain, 3, steps=300)) > .97


@pytest.mark.parametrize('head', [temi, turtle])
def test_heads_repeat_themselves_and_refuse_bad_input(head, groups):
    x = groups.plain[:60]
    assert np.array_equal(head(x, 3, steps=20), head(x, 3, steps=20))
    for bad, words in ((dict(n_clusters=61), '61 > n_samples=60'), (dict(n_clusters=1), 'n_clusters=1')):
        with pytest.raises(InputError, match=words): head(x, **bad)
    with pytest.raises(InputError, match='NaN'): head(np.where(x > 5, np.nan, x), 3)


def test_the_loss_of_temi_against_a_slow_sum():
    "Equation 8 of arXiv 2303.17896, written out per pair and head."
    rng = torch.Generator().manual_seed(0)
    student = [torch.rand(2, 5, 3, generator=rng).softmax(-1) for _ in range(2)]
    teacher = [torch.rand(2, 5, 3, generator=rng).softmax(-1) for _ in range(2)]
    loss = TemiLoss(2, 3, beta=.6, momentum=.9)
    found = loss(student, teacher)
    for h in range(2):
        shares = .9 / 3 + .1 * (teacher[0][h].mean(0) + teacher[1][h].mean(0)) / 2
        total = 0.
        for i in range(5):
            weight = sum((teacher[0][g, i] * teacher[1][g, i]).sum() for g in range(2)) / 2
            pmi = [((student[a][h, i] * teacher[b][h, i]) ** .6 / shares).sum().log() for a, b in ((0, 1), (1, 0))]
            total += weight * sum(pmi) / 2
        assert torch.isclose(found[h], -total / 5, atol=1e-6)
