"""AND on a GPU: seconds of an epoch and of a discovery at N = 50,000, nearest neighbours by round; and k-means there.

    python -m tests.bench.and_gpu --dataset folder --data FOLDER

FOLDER is a tree with train/ and test/; npz, and cifar10 in data/, are taken as well. It stops by itself before
--minutes are over, with exit code 3; the same command continues from there, also after a kill. At the end it writes
docs/records/and_cifar10_gpu.json. Without a CUDA device it says so and ends. It needs only PyTorch and the core's
packages, and no network."""
import time
from statistics import median

import torch

from nmc_workbench.anchors import discover
from nmc_workbench.core.files import write_json
from nmc_workbench.lloyd import assign_and_sum
from nmc_workbench.methods import AND
from nmc_workbench.metrics import knn_accuracy
from nmc_workbench.training.timing import time_budget
from tests.bench.sela_gpu import ROOT, arguments, device_name, images, train

OPTIONS = dict(dataset='cifar10', data='data', recipe='cifar10', epochs=20, rounds=5, seed=0, device='cuda', amp='bf16',
               minutes=9., limit=0, run_dir='runs/bench/and_cifar10_gpu',
               record=str(ROOT / 'docs/records/and_cifar10_gpu.json'))


def timed(call, device, repeats=5):
    "Milliseconds, the median."
    def wait(): return torch.cuda.synchronize() if device != 'cpu' else None
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return round(median(times), 3)


def pieces(device, n=50_000, d=128, width=256, k=1000):
    "Milliseconds of a discovery of n anchors, and of a round of k-means of n x width samples."
    g = torch.Generator().manual_seed(0)
    memory = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1).to(device)
    x = torch.randn(n, width, generator=g).to(device)
    return dict(n=n, d=d, width=width, k=k, discover_ms=timed(lambda: discover(memory, n), device, 3),
                kmeans_round_ms=timed(lambda: assign_and_sum(x, x[:k], 0.), device))


def main():
    o = arguments('and_gpu', __doc__, OPTIONS)
    seen, test = images(o)
    model = AND(recipe=o.recipe, epochs=o.epochs, rounds=o.rounds, lr_decay_offset=o.epochs // 2,
                lr_decay_step=max(1, o.epochs // 4), seed=o.seed, device=o.device, amp=o.amp, run_dir=o.run_dir,
                n_clusters=seen.n_classes, resume=True)
    trainer = model.prepare(seen)
    train(trainer, o.minutes, o.epochs * o.rounds)
    model.finish()
    a, b = model.transform(seen), model.transform(test)
    votes = min(200, len(seen))
    record = dict(command='python -m tests.bench.and_gpu', torch=torch.__version__, n=len(seen), amp=o.amp,
                  device=device_name(o.device), epochs=o.epochs, rounds=o.rounds,
                  by_round=[r['neighbours'] for r in trainer.history if 'neighbours' in r],
                  knn=knn_accuracy(a, seen.labels.numpy(), b, test.labels.numpy(), k=votes, temperature=.1),
                  published=.748, epoch_seconds=median(r['seconds'] for r in trainer.history),
                  pieces=pieces(o.device, min(50_000, 10 * len(seen))), budget=time_budget(trainer.history))
    write_json(o.record, record)
    print(record)


if __name__ == '__main__': main()
