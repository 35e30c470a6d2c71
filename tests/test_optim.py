"""LARS, Muon and UnitAdam against slow references, schedules against torch's own scheduler."""
import copy
import math

import pytest
import torch

from nmc_workbench import optim
from nmc_workbench.core.errors import InputError
from nmc_workbench.optim import Lars, gamma_ramp, warmup_cosine


def problem(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in ((4, 3), (3,), (2, 3, 3, 3), ())]


def set_gradients(params, step):
    g = torch.Generator().manual_seed(step)
    for p in params: p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def slow_lars(params, buffers, lr, momentum, weight_decay, trust, clip, exclude_1d):
    for i, p in enumerate(params):
        g, norm_w, norm_g = p.grad, p.detach().norm().item(), p.grad.norm().item()
        if norm_w and norm_g and not (exclude_1d and p.ndim <= 1):
            r = trust * norm_w / (norm_g + weight_decay * norm_w + 1e-8)
            if clip: r = min(r / lr, 1)
            g = r * (g + weight_decay * p.detach())
        buffers[i] = g if buffers[i] is None else momentum * buffers[i] + g
        p.data -= lr * buffers[i]


@pytest.mark.parametrize('clip', [True, False])
@pytest.mark.parametrize('exclude_1d', [True, False])
def test_matches_slow_reference(clip, exclude_1d):
    settings = dict(lr=.05, momentum=.8, weight_decay=.01, trust=.02, clip=clip, exclude_1d=exclude_1d)
    fast, slow, buffers = problem(), problem(), [None] * 4
    opt = Lars(fast, **settings)
    for t in range(5):
        set_gradients(fast, t), set_gradients(slow, t)
        opt.step()
        slow_lars(slow, buffers, **settings)
        for a, b in zip(fast, slow): torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_clipped_large_rates_are_plain_sgd_without_decay():
    "r >= 1 everywhere: LARS is then SGD."
    fast, slow = problem(), problem()
    a, b = Lars(fast, lr=.1, trust=1e6), torch.optim.SGD(slow, lr=.1, momentum=.9)
    for t in range(3):
        set_gradients(fast, t), set_gradients(slow, t)
        a.step(), b.step()
    for p, q in zip(fast, slow): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_groups_have_their_own_settings():
    one, two = problem(), problem()
    groups = Lars([dict(params=one[:1], lr=.5, weight_decay=.1), dict(params=one[1:], clip=False)], lr=.1, momentum=.9)
    parts = Lars(two[:1], lr=.5, weight_decay=.1), Lars(two[1:], lr=.1, clip=False)
    for t in range(3):
        set_gradients(one, t), set_gradients(two, t)
        for opt in (groups, *parts): opt.step()
    for p, q in zip(one, two): assert torch.equal(p, q)


def test_resumed_equals_uninterrupted():
    one, two = problem(), problem()
    a = Lars(one, lr=.1, weight_decay=.01)
    b = Lars(two, lr=.1, weight_decay=.01)
    for t in range(6):
        if t == 3:
            state = copy.deepcopy(b.state_dict())
            b = Lars(two, lr=9., momentum=0.)
            b.load_state_dict(state)
        set_gradients(one, t), set_gradients(two, t)
        a.step(), b.step()
    for p, q in zip(one, two): assert torch.equal(p, q)
    assert b.param_groups[0]['lr'] == .1


def test_gradients_and_parameters_without_one_stay():
    params = problem()
    set_gradients(params[:3], 0)
    grads, last = [p.grad.clone() for p in params[:3]], params[3].detach().clone()
    opt = Lars(params, lr=.1, weight_decay=.1)
    opt.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, grads))
    assert torch.equal(params[3], last) and params[3] not in opt.state


def test_zero_norms_step_without_decay():
    zero_w, zero_g = torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    zero_w.grad, zero_g.grad = torch.ones(3, 2), torch.zeros(3, 2)
    Lars([zero_w, zero_g], lr=.1, weight_decay=.5).step()
    assert torch.allclose(zero_w, torch.full((3, 2), -.1)) and torch.equal(zero_g, torch.ones(3, 2))


def test_mixed_types_closure_and_zero_rate():
    params = [problem()[0], problem(torch.float32)[2]]
    before = [p.detach().clone() for p in params]
    opt = Lars(params, lr=0.)
    def closure():
        opt.zero_grad()
        loss = sum(p.double().square().sum() for p in params)
        loss.backward()
        return loss
    assert opt.step(closure).item() > 0 and all(torch.equal(p, q) for p, q in zip(params, before))
    opt.param_groups[0]['lr'] = .1
    assert opt.step(closure) > sum(p.detach().double().square().sum() for p in params)


@pytest.mark.parametrize('bad, message', [
    (dict(lr=-1), 'lr=-1'),
    (dict(lr=.1, momentum=1.), 'momentum=1.0'),
    (dict(lr=.1, trust=0.), 'trust=0.0'),
    (dict(lr=.1, weight_decay=math.nan), 'weight_decay=nan'),
])
def test_settings_out_of_range(bad, message):
    with pytest.raises(InputError, match=message): Lars(problem(), **bad)


