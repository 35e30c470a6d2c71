"""k-means and PCA on the pixels of CIFAR-10, against the libraries that do the same, in one run.

Libraries that are not installed are left out of the table. Every time is the median of several runs taken in turn; the
objective is over the default's, and the memory is what a process of its own takes on top of the samples."""
import multiprocessing
import statistics
import time
import warnings
from importlib import util

import numpy as np
import torch

from nmc_workbench.cluster import kmeans
from nmc_workbench.projection import fit_pca
from tests.bench.bench_sinkhorn import forget, memory


def _faiss(x, k):
    import faiss
    run = faiss.Kmeans(x.shape[1], k, niter=20, seed=1, max_points_per_centroid=len(x))
    run.train(x)
    return float(run.index.search(x, 1)[0].sum(dtype=np.float64))


def _sklearn(x, k, module='sklearn.cluster'):
    from importlib import import_module
    found = import_module(module).KMeans(k, n_init=1, random_state=1, init='random', max_iter=20).fit(x)
    return float(found.inertia_)


def _fastkmeans(x, k):
    from fastkmeans import FastKMeans
    run = FastKMeans(x.shape[1], k, niter=20, seed=1, gpu=False, max_points_per_centroid=len(x))
    run.train(x)
    centres = np.asarray(run.centroids, np.float32)
    far = (x ** 2).sum(1) - 2 * (x @ centres.T - (centres ** 2).sum(1) / 2).max(1)
    return float(far.sum(dtype=np.float64))


def _ours(engine):
    def run(x, k): return kmeans(x, k, engine, seed=1, n_init=1).objective
    return run


OTHERS = dict(faiss=('faiss', _faiss), sklearn=('sklearn', _sklearn), fastkmeans=('fastkmeans', _fastkmeans),
              intelex=('sklearnex', lambda x, k: _sklearn(x, k, 'sklearnex.cluster')))


def timed(run, *given):
    start = time.perf_counter()
    found = run(*given)
    return time.perf_counter() - start, found


def there():
    "The engines that can be run here, by name."
    return dict(default=_ours('auto')) | {n: f for n, (module, f) in OTHERS.items() if util.find_spec(module)}


def peak(name, x, k):
    "MB that one run takes; called in a process of its own."
    warnings.simplefilter('ignore')
    run = there()[name]
    run(x[:1000], 10)                   # libraries loaded
    forget()
    before = memory()
    run(x, k)
    return memory() - before


def peaks(x, k):
    "MB that every engine takes."
    out = {}
    for name in there():
        with multiprocessing.get_context('spawn').Pool(1) as pool: out[name] = round(pool.apply(peak, (name, x, k)))
    return out


def engines(x, k, repeats=5):
    "Seconds, objective and memory of every engine, taken in turn."
    runs, mb = there(), peaks(x, k)
    seconds, objectives = {n: [] for n in runs}, {}
    for _ in range(repeats):
        for name, run in runs.items():
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                spent, objectives[name] = timed(run, x, k)
            seconds[name].append(spent)
    return {n: dict(seconds=statistics.median(s), objective=objectives[n] / objectives['default'], mb=mb[n])
            for n, s in seconds.items()}


def components(x, c=256):
    "Exact PCA against faiss', and how far inner products of unit rows differ from those in double precision."
    ours, found = timed(lambda: fit_pca(x, c, True).project(x))
    out = dict(shape=list(x.shape), components=c, seconds=ours)
    if util.find_spec('faiss'): out['faiss'] = timed(lambda: fit_pca(x, c, True, 'faiss').project(x))[0]
    return out, found


def contrast(batch=256, dim=512):
    "NT-Xent, forward and backward, against a masked matrix of similarities."
    import torch.nn.functional as F
    from nmc_workbench.losses import nt_xent
    z = torch.randn(2 * batch, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = torch.arange(2 * batch).roll(batch)
    def plain():
        u = F.normalize(z, dim=1)
        score = (u @ u.T / .5).fill_diagonal_(-float('inf'))
        F.cross_entropy(score, other).backward()
    def ours(): nt_xent(F.normalize(z, dim=1), .5).backward()
    times = {f.__name__: statistics.median(timed(f)[0] for _ in range(20)) for f in (plain, ours)}
    return dict(batch=batch, dim=dim, plain=times['plain'], ours=times['ours'])


def measure(pixels, ks=(100, 1000)):
    "All of it on the pixels of a set of images (N, ...)."
    x = torch.as_tensor(pixels).flatten(1).float() / 255
    pca, z = components(x)
    z = z[:, :256].contiguous().numpy()
    plain = fit_pca(x, 256).project(x).numpy()
    del x, z
    return dict(pca=pca, contrast=contrast(), threads=torch.get_num_threads(),
                kmeans={str(k): engines(np.ascontiguousarray(plain), k) for k in ks})
