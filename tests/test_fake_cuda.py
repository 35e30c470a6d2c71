"""Every stage and every kernel on fake CUDA tensors: nothing in a step waits for the device or stays on the CPU.

A new stage gets a line in `METHODS` or `EVALUATION`, a new kernel one in `KERNELS`. What waits on
purpose stands in `WAITS` with its reason."""
import importlib
import inspect
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmc_workbench
from nmc_workbench import anchors, cluster, losses, lloyd, metrics, optim, projection, transport
from nmc_workbench.augment import preset, presets
from nmc_workbench.augment.compose import centre_and_spread
from nmc_workbench.core.devices import to_device
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import generator
from nmc_workbench.data import as_images
from nmc_workbench.diagnostics.collapse import assignment_statistics
from nmc_workbench.evaluation.probes import LayerProbes, LinearEvaluation, ProbeNet
from nmc_workbench.evaluation.retrain import LabelTraining
from nmc_workbench.evaluation.rotation import RotationNet, RotationStage
from nmc_workbench.methods import AND, DeepCluster, NMC, NMCE, SeLa
from nmc_workbench.methods.anchor_neighbourhoods.memory import Memory
from nmc_workbench.modes.ascent import ascend
from nmc_workbench.modes.potential import Potential, height_and_score
from nmc_workbench.modes.tree import mode_tree
from nmc_workbench.nets import HeadsNet, backbone, names
from nmc_workbench.nets.deep_cluster import NETWORKS, unrectified
from nmc_workbench.training.batches import Batches
from nmc_workbench.training.stage import Stage
from nmc_workbench.training.trainer import Trainer
from tests import fake_cuda as fake
from tests.fake_cuda import Refused, Wait, fake_cuda

# Where the host waits on purpose: place, reason, and what it reads in this check.
CLUSTERING = 'methods.deep_cluster.stages.AlternateClustering'
ONCE = 'once per call, to refuse bad input in one line'
WAITS = [
    Wait('transport._Dense.__init__', 'once per call: the rows of all ranks are counted', 64),
    Wait('transport._refuse', ONCE),
    Wait('transport._Dense._raise_on_all_ranks', ONCE),
    Wait('transport._Dense._u_from_columns', ONCE),
    Wait('transport._Solver.next', 'a cluster without mass is rescued at once: a number beside a pass over all rows'),
    Wait('transport._solve', 'the errors, every ten iterations: when to stop', (1., 1., 0., 0.)),
    Wait('transport._labelled', 'once per call: the cost'),
    Wait('transport.sinkhorn', 'once per call: labels and potentials are given as arrays'),
    Wait('methods.sela.stages.SelfLabels._update', 'the new labels of a head, which the transport gives as an array'),
    Wait('methods.sela.stages.SelfLabels._log_row', 'the log of an update'),
    Wait('methods.sela.stages.turnover', 'the log of an update'),
    Wait('metrics._pair', 'scores are counted on the host; a row of the log'),
    Wait('methods.nmc.stages.FitPotential._measure', 'once per run, to refuse an embedding without spread', 1.),
    Wait('methods.nmc.stages.FitPotential.before_epoch', 'once per epoch: the unit of the noise becomes a number', 1.),
    Wait('methods.anchor_neighbourhoods.memory.Memory.is_finite', 'once per round, to stop at NaN', 1),
    Wait('anchors._checked', ONCE, 1),
    Wait('anchors._Logits.__init__', 'once per call: the largest and the least logit choose the precision', 1.),
    Wait('projection.fit_pca', ONCE, 1),
    Wait('projection._largest', 'the eigenvectors of a fit'),
    Wait('cluster._rows', ONCE, 1),
    Wait('lloyd.lloyd', 'once per call: the sum of squares', 1.),
    Wait('lloyd._first_centres', 'once per start: the order of the samples, drawn on the host'),
    Wait('lloyd.plus_plus', 'the draw of first centres, from numbers of the host that do not depend on the device'),
    Wait('lloyd.assign_and_sum', 'the objective of a round: when to stop', 1.),
    Wait('lloyd.cluster_sums', 'the sizes of a round: bincount counts its bins'),
    Wait('lloyd.split_empty', 'empty clusters of a round are filled by draws on the host'),
    Wait('lloyd._one', 'once per start: labels and centres are given as arrays'),
    Wait(f'{CLUSTERING}._cluster', 'once per clustering: whether there was one before', 1),
    Wait(f'{CLUSTERING}._clusters', 'once per clustering: features that are not finite, and the labels of k-means', 1),
    Wait(f'{CLUSTERING}._log', 'once per clustering: its log', 1),
    Wait(f'{CLUSTERING}._renew_head', 'once per clustering: rows of the head are matched on the host'),
    Wait(f'{CLUSTERING}._move_rows', 'once per clustering: where the rows of the head go'),
    Wait('methods.deep_cluster.stages.drift', 'once per clustering: its log'),
    Wait('methods.deep_cluster.stages.uniform_over_clusters', 'once per epoch: its samples are drawn on the host'),
    Wait('methods.deep_cluster.stages.soft_reset', 'once per reset: weights drawn on the host'),
    Wait('metrics.as_features', ONCE, 1),
    Wait('metrics._neighbours', 'once per call: classes go to the device, votes come back'),
    Wait('metrics.nearest_subspace_predict', 'a class at a time: its samples, and once the distances', 5),
    Wait('metrics._directions', 'the eigenvectors of a class'),
    Wait('metrics.topk_accuracy', 'once per call: the columns of the largest scores'),
    Wait('modes.ascent._checked_starts', ONCE, 1),
    Wait('modes.ascent._climb', 'rows that have arrived leave the computation', 4),
    Wait('modes.ascent._step', 'rows that have moved leave the tries', 4),
    Wait('modes.ascent.ascend', ONCE, 1),
    Wait('modes.tree._passes', 'once per call: the ends of the ways go to the device, the passes come back'),
]


