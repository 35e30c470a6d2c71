"Anchors and neighbours against a plain reference in double precision; the memory; several ranks; what is refused."
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nmc_workbench import anchors as anchors_module, losses
from nmc_workbench.anchors import Anchors, anchor_count, discover, entropies
from nmc_workbench.core.errors import InputError
from nmc_workbench.losses import memory_nll, neighbourhood_nll
from nmc_workbench.methods.anchor_neighbourhoods import memory as memories
from nmc_workbench.methods.anchor_neighbourhoods.memory import Memory, memory_for
from nmc_workbench.methods.anchor_neighbourhoods.rates import parse_schedule, rate_policy, read_schedule

from .ranks import member, together


def rows(n, d=12, seed=0, unit=True, dtype=torch.float32):
    "Rows around a few centres."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1 + n // 15, d, generator=g)[torch.arange(n) % (1 + n // 15)] + torch.randn(n, d, generator=g)
    return (F.normalize(x) if unit else x / d ** .5).to(dtype)


def reference(memory, n_anchors, k, temperature):
    "Row by row, from the definition: entropies, anchors, neighbours, positions."
    m = memory.double().numpy()
    entropy, near = np.empty(len(m)), np.empty((len(m), k), int)
    for i, row in enumerate(m):
        z = m @ row / temperature
        p = np.exp(z - z.max())
        p /= p.sum()
        entropy[i] = -(p[p > 0] * np.log(p[p > 0])).sum()
        z[i] = -np.inf
        near[i] = np.argsort(-z, kind='stable')[:k]
    anchors = np.argsort(entropy, kind='stable')[:n_anchors]
    position, count = np.empty(len(m), int), 0
    for i in range(len(m)):
        if i in anchors: position[i] = np.flatnonzero(anchors == i)[0]
        else: position[i] = count = count - 1
    return entropy, anchors, near[anchors], position


def same(found, memory, n_anchors, k, temperature, tolerance=1e-5):
    "Entropies within the tolerance; anchors and neighbours the same, or such as rounding cannot tell apart."
    entropy, anchors, near, position = reference(memory, n_anchors, k, temperature)
    np.testing.assert_allclose(found.entropy, entropy, rtol=0, atol=tolerance)
    np.testing.assert_allclose(entropy[found.anchors], entropy[anchors], rtol=0, atol=tolerance)
    m = memory.double().numpy()
    place = {a: i for i, a in enumerate(anchors)}
    for a, row in zip(found.anchors.tolist(), found.neighbours.numpy()):
        assert a not in row and len(set(row)) == k
        if a in place: np.testing.assert_allclose(m[row] @ m[a], m[near[place[a]]] @ m[a], rtol=1e-5, atol=1e-6)
    if np.array_equal(found.anchors, anchors): assert np.array_equal(found.position, position)
    assert np.array_equal(np.sort(np.r_[found.anchors, found.instances]), np.arange(len(m)))
    assert np.array_equal(np.sort(found.position), np.arange(n_anchors - len(m), n_anchors))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('temperature', [.1, .01, 1.])
@pytest.mark.parametrize('unit', [True, False])
@pytest.mark.parametrize('n, n_anchors, k', [(2, 1, 1), (40, 0, 3), (64, 64, 63), (333, 80, 1), (700, 700, 5)])
def test_against_the_definition(n, n_anchors, k, unit, temperature, dtype):
    memory = rows(n, unit=unit, dtype=dtype)
    found = discover(memory, n_anchors, k, temperature)
    assert found.entropy.dtype == dtype and found.neighbours.shape == (n_anchors, k)
    same(found, memory, n_anchors, k, temperature)
    torch.testing.assert_close(entropies(memory, temperature), found.entropy, rtol=0, atol=1e-12)


