"""Minutes from random weights to a stated accuracy: `make speedrun ARGS="--set mnist --data folder --seeds 0,1,2"`.

A recipe with a fixed number of epochs is trained once per seed; the time counts from loading the images to the labels
of the last epoch. Only then the accuracy is looked at: no label decides when to stop, or which epoch or seed counts.
The target is reached if the mean ACC over the seeds reaches it. A log with every value of the recipe and the source of
this file is kept in runs/speedrun, and `<set>.json`, which `python -m tests.bench speedrun` puts into the page."""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, pstdev
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / 'runs/speedrun'


class Target(NamedTuple):
    "What is to be reached on a set of the benchmark, and by which method with which parameters."
    acc: float
    method: str
    values: dict
    gpu: bool = False


TARGETS = dict(
    digits=Target(.95, 'NMCE', dict(recipe='digits')),
    mnist=Target(.95, 'DeepCluster', dict(recipe='mnist_small')),
    coil20=Target(.95, 'DeepCluster', dict(recipe='coil20_small')),
    cifar10=Target(.90, 'NMCE', dict(recipe='cifar10', amp='bf16', compile=True), gpu=True))


def images(name, data):
    "The images of a set as the benchmark has them; a GPU gets all of them."
    from nmc_workbench.data import load
    from nmc_workbench.sweeps.benchmark import data_of
    options = data_of(name, data)
    if TARGETS[name].gpu: options.pop('limit', None)
    return load(options.pop('dataset'), root=options.pop('data_dir'), **options)


def run(name, data, seed, more):
    "One seed: what it reached, and every value of the recipe."
    from nmc_workbench.core.errors import one_of
    from nmc_workbench.methods.base import registered
    from nmc_workbench.metrics import scores
    target, start = TARGETS[name], time.perf_counter()
    method = registered()[target.method]
    for parameter in more: one_of(parameter, method.config_class.names(), f'parameter of {target.method}')
    found = images(name, data)
    model = method(**target.values | more, seed=seed, device='cuda' if target.gpu else 'cpu').fit(found)
    minutes = (time.perf_counter() - start) / 60
    s = scores(found.labels, model.labels_)
    return dict(seed=seed, acc=s['acc'], nmi=s['nmi'], ari=s['ari'], minutes=minutes), model.config_.to_dict()


def machine(gpu):
    "Where it ran."
    import torch
    names = [line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
             if line.startswith('model name')] if Path('/proc/cpuinfo').is_file() else []
    cpu = f'{os.cpu_count()} cores of {next(iter(names), platform.machine())}, {torch.get_num_threads()} threads'
    return torch.cuda.get_device_name() if gpu else cpu


def commit():
    "The commit of the checkout, with a mark if files differ from it."
    asked = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty']
    try: return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError: return ''


def said(name, runs):
    "What is printed at the end: the target and whether it was reached."
    target, acc, minutes = TARGETS[name], [r['acc'] for r in runs], [r['minutes'] for r in runs]
    reached = 'reached' if mean(acc) >= target.acc else 'NOT reached'
    return (f'{name}: {target.method}, ACC {mean(acc):.3f} ± {pstdev(acc):.3f} over {len(runs)} seeds, '
            f'target {target.acc:.2f} {reached}, {mean(minutes):.2f} minutes per seed')


def log(name, runs, values, where):
    "Keep a run with the source that made it, and what the page says of it; the path of the log."
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f'{name}-{time.strftime("%Y%m%d-%H%M%S")}.txt'
    head = dict(set=name, target=TARGETS[name].acc, method=TARGETS[name].method, machine=where,
                python=platform.python_version(), commit=commit(), runs=runs, values=values)
    text, source = json.dumps(head, indent=1, default=str), Path(__file__).read_text(encoding='utf-8')
    (LOGS / f'{name}.json').write_text(text, encoding='utf-8')
    path.write_text(f'{said(name, runs)}\n\n{text}\n\n{"-" * 100}\n{source}', encoding='utf-8')
    return path


def main(words=None):
    parser = argparse.ArgumentParser(prog='tools/speedrun.py', description=__doc__.splitlines()[0])
    parser.add_argument('--set', default='digits', choices=TARGETS)
    parser.add_argument('--seeds', default='0', help='with commas between them')
    parser.add_argument('--data', default='data', help='the folder of the data')
    parser.add_argument('--more', default='', help='values for others of the recipe, as "epochs 20; lr .003"')
    o = parser.parse_args(words)
    import torch

    from nmc_workbench.core.errors import InputError
    from nmc_workbench.sweeps.grid import read_fixed
    gpu = TARGETS[o.set].gpu
    if gpu and not torch.cuda.is_available(): sys.exit(f'speedrun: {o.set} takes one GPU, and this machine has none')
    runs, values = [], None
    try:
        for seed in o.seeds.split(','):
            row, values = run(o.set, o.data, int(seed), typed(read_fixed(o.more)))
            runs.append(row)
            print(f'seed {seed}: ACC {row["acc"]:.4f}, NMI {row["nmi"]:.4f}, {row["minutes"]:.2f} minutes', flush=True)
    except InputError as e: sys.exit(f'speedrun: {e}')
    print(said(o.set, runs), log(o.set, runs, values, machine(gpu)), sep='\n')


def typed(more):
    "Values as a method takes them."
    import ast
    def value(text):
        try: return ast.literal_eval(text)
        except (ValueError, SyntaxError): return text
    return {k: value(v) for k, v in more.items()}


if __name__ == '__main__': main()