def image_set():
    return torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def points(n=64, d=6): return torch.randn(n, d, generator=torch.Generator().manual_seed(0)).numpy()


# --- stages


SIZE = dict(device='cuda', batch_size=64)
SMALL = dict(backbone='smallconv', n_clusters=6, **SIZE)
NMCE_3 = dict(recipe='cifar10', hidden_dim=16, n_init=2, epochs=1, cluster_epochs=1, finetune_epochs=1, **SMALL)
NMCE_1 = dict(recipe='spiral', n_clusters=2, epochs=1, **SIZE)
NMC_1 = dict(epochs=2, potential_hidden=16, **SIZE)
SELA = dict(n_heads=2, epochs=2, n_label_updates=2, **SMALL)
DC = dict(n_pseudo_labels=12, epochs=2, **SMALL)
ROUNDS = dict(backbone='smallconv', rounds=2, epochs=1, first_memory='random', **SIZE)
METHODS = {
    'nmce': lambda: NMCE(**NMCE_3).prepare(image_set()),
    'nmce, bf16': lambda: NMCE(**NMCE_3, amp='bf16').prepare(image_set()),
    'nmce, contrast': lambda: NMCE(**{**NMCE_3, 'loss': 'nt_xent', 'optimizer': 'adamw'}).prepare(image_set()),
    'nmce, spiral': lambda: NMCE(**NMCE_1).prepare(points(d=2)),
    'nmc': lambda: NMC(**NMC_1).prepare(points()),
    'nmc, end points': lambda: NMC(**NMC_1, inv_mode='endpoint', lambda_inv=1., dropout=.1).prepare(points()),
    'nmc, directions': lambda: NMC(**NMC_1, inv_mode='gradcos', lambda_inv=1., train_projection=True).prepare(points()),
    'sela': lambda: SeLa(**SELA).prepare(image_set()),
    'sela, one head': lambda: SeLa(**{**SELA, 'n_heads': 1}).prepare(image_set()),
    'deep_cluster': lambda: DeepCluster(**DC).prepare(image_set()),
    'deep_cluster, views': lambda: DeepCluster(**DC, contrast='views', sampling='clusters', head='match').prepare(
        image_set()),
    'deep_cluster, labels': lambda: DeepCluster(**DC, contrast='labels', loss='l1', reset_every=1).prepare(image_set()),
    'and': lambda: AND(**ROUNDS).prepare(image_set()),
    'and, points': lambda: AND(**{**ROUNDS, 'backbone': 'mlp', 'batch_size': 32}, n_neighbours=2, accumulate=2).prepare(
        points()),
}


def probed(kind):
    body, d = backbone('smallconv', 3)
    network = ProbeNet(body, {'': nn.Linear(d, 4)}).to('cuda')
    return trainer_of(kind(network, 1, labels_of(4)))


def labels_of(k, device='cuda'): return (torch.arange(64) % k).to(device)


