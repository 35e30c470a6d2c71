"""Every rule for the number of clusters on the same sets: its K beside the true one, NMI, ACC and processor seconds.

Pixels are given by their first 50 principal components, except for digits, whose 64 pixels stay. What numba compiles on
a first call is not counted. Rules whose package is not installed are left out. What has been measured is kept in
runs/bench/k_rules.json, and an interrupted bench continues there."""
import json
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.k_rules import RULES, find_k
from nmc_workbench.metrics import scores
from nmc_workbench.projection import pca

BENCH = Path(__file__).resolve().parents[2] / 'runs/bench'
FIRST = dict(stages='representation', clusters='kmeans')       # this stage has no K


def installed(package):
    "Whether a distribution is there."
    try: return bool(metadata.version(package))
    except metadata.PackageNotFoundError: return False


def pixels(images, n=None, components=50):
    "The first components of the pixels, and the classes."
    at = np.arange(len(images)) if n is None else np.random.default_rng(0).permutation(len(images))[:n]
    x = images.take(torch.from_numpy(at)).flatten(1).float().numpy() / 255
    return (x if components is None else pca(x, components)), images.labels.numpy()[at]


def embedding(name, images, method='NMCE', **options):
    "The embedding of a run of NMCE or AND, which is trained if it is not there."
    from nmc_workbench import methods
    from nmc_workbench.runs.finished import array_of
    folder = BENCH / f'k_rules_{name}'
    if array_of(folder, 'embeddings') is None:
        getattr(methods, method)(**options, device='cpu', resume=True, run_dir=folder).fit(images)
    return array_of(folder, 'embeddings'), images.labels.numpy()


def sets(digits, mnist, coil20, cifar10):
    "Title of every set -> a function that gives its rows and classes."
    def small(): return load('npz', root=mnist, limit=10_000)
    coil20_run = dict(dataset='npz', recipe='coil20_small', **FIRST)
    mnist_run = dict(dataset='npz', limit=10_000, recipe='mnist_small', epochs=10, **FIRST)
    return {
        'digits, pixels': lambda: pixels(digits, components=None),
        'digits, stage 1': lambda: embedding('digits', digits, dataset='digits', **FIRST),
        'seed 1': lambda: embedding('digits1', digits, dataset='digits', seed=1, **FIRST),
        'seed 2': lambda: embedding('digits2', digits, dataset='digits', seed=2, **FIRST),
        'digits, all stages': lambda: embedding('digits_all', digits, dataset='digits'),
        'COIL-20, pixels': lambda: pixels(load('npz', root=coil20)),
        'COIL-20, stage 1': lambda: embedding('coil20', load('npz', root=coil20), **coil20_run),
        'MNIST, stage 1': lambda: embedding('mnist', small(), **mnist_run),
        'MNIST, pixels': lambda: pixels(small()),
        'CIFAR-10, pixels': lambda: pixels(load('folder', root=cifar10), 5000),
        'CIFAR-10, AND': lambda: embedding('and_cifar10', load('folder', root=cifar10, limit=10_000), 'AND',
                                           dataset='folder', limit=10_000, recipe='cifar10_small')}


def one(rule, z, y):
    "A row, or `None` where the rule's package is not there."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: find_k(z[:200], rule)          # compiles what numba compiles
        except InputError as e:
            if 'not installed' in str(e): return None
        start = time.process_time()
        found = find_k(z, rule)
    s = scores(y, found.labels)
    return dict(n_clusters=found.n_clusters, nmi=s['nmi'], acc=s['acc'], covered=found.more['covered'],
                k_range=found.more.get('k_range'), cpu_seconds=time.process_time() - start)


def measure(**given):
    "Every rule on every set."
    path, rows = BENCH / 'k_rules.json', {}
    if path.is_file(): rows = json.loads(path.read_text())
    wanted = sets(load('digits'), **given)
    for title, make in wanted.items():
        mine = rows.setdefault(title, dict(rules={}))
        missing = [r for r in RULES if r not in mine['rules']]
        if not missing: continue
        z, y = make()
        mine |= dict(n=len(z), d=z.shape[1], n_classes=len(np.unique(y)))
        for rule in missing:
            mine['rules'][rule] = one(rule, z, y)
            print(title, rule, mine['rules'][rule], flush=True)
            path.write_text(json.dumps(rows, indent=1) + '\n')
    return dict(rows={title: rows[title] for title in wanted})
