"""bf16 against float32 on a CPU: the seconds of an epoch, and what whole runs reach.

    python -m tests.bench bf16 --data folder        # mnist.npz in it

Epochs of the recipes for two cores, of random images and on one thread: the two take turns, and the median of each
counts. The whole runs are those of the benchmark on MNIST; in float32 they lie in runs/benchmark, where `make
benchmark` has them too. As they ran at other times, only their scores are compared."""
import platform
from pathlib import Path
from statistics import median

import torch

from nmc_workbench.methods import AND, NMCE, DeepCluster, SeLa
from nmc_workbench.sweeps.benchmark import METHODS, Benchmark

AMP = 'off', 'bf16'
FLAGS = 'amx_bf16', 'avx512_bf16'
SHAPES = dict(mnist_small=(1, 28, 28), cifar10_small=(3, 32, 32))
OWN = {NMCE: dict(stages='representation', clusters='kmeans', n_clusters=10), DeepCluster: dict(n_clusters=10),
       SeLa: {}, AND: {}}


def instructions():
    "Those of the processor that compute with bf16."
    path = Path('/proc/cpuinfo')
    words = path.read_text().split() if path.is_file() else []
    return [flag for flag in FLAGS if flag in words] or [f'none that {platform.system()} names']


def epochs(method, recipe, images, amp):
    "Seconds of two epochs, after one to warm up."
    model = method(recipe=recipe, epochs=3, device='cpu', amp=amp, **OWN[method])
    return [row['seconds'] for row in model.prepare(images).train()[1:3]]


def compared(method, recipe, n, turns):
    "Median seconds of an epoch, and their ratio."
    images, took = torch.randint(0, 256, (n, *SHAPES[recipe]), dtype=torch.uint8), {amp: [] for amp in AMP}
    for _ in range(turns):
        for amp in AMP: took[amp] += epochs(method, recipe, images, amp)
    off, half = (median(took[amp]) for amp in AMP)
    return dict(method=method.__name__, recipe=recipe, off=off, bf16=half, ratio=off / half)


def per_epoch(n, turns):
    "A row for each method and recipe."
    for recipe in SHAPES:
        for method in OWN:
            row = compared(method, recipe, n, turns)
            print(row, flush=True)
            yield row


def runs(data, folder, seeds):
    "The runs of every method by mode; in float32 every seed that is there."
    found = {}
    for amp in AMP:
        own = {} if amp == 'off' else dict(amp=amp)
        bench = Benchmark(folder / ('bench/bf16' if own else 'benchmark'), data, more=own)
        for seed in seeds:
            for method in METHODS: bench.train('mnist', method, seed)
        for r in bench.table():
            if r['set'] != 'mnist' or r['on']: continue
            found.setdefault(r['by'], {})[amp] = [_scores(v) for v in r['runs'] if not own or v['seed'] in seeds]
    return found


def _scores(run): return {k: run[k] for k in ('seed', 'acc', 'nmi', 'ari')}


def measure(data, folder, n=1000, turns=2, seeds=(0,)) -> dict:
    "Seconds of an epoch, and the runs."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: epoch = list(per_epoch(n, turns))
    finally: torch.set_num_threads(threads)
    return dict(instructions=instructions(), n=n, epoch=epoch, runs=runs(data, folder, seeds))
