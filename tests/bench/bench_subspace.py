"""Elastic-net codes of all samples at once against one lasso per sample through scikit-learn, interleaved in one run.

    python tests/bench/bench_subspace.py [threads ...]

The baselines are scikit-learn's `sparse_encode`, called once per sample with the other samples as dictionary as the
original code calls it, with its LARS and with its coordinate descent solver, and `LassoLars` with the settings that
are quickest here (no Gram matrix, no path). Only every `stride`-th sample is coded and the time multiplied, because
every sample costs the same. The data are unit rows near a union of 20 five-dimensional subspaces of R^40, with
noise of 0.05 per entry, and the weight is the strongest correlation over gamma = 100. `ratio` is to the quicker
solver of `sparse_encode`."""
import json
import platform
import statistics
import sys
import time
import warnings

import numpy as np
import sklearn
import torch
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import LassoLars

from nmc_workbench.subspaces import elastic_net_codes, kkt_residual


def union_of_subspaces(n, d, n_subspaces, dim, noise, seed=0):
    rng = np.random.default_rng(seed)
    def part(): return rng.normal(size=(n // n_subspaces, dim)) @ np.linalg.qr(rng.normal(size=(d, dim)))[0].T
    parts = [part() for _ in range(n_subspaces)]
    x = np.concatenate(parts)
    x += noise * rng.normal(size=x.shape)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_by_one(x, rows, gamma, algorithm):
    out = np.zeros((len(rows), len(x)))
    for k, j in enumerate(rows):
        others = np.delete(x, j, 0)
        alpha = np.abs(others @ x[j]).max() / gamma
        if algorithm == 'direct':
            lasso = LassoLars(alpha / x.shape[1], fit_intercept=False, precompute=False, fit_path=False)
            code = lasso.fit(others.T, x[j]).coef_
        else: code = sparse_encode(x[[j]], others, algorithm=algorithm, alpha=alpha)[0]
        out[k, np.arange(len(x)) != j] = code
    return out


def timed(f, *args):
    start = time.perf_counter()
    out = f(*args)
    return out, time.perf_counter() - start


def compare(n=720, d=40, gamma=100., repeats=5, stride=12):
    x = union_of_subspaces(n, d, 20, 5, .05)
    elastic_net_codes(x[:100], gamma)
    times, error = dict(ours=[], lasso_lars=[], lasso_cd=[], direct=[]), {}
    for r in range(repeats):
        codes, seconds = timed(elastic_net_codes, x, gamma)
        times['ours'].append(seconds)
        rows = np.arange(r, n, stride)
        for algorithm in ('lasso_lars', 'lasso_cd', 'direct'):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                found, seconds = timed(one_by_one, x, rows, gamma, algorithm)
            times[algorithm].append(seconds * n / len(rows))
            error[algorithm] = max(error.get(algorithm, 0), float(np.abs(found - codes[rows].toarray()).max()))
    s = {k: statistics.median(v) for k, v in times.items()}
    faster = min(s['lasso_lars'], s['lasso_cd'])
    return dict(ours_s=round(s['ours'], 3), lasso_lars_s=round(s['lasso_lars'], 2), lasso_cd_s=round(s['lasso_cd'], 2),
                ratio=round(faster / s['ours'], 1), direct_lars_s=round(s['direct'], 2),
                ratio_direct_lars=round(s['direct'] / s['ours'], 1),
                largest_difference_to_lars=error['lasso_lars'], largest_difference_to_cd=error['lasso_cd'],
                kkt=float(kkt_residual(x, codes, gamma).max()), coefficients=round(codes.nnz / n, 1))


def measure(threads=(1, 2)) -> dict:
    """Median seconds for all codes, and how many times faster that is than the faster of scikit-learn's solvers, for
    each number of threads."""
    out = dict(n=720, d=40, gamma=100, dtype='float64', torch=torch.__version__, scikit_learn=sklearn.__version__,
               machine=platform.processor() or platform.machine())
    before = torch.get_num_threads()
    try:
        for t in threads:
            torch.set_num_threads(t)
            out[f'threads_{t}'] = compare()
    finally: torch.set_num_threads(before)
    return out


if __name__ == '__main__':
    threads = tuple(map(int, sys.argv[1:])) or (1, 2)
    print(json.dumps(measure(threads), indent=1))