def trainer_of(stage):
    return Trainer([stage], Batches(as_images(image_set()), preset('sela_cifar'), 64, 1, device='cuda'))


def rotated(labels):
    network = RotationNet(*backbone('smallconv', 3), 4, 0 if labels is None else 1).to('cuda')
    return trainer_of(RotationStage(network, 1, labels))


EVALUATION = {
    'layer probes': lambda: probed(LayerProbes),
    'linear evaluation': lambda: probed(LinearEvaluation),
    'rotation': lambda: rotated(None),
    'rotation, labels': lambda: rotated(labels_of(4)[None]),
    'labels': lambda: trainer_of(LabelTraining(HeadsNet(*backbone('smallconv', 3), 4, 1).to('cuda'), 1,
                                               labels_of(4, 'cpu')[None], .1)),
}


def run_stage(cuda, trainer, stage, waits=WAITS):
    "What an epoch does up to its log, twice: schedules, batches with their views, loss, gradients, optimisers."
    stage.batches, stage.optimisers = trainer.batches.sized(stage.batch_size), stage.start()
    stage.train()
    for epoch in range(min(2, stage.epochs)):
        trainer.next_epoch = epoch
        trainer.tell('on_epoch_start', stage)
        with cuda.no_waiting(waits):
            stage.before_epoch(epoch)
            assert trainer._steps(stage, stage, None)
    for p in filter(lambda p: p.requires_grad, stage.parameters()):
        assert p.device.type == 'cuda' and (p.grad is None or p.grad.device.type == 'cuda')
    stage.optimisers = {}


SEEN, USED, DONE = set(), set(), set()         # stages, places that waited, tests that passed


@pytest.mark.parametrize('name', [*METHODS, *EVALUATION])
def test_no_step_of_a_stage_waits_or_leaves_the_device(name):
    with fake_cuda() as cuda:
        trainer = {**METHODS, **EVALUATION}[name]()
        assert next(trainer.network.parameters()).device.type == 'cuda'
        for stage in trainer.stages:
            run_stage(cuda, trainer, stage)
            SEEN.add(type(stage))
        USED.update(cuda.used), DONE.add(name)


def stages_of_the_library():
    "Every stage that has a step of its own."
    for module in pkgutil.walk_packages(nmc_workbench.__path__, 'nmc_workbench.'):
        if '.methods.' in module.name or '.evaluation.' in module.name: importlib.import_module(module.name)
    found, todo = set(), [Stage]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            if kind.__module__.startswith('nmc_workbench') and not kind.__name__.startswith('_'): found.add(kind)
    return found


# --- kernels


def rows(n=64, d=8, **more): return torch.randn(n, d, device='cuda', **more)


def whole(n, k): return torch.randint(0, k, (n,), device='cuda')


def unit(n=64, d=8): return F.normalize(rows(n, d, requires_grad=True), dim=1)


def learned(loss):
    "The gradient, too."
    loss.backward()
    return loss


def rates(membership, **more):
    R, Rc = losses.coding_rate_reduction(unit(), membership, .5, **more)
    return learned(Rc - R)


def stepped(kind, *shapes, **options):
    "Two steps of an optimiser."
    weights = [nn.Parameter(torch.randn(*s, device='cuda')) for s in shapes]
    optimiser = kind(weights, **options)
    for _ in range(2):
        for w in weights: w.grad = torch.randn_like(w)
        optimiser.step()
    return weights


