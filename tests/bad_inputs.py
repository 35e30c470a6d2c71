"""A table of functions with good arguments, and what is bad for each kind of argument.

An entry names a function and gives arguments that it takes; each is wrapped in the kind it is of, and `bad_values` says
what that kind must refuse. A plain value is passed on and not varied. The rows of the table are every entry with one of
its arguments replaced by one bad value of its kind."""

import math
from typing import NamedTuple

import numpy as np
import torch


class Kind(NamedTuple):
    "A good value, its kind, and more values that are bad for this argument alone."

    kind: str
    good: object
    also: tuple = ()
    fine: tuple = ()  # names of bad values of the kind that this argument takes


class Entry(NamedTuple):
    name: str
    call: object
    arguments: dict


def kind(name):
    def make(good, *also, fine=()):
        return Kind(name, good, also, fine)

    return make


# finite rows; whole labels; tensors of a training step; counts from 1; whole numbers from 0; any whole number
A, L, T, N, I, Z = map(kind, ('rows', 'labels', 'tensor', 'count', 'index', 'whole'))
# numbers above 0; from 0; any finite; shares in [0, 1]
P, Q, R, U = map(kind, ('positive', 'not negative', 'number', 'share'))
# a name of a few; any text; a path that is read; one that is written; an object of a class; several objects
S, X, W, O, C, M = map(kind, ('name', 'text', 'read', 'write', 'object', 'list'))

LONG, NOTHING = 'a' * 5000, object()  # NOTHING: there is no good value here
NOT_WHOLE = {'2.5': 2.5, 'nan': math.nan, 'inf': math.inf, "'3'": '3', 'True': True, '10**30': 10**30, '[1]': [1],
    'None': None}
NOT_NUMBERS = {'nan': math.nan, 'inf': math.inf, '1e300': 1e300, "'0.1'": '0.1', '[1.]': [1.0, 2.0], 'None': None,
    '1j': 1j}
NOT_PATHS = {'5,000 characters': LONG, 'NUL': 'a\0b', 'empty': '', '3': 3, 'None': None}


def _rows(x):
    "Bad versions of an array of finite rows."
    a = np.array(torch.as_tensor(x).detach())
    with_nan, with_inf = a.astype('f8'), a.astype('f8')
    with_nan.flat[0], with_inf.flat[-1] = math.nan, -math.inf
    return {'empty': a[:0], 'no columns': a[:, :0] if a.ndim > 1 else [], 'one dimension more': a[None],
        'a number': 3.0, 'nan': with_nan, 'inf': with_inf, 'strings': a.astype(str), 'complex': a.astype(complex),
        'objects': np.full(a.shape, {}, object), 'ragged': [[1.0, 2.0], [3.0]], 'text': 'rows', 'None': None}


def _labels(x):
    a = np.array(torch.as_tensor(x))
    with_nan = a.astype('f8')
    with_nan[0] = math.nan
    return {'empty': a[:0], 'one short': a[:-1], 'one long': np.append(a, 0), 'short mask': np.ones(len(a) - 1, bool),
        'two dimensions': a[None, None], 'halves': a + 0.5, 'nan': with_nan, 'strings': np.full(len(a), 'one'),
        'complex': a.astype(complex), 'objects': np.full(len(a), {}, object), 'text': 'labels', 'None': None}


def _tensors(x):
    return {'text': 'z', 'list': [[1.0, 2.0]], 'complex': x.to(torch.complex64), 'empty': x[:0], 'dimensions': x[None,
        None, None], 'None': None,
        ('whole' if x.is_floating_point() else 'float'): x.long() if x.is_floating_point() else x + 0.5}


def bad_values(k, folder):
    "What an argument of a kind must refuse, by name."
    names = {'unknown': 'no such name', 'empty': '', 'number': 3, 'list': ['pca'], 'None': None}
    values = {'rows': lambda: _rows(k.good), 'labels': lambda: _labels(k.good), 'tensor': lambda: _tensors(k.good),
        'count': lambda: {**NOT_WHOLE, '0': 0, '-1': -1}, 'index': lambda: {**NOT_WHOLE, '-1': -1},
        'whole': lambda: NOT_WHOLE, 'positive': lambda: {**NOT_NUMBERS, '0': 0, '-1': -1.0},
        'not negative': lambda: {**NOT_NUMBERS, '-1': -1.0}, 'number': lambda: NOT_NUMBERS,
        'share': lambda: {**NOT_NUMBERS, '-0.1': -0.1, '1.1': 1.1}, 'name': lambda: names, 'text': lambda: {'number': 3,
        'list': ['a'], 'None': None}, 'read': lambda: {**NOT_PATHS, 'missing': str(folder / 'missing/file'),
        'a folder': str(folder)}, 'write': lambda: NOT_PATHS, 'nothing': dict, 'list': lambda: {'number': 3,
        'text': 'abc', 'None': None}, 'object': lambda: {'text': 'object', 'number': 3, 'list': [1],
        'None': None}}[k.kind]()
    values = {n: v for n, v in values.items() if n not in k.fine}
    return values | {f'also {i}': v for i, v in enumerate(k.also)}


def good(arguments):
    return {n: k.good if isinstance(k, Kind) else k for n, k in arguments.items()}


def rows_of(entry, folder):
    "Name, function and arguments of every row of an entry."
    for name, k in entry.arguments.items():
        if not isinstance(k, Kind):
            continue
        for what, value in bad_values(k, folder).items():
            yield f'{entry.name}({name}: {what})', entry.call, good(entry.arguments) | {name: value}


RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 6)).astype('f4')
POINTS[:, 0] += np.repeat([0, 5, 10, 15], 10)
LABELS = np.repeat(np.arange(4), 10)
UNIT = torch.nn.functional.normalize(torch.from_numpy(POINTS))
LOGITS = torch.from_numpy(RNG.normal(size=(40, 4)).astype('f4'))
SOFT = LOGITS.softmax(1)


def losses(c):
    from nmc_workbench import losses as m

    z, eps = T(UNIT), P(0.5)
    yield 'coding_rate', m.coding_rate, dict(z=z, eps=eps)
    yield ('coding_rate_reduction', m.coding_rate_reduction, dict(z=z, membership=T(SOFT, -SOFT, SOFT[:-1],
        fine=('whole',)), eps=eps))
    yield ('coding_rate_reduction of labels', m.coding_rate_reduction, dict(z=UNIT,
        membership=T(torch.from_numpy(LABELS), torch.from_numpy(LABELS)[:-1]), eps=0.5, n_clusters=N(4, 3,
        fine=('None',))))
    yield 'max_coding_rate', m.max_coding_rate, dict(d=N(6), eps=eps)
    yield 'optimal_reduction', m.optimal_reduction, dict(d=N(6), n_clusters=N(3), eps=eps)
    yield ('view_similarity', m.view_similarity, dict(views=T(UNIT, [], [UNIT, UNIT[:3]], fine=('dimensions',)),
        n_views=N(2, 1, 3)))
    yield 'average_views', m.average_views, dict(x=T(UNIT), n_views=N(2, 3))
    yield ('gumbel_softmax', m.gumbel_softmax, dict(logits=T(LOGITS, torch.ones(3)), tau=P(1.0), uniform=T(SOFT,
        SOFT[:-1], fine=('None',))))
    yield 'marginal_entropy', m.marginal_entropy, dict(logits=T(LOGITS))
    yield 'nt_xent', m.nt_xent, dict(z=T(UNIT), temperature=P(0.5), n_views=N(2, 1, 3), positives=S('all'))
    yield ('heads_cross_entropy', m.heads_cross_entropy, dict(logits=T(LOGITS[None]),
        labels=T(torch.from_numpy(LABELS)[None], torch.from_numpy(LABELS)[None, :-1])))
    indices = T(torch.from_numpy(LABELS), torch.full((40,), 4), torch.full((40,), -1))
    yield ('neighbourhood_nll', m.neighbourhood_nll, dict(logits=T(LOGITS), indices=indices,
        neighbours=T(torch.from_numpy(LABELS)[:, None], torch.full((40, 1), 4), fine=('None',))))
    yield ('memory_nll', m.memory_nll, dict(x=T(UNIT, UNIT[:, :5], UNIT[:39]), rows=T(UNIT, UNIT[:, :5]),
        indices=T(torch.from_numpy(LABELS), torch.full((40,), 40), torch.full((40,), -1)), temperature=P(0.1),
        neighbours=T(torch.from_numpy(LABELS)[:, None], torch.full((40, 1), 40), fine=('None',))))


