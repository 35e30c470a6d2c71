"""Discovery of anchors and neighbours against the original's way and against the product alone, and its growth.

    python -m tests.bench.bench_anchors

The memory holds unit rows around 300 centres in 128 dimensions; N = 20,000, temperature 0.1, one neighbour, and every
sample an anchor, as in the original's last round. The original's way computes 100 rows at a time, once for the
entropies and once more for the neighbours, and asks for every sample whether it is among the anchors. The floor is
the product of the memory with itself, in blocks of rows that are written to one buffer, and nothing else. They run in
turns, and the median of three is given, in seconds on the clock and in seconds of all processors. Growth is measured
with a process for each N; its memory is the most it held beyond what it held when the rows were there.

`seconds_for` computes what larger sets take: half of all products, two floating-point operations each per dimension,
and 14 readings or writings of each logit. `OMP_NUM_THREADS` sets the number of threads."""
import json
import multiprocessing as mp
import statistics
import time

import torch
import torch.nn.functional as F

from nmc_workbench.anchors import discover

from .bench_sinkhorn import forget, memory

D, TEMPERATURE, SIZES = 128, .1, (10_000, 20_000, 50_000, 100_000)
IMAGENET = 1_281_167
PASSES = 14         # readings and writings of a logit: product 3, two maxima 2, exponential 2, four sums 4, weights 3
# of one H200, float32 without tensor cores and memory, from its data sheet: peaks, not measurements
SHEET = dict(flops_per_s=67e12, bytes_per_s=4.8e12)


def rows(n, d=D):
    "A memory of unit rows around 300 centres."
    g = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(300, d, generator=g))
    return F.normalize(centres[torch.randint(300, (n,), generator=g)] + .06 * torch.randn(n, d, generator=g))


def original(m, n_anchors, k):
    "Entropies, anchors, positions and neighbours the original's way."
    n, step = len(m), 100
    entropy = torch.empty(n)
    for a in range(0, n, step):
        p = (m[a:a + step] @ m.T / TEMPERATURE).softmax(1)
        entropy[a:a + step] = -(p * p.log()).sum(1)
    anchors = entropy.topk(n_anchors, largest=False).indices
    position, n_instances = torch.empty(n, dtype=torch.int64), 0
    for i in range(n):
        here = anchors == i
        if here.any(): position[i] = here.nonzero()[0, 0]
        else: position[i] = n_instances = n_instances - 1
    near = torch.empty(n_anchors, k, dtype=torch.int64)
    for a in range(0, n_anchors, step):
        own = anchors[a:a + step]
        similarity = m[own] @ m.T
        similarity.scatter_(1, own[:, None], -1)
        near[a:a + step] = similarity.topk(k).indices
    return anchors, near, position, entropy


def floor(m, step):
    "The product of the memory with itself, without a use."
    out = torch.empty(step, len(m))
    for a in range(0, len(m), step):
        part = m[a:a + step]
        torch.mm(part, m.T, out=out[:len(part)])


def timed(run):
    "Seconds on the clock, seconds of all processors, and what came out."
    clock, used = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - clock, time.process_time() - used, found


def in_turns(runs, repeats=3):
    "Medians of (seconds, processor seconds), and the last results."
    times, found = {name: [] for name in runs}, {}
    for _ in range(repeats):
        for name, run in runs.items():
            *spent, found[name] = timed(run)
            times[name].append(spent)
            print(name, *(f'{s:.2f}' for s in spent), flush=True)
    return {n: [statistics.median(s) for s in zip(*t)] for n, t in times.items()}, found


