"""Losses against slow references, closed forms and symmetries."""
import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from nmc_workbench.core.errors import InputError
from nmc_workbench.losses import (
    _tiles, average_views, coding_rate, coding_rate_reduction, gumbel_softmax, marginal_entropy, max_coding_rate,
    nt_xent, optimal_reduction, view_similarity)


def draw(n, d, k, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype)
    return z, torch.randn(n, k, generator=g, dtype=torch.float64).softmax(1).to(dtype)


def slow_rates(z, p, eps):
    "The definition, one cluster after the other, differentiated by autograd."
    n, d = z.shape
    eye = torch.eye(d, dtype=z.dtype)
    R = torch.linalg.slogdet(eye + d / (n * eps) * z.T @ z)[1] / 2
    Rc = 0
    for q in p.T:
        t = q.sum() + 1e-8
        Rc = Rc + t / (2 * n) * torch.linalg.slogdet(eye + d / (t * eps) * (z.T * q) @ z)[1]
    return R, Rc


@pytest.mark.parametrize('n, d, k, eps', [(50, 8, 4, .01), (5, 12, 3, .2), (30, 30, 1, .5), (64, 3, 20, .001)])
def test_matches_slow_reference(n, d, k, eps):
    grads = []
    for rates in (slow_rates, coding_rate_reduction):
        z, p = (t.clone().requires_grad_() for t in draw(n, d, k))
        R, Rc = rates(z, p, eps)
        (2 * R - .7 * Rc).backward()
        grads.append((R.detach(), Rc.detach(), z.grad, p.grad))
    for got, want in zip(*grads): torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_tiles_change_nothing(monkeypatch):
    z, p = draw(40, 6, 7)
    def run():
        a, b = z.clone().requires_grad_(), p.clone().requires_grad_()
        R, Rc = coding_rate_reduction(a, b, .1)
        (R - Rc).backward()
        return R, Rc, a.grad, b.grad
    whole = run()
    tiles = [(slice(i, i + 16), slice(j, j + 3)) for i in range(0, 40, 16) for j in range(0, 8, 3)]
    monkeypatch.setattr('nmc_workbench.losses._tiles', lambda x, k: [t for t in tiles if t[1].start < k])
    for got, want in zip(run(), whole): torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('n, d', [(9, 4), (4, 7)])
def test_gradcheck(n, d):
    z, p = (t.requires_grad_() for t in draw(n, d, 3))
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, .1), z)
    assert torch.autograd.gradcheck(lambda z, p: coding_rate_reduction(z, p, .1), (z, p))
    empty = (p * torch.tensor([1., 0., 1.])).detach()
    assert torch.autograd.gradcheck(lambda z: coding_rate_reduction(z, empty, .1), z)


def test_gradient_of_an_empty_cluster_membership():
    "Near t = 1e-8 the rate bends within 1e-8, so the difference step must be smaller still."
    z, p = draw(9, 4, 3)
    p[:, 1] = 0
    step, q = 1e-11, p.clone().requires_grad_()
    coding_rate_reduction(z, q, .1)[1].backward()
    up, down = p.clone(), p.clone()
    up[2, 1] += step; down[2, 1] -= step
    slope = (coding_rate_reduction(z, up, .1)[1] - coding_rate_reduction(z, down, .1)[1]) / (2 * step)
    assert q.grad[2, 1].item() == pytest.approx(slope.item(), rel=1e-2)


@pytest.mark.parametrize('shape, k', [((600, 128), 100), ((2, 5), 3), ((300, 3000), 2)])
def test_tiles_cover_everything_once(shape, k):
    seen = torch.zeros(shape[0], k)
    for t in _tiles(torch.empty(shape), k): seen[t] += 1
    assert (seen == 1).all()


def test_only_wanted_gradients_and_no_second_derivative():
    z, p = draw(12, 4, 3)
    for needs in ((True, False), (False, True)):
        a, b = z.clone().requires_grad_(needs[0]), p.clone().requires_grad_(needs[1])
        R, Rc = coding_rate_reduction(a, b, .1)
        (Rc - R).backward()
        assert (a.grad is not None, b.grad is not None) == needs
    a = z.clone().requires_grad_()
    grad, = torch.autograd.grad(coding_rate(a, .1), a, create_graph=True)
    with pytest.raises(RuntimeError): grad.sum().backward()


def test_invariances():
    z, p = draw(40, 6, 4)
    want = torch.stack(coding_rate_reduction(z, p, .1))
    g = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    rows, columns = torch.randperm(40, generator=g), torch.randperm(4, generator=g)
    for a, b in ((z @ turn, p), (z[rows], p[rows]), (z, p[:, columns]), (z, torch.cat([p, 0 * p], 1))):
        torch.testing.assert_close(torch.stack(coding_rate_reduction(a, b, .1)), want, rtol=1e-10, atol=1e-12)