def anchors(c):
    from nmc_workbench import anchors as m
    from nmc_workbench.methods.anchor_neighbourhoods import memory, rates

    rows = T(UNIT, UNIT * 0, UNIT / 0, UNIT[0])
    yield 'anchor_count', m.anchor_count, dict(n=I(40), rate=U(0.25), round=I(1))
    yield 'entropies', m.entropies, dict(memory=rows, temperature=P(0.1))
    yield ('discover', m.discover, dict(memory=rows, n_anchors=I(10, 41), n_neighbours=N(2, 40), temperature=P(0.1)))
    yield 'Anchors.none', m.Anchors.none, dict(n_samples=N(5))
    found = m.discover(UNIT, 10, 2)
    yield 'Anchors.of', found.of, dict(rows=T(torch.from_numpy(LABELS), fine=('empty',)))
    yield 'Anchors.consistency', found.consistency, dict(labels=L(LABELS, fine=('short mask',)))
    yield ('Memory', memory.Memory, dict(n_samples=N(40), dim=N(6), temperature=P(0.1), momentum=U(0.5)))
    kept = memory.Memory(40, 6)
    yield 'Memory.logits', kept.logits, dict(x=T(UNIT, UNIT[:, :5]))
    yield ('Memory.update', kept.update, dict(x=T(UNIT, UNIT[:, :5]), indices=T(torch.arange(40),
        torch.arange(1, 41), torch.arange(39))))
    yield 'Memory.discover', kept.discover, dict(n_anchors=I(10, 41), n_neighbours=N(2, 40))
    yield 'step_rate', rates.step_rate, dict(base=Q(0.1), offset=I(3), step=Z(2), decay=Q(0.1))
    yield 'fixed_rate', rates.fixed_rate, dict(base=Q(0.1))
    yield 'parse_schedule', rates.parse_schedule, dict(text=X('1:0.1', '1:-0.1', 'soon', ''))
    yield 'read_schedule', rates.read_schedule, dict(path=W(NOTHING))
    yield ('rate_policy', rates.rate_policy, dict(name=S('multistep'), base=Q(0.1), schedule=X('1:0.1', 'soon')))


def optim(c):
    from nmc_workbench import optim as m

    def weights():
        return [torch.nn.Parameter(torch.ones(3, 2))]

    params = M(weights(), [], fine=())
    rates = dict(lr=P(0.1), momentum=U(0.9, 1.0), weight_decay=Q(0.0))
    yield 'Lars', m.Lars, dict(params=params, **{**rates, 'lr': Q(0.1)}, trust=P(0.02))
    yield 'Muon', m.Muon, dict(params=params, **rates, steps=N(5))
    yield 'ClippedAdamW', m.ClippedAdamW, dict(params=params, lr=Q(0.1), clip=P(1.0))
    yield 'UnitAdam', m.UnitAdam, dict(params=params, lr=Q(0.1))
    yield 'orthogonalised', m.orthogonalised, dict(m=T(UNIT, torch.ones(3), fine=('dimensions',)), steps=N(5))
    yield 'warmup_cosine', m.warmup_cosine, dict(epoch=I(1, 20), epochs=N(10), base_lr=Q(0.1), warmup=I(2))
    yield 'stepped_rate', m.stepped_rate, dict(epoch=I(1), epochs=N(10), lr=Q(0.1), drops=M((3, 5)), of=N(8))
    yield 'gamma_ramp', m.gamma_ramp, dict(epoch=I(1), total=N(5), warmup=N(3), low=R(0.0), high=R(1.0))


def metrics(c):
    from nmc_workbench import metrics as m

    pair = dict(y=L(LABELS), labels=L(LABELS))
    for f in (m.confusion, m.match_labels, m.accuracy, m.greedy_accuracy, m.purity, m.merge_accuracy, m.nmi, m.ari,
        m.ami, m.scores):
        yield f.__name__, f, pair
    yield 'cluster_sizes', m.cluster_sizes, dict(labels=L(LABELS, fine=('one short', 'one long', 'short mask')))
    yield ('match_labels with a usual pairing', m.match_labels, dict(y=LABELS, labels=LABELS, usual=L(np.arange(4),
        np.zeros(4, int), fine=('None',))))
    yield 'renumbered', m.renumbered, dict(labels=L(LABELS), reference=L(LABELS), free=I(0))
    train = dict(train_x=A(POINTS), train_y=L(LABELS), test_x=A(POINTS[:9], POINTS[:9, :3]))
    near = dict(k=N(3), temperature=P(0.1, fine=('None',)), n_components=N(2, 7, fine=('None',)), seed=I(0))
    yield 'as_features', m.as_features, dict(x=A(POINTS), y=L(LABELS), name='train')
    yield 'knn_votes', m.knn_votes, train | near
    yield 'knn_predict', m.knn_predict, train | near
    yield 'knn_accuracy', m.knn_accuracy, train | near | dict(test_y=L(LABELS[:9]), top=N(1, 5))
    yield 'check_components', m.check_components, dict(x=A(POINTS), y=L(LABELS), n_components=N(2, 6))
    form = dict(n_components=N(2, 6), form=S('pca'))
    yield 'nearest_subspace_predict', m.nearest_subspace_predict, train | form
    yield 'nearest_subspace_accuracy', m.nearest_subspace_accuracy, train | form | dict(test_y=L(LABELS[:9]))
    yield 'topk_accuracy', m.topk_accuracy, dict(outputs=A(LOGITS), y=L(LABELS, LABELS + 1), k=N(1, 5))


def subspaces(c):
    from nmc_workbench import subspaces as m

    net = dict(gamma=P(10.0, 1.0), tau=P(1.0, 1.5))
    codes = m.elastic_net_codes(POINTS, 10.0).toarray()
    yield ('elastic_net_codes', m.elastic_net_codes, dict(x=A(POINTS), **net, n_nonzero=N(3, fine=('None',)),
        tol=Q(1e-6)))
    yield 'kkt_residual', m.kkt_residual, dict(x=A(POINTS), codes=A(codes, codes[:-1]), **net)
    yield 'affinity', m.affinity, dict(codes=A(codes, codes[:-1]), keep=N(5))
    graph = m.affinity(codes).toarray()
    yield ('spectral_labels', m.spectral_labels, dict(graph=A(graph, graph[:-1], -graph), n_clusters=N(3, 1, 41),
        seed=I(0)))
    yield ('subspace_clustering', m.subspace_clustering, dict(x=A(POINTS), n_clusters=N(3, 1, 41), **net, seed=I(0),
        keep=N(5)))


def persistence(c):
    from nmc_workbench import persistence as m

    tree = m.tomato(POINTS, 5)
    n, tau = len(tree.births), Q(0.1, fine=('inf', '1e300'))
    yield ('merge_tree', m.merge_tree, dict(edges=M(m.knn_edges(POINTS, 5), [[0, 99]], [[0.5, 1]], [[-1, 2]], 'edges'),
        height=A(POINTS[:, 0])))
    yield 'knn_edges', m.knn_edges, dict(x=A(POINTS), k=N(5))
    yield 'knn_density', m.knn_density, dict(x=A(POINTS), k=N(5))
    yield 'tomato', m.tomato, dict(x=A(POINTS), k=N(5), density_k=N(5, fine=('None',)))
    yield 'survivors', m.survivors, dict(tree=C(tree), tau=tau)
    yield ('members', m.members, dict(tree=C(tree), component=L(tree.leaf, fine=('empty', 'one short', 'one long',
        'short mask')), i=I(0, n), tau=tau))
    yield 'persistence_order', m.persistence_order, dict(tree=C(tree))
    yield 'widest_gap', m.widest_gap, dict(tree=C(tree))
    yield ('as_components', m.as_components, dict(tree=C(tree), component=L(tree.leaf, tree.leaf - 9), n=N(40, 39,
        fine=('None',))))
    yield 'MergeTree.n_clusters', tree.n_clusters, dict(tau=tau)
    yield 'MergeTree.tau_of', tree.tau_of, dict(percentile=Q(10.0, 101.0))
    yield 'MergeTree.tau_for', tree.tau_for, dict(n_clusters=N(1, n + 1))
    one = dict(tau=Q(0.1, fine=('None', 'inf', '1e300')))
    yield 'MergeTree.threshold', tree.threshold, one
    yield 'MergeTree.labels', tree.labels, one
    yield 'MergeTree.labels by percentile', tree.labels, dict(percentile=Q(10.0, 101.0, fine=('None',)))
    yield 'MergeTree.labels by number', tree.labels, dict(n_clusters=N(1, n + 1, fine=('None',)))
    yield 'MergeTree.threshold twice', tree.threshold, dict(tau=0.1, percentile=Kind('nothing', None, (3.0,)))


