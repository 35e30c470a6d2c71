"""An epoch of SeLa on a pack that is read from the disk, against the same images in memory; and what reading costs.

    python -m tests.bench streamed --data folder        # cifar10/train/<class>/*.jpg in it

The epochs of the two sets take turns, and the least of each counts; a machine that does other work besides says more by
the seconds of the processor than by the clock. The files are in the system's memory when they are read. litdata, where
it is installed, reads the same JPEG files from its own chunks, and their decoded bytes, in the same process."""
import hashlib
import os
import tempfile
import time
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nmc_workbench.core.seeds import generator
from nmc_workbench.data import load, pack
from nmc_workbench.data.images import prefetch
from nmc_workbench.methods import SeLa

BATCH = 250


def timed(call):
    "Seconds on the clock, seconds of the processor, and what the call returns."
    start, cpu = time.perf_counter(), time.process_time()
    value = call()
    return time.perf_counter() - start, time.process_time() - cpu, value


def epoch(images):
    "Seconds of one epoch, and a digest of the weights after it."
    model = SeLa(dataset='cifar10', recipe='cifar10_small', backbone='smallconv(width=16)', n_clusters=10, n_heads=1,
                 epochs=1, n_label_updates=1, batch_size=BATCH, device='cpu')
    trainer = model.prepare(images)
    wall, cpu, _ = timed(trainer.train)
    state = b''.join(v.numpy().tobytes() for v in model.network_.state_dict().values())
    return wall, cpu, hashlib.sha256(state).hexdigest()


def shuffled(images):
    "Read every image once, in random order."
    parts = torch.randperm(len(images), generator=generator(0, 'bench')).split(BATCH)
    return sum(len(x) for x in prefetch(parts, images.take))


def as_file(path): return dict(image=Image.open(path))
def as_bytes(path): return dict(image=torch.from_numpy(np.asarray(Image.open(path)).copy()))


def chunks(paths, folder, sample):
    "The files as litdata keeps them, and a function that reads all of them once in random order."
    import litdata
    litdata.optimize(fn=sample, inputs=list(map(str, paths)), output_dir=str(folder), chunk_bytes='64MB', num_workers=1)
    data = litdata.StreamingDataset(str(folder), shuffle=True)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0)
    return lambda: sum(len(x['image']) for x in loader)


def rate(read, n, repeats=3):
    "Images per second on the clock and per second of the processor: the best of some passes."
    read()
    found = [timed(read) for _ in range(repeats)]
    assert all(value == n for *_, value in found), found
    return dict(per_second=round(n / min(f[0] for f in found)), per_cpu_second=round(n / min(f[1] for f in found)))


def rates(files, packed, root):
    read = dict(pack=partial(shuffled, packed), files=partial(shuffled, files))
    if find_spec('litdata'):
        for name, sample in (('litdata_jpeg', as_file), ('litdata_bytes', as_bytes)):
            read[name] = chunks(files.paths, Path(root, name), sample)
    return {name: rate(f, len(files)) for name, f in read.items()}


def measure(folder, n=50_000, repeats=2) -> dict:
    "The epochs, the ratio of their times, and images per second of each way to read."
    with tempfile.TemporaryDirectory() as root:
        files = load('imagenet_folder', 'train', folder, size=32, limit=n)
        packing, _, packed = timed(lambda: pack(files, Path(root, 'packs')))
        sets = dict(resident=files.resident(), pack=packed)
        found = {kind: [] for kind in sets}
        for _ in range(repeats):
            for kind, images in sets.items(): found[kind].append(epoch(images))
        least = {k: [min(e[i] for e in v) for i in (0, 1)] for k, v in found.items()}
        litdata = metadata.version('litdata') if find_spec('litdata') else None
        return dict(n=n, seconds_packing=round(packing, 1), megabytes=round(n * 3072 / 1e6, 1), repeats=repeats,
                    epoch={k: dict(seconds=round(s, 2), cpu_seconds=round(c, 2)) for k, (s, c) in least.items()},
                    ratio=round(least['pack'][0] / least['resident'][0], 3),
                    ratio_cpu=round(least['pack'][1] / least['resident'][1], 3),
                    same_weights=len({e[2] for v in found.values() for e in v}) == 1,
                    reading=rates(files, packed, root), litdata=litdata, load_average=round(os.getloadavg()[0], 1))
