"""Modes and their merge tree from the end points of many climbs, and how long a change of the threshold takes.

    python -m tests.bench.bench_modes [sizes ...]

`OMP_NUM_THREADS` sets the number of threads. End points are in 128 dimensions, with eps 0.5 and min_samples 5, in
six forms: on 10 modes of unit norm with a scatter that leaves all pairs of a mode within eps / 2 (`collapsed`),
between eps / 2 and eps (`scattered`), or about eps (`loose`); on 300 modes with a tenth of noise (`many_modes`); in
one cloud where a point has some 35 neighbours at 100,000 (`thin`, the slowest); and with nothing near anything
(`spread`, where k-means stands in).

Each case runs in a process of its own. Measured are the seconds of `deduplicate`, also those of the processor
alone, and of `merge_tree` on the nearest-neighbour graph of the centres; the most memory the process held, and what
it held before. `relabel` is the time of new labels for 10,000 samples on some hundred modes, threshold by
threshold."""
import json
import multiprocessing as mp
import os
import platform
import resource
import statistics
import sys
import time
import warnings

import numpy as np

from nmc_workbench.modes.endpoints import assign, deduplicate
from nmc_workbench.persistence import knn_edges, merge_tree

DIM, EPS, MIN_SAMPLES = 128, .5, 5
# number of modes, scatter of a coordinate (pairs of one mode are 16 times as far apart), share of noise
FORMS = dict(collapsed=(10, .01, 0), scattered=(10, .025, 0), loose=(10, .031, 0),
             many_modes=(300, .01, .1), thin=(1, .0395, 0), spread=(1, .2, 0))


def end_points(form, n, seed=0):
    modes, scatter, noise = FORMS[form]
    g = np.random.default_rng(seed)
    tops = g.normal(size=(modes, DIM))
    tops /= np.linalg.norm(tops, axis=1, keepdims=True)
    x = tops[g.integers(0, modes, n)] + scatter * g.normal(size=(n, DIM))
    k = int(noise * n)
    x[:k] = .2 * g.normal(size=(k, DIM))
    return g.permutation(x).astype('f4'), g.normal(size=n).astype('f4')


def memory():
    "The most memory this process has held, in MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(form, n):
    warnings.simplefilter('ignore')
    x, phi = end_points(form, n)
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    modes = deduplicate(x, phi, EPS, MIN_SAMPLES)
    middle, cpu = time.perf_counter(), time.process_time() - cpu
    tree = merge_tree(knn_edges(modes.centres, 10), modes.heights)
    tree_s = time.perf_counter() - middle
    return dict(modes=len(modes), noise=int((modes.members < 0).sum()), fallback=modes.fallback,
                components=len(tree.births), deduplicate_s=round(middle - start, 2), deduplicate_cpu_s=round(cpu, 2),
                tree_s=round(tree_s, 3), memory_mb=round(memory()), memory_before_mb=round(before))


def relabel(n=10_000, n_modes=300, n_taus=50, repeats=5):
    "Milliseconds from a threshold to the labels of all samples."
    g = np.random.default_rng(0)
    centres = g.normal(size=(n_modes, 8))
    tree = merge_tree(knn_edges(centres, 5), g.normal(size=n_modes))
    mode = assign(centres[g.integers(0, n_modes, n)], centres)
    times = []
    for tau in np.tile(np.linspace(0, tree.persistence[tree.mortal].max(), n_taus), repeats):
        start = time.perf_counter()
        tree.labels(tau=tau)[mode]
        times.append(1e3 * (time.perf_counter() - start))
    return dict(n=n, modes=n_modes, components=len(tree.births), taus=n_taus, repeats=repeats,
                median_ms=round(statistics.median(times), 4), max_ms=round(max(times), 4))


def measure(sizes=(10_000, 30_000, 100_000)) -> dict:
    "Seconds and memory for each form and size, and the time of relabelling."
    out = dict(dim=DIM, eps=EPS, min_samples=MIN_SAMPLES, numpy=np.__version__,
               threads=os.environ.get('OMP_NUM_THREADS', f'all {os.cpu_count()}'),
               machine=platform.processor() or platform.machine())
    for form in FORMS:
        for n in sizes:
            with mp.get_context('spawn').Pool(1) as pool: out[f'{form}_{n}'] = pool.apply(one, (form, n))
            print(form, n, out[f'{form}_{n}'], file=sys.stderr, flush=True)
    return dict(out, relabel=relabel())


if __name__ == '__main__':
    sizes = tuple(map(int, sys.argv[1:])) or (10_000, 30_000, 100_000)
    print(json.dumps(measure(sizes), indent=1))