KERNELS = {
    'sinkhorn, logits': lambda: transport.sinkhorn(rows(64, 6), 12., given='logits'),
    'sinkhorn, single precision': lambda: transport.sinkhorn(rows(64, 6), 12., given='logits', dtype='f32', chunk=96),
    'sinkhorn, probabilities': lambda: transport.sinkhorn(rows(64, 6).softmax(1), 12.),
    'sinkhorn, a head': lambda: transport.sinkhorn(transport.HeadLogits(rows(), rows(6, 8)), 12., given='logits'),
    'anchors': lambda: anchors.discover(rows(100), 10, 3),
    'anchors, one neighbour': lambda: anchors.discover(rows(100), 10, 1),
    'anchors of a batch': lambda: anchors.discover(rows(100), 10, 3).of(whole(32, 100)),
    'entropies': lambda: anchors.entropies(rows(100)),
    'neighbourhood_nll': lambda: learned(losses.neighbourhood_nll(unit(32) @ rows(8, 64), whole(32, 64),
                                                                  whole(64, 64).view(32, 2))),
    'memory_nll': lambda: learned(losses.memory_nll(unit(32), rows(64, 8), whole(32, 64), whole(64, 64).view(32, 2))),
    'lloyd': lambda: lloyd.lloyd(rows(9000), 3, n_init=2, rounds=4),
    'lloyd from centres': lambda: lloyd.lloyd(rows(2000), 6, start=rows(6)),
    'kmeans': lambda: cluster.kmeans(rows(900), 3, n_init=1, rounds=3),
    'a pass of k-means': lambda: lloyd.assign_and_sum(rows(2000), rows(6), 1.),
    'empty clusters': lambda: lloyd.split_empty(rows(6), whole(6, 9), torch.Generator().manual_seed(0)),
    'pca': lambda: projection.pca(rows(), 3, whiten=True),
    'pca of few samples': lambda: projection.pca(rows(8, 64), 3),
    'coding_rate': lambda: learned(losses.coding_rate(unit(), .5)),
    'coding_rate_reduction': lambda: rates(rows(64, 5, requires_grad=True).softmax(1)),
    'coding_rate_reduction of labels': lambda: rates(whole(64, 5), n_clusters=5),
    'gumbel_softmax': lambda: learned(losses.gumbel_softmax(rows(requires_grad=True), .5).square().sum()),
    'view_similarity': lambda: learned(losses.view_similarity(unit(), 2)),
    'average_views': lambda: learned(losses.average_views(unit(), 2, normalise=True).sum()),
    'marginal_entropy': lambda: learned(losses.marginal_entropy(rows(requires_grad=True))),
    'nt_xent': lambda: learned(losses.nt_xent(unit(), .5, decoupled=True)),
    'nt_xent of four views': lambda: learned(losses.nt_xent(unit(), .5, 4, positives='first')),
    'label_contrast': lambda: learned(losses.label_contrast(unit(), whole(64, 5))),
    'heads_cross_entropy': lambda: learned(losses.heads_cross_entropy(rows(64, 5, requires_grad=True)[None],
                                                                      whole(64, 5)[None])),
    'assignment_statistics': lambda: assignment_statistics(rows()),
    'k nearest neighbours': lambda: metrics.knn_votes(rows(), torch.arange(64) % 4, rows(9), k=5),
    'nearest_subspace_predict': lambda: metrics.nearest_subspace_predict(rows(), torch.arange(64) % 4, rows(9), 2),
    'topk_accuracy': lambda: metrics.topk_accuracy(rows(64, 4), torch.arange(64) % 4, k=2),
    'lars': lambda: stepped(optim.Lars, (8, 8), (8,), lr=.1, weight_decay=.1),
    'muon': lambda: stepped(optim.Muon, (8, 4), (8, 4), lr=.1),
    'clipped adamw': lambda: stepped(optim.ClippedAdamW, (8, 8), (8,), lr=.1, clip=1.),
    'unit adam': lambda: stepped(optim.UnitAdam, (8, 8), (8,), lr=.1),
}


def potential(): return Potential(8, 16).to('cuda')


def updated(memory):
    memory.update(F.normalize(rows(32)), whole(32, 64))
    return memory.logits(unit(32))


OF_MODULES = {      # a module that is made before, and what it is asked
    'memory': (lambda: Memory(64, 8).to('cuda'), updated),
    'height_and_score': (potential, lambda net: height_and_score(net, rows())),
    'ascend': (potential, lambda net: ascend(net, rows(), max_steps=2, record=True)),
    'mode_tree': (potential, lambda net: mode_tree(net, points(9, 8), points(9, 1)[:, 0], k=3)),
}


@pytest.mark.parametrize('name', [*KERNELS, *OF_MODULES])
def test_no_kernel_waits_or_leaves_the_device(name):
    with fake_cuda() as cuda:
        make, run = OF_MODULES.get(name, (lambda: None, lambda _: KERNELS[name]()))
        made = make()
        with cuda.no_waiting(WAITS): run(made)
        USED.update(cuda.used), DONE.add(name)


def test_every_stage_of_the_library_has_a_line_here():
    known = {'Representation', 'ClusterHeads', 'FineTune', 'Joint', 'FitPotential', 'SelfLabelling', 'LayerProbes',
             'AlternateClustering', 'AnchorNeighbourhoods', 'LinearEvaluation', 'RotationStage', 'LabelTraining'}
    assert {kind.__name__ for kind in stages_of_the_library()} == known
    if len(DONE) == len(METHODS) + len(EVALUATION) + len(KERNELS) + len(OF_MODULES):    # all were chosen, and ran
        assert {kind.__name__ for kind in SEEN} == known
        assert USED == {w.where for w in WAITS}, 'a place that does not wait stands in WAITS'