@pytest.mark.parametrize('n', [95, 96, 97, 127, 200])
@pytest.mark.parametrize('tile', [32, 64, 96])
def test_any_number_of_samples_and_any_tile(tile, n, monkeypatch):
    monkeypatch.setitem(anchors_module._TILE, 'cpu', tile)
    monkeypatch.setitem(anchors_module._GATHERED, 'cpu', 3000)
    for k in (1, 4): same(discover(rows(n), n // 2, k, .1), rows(n), n // 2, k, .1)


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_threads_share_the_tiles_and_are_given_back(threads, monkeypatch):
    monkeypatch.setitem(anchors_module._TILE, 'cpu', 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [discover(rows(400), 100, 2) for _ in range(2)]
        assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)
    same(found[0], rows(400), 100, 2, .1)
    for a, b in zip(*(f.state().values() for f in found)): assert torch.equal(a, b)         # to the bit


def test_lengths_for_which_no_bound_is_near(monkeypatch):
    "Lengths over six orders of magnitude, and a temperature at which single precision has lost the logits."
    monkeypatch.setitem(anchors_module._TILE, 'cpu', 64)
    memory = rows(200) * torch.logspace(-3, 3, 200)[:, None]
    same(discover(memory, 50, 2, .1), memory, 50, 2, .1)
    same(discover(rows(200), 50, 2, 1e-4), rows(200), 50, 2, 1e-4)


@pytest.mark.parametrize('n', [2000, 5000])
def test_single_precision_keeps_five_digits(n):
    "As the memory is at first, and after it has become unit rows."
    for unit in (True, False):
        memory = rows(n, 128, unit=unit)
        assert (entropies(memory) - entropies(memory.double())).abs().max() < 1e-5


def test_memory_is_left_as_it_is():
    memory = rows(100).requires_grad_()
    before = memory.detach().clone()
    found = discover(memory, 20)
    assert torch.equal(memory, before) and not found.entropy.requires_grad
    half = discover(before.half(), 20)
    same(half, before.half().float(), 20, 1, .1)


def test_equal_rows():
    "Samples that are the same have the same entropy, and are each other's neighbours; the smaller index comes first."
    memory = rows(40).repeat(2, 1)
    found = discover(memory, 80, 1)
    assert torch.equal((found.neighbours[:, 0] - found.anchors).abs(), torch.full((80,), 40))
    assert found.entropy.min() >= 0


def test_state_and_devices():
    found = discover(rows(60), 15, 2)
    again = Anchors.from_state(pickle.loads(pickle.dumps(found.state())))
    for a, b in zip(found.state().values(), again.to('cpu').state().values()): assert torch.equal(a, b)
    assert torch.equal(again.position, found.position) and again.n_neighbours == 2 and len(again) == 15
    none = Anchors.from_state(Anchors.none(5).state())
    assert len(none) == 0 and none.position.tolist() == [-1, -2, -3, -4, -5] and none.entropy.isnan().all()
    assert none.of(torch.tensor([4, 0])).shape == (2, 0) and none.consistency([0] * 5) is None


@pytest.mark.parametrize('change, words', [
    (dict(entropy=None), "no tensor 'entropy'"), (dict(anchors=torch.tensor([0, 9])), 'holds 9'),
    (dict(anchors=torch.tensor([1, 1])), '2 anchors'), (dict(neighbours=torch.tensor([[1], [-2]])), 'holds -2'),
    (dict(neighbours=torch.tensor([0, 1])), 'shape (2,)')])
def test_a_damaged_state_is_refused(change, words):
    state = dict(anchors=torch.tensor([0, 1]), neighbours=torch.tensor([[1], [2]]), entropy=torch.zeros(4)) | change
    with pytest.raises(InputError) as e: Anchors.from_state(state)
    assert words in str(e.value)


def test_statistics():
    found = discover(rows(60), 15)
    stats = found.statistics()
    assert stats['anchors']['max'] <= stats['instances']['min'] and stats['all']['max'] == float(found.entropy.max())
    assert discover(rows(60), 0).statistics()['anchors'] == dict(max=None, min=None, mean=None)


@pytest.mark.parametrize('given, words', [
    (dict(n_neighbours=60), 'n_neighbours=60 of 60 samples; expected 1 to 59'),
    (dict(n_neighbours=0), 'n_neighbours=0'),
    (dict(n_anchors=61), 'n_anchors=61 of 60 samples; expected 0 to 60'), (dict(n_anchors=-1), 'n_anchors=-1'),
    (dict(memory=rows(60).index_fill(0, torch.tensor([7]), 0)), 'row 7 of memory'),
    (dict(memory=rows(60).index_fill(0, torch.tensor([3]), float('nan'))), 'row 3 of memory'),
    (dict(memory=rows(60).index_fill(0, torch.tensor([3]), float('inf'))), 'row 3 of memory'),
    (dict(memory=rows(60)[0]), 'memory='), (dict(memory=[[1., 2]]), 'memory='), (dict(memory=rows(0)), 'memory='),
    (dict(temperature=0), 'temperature=0'), (dict(temperature=-.1), 'temperature=-0.1'), (dict(n_anchors=2.5), '2.5')])
def test_discover_refuses(given, words):
    with pytest.raises(InputError) as e: discover(**{**dict(memory=rows(60), n_anchors=10), **given})
    assert words in str(e.value) and '\n' not in str(e.value)


def test_counts_refuse():
    usual = dict(n=9, rate=.2, round=1)
    for given in (dict(rate=1.1), dict(rate=-.1), dict(round=-1), dict(n=-1)):
        with pytest.raises(InputError, match=next(iter(given))): anchor_count(**{**usual, **given})
    assert anchor_count(10, 1, 9) == 10 and anchor_count(10, 0, 9) == 0


# ---- the loss


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('k', [1, 3])
def test_loss_against_the_definition(k, dtype):
    g = torch.Generator().manual_seed(0)
    anchors = discover(rows(50), 20, k)
    z, y = (4 * torch.randn(12, 50, generator=g)).to(dtype).requires_grad_(), torch.randperm(50, generator=g)[:12]
    loss = neighbourhood_nll(z, y, anchors.of(y))
    loss.backward()
    p, total, grad = z.detach().double().softmax(1), 0, torch.zeros(12, 50, dtype=torch.double)
    for b, i in enumerate(y.tolist()):
        place = int(anchors.position[i])
        right = [i] + (anchors.neighbours[place].tolist() if place >= 0 else [])
        total -= p[b, right].sum().log() / 12
        grad[b] = p[b] / 12
        grad[b, right] -= p[b, right] / p[b, right].sum() / 12
    assert loss.item() == pytest.approx(float(total), rel=1e-6)
    torch.testing.assert_close(z.grad.double(), grad, rtol=0, atol=1e-7)


def test_loss_of_what_softmax_cannot_hold():
    z = torch.tensor([[0., 900, 0, 0]], requires_grad=True)
    loss = neighbourhood_nll(z, torch.tensor([0]), torch.tensor([[2]]))
    loss.backward()
    assert loss.item() == pytest.approx(900 - np.log(2)) and z.grad.isfinite().all()
    half = neighbourhood_nll(torch.tensor([[0., 90, 0, 0]]).half(), torch.tensor([0]))
    assert half.dtype == torch.float32 and half == 90


def test_loss_refuses():
    z, y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)
    for given in ((z, y[:2]), (z, y, y[:2, None]), (z, y.float()), (z[0], y), (z, y, y)):
        with pytest.raises(InputError): neighbourhood_nll(*given)


# ---- the memory


@pytest.mark.parametrize('momentum', [0., .5, 1.])
def test_update_against_the_definition(momentum):
    g = torch.Generator().manual_seed(0)
    memory = Memory(30, 6, momentum=momentum, generator=g)
    x, i, want = F.normalize(torch.randn(8, 6, generator=g)), torch.randperm(30, generator=g)[:8], memory.rows.clone()
    memory.update(x, i)
    for j, row in zip(i.tolist(), x):
        moved = momentum * want[j] + (1 - momentum) * row
        want[j] = moved / moved.norm()
    torch.testing.assert_close(memory.rows, want, rtol=0, atol=1e-6)
    assert not list(memory.parameters()) and list(memory.state_dict()) == ['rows']


def test_update_of_a_sample_twice_and_of_a_feature_that_is_zero():
    memory = Memory(5, 3, momentum=0.)
    x = F.normalize(torch.randn(4, 3))
    memory.update(x, torch.tensor([2, 4, 2, 2]))
    assert torch.allclose(memory.rows[2], x[3]) and torch.allclose(memory.rows[4], x[1])
    memory.update(torch.zeros(1, 3), torch.tensor([1]))
    assert torch.equal(memory.rows[1], torch.zeros(3))                          # not NaN; discover says which row it is
    with pytest.raises(InputError, match='row 1 of memory'): memory.discover(2)


def test_full_precision_under_autocast():
    memory, x = Memory(20, 4), F.normalize(torch.randn(3, 4))
    with torch.autocast('cpu', torch.bfloat16): z = memory.logits(x.bfloat16())
    assert z.dtype == torch.float32
    memory.update(x.bfloat16(), torch.arange(3))
    assert memory.rows.dtype == torch.float32


def test_memory_refuses():
    memory, x = Memory(20, 4), torch.randn(3, 4)
    for given, words in (((x, torch.arange(2)), 'as many indices as rows'), ((x, torch.arange(18, 21)), 'from 0 to 19'),
                         ((x[:, :3], torch.arange(3)), r'\(B, 4\)'), ((x, torch.arange(3.)), 'indices=')):
        with pytest.raises(InputError, match=words): memory.update(*given)
    with pytest.raises(InputError, match=r'\(B, 4\)'): memory.logits(x[:, :3])
    for given in (dict(momentum=-.1), dict(temperature=0), dict(dim=0), dict(n_samples=0), dict(generator=3)):
        with pytest.raises(InputError, match=next(iter(given))): Memory(**{**dict(n_samples=5), **given})


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_loss_without_logits_is_that_of_the_logits(dtype, tolerance, monkeypatch):
    memory, x, i = rows(70, 5, dtype=dtype), rows(12, 5, dtype=dtype), torch.arange(5, 17)
    near = torch.where(torch.arange(12)[:, None] % 3 > 0, torch.arange(24).view(12, 2), -1)
    for block, neighbours, t in ((2 ** 22, near, .1), (100, near, .1), (12, None, .02), (1, near, 1.)):
        monkeypatch.setattr(losses, '_BLOCK', block)
        found = []
        for loss in (lambda z: neighbourhood_nll(z @ memory.T / t, i, neighbours),
                     lambda z: memory_nll(z, memory, i, neighbours, t)):
            z = x.clone().requires_grad_()
            value = loss(z)
            (3 * value).backward()
            found.append((value.detach(), z.grad))
        for a, b in zip(*found): torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    with torch.no_grad(): assert memory_nll(x, memory, i) == memory_nll(x.clone().requires_grad_(), memory, i)


def test_a_memory_does_without_logits_where_they_are_many(monkeypatch):
    memory, x = Memory(40, 6, generator=torch.Generator().manual_seed(0)), rows(8, 6)
    want = memory.loss(x, torch.arange(8))
    monkeypatch.setattr(memories, '_LOGITS', 319)
    monkeypatch.setattr(Memory, 'logits', lambda *_: pytest.fail('the logits were made'))
    torch.testing.assert_close(memory.loss(x, torch.arange(8)), want)


# ---- several ranks


def _train(memory, rank=0, world=1):
    "Two steps of a linear encoder, with this rank's share of each batch, and a discovery after them."
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 9, generator=g)
    net = nn.Linear(9, 6)
    net.weight.data.copy_(torch.randn(6, 9, generator=g))
    for batch in torch.randperm(64, generator=g).split(32):
        part = batch[rank::world]
        features = F.normalize(net(x[part]))
        memory.loss(features, part, _near(part)).backward()
        memory.update(features, part)
    return memory.discover(20, 3), net.weight.grad


