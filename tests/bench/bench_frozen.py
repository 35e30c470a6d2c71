"""Every method's recipe `frozen` on the features of one encoder, beside the baselines of `evaluation.baselines` and two
heads of the field on the same features.

The images are CIFAR-10's test split, as folders; the encoder is named by `ENCODER`, since its weights are a file of
whoever measures. Rows that have been measured are kept in runs/bench/frozen.json, and an interrupted bench goes on."""
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from nmc_workbench.evaluation.baselines import BASELINES, baseline, not_installed
from nmc_workbench.evaluation.feature_heads import temi, turtle
from nmc_workbench.metrics import scores

BENCH = Path(__file__).resolve().parents[2] / 'runs/bench'
SIZE = 128      # pixels that the encoder sees


def features(path, folder):
    "Features of the test images, from the folder where they are kept; and the seconds that took."
    from nmc_workbench.data import as_images, load
    from nmc_workbench.nets.encoders import encoder
    from nmc_workbench.training.embed import embed
    found, start = load('folder', root=path, split='test'), time.perf_counter()
    images = as_images(found.take(torch.arange(len(found))).numpy(), found.labels.numpy())
    made = encoder(os.environ['ENCODER'], size=SIZE)
    return embed(images, made, views=2, folder=folder), time.perf_counter() - start


def unit(x): return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_baseline(name): return lambda f, k, seed: baseline(name, unit(f.plain), k, seed).labels


def by(name):
    "Labels by a method of the workbench."
    def fit(f, k, seed):
        from nmc_workbench import methods
        known = {} if name == 'NMC' else dict(n_clusters=k)
        return getattr(methods, name)(recipe='frozen', seed=seed, device='cpu', **known).fit(f).labels_
    return fit


ROWS = {**{b.title: by_baseline(name) for name, b in BASELINES.items() if not not_installed(name)},
        'TEMI-like': lambda f, k, seed: temi(f.plain, k, seed=seed),
        'TURTLE-like': lambda f, k, seed: turtle(f.plain, k, seed=seed),
        **{name: by(name) for name in ('NMCE', 'NMC', 'SeLa', 'DeepCluster', 'AND')}}


def row(fit, f, seed):
    "Scores, the number of clusters found, and seconds."
    y, clock, start = f.labels.numpy(), time.process_time(), time.perf_counter()
    labels = fit(f, len(f.class_names), seed)
    found = {k: v for k, v in scores(y, labels).items() if k in ('acc', 'nmi', 'ari', 'n_clusters')}
    return dict(found, seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - clock)


def measure(path, folder, seeds=5):
    "Every row, every seed."
    file = BENCH / 'frozen.json'
    kept = json.loads(file.read_text()) if file.is_file() else {}
    f, seconds = features(path, folder)
    for seed in range(seeds):
        for name, fit in ROWS.items():
            if str(seed) in kept.setdefault(name, {}): continue
            kept[name][str(seed)] = row(fit, f, seed)
            print(name, seed, kept[name][str(seed)], flush=True)
            file.write_text(json.dumps(kept, indent=1))
    rows = {name: [found[str(s)] for s in range(seeds)] for name, found in kept.items()}
    return dict(n=len(f), dim=f.dim, views=f.n_views, encoder=os.environ['ENCODER'].rpartition('?')[2], size=SIZE,
                seconds_embed=seconds, rows=rows)
