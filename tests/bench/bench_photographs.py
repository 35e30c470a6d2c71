"""The command of the tutorial on own images: 600 photographs of 8 kinds in a folder as people have it.

The images are those of CIFAR-10's test split, and of COIL-20; the encoder is named by `ENCODER`, since its weights are
a file of whoever measures. Beside the command stand k-means, and UMAP with k-means, on the features it has computed."""
import json
import os
import shutil
import time

import numpy as np
import torch

from nmc_workbench.data import load
from nmc_workbench.metrics import scores
from nmc_workbench.nets.encoders import encoder
from nmc_workbench.training.embed import embed
from tests.photographs import write_photographs

from .bench_frozen import ROWS

KINDS, EACH = 8, 75


def of_cifar10(path):
    "Images and labels, 75 of each of the first eight classes."
    images = load('folder', root=path, split='test')
    y, g = images.labels.numpy(), np.random.default_rng(0)
    at = np.concatenate([g.permutation(np.flatnonzero(y == k))[:EACH] for k in range(KINDS)])
    return images.take(torch.from_numpy(at)).numpy(), y[at]


def of_coil20(path):
    "All 72 views of every second object, the first eight of them."
    a = np.load(path)
    y = a['y']
    some = np.isin(y, np.unique(y)[::2][:KINDS])
    return a['x'].reshape(len(y), 1, 32, 32)[some].astype(np.uint8), np.unique(y[some], return_inverse=True)[1]


def command(papermill, photos, out, seed):
    "The tutorial's command; its seconds from start to end."
    start = time.perf_counter()
    papermill('train_and', out, dict(
        dataset='unlabelled_folder', data_dir=photos, encoder=os.environ['ENCODER'], n_clusters=KINDS, seed=seed,
        run_dir=out / 'run', features_dir=out.parent / 'features'))
    return time.perf_counter() - start


def others(photos, folder, truth, seed):
    "ACC of k-means, and of UMAP with k-means, on the same features."
    images = load('unlabelled_folder', root=photos)
    f = embed(images, encoder(os.environ['ENCODER']), views=2, augment='nmc', folder=folder)
    y = np.array([truth[i] for i in images.ids.tolist()])
    return {name: scores(y, ROWS[name](f, KINDS, seed))['acc'] for name in ('k-means', 'UMAP + k-means')}


def one(papermill, name, pixels, labels, folder, seed):
    "One run of the command, on a folder that is written anew for every seed."
    photos, out = folder / f'{name}_{seed}/photos', folder / f'{name}_{seed}/command'
    shutil.rmtree(photos.parent, ignore_errors=True)
    truth = write_photographs(pixels, labels, photos, seed)
    seconds = command(papermill, photos, out, seed)
    ids, found = np.load(out / 'run/ids.npy'), np.load(out / 'run/predictions.npy')
    y = np.array([truth[i] for i in ids.tolist()])
    row = dict(seed=seed, n=len(y), seconds=seconds, AND=scores(y, found)['acc'],
               **others(photos, out.parent / 'features', truth, seed))
    print(name, json.dumps(row), flush=True)
    return row


def measure(papermill, cifar10, coil20, folder, seeds=3):
    "Every seed of both sets; a bench that was interrupted goes on. `papermill` runs a notebook of nbs/."
    kept = folder / 'photographs.json'
    rows = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, (pixels, labels) in {'CIFAR-10': of_cifar10(cifar10), 'COIL-20': of_coil20(coil20)}.items():
        for seed in range(seeds):
            if seed < len(rows.setdefault(name, [])): continue
            rows[name].append(one(papermill, name.lower().replace('-', ''), pixels, labels, folder, seed))
            kept.write_text(json.dumps(rows, indent=1))
    return dict(encoder=os.environ['ENCODER'].rpartition('?')[2], rows=rows)
