"""Views per second of `cifar_simclr_norm`: the batched augmentation against torchvision's pipeline of the same
operations, image by image on PIL.

    python tests/bench/bench_augment.py [out.json]

One core, 32 x 32 colour images, batches of 512; the two take turns, and the medians count."""
import json, statistics, sys, time

import torch
from torchvision import transforms as T
from torchvision.transforms.functional import to_pil_image

from nmc_workbench.augment import preset
from nmc_workbench.augment.presets import CIFAR

def pil_pipeline():
    "Bytes as PIL images in, normalised tensors out."
    jitter = T.RandomApply([T.ColorJitter(.4, .4, .4, .1)], .8)
    return T.Compose([T.RandomResizedCrop(32), T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(.2),
                      T.ToTensor(), T.Normalize(*CIFAR)])

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def measure(
    n: int = 512, # images per batch
    turns: int = 15, # how often each of the two is timed
) -> dict:
    "Images per second of both, their ratio, and the circumstances."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
        images, augment, theirs = [to_pil_image(p) for p in pixels], preset('cifar_simclr_norm'), pil_pipeline()
        pairs = {'ours': lambda: augment(pixels, g), 'torchvision': lambda: torch.stack([theirs(i) for i in images])}
        for f in pairs.values(): f()
        times = {k: [] for k in pairs}
        for _ in range(turns):
            for k, f in pairs.items(): times[k].append(seconds(f))
    finally: torch.set_num_threads(threads)
    ours, tv = (n / statistics.median(times[k]) for k in pairs)
    return dict(images_per_s=ours, torchvision_images_per_s=tv, ratio=ours / tv,
                n=n, threads=1, turns=turns, torch=torch.__version__)

if __name__ == '__main__':
    result = measure()
    print('cifar_simclr_norm 32x32: {images_per_s:,.0f} images/s batched, {torchvision_images_per_s:,.0f} by '
          'torchvision on PIL: {ratio:.1f} times (n={n}, {threads} thread)'.format(**result))
    if len(sys.argv) > 1:
        with open(sys.argv[1], 'w') as f: json.dump(result, f, indent=1)
