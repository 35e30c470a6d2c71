"""Sinkhorn's iteration from features and a head: what it holds, and how its time grows.

    python -m tests.bench.bench_sinkhorn_features

K = 1,000 clusters, features of 128 numbers from a Gaussian mixture, a random head, power 25; N = 250,000, 500,000 and
1,000,000. Every run has a process of its own and makes a given number of iterations. Memory is the most that the
process held (Linux, VmHWM), with Python, torch and the features in it; what it held when everything was imported is
told beside. Time is that of the quickest of the iterations, each a pass over all entries in single precision. Then the
memory of one iteration of `sinkhorn_features` as it is called by default: in double precision, and leaving out the
entries that are too small to count where the others fit."""
import json
import multiprocessing as mp
import time
import warnings
from unittest.mock import patch

import numpy as np
import torch

from nmc_workbench.core.processes import memory_mb
from nmc_workbench.transport import _Dense, sinkhorn_features

from .bench_sinkhorn import POWER

K, D, SIZES, ITERATIONS = 1_000, 128, (250_000, 500_000, 1_000_000), 3


def problem(n):
    "Features of a mixture of 2,000 Gaussians, and a head; no second array as large as the features is made."
    g = torch.Generator().manual_seed(0)
    centres, features = torch.randn(2_000, D, generator=g), torch.empty(n, D)
    for part in features.split(10_000):
        part.normal_(generator=g).add_(centres[torch.randint(2_000, (len(part),), generator=g)])
    return features, torch.randn(K, D, generator=g) / D ** .5, torch.zeros(K)


def one(n, dtype, active, iterations=ITERATIONS):
    "Seconds of a pass, of all, and memory in MB, of one run; called in a process of its own."
    warnings.simplefilter('ignore')
    sinkhorn_features(np.random.default_rng(0).normal(size=(300, 20)), torch.ones(5, 20))       # libraries loaded
    imported, x, passes, whole_pass = memory_mb(), problem(n), [], _Dense.__call__
    def timed(*args):
        start = time.perf_counter(), time.process_time()
        found = whole_pass(*args)
        passes.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        return found
    start = time.perf_counter()
    with patch.object(_Dense, '__call__', timed):
        plan = sinkhorn_features(*x, POWER, 1e-12, dtype=dtype, active=active, max_iter=iterations, check_every=10 ** 6)
    assert plan.n_iter == iterations and plan.sizes.sum() == n
    seconds, cpu = (min(p[i] for p in passes[:iterations]) for i in range(2))       # the last pass gives labels
    return dict(n=n, dtype=dtype, seconds=round(seconds, 2), cpu_seconds=round(cpu, 2), full_passes=plan.full_passes,
                all_seconds=round(time.perf_counter() - start, 1), imported_mb=round(imported),
                peak_mb=round(memory_mb()))


def alone(*args):
    with mp.get_context('spawn').Pool(1) as pool: return pool.apply(one, args)


def measure():
    rows = []
    for n in SIZES:
        rows.append(alone(n, 'f32', False))
        print(rows[-1], flush=True)
    return dict(K=K, d=D, power=POWER, threads=torch.get_num_threads(), iterations=ITERATIONS, rows=rows,
                ratio=round(rows[-1]['cpu_seconds'] / rows[0]['cpu_seconds'], 2), times_n=SIZES[-1] / SIZES[0],
                default=alone(SIZES[0], 'f64', True, 1), features_mb=round(SIZES[-1] * D * 4 / 2 ** 20),
                matrix_mb=round(SIZES[-1] * K * 4 / 2 ** 20))


if __name__ == '__main__': print(json.dumps(measure(), indent=1))
