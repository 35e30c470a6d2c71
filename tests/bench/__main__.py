"""Measure the figures the pages quote, write them to docs/records/, and put them into the pages.

    python -m tests.bench                 all of them
    python -m tests.bench speed digits    some of them
"""
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / 'docs/records'
SEEDS = range(5)


def circumstances(command):
    "What a figure means nothing without."
    packages = ('nmc_workbench', 'torch', 'torchvision', 'numpy', 'scikit-learn')
    return dict(command=command, date=time.strftime('%Y-%m-%d'), python=platform.python_version(), device='CPU', cores=os.cpu_count(),
                processor=next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')), platform.machine()),
                versions={p: metadata.version(p) for p in packages})


def digits():
    "The demo's notebook, run by papermill with five seeds."
    rows, baselines = [], []
    for seed in SEEDS:
        out = ROOT / f'runs/bench/digits_seed{seed}'
        out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name('papermill')), 'nbs/train_nmce.ipynb', str(out / 'train_nmce.ipynb'), '--no-progress-bar',
                        '-p', 'dataset', 'digits', '-p', 'seed', str(seed), '-p', 'run_dir', str(out / 'run')], cwd=ROOT, check=True)
        results = json.loads((out / 'run/results.json').read_text())
        rows.append(dict(seed=seed, **{k: results[k] for k in ('acc', 'nmi', 'ari')}, seconds=time.perf_counter() - start))
        baselines.append({k: results['kmeans_pixels'][k] for k in ('acc', 'nmi', 'ari')})
        print(rows[-1], flush=True)
    demo_picture(ROOT / 'runs/bench/digits_seed0/run/figures', ROOT / 'nbs/images/demo.png')
    return dict(**circumstances('make bench'), n=len(rows), rows=rows, kmeans_pixels=baselines[0])


def demo_picture(figures, out):
    "The gallery and the map of a run side by side, for the first page."
    from PIL import Image
    left, right = (Image.open(figures / f'{name}.png').convert('RGB') for name in ('gallery', 'map'))
    height = 620
    left, right = (p.resize((round(p.width * height / p.height), height), Image.LANCZOS) for p in (left, right))
    sheet = Image.new('RGB', (left.width + right.width, height), 'white')
    sheet.paste(left, (0, 0)), sheet.paste(right, (left.width, 0))
    out.parent.mkdir(exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def speed():
    "Augmentation, coding rate reduction, subspace clustering and import, each against its baseline in the same run."
    from . import bench_augment, bench_coding_rate, bench_import, bench_subspace
    parts = {}
    for name, module in (('augment', bench_augment), ('coding_rate', bench_coding_rate), ('subspace', bench_subspace), ('import', bench_import)):
        parts[name] = module.measure()
        print(name, parts[name], flush=True)
    return dict(**circumstances('make bench'), **parts)


BENCHES = dict(speed=('speed', speed), digits=('nmce_digits', digits))

if __name__ == '__main__':
    chosen = sys.argv[1:] or list(BENCHES)
    for name in chosen:
        if name not in BENCHES: sys.exit(f'bench: unknown {name!r}; known: {", ".join(BENCHES)}')
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        record, measure = BENCHES[name]
        (RECORDS / f'{record}.json').write_text(json.dumps(measure(), indent=1) + '\n')
    subprocess.run([sys.executable, str(ROOT / 'tools/tables.py')], check=True)
    subprocess.run([sys.executable, str(ROOT / 'tools/readme.py')], check=True)