def test_reduction_is_not_negative_and_zero_for_one_cluster():
    for seed in range(20):
        z, p = draw(30, 5, 3, seed)
        R, Rc = coding_rate_reduction(z, p, .1)
        assert R >= Rc
    R, Rc = coding_rate_reduction(z, torch.ones(30, 1, dtype=torch.float64), .1)
    assert abs(R - Rc) < 1e-6


@pytest.mark.parametrize('k, dims, eps', [(2, 3, .01), (10, 4, .2), (5, 1, .5)])
def test_closed_form_optimum_of_orthogonal_subspaces(k, dims, eps):
    d = k * dims
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    z, y = basis.repeat(3, 1), torch.arange(3 * d) % d // dims
    R, Rc = coding_rate_reduction(z, y, eps)
    assert R.item() == pytest.approx(max_coding_rate(d, eps), rel=1e-9)
    assert (R - Rc).item() == pytest.approx(optimal_reduction(d, k, eps), abs=1e-6)


def test_known_values_of_the_bounds():
    assert max_coding_rate(128, .2) == pytest.approx(114.67, abs=.01)
    assert max_coding_rate(200, .001) == pytest.approx(690.9, abs=.1)
    assert optimal_reduction(6, 2, .01) == pytest.approx(5.89, abs=.01)
    assert optimal_reduction(128, 10, .2) == pytest.approx(89.5, abs=.1)


def test_labels_equal_their_one_hot_and_noise_belongs_nowhere():
    z, _ = draw(30, 5, 1)
    y = torch.arange(30) % 4
    torch.testing.assert_close(coding_rate_reduction(z, y, .1), coding_rate_reduction(z, F.one_hot(y).double(), .1))
    y[::3] = -1
    hot = F.one_hot(y.clamp_min(0), 4).double() * (y >= 0)[:, None]
    torch.testing.assert_close(coding_rate_reduction(z, y, .1, n_clusters=4), coding_rate_reduction(z, hot, .1))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_single(dtype):
    z, p = (t.to(dtype).requires_grad_() for t in draw(64, 16, 5))
    with torch.autocast('cpu', torch.bfloat16):
        R, Rc = coding_rate_reduction(z, p, .001)
        (R - Rc).backward()
    assert R.dtype == torch.float32 and z.grad.dtype == dtype
    assert z.grad.isfinite().all() and p.grad.isfinite().all()
    exact_z, exact_p = (t.detach().double().requires_grad_() for t in (z, p))
    want = coding_rate_reduction(exact_z, exact_p, .001)
    (want[0] - want[1]).backward()
    torch.testing.assert_close(torch.stack((R, Rc)).double(), torch.stack(want), rtol=1e-5, atol=1e-4)
    tol = dict(rtol=1e-2, atol=1e-2) if dtype != torch.float32 else dict(rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.grad.double(), exact_z.grad, **tol)


def test_nan_shows_in_the_loss():
    z, p = draw(20, 4, 3)
    z[3, 1] = math.nan
    assert all(r.isnan() for r in coding_rate_reduction(z, p, .1))


BAD = [
    (lambda z, p: coding_rate(z[0], .1), 'expected a float tensor of shape'),
    (lambda z, p: coding_rate(z[:0], .1), r'\(0, 4\)'),
    (lambda z, p: coding_rate(z, 0), 'eps=0'),
    (lambda z, p: coding_rate(z, math.nan), 'eps=nan'),
    (lambda z, p: coding_rate_reduction(z, p[:-1], .1), r'\(7, 3\).*\(8, 4\)'),
    (lambda z, p: coding_rate_reduction(z, p.long(), .1), 'expected floats'),
    (lambda z, p: coding_rate_reduction(z, p[:, 0], .1), 'expected integers'),
    (lambda z, p: coding_rate_reduction(z, p, .1, n_clusters=5), 'n_clusters=5.*3 columns'),
    (lambda z, p: coding_rate_reduction(z, torch.arange(8), .1, n_clusters=5), 'label 7 >= n_clusters=5'),
    (lambda z, p: view_similarity(z[None]), 'n_views=1'),
    (lambda z, p: view_similarity(z, n_views=3), 'n_views=3'),
    (lambda z, p: average_views(z, 0), 'n_views=0'),
    (lambda z, p: gumbel_softmax(p, 0), 'tau=0'),
    (lambda z, p: gumbel_softmax(p, 1, p[:2]), r'\(2, 3\).*\(8, 3\)'),
    (lambda z, p: nt_xent(z, 0), 'temperature=0'),
    (lambda z, p: nt_xent(z, 1, n_views=8), 'batch=1'),
    (lambda z, p: nt_xent(z, 1, positives='some'), "positives='some'; expected one of 'all', 'first'"),
]