def _near(part):
    "Two neighbours of each sample, held by either rank; every third sample has none."
    return torch.where(part[:, None] % 3 > 0, (part[:, None] * 5 + torch.tensor([1, 40])) % 64, -1)


def _member(rank, port, out):
    with member(rank, port):
        memory = memory_for(64, 6, .1, .5, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        found, gradient = _train(memory, rank, 2)
        assert memory.rows.shape == (32, 6) and len(memory.whole()) == memory.n_samples == 64
        shared = dict(gradient=gradient, state=memory.state_dict(), extra=memory._held[-1])
        memory.load_state_dict({'rows': rows(64, 6)})
        memory.to(torch.float64)
        shared |= dict(loaded=memory.rows.clone(), finite=[memory.is_finite()])
        memory.rows[0] = torch.nan if rank else 1.
        shared['finite'].append(memory.is_finite())
        # unequal shares of the rows, and tiles of which a rank has few or none
        split = rows(150).split([100, 50])[rank]
        uneven, entropy = discover(split, 60, 2, sharded=True), entropies(split, sharded=True)
        try: discover(rows(150).split([100, 50])[rank] * (rank == 0), 3, sharded=True)
        except InputError as e: error = str(e)
        torch.save([found.state(), shared, uneven.state(), entropy, error], f'{out}/rank{rank}.pt')


def test_two_ranks_have_one_memory_and_the_same_anchors(tmp_path):
    one, two = together(_member, tmp_path)
    memory = Memory(64, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    (alone, gradient), uneven = _train(memory), discover(rows(150), 60, 2)
    torch.testing.assert_close((one[1]['gradient'] + two[1]['gradient']) / 2, gradient, rtol=1e-5, atol=1e-6)
    for rank, found in enumerate((one, two)):
        assert list(found[1]['state']) == ['rows'] and not found[1]['extra'].any()
        torch.testing.assert_close(found[1]['state']['rows'], memory.rows, rtol=0, atol=1e-6)
        assert torch.equal(found[1]['loaded'], rows(64, 6)[32 * rank:32 * rank + 32].double())
        assert found[1]['finite'] == [True, False]
        for state, want in ((found[0], alone), (found[2], uneven)):
            assert torch.equal(state['anchors'], want.anchors) and torch.equal(state['neighbours'], want.neighbours)
            torch.testing.assert_close(state['entropy'], want.entropy, rtol=0, atol=1e-5)
        assert torch.equal(found[3], found[2]['entropy']) and 'row 100 of memory' in found[4]
    assert torch.equal(one[1]['state']['rows'], two[1]['state']['rows'])
    for name in ('anchors', 'neighbours', 'entropy'):
        for part in (0, 2): assert torch.equal(one[part][name], two[part][name])            # to the bit


# ---- learning rates


def test_a_schedule_says_where_it_cannot_be_read(tmp_path):
    path = tmp_path / 'schedule.txt'
    for text, words in (('1:0.1\nsoon', "line 2: 'soon'"), ('1:0', "the rate '0'"), ('1:inf', "'inf'"),
                        ('', 'no entries'), ('x:0.1', 'line 1'), ('1:0.1 0.2', 'line 1'),
                        ('1:0.1, 1:0.2', 'line 1: epoch 1 has two rates')):
        path.write_text(text)
        for read in (lambda: parse_schedule(text), lambda: read_schedule(path)):
            with pytest.raises(InputError) as e: read()
            assert words in str(e.value)
        assert str(path) in str(e.value)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match='no text'): read_schedule(path)
    with pytest.raises(InputError, match='schedule'): read_schedule(tmp_path / 'none.txt')
    with pytest.raises(InputError, match='none.txt'): rate_policy('multistep', .1, schedule='none.txt')


def test_a_round_ends_where_the_schedule_says():
    rate = rate_policy('multistep', .3, schedule='4: - , 2:0.1')
    assert [rate(e) for e in range(7)] == [.3, .3, .1, .1, -1, -1, -1]
    rate = rate_policy('multistep', .3, schedule='2:-\n5:0.1')
    assert [rate(e) for e in (1, 2, 6)] == [.3, -1, -1]


def test_no_step_is_no_drop():
    for step in (0, -3): assert rate_policy('step', .3, step=step)(900) == .3
