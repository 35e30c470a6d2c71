"""DeepCluster on MNIST: the values of luftmeer's variant, each remedy alone, and all of them; strategies and networks.

Every row is the mean over seeds. NMI by epoch is that of the clusters in training, before the training of the epoch."""
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

SEED = dict(recipe='seed', backbone='smallconv(stride=2)', augment="deepcluster(size=28, data='mnist')", pca_dim=64)
REMEDIES = {
    "the variant's values": {},
    'views of digits: no flip, no small crops': dict(augment='mnist'),
    '100 clusters in training': dict(n_pseudo_labels=100),
    'a head whose rows are matched': dict(head='match', restart_head_optimizer=False),
    'cosine rate': dict(schedule='cosine'),
    'soft resets every 3 epochs': dict(reset_every=3),
    'without whitening': dict(whiten=False),
    'without uniform sampling': dict(sampling='images')}
TOGETHER = dict(recipe='mnist')
STRATEGIES = dict(none='none', labels='labels', views='views')


def images(path, n=10_000):
    from nmc_workbench.data import load
    return load('npz', root=path, limit=n)


def one(job):
    "One run, and what is kept of it."
    import torch
    torch.set_num_threads(1)
    path, n, options = job
    from nmc_workbench.methods import DeepCluster
    start = time.perf_counter()
    model = DeepCluster(dataset='mnist', device='cpu', **options).fit(images(path, n))
    rows = model.history_
    return dict(
        acc=model.results_['acc'], nmi=model.results_['nmi'], pseudo_nmi=model.results_['pseudo_nmi'],
        nmi_by_epoch=[r['nmi_true_pred'] for r in rows], predicted=rows[-1]['accuracy'],
        largest_share=rows[-1]['largest_share'], seconds=time.perf_counter() - start,
        clustering=sum(r.get('cluster_time', 0) + r.get('pca_time', 0) for r in rows) / sum(r['seconds'] for r in rows))


def means(jobs, seeds):
    "The mean of every number over the seeds of each job, two runs at a time."
    os.environ.update(OMP_NUM_THREADS='1')
    work = [(path, n, options | dict(seed=s)) for path, n, options in jobs for s in range(seeds)]
    with ProcessPoolExecutor(2) as pool: found = list(pool.map(one, work))
    rows = [found[i:i + seeds] for i in range(0, len(found), seeds)]
    return [{k: np.mean([r[k] for r in row], 0).tolist() for k in row[0]}
            | dict(nmi_std=float(np.std([r['nmi'] for r in row])), acc_std=float(np.std([r['acc'] for r in row])))
            for row in rows]


def baseline(path, n):
    "Scores of k-means on pixels."
    from nmc_workbench.evaluation.baselines import pixel_baseline
    return pixel_baseline(images(path, n), 10)


def study(path, seeds=3, epochs=10, n=10_000):
    "The variant's values, each remedy alone, and the recipe."
    options = [SEED | dict(epochs=epochs) | more for more in REMEDIES.values()] + [TOGETHER | dict(epochs=epochs)]
    rows = means([(path, n, o) for o in options], seeds)
    return dict(n=n, seeds=seeds, epochs=epochs, kmeans_pixels=baseline(path, n),
                rows=dict(zip([*REMEDIES, 'the recipe, all of them'], rows)))


def strategies(path, backbone, seeds=3, epochs=10, n=10_000):
    "The recipe with one network, without and with each second loss."
    given = dict(recipe='mnist', backbone=backbone, epochs=epochs)
    options = [given | dict(contrast=c) for c in STRATEGIES.values()]
    rows = means([(path, n, o) for o in options], seeds)
    return dict(n=n, seeds=seeds, epochs=epochs, backbone=backbone, rows=dict(zip(STRATEGIES, rows)))
