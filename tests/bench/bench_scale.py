"""What the page of the plan to a billion images needs and no other bench measures.

    python -m tests.bench.bench_scale

The bytes that a list of image files takes in a process: 20,000 files in 20 folders, read as `imagenet_folder` and not
decoded, as Python's and numpy's allocations. The weights of a ResNet-50 without its last layer, counted."""
import gc
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import torch
from PIL import Image

from nmc_workbench.data import load
from nmc_workbench.nets import backbone

N, FOLDERS = 20_000, 20


def files(root):
    "N files in FOLDERS folders, all of them one image."
    for k in range(FOLDERS): (root / f'train/{k:09}').mkdir(parents=True)
    first = root / 'one.jpg'
    Image.new('RGB', (8, 8)).save(first)
    for i in range(N): os.link(first, root / f'train/{i % FOLDERS:09}/{i:012}.jpg')
    first.unlink()


def index_bytes():
    "Bytes per image, and the characters of a path."
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='index_') as folder:
        files(Path(folder))
        load('imagenet_folder', 'train', folder, size=8, limit=2)       # what is loaded once
        gc.collect()
        tracemalloc.start()
        images = load('imagenet_folder', 'train', folder, size=8)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(images) == N and images.streams
        return round(used / N), len(str(images.pixels.paths[0]))


def measure():
    used, characters = index_bytes()
    with torch.device('meta'): network, features = backbone('torchvision:resnet50')
    return dict(index_bytes=used, path_characters=characters, n=N, features=features,
                parameters=sum(p.numel() for p in network.parameters()))


if __name__ == '__main__': print(json.dumps(measure(), indent=1))
