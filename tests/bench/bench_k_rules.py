"""Every rule for the number of clusters on the same sets: its K beside the true one, NMI, ACC and processor seconds.

Pixels are given by their first 50 principal components, except for digits, whose 64 pixels stay. What numba compiles on
a first call is not counted. Rules whose package is not installed are left out. What has been measured is kept in
runs/bench/k_rules.json, and an interrupted bench continues there."""
import json
import time
import warnings
from pathlib import Path

import numpy as np

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.k_rules import RULES, find_k
from nmc_workbench.metrics import scores
from nmc_workbench.projection import pca

BENCH = Path(__file__).resolve().parents[2] / 'runs/bench'
FIRST = dict(stages='representation', clusters='kmeans')       # this stage has no K


def pixels(images, n=None, components=50):
    "The first components of the pixels, and the classes."
    at = np.arange(len(images)) if n is None else np.random.default_rng(0).permutation(len(images))[:n]
    import torch
    x = images.take(torch.from_numpy(at)).flatten(1).float().numpy() / 255
    return (x if components is None else pca(x, components)), images.labels.numpy()[at]


def embedding(name, images, **options):
    "The embedding of a run of NMCE with seed 0, which is trained if it is not there."
    from nmc_workbench.methods import NMCE
    from nmc_workbench.runs.finished import array_of
    folder = BENCH / f'k_rules_{name}'
    if array_of(folder, 'embeddings') is None:
        NMCE(**options, seed=0, device='cpu', resume=True, run_dir=folder).fit(images)
    return array_of(folder, 'embeddings'), images.labels.numpy()


def sets(digits, mnist, coil20, cifar10):
    "Title of every set -> a function that gives its rows and classes."
    def small(): return load('npz', root=mnist, limit=10_000)
    mnist_run = dict(dataset='npz', limit=10_000, recipe='mnist_small', epochs=10, **FIRST)
    return {
        'digits, pixels': lambda: pixels(digits, components=None),
        'digits, NMCE after its first stage': lambda: embedding('digits', digits, dataset='digits', **FIRST),
        'digits, NMCE, which was told K': lambda: embedding('digits_all', digits, dataset='digits'),
        'COIL-20, pixels': lambda: pixels(load('npz', root=coil20)),
        'MNIST 10,000, NMCE after 10 epochs': lambda: embedding('mnist', small(), **mnist_run),
        'CIFAR-10 5,000, pixels': lambda: pixels(load('folder', root=cifar10), 5000),
        'MNIST 10,000, pixels': lambda: pixels(small())}


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
    for title, make in sets(load('digits'), **given).items():
        mine = rows.setdefault(title, dict(rules={}))
        missing = [r for r in RULES if r not in mine['rules']]
        if not missing: continue
        z, y = make()
        mine |= dict(n=len(z), d=z.shape[1], n_classes=len(np.unique(y)))
        for rule in missing:
            mine['rules'][rule] = one(rule, z, y)
            print(title, rule, mine['rules'][rule], flush=True)
            path.write_text(json.dumps(rows, indent=1) + '\n')
    return dict(rows=rows)
