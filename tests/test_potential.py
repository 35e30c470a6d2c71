"""The potential: scores against closed forms and differences, the losses against slow references, the spectral norm."""
import copy
import math

import pytest
import torch
from torch.nn.utils import parametrize

from nmc_workbench.core.errors import InputError
from nmc_workbench.modes.potential import (Potential, dsm_loss, endpoint_loss, evaluated, grad_cosine_loss,
                                           height_and_score, mean_std, noise_scales, score)

MU = torch.tensor([.3, -1., 2.], dtype=torch.float64)


def bowl(z): return -(z - MU).square().sum(1) / 2


def rows(n=6, d=3, seed=0): return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(norm='spectral', dim=3, **options):
    torch.manual_seed(0)
    return Potential(dim, hidden=16, norm=norm, **options).double().eval()


def differences(f, z, h=1e-5):
    "Central differences of a sum over rows."
    out = torch.zeros_like(z)
    for i in range(z.numel()):
        e = torch.zeros_like(z).view(-1)
        e[i] = h
        out.view(-1)[i] = (f(z + e.view_as(z)) - f(z - e.view_as(z))).detach() / (2 * h)
    return out


def test_score_of_a_bowl():
    torch.testing.assert_close(score(bowl, rows()), MU - rows())
    with torch.no_grad(): phi, s = height_and_score(bowl, rows())
    torch.testing.assert_close(s, MU - rows())
    torch.testing.assert_close(phi, bowl(rows()))
    assert not s.requires_grad and not phi.requires_grad


@pytest.mark.parametrize('norm', ['spectral', 'none'])
@pytest.mark.parametrize('depth', [1, 2, 4])
def test_score_against_differences(norm, depth):
    potential, z = small(norm, depth=depth), rows()
    wanted = differences(lambda z: potential(z).sum(), z)
    for found in (score(potential, z), height_and_score(potential, z)[1]):
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(height_and_score(potential, z)[0], potential(z).detach())
    field, chosen = evaluated(potential), torch.tensor([5, 0, 2])
    torch.testing.assert_close(field.scores(field.heights(z)[1], chosen), score(potential, z)[chosen])


def test_a_potential_in_training_is_read_as_in_evaluation_and_left_alone():
    potential, z = small(dropout=.5), rows()
    wanted, before = height_and_score(potential, z), copy.deepcopy(potential.train().state_dict())
    for f in (potential, lambda z: potential.eval()(z)):
        found = height_and_score(f, z)
        assert torch.equal(found[0], wanted[0]) or torch.allclose(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1])
        potential.train()
    after = potential.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), after.values())) and potential.training


@pytest.mark.parametrize('weight', ['none', 'sigma2'])
@pytest.mark.parametrize('norm', ['spectral', 'none'])
def test_dsm_against_a_loop(weight, norm):
    potential, z, eps = small(norm), rows(), rows(seed=1)
    sigma = torch.linspace(.1, .6, 6, dtype=torch.float64)
    total = 0.
    for i in range(6):
        s = differences(lambda z: potential(z).sum(), (z[i] + sigma[i] * eps[i])[None])[0]
        w = sigma[i].item() ** 2 if weight == 'sigma2' else 1
        for j in range(3): total += w * (s[j] + eps[i, j] / sigma[i]).item() ** 2 / 18
    assert math.isclose(dsm_loss(potential, z, sigma, eps, weight).item(), total, rel_tol=1e-7)
    with torch.no_grad(): assert math.isclose(dsm_loss(potential, z, sigma, eps, weight).item(), total, rel_tol=1e-7)


def test_gradient_of_dsm_against_differences():
    potential, z, eps, sigma = small(), rows(), rows(seed=1), torch.full((6,), .5, dtype=torch.float64)
    w = potential.layers[1].parametrizations.weight.original
    dsm_loss(potential, z, sigma, eps).backward()
    for i, j in ((0, 0), (3, 7), (15, 2)):
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad(): w[i, j] += h
            values.append(dsm_loss(potential, z, sigma, eps).item())
            with torch.no_grad(): w[i, j] -= h
        assert math.isclose(w.grad[i, j].item(), (values[0] - values[1]) / 2e-5, rel_tol=1e-4, abs_tol=1e-9)


def test_optimum_for_data_at_one_point():
    "Among bowls of any width, the score of the noise's own Gaussian makes the loss least, and zero."
    sigma, eps = torch.full((200,), .4, dtype=torch.float64), rows(200)
    def loss(width):
        def narrow(z): return -(z - MU).square().sum(1) / (2 * width ** 2)
        return dsm_loss(narrow, MU.expand(200, 3), sigma, eps).item()
    losses = {width: loss(width) for width in (.3, .35, .4, .45, .5)}
    assert min(losses, key=losses.get) == .4 and losses[.4] < 1e-20


def test_optimum_for_gaussian_data():
    """Data of variance v and noise of variance sigma^2 make a Gaussian of variance v + sigma^2; its score is the best
    among those of all bowls."""
    n, v, sigma = 20_000, 1., .5
    z, noise, scales = MU + rows(n), rows(n, seed=1), torch.full((n,), sigma, dtype=torch.float64)
    def loss(u): return dsm_loss(lambda z: -(z - MU).square().sum(1) / (2 * u), z, scales, noise).item()
    losses = {u: loss(u) for u in (.9, 1., 1.25, 1.5, 2.)}
    assert min(losses, key=losses.get) == v + sigma ** 2