def transport(c):
    from nmc_workbench import transport as m

    text, more = "'0.1'", "'3'"  # numbers as papermill writes them
    options = dict(power=P(3.0, fine=(text,)), tol=P(0.1, fine=(text,)), given=S('prob'), tol_kind=S('sum'),
        check_every=N(10, fine=(more,)), max_iter=N(99, fine=(more,)), dtype=S('f64'), relax=R(1.0, 0.5, 2.0,
        fine=(text,)), chunk=N(5, fine=('None', more)), device=S('cpu', fine=('None', 'empty')))
    yield 'sinkhorn', m.sinkhorn, dict(prob=A(SOFT.numpy(), -SOFT, LOGITS), **options)
    few = {k: v for k, v in options.items() if k not in ('given', 'chunk')}
    yield ('sinkhorn_features', m.sinkhorn_features, dict(features=A(POINTS), weight=A(POINTS[:4], POINTS[:4, :3]),
        block=N(9, fine=('None',)), **few))
    yield 'sinkhorn of logits', m.sinkhorn, dict(prob=A(LOGITS), given='logits', power=P(3.0, fine=(text,)))
    any_value = ('nan', 'inf')
    yield ('HeadLogits', m.HeadLogits, dict(features=A(POINTS, POINTS[:, :3], fine=any_value), weight=A(POINTS[:4],
        fine=any_value), bias=A(POINTS[:4, 0], fine=('None', *any_value))))


def cluster(c):
    from nmc_workbench import cluster as m

    k = N(3, 41)
    yield ('kmeans_labels', m.kmeans_labels, dict(x=A(POINTS, fine=('one dimension more',)), n_clusters=k, seed=I(0),
        n_init=N(1)))
    yield 'NearestPoint', m.NearestPoint, dict(points=A(POINTS), labels=L(LABELS))
    yield ('NearestPoint.predict', m.NearestPoint(POINTS, LABELS).predict, dict(z=A(POINTS, POINTS[:, :2],
        fine=('empty',))))
    yield 'find_clusters', m.find_clusters, dict(z=A(POINTS), n_clusters=N(3, 1, 41), how=S('kmeans'), seed=I(0))
    yield ('find_clusters by ensc', m.find_clusters, dict(z=POINTS, n_clusters=3, how='ensc', gamma=P(10.0, 1.0),
        tau=P(1.0, 1.5), keep=N(5)))
    yield 'centre_distances', m.centre_distances, dict(embedding=A(POINTS), labels=L(LABELS))
    own, other = POINTS[:, 0] ** 2, POINTS[:, 1] ** 2
    own, other = A(own, own[:-1], -own, fine=('inf', 'empty')), A(other, -other, fine=('inf', 'empty'))
    yield 'separation', m.separation, dict(own=own, other=other)
    yield 'confidence', m.confidence, dict(own=own, other=other, labels=L(LABELS))


def projection(c):
    from nmc_workbench import projection as m

    yield 'map2d', m.map2d, dict(z=A(POINTS), method=S('pca'), seed=I(0), progress=C(None, fine=('None',)))
    yield 'map_method', m.map_method, dict(method=S('umap'), n=N(9))


def core(c):
    from nmc_workbench.core import checks, config, devices, files, labels, progress, seeds

    yield 'as_numbers', checks.as_numbers, dict(x=A(POINTS, fine=('nan', 'inf')), what='x')
    yield 'as_finite', checks.as_finite, dict(x=A(POINTS), what='x')
    yield 'as_integers', checks.as_integers, dict(x=L(LABELS), what='labels', n=40)
    yield 'named', config.named, dict(text=X('coil(distortion=.2)', 'a(', 'a(b)'), what='preset')
    yield 'pick_device', devices.pick_device, dict(name=S('cpu'))
    yield 'seed_of', seeds.seed_of, dict(seed=Z(0))
    yield 'generator', seeds.generator, dict(seed=Z(0), device=S('cpu'))
    yield 'initialised', seeds.initialised, dict(build=C(lambda: 3), seed=I(0))
    yield ('clusters_in', labels.clusters_in, dict(labels=L(LABELS, fine=('empty', 'one short', 'one long',
        'short mask'))))
    yield 'cluster_name', labels.cluster_name, dict(k=Z(3), size=I(5, fine=('None',)))
    yield 'progress', progress.progress, dict(total=I(3), text=X('steps'), initial=I(0))
    yield ('write_json', files.write_json, dict(path=O(c.out), value=C({}, {'a': {1}}, {'a': object()}, fine=('text',
        'number', 'list', 'None'))))
    yield ('write_array', files.write_array, dict(path=O(c.out), array=C(POINTS, np.array([{}]), [[1], [1, 2]],
        fine=('text', 'number', 'list'))))
    yield 'write_torch', files.write_torch, dict(path=O(c.out), value={})
    yield ('write_file', lambda path, mode='wb': files.write_file(path, mode).__enter__(), dict(path=O(c.out),
        mode=S('wb')))
    yield 'append_bytes', files.append_bytes, dict(path=O(c.out), data=C(b'a'))
    yield 'read_json', files.read_json, dict(path=W(c.json))
    yield 'clear_leftovers', files.clear_leftovers, dict(folder=O(c.tmp))


MODULES = [losses, optim, metrics, subspaces, persistence, transport, anchors, cluster, projection, core]


def data(c):
    from nmc_workbench import data as m
    from nmc_workbench.data import archives, catalog, images, readers

    yield ('pack', m.pack, dict(images=C(c.digits), path=O(c.tmp / 'packs'), size=N(8, 2 ** 16 + 1, fine=('None',))))
    options = dict(limit=N(20, 1798, fine=('None', "'3'")), seed=I(0, fine=("'3'",)))
    yield 'load', m.load, dict(name=S('digits'), split=S('train'), **options)
    yield ('load spiral', m.load, dict(name='spiral', n=N(50, 1, fine=("'3'",)), noise=Q(0.1, fine=("'0.1'",)),
        fresh=S(False)))
    for name in ('folder', 'npz', 'imagenet_folder', 'coil20', 'tiny_imagenet', 'mnist', 'gtsrb', 'cifar10', 'svhn',
        'usps'):
        yield f'load {name}', m.load, dict(name=name, root=W(NOTHING), download=False)
    yield ('load folder', m.load, dict(name='folder', root=c.pictures, size=N(8, fine=('None', "'3'")), channels=N(3, 2,
        fine=('None', "'3'"))))
    yield 'double_spiral', catalog.double_spiral, dict(n=N(50), noise=Q(0.1), rng=C(torch.Generator()))
    digits = c.digits
    yield ('as_images', readers.as_images, dict(x=A(POINTS, POINTS[:, :0], fine=()), y=L(LABELS, LABELS - 9,
        LABELS + 0.5, fine=('strings', 'None'))))
    yield ('as_images of images', readers.as_images, dict(x=A(np.zeros((40, 8, 8), 'u1'), np.full((40, 8, 8), 2.0),
        np.full((40, 8, 8), -1), fine=('one dimension more',))))
    yield ('as_images with labels', readers.as_images, dict(x=digits, y=L(digits.labels, digits.labels + 1,
        fine=('None',))))
    yield ('from_arrays', readers.from_arrays, dict(name='mine', split='all', pixels=A(np.zeros((40, 1, 8, 8), 'u1'),
        fine=('no columns', 'nan', 'inf')), labels=L(LABELS, LABELS + 1, fine=('None',)), class_names=list('abcd')))
    yield 'read_npz', m.load, dict(name='npz', root=W(c.npz))
    yield 'list_images', images.list_images, dict(folder=O(c.pictures))
    yield 'walk_images', lambda folder: list(images.walk_images(folder)), dict(folder=O(c.pictures))
    yield 'subfolders', images.subfolders, dict(folder=O(c.pictures))
    yield 'natural', images.natural, dict(text=X('a1'))
    yield 'decode', images.decode, dict(path=W(c.picture), size=N(8, fine=('None',)), channels=N(3, 2))
    yield 'decode_threads', images.decode_threads, dict(n=N(None, fine=('None',)))
    yield 'FilePixels', images.FilePixels, dict(paths=M([c.picture], []), size=N(8, fine=('None',)), channels=N(3, 2))
    yield ('FilePixels.select', images.FilePixels([c.picture], 8).select, dict(index=L(np.array([0]), [5], [-9],
        fine=('empty', 'short mask', 'one short', 'one long'))))
    yield ('class_numbers', images.class_numbers, dict(labels=L(LABELS, fine=('empty', 'one short', 'one long',
        'short mask')), what='y'))
    yield ('check_classes', images.check_classes, dict(labels=L(torch.from_numpy(LABELS), LABELS + 9, fine=('empty',
        'one short', 'one long', 'short mask')), class_names=list('abcd'), what='mine'))
    yield ('Images', images.Images, dict(pixels=A(digits.pixels, 'pixels', digits.pixels[:3], fine=('ragged',)),
        labels=L(digits.labels, digits.labels + 99, fine=('None',)), class_names=digits.class_names, ids=M(digits.ids,
        digits.ids[:3]), name=X('mine'), split=X('all')))
    yield ('Images.subset', digits.subset, dict(index=L(np.arange(9), [99], [-99], np.ones(39, bool), fine=('empty',
        'one short', 'one long', 'short mask', 'objects'))))
    yield 'Images.take', digits.take, dict(index=T(torch.arange(9), torch.tensor([99]), fine=('empty', 'dimensions')))
    yield 'Images.to', digits.to, dict(device=S('cpu', 'cuda:99'))
    yield 'Images.limit', digits.limit, dict(n=N(9, 99), seed=I(0))
    yield ('Images.known', lambda a: digits.known(a), dict(a=A(POINTS, POINTS[:9], fine=('no columns', 'nan', 'inf',
        'strings', 'complex', 'objects'))))
    yield 'join', images.join, dict(parts=M([digits, digits], [], [1]))
    yield ('take_pixels', images.take_pixels, dict(images=C(digits), index=L(np.arange(3), [99], fine=('empty',
        'one short', 'one long', 'short mask', 'two dimensions'))))
    archive = archives.Archive(('http://127.0.0.1:9/x',), c.tmp / 'no file')
    yield 'fetch', archives.fetch, dict(archive=C(archives.Archive((), c.picture), archive))
    yield 'obtain', archives.obtain, dict(wanted=[c.picture], archives=[], download=Kind('nothing', True))
    yield 'sha256_of', archives.sha256_of, dict(path=W(c.picture))


