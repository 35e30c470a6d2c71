"""One training step of the COIL-20 recipe at 64 x 64, all 1,440 images in two views: the library's way against the
original's, rebuilt here.

    python -m tests.bench.bench_coil_step [threads ...]

Both draw views, pass 2,880 rows through resnet18imgs, a hidden layer of 4,096 and a head of 40, and take an Adam
step on -R(mean of the views) - 20 similarity. The library does so by `NMCE(recipe='coil20')`. The baseline augments
image by image with torchvision on PIL, stacks the tensors, keeps PyTorch's memory format, takes log-determinants
from `torch.logdet`, and computes the cluster head and its Gumbel noise without using them. The images are random
bytes.

The two take turns, each turn in a process of its own: one step to warm up, then the timed ones. `difference`
compares the loss and the gradients of the two on one set of views and weights."""
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms as T
from torchvision.models.resnet import BasicBlock
from torchvision.transforms.functional import to_pil_image

N, SIDE, EPS, WEIGHT = 1440, 64, .01, 20.


def pixels(n=N):
    return torch.randint(0, 256, (n, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    "The network in PyTorch's own words, with the names and the order of the library's."
    def __init__(self):
        super().__init__()
        def stage(a, b, stride):
            down = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if stride > 1 else None
            return nn.Sequential(BasicBlock(a, b, stride, down), BasicBlock(b, b))
        stem = nn.Conv2d(1, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        stages = [stage(a, b, s) for a, b, s in ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2))]
        self.backbone = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pre_feature = nn.Sequential(nn.Linear(256, 4096), nn.BatchNorm1d(4096), nn.ReLU())
        self.projection, self.subspace, self.cluster = nn.Linear(4096, 40), nn.Linear(4096, 40), nn.Linear(4096, 20)

    def forward(self, x):
        h = self.pre_feature(self.backbone(x))
        return F.normalize(self.projection(h)), self.cluster(h)


def plain_loss(net, views):
    z, logits = net(views)
    F.gumbel_softmax(logits, 1.)
    z1, z2 = z.chunk(2)
    mean = F.normalize((z1 + z2) / 2)
    n, d = mean.shape
    rate = torch.logdet(torch.eye(d) + d / (n * EPS) * mean.T @ mean) / 2
    return -rate - WEIGHT * F.cosine_similarity(z1, z2).mean()


class Lap:
    "Wall and processor seconds since the lap before."
    def __init__(self): self.now, self.laps = self._read(), []

    def take(self, *_):
        before, self.now = self.now, self._read()
        self.laps.append([b - a for a, b in zip(before, self.now)])

    def _read(self): return time.perf_counter(), time.process_time()


def plain_steps(n_steps, n=N):
    "Seconds of every step."
    draw = T.Compose([T.RandomHorizontalFlip(.5), T.RandomPerspective(.3, .6), T.ColorJitter(.8, .8, .8, .2),
                      T.ToTensor()])
    net, images = Plain(), pixels(n)
    optimiser, lap = torch.optim.Adam(net.parameters(), 1e-3, (.9, .99), weight_decay=1e-5), Lap()
    for _ in range(n_steps):
        pictures = [to_pil_image(i) for i in images]
        loss = plain_loss(net, torch.stack([draw(p) for _ in range(2) for p in pictures]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        lap.take()
    return lap.laps, {}


def our_trainer(n_steps, n=N):
    from nmc_workbench.methods import NMCE
    model = NMCE(recipe='coil20', batch_size=n, n_clusters=20, epochs=n_steps, device='cpu')
    return model.prepare(pixels(n))


def our_steps(n_steps, n=N):
    "Seconds of every step, which is an epoch, and what the last was spent on."
    trainer, sys.stderr = our_trainer(n_steps, n), io.StringIO()
    lap = Lap()
    log = trainer._record
    trainer._record = lambda row: (log(row), lap.take())
    row = trainer.train()[-1]
    return lap.laps, {k.removeprefix('seconds_'): v for k, v in row.items() if k.startswith('seconds_')}


def difference(n=64) -> dict:
    "Relative differences of loss and gradients between the two, on the same weights and views, in float64."
    ours, net = our_trainer(1, n), Plain().double()
    stage = ours.stages[0].double().train()
    stage.learns(stage.network.backbone, stage.network.pre_feature, stage.network.projection)
    net.load_state_dict(dict(zip(net.state_dict(), stage.network.state_dict().values(), strict=True)))
    views = torch.rand(2, n, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs, loss = plain_loss_double(net, views.flatten(0, 1)), stage.step(None, views)[0]
    theirs.backward(), loss.backward()
    parameters = zip(stage.network.parameters(), net.parameters(), strict=True)
    pairs = [(p.grad, q.grad) for p, q in parameters if p.grad is not None]
    ours, theirs_grad = (torch.cat([g.flatten() for g in gs]) for gs in zip(*pairs))
    return dict(loss=abs(loss / theirs - 1).item(), gradient=((ours - theirs_grad).norm() / theirs_grad.norm()).item())


def plain_loss_double(net, views):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try: return plain_loss(net, views)
    finally: torch.set_default_dtype(before)


def turn(who, threads, n_steps):
    "The timed steps of a fresh process: wall and processor seconds, and the largest memory in GiB."
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    command = [sys.executable, '-m', 'tests.bench.bench_coil_step', who, str(threads), str(n_steps)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def run_turn(who, threads, n_steps):
    torch.set_num_threads(threads)
    laps, parts = dict(ours=our_steps, plain=plain_steps)[who](n_steps + 1)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(dict(laps=laps[1:], parts=parts, gib=gib)))


def compare(threads, turns, n_steps):
    found = dict(ours=[], plain=[])
    for _ in range(turns):
        for who, results in found.items(): results.append(turn(who, threads, n_steps))
    # of each lap: wall and processor seconds
    laps = {who: [lap for r in results for lap in r['laps']] for who, results in found.items()}
    wall, cpu = ({who: statistics.median(lap[i] for lap in laps[who]) for who in laps} for i in (0, 1))
    gib = {who: max(r['gib'] for r in results) for who, results in found.items()}
    parts = {k: round(statistics.median(r['parts'][k] for r in found['ours']), 2) for k in found['ours'][0]['parts']}
    return dict(ours_s=round(wall['ours'], 2), plain_s=round(wall['plain'], 2),
                ratio=round(wall['plain'] / wall['ours'], 2),
                ours_cpu_s=round(cpu['ours'], 2), plain_cpu_s=round(cpu['plain'], 2),
                ratio_cpu=round(cpu['plain'] / cpu['ours'], 2),
                ours_gib=round(gib['ours'], 1), plain_gib=round(gib['plain'], 1), ours_parts_s=parts)


def measure(threads=(1, 2), turns=3, n_steps=2) -> dict:
    """Medians in seconds, their ratios and the memory, for each number of threads; processor seconds say more where
    other programs run."""
    out = dict(n=N, views=2, size=SIDE, backbone='resnet18imgs', turns=turns, steps=n_steps, torch=torch.__version__,
               machine=platform.processor() or platform.machine(), difference=difference())
    return out | {f'threads_{t}': compare(t, turns, n_steps) for t in threads}


if __name__ == '__main__':
    if sys.argv[1:2] in (['ours'], ['plain']): run_turn(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else: print(json.dumps(measure(tuple(map(int, sys.argv[1:])) or (1, 2)), indent=1))
