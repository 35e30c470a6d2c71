"""The ascent against the rule carried out sample by sample, and what must hold on the way."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nmc_workbench.modes.ascent import ascend
from nmc_workbench.core.errors import InputError
from nmc_workbench.modes.potential import Potential, score

MU = torch.tensor([.3, -1., 2.], dtype=torch.float64)


def bowl(z): return -(z - MU).square().sum(1) / 2


def hills(z):
    "Two Gaussian hills and a broad bowl under them, in any dimension."
    a, b = torch.zeros_like(z[0]), torch.zeros_like(z[0])
    a[0], b[0] = 1., -1.
    return (-(z - a).square().sum(1) / .5).exp() + .7 * (-(z - b).square().sum(1) / .5).exp() - .02 * z.square().sum(1)


def rows(n=60, d=3, seed=0, scale=1.):
    return scale * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(norm='none', d=3, gain=3.):
    torch.manual_seed(1)
    potential = Potential(d, hidden=16, norm=norm).double().eval()
    if norm == 'none':
        with torch.no_grad(): potential.layers[0].weight.mul_(gain)      # curved enough that some tries fail
    return potential


def one_by_one(potential, z, step=.2, max_steps=20, tol=1e-3, nudge=.01, tries=3, sphere=False):
    "The rule as it is written, a sample at a time; also whether each move was a nudge."
    f = lambda x: float(potential(x[None]).detach())
    ends, moves = [], []
    for x in z:
        if sphere: x = x / x.norm()
        moves.append([])
        for _ in range(max_steps):
            s = score(potential, x[None])[0]
            if sphere: s = s - (s @ x) * x
            if s.norm() < tol: break
            u, length, found = s / s.norm(), step, None
            for _ in range(tries):
                trial = x + length * u
                if sphere: trial = trial / trial.norm()
                if f(trial) >= f(x):
                    found = trial
                    break
                length /= 2
            moves[-1].append(found is None)
            x = x + nudge * u if found is None else found
            if sphere: x = x / x.norm()
        ends.append(x)
    return torch.stack(ends), moves


CASES = [(bowl, 3), (hills, 2), (network(), 3), (network('spectral'), 3)]


@pytest.mark.parametrize('sphere', [False, True])
@pytest.mark.parametrize('potential, d', CASES, ids=['bowl', 'hills', 'network', 'spectral'])
def test_equals_the_rule(potential, d, sphere):
    z = rows(25, d)
    wanted, moves = one_by_one(potential, z, sphere=sphere)
    found = ascend(potential, z, retract='sphere' if sphere else None, record=True)
    assert found.n_steps.tolist() == [len(m) for m in moves]
    # about a top a direction amplifies the last bits, step for step
    torch.testing.assert_close(found.endpoints, wanted, atol=1e-7, rtol=0)
    torch.testing.assert_close(found.heights, potential(wanted).detach(), atol=1e-7, rtol=0)
    risen = torch.stack([potential(p).detach() for p in found.paths]).diff(dim=0)
    for i, nudged in enumerate(moves):
        assert all(up >= -1e-12 or was_nudge for up, was_nudge in zip(risen[:, i], nudged))


def test_the_rule_was_put_to_use():
    "Among the cases there are first, second and third tries, and nudges."
    z = rows(25, 2)
    found = ascend(hills, z, record=True)
    lengths = found.paths.diff(dim=0).norm(dim=2)
    for length in (.2, .1, .05, .01): assert ((lengths - length).abs() < 1e-9).any()
    allowed = torch.tensor([0., .2, .1, .05, .01], dtype=torch.float64)
    assert ((lengths[..., None] - allowed).abs().min(2).values < 1e-9).all()


def test_a_bowl_is_climbed_from_everywhere():
    found = ascend(bowl, rows(200, scale=3.), max_steps=100)
    assert (found.endpoints - MU).norm(dim=1).max() < .011
    assert ascend(bowl, rows(200, scale=3.), max_steps=100, normalise='none', step=.9, nudge=0.).arrived.all()


def test_what_arrived_rests():
    z = torch.cat([MU[None], MU[None] + 5e-4, rows(5)])
    found = ascend(bowl, z, record=True)
    assert found.arrived[:2].all() and (found.n_steps[:2] == 0).all() and (found.n_steps[2:] > 0).all()
    assert (found.paths[:, :2] == z[:2]).all()
    torch.testing.assert_close(found.paths[-1], found.endpoints)
    torch.testing.assert_close(found.arrived, score(bowl, found.endpoints).norm(dim=1) < 1e-3)
    alone = ascend(bowl, z[:2], record=True)
    assert alone.paths.shape == (1, 2, 3) and alone.arrived.all()


@pytest.mark.parametrize('batch_size', [1, 7, 60, 1000])
def test_batches_do_not_matter(batch_size):
    potential, z = network(), rows()
    wanted, found = ascend(potential, z, record=True), ascend(potential, z, batch_size=batch_size, record=True)
    torch.testing.assert_close(found.paths, wanted.paths, atol=1e-7, rtol=0)
    assert (found.n_steps == wanted.n_steps).all() and (found.arrived == wanted.arrived).all()


def test_order_does_not_matter():
    z, order = rows(), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ascend(hills, z[order]).endpoints, ascend(hills, z).endpoints[order], atol=1e-9, rtol=0)


def test_a_constant_more_changes_nothing():
    lifted = ascend(lambda z: hills(z) + 2., rows())
    torch.testing.assert_close(lifted.endpoints, ascend(hills, rows()).endpoints, atol=1e-7, rtol=0)


def test_a_network_goes_as_any_function():
    potential, z = network('spectral'), rows()
    by_autograd = ascend(lambda z: potential(z), z)
    torch.testing.assert_close(ascend(potential, z).endpoints, by_autograd.endpoints, atol=1e-7, rtol=0)


def test_the_sphere_is_not_left():
    z = rows().float()
    found = ascend(lambda z: bowl(z.double()).float(), z, retract='sphere', max_steps=60, record=True)
    assert (found.paths.norm(dim=2) - 1).abs().max() < 1e-6
    assert (found.endpoints - F.normalize(MU.float(), dim=0)).norm(dim=1).max() < .011
    torch.testing.assert_close(found.paths[0], F.normalize(z, dim=1))


def test_training_is_left_as_it_was():
    potential = network('spectral').float().train()
    before = copy.deepcopy(potential.state_dict())
    z = rows().float()
    found = ascend(potential, z)
    after = potential.state_dict()
    assert potential.training and all(torch.equal(a, b) for a, b in zip(before.values(), after.values()))
    assert torch.equal(found.endpoints, ascend(potential.eval(), z).endpoints) and torch.equal(z, rows().float())
    assert not found.endpoints.requires_grad and found.endpoints.dtype == torch.float32
    assert torch.equal(ascend(potential, np.asarray(z)).endpoints, found.endpoints)


def test_no_steps():
    found = ascend(hills, rows(), max_steps=0)
    assert torch.equal(found.endpoints, rows()) and (found.n_steps == 0).all() and not found.arrived.any()


@pytest.mark.parametrize('bad', [
    dict(z=torch.tensor([[float('nan'), 0., 0.]])), dict(z=torch.tensor([[float('inf'), 0., 0.]])),
    dict(z=torch.zeros(3)), dict(z=torch.zeros(0, 3)), dict(z=torch.zeros(2, 3, dtype=torch.long)),
    dict(step=0.), dict(tries=0), dict(max_steps=-1), dict(nudge=-1.), dict(tol=-1.), dict(batch_size=0),
    dict(normalise='l2'), dict(retract='ball'),
    dict(potential=lambda z: z.sum(1) * float('nan')), dict(potential=lambda z: z)])
def test_bad_input(bad):
    with pytest.raises(InputError) as e: ascend(**{**dict(potential=bowl, z=rows()), **bad})
    assert '\n' not in str(e.value)
