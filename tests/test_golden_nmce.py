"""Arrays that the original implementation of NMCE computed, case by case as the files hold them.

The folder can be replaced with NMC_GOLDEN_NMCE: sizes and parameters are read from the files."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nmc_workbench import losses
from nmc_workbench import metrics
from nmc_workbench import nets
from nmc_workbench import optim

GOLDEN = Path(os.environ.get('NMC_GOLDEN_NMCE', Path(__file__).parent / 'golden' / 'nmce'))
DTYPES = {'': torch.float64, '_f32': torch.float32}


def load(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


def cases(name):
    "(id, arrays of the case without their prefix), for every case in the file."
    prefixes = sorted({k.split('_')[0] for k in load(name) if k[0] == 'c' and k[1].isdigit()})
    assert prefixes
    return [pytest.param(name, p, id=f'{name}-{p}') for p in prefixes]


def case(name, prefix):
    return {k[len(prefix) + 1:]: v for k, v in load(name).items() if k.startswith(prefix + '_')}


def leaf(array, dtype):
    return torch.tensor(array, dtype=dtype, requires_grad=True)


def close(got, want, dtype, loss=True):
    rtol = 1e-9 if dtype == torch.float64 else 1e-4 if loss else 1e-3
    got = got.detach().double().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    assert got.shape == want.shape
    # the floor is the rounding of terms of order 1 that cancel, as R - Rc does for a single cluster
    least = 1e-14 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(got, want, rtol=rtol, atol=max(rtol * np.abs(want).max(), least))


def variants(c, key):
    "The (suffix, dtype) that the case holds."
    return [(s, t) for s, t in DTYPES.items() if key + s in c]


@pytest.mark.parametrize('name, prefix', cases('tcr'))
def test_coding_rate(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'loss'):
        x = leaf(c['X'], dtype)
        loss = -losses.coding_rate(x, c['eps'].item())
        loss.backward()
        close(loss, c['loss' + s], dtype)
        close(x.grad, c['grad_X' + s], dtype, loss=False)


def check_reduction(c, s, dtype, x, rates):
    R, Rc = rates
    loss = -R + c['gamma'].item() * Rc
    loss.backward()
    for got, key in ((loss, 'loss'), (R, 'discrimn'), (Rc, 'compress')): close(got, c[key + s], dtype)
    close(x.grad, c['grad_X' + s], dtype, loss=False)


@pytest.mark.parametrize('name, prefix', cases('mcr2_soft'))
def test_reduction_of_soft_memberships(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'loss'):
        x, p = leaf(c['X'], dtype), leaf(c['P'], dtype)
        check_reduction(c, s, dtype, x, losses.coding_rate_reduction(x, p, c['eps'].item()))
        close(p.grad, c['grad_P' + s], dtype, loss=False)


@pytest.mark.parametrize('name, prefix', cases('mcr2_labels'))
def test_reduction_of_labels(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'loss'):
        x, k = leaf(c['X'], dtype), int(c['num_classes'])
        rates = losses.coding_rate_reduction(x, torch.tensor(c['y']), c['eps'].item(), n_clusters=None if k < 0 else k)
        check_reduction(c, s, dtype, x, rates)


@pytest.mark.parametrize('name, prefix', cases('z_loss'))
def test_view_similarity(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'loss'):
        z = leaf(c['z'], dtype)
        sim = losses.view_similarity(z)
        (-sim).backward()
        close(sim, c['sim' + s], dtype)
        close(-sim, c['loss' + s], dtype)
        close(z.grad, c['grad_z' + s], dtype, loss=False)


@pytest.mark.parametrize('name, prefix', cases('gumbel'))
def test_gumbel_softmax(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'out'):
        logits = leaf(c['logits'], dtype)
        uniform, straight = torch.tensor(c['u'], dtype=dtype), bool(c['straight_through'])
        out = losses.gumbel_softmax(logits, c['tau'].item(), uniform, straight_through=straight)
        (out * torch.tensor(c['R'], dtype=dtype)).sum().backward()
        close(out, c['out' + s], dtype)
        close(logits.grad, c['grad_logits' + s], dtype, loss=False)


@pytest.mark.parametrize('name, prefix', cases('chunk_avg'))
def test_average_views(name, prefix):
    c = case(name, prefix)
    for s, dtype in variants(c, 'out'):
        x = leaf(c['x'], dtype)
        out = losses.average_views(x, int(c['n_chunks']), normalise=bool(c['normalize']))
        (out * torch.tensor(c['R'], dtype=dtype)).sum().backward()
        close(out, c['out' + s], dtype)
        close(x.grad, c['grad_x' + s], dtype, loss=False)


@pytest.mark.parametrize('name, prefix', cases('simclr'))
def test_nt_xent(name, prefix):
    c = case(name, prefix)
    n_views = int(c['n_views'])
    for s, dtype in variants(c, 'loss'):
        for positives in ('first', 'all')[:1 + (n_views == 2)]:
            x = leaf(c['X'], dtype)
            loss = losses.nt_xent(x, c['temperature'].item(), n_views, bool(c['contrastive']), positives)
            loss.backward()
            close(loss, c['loss' + s], dtype)
            close(x.grad, c['grad_X' + s], dtype, loss=False)


# eps, tau, weight of the similarity: of the five objectives, which the file does not hold
OBJECTIVES = dict(stage1=(.2, None, 30), stage23_zw0=(.2, 1., 0), stage23_zw100=(.2, 1., 100), toy=(.01, .2, 4000),
                  coil20=(.01, None, 20), coil100=(.001, None, 20))


def objective(name, z, logits, u):
    eps, tau, weight = OBJECTIVES[name]
    s = losses.view_similarity(z)
    if name == 'stage1':
        rate = sum(losses.coding_rate(half, eps) for half in z.chunk(2)) / 2
        return -rate - weight * s, dict(tcr=-rate, zsim=s)
    mean = losses.average_views(z, 2, normalise=True)
    if tau is None:
        rate = losses.coding_rate(mean, eps)
        return -rate - weight * s, dict(tcr=-rate, zsim=s)
    p = losses.average_views(losses.gumbel_softmax(logits, tau, u), 2)
    R, Rc = losses.coding_rate_reduction(mean, p, eps)
    return Rc - R - weight * s, dict(discrimn=R, compress=Rc, zsim=s, pavg=p)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_objectives(name):
    c = load('objectives')
    zraw, logits = leaf(c['zraw'], torch.float64), leaf(c['logits'], torch.float64)
    loss, parts = objective(name, F.normalize(zraw), logits, torch.tensor(c['u']))
    loss.backward()
    close(loss, c[f'{name}_loss'], torch.float64)
    close(zraw.grad, c[f'{name}_grad_zraw'], torch.float64)
    if f'{name}_grad_logits' in c: close(logits.grad, c[f'{name}_grad_logits'], torch.float64)
    stored = [k for k in parts if f'{name}_{k}' in c]
    assert 'zsim' in stored and len(stored) >= 2
    for k in stored: close(parts[k], c[f'{name}_{k}'], torch.float64)


def test_marginal_entropy():
    c = load('objectives')
    entropy = losses.marginal_entropy(torch.tensor(c['marginal_H_logits'])).item()
    assert entropy == pytest.approx(c['marginal_H'].item(), rel=1e-6)


LARS_NAMES = ('w', 'b', 'conv', 'zero_w', 'zero_g', 'nograd')


@pytest.mark.parametrize('name, prefix', cases('lars'))
def test_lars(name, prefix):
    f, c = load(name), case(name, prefix)
    params = {k: torch.nn.Parameter(torch.tensor(f[f'p0_{k}'])) for k in LARS_NAMES}
    settings = dict(momentum=c['momentum'].item(), weight_decay=c['wd'].item(), trust=c['eta'].item())
    opt = optim.Lars(params.values(), lr=1., **settings, clip=bool(c['clip']), exclude_1d=bool(c['exclude']))
    for t, lr in enumerate(f['lrs'][int(prefix[1:])]):
        opt.param_groups[0]['lr'] = float(lr)
        for k in LARS_NAMES:
            if f'g_{k}' in f: params[k].grad = torch.tensor(f[f'g_{k}'][t])
        opt.step()
        for k, p in params.items():
            np.testing.assert_allclose(p.detach().numpy(), c[f'p_{k}'][t], rtol=1e-12, atol=1e-14)
            if p.grad is not None: assert np.array_equal(p.grad.numpy(), f[f'g_{k}'][t])
    for k, p in params.items():
        if f'buf_{k}' not in c: continue
        buffer = opt.state[p]['momentum_buffer'].numpy()
        np.testing.assert_allclose(buffer, c[f'buf_{k}'], rtol=1e-12, atol=1e-14)


def test_schedules():
    c = load('schedules')
    names = [k[:-5] for k in c if k.endswith('_args')]
    assert {k[:2] for k in names} == {'lr', 'ga'}
    for k in names:
        args = c[f'{k}_args'].tolist()
        if k.startswith('gamma'):
            total, warmup, low, high = args
            ramp = [optim.gamma_ramp(e, int(total), int(warmup), low, high) for e in range(len(c[k]))]
            close(ramp, c[k], torch.float64)
        else:
            base, epochs, warmup = args[0], int(args[1]), int(args[2])
            close([optim.warmup_cosine(e, epochs, base, warmup) for e in range(epochs)], c[k], torch.float64)
            close([optim.warmup_cosine(e, epochs, base) for e in range(epochs)], c[f'{k}_nowarm'], torch.float64)


@pytest.mark.parametrize('name, prefix', cases('cluster_metrics'))
def test_cluster_metrics(name, prefix):
    c = case(name, prefix)
    y, pred, n = c['label'], c['pred'], len(c['label'])
    assert metrics.accuracy(y, pred) == pytest.approx(c['hungarian_correct'].item() / n, abs=1e-12)
    assert metrics.merge_accuracy(y, pred) == pytest.approx(c['merge_acc'].item(), abs=1e-12)
    assert metrics.nmi(y, pred) == pytest.approx(c['nmi'].item(), abs=1e-9)
    assert metrics.ari(y, pred) == pytest.approx(c['ari'].item(), abs=1e-9)
    # the original's greedy match stops after n_classes + 1 clusters, ours never
    limit = int(c['n_classes']) + 1
    greedy = metrics.greedy_accuracy(y, pred)
    if min(len(np.unique(pred)), len(np.unique(y))) <= limit:
        assert greedy == pytest.approx(c['match_acc'].item(), abs=1e-12)
    else: assert greedy >= c['match_acc'].item()


def test_toy_trajectory():
    "Five steps of the double spiral from stored weights, points and noise: nets, losses and views together."
    c = load('toy_trajectory')
    w0 = {k[3:]: torch.tensor(v) for k, v in c.items() if k.startswith('w0_')}
    width, (z_dim, n_clusters) = len(w0['backbone.0.bias']), (len(w0[f'{h}.bias']) for h in ('subspace', 'cluster'))
    net = nets.SubspaceNet(*nets.backbone('mlp', width=width), z_dim=z_dim, n_clusters=n_clusters, hidden=None).double()
    missing, unexpected = net.load_state_dict(w0, strict=False)
    assert not unexpected and set(missing) == {'projection.weight', 'projection.bias'}
    opt = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(.9, .99), weight_decay=1e-5)
    for x, u, row in zip(torch.tensor(c['x']), torch.tensor(c['u']), c['log']):
        loss, parts = objective('toy', *net.subspace_and_logits(x), u)
        opt.zero_grad()
        loss.backward()
        opt.step()
        close(torch.stack([loss, parts['discrimn'], parts['compress'], parts['zsim']]), row, torch.float64)
    for k, v in net.state_dict().items():
        if not k.startswith('projection'): np.testing.assert_allclose(v.numpy(), c[f'w5_{k}'], rtol=1e-7, atol=1e-9)
