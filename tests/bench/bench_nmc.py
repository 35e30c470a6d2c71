"""NMC: Gaussian mixtures, the digits by the train notebook, and a study of its parameters.

    python -m tests.bench.bench_nmc            the mixtures, five seeds each, as JSON

The digits and the study are part of `make bench`, the study's other data sets of `make bench-data`."""
import csv
import json
import sys
import time
import warnings
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from statistics import mean

import numpy as np

SCORES = ('acc', 'nmi', 'ari')

# what the study changes of the recipe `seed`, and of the data set's own
FROM_SEED = {
    "the original's values": {},
    'potential_norm=none': dict(potential_norm='none'),
    'potential_norm=none, dsm_weight=sigma2': dict(potential_norm='none', dsm_weight='sigma2'),
    'the same, potential_scale=std': dict(potential_norm='none', dsm_weight='sigma2', potential_scale='std'),
    'the same, on the sphere, saddles=path': dict(potential_norm='none', dsm_weight='sigma2', potential_scale='std',
                                                  retract='sphere', saddles='path')}
FROM_RECIPE = {
    'the recipe': {},
    'saddles=modes': dict(saddles='modes'),
    'potential_scale=none': dict(potential_scale='none'),
    'potential_norm=spectral': dict(potential_norm='spectral'),
    'dsm_weight=none': dict(dsm_weight='none'),
    'lambda_inv=0.1, gradcos': dict(lambda_inv=.1, inv_mode='gradcos')}
EPS = (.1, .2, .3, .5, .8)


def mixture(d, n_modes, seed, n_each=200, apart=8.):
    "Gaussians of unit variance whose nearest centres are `apart`: points (n, d) and their numbers."
    g = np.random.default_rng(seed)
    centres = g.normal(size=(n_modes, d))
    # in the plane, a pair that is by chance much nearer than the others would put those very far out
    while d == 2 and nearest_pair(centres) < .6: centres = g.normal(size=(n_modes, d))
    y = np.repeat(np.arange(n_modes), n_each)
    x = (centres * apart / nearest_pair(centres))[y] + g.normal(size=(len(y), d))
    return x.astype('float32'), y


def nearest_pair(centres):
    "The smallest distance between two centres."
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.diag([np.inf] * len(centres))
    return distances.min()


def fitted(x, y=None, **options):
    "A fit without bars and warnings, and its seconds."
    from nmc_workbench.methods import NMC
    start = time.perf_counter()
    with redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return NMC(device='cpu', **options).fit(x, y), round(time.perf_counter() - start, 1)


def row(model, seconds):
    r = model.results_
    return dict(n_clusters=model.n_clusters_, n_modes=model.tree_.n_modes, **{k: round(r[k], 4) for k in SCORES},
                stability_eps=round(r['Stability@Aug(eps)'], 4), stability_assign=round(r['Stability@Assign'], 4),
                fallback=model.fallback_, seconds=seconds)


def mixtures(seeds=range(5)):
    "Modes found and ACC, in the plane and in 16 dimensions."
    def one(d, k, seed): return dict(seed=seed, **row(*fitted(*mixture(d, k, seed), seed=seed)))
    return {f'{d}-d, {k} modes': [one(d, k, seed) for seed in seeds] for d, k in ((2, 5), (16, 8))}


def variants(images, encoders, data, from_seed=FROM_SEED):
    """For each set of values, the rows of its seeds. The original's end-point loss takes minutes per fit, so its sets
    get only the first seed."""
    original = dict(recipe='seed', cache_embeddings=True)
    sets = [(name, dict(original, **options), encoders[:1]) for name, options in from_seed.items()]
    sets += [(name, dict(recipe=data, **options), encoders) for name, options in FROM_RECIPE.items()]
    found = {}
    for name, options, some in sets:
        fits = [fitted(images, encoder=f'run:{e}', seed=s, **options) for s, e in enumerate(some)]
        found[name] = [dict(seed=s, **row(*fit)) for s, fit in enumerate(fits)]
        means = {k: round(mean(r[k] for r in found[name]), 3) for k in ('n_clusters', 'nmi', 'seconds')}
        print(data, name, means, flush=True)
    return found


def over_eps(images, encoders, data):
    "Clusters and NMI with other values of dbscan_eps, on the recipe's fit."
    found = {}
    for s, e in enumerate(encoders):
        model, _ = fitted(images, encoder=f'run:{e}', seed=s, recipe=data)
        for eps in EPS:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                model.config_ = replace(model.config_, dbscan_eps=eps)
                model._fit_clusters(model.embedding_)
            model.labels_ = model._label(model.embedding_, None)
            numbers = dict(n_clusters=model.n_clusters_, n_modes=model.tree_.n_modes)
            found.setdefault(str(eps), []).append(dict(seed=s, **numbers, **model.scores(images)))
    return found


def kmeans_row(path):
    "The row of comparison.csv for k-means with as many clusters as NMC found."
    with open(path) as f: rows = list(csv.DictReader(f))
    return {k: float(v) for k, v in rows[1].items() if k in SCORES}


if __name__ == '__main__':
    n_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(json.dumps(mixtures(range(n_seeds)), indent=1))
