"""10,000 samples in 128 dimensions climb a 512 x 4 potential for 20 steps on a CPU: `ascend` against a plain loop that
moves every sample in every step and evaluates the potential at every try for all of them.

    python -m tests.bench.bench_ascent [threads ...]

There are two potentials, each fitted by a few hundred steps of denoising score matching to a mixture of ten
Gaussians on the unit sphere. With spectral normalisation nearly every first try succeeds. Without it, and with the
loss weighted by sigma^2, the samples are at the top after some 15 steps and are nudged. The plain loop normalises
the weights once, too, and takes the height of a place from the pass that gives its score. Near the top, a direction
depends on the last bits of a short score, so two float32 loops separate there; the end points in float64 show
whether the rule is the same."""
import copy
import json
import platform
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.utils import parametrize

from nmc_workbench.modes.ascent import ascend
from nmc_workbench.modes.potential import Potential, dsm_loss, mean_std, noise_scales

POTENTIALS = dict(spectral=dict(norm='spectral', weight='none'), sigma2=dict(norm='none', weight='sigma2'))


def mixture(n, d, n_clusters=10, spread=.05):
    g = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(n_clusters, d, generator=g), dim=1)
    return F.normalize(centres[torch.arange(n) % n_clusters] + spread * torch.randn(n, d, generator=g), dim=1)


def fitted(z, norm, weight, n_steps=300, batch=256):
    torch.manual_seed(0)
    potential, g, z_std = Potential(z.shape[1], norm=norm), torch.Generator().manual_seed(1), mean_std(z)
    potential.generator = g
    optimiser = torch.optim.AdamW(potential.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(n_steps):
        x = z[torch.randint(len(z), (batch,), generator=g)]
        loss = dsm_loss(potential, x, noise_scales(z_std, batch, g), torch.randn(x.shape, generator=g), weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(potential.parameters(), 5.)
        optimiser.step()
    return potential.eval()


def plain(potential, z, step=.2, max_steps=20, tol=1e-3, nudge=.01, tries=3):
    with parametrize.cached():
        for _ in range(max_steps):
            x = z.detach().requires_grad_()
            phi = potential(x)
            s = torch.autograd.grad(phi.sum(), x)[0]
            norm = s.norm(dim=1, keepdim=True)
            if norm.max() < tol: break
            direction = s / norm.clamp(min=1e-8)
            new, done = z + nudge * direction, torch.zeros(len(z), dtype=torch.bool)
            for t in range(tries):
                trial = z + step * .5 ** t * direction
                with torch.no_grad(): good = (potential(trial) >= phi) & ~done
                new, done = torch.where(good[:, None], trial, new), done | good
            z = new
    return z


def timed(f, *args):
    start, busy = time.perf_counter(), time.process_time()
    out = f(*args)
    return out, (time.perf_counter() - start, time.process_time() - busy)


def apart(a, b): return float((a - b).norm(dim=1).max())


def compare(potential, z, repeats=2):
    plain(potential, z[:512]), ascend(potential, z[:512])
    seconds = dict(plain=[], ours=[])
    for _ in range(repeats):
        wanted, s = timed(plain, potential, z)
        seconds['plain'].append(s)
        found, s = timed(ascend, potential, z)
        seconds['ours'].append(s)
    double, few = copy.deepcopy(potential).double(), z[:300].double()
    exact, (s, busy) = plain(double, few), ({k: min(x[i] for x in v) for k, v in seconds.items()} for i in (0, 1))
    return dict(plain_s=round(s['plain'], 2), ours_s=round(s['ours'], 2), ratio=round(s['plain'] / s['ours'], 2),
                ratio_of_processor_time=round(busy['plain'] / busy['ours'], 2),
                largest_difference=apart(found.endpoints, wanted),
                largest_difference_float64=apart(ascend(double, few).endpoints, exact),
                plain_to_its_float64=apart(wanted[:300], exact))


def measure(threads=(1, 2), n=10_000, d=128) -> dict:
    "Seconds of both, each the faster of two runs, and their ratio, for each potential and number of threads."
    out = dict(n=n, d=d, potential='512 x 4', n_steps=20, dtype='float32', torch=torch.__version__,
               machine=platform.processor() or platform.machine())
    before, z = torch.get_num_threads(), mixture(n, d)
    try:
        for name, options in POTENTIALS.items():
            potential = fitted(z, **options)
            for t in threads:
                torch.set_num_threads(t)
                out[f'{name}_threads_{t}'] = compare(potential, z)
    finally: torch.set_num_threads(before)
    return out


if __name__ == '__main__':
    threads = tuple(map(int, sys.argv[1:])) or (1, 2)
    print(json.dumps(measure(threads), indent=1))