def augment(c):
    import importlib
    from nmc_workbench.augment import compose, operations as m

    presets = importlib.import_module('nmc_workbench.augment.presets')
    size, p = N(8, (8,), (8, 0), (8, 8, 8), fine=()), U(0.5)
    pair = ((0.0, 1.0), (2.0, 1.0), (1.0,), (math.nan, 1.0), 'ab', 3, None, (math.inf, math.inf))
    yield ('ResizedCrop', m.ResizedCrop, dict(size=size, scale=Kind('nothing', (0.1, 1.0), pair), ratio=Kind('nothing',
        (0.5, 2.0), pair), interpolation=S('bilinear')))
    yield 'PadCrop', m.PadCrop, dict(size=size, padding=I(0))
    yield 'CentreCrop', m.CentreCrop, dict(size=N(8, 1.5, -0.5))
    yield 'Resize', m.Resize, dict(size=size, interpolation=S('bilinear'))
    yield 'Flip', m.Flip, dict(p=p)
    yield ('Affine', m.Affine, dict(degrees=Q(5.0), translate=Kind('nothing', (0.1, 0.1), ((-1, 0), (0.1,), 'ab', 3,
        None, (math.nan, 0))), scale=Kind('nothing', (0.5, 1.0), pair), shear=Q(5.0, 90.0, (1, 2, 3), 'ab',
        fine=('[1.]',)), interpolation=S('nearest')))
    yield 'Perspective', m.Perspective, dict(distortion=U(0.5), p=p)
    yield ('ColorJitter', m.ColorJitter, dict(brightness=Q(0.1), contrast=Q(0.1), saturation=Q(0.1), hue=U(0.1, 0.6),
        p=p))
    yield 'Grey', m.Grey, dict(p=p)
    yield 'Solarise', m.Solarise, dict(threshold=Q(128.0, 256), p=p)
    yield 'Blur', m.Blur, dict(kernel=N(3, 2), sigma=Kind('nothing', (0.1, 2.0), pair), p=p)
    yield 'Brightness', m.Brightness, dict(low=Q(0.5, 2.0), high=Q(1.5))
    yield ('Normalise', m.Normalise, dict(mean=Kind('nothing', (0.5,), ((), 3, 'a', None, (math.nan,), (0.5, 0.5))),
        std=Kind('nothing', (0.5,), ((0,), (-1,), 3, 'a', None, (math.nan,)))))
    yield 'PointNoise', m.PointNoise, dict(std=Q(0.1))
    yield ('Augment', compose.Augment, dict(operations=M([m.Flip()], [3], ['Flip'], [m.PointNoise(0.1), m.Flip()],
        fine=()), plain=M([], [m.Flip()], [3])))
    views = compose.Augment([m.Flip()])
    yield ('Augment()', views, dict(pixels=A(c.digits.pixels[:4], POINTS, c.digits.pixels[:4].float(), fine=('empty',)),
        generator=C(torch.Generator().manual_seed(0))))
    yield ('preset', presets.preset, dict(name=S('digits', 'coil(distortion=9)', 'coil(no=1)', 'digits(', LONG),
        size=N(8, fine=('None',))))
    yield ('digits_preset', presets.digits_preset, dict(size=N(8, fine=('None',)), degrees=Q(15.0), shift=U(0.1),
        zoom=Kind('nothing', (0.9, 1.1), pair), shear=Q(5.0), brightness=Kind('nothing', (0.9, 1.1), pair[1:6])))
    yield 'preset coil', presets.preset, dict(name='coil', distortion=U(0.3), jitter=Q(0.8))
    yield ('RandomSource', m.RandomSource, dict(generator=C(torch.Generator(), fine=('None',)),
        device=torch.device('cpu')))


def nets(c):
    from nmc_workbench.nets import backbones, heads, imagenet, layers

    yield ('backbone', backbones.backbone, dict(name=S('smallconv', 'smallconv(width=0)', 'smallconv(no=3)',
        'torchvision:no', 'mlp(', LONG), channels=N(1, fine=('None',))))
    yield 'smallconv', backbones.smallconv, dict(channels=N(1), width=N(4), stride=N(1, 3), stages=N(2, 1, 4))
    yield 'mlp', backbones.mlp, dict(channels=N(2), width=N(4), depth=N(2))
    yield ('ResNet', backbones.ResNet, dict(channels=N(1), kernel=N(3, 2), stride=N(1, 3), widths=M((4, 4, 4, 4), (4,),
        (4, 4, 4, 0), (4, 4, 4, 2.5)), blocks=M((1, 1, 1, 1), (1,), (1, 1, 1, 0))))
    net, x = backbones.smallconv(1, 4), torch.zeros(2, 1, 8, 8)
    common = dict(backbone=C(net), feature_dim=N(16), n_clusters=N(3))
    yield 'SubspaceNet', heads.SubspaceNet, dict(**common, z_dim=N(4), hidden=I(8, fine=('None',)))
    yield 'HeadsNet', heads.HeadsNet, dict(**common, n_heads=I(2))
    both = heads.SubspaceNet(net, 16, 4, 3, 8).eval()
    yield 'SubspaceNet.features', both.features, dict(x=x, kind=S('subspace'))
    yield 'HeadsNet.features', heads.HeadsNet(net, 16, 3, 2).eval().features, dict(x=x, kind=S('cluster'), head=I(0, 2))
    yield ('check_input', heads.check_input, dict(module=C(net), shape=M((2, 1, 8, 8), (2, 3, 8, 8), (2,), (2, 1), (2,
        1, 0, 0), (2, 1, 8, 2.5))))
    yield 'initialise', imagenet.initialise, dict(module=C(torch.nn.Linear(2, 2)))
    yield 'AlexNet', imagenet.AlexNet, dict(channels=N(3), width=S('small'))
    yield 'ResNetV1', imagenet.ResNetV1, dict(channels=N(3), depth=N(18, 19))
    yield 'ResNetV2', imagenet.ResNetV2, dict(channels=N(3), expansion=N(1))
    yield 'fold_batchnorm', layers.fold_batchnorm, dict(module=C(net))
    yield 'frozen', layers.frozen, dict(backbone=C(net), x=T(x, x[:, 0], fine=('whole', 'empty')))
    yield 'layer_names', layers.layer_names, dict(backbone=C(net, torch.nn.ReLU()))
    yield ('conv_outputs', layers.conv_outputs, dict(backbone=C(net), x=T(x, x[:, 0], x.repeat(1, 2, 1, 1),
        fine=('empty',)), layers=M(['0'], ['no'], [3], fine=('None',))))


