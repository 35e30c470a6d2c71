"""The CIFAR-10 recipe of NMCE on a GPU from start to finish, and what its seconds are spent on.

    python -m tests.bench.gpu --dataset folder --data FOLDER

FOLDER is a tree of class folders; npz, and cifar10 in data/, are taken as well. It stops by itself before --minutes
are over, with exit code 3; the same command continues from there, also after a kill. At the end it writes
docs/records/nmce_cifar10_gpu.json. Before it trains it measures, in epochs of --steps, with and without
torch.compile. Without a CUDA device it says so and ends. It needs only PyTorch and the core's packages, and no
network."""
import time

START = time.monotonic()        # loading the libraries counts
import argparse
import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_json, write_torch
from nmc_workbench.data import load
from nmc_workbench.data.images import Images, list_images
from nmc_workbench.methods import NMCE
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.training.timing import PARTS, time_budget

ROOT = Path(__file__).resolve().parents[2]
SHARES = (*PARTS, 'other')
TOLERANCE = dict(bf16=.1, fp16=.02)     # relative difference of one update of the heads to that in float32
RESERVE = 20.                           # seconds for the scores at the end


OPTIONS = dict(dataset='cifar10', data='data', split='train', recipe='cifar10', batch_size=1024, seed=0, device='cuda',
               amp='bf16', minutes=9.5, run_dir='runs/bench/cifar10_gpu',
               record=str(ROOT / 'docs/records/nmce_cifar10_gpu.json'), steps=24)


