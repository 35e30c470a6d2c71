"One tiny run per method, for tests that only need some finished run; the fixture `tiny_run` makes each once."
import os
import time

import numpy as np

DIGITS = dict(dataset='digits', limit=120, batch_size=60, device='cpu')


def encoder(path):
    "A small network of 8 x 8 grey images with weights drawn from a seed, written as TorchScript; the path."
    import torch
    from torch import nn
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten())).save(path)
    return path


def nmce(folder):
    from nmc_workbench.data import load
    from nmc_workbench.methods import NMCE
    NMCE(**DIGITS, epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1, hidden_dim=32, z_dim=12,
         run_dir=str(folder)).fit(load('digits', limit=120))


def nmc(folder):
    "On points of the plane."
    from nmc_workbench.methods import NMC
    points = np.random.default_rng(0).normal(size=(100, 2)).astype('f4')
    NMC(epochs=1, batch_size=50, potential_hidden=16, device='cpu', run_dir=str(folder)).fit(points)


def sela(folder):
    "Two heads of six clusters."
    from nmc_workbench.data import load
    from nmc_workbench.methods import SeLa
    SeLa(**DIGITS, backbone='smallconv', n_clusters=6, n_heads=2, power=12, epochs=2, n_label_updates=2,
         run_dir=str(folder)).fit(load('digits', limit=120))


def deep_cluster(folder):
    "Six clusters, twelve in training."
    from nmc_workbench.data import load
    from nmc_workbench.methods import DeepCluster
    DeepCluster(**DIGITS, backbone='smallconv', n_clusters=6, n_pseudo_labels=12, epochs=2,
                run_dir=str(folder)).fit(load('digits', limit=120))


def anchors(folder):
    "Two rounds; the clusters are found."
    from nmc_workbench.data import load
    from nmc_workbench.methods import AND
    AND(**DIGITS, backbone='smallconv', rounds=2, epochs=1, run_dir=str(folder)).fit(load('digits', limit=120))


MAKE = dict(nmce=nmce, nmc=nmc, sela=sela, deep_cluster=deep_cluster, anchors=anchors)


def made_once(name, root, seconds=300):
    "The folder of a run under `root`; of several processes one makes it, and the others wait."
    folder, draft = root / name, root / f'{name}.draft'
    root.mkdir(exist_ok=True)
    try: os.mkdir(root / f'{name}.claim')
    except FileExistsError:
        end = time.monotonic() + seconds
        while not folder.is_dir():
            assert time.monotonic() < end, f'no other process made the tiny run of {name}'
            time.sleep(.1)
        return folder
    MAKE[name](draft)
    draft.rename(folder)
    return folder