def modes(c):
    from nmc_workbench.modes import ascent, dbscan, endpoints, potential as m, tree

    net, z = m.Potential(6, 8, 2).eval(), torch.from_numpy(POINTS)
    yield 'Potential', m.Potential, dict(dim=N(6), hidden=N(8), depth=N(2), norm=S('none'), dropout=U(0.1, 1.0))
    yield 'Potential()', net, dict(z=T(z, z[:, :3], fine=('empty',)))
    yield 'score', m.score, dict(potential=C(net), z=T(z, z[:, :3], fine=('empty',)))
    yield 'evaluated', m.evaluated, dict(potential=C(net))
    yield 'Evaluated', m.Evaluated, dict(potential=C(net))
    yield 'height_and_score', m.height_and_score, dict(potential=C(net), z=T(z, z[:, :3]))
    yield 'mean_std', m.mean_std, dict(z=T(z, z[:1]))
    yield ('noise_scales', m.noise_scales, dict(z_std=Q(1.0), n=N(5), generator=C(torch.Generator()), low=P(0.05, 1.0),
        high=P(0.5)))
    sigma, eps = torch.ones(40), torch.randn(40, 6)
    yield ('dsm_loss', m.dsm_loss, dict(potential=C(net), z=T(z), sigma=T(sigma, sigma[:-1]), eps=T(eps, eps[:-1]),
        weight=S('none')))
    yield 'grad_cosine_loss', m.grad_cosine_loss, dict(s=T(z), s_aug=T(z, z[:-1]))
    yield ('endpoint_loss', m.endpoint_loss, dict(potential=C(net), z=T(z), z_aug=T(z, z[:-1]), n_steps=N(2),
        step=P(0.1)))
    yield ('ascend', ascent.ascend, dict(potential=C(net), z=A(z), step=P(0.2), max_steps=I(3), tol=Q(1e-3),
        nudge=Q(0.01), tries=N(2), normalise=S('score'), retract=S('sphere', fine=('None',)), batch_size=N(9,
        fine=('None',))))
    yield 'dbscan', dbscan.dbscan, dict(x=A(POINTS), eps=P(0.5), min_samples=N(3), small=I(2000))
    heights = POINTS[:, 0]
    yield ('deduplicate', endpoints.deduplicate, dict(endpoints=A(POINTS), phi=A(heights, heights[:-1],
        fine=('one dimension more',)), eps=P(9.0), min_samples=N(3), seed=I(0)))
    yield 'assign', endpoints.assign, dict(endpoints=A(POINTS), centres=A(POINTS[:3], POINTS[:3, :2]))
    yield ('mode_tree', tree.mode_tree, dict(potential=C(net), centres=A(POINTS), heights=A(heights, heights[:-1]),
        k=N(3), saddles=S('path'), n_points=N(5, 1)))
    found = tree.mode_tree(net, POINTS, heights, 3)
    yield 'ModeTree.labels', found.labels, dict(tau=Q(0.1, fine=('None', 'inf', '1e300')))


def diagnostics(c):
    from nmc_workbench.diagnostics import checks, collapse, diagnosis, geometry as m

    rows = [dict(stage='a', epoch=i, loss=2.0, R=3.0, Rc=1.0, similarity=0.5, lr=0.1, nmi_last=0.5) for i in range(6)]
    log = dict(rows=M(rows, [3], ['a']))
    for name in ('loss_not_finite', 'no_learning_rate', 'loss_unchanged', 'loss_rising', 'unsettled'):
        yield name, getattr(checks, name), log
    rate = dict(d=N(6), eps=P(0.5))
    yield 'loss_at_ln_k', checks.loss_at_ln_k, log | dict(classes=N(10, 1))
    yield 'rate_at_floor', checks.rate_at_floor, log | rate
    yield 'spread_without_invariance', checks.spread_without_invariance, log | rate
    yield ('no_reduction', checks.no_reduction, log | dict(n_clusters=N(4, fine=('None',)), d=N(6, fine=('None',)),
        eps=P(0.5, fine=('None',))))
    yield 'having', checks.having, log
    yield 'percent', checks.percent, dict(share=R(0.5))
    z = A(POINTS, fine=('nan', 'inf'))
    yield 'collapsed_embedding', checks.collapsed_embedding, dict(z=z, n_clusters=N(4, fine=('None',)))
    yield 'rows_not_finite', checks.rows_not_finite, dict(x=z, name='z')
    yield 'rank_in_log', checks.rank_in_log, log | dict(n_clusters=N(4, fine=('None',)), d=N(6, fine=('None',)))
    shares = A(np.full(4, 0.25))
    yield 'one_cluster', checks.one_cluster, dict(shares=shares, n_samples=N(40))
    yield 'empty_clusters', checks.empty_clusters, dict(shares=shares, n_samples=N(40))
    yield 'undecided', checks.undecided, dict(entropy=Q(1.0, fine=('nan', 'inf', '1e300', '-1')), n_clusters=N(4))
    free = ('one short', 'one long', 'short mask')
    yield 'noise', checks.noise, dict(labels=L(LABELS, fine=free))
    yield 'fragments', checks.fragments, dict(labels=L(LABELS, fine=free))
    yield 'clusters_in_log', checks.clusters_in_log, log | dict(n_clusters=N(4, fine=('None',)))
    yield 'unlike_training', checks.unlike_training, log | dict(shares=shares)
    yield ('check_stage', checks.check_stage, log | dict(first=True, n_clusters=N(4, fine=('None',)), d=N(6,
        fine=('None',)), eps=P(0.5, fine=('None',)), classes=N(4, fine=('None',))))
    yield 'check_labels', checks.check_labels, dict(labels=L(LABELS, fine=free), n_clusters=N(4, 3, fine=('None',)))
    yield 'thinned', collapse.thinned, dict(z=z, n_rows=N(9))
    yield 'spread', collapse.spread, dict(z=z)
    yield 'effective_rank', collapse.effective_rank, dict(z=z)
    yield 'directions', collapse.directions, dict(rate=R(1.0), **rate)
    yield 'as_labels', collapse.as_labels, dict(labels=L(LABELS, fine=free), n_clusters=N(4, 3, fine=('None',)))
    yield ('cluster_shares', collapse.cluster_shares, dict(labels=L(LABELS, fine=free), n_clusters=N(4, 3,
        fine=('None',))))
    yield 'assignment_statistics', collapse.assignment_statistics, dict(logits=T(LOGITS, LOGITS[:, 0]))
    yield ('diagnose', diagnosis.diagnose, dict(rows=M(rows, [3]), embedding=A(POINTS, fine=('None', 'nan', 'inf')),
        labels=L(LABELS, fine=('None',)), logits=A(LOGITS, fine=('None', 'nan', 'inf')), n_clusters=N(4,
        fine=('None',)), eps=P(0.5, fine=('None',)), z_dim=N(6, fine=('None',)), classes=N(4, fine=('None',))))
    yield 'diagnose_run', diagnosis.diagnose_run, dict(folder=W(c.run('nmce')))
    yield 'cluster_spectra', m.cluster_spectra, dict(z=A(POINTS), labels=L(LABELS), threshold=U(0.01))
    yield ('rate_report', m.rate_report, dict(z=A(UNIT), labels=L(LABELS), eps=P(0.5), n_clusters=N(4, 3,
        fine=('None',)), threshold=U(0.01)))
    basis = torch.eye(6)[:, :2].double()
    yield 'principal_angles', m.principal_angles, dict(u=T(basis), v=T(basis, basis[:3]))
    for f in (m.cluster_bases, m.subspace_angles):
        yield f.__name__, f, dict(z=A(POINTS), labels=L(LABELS), n_components=N(2, 7, fine=('None',)))
        yield f'{f.__name__} by energy', f, dict(z=POINTS, labels=LABELS, energy=U(0.9, 0))


def runs(c):
    from nmc_workbench.runs import checkpoints, finished, folder, index, label_history, metrics_log

    run = c.run('nmce')
    yield 'load_checkpoint', checkpoints.load_checkpoint, dict(path=W(run / 'model.pt', c.out))
    layer = torch.nn.Linear(2, 2)
    yield ('load_state', checkpoints.load_state, dict(module=C(layer), state=C(layer.state_dict(), {}, {'weight': 3,
        'bias': 4})))
    yield 'config_of', finished.config_of, dict(folder=W(run))
    yield 'array_of', finished.array_of, dict(folder=O(run), name=X('predictions', LONG))
    yield 'images_of', finished.images_of, dict(config=C(finished.config_of(run)))
    for f in (finished.read_run, finished.FinishedRun.open):
        yield f.__qualname__, f, dict(folder=W(run))
    one = finished.read_run(run)
    yield 'FinishedRun.image', one.image, dict(i=I(3, 999))
    yield 'FinishedRun.map', one.map, dict(method=S('pca'))
    yield ('nearest_in_map', one.nearest_in_map, dict(places=A(one.embedding[:5], fine=('empty', 'nan', 'inf')),
        where=A(one.embedding[:, :2], one.embedding[:, :3])))
    yield 'read_metrics', metrics_log.read_metrics, dict(path=O(run))
    for f in (index.list_runs, index.run_choices, index.newest_run, index.scores_table):
        yield f.__name__, f, dict(root=O(run.parent))
    yield 'newest_of_one_set', index.newest_of_one_set, dict(root=O(run.parent), most=N(3))
    yield 'Run', folder.Run, dict(folder=O(c.tmp / 'run', c.pictures, c.json), config=C({'seed': 0}))
    yield ('read_label_history', label_history.read_label_history, dict(folder=W(c.run('sela')), head=I(0, 5,
        fine=('None',))))
    history = label_history.read_label_history(c.run('sela'), 0)
    yield 'LabelHistory.moved', history.moved, dict(t=I(0, 99))
    yield 'LabelHistory.flows', history.flows, dict(t=I(0, 99))
    yield 'LabelHistory.unsettled', history.unsettled, dict(last=U(0.5, 0), n=N(5))
    yield 'provenance', folder.provenance, dict(device=C(torch.device('cpu')), seed=I(0), data=X('ab'))