def arguments():
    p = argparse.ArgumentParser(prog='python -m tests.bench.gpu', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in OPTIONS.items():
        option = f'--{name.replace("_", "-")}'
        p.add_argument(option, type=type(value), default=value, help=f'{value} unless given')
    p.add_argument('--epochs', type=int, nargs=3, default=(600, 100, 100), help='epochs of the three stages')
    p.add_argument('--limit', type=int, help='take only that many images')
    p.add_argument('--no-compile', action='store_true', help='train without torch.compile')
    return p.parse_args()


def method(o, **other):
    "NMCE as it will be trained, or with other parameters."
    epochs = dict(zip(('epochs', 'cluster_epochs', 'finetune_epochs'), o.epochs))
    fixed = dict(recipe=o.recipe, dataset=o.dataset, data_dir=o.data, split=o.split, limit=o.limit,
                 batch_size=o.batch_size, seed=o.seed, device=o.device, amp=o.amp, run_dir=o.run_dir, resume=True)
    return NMCE(**{**fixed, **epochs, **other})


def key_of(o):
    "A key that changes when the images do, from the names and sizes of the files."
    path = Path(o.data)
    if path.is_dir(): files = [(f, os.path.getsize(path / f)) for f in list_images(path)]
    else: files = [(path.stat().st_size, path.stat().st_mtime_ns)]
    text = json.dumps([o.dataset, o.split, o.limit, files])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached(path, key):
    "The images kept in a file, or None if they are different ones or damaged."
    try: kept = load_checkpoint(path)
    except InputError: return None
    if kept.get('key') != key: return None
    images = Images(**kept['images'])
    return images if images.fingerprint() == kept['fingerprint'] else None


def images_of(o):
    "The images, decoded once: a tree of files is kept as one file beside the run."
    options = {} if o.limit is None else dict(limit=o.limit)
    if o.dataset not in ('folder', 'npz') or not Path(o.data).exists():
        return load(o.dataset, o.split, o.data, **options)
    path, key = Path(f'{o.run_dir}.images.pt'), key_of(o)
    if (images := cached(path, key)) is not None: return images
    images = load(o.dataset, o.split, o.data, **options)
    fields = dict(pixels=images.pixels, labels=images.labels, class_names=images.class_names,
                  ids=images.ids.tolist(), name=images.name, split=images.split)
    write_torch(path, dict(key=key, fingerprint=images.fingerprint(), images=fields))
    return images


def prepared(trainer):
    "Stage 1 and a batch, as they are when an epoch begins."
    stage = trainer.stages[0]
    stage.optimisers = stage.start()
    stage.train().before_epoch(0)
    return stage, *next(iter(trainer.batches.epoch(stage.name, 0)))


def step(trainer, stage, index, views):
    with trainer.precision.cast(): loss, _ = stage(index, views)
    trainer.precision.backward(loss, list(stage.optimisers.values()))
    trainer.precision.step(list(stage.optimisers.values()))


def teraflops(trainer):
    "Operations of one step, forward and backward, in 10^12."
    with FlopCounterMode(display=False) as counter: step(trainer, *prepared(trainer))
    return counter.get_total_flops() / 1e12


def waits(trainer):
    "What in a step waits for the device, according to PyTorch; None if nothing does."
    if trainer.device.type != 'cuda': return None
    stage, index, views = prepared(trainer)
    step(trainer, stage, index, views)
    pixels, noise = trainer.batches.images.pixels[:len(index)], torch.Generator(trainer.device)
    torch.cuda.set_sync_debug_mode('error')
    try: trainer.batches.augment(pixels, noise), step(trainer, stage, index, views)
    except RuntimeError as e: return str(e).splitlines()[0]
    finally: torch.cuda.set_sync_debug_mode('default')


def speed_of_stage_1(o, images, compile):
    "Speed in the steady state; the first epoch, which compiles and chooses kernels, is left out."
    some = images.subset(torch.arange(o.batch_size * o.steps) % len(images))
    trainer = method(o, epochs=5, run_dir=None, resume=False).prepare(some)
    trainer.compile, cuda = compile, trainer.device.type == 'cuda'
    if cuda: torch.cuda.reset_peak_memory_stats()
    rows = trainer.train(until=trainer.stages[0].name)
    budget, = time_budget(rows[1:])
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None
    work = teraflops(trainer)
    return dict(views_per_second=budget['views_per_second'], shares={k: round(budget[k], 4) for k in SHARES},
                peak_gib=peak, first_loss=rows[0]['loss'], seconds_first_epoch=rows[0]['seconds'],
                tflop_per_step=round(work, 4), tflop_per_second=round(work * o.steps / budget['seconds'], 3),
                waits=waits(trainer))


def head_update(o, images, amp):
    "How far one step of stage 2 moves the heads."
    model = method(o, amp=amp, cluster_epochs=1, run_dir=None, resume=False)
    trainer = model.prepare(images.subset(torch.arange(o.batch_size) % len(images)))
    modules = model.network_.subspace, model.network_.cluster
    def heads(): return torch.cat([p.detach().flatten().clone() for m in modules for p in m.parameters()])
    before, trainer.next_stage = heads(), 1
    trainer.train(until=trainer.stages[1].name)
    return heads() - before


def precision(o, images):
    "How far such a step in lower precision differs from one in float32, relative to it, and whether that is tolerated."
    exact = head_update(o, images, 'off')
    def difference(amp): return ((head_update(o, images, amp) - exact).norm() / exact.norm()).item()
    found = {amp: difference(amp) for amp in TOLERANCE if amp == 'bf16' or o.device != 'cpu'}
    return {amp: dict(difference=d, tolerance=TOLERANCE[amp], within=d <= TOLERANCE[amp]) for amp, d in found.items()}


def speed(o, images):
    "The speed, measured once and kept beside the run."
    path = Path(f'{o.run_dir}.speed.json')
    if path.is_file(): return json.loads(path.read_text())
    found = dict(plain=speed_of_stage_1(o, images, False), heads=precision(o, images))
    if not o.no_compile: found['compiled'] = speed_of_stage_1(o, images, True)
    write_json(path, found)
    return found


def train(o, images, views_per_second):
    """The model after the rest of its training, or as much of it as there was time for, with a checkpoint about every
    minute."""
    model = method(o)
    trainer = model.prepare(images)
    views = len(trainer.batches) * trainer.batches.batch_size * trainer.batches.n_views
    trainer.compile, trainer.checkpoint_every = not o.no_compile, max(1, round(60 * views_per_second / views))
    trainer.train(seconds=max(0., o.minutes * 60 - RESERVE - (time.monotonic() - START)))
    return model


def stopped(trainer):
    "Where training stopped, and how long the rest will take at the pace so far."
    pace = {b['stage']: b['seconds'] for b in time_budget(trainer.history)}
    stage, left = trainer.stages[trainer.next_stage], trainer.stages[trainer.next_stage:]
    seconds = sum(s.epochs * pace.get(s.name, max(pace.values())) for s in left)
    seconds -= trainer.next_epoch * pace.get(stage.name, 0)
    return (f'stopped after {(time.monotonic() - START) / 60:.1f} minutes in {stage.name}, '
            f'epoch {trainer.next_epoch} of {stage.epochs}, about {seconds / 60:.0f} minutes to go; '
            'resume with the same command')


def record(o, model, found):
    "What the pages quote."
    where = json.loads(model.run_.path('provenance.json').read_text())
    c, budget = model.config_, time_budget(model.history_)
    command = shlex.join(['python', '-m', 'tests.bench.gpu', *sys.argv[1:]])
    return dict(command=command, date=time.strftime('%Y-%m-%d'), python=where['python'], device=where['device_name'],
                versions=where['versions'], n=len(model.labels_), dataset=c.dataset, recipe=c.recipe, seed=c.seed,
                amp=c.amp, compile=not o.no_compile, epochs=o.epochs, batch_size=c.batch_size,
                minutes=round(sum(b['minutes'] for b in budget), 2), stages=budget, **model.results_, speed=found)


def main():
    o = arguments()
    if o.device.startswith('cuda') and not torch.cuda.is_available():
        return print('bench-gpu: no CUDA device here, so nothing was measured')
    images = images_of(o)
    found = speed(o, images)
    model = train(o, images, found.get('compiled', found['plain'])['views_per_second'])
    if not model.trainer_.done:
        print(f'bench-gpu: {stopped(model.trainer_)}')
        sys.exit(3)
    write_json(o.record, record(o, model.finish(), found))
    scores = [f'{k} {model.results_[k]:.3f}' for k in ('acc', 'nmi', 'ari') if k in model.results_]
    print(f'bench-gpu: {", ".join(scores)}; wrote {o.record}')


if __name__ == '__main__':
    try: main()
    except InputError as e: sys.exit(f'bench-gpu: {e}')
