"""What `import nmc_workbench` costs beside the libraries it is built on, in fresh processes, turn by turn.

    python -m tests.bench.bench_import [repeats]

The clock runs in the new process around the import alone, so the start of the interpreter counts for neither side."""
import json
import os
import platform
import statistics
import subprocess
import sys

STATEMENTS = dict(baseline='import torch, torchvision, sklearn', package='import nmc_workbench',
                  methods='from nmc_workbench.methods import NMCE')
TIMED = 'import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)'


def seconds(statement):
    command = [sys.executable, '-c', TIMED.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(repeats=7) -> dict:
    "Medians in seconds, and their ratios to the baseline."
    for s in STATEMENTS.values(): seconds(s)         # reads the files into memory and compiles them
    times = {k: [] for k in STATEMENTS}
    for _ in range(repeats):
        for k, s in STATEMENTS.items(): times[k].append(seconds(s))
    median = {k: statistics.median(v) for k, v in times.items()}
    ratio = {k: round(median[k] / median['baseline'], 3) for k in ('package', 'methods')}
    return dict(ratio_package=ratio['package'], ratio_methods=ratio['methods'],
                **{f'seconds_{k}': round(v, 3) for k, v in median.items()},
                **{f'range_{k}': [round(min(v), 3), round(max(v), 3)] for k, v in times.items()},
                statements=STATEMENTS, repeats=repeats, python=platform.python_version(), cpus=os.cpu_count(),
                machine=platform.processor() or platform.machine())


if __name__ == '__main__': print(json.dumps(measure(*map(int, sys.argv[1:2])), indent=1))