def training(c):
    from nmc_workbench.augment.presets import preset
    from nmc_workbench.training import batches, callbacks, precision, stage, timing, trainer

    views = preset('digits')
    one = batches.Batches(c.digits, views, 20)
    yield ('Batches', batches.Batches, dict(images=C(c.digits), augment=C(views), batch_size=N(20, 41), n_views=N(2),
        seed=I(0), device=S('cpu')))
    yield 'Batches.sized', one.sized, dict(batch_size=N(20, 41, fine=('None',)))
    yield 'Batches.plain', lambda batch_size: list(one.plain(batch_size)), dict(batch_size=N(20))
    yield 'Stage', stage.Stage, dict(network=C(torch.nn.Linear(2, 2)), epochs=N(1), seed=I(0))
    yield ('Trainer', trainer.Trainer, dict(stages=M([stage.Stage(torch.nn.Linear(2, 2), 1)], [3]), batches=C(one),
        run=C(None, fine=('None',)), amp=S('off', 'fp16'), checkpoint_every=N(10)))
    made = trainer.Trainer([stage.Stage(torch.nn.Linear(2, 2), 1)], one)
    yield ('Trainer.train', made.train, dict(until=S(NOTHING, fine=('None', 'empty')), seconds=Kind('positive', NOTHING,
        (), ('None', 'inf'))))
    yield 'Precision', precision.Precision, dict(amp=S('off', 'fp16'), device=C(torch.device('cpu')))
    yield 'compiled', lambda module: precision.compiled(module).__enter__(), dict(module=C(torch.nn.Linear(2, 2)))
    yield 'Checkpoints', callbacks.Checkpoints, dict(run=C(None, fine=('None',)), every=N(10))
    yield 'Watch', callbacks.Watch, dict(function=C(print))
    yield 'EveryEpochs', callbacks.EveryEpochs, dict(function=C(print), every=N(1))
    rows = [dict(stage='a', seconds=1.0, seconds_other=1.0, views_per_second=3.0,
        **{f'seconds_{p}': 0.0 for p in timing.PARTS})]
    yield 'time_budget', timing.time_budget, dict(rows=M(rows, [3], ['a']))
    yield 'budget_line', timing.budget_line, dict(budget=C(timing.time_budget(rows)[0], {}))


def _fields(method, x, **given):
    "Every parameter of an estimator, with values that its declaration refuses."
    import typing
    from dataclasses import fields

    hints = typing.get_type_hints(method)
    for f in fields(method.config_class):
        kind, limits = hints[f.name], f.metadata
        kinds = set(typing.get_args(kind) or [kind]) - {type(None)}
        if not kinds & {int, float} or str in kinds:
            bad = [[1], {}, 1j, b'a'] if kinds != {bool} else [3, 'maybe', [1]]
        else:
            bad = [math.nan, math.inf, -math.inf, 'many', [1], 1j, 10**400, *([2.5] if kinds == {int} else [1e300])]
        bad += [] if limits['low'] is None else [limits['low'] - 1]
        bad += [] if limits['above'] is None else [limits['above'], -1.0]
        bad += [] if limits['high'] is None else [limits['high'] + 1]
        bad += [] if limits['below'] is None else [limits['below']]
        bad += [] if limits['choices'] is None else ['no such choice', 77]
        if not type(None) == kind and type(None) not in typing.get_args(kind):
            bad += [None]

        def call(value, name=f.name):
            return method(**{**given, name: value}).prepare(x)

        yield f'{method.__name__} {f.name}', call, dict(value=Kind('nothing', NOTHING, tuple(bad)))


def methods(c):
    from nmc_workbench import methods as m
    from nmc_workbench.methods import base, config
    from nmc_workbench.methods.nmc import mode_clustering, network
    from nmc_workbench.methods.nmce import config as nmce, stages
    from nmc_workbench.methods.sela import config as sela, estimator

    for method in (m.NMCE, m.NMC, m.SeLa):
        yield from _fields(method, c.digits)
    y = np.array(c.digits.labels)
    for method in (m.NMCE, m.NMC, m.SeLa):
        name, model = method.__name__, method(n_clusters=3, batch_size=20)
        arrays = A(np.zeros((40, 8, 8), 'u1'), np.zeros((1, 8, 8), 'u1'), fine=('one dimension more',))
        for hook in ('fit', 'prepare'):
            yield (f'{name}.{hook}', getattr(model, hook), dict(X=Kind('nothing', NOTHING,
                tuple(_rows(arrays.good).values())[3:]), y=None))
        yield (f'{name}.fit(y)', model.prepare, dict(X=c.digits, y=Kind('nothing', NOTHING, (y[:-1], y + 0.5, y * 1j,
            y + 1, []))))
        for hook in ('predict', 'predict_proba', 'transform', 'plain_batches'):
            yield (f'{name}.{hook} before fit', getattr(model, hook), dict(X=Kind('nothing', NOTHING, (c.digits,
                POINTS))))
        yield f'{name}.save before fit', model.save, dict(path=Kind('nothing', NOTHING, (c.out, '', LONG)))
        yield (f'{name}.finish before prepare', lambda _, model=model: model.finish(), dict(_=Kind('nothing', NOTHING,
            (0,))))
        yield (f'{name}.load', method.load, dict(path=W(c.run(name.lower()) / 'model.pt', c.json, c.pictures),
            device=S('cpu')))
        fitted = method.load(c.run(name.lower()), 'cpu')
        good = Kind('nothing', NOTHING, (np.zeros((3, 9, 9), 'u1'), POINTS, np.zeros((0, 8, 8), 'u1'), 'text', None, 3))
        for hook in ('predict', 'transform', 'predict_proba'):
            yield f'{name}.{hook}', getattr(fitted, hook), dict(X=good)
        yield f'{name}.save', fitted.save, dict(path=O(c.out))
        if method is m.NMC:
            for threshold in ('tau_', 'tau_percentile_', 'n_clusters_'):
                yield (f'NMC.{threshold}', lambda value, t=threshold, f=fitted: setattr(f, t, value),
                    dict(value=Kind('nothing', NOTHING, (-1, math.nan, 'many', [1], None,
                    10**30 if 'n_' in threshold else -0.5))))
    folder = W(c.run('nmce'))
    yield 'open_run', base.open_run, dict(folder=folder, device=S('cpu'))
    yield 'method_of', base.method_of, dict(folder=folder)
    yield 'default_run_dir', config.default_run_dir, dict(method=X('NMCE'), config=C(nmce.NMCEConfig()))
    yield 'load_images', config.load_images, dict(config=C(nmce.NMCEConfig(limit=40)))
    yield 'result_parameters', config.result_parameters, dict(config=C(nmce.NMCEConfig()))
    yield ('with_recipe', config.with_recipe, dict(config=C(nmce.NMCEConfig()), recipe=C({'epochs': 3}, {'no such': 3},
        {'epochs': 'many'})))
    for r in (nmce.recipe, sela.recipe):
        yield (f'{r.__module__}.recipe', r, dict(dataset=X('digits'), shape=M((1, 8, 8), (), (1, 2, 3, 4)),
            name=S('digits', fine=('None',))))
    yield 'weight_decay_of', sela.weight_decay_of, dict(wd=Kind('nothing', -5, ('a', [1], math.nan)))
    yield ('learning_rate', sela.learning_rate, dict(epoch=I(1), epochs=N(9), lr=P(0.1), schedule=S('steps'),
        lr_drop=N(150)))
    yield 'label_times', sela.label_times, dict(n=N(9), epochs=N(3), n_updates=N(2), spacing=S('linear'))
    yield ('label_steps', sela.label_steps, dict(n=N(9), epochs=N(3), batch_size=N(2), times=A(np.arange(3.0),
        fine=('empty', 'no columns'))))
    yield 'balanced_labels', sela.balanced_labels, dict(n=N(9), n_clusters=N(3), n_heads=N(2), seed=I(0))
    yield 'head_agreement', estimator.head_agreement, dict(labels=A(np.stack([LABELS, LABELS]), fine=()), at_most=N(99))
    yield 'scheduled', stages.scheduled, dict(schedule=S('cosine'), epoch=I(1), epochs=N(9), warmup=I(0))
    yield 'stage_names', nmce.stage_names, dict(config=C(nmce.NMCEConfig(stages='representation', clusters='kmeans')))
    yield ('stability', mode_clustering.stability, dict(endpoints=A(POINTS), endpoints_aug=A(POINTS, POINTS[:-1]),
        labels=L(LABELS), labels_aug=L(LABELS), eps=P(0.5)))
    yield ('principal_projection', network.principal_projection, dict(features=T(torch.from_numpy(POINTS)), dim=N(2, 7,
        fine=('None',))))
    yield 'participation', network.participation, dict(spectrum=T(torch.ones(3)))


