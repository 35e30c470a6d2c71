"""A pass of Sinkhorn's iteration from features on a GPU: by PyTorch, and by the kernel of Triton.

    python -m tests.bench.sinkhorn_gpu [--samples 1000000] [--repeats 5]

K = 1,000 and 3,000 clusters, features of 32, 128, 512 and 2,048 numbers in single precision. The two take turns; a row
has the median seconds of each, their ratio, and how far their sums are apart. Writes docs/records/sinkhorn_gpu.json.
Without a CUDA device it says so and ends."""
import time
from pathlib import Path
from statistics import median

import torch

from nmc_workbench.core.files import write_json
from nmc_workbench.transport import _PASSES, _HeadScores, _Streamed

from .sela_gpu import ROOT, arguments, device_name

OPTIONS = dict(samples=1_000_000, repeats=5, device='cuda', record=str(ROOT / 'docs/records/sinkhorn_gpu.json'))
CLUSTERS, SIZES, POWER = (1_000, 3_000), (32, 128, 512, 2_048), 25.


def seconds(one_pass, u):
    "Seconds of a pass, and what it finds."
    wait = torch.cuda.synchronize if u.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    found = one_pass(u)
    wait()
    return time.perf_counter() - start, found


def row(n, k, d, repeats, device):
    "Both kernels in turns on one problem."
    g = torch.Generator(device).manual_seed(0)
    x, weight = torch.randn(n, d, generator=g, device=device), torch.randn(k, d, generator=g, device=device) / d ** .5
    u, passes, spent = torch.zeros(k, dtype=torch.float64, device=device), {}, {}
    for name, kind in _PASSES.items():
        passes[name] = kind(_HeadScores(_Streamed(x, weight), POWER, 'logits', 'f32', None, device), False)
        passes[name].first()
        passes[name](u)                                 # compiled, and its memory taken
    for _ in range(repeats):
        found = {name: seconds(one_pass, u) for name, one_pass in passes.items()}
        for name, (time_taken, _) in found.items(): spent.setdefault(name, []).append(time_taken)
    (_, (v, t)), (_, (other_v, other_t)) = found.values()
    torch_s, triton_s = (median(spent[name]) for name in _PASSES)
    return dict(n=n, K=k, d=d, torch_s=torch_s, triton_s=triton_s, ratio=torch_s / triton_s,
                v_apart=float((v - other_v).abs().max()), t_apart=float((k * (t - other_t)).abs().max()))


def main():
    o = arguments('sinkhorn_gpu', __doc__, OPTIONS)
    rows = []
    for k in CLUSTERS:
        for d in SIZES:
            rows.append(row(o.samples, k, d, o.repeats, o.device))
            print(rows[-1], flush=True)
    write_json(Path(o.record), dict(command='python -m tests.bench.sinkhorn_gpu', device=device_name(o.device),
                                    torch=torch.__version__, date=time.strftime('%Y-%m-%d'), rows=rows))


if __name__ == '__main__': main()
