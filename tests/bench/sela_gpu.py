"""SeLa on a GPU: Sinkhorn's iteration for ten heads, and the CIFAR recipe with its nearest neighbours.

    python -m tests.bench.sela_gpu --dataset folder --data FOLDER

FOLDER is a tree with train/ and test/; npz, and cifar10 in data/, are taken as well. It stops by itself before
--minutes are over, with exit code 3; the same command continues from there, also after a kill. At the end it writes
docs/records/sela_cifar10_gpu.json. Without a CUDA device it says so and ends. It needs only PyTorch and the core's
packages, and no network."""
import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from nmc_workbench.core.files import write_json
from nmc_workbench.data import load
from nmc_workbench.methods import SeLa
from nmc_workbench.metrics import knn_accuracy
from nmc_workbench.training.timing import time_budget
from nmc_workbench.transport import sinkhorn

ROOT = Path(__file__).resolve().parents[2]
START = time.monotonic()
OPTIONS = dict(dataset='cifar10', data='data', recipe='cifar10', backbone='resnet18cifar',
               augment='sela_cifar(size=32)', epochs=200, seed=0, device='cuda', amp='bf16', minutes=9., limit=0,
               run_dir='runs/bench/sela_cifar10_gpu', record=str(ROOT / 'docs/records/sela_cifar10_gpu.json'))


def arguments(program, description, options):
    "The options of a command line; without a CUDA device, and none other asked for, it ends here."
    p = argparse.ArgumentParser(prog=f'python -m tests.bench.{program}', description=description,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in options.items():
        option = f'--{name.replace("_", "-")}'
        p.add_argument(option, type=type(value), default=value, help=f'{value} unless given')
    o = p.parse_args()
    if o.device == 'cuda' and not torch.cuda.is_available(): sys.exit('no CUDA device here: nothing was measured')
    return o


def images(o):
    "The training images and the test images."
    options = dict(limit=o.limit) if o.limit else {}
    return (load(o.dataset, split, o.data, **options) for split in ('train', 'test'))


def train(trainer, minutes, epochs):
    "Train to the end, or end the program with code 3 before the minutes are over."
    trainer.train(seconds=60 * minutes - (time.monotonic() - START))
    print(*time_budget(trainer.history), sep='\n')
    if trainer.done: return
    print(f'{len(trainer.history)} of {epochs} epochs are done; the same command continues')
    sys.exit(3)


def device_name(device): return torch.cuda.get_device_name() if device == 'cuda' else 'CPU'


def ten_heads(device, n=50_000, k=128, heads=10):
    "Milliseconds for the labels of ten heads, logits on the device, the median of three."
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(300, 64, generator=g)
    features = centres[torch.randint(300, (n,), generator=g)] + torch.randn(n, 64, generator=g)
    logits = [(features @ torch.randn(64, k, generator=g) / 2).to(device) for _ in range(heads)]
    def once():
        start = time.perf_counter()
        plans = [sinkhorn(x, 10., .01, 'logits') for x in logits]
        return 1000 * (time.perf_counter() - start), sum(p.n_iter for p in plans)
    times = [once() for _ in range(3)]
    return dict(n=n, K=k, heads=heads, ms=round(median(t for t, _ in times), 1), iterations=times[0][1])


def neighbours(model, train, test):
    "Accuracy of the test images by ten weighted neighbours among the training images."
    a, b = model.transform(train), model.transform(test)
    return knn_accuracy(a, train.labels.numpy(), b, test.labels.numpy(), k=10, temperature=.1)


def main():
    o = arguments('sela_gpu', __doc__, OPTIONS)
    seen, test = images(o)
    model = SeLa(recipe=o.recipe, backbone=o.backbone, augment=o.augment, epochs=o.epochs, n_label_updates=o.epochs,
                 seed=o.seed, device=o.device, amp=o.amp, run_dir=o.run_dir, resume=True)
    trainer = model.prepare(seen)
    path = Path(o.run_dir) / 'untrained.json'
    if not path.is_file(): write_json(path, dict(knn=neighbours(model, seen, test)))
    train(trainer, o.minutes, o.epochs)
    model.finish()
    record = dict(command='python -m tests.bench.sela_gpu', device=device_name(o.device), torch=torch.__version__,
                  n=len(seen),
                  backbone=o.backbone, epochs=o.epochs, amp=o.amp, sinkhorn=ten_heads(o.device),
                  knn=neighbours(model, seen, test), knn_untrained=json.loads(path.read_text())['knn'],
                  results=model.results_, budget=time_budget(trainer.history))
    write_json(o.record, record)
    print(record)


if __name__ == '__main__': main()