def test_training_brings_the_loss_down():
    potential, g = Potential(2, hidden=32, norm='none'), torch.Generator().manual_seed(0)
    potential.generator = g
    z = torch.randn(256, 2, generator=g) * .1 + torch.tensor([1., 0.])
    optimiser, losses = torch.optim.AdamW(potential.parameters(), 1e-3), []
    for _ in range(150):
        loss = dsm_loss(potential, z, noise_scales(1., 256, g, .3, .5), torch.randn(256, 2, generator=g), 'sigma2')
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < .5 * sum(losses[:20])


def test_gradient_of_endpoint_loss_against_differences():
    potential, z, z_aug = small(), rows(4), rows(4, seed=1)
    w, start = potential.layers[0].parametrizations.weight.original, z.clone().requires_grad_()
    found = torch.autograd.grad(endpoint_loss(potential, start, z_aug), [start, w])
    wanted = differences(lambda z: endpoint_loss(potential, z, z_aug), z)
    torch.testing.assert_close(found[0], wanted, atol=1e-9, rtol=1e-5)
    def at(h):
        with torch.no_grad(): w[2, 1] += h
        value = endpoint_loss(potential, z, z_aug).item()
        with torch.no_grad(): w[2, 1] -= h
        return value
    assert math.isclose(found[1][2, 1].item(), (at(1e-5) - at(-1e-5)) / 2e-5, rel_tol=1e-4, abs_tol=1e-9)


def test_endpoint_loss_against_a_loop():
    potential, z, z_aug = small(), rows(4), rows(4, seed=1)
    ends = []
    for view in (z, z_aug):
        for _ in range(5):
            s = score(potential, view)
            view = view + .1 * torch.stack([r / max(r.norm().item(), 1e-8) for r in s])
        ends.append(view)
    loss = endpoint_loss(potential, z, z_aug).item()
    assert math.isclose(loss, (ends[0] - ends[1]).square().mean().item(), rel_tol=1e-9)
    assert endpoint_loss(potential, z, z) == 0
    assert math.isclose(loss, endpoint_loss(potential, z_aug, z).item(), rel_tol=1e-9)


def test_cosine_loss():
    s = rows()
    assert abs(grad_cosine_loss(s, 2 * s)) < 1e-12 and math.isclose(grad_cosine_loss(s, -s), 2)
    assert math.isclose(grad_cosine_loss(torch.eye(3), torch.eye(3).roll(1, 0)), 1, rel_tol=1e-6)


def test_spectral_norm_is_one():
    potential = Potential(8, hidden=32)
    with torch.no_grad():
        for layer in potential.layers: layer.parametrizations.weight.original.mul_(7)
    for _ in range(60): potential(torch.randn(4, 8))
    norms = [torch.linalg.matrix_norm(layer.weight.detach(), 2).item() for layer in potential.eval().layers]
    assert all(abs(norm - 1) < .02 for norm in norms)
    far = score(potential, 10 * torch.randn(500, 8)).norm(dim=1).max()
    assert far < 1.1 ** 3 * 1.05
    free = Potential(8, hidden=32, norm='none')
    assert not any(parametrize.is_parametrized(layer) for layer in free.layers)


def test_weights_are_kaiming_fan_out():
    w = Potential(512, hidden=512, norm='none').layers[0].weight
    assert abs(w.std().item() - math.sqrt(2 / 512)) < 1e-3
    assert not any(layer.bias.any() for layer in Potential(4).layers)


def test_dropout_follows_its_generator():
    potential, z = Potential(3, hidden=16, norm='none'), torch.randn(50, 3)
    potential.generator = torch.Generator().manual_seed(5)
    first = potential(z)
    torch.manual_seed(9)
    potential.generator.manual_seed(5)
    assert torch.equal(first, potential(z)) and not torch.equal(first, potential(z))
    assert torch.equal(potential.eval()(z), potential(z))
    copy.deepcopy(potential)


def test_noise_scales():
    u = noise_scales(2., 50_000, torch.Generator().manual_seed(0)).double()
    assert .1 <= u.min() < .101 and .99 < u.max() <= 1.
    assert abs(u.log().mean() - (math.log(.1) + math.log(1.)) / 2) < .01       # uniform in the logarithm
    first, again = (noise_scales(2., 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert math.isclose(mean_std(torch.tensor([[0., 0.], [2., 4.]])).item(), (2 ** .5 + 8 ** .5) / 2, rel_tol=1e-6)


@pytest.mark.parametrize('bad', [
    lambda: Potential(3, norm='spectrum'), lambda: Potential(3, dropout=1.), lambda: Potential(0),
    lambda: small()(torch.zeros(2, 4).double()), lambda: small()(torch.zeros(3).double()),
    lambda: dsm_loss(bowl, rows(), torch.ones(6), rows(), 'sigma'),
    lambda: dsm_loss(bowl, rows(), torch.ones(5), rows()),
    lambda: noise_scales(1., 3, torch.Generator(), .5, .05),
    lambda: endpoint_loss(bowl, rows(3), rows(4)), lambda: mean_std(torch.ones(1, 3)),
    lambda: height_and_score(lambda z: z, rows())])
def test_bad_input(bad):
    with pytest.raises(InputError) as e: bad()
    assert '\n' not in str(e.value)