def evaluation(c):
    from nmc_workbench.evaluation import agreement, baselines, features, probes, protocols, retrain, rotation
    from nmc_workbench.methods.base import open_run

    pairs = dict(train_x=A(POINTS), train_y=L(LABELS), test_x=A(POINTS[:9], POINTS[:9, :3]), test_y=L(LABELS[:9]))
    yield 'linear_svm', protocols.linear_svm, pairs | dict(C=P(1.0), seed=I(10))
    yield ('linear_probe', protocols.linear_probe, pairs | dict(epochs=N(1), batch_size=N(9), lr=P(0.1), momentum=U(0.9,
        1.0), weight_decay=Q(0.0), seed=I(0), device=S('cpu')))
    yield 'cluster_scores', protocols.cluster_scores, dict(y=L(LABELS), labels=L(LABELS))
    yield ('kmeans_accuracy', protocols.kmeans_accuracy, dict(x=A(POINTS), y=L(LABELS), n_clusters=N(4, 41,
        fine=('None',)), seed=I(0)))
    yield 'protocol_names', protocols.protocol_names, dict(text=X('knn', '', 'no', ','))
    yield ('evaluate', protocols.evaluate, pairs | dict(protocols=M(('knn',), (), ('no',), (3,)), k=N(3, fine=("'3'",)),
        device=S('cpu')))
    yield 'results_table', protocols.results_table, dict(found=C({'knn': dict(acc=0.5)}, {'knn': 3}))
    model = open_run(c.run('nmce'), 'cpu')
    yield ('extract', features.extract, dict(model=C(model), images=C(c.digits), kind=S('pool', fine=('None',)),
        n_augmented=I(0), seed=I(0), batch_size=N(9)))
    yield ('pixel_batches', lambda **a: list(features.pixel_batches(**a)), dict(images=C(c.digits), batch_size=N(9),
        device=S('cpu')))
    yield 'halves', features.halves, dict(images=C(c.digits, c.digits.limit(1)), seed=I(0))
    yield ('pixel_baseline', baselines.pixel_baseline, dict(images=C(c.digits), n_clusters=N(3, 41), seed=I(0),
        at_most=N(30)))
    yield ('baseline', baselines.baseline, dict(name=S('kmeans'), x=A(POINTS), k=N(3, 41), seed=I(0), at_most=N(30, 14,
        fine=('None',))))
    yield ('umap_baseline', baselines.umap_baseline, dict(images=C(c.digits), n_clusters=N(3, 41), seed=I(0),
        at_most=N(30)))
    yield 'pixel_baselines', baselines.pixel_baselines, dict(images=C(c.digits), n_clusters=N(3, 41), seed=I(0))
    yield 'not_installed', baselines.not_installed, dict(name=S('kmeans'))
    yield ('matched_to', agreement.matched_to, dict(labels=L(LABELS), reference=L(LABELS), following=I(9,
        fine=('None',))))
    yield 'label_agreement', agreement.label_agreement, dict(a=L(LABELS), b=L(LABELS))
    from nmc_workbench.runs.finished import read_run

    run = read_run(c.run('nmce'))
    yield 'short_names', agreement.short_names, dict(runs=M([run, run], [3]))
    yield 'Comparison', agreement.Comparison, dict(runs=M([run, run], [run], [3, 4]), reference=I(0, 2))
    yield 'compare', lambda a, b: agreement.compare(a, b), dict(a=W(c.run('nmce')), b=c.run('sela'))
    yield 'pool_for', probes.pool_for, dict(shape=M((4, 8, 8), (), (4, 0, 8)), volume=N(99))
    yield 'probe', probes.probe, dict(shape=M((4, 8, 8), (), (4, 0, 8)), n_classes=N(3))
    few = dict(model=C(model), train=C(c.digits), test=C(c.digits))
    for f in (probes.layer_probes, probes.linear_evaluation):
        yield f.__name__, f, {n: Kind('nothing', NOTHING, ('text', 3, None)) for n in few}
        for n, bad in dict(epochs=(0, -1, 2.5, '3'), batch_size=(0, -1, 2.5, '3'), lr=(0, -1, math.nan, 'a'),
            n_crops=(0, 3, 'a'), seed=(-1, 2.5, 'a'), device=('no', 3)).items():
            yield f'{f.__name__} {n}', f, {k: v.good for k, v in few.items()} | {n: Kind('nothing', NOTHING, bad)}
    heads = np.stack([LABELS, LABELS])
    yield 'labels_of_heads', retrain.labels_of_heads, dict(labels=A(heads, heads - 9), n=N(40, 39))
    ids = [str(i) for i in range(40)]
    yield ('write_labels', retrain.write_labels, dict(path=O(c.tmp / 'labels.csv'), ids=M(ids, ids[:-1], ['a'] * 40),
        labels=A(heads)))
    yield ('read_labels', retrain.read_labels, dict(path=W(c.tmp / 'labels.csv', c.json), ids=M(ids, ids[:-1],
        ['a'] * 40)))
    base = dict(images=c.digits, labels=LABELS, epochs=1, device='cpu')
    for n, bad in dict(images=('a', 3, None), labels=('a', 3, None, LABELS[:-1], LABELS * 0.5, LABELS - 1),
        backbone=('no', 3, None), epochs=(0, -1, 2.5, '3', None), batch_size=(0, -1, 2.5, 41, None), lr=(0, -1,
        math.nan, 'a'), momentum=(1.0, -1, 'a'), weight_decay=(-1, 'a'), augment=('no', 3), n_clusters=(0, 2.5, 'a', 3),
        seed=(-1, 'a'), device=('no', 3), run_dir=('', LONG), checkpoint_every=(0, 'a')).items():
        yield f'train_on_labels {n}', retrain.train_on_labels, base | {n: Kind('nothing', NOTHING, bad)}
    yield 'rotations', rotation.rotations, dict(x=T(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9), fine=('whole',)))


def plotting(c):
    from nmc_workbench import persistence, transport
    from nmc_workbench.evaluation.agreement import Comparison
    from nmc_workbench.plotting import agreement, canvas, colours, confusion, curves, embedding, galleries
    from nmc_workbench.plotting import geometry, live_curves, merge_tree, persistence as diagram, potential
    from nmc_workbench.plotting import transport as plans
    from nmc_workbench.runs.finished import read_run

    known = ('None',)
    yield 'matched_counts', confusion.matched_counts, dict(y=L(LABELS), labels=L(LABELS))
    yield 'confusion_matrix', confusion.confusion_matrix, dict(y=L(LABELS), labels=L(LABELS))
    free = ('one short', 'one long', 'short mask')
    yield 'sizes', confusion.sizes, dict(labels=L(LABELS, fine=free), n_clusters=N(4, fine=known))
    yield ('embedding_map', embedding.embedding_map, dict(z=A(POINTS), labels=L(LABELS), y=L(LABELS, fine=known),
        method=S('pca'), seed=I(0)))
    yield 'points', embedding.points, dict(x=A(POINTS[:, :2], POINTS), labels=L(LABELS, fine=known), title=X(''))
    yield 'cluster_colours', colours.cluster_colours, dict(n=Z(3))
    yield 'colour_of', colours.colour_of, dict(k=Z(3))
    yield 'class_colours', colours.class_colours, dict(n=Z(3))
    yield 'curve_colours', colours.curve_colours, dict(n=Z(3))
    rows = [dict(stage='a', epoch=i, loss=1.0 / (i + 1)) for i in range(3)]
    panels = M([('loss', ['loss'])], [3])
    yield 'curves', curves.curves, dict(rows=M(rows, [3]), panels=panels, title=X(''))
    yield ('LiveCurves', live_curves.LiveCurves, dict(panels=panels, title=X(''), path=O(c.tmp / 'curves.png',
        fine=('None',)), shown=False))
    images = c.digits
    yield 'gallery', galleries.gallery, dict(images=C(images), labels=L(LABELS), embedding=A(POINTS), n=N(3), most=N(9))
    yield ('nearest_and_farthest', galleries.nearest_and_farthest, dict(embedding=A(POINTS), labels=L(LABELS),
        cluster=Z(0), n=N(3)))
    yield ('cluster_sheet', geometry.cluster_sheet, dict(images=C(images), labels=L(LABELS), per_cluster=N(3),
        columns=N(3), most=N(9)))
    yield 'spectra', geometry.spectra, dict(z=A(POINTS), labels=L(LABELS), max_rank=N(3, fine=known))
    yield ('angle_matrix', geometry.angle_matrix, dict(z=A(POINTS), labels=L(LABELS), which=S('mean'), n_components=N(2,
        fine=known), energy=U(0.9, 0)))
    yield ('rate_bars', geometry.rate_bars, dict(z=A(UNIT), labels=L(LABELS), eps=P(0.5), n_clusters=N(4, fine=known),
        threshold=U(0.01)))
    tree = persistence.tomato(POINTS, 5)
    tau, where, component = Q(0.1, fine=('None', 'inf', '1e300')), A(POINTS[:, :2]), L(tree.leaf, tree.leaf + 99)
    yield 'persistence_picture', diagram.persistence_picture, dict(tree=C(tree), tau=tau)
    yield 'height_range', diagram.height_range, dict(tree=C(tree))
    yield ('merging_picture', merge_tree.merging_picture, dict(tree=C(tree), component=component, where=where,
        tau=Q(0.1, fine=('inf', '1e300'))))
    yield 'steps_picture', merge_tree.steps_picture, dict(tree=C(tree), tau=tau, most=N(9))
    yield 'component_colours', merge_tree.component_colours, dict(tree=C(tree))
    hill = lambda z: -z.square().sum(1)
    yield ('potential_picture', potential.potential_picture, dict(potential=C(hill), points=A(POINTS[:, :2], POINTS),
        labels=L(LABELS, fine=known), modes=A(POINTS[:3, :2], fine=known), side=N(9, 1)))
    yield ('potential_surface', potential.potential_surface, dict(potential=C(hill), points=A(POINTS[:, :2], POINTS),
        labels=L(LABELS, fine=known), side=N(9, 1)))
    plan = transport.sinkhorn(SOFT, 3.0)
    given = dict(prob=A(SOFT.numpy(), SOFT[:-1]), plan=C(plan), power=P(3.0, 99.0), given=S('prob'))
    yield 'plan_matrix', plans.plan_matrix, given
    yield 'plan_picture', plans.plan_picture, given
    yield 'residual_picture', plans.residual_picture, dict(plans=C(plan, {}), tol=P(0.1, fine=known), kind=S('sum'))
    yield 'sizes_picture', plans.sizes_picture, dict(labels=L(LABELS, fine=free), n_clusters=N(4, 3))
    yield 'turnover_picture', plans.turnover_picture, dict(rows=M([dict(moved=0.1, nmi_last=0.5)], [], [3]))
    Q_matrix = A(plans.plan_matrix(SOFT, plan, 3.0))
    yield 'plan_order', plans.plan_order, dict(Q=Q_matrix)
    yield 'mattering', plans.mattering, dict(Q=Q_matrix, least=U(1e-4))
    run = read_run(c.run('nmce'))
    pair = Comparison([run, run])
    for f in (agreement.agreement_picture, agreement.run_palette):
        yield f.__name__, f, dict(comparison=C(pair))
    yield 'maps_of', agreement.maps_of, dict(comparison=C(pair), method=S('pca'))
    yield ('sheet_picture', agreement.sheet_picture, dict(comparison=C(pair), index=L(np.arange(3), [9999], fine=free),
        columns=N(3)))
    yield 'square_tiles', canvas.square_tiles, dict(pixels=T(images.pixels, fine=('dimensions', 'empty')), size=N(16))
    picture = confusion.sizes(LABELS)
    yield 'Picture.save', picture.save, dict(path=O(c.tmp / 'a.png'))
    yield 'Picture.png', picture.png, dict(scale=P(1.0))