def compare(n=20_000, share=1., k=1):
    "Ours, the original's way and the floor, with what differs between the first two."
    m, n_anchors = rows(n), int(n * share)
    discover(m[:2000], 100)
    runs = dict(ours=lambda: discover(m, n_anchors, k, TEMPERATURE), original=lambda: original(m, n_anchors, k),
                floor_100=lambda: floor(m, 100), floor_512=lambda: floor(m, 512))
    times, found = in_turns(runs)
    times['floor'] = min(times.pop('floor_100'), times.pop('floor_512'))
    row = dict(n=n, n_anchors=n_anchors, k=k, **differences(m, found['ours'], *found['original']))
    for name, (clock, used) in times.items(): row |= {f'{name}_s': round(clock, 2), f'{name}_cpu_s': round(used, 2)}
    for unit in ('s', 'cpu_s'):
        row[f'times_faster_{unit}'] = round(row[f'original_{unit}'] / row[f'ours_{unit}'], 1)
        row[f'times_floor_{unit}'] = round(row[f'ours_{unit}'] / row[f'floor_{unit}'], 2)
    return row


def differences(m, ours, anchors, near, position, entropy):
    "How many anchors, and how many anchors' neighbours, are not the original's, and how far apart their similarities."
    mine, theirs = (torch.full((len(m), near.shape[1]), -1) for _ in range(2))
    mine[ours.anchors], theirs[anchors] = ours.neighbours, near
    both = (mine[:, 0] >= 0) & (theirs[:, 0] >= 0)
    rows = (both & (mine != theirs).any(1)).nonzero()[:, 0]
    def similarity(x): return torch.einsum('nkd,nd->nk', m[x].double(), m[rows].double())
    gap = (similarity(theirs[rows]) - similarity(mine[rows])).abs().max().item() if len(rows) else 0.
    return dict(other_anchors=int((mine[:, 0] >= 0).ne(theirs[:, 0] >= 0).sum()) // 2, other_neighbours=len(rows),
                largest_gap=gap, entropy_gap=(ours.entropy - entropy).abs().max().item(),
                entropy_gap_to_double=(ours.entropy - exact(m)).abs().max().item())


def exact(m):
    "Entropies in double precision."
    m = m.double()
    p = (torch.softmax(x @ m.T / TEMPERATURE, 1) for x in m.split(1000))
    return torch.cat([torch.special.entr(x).sum(1) for x in p])


def one(n, n_anchors):
    "Seconds and memory in MB at one size; called in a process of its own."
    discover(rows(2000), 100)
    m = rows(n)
    forget()
    before = memory()
    spent = [timed(lambda: discover(m, n_anchors))[:2] for _ in range(1 if n > 50_000 else 3)]
    clock, used = (statistics.median(s) for s in zip(*spent))
    return dict(n=n, s=round(clock, 2), cpu_s=round(used, 2), memory_mb=round(memory() - before, 1),
                rows_mb=round(m.numel() * 4 / 2 ** 20, 1))


def growth(sizes=SIZES):
    "Every sample an anchor, at several sizes; `ns` are nanoseconds of a processor per pair of samples."
    found = []
    for n in sizes:
        with mp.get_context('spawn').Pool(1) as pool: row = pool.apply(one, (n, n))
        found.append(row | dict(ns=round(row['cpu_s'] / n ** 2 * 1e9, 2)))
        print(found[-1], flush=True)
    return found


def seconds_for(n, d, flops_per_s, bytes_per_s, devices=1):
    "What a discovery among n samples takes at these rates of arithmetic and of memory; the tiles are dealt out evenly."
    return (n ** 2 * d / flops_per_s + PASSES * 4 * n ** 2 / 2 / bytes_per_s) / devices


def imagenet(row):
    "Seconds of a discovery among the 1.28 million images of ImageNet, d = 128; here, of one processor."
    here = row['cpu_s'] * (IMAGENET / row['n']) ** 2
    return dict(n=IMAGENET, here_s=round(here), from_n=row['n'],
                **{f'gpus_{c}_s': round(seconds_for(IMAGENET, D, **SHEET, devices=c), 1) for c in (1, 8)})


def measure():
    cases = [compare(share=share, k=k) for share, k in ((1., 1), (.25, 1), (1., 10))]
    sizes = growth()
    return dict(d=D, temperature=TEMPERATURE, threads=torch.get_num_threads(), rows=cases, growth=sizes,
                imagenet=imagenet(sizes[-1]), sheet=SHEET)


if __name__ == '__main__': print(json.dumps(measure(), indent=1))