@pytest.mark.parametrize('call, message', BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call(*draw(8, 4, 3))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('n_views', [2, 3, 5])
def test_view_similarity_is_the_mean_over_pairs(n_views):
    views = torch.randn(n_views, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [F.cosine_similarity(views[a], views[b]).mean() for a in range(n_views) for b in range(a)]
    for form in (views, list(views)): torch.testing.assert_close(view_similarity(form), torch.stack(pairs).mean())
    torch.testing.assert_close(view_similarity(views.flatten(0, 1), n_views=n_views), view_similarity(views.flip(0)))
    assert view_similarity(views[:1].repeat(n_views, 1, 1)).item() == pytest.approx(1)


def test_gumbel_is_seeded_and_finite():
    logits = torch.zeros(1000, 10, requires_grad=True)
    one, two = (gumbel_softmax(logits, .1, generator=torch.Generator().manual_seed(s)) for s in (0, 0))
    other = gumbel_softmax(logits, .1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    one.square().sum().backward()
    assert one.isfinite().all() and logits.grad.isfinite().all()
    hard = gumbel_softmax(logits, 1., straight_through=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hard.argmax(1), one.argmax(1)) and (hard.max(1).values > .999).all()


def slow_nt_xent(z, temperature, n_views, decoupled, positives):
    n, total, count = len(z), 0, 0
    batch = n // n_views
    for i in range(n):
        mates = [j for j in range(n) if j != i and j % batch == i % batch]
        for j in mates[:1] if positives == 'first' else mates:
            rest = [k for k in range(n) if k % batch != i % batch]
            if positives == 'first': rest += mates[1:]
            if not decoupled: rest.append(j)
            total = total + torch.logsumexp(z[rest] @ z[i] / temperature, 0) - z[i] @ z[j] / temperature
            count += 1
    return total / count


@pytest.mark.parametrize('n_views', [2, 3])
@pytest.mark.parametrize('decoupled', [False, True])
@pytest.mark.parametrize('positives', ['all', 'first'])
def test_nt_xent_matches_slow_reference(n_views, decoupled, positives):
    z = draw(6 * n_views, 5, 1)[0].requires_grad_()
    got = nt_xent(z, .3, n_views, decoupled, positives)
    want = slow_nt_xent(z, .3, n_views, decoupled, positives)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (got, want)))


def test_marginal_entropy_at_its_ends():
    assert marginal_entropy(torch.zeros(5, 8)).item() == pytest.approx(3)
    assert marginal_entropy(torch.tensor([[100., 0, 0]] * 4)).item() == pytest.approx(0, abs=1e-6)


def _rank(rank, world, port, out):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=world)
    torch.save(_train_gradients(rank, world), f'{out}/{rank}.pt')
    dist.destroy_process_group()


def _train_gradients(rank=0, world=1):
    "Loss and parameter gradients of a linear map and a membership head on this rank's rows, averaged as DDP does."
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # unequal shares: the rates must not take the mean of means
    x = x[:10] if (rank, world) == (0, 2) else x[10:] if world == 2 else x
    torch.manual_seed(1)
    heads = torch.nn.ModuleList([torch.nn.Linear(6, 5), torch.nn.Linear(6, 3)]).double()
    z, p = F.normalize(heads[0](x)), heads[1](x).softmax(1)
    R, Rc = coding_rate_reduction(z, p, .1)
    loss = 2 * Rc - R - coding_rate(z, .5)
    loss.backward()
    grads = [q.grad for q in heads.parameters()]
    if world > 1:
        for g in grads: dist.all_reduce(g); g /= world
        alone = coding_rate(z.detach(), .1, sync=False)
        assert not torch.isclose(alone, R.detach()) and torch.isclose(alone, slow_rates(z.detach(), p.detach(), .1)[0])
        with pytest.raises(InputError, match='several ranks'): coding_rate_reduction(z, p.argmax(1), .1)
    return loss.detach(), grads


def test_two_ranks_equal_one_process(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (2, port, str(tmp_path)), nprocs=2)
    want = _train_gradients()
    for rank in range(2):
        loss, grads = torch.load(tmp_path / f'{rank}.pt', weights_only=True)
        torch.testing.assert_close(loss, want[0], rtol=1e-6, atol=1e-9)
        for got, g in zip(grads, want[1]): torch.testing.assert_close(got, g, rtol=1e-6, atol=1e-9)