@pytest.mark.parametrize('source', ['cpu', 'cuda'])
@pytest.mark.parametrize('name', presets())
def test_no_view_waits_for_the_device(name, source):
    with fake_cuda() as cuda:
        noise, augment = generator(0, device=source), preset(name)
        if augment.points:
            x = rows(8, 6).float()
            augment = augment.standardising(centre_and_spread(torch.randn(9, 6 // 2 if name == 'cached' else 6)))
        else: x = pixels_for(augment)
        with cuda.no_waiting():
            assert augment(x, noise).device.type == 'cuda' == augment.plain(x).device.type


def pixels_for(augment):
    "Images on the device with as many channels as the augmentation takes."
    for channels in (3, 1):
        x = torch.randint(0, 256, (8, channels, 96, 96), dtype=torch.uint8)
        try: augment(x, generator(0))
        except InputError: continue
        return x.to('cuda')


NETS = [n for n in names() if ':' not in n and not any(depth in n for depth in ('34', '101'))]


NETS += [f'deep_cluster {n}' for n in NETWORKS if n[-3:] not in ('t34', '101', '152')]


@pytest.mark.parametrize('name', NETS)
def test_no_backbone_waits_for_the_device(name):
    channels = 1 if 'mnist' in name else 3
    with fake_cuda() as cuda:
        with torch.device('cuda'):      # weights without values are drawn at once
            net, d = unrectified(name.split()[1], channels) if ' ' in name else backbone(name, channels)
        x = torch.randn(4, channels, *[224] * 2 * (name != 'mlp'), device='cuda')
        with cuda.no_waiting():
            out = net(x)
            out.square().mean().backward()
    assert out.shape == (4, d)


# --- the check itself


class Planted(Stage):
    "A stage with a fault in its step, and a buffer that was made on the CPU."
    name = 'planted'

    def __init__(self, network, fault):
        super().__init__(network, 1)
        self.fault, self.plain = fault, torch.ones(4)
        self.register_buffer('stray', torch.ones(4))

    def start(self): return dict(main=torch.optim.SGD(self.learns(self.network), .1))

    def step(self, index, views):
        z = self.network(views[0])
        return self.fault(self, z, index).mean(), {}


class WaitsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2

    @staticmethod
    def backward(ctx, g): return g * g.sum().item()


READ, SHAPE, HOST = 'read on the host', 'depends on values', 'stayed on another'
DOWN, UP = 'to the host', 'from the host'
FAULTS = {
    'item': (lambda s, z, i: z * z.mean().item(), READ),
    'float': (lambda s, z, i: z * float(z.detach().mean()), READ),
    'if': (lambda s, z, i: z if z.mean() > 0 else -z, READ),
    'tolist': (lambda s, z, i: z * z[0].tolist()[0], READ),
    'a number as index': (lambda s, z, i: z[z[:, 0].argmax()], READ),
    'all': (lambda s, z, i: z if torch.isfinite(z).all() else -z, READ),
    'a mask as index': (lambda s, z, i: z[z[:, 0] > 0], SHAPE),
    'nonzero': (lambda s, z, i: z[(z[:, 0] > 0).nonzero()[:, 0]], SHAPE),
    'unique': (lambda s, z, i: z * len(z.argmax(1).unique()), SHAPE),
    'values where a mask is true': (lambda s, z, i: z.detach().clone().index_put_((z > 0,), z.flatten()) + z, 'a mask'),
    'cpu': (lambda s, z, i: z.cpu(), DOWN),
    'numpy': (lambda s, z, i: z * float(z.detach().numpy().mean()), 'array'),
    'a buffer on the CPU': (lambda s, z, i: z * s.stray, HOST),
    'a tensor on the CPU': (lambda s, z, i: z + s.plain, HOST),
    'a copy of the CPU': (lambda s, z, i: z + s.stray.to(z.device), UP),
    'a new tensor of numbers': (lambda s, z, i: z * torch.tensor([1., 2., 3., 4.], device=z.device), UP),
    'an index on the CPU': (lambda s, z, i: z[torch.arange(3)], 'an index lies on the host'),
    'a list as index': (lambda s, z, i: z[[0, 1]], 'an index lies on the host'),
    'cholesky': (lambda s, z, i: torch.linalg.cholesky(z.T @ z), 'succeeded'),
    'backward': (lambda s, z, i: WaitsInBackward.apply(z), READ),
}


def planted(fault):
    return Trainer([Planted(nn.Linear(6, 4).to('cuda'), fault)],
                   Batches(as_images(points()), preset('spiral'), 32, 1, device='cuda'))


@pytest.mark.parametrize('name', FAULTS)
def test_a_planted_fault_is_refused_with_its_line(name):
    fault, words = FAULTS[name]
    with fake_cuda() as cuda:
        trainer = planted(fault)
        with pytest.raises(Refused, match=words) as e: run_stage(cuda, trainer, trainer.stage)
    lines, first = inspect.getsourcelines(WaitsInBackward if name == 'backward' else fault)
    path, line = e.value.where.split(':')
    assert path == 'tests/test_fake_cuda.py' and first <= int(line) < first + len(lines)


@pytest.mark.parametrize('fault', [
    lambda s, z, i: z * s.config_of_the_host.sum().item(),              # a value of the CPU
    lambda s, z, i: z + to_device(s.stray, z.device),                   # a copy that nobody waits for
    lambda s, z, i: z.masked_fill(z > 0, 0.).index_select(0, z[:, 0].argmax()[None]),
    lambda s, z, i: torch.where(z > 0, z, 0.) + torch.full((4,), 2., device=z.device)])
def test_what_waits_for_nothing_passes(fault):
    with fake_cuda() as cuda:
        trainer = planted(fault)
        trainer.stage.config_of_the_host = torch.ones(3)
        run_stage(cuda, trainer, trainer.stage)


@pytest.mark.parametrize('fault', ['item', 'buffer'])
@pytest.mark.parametrize('name', ['nmce', 'nmc', 'sela', 'deep_cluster', 'and'])
def test_a_fault_that_is_planted_in_a_method_is_refused(name, fault):
    "In front of the network's first layer, of the last stage."
    def plant(module, given):
        if fault == 'item': return given if given[0].sum().item() > 0 else given
        return (given[0] * torch.ones(given[0].shape),)
    with fake_cuda() as cuda:
        trainer = METHODS[name]()
        stage = trainer.stages[-1]
        if name != 'nmc': trainer.network.backbone.register_forward_pre_hook(plant)
        else: trainer.network.potential.register_forward_pre_hook(plant)
        with pytest.raises(Refused, match=READ if fault == 'item' else HOST) as e: run_stage(cuda, trainer, stage)
    lines, first = inspect.getsourcelines(test_a_fault_that_is_planted_in_a_method_is_refused)
    assert e.value.where.split(':')[0] == 'tests/test_fake_cuda.py'
    assert first < int(e.value.where.split(':')[1]) < first + 8


def test_an_excuse_holds_for_its_own_place_alone():
    where = f'{__name__.removeprefix("nmc_workbench.")}.excused'
    with fake_cuda() as cuda:
        x = torch.ones(3, device='cuda')
        with cuda.no_waiting([Wait(where, 'a test', (3., 4.))]):
            assert [excused(x) for _ in range(3)] == [3., 4., 3.]
            with pytest.raises(Refused): not_excused(x)
            with pytest.raises(Refused): x.sum().item()
        with cuda.no_waiting(), pytest.raises(Refused): excused(x)
        with pytest.raises(AssertionError, match='nothing was computed'), cuda.no_waiting(): torch.ones(3).sum()
    assert cuda.used == {where} and torch.ones(2).sum() == 2


def excused(x): return x.sum().item()


def not_excused(x): return excused(x) + x.mean().item()


def test_gradients_node_by_node_are_those_of_the_engine():
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5))
    x = torch.randn(6, 3, 8, 8, generator=g, requires_grad=True)
    def penalty(grad):
        z = net(x)
        rate = losses.coding_rate_reduction(F.normalize(z, dim=1), z.softmax(1), .5)
        s, = grad(rate[0] - rate[1], [x], create_graph=False, retain_graph=True)
        p, = grad((z * z.sigmoid()).sum(), [x], create_graph=True)
        return [s, *grad(p.square().sum() + z.mean(), [x, *net.parameters()], allow_unused=True)]
    for a, b in zip(penalty(torch.autograd.grad), penalty(fake.gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
