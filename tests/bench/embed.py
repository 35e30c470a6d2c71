"""Images per second of `embed` against a bare loop of the same network over arrays that are decoded and resized.

    python -m tests.bench embed_speed                          on the CPU, as docs/records/embed_speed.json has it
    python -m tests.bench.embed --device cuda --record FILE    ResNet-50 and ViT-B/14 with random weights, on a GPU

Photographs of 400 x 300 pixels are made for it, and embedded from JPEG files and from arrays. Both loops run in turn,
and the best of several runs counts. `decode` is the seconds that reading and resizing take by themselves, over those of
the bare loop: on a GPU, the network waits for the images where it is above 1."""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nmc_workbench.core.files import write_json
from nmc_workbench.core.seeds import initialised
from nmc_workbench.data import as_images, load
from nmc_workbench.nets.encoders import RANDOM, encoder
from nmc_workbench.training.embed import _laid_out, _Reader, embed
from nmc_workbench.training.precision import Precision

WIDTH, HEIGHT = 400, 300


def photographs(folder, n):
    "Write n JPEG files with the detail of photographs."
    rng = np.random.default_rng(0)
    for i in range(n):
        parts = [rng.integers(0, 256, (HEIGHT // s, WIDTH // s, 3), dtype=np.uint8) for s in (100, 20, 5)]
        layers = [np.asarray(Image.fromarray(p).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for p in parts]
        x = np.average(layers, axis=0, weights=(.6, .3, .1)).astype(np.uint8)
        Image.fromarray(x).save(Path(folder) / f'{i:05}.jpg', quality=90)


def synced(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def seconds(call, device):
    synced(device)
    start = time.perf_counter()
    call()
    synced(device)
    return time.perf_counter() - start


def bare(net, x, batch_size, device, amp):
    "The network over prepared bytes (N, C, h, w), and nothing else."
    with Precision(amp, device).cast():
        for part in x.split(batch_size): net(_laid_out(net.scaled(part.to(device, non_blocking=True)))).cpu()


def read_only(images, net, batch_size, device):
    "What `embed` does without the network."
    reader = _Reader(images, net, 0, device)
    for index in torch.arange(len(images)).split(batch_size): reader(index)
    reader.close()


def measured(net, images, batch_size, device, amp, repeats):
    "Images per second of both loops, and the share of reading."
    net = net.to(device).to(memory_format=torch.channels_last)
    source = images if not images.streams else images.resident()
    x = net.pixels(source.pixels)
    options = dict(batch_size=batch_size, device=str(device), amp=amp)
    times = dict(bare=[], embed=[], decode=[])
    embed(images.subset(range(2 * batch_size)), net, **options)                     # warm
    for _ in range(repeats):
        times['bare'].append(seconds(lambda: bare(net, x, batch_size, device, amp), device))
        times['embed'].append(seconds(lambda: embed(images, net, **options), device))
        times['decode'].append(seconds(lambda: read_only(images, net, batch_size, device), device))
    best = {k: min(v) for k, v in times.items()}
    n = len(images)
    return dict(n=n, batch_size=batch_size, bare=n / best['bare'], embed=n / best['embed'],
                share=best['bare'] / best['embed'], decode=best['decode'] / best['bare'])


def rows(names, n, batch_size, device, amp, repeats=3):
    "One row per encoder and kind of images."
    found = []
    with tempfile.TemporaryDirectory() as folder:
        photographs(folder, n)
        files = load('imagenet_folder', 'all', folder, size=HEIGHT)
        arrays = as_images(files.resident().pixels.numpy())
        for name in names:
            net = initialised(lambda: encoder(name, RANDOM), 0)
            for kind, images in (('files', files), ('arrays', arrays)):
                row = measured(net, images, batch_size, device, amp, repeats)
                found.append(dict(encoder=name, images=kind, **{k: round(v, 3) for k, v in row.items()}))
                print(found[-1], flush=True)
    return found


def measure():
    "The rows of the record, on the CPU with as many threads as torch takes."
    found = rows(['torchvision:resnet18'], 192, 32, torch.device('cpu'), 'off')
    return dict(photographs=[WIDTH, HEIGHT], threads=torch.get_num_threads(), rows=found)


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.bench.embed', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--amp', default='bf16')
    parser.add_argument('--n', type=int, default=6144)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--encoders', default='torchvision:resnet50,timm:vit_base_patch14_dinov2', help='with commas')
    parser.add_argument('--record', default='docs/records/embed_gpu.json')
    o = parser.parse_args()
    device = torch.device(o.device)
    if device.type == 'cuda' and not torch.cuda.is_available(): return print('there is no CUDA device here')
    found = rows(o.encoders.split(','), o.n, o.batch_size, device, o.amp)
    named = torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'
    write_json(o.record, dict(command='python -m tests.bench.embed', torch=torch.__version__, device=named, amp=o.amp,
                              threads=torch.get_num_threads(), rows=found))


if __name__ == '__main__': main()
