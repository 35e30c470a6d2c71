"""Arrays that luftmeer's variant of DeepCluster computed, or the library calls it makes, as the files hold them.

The folder can be replaced with NMC_GOLDEN_DEEPCLUSTER: sizes and parameters are read from the files."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nmc_workbench import metrics
from nmc_workbench.cluster import kmeans
from nmc_workbench.lloyd import ENGINES, assign_and_sum, available, lloyd
from nmc_workbench.losses import label_contrast, nt_xent
from nmc_workbench.methods.deep_cluster.config import DeepClusterConfig
from nmc_workbench.methods.deep_cluster.stages import AlternateClustering, uniform_over_clusters
from nmc_workbench.nets.deep_cluster import NETWORKS, DeepClusterNet, Filters, unrectified
from nmc_workbench.projection import pca

GOLDEN = Path(os.environ.get('NMC_GOLDEN_DEEPCLUSTER', Path(__file__).parent / 'golden' / 'deepcluster'))
ON = [name for name in ENGINES if available(name)]


def load(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


def prefixes(name, marker):
    return sorted({k[:-len(marker)] for k in load(name) if k.endswith(marker)})


# ---- PCA and k-means


@pytest.mark.parametrize('engine', ['auto', 'faiss', 'sklearn'])
@pytest.mark.parametrize('whiten', [False, True])
@pytest.mark.parametrize('case', prefixes('pca', '_X'))
def test_pca(case, whiten, engine):
    a, w = load('pca'), f'{case}_{{}}_w{int(whiten)}_{{}}'.format
    x = torch.from_numpy(a[f'{case}_X'])
    z = F.normalize(pca(x, int(a[f'{case}_n_components']), whiten, engine), dim=1)
    for other in ('faiss', 'sklearn'):
        want = torch.from_numpy(a[w(other, 'Z')])
        assert torch.allclose(z * (z * want).sum(0).sign(), want, atol=2e-3)
    exact = pca(x.double(), int(a[f'{case}_n_components']), whiten)
    exact = F.normalize(exact, dim=1)
    assert np.allclose(exact @ exact.T, a[w('ref', 'gram')], atol=1e-6)
    assert np.allclose(z.double() @ z.double().T, a[w('ref', 'gram')], atol=1e-3 if engine == 'faiss' else 2e-4)


@pytest.mark.parametrize('engine', ON + ['auto'])
@pytest.mark.parametrize('seed', range(3))
def test_separated_groups_are_found_by_every_engine(engine, seed):
    a = load('kmeans')
    found = kmeans(a['sep_X'], int(a['sep_k']), engine, seed)
    assert metrics.accuracy(a['sep_true'], found.labels) == 1
    assert found.objective == pytest.approx(float(a['sep_objective']), rel=1e-4)
    assert found.centres.shape == (int(a['sep_k']), a['sep_X'].shape[1])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_rounds_of_lloyd(dtype):
    a = load('kmeans')
    x, start, rounds = (torch.tensor(a[f'lloyd_{k}']) for k in ('X', 'init', 'niter'))
    found = lloyd(x.to(dtype), len(start), rounds=int(rounds), tol=-1, start=start)
    assert np.allclose(found.objectives, a['lloyd_objective_per_iter'], rtol=1e-5)
    assert np.allclose(found.centres, a['lloyd_centroids'], atol=1e-4)
    assert np.array_equal(found.labels, a['lloyd_labels'])
    assert found.objective == pytest.approx(float(a['lloyd_final_objective']), rel=1e-5)


@pytest.mark.parametrize('engine', ON)
def test_engines_from_given_centres(engine):
    a = load('kmeans')
    found = kmeans(a['lloyd_X'], len(a['lloyd_init']), engine, rounds=300, start=a['lloyd_init'])
    assert found.objective == pytest.approx(float(a['lloyd_sklearn_inertia']), rel=2e-3)


# ---- samples, edges, losses, metrics


@pytest.mark.parametrize('case', prefixes('sampler', '_sizes'))
def test_sampler(case):
    a = {k[len(case) + 1:]: v for k, v in load('sampler').items() if k.startswith(case + '_')}
    labels, n, k = torch.from_numpy(a['labels']), int(a['N']), len(a['sizes'])
    drawn = [uniform_over_clusters(labels, n, torch.Generator().manual_seed(s)) for s in range(400)]
    counts = np.stack([labels[d].bincount(minlength=k).numpy() for d in drawn])
    assert (counts.sum(1) == n).all() and (counts >= a['min_count']).all()
    assert (counts <= a['per_cluster_draws']).all()
    assert np.allclose(counts.mean(0), a['mean_counts'], atol=.15 + .02 * a['mean_counts'].max())
    unique = np.stack([[len(set(d[labels[d] == j].tolist())) for j in range(k)] for d in drawn])
    assert np.allclose(unique.mean(0), a['mean_unique'], atol=.15 + .02 * a['mean_unique'].max())
    for j in np.flatnonzero(~a['with_replacement']): assert (unique[:, j] == counts[:, j]).all()


def test_edges():
    a = {k: torch.from_numpy(v) for k, v in load('sobel').items()}
    assert torch.allclose(Filters(1, sobel=True)(a['gray_in']), a['gray_sobel'], atol=1e-5)
    assert torch.allclose(Filters(3, grey=True)(a['rgb_in']), a['rgb_gray'], atol=1e-6)
    assert torch.allclose(Filters(3, grey=True, sobel=True)(a['rgb_in']), a['rgb_gray_sobel'], atol=1e-5)
    assert not list(Filters(3, True, True).parameters())


def leaf(x): return torch.tensor(x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('case, labels', [('cl', None), ('cl_onelabel', 'same'), ('cl_distinct', 'all')])
def test_contrast_of_labels(case, labels):
    a = load('losses')
    z, y = leaf(a['cl_emb']), torch.from_numpy(a['cl_labels'])
    if labels: y = y * 0 if labels == 'same' else torch.arange(len(y))
    loss = label_contrast(z, y)
    loss.backward()
    assert loss.item() == pytest.approx(float(a[f'{case}_loss']), rel=1e-6)
    assert np.allclose(z.grad, a[f'{case}_grad'], rtol=1e-6, atol=1e-12)


def test_contrast_of_views():
    a = load('losses')
    one, two = leaf(a['nt_a']), leaf(a['nt_b'])
    loss = nt_xent(F.normalize(torch.cat([one, two]), dim=1), float(a['nt_temperature']))
    loss.backward()
    assert loss.item() == pytest.approx(float(a['nt_loss']), rel=1e-6)
    assert np.allclose(one.grad, a['nt_grad_a'], rtol=1e-6, atol=1e-12)
    assert np.allclose(two.grad, a['nt_grad_b'], rtol=1e-6, atol=1e-12)
    same = nt_xent(F.normalize(torch.cat([one, one]), dim=1), float(a['nt_temperature']))
    assert same.item() == pytest.approx(float(a['nt_same_loss']), rel=1e-6)


def stage(net, n, **options):
    given = dict(n_clusters=net.head.out_features, contrast='none', loss='cross_entropy', optimizer='sgd', epochs=1,
                 head_optimizer='sgd', lr=.05, schedule='constant', head='new', sampling='images') | options
    return AlternateClustering(net, n, DeepClusterConfig(**given))


@pytest.mark.parametrize('contrast, case', [('labels', 's1'), ('views', 's2')])
def test_strategies(contrast, case):
    a = {k[3:]: v for k, v in load('losses').items() if k.startswith(case + '_')}
    views = [leaf(a[k]) for k in (['feat'] if case == 's1' else ['feat_a', 'feat_b'])]
    net = DeepClusterNet(Filters(1), nn.Identity(), a['W'].shape[1], len(a['W'])).double()
    with torch.no_grad(): net.head.weight.copy_(torch.from_numpy(a['W'])), net.head.bias.copy_(torch.from_numpy(a['b']))
    s = stage(net, len(a['labels']), contrast=contrast)
    s.labels.copy_(torch.from_numpy(a['labels']))
    loss, log = s.step(torch.arange(len(a['labels'])), views)
    loss.backward()
    assert loss.item() == pytest.approx(float(a['total']), rel=1e-6)
    contrast = float(a['contrastive' if case == 's1' else 'ntxent'])
    assert log['contrastive_loss'].item() == pytest.approx(contrast, rel=1e-6)
    grads = ['grad_feat'] if case == 's1' else ['grad_feat_a', 'grad_feat_b']
    for x, k in zip([*views, net.head.weight, net.head.bias], [*grads, 'grad_W', 'grad_b'], strict=True):
        assert np.allclose(x.grad, a[k], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('case', prefixes('metrics', '_true'))
def test_metrics(case):
    a = load('metrics')
    y, labels = a[f'{case}_true'], a[f'{case}_pred']
    assert metrics.accuracy(y, labels) == pytest.approx(float(a[f'{case}_acc']), abs=1e-6)
    assert metrics.nmi(y, labels) == pytest.approx(float(a[f'{case}_nmi']), abs=1e-6)


def test_accuracy_on_pseudo_labels():
    a = load('metrics')
    logits, y = torch.from_numpy(a['pl_logits']), torch.from_numpy(a['pl_target'])
    assert (logits.argmax(1) == y).double().mean().item() == pytest.approx(float(a['pl_accuracy']), abs=1e-6)


# ---- networks and steps


def noise(layer, n, salt):
    "The fill rule of the fixtures, in [-1/2, 1/2)."
    m = 2 ** 32
    h = (np.arange(n, dtype=np.uint64) * 2654435761 + (salt * 7919 + layer * 40503) % m) % m
    for shift, factor in ((16, 2246822519), (13, 3266489917)): h = (h ^ (h >> np.uint64(shift))) * factor % m
    return (h ^ (h >> np.uint64(16))) / m - .5


def in_order(net):
    "The layers with a weight matrix from input to output, in a block its shortcut last."
    blocks = [m for m in net.modules() if hasattr(m, 'downsample')]
    short = {id(c) for b in blocks if b.downsample is not None for c in b.downsample.modules()}
    inside = {id(m): b for b in blocks for m in b.modules() if isinstance(m, nn.Conv2d)}
    done = []
    for m in net.modules():
        if not isinstance(m, (nn.Conv2d, nn.Linear)) or any(m is d for d in done): continue
        block = inside.get(id(m))
        if block is None: done.append(m); continue
        own = [c for c in block.modules() if isinstance(c, nn.Conv2d)]
        done += [c for c in own if id(c) not in short] + [c for c in own if id(c) in short]
    return done


@torch.no_grad()
def fill(net, salt):
    for l, m in enumerate(in_order(net)):
        scale = 2 * 3 ** .5 * (2 / m.weight[0].numel()) ** .5
        m.weight.copy_(torch.from_numpy(noise(l, m.weight.numel(), salt) * scale).view_as(m.weight))
        if m.bias is not None: m.bias.copy_(torch.from_numpy(.1 * noise(1000 + l, m.bias.numel(), salt)))


NETS = dict(FeedForward=('feedforward', {}), AlexNet=('alexnet', {}), VGG16=('vgg16', {}), ResNet18=('resnet18', {}),
            ResNet34=('resnet34', dict(unrectified='group')), ResNet34_lastonly=('resnet34', {}),
            ResNet50_fixed=('resnet50', {}), AlexNet_rgb_gray_sobel=('alexnet', {}))
CHANNELS = dict(VGG16=3, ResNet18=3, ResNet50_fixed=3, AlexNet_rgb_gray_sobel=3)


@pytest.mark.parametrize('case', NETS)
def test_networks(case):
    a, (name, options), channels = load('arch'), NETS[case], CHANNELS.get(case, 1)
    if f'{case}_features' not in a: pytest.skip('not in this file')
    edges = 'sobel' in case or 'ResNet34' in case        # these two had edges, too
    filters = Filters(channels, 'gray' in case, edges)
    net = DeepClusterNet(filters, *NETWORKS[name](filters.channels, 224, **options), 10).eval()
    salt = int(a['salt'])
    fill(net, salt)
    assert np.allclose(noise(0, 6, salt), a['fill_check'])
    x = torch.from_numpy(2 * noise(9999, channels * 224 * 224, salt)).float().view(1, channels, 224, 224)
    with torch.no_grad(): features = net.pooled(x)
    want = torch.from_numpy(a[f'{case}_features'])
    assert torch.allclose(features[0], want, atol=1e-4 * float(want.abs().max()))
    if f'{case}_logits' in a:
        logits = torch.from_numpy(a[f'{case}_logits'])
        assert torch.allclose(net.logits(features)[0], logits, atol=1e-4 * float(logits.abs().max()))
    extra = (4 if 'gray' in case else 0) + (20 if edges else 0)       # filters count as weights there
    if f'{case}_nparams' in a: assert sum(p.numel() for p in net.parameters()) + extra == a[f'{case}_nparams']


STEPS = dict(base_newhead={}, base_kepthead=dict(head='keep', head_in_main=True), s1_newhead=dict(contrast='labels'),
             s2_newhead=dict(contrast='views'),
             base_newhead_adam=dict(optimizer='adam', head_optimizer='adam', lr=.01))


@pytest.mark.parametrize('case', STEPS)
def test_training_steps(case):
    a = load('trainstep')
    k = a[f'{case}_head_weight'].shape[0]
    net = DeepClusterNet(Filters(1), *unrectified('feedforward', 1, a['x'].shape[-1]), k).double()
    fill(net, int(a['salt']))
    s, losses = stage(net, a['x'].shape[1], **STEPS[case]), []
    s.optimisers = s.start()
    for x, two, y in zip(*(torch.from_numpy(a[name]) for name in ('x', 'x_view2', 'y'))):
        s.labels.copy_(y)
        loss, _ = s.step(torch.arange(len(y)), [x, two] if 's2' in case else [x])
        for o in s.optimisers.values(): o.zero_grad()
        loss.backward()
        for o in s.optimisers.values(): o.step()
        losses.append(loss.item())
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert np.allclose(losses, a[f'{case}_losses'], rtol=1e-6)
    assert np.allclose(net.head.weight.detach(), a[f'{case}_head_weight'], rtol=1e-6, atol=1e-10)
    assert np.allclose(net.head.bias.detach(), a[f'{case}_head_bias'], rtol=1e-6, atol=1e-10)
    assert np.allclose([m.weight.norm().item() for m in layers], a[f'{case}_norms'], rtol=1e-6)
    assert np.allclose(layers[0].weight[0].detach(), a[f'{case}_first_row'], rtol=1e-6, atol=1e-10)


def test_classes_are_seen_in_the_order_of_the_images():
    "The variant looks true labels up in another order, so that its accuracy compares unrelated samples."
    y = np.repeat(range(4), 25)
    labels = (y + 1) % 4
    for order in (np.arange(100), np.random.default_rng(0).permutation(100)):
        assert metrics.accuracy(y[order], labels[order]) == 1


def test_one_pass_counts_every_sample_once():
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    found = assign_and_sum(x, x[:9], float(x.square().sum()))
    assert int(found.sizes.sum()) == 1000 and torch.allclose(found.sums.sum(0), x.sum(0), atol=1e-3)
