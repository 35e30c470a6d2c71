"""Sinkhorn's iteration against the original's form of it, and how its cost grows.

    python -m tests.bench.bench_sinkhorn [--data FOLDER]

The logits are those of a small network that SeLa has trained for a round, on CIFAR-10 (`cifar10/train/<class>/*` in
FOLDER) or, without a folder, on 50,000 points of a Gaussian mixture; N = 50,000, K = 128 and 1,000, power 25. The
baseline is the original's iteration in numpy: probabilities in float64 to the power, and two products of matrix and
vector per iteration. Each run has a process of its own. Its memory is the most it held beyond what it held before
the logits were there, in units of the float32 matrix of logits. `OMP_NUM_THREADS` sets the number of threads.
Growth is given in milliseconds of an iteration over all entries, and over those that matter."""
import argparse
import json
import multiprocessing as mp
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nmc_workbench.core.processes import memory_mb
from nmc_workbench.transport import HeadLogits, sinkhorn

POWER, TOL = 25., .1


def points(data, n=50_000):
    "(N, D) float32 to train on, and what they are."
    if data is not None:
        from nmc_workbench.data import load
        x = load('folder', 'train', Path(data) / 'cifar10', size=16).pixels.flatten(1).float()
        return (x - x.mean()) / x.std(), 'CIFAR-10 at 16 x 16'
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(300, 64, generator=g)
    x = centres[torch.randint(300, (n,), generator=g)] + torch.randn(n, 64, generator=g)
    return x, 'a mixture of 300 Gaussians in 64 dimensions'


def logits(x, k):
    "Logits of a network after one round of SeLa: balanced labels of the untrained one, and two epochs on them."
    torch.manual_seed(0)
    net, head = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()), nn.Linear(256, k)
    sgd = torch.optim.SGD([*net.parameters(), *head.parameters()], .05, .9, weight_decay=1e-5)
    def features():
        with torch.no_grad(): return torch.cat([net(c) for c in x.split(5000)])
    y = torch.from_numpy(sinkhorn(HeadLogits(features(), head.weight, head.bias), POWER, TOL, 'logits').labels)
    for _ in range(2):
        for b in torch.randperm(len(x)).split(256):
            sgd.zero_grad()
            nn.functional.cross_entropy(head(net(x[b])), y[b]).backward()
            sgd.step()
    return HeadLogits(features(), head.weight, head.bias)[:].detach().numpy()


def baseline(x):
    "The original's form: labels, iterations, seconds of the loop and of all."
    start = time.perf_counter()
    p = np.exp(x - x.max(1, keepdims=True).astype(float))
    p /= p.sum(1, keepdims=True)
    kernel = p.T
    kernel **= POWER
    (k, n), c = kernel.shape, np.full((kernel.shape[1], 1), 1 / kernel.shape[1])
    loop, error, i = time.perf_counter(), np.inf, 0
    while error > TOL:
        r = (1 / k) / (kernel @ c)
        new = (1 / n) / (r.T @ kernel).T
        if i % 10 == 0: error = np.nansum(np.abs(c / new - 1))
        c, i = new, i + 1
    loop = time.perf_counter() - loop
    kernel *= r
    return kernel.argmax(0), i, loop, time.perf_counter() - start


def ours(x, **options):
    start = time.perf_counter()
    plan = sinkhorn(x, POWER, TOL, 'logits', **options)
    return plan.labels, plan.n_iter, (plan.full_passes, plan.selections), time.perf_counter() - start


def forget(): Path('/proc/self/clear_refs').write_text('5')


def one(which, path, options):
    "Labels, seconds and memory of one run; called in a process of its own."
    warnings.simplefilter('ignore')
    sinkhorn(np.random.default_rng(0).normal(size=(300, 20)), 25, given='logits')        # libraries loaded
    forget()
    before, x = memory_mb(), np.load(path)
    # detail: seconds of the loop, or full passes and selections
    labels, n_iter, detail, seconds = baseline(x) if which == 'baseline' else ours(x, **options)
    used = (memory_mb() - before) / (x.size * 4 / 2 ** 20)
    return dict(labels=labels, n_iter=n_iter, detail=detail, seconds=seconds, memory=used)


def alone(*args):
    with mp.get_context('spawn').Pool(1) as pool: return pool.apply(one, args)


def floor(size, repeats=5):
    "Seconds to read that many bytes once."
    a = np.ones(size // 8)
    def read():
        start = time.perf_counter()
        a.sum()
        return time.perf_counter() - start
    return min(read() for _ in range(repeats))


def compare(x, k, folder):
    path = Path(folder) / f'{k}.npy'
    np.save(path, logits(x, k))
    base = alone('baseline', path, {})
    row = dict(K=k, baseline_s=round(base['seconds'], 2), baseline_iterations=base['n_iter'],
               baseline_ms_an_iteration=round(1000 * base['detail'] / base['n_iter'], 2),
               baseline_memory=round(base['memory'], 2), floor_ms=round(1000 * 2 * floor(len(x) * k * 8), 2))
    for name, options in dict(parity={}, relaxed=dict(relax=1.8), f32=dict(dtype='f32')).items():
        got = alone('ours', path, options)
        full_passes, selections = got['detail']
        figures = dict(s=round(got['seconds'], 2), iterations=got['n_iter'],
                       full_passes=full_passes, selections=selections,
                       times_faster=round(base['seconds'] / got['seconds'], 2),
                       labels_that_differ=int((got['labels'] != base['labels']).sum()),
                       memory=round(got['memory'], 2))
        row |= {f'{name}_{key}': value for key, value in figures.items()}
        print(k, name, row[f'{name}_s'], 's,', row[f'{name}_times_faster'], 'times', flush=True)
    return row


def growth(sizes=(10_000, 50_000, 200_000), ks=(128, 512, 1024)):
    "Milliseconds per iteration, over all entries and over those that matter."
    rows, g = [], np.random.default_rng(0)
    for n in sizes:
        centres = g.normal(size=(300, 16)).astype('f4')
        features = centres[g.integers(0, 300, n)] + g.normal(size=(n, 16)).astype('f4')
        for k in ks:
            x = features @ g.normal(size=(16, k)).astype('f4')
            all_entries, few = an_iteration(x, 3, False), an_iteration(x, 300, True)
            rows.append(dict(n=n, K=k, all_entries_ms=all_entries, those_that_matter_ms=few))
            print(rows[-1], flush=True)
    return rows


def an_iteration(x, n, active):
    "Milliseconds of one of the later iterations, when the set of entries lasts long."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        def seconds(iterations):
            start = time.perf_counter()
            sinkhorn(x, POWER, 1e-12, 'logits', max_iter=iterations, active=active, check_every=10 ** 6)
            return time.perf_counter() - start
        return round(1000 * (seconds(4 * n) - seconds(n)) / (3 * n), 2)


def measure(data=None):
    x, about = points(data)
    with tempfile.TemporaryDirectory() as folder: rows = [compare(x, k, folder) for k in (128, 1000)]
    return dict(trained_on=about, n=len(x), power=POWER, tol=TOL, threads=torch.get_num_threads(),
                rows=rows, growth=growth())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', help='folder with cifar10/')
    print(json.dumps(measure(parser.parse_args().data), indent=1))