def explore(c):
    from nmc_workbench.explore import curation, gallery_order, transport_lab, umap_process
    from nmc_workbench.explore.explorer import Explorer
    from nmc_workbench.explore.label_history_lab import LabelHistoryLab
    from nmc_workbench.explore.persistence_lab import PersistenceLab
    from nmc_workbench.explore.spiral_lab import ToyLab

    ids = [str(i) for i in range(40)]
    own = dict(ids=M(ids, ids[:-1]), labels=L(LABELS), embedding=A(POINTS))
    yield 'Curation', curation.Curation, own | dict(class_labels=L(LABELS, fine=('None',)), seed=I(0, fine=('True',)))
    made = curation.Curation(ids, LABELS, POINTS)
    yield 'Curation.rename', made.rename, dict(cluster=I(0, 99, fine=('True',)), name=X('zero'))
    yield 'Curation.split', made.split, dict(cluster=I(NOTHING, 99), n=N(NOTHING, 1), how=S(NOTHING))
    yield 'Curation.merge', made.merge, dict(clusters=M(NOTHING, [0], [0, 99], ['a', 'b']))
    yield 'Curation.move', made.move, dict(ids=M(NOTHING, ['no such id']), cluster=I(NOTHING))
    yield 'Curation.noise', made.noise, dict(ids=M(NOTHING, ['no such id'], fine=('number',)))
    yield 'Curation.save', made.save, dict(path=O(c.tmp / 'curation.json'))
    yield ('Curation.load', curation.Curation.load, dict(path=W(c.tmp / 'curation.json', c.json), ids=ids,
        labels=LABELS, embedding=POINTS))
    yield 'parts_of', curation.parts_of, dict(x=A(POINTS), n=N(2, 41), how=S('kmeans'), seed=I(0))
    yield 'page_of', gallery_order.page_of, dict(n=I(40), page=Z(1), size=N(9))
    sure = A(POINTS[:, 0], fine=('empty', 'no columns'))
    yield ('in_order', gallery_order.in_order, dict(index=L(np.arange(9), [99], fine=('empty', 'one short', 'one long',
        'short mask')), order=S('prototypes'), own=sure, sure=sure, seed=I(0)))
    yield ('TransportLab', transport_lab.TransportLab, dict(logits=A(LOGITS), where=A(POINTS[:, :2], POINTS,
        fine=('None',)), power=P(9.0)))
    yield 'TransportLab.of_blobs', transport_lab.TransportLab.of_blobs, dict(n=N(30, 1), seed=I(0))
    yield 'as_logits', transport_lab.as_logits, dict(logits=A(LOGITS))
    yield ('powers_picture', transport_lab.powers_picture, dict(logits=A(LOGITS), powers=M((1.0, 5.0), (), (0.0,),
        ('a',))))
    yield ('PersistenceLab.of_points', PersistenceLab.of_points, dict(x=A(POINTS), k=N(5), density_k=N(5,
        fine=('None',)), where=A(POINTS[:, :2], fine=('None',))))
    lab = PersistenceLab.of_points(POINTS, 5, where=POINTS[:, :2])
    yield 'PersistenceLab.tau', lambda tau: setattr(lab, 'tau', tau), dict(tau=Q(0.1, fine=('inf', '1e300')))
    yield 'PersistenceLab.n_clusters', lambda n: setattr(lab, 'n_clusters', n), dict(n=N(NOTHING, 999))
    for kind, run in ((Explorer, 'nmce'), (LabelHistoryLab.of_run, 'sela'), (PersistenceLab.of_run, 'nmc'),
        (transport_lab.TransportLab.of_run, 'sela'), (umap_process.make_map, 'nmce')):
        yield f'{kind.__qualname__} of a run', lambda folder, kind=kind: kind(folder), dict(folder=W(NOTHING))
    yield ('ToyLab', lambda seed=0, every=2, n_steps=1, epochs=1: ToyLab(seed, every, n_steps, epochs), dict(seed=I(0),
        every=N(2), n_steps=N(1), epochs=N(1)))


def reports(c):
    from nmc_workbench.reports import html, summary

    yield 'html_copy', html.html_copy, dict(notebook_path=W(NOTHING, c.json), html_path=Kind('nothing', NOTHING))
    yield 'summary', summary.summary, dict(run_dir=W(NOTHING))


def widgets(c):
    from nmc_workbench.widgets import image_grid, plotly_figure, scatter

    yield (
        'PointMap',
        scatter.PointMap,
        dict(where=A(POINTS[:, :2], POINTS), codes=L(LABELS), palette=M(['#000000'] * 4), title=X(''),
        height=N(300, fine=("'3'",))),
    )
    yield 'Tiles', image_grid.Tiles, dict(images=C(c.digits, fine=('None',)), width=N(30))
    yield 'sprite', image_grid.sprite, dict(pixels=T(c.digits.pixels, fine=('dimensions', 'empty')), columns=N(5))
    yield 'LiveFigure', plotly_figure.live_figure, dict(figure=C(NOTHING))


class Context:
    "Runs, images and files that entries use."

    def __init__(self, folder, run):
        from nmc_workbench.core.files import write_json
        from nmc_workbench.data import load
        from PIL import Image

        self.tmp, self.out, self.run = folder / 'work', folder / 'out.json', run
        self.pictures, self.picture = folder / 'pictures', folder / 'pictures/a/1.png'
        self.picture.parent.mkdir(parents=True)
        self.tmp.mkdir()
        for name in 'ab':
            (folder / f'pictures/{name}').mkdir(exist_ok=True)
            for i in '12':
                Image.fromarray(np.full((8, 8, 3), 200, 'u1')).save(folder / f'pictures/{name}/{i}.png')
        self.write_json = write_json
        self.folder = folder
        self.npz = folder / 'data.npz'
        np.savez(self.npz, x=np.zeros((6, 8, 8), 'u1') + 99)
        self.digits = load('digits', limit=40)


    @property
    def json(self):
        "A file that is whole, whatever an earlier row made of it."
        self.write_json(self.folder / 'in.json', {})
        return self.folder / 'in.json'


MODULES += [data, augment, nets, modes, diagnostics, runs, training, methods, evaluation, plotting, explore, reports,
    widgets]
