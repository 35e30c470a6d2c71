"""How long the table of 10,000 runs takes: with an index, without one, and with a few runs that changed.

    python -m tests.bench.bench_runs [runs]

The folders are synthetic: each has the configuration, provenance, results, log, small arrays and weights of a finished
run of one of five methods. Their files are in the system's memory when they are read; pandas is loaded before.
On a machine that does other work besides, the seconds of the processor say more than those on the clock."""
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nmc_workbench.methods import NMCEConfig
from nmc_workbench.runs.folder import provenance
from nmc_workbench.runs.table import best, over_seeds, runs

METHODS, SEEDS = ('NMCE', 'NMC', 'SeLa', 'DeepCluster', 'AND'), 5


def as_bytes(save, value):
    buffer = io.BytesIO()
    save(buffer, value)
    return buffer.getvalue()


def contents():
    "What every synthetic run holds beside its configuration: {name: bytes}."
    told = provenance(torch.device('cpu'), 0, 'synthetic')
    log = [dict(stage='representation', epoch=e, step=e + 1, loss=1. / (e + 1), seconds=.1) for e in range(30)]
    array = as_bytes(np.save, np.arange(100)), as_bytes(np.save, np.zeros((100, 2), np.float32))
    return {'provenance.json': json.dumps(told, indent=1).encode(), 'predictions.npy': array[0],
            'embeddings.npy': array[1], 'ids.npy': array[0], 'true_labels.npy': array[0],
            'metrics.jsonl': ''.join(json.dumps(row) + '\n' for row in log).encode(),
            'model.pt': as_bytes(lambda f, x: torch.save(x, f), dict(weights=torch.zeros(3)))}


def make(root, n):
    "Write n run folders below root: methods, settings that differ in two parameters, five seeds of each."
    rest, config, g = contents(), NMCEConfig().to_dict(), np.random.default_rng(0)
    for i in range(n):
        folder, setting = Path(root, f'sweep_{i // 1000}', f'run_{i:05}'), i // SEEDS
        folder.mkdir(parents=True)
        own = dict(method=METHODS[setting % len(METHODS)], dataset='digits', seed=i % SEEDS, run_dir=str(folder),
                   eps=.1 + setting // 5 % 40 / 100, lr=1e-3 * (1 + setting // 200), data='synthetic')
        results = dict(zip(('acc', 'nmi', 'ari'), g.uniform(size=3)), n_clusters=10, seconds=60.)
        (folder / 'config.json').write_text(json.dumps(config | own, indent=1))
        (folder / 'results.json').write_text(json.dumps(results, indent=1))
        for name, content in rest.items(): (folder / name).write_bytes(content)


def seconds(call):
    "Seconds on the clock, seconds of the processor, and what the call returns."
    start, cpu = time.perf_counter(), time.process_time()
    value = call()
    return round(time.perf_counter() - start, 3), round(time.process_time() - cpu, 3), value


def measure(n=10_000, repeats=5) -> dict:
    "Seconds of `runs()` cold (no index) and warm (an index), after 100 runs changed, and of what is made of the frame."
    with tempfile.TemporaryDirectory() as root:
        make(root, n)
        time.sleep(2)           # what was written a moment ago is read again the next time
        runs(root, index=False)
        cold, cold_cpu, frame = seconds(lambda: runs(root))
        warm = [seconds(lambda: runs(root))[:2] for _ in range(repeats)]
        for path in sorted(Path(root).rglob('results.json'))[:100]: path.write_text('{"acc": 1, "seconds": 1}')
        changed, _, again = seconds(lambda: runs(root))
        assert len(frame) == n and (frame.status == 'done').all() and (again.acc == 1).sum() == min(n, 100)
        wall, cpu = zip(*warm)
        return dict(runs=n, seconds_cold=cold, cpu_seconds_cold=cold_cpu, seconds_warm=statistics.median(wall),
                    range_warm=[min(wall), max(wall)], cpu_seconds_warm=min(cpu), load_average=os.getloadavg()[0],
                    seconds_after_100_changes=changed, seconds_over_seeds=seconds(lambda: over_seeds(frame))[0],
                    seconds_best=seconds(lambda: best(frame))[0], rows_over_seeds=len(over_seeds(frame)),
                    megabytes_of_index=round(Path(root, '.runs_index.json').stat().st_size / 1e6, 1))


if __name__ == '__main__': print(json.dumps(measure(*map(int, sys.argv[1:2])), indent=1))
