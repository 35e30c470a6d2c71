"""bf16 against float32 on a CPU: the seconds of an epoch, and what whole runs reach.

    python -m tests.bench bf16 --data folder        # mnist.npz in it

Epochs of the recipes for CIFAR-10 on two cores, of random images and on one thread: the two take turns, and the median
of each counts. The whole runs are those of the benchmark on MNIST; in float32 they lie in runs/benchmark, where `make
benchmark` has them too."""
import platform
from pathlib import Path
from statistics import median

import torch

from nmc_workbench.methods import AND, NMCE, DeepCluster, SeLa
from nmc_workbench.sweeps.benchmark import METHODS, Benchmark

AMP = 'off', 'bf16'
FLAGS = 'amx_bf16', 'avx512_bf16'
OWN = {NMCE: dict(stages='representation', clusters='kmeans', n_clusters=10), DeepCluster: dict(n_clusters=10),
       SeLa: {}, AND: {}}


def instructions():
    "Those of the processor that compute with bf16."
    path = Path('/proc/cpuinfo')
    words = path.read_text().split() if path.is_file() else []
    return [flag for flag in FLAGS if flag in words] or [f'none that {platform.system()} names']


def epochs(method, images, amp):
    "Seconds of two epochs, after one to warm up."
    model = method(recipe='cifar10_small', epochs=3, device='cpu', amp=amp, **OWN[method])
    return [row['seconds'] for row in model.prepare(images).train()[1:3]]


def per_epoch(n, turns, methods=OWN):
    "Median seconds of an epoch by method, and their ratio."
    images, found = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), {}
    for method in methods:
        took = {amp: [] for amp in AMP}
        for _ in range(turns):
            for amp in AMP: took[amp] += epochs(method, images, amp)
        row = {amp: median(values) for amp, values in took.items()}
        found[method.__name__] = row | dict(ratio=row['off'] / row['bf16'])
        print(method.__name__, found[method.__name__], flush=True)
    return found


def runs(data, folder, seeds):
    "The runs of every method by mode: seed, scores, seconds."
    found = {}
    for amp in AMP:
        own = {} if amp == 'off' else dict(amp=amp)
        bench = Benchmark(folder / ('bench/bf16' if own else 'benchmark'), data, more=own)
        for seed in seeds:
            for method in METHODS: bench.train('mnist', method, seed)
        rows = [r for r in bench.table() if r['set'] == 'mnist' and r['on'] is None]
        for r in rows: found.setdefault(r['by'], {})[amp] = [run for run in r['runs'] if run['seed'] in seeds]
    return found


def measure(data, folder, n=1500, turns=3, seeds=(0, 1)) -> dict:
    "Seconds of an epoch, and the runs."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: epoch = per_epoch(n, turns)
    finally: torch.set_num_threads(threads)
    return dict(instructions=instructions(), n=n, epoch=epoch, runs=runs(data, folder, seeds))
