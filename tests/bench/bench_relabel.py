"""How long a new threshold takes: labels alone, and everything the persistence lab shows.

    python -m tests.bench.bench_relabel

10,000 samples in 20 groups, their tree by ToMATo, 50 thresholds from 0 to the largest persistence. `relabel_ms` is
the time of `lab.relabel`, the labels of all samples; `update_ms` that of `lab.tau = x`: labels, scores, texts and
the messages to both figures, but not the browser's drawing; `message_kb` is the size of those messages. Median and
largest of the 50; the figures are not open in a page."""
import json
import platform
import statistics
import time

import numpy as np

from nmc_workbench.explore.persistence_lab import PersistenceLab


def lab_of(n=10_000, groups=20, seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % groups
    x = (6 * np.stack([y % 5, y // 5], 1) + 1.4 * g.normal(size=(n, 2))).astype('f4')
    return PersistenceLab.of_points(x, 10, 20, class_labels=y)


def timed(call, values):
    call(values[0])     # once beforehand, because the first call imports
    out = []
    for v in values:
        start = time.perf_counter()
        call(v)
        out.append(1000 * (time.perf_counter() - start))
    return dict(median=round(statistics.median(out), 2), max=round(max(out), 2))


def measure(n=10_000, n_taus=50):
    lab = lab_of(n)
    tree = lab.tree
    taus = np.linspace(0, tree.persistence[tree.mortal].max(), n_taus)
    sizes = []
    relabel, update = timed(lab.relabel, taus), timed(lambda tau: setattr(lab, 'tau', tau), taus)
    def send(content, buffers=None): sizes.append(len(json.dumps(content)))
    lab.map.send = lab.diagram.send = send
    lab.tau = taus[n_taus // 2]
    return dict(samples=n, components=len(tree.births), thresholds=n_taus, relabel_ms=relabel, update_ms=update,
                message_kb=round(sum(sizes) / 1000, 1), python=platform.python_version(), numpy=np.__version__)


if __name__ == '__main__': print(json.dumps(measure(), indent=1))
