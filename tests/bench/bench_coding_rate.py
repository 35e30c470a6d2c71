"""Forward and backward of the rate reduction against the plain formulation, interleaved in one run.

    python tests/bench/bench_coding_rate.py [threads ...]

The plain formulation weights the features into a (K, d, n) tensor, multiplies it with the features, takes
LU log-determinants and leaves the gradient to autograd."""
import json
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from nmc_workbench.losses import coding_rate_reduction


def plain(z, p, eps):
    n, d = z.shape
    eye = torch.eye(d, dtype=z.dtype, device=z.device)
    whole = torch.logdet(eye + d / (n * eps) * (z.T @ z)) / 2
    size = p.sum(0) + 1e-8
    # (1, d, n) * (K, 1, n) -> (K, d, n)
    weighted = z.T[None] * p.T[:, None]
    gram = torch.bmm(weighted, z.expand(len(size), n, d))
    parts = torch.logdet(eye + (d / (size * eps))[:, None, None] * gram)
    return whole, (size * parts).sum() / (2 * n)


def step(rates, z, p, eps):
    z.grad = p.grad = None
    start = time.perf_counter()
    R, Rc = rates(z, p, eps)
    (Rc - R).backward()
    if z.is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(n, d, n_clusters, eps, repeats, device='cpu'):
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(n, d, generator=g)).to(device).requires_grad_()
    p = torch.randn(n, n_clusters, generator=g).softmax(1).to(device).requires_grad_()
    pair = dict(ours=coding_rate_reduction, plain=plain)
    for rates in pair.values(): step(rates, z, p, eps), step(rates, z, p, eps)
    # turn by turn, so that what else the machine does meets both alike
    times = {k: [] for k in pair}
    for _ in range(repeats):
        for k, rates in pair.items(): times[k].append(step(rates, z, p, eps))
    # the fastest pass of many is what a quiet machine gives; the median is what this one gave
    ms, best = ({k: 1e3 * f(v) for k, v in times.items()} for f in (statistics.median, min))
    return dict(ours_ms=round(ms['ours'], 2), plain_ms=round(ms['plain'], 2), ratio=round(ms['plain'] / ms['ours'], 2),
                ours_best_ms=round(best['ours'], 2), plain_best_ms=round(best['plain'], 2),
                ratio_of_best=round(best['plain'] / best['ours'], 2))


def measure(threads=(1, 2), n=2048, d=128, n_clusters=10, eps=.2, repeats=25) -> dict:
    "Medians in milliseconds and their ratio, for each number of threads."
    out = dict(n=n, d=d, n_clusters=n_clusters, dtype='float32', repeats=repeats, torch=torch.__version__,
               machine=platform.processor() or platform.machine())
    before = torch.get_num_threads()
    try:
        for t in threads:
            torch.set_num_threads(t)
            out[f'threads_{t}'] = compare(n, d, n_clusters, eps, repeats)
    finally: torch.set_num_threads(before)
    if torch.cuda.is_available(): out['cuda'] = compare(n, d, n_clusters, eps, repeats, 'cuda')
    return out


if __name__ == '__main__':
    threads = tuple(map(int, sys.argv[1:])) or (1, 2)
    print(json.dumps(measure(threads), indent=1))