@pytest.mark.parametrize('epochs, warmup', [(30, 0), (30, 1), (30, 10), (7, 7), (5, 9)])
def test_warmup_cosine_matches_the_scheduler(epochs, warmup):
    opt = torch.optim.SGD(problem(), lr=.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs)
    for e in range(epochs):
        if e < warmup: opt.param_groups[0]['lr'] = .3 * (e + 1) / warmup
        assert warmup_cosine(e, epochs, .3, warmup) == pytest.approx(opt.param_groups[0]['lr'], rel=1e-9)
        opt.step()
        scheduler.step()


def test_ends_of_the_schedules():
    assert warmup_cosine(0, 10, .5) == .5 and warmup_cosine(10, 10, .5) == 0
    assert warmup_cosine(5, 10, .5) == pytest.approx(.25)
    assert [gamma_ramp(e, 10, 4, .1, .9) for e in (0, 6, 8, 10, 11)] == pytest.approx([.1, .1, .5, .9, .1])
    for bad in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(InputError): warmup_cosine(*bad, .1)


# --- Muon


def svd_step(weight, grad, buffer, lr, momentum):
    "The step with the exact orthogonal factor."
    buffer = buffer + (1 - momentum) * (grad - buffer)
    u, _, v = torch.linalg.svd(grad + momentum * (buffer - grad), full_matrices=False)
    return weight - lr * max(1., weight.shape[0] / weight.shape[1]) ** .5 * u @ v, buffer


@pytest.mark.parametrize('shape', [(8, 8), (6, 20), (20, 6)])
def test_muon_steps_along_the_orthogonal_factor(shape):
    g = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
    opt, exact = optim.Muon([weight], lr=.1, momentum=.9), weight.detach().clone()
    buffer = torch.zeros(*shape, dtype=torch.float64)
    for _ in range(3):
        weight.grad, before = torch.randn(*shape, generator=g, dtype=torch.float64), weight.detach().clone()
        opt.step()
        wanted, buffer = svd_step(exact, weight.grad, buffer, .1, .9)
        step, target = (weight.detach() - before).flatten(), (wanted - exact).flatten()
        assert torch.cosine_similarity(step, target, 0) > .95 and .6 < (step.norm() / target.norm()) < 1.3
        exact = wanted


def test_muon_treats_matrices_of_a_shape_like_single_ones():
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(5, 7, generator=g) for _ in range(3)]
    def stepped(groups):
        params = [torch.nn.Parameter(torch.ones(5, 7)) for _ in grads]
        for p, grad in zip(params, grads): p.grad = grad
        for opt in groups(params): opt.step()
        return torch.stack([p.detach() for p in params])
    together = stepped(lambda ps: [optim.Muon(ps, lr=.1)])
    apart = stepped(lambda ps: [optim.Muon([p], lr=.1) for p in ps])
    torch.testing.assert_close(together, apart)


def test_muon_continues_from_its_state_to_the_bit():
    def run(stop):
        g, p = torch.Generator().manual_seed(2), torch.nn.Parameter(torch.ones(4, 4))
        opt = optim.Muon([p], lr=.05, weight_decay=.1)
        for i in range(6):
            if i == stop:
                state, p = opt.state_dict(), torch.nn.Parameter(p.detach().clone())
                opt = optim.Muon([p], lr=9.)
                opt.load_state_dict(state)
            p.grad = torch.randn(4, 4, generator=g)
            opt.step()
        return p.detach()
    assert run(None).equal(run(3))


@pytest.mark.parametrize('make, message', [
    (lambda p: optim.Muon([p], lr=0), 'lr=0; expected a finite number above 0'),
    (lambda p: optim.Muon([p], lr=1, momentum=1), 'momentum=1'),
    (lambda p: optim.Muon([p], lr=1, steps=0), 'steps=0'),
    (lambda p: optim.Muon([torch.nn.Parameter(torch.zeros(2, 3, 3, 3))], lr=1), r'shape \(2, 3, 3, 3\)'),
])
def test_muon_refuses(make, message):
    with pytest.raises(InputError, match=message): make(torch.nn.Parameter(torch.zeros(3, 3)))


# --- UnitAdam


def test_unit_adam_is_adam_on_unit_gradients():
    g = torch.Generator().manual_seed(3)
    def draw(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    grads = [[draw(4, 3), 1e-4 * draw(5)] for _ in range(4)]
    def run(kind, scaled):
        params = [torch.nn.Parameter(torch.ones_like(x)) for x in grads[0]]
        opt = kind(params, .1, (.9, .99), weight_decay=.01)
        for step in grads:
            for p, x in zip(params, step): p.grad = x / x.norm() if scaled else x.clone()
            opt.step()
        return params
    runs = run(optim.UnitAdam, False), run(torch.optim.Adam, True), run(torch.optim.Adam, False)
    for ours, plain, other in zip(*runs):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-7)
        assert not torch.allclose(ours, other, atol=1e-6)


def test_unit_adam_leaves_a_zero_gradient_zero_and_skips_none():
    still, moved, left = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    still.grad, moved.grad = torch.zeros(3), torch.full((3,), 1e-6)
    assert optim.UnitAdam([still, moved, left], .1).step(lambda: torch.tensor(2.)) == 2.
    assert still.equal(torch.ones(3)) and left.equal(torch.ones(3))
    assert torch.allclose(moved, torch.full((3,), .9), atol=1e-5)
