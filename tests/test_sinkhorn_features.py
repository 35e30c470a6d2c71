"""Sinkhorn's iteration from features and a head: the plan of `sinkhorn`, without anything as large as N x K."""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.methods.sela import stages
from nmc_workbench.transport import HeadLogits, _HeadScores, _Scores, _Streamed, sinkhorn, sinkhorn_features
from tests.fake_cuda import fake_cuda
from tests.ranks import member, together
from tests.test_fake_cuda import WAITS
from tests.test_sela import labels_of


def problem(n=300, k=12, d=16, scale=1., seed=0, bias=True):
    "Features, weight and bias: K groups of different sizes, and a head that sees them with noise."
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=g)
    features = centres[torch.randint(k, (n,), generator=g) % (k - k // 3)] + .5 * torch.randn(n, d, generator=g)
    weight = scale * (centres + .3 * torch.randn(k, d, generator=g)) / d ** .5
    return features, weight, scale * torch.randn(k, generator=g) if bias else None


def usual(x, **options): return sinkhorn(HeadLogits(*x), 5., given='logits', **options)
def streamed(x, **options): return sinkhorn_features(*x, 5., **options)


def equal(a, b):
    "To the bit."
    assert a.n_iter == b.n_iter and a.converged == b.converged and np.array_equal(a.labels, b.labels)
    for key in ('row_potential', 'col_potential', 'errors', 'marginal_errors'):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('options', [{}, dict(active=False), dict(relax=1.7), dict(tol_kind='marginal', tol=1e-6)],
                         ids=str)
def test_in_double_precision_the_plan_is_that_of_sinkhorn(options, bias):
    x = problem(bias=bias)
    equal(streamed(x, **options), usual(x, **options))


@pytest.mark.parametrize('scale', [.5, 2., 4.])
@pytest.mark.parametrize('seed', range(2))
def test_in_single_precision_the_labels_are_those_of_sinkhorn(scale, seed):
    x = problem(scale=scale, seed=seed)
    options = dict(tol_kind='marginal', tol=1e-3, relax=1.9)
    plan = usual(x, **options)
    for more in (dict(dtype='f32'), dict(dtype='f32', active=False, block=160)):
        found = streamed(x, **options, **more)
        assert found.converged and np.array_equal(found.labels, plan.labels)
        np.testing.assert_allclose(found.row_potential, plan.row_potential, atol=2e-2)
        assert found.cost == pytest.approx(plan.cost, rel=1e-5)


@pytest.mark.parametrize('block', [1, 7, 300, 10_000])
def test_blocks(block):
    "A product of few rows is rounded otherwise."
    x = problem()
    a, b = streamed(x, block=block), streamed(x)
    assert a.n_iter == b.n_iter and np.array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.row_potential, b.row_potential, rtol=0, atol=1e-5)


def test_a_block_has_as_many_rows_as_asked_for():
    x, asked, inputs = problem(), [], HeadLogits.inputs
    def watched(self, rows): asked.append(len(inputs(self, rows))); return inputs(self, rows)
    with patch.object(HeadLogits, 'inputs', watched): streamed(x, block=40, active=False)
    assert max(asked) == 40


def test_the_sum_of_scores_and_potentials_is_one_product():
    features, weight, bias = problem()
    one, other = _HeadScores(_Streamed(features, weight, bias), 25., 'logits', 'f32', None, None), \
        _Scores(HeadLogits(features.double(), weight.double(), bias.double()), 25., 'logits', 'f64', None, None)
    u = torch.linspace(-30, 30, len(weight), dtype=torch.float64)
    for scores in (one, other): [scores.checked(r) for r in scores.rows]
    rows = slice(3, 90)
    torch.testing.assert_close(one.shifted(rows, u).double(), other.shifted(rows, u), rtol=1e-5, atol=1e-3)


def test_the_entries_that_matter_take_no_more_than_the_features():
    n, k, d = 400_000, 3_000, 30
    features, weight = torch.zeros(1, d).expand(n, d), torch.zeros(k, d)
    few, many = _HeadScores(_Streamed(features, weight), 5., 'logits', 'f64', None, None), \
        _Scores(HeadLogits(features, weight), 5., 'logits', 'f64', None, None)
    assert few.most == n * d // 3 + 2 ** 16 and many.most == n * k // 20 + 2 ** 16
    huge = SimpleNamespace(n=10 ** 7, k=10 ** 5)
    assert _Scores.most.fget(huge) == 2 ** 31 - 1               # what an index of 32 bits can count


def test_where_they_would_take_more_the_passes_are_over_all_entries():
    x = problem(12_000, 300, 1, scale=3.)                   # one number per sample, but 200 entries
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plan, other = (f(x, max_iter=4) for f in (streamed, usual))
    np.testing.assert_allclose(plan.row_potential, other.row_potential, rtol=0, atol=1e-8)
    assert np.array_equal(plan.labels, other.labels) and plan.full_passes >= other.full_passes


def test_rows_of_the_plan():
    x = problem()
    plan = streamed(x, tol=1e-4)
    Q = np.concatenate([plan[a:a + 60] for a in range(0, 300, 60)])
    p = (x[0] @ x[1].T + x[2]).double().softmax(1).numpy()
    np.testing.assert_allclose(Q, plan.row_scale * p ** 5 * plan.col_scale[:, None], rtol=1e-4)
    np.testing.assert_allclose(Q.sum(1), 1 / 300, rtol=1e-4)
    np.testing.assert_allclose(Q.sum(0), 1 / 12, rtol=1e-4)
    assert np.array_equal(Q.argmax(1), plan.labels) and plan[5:5].shape == (0, 12)


def test_features_may_lie_in_a_file(tmp_path):
    features, weight, bias = problem()
    plan = streamed((features, weight, bias))
    for mode in ('r', 'r+'):
        np.save(tmp_path / 'x.npy', features.numpy())
        mapped = np.load(tmp_path / 'x.npy', mmap_mode=mode)
        assert mode != 'r' or isinstance(_Streamed(mapped, weight, bias).features, np.memmap)      # it is not read in
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            equal(streamed((mapped, weight, bias)), plan)
    equal(streamed((features.numpy(), weight.numpy(), bias.double())), plan)       # a bias is of the weight's type
    np.save(tmp_path / 'half.npy', features.half().numpy())
    half = streamed((np.load(tmp_path / 'half.npy', mmap_mode='r'), weight, bias))
    equal(half, streamed((features.half(), weight, bias)))


def test_a_head_that_learns_and_few_samples():
    features, weight, bias = problem()
    head = nn.Linear(16, 12)
    assert streamed((features.requires_grad_(), head.weight, head.bias)).sizes.sum() == 300
    assert streamed((torch.randn(3, 16), weight, bias)).converged       # fewer samples than clusters, as for sinkhorn
    ones = torch.ones(4, 3)
    assert streamed((ones, torch.eye(3), None)).labels.tolist() == [0] * 4
    assert streamed((ones, torch.eye(3).int(), None)).labels.tolist() == [0] * 4       # whole numbers as weights


NAN, HUGE = torch.full((1, 16), torch.nan), torch.full((1, 16), 1e38)
BAD = {
    'row 300 is not finite': dict(features=torch.cat([problem()[0], NAN])),
    'row 7 is not finite': dict(features=problem()[0].index_fill(0, torch.tensor([7]), torch.inf)),
    'row 300 is ': dict(features=torch.cat([problem()[0], HUGE]), dtype='f32'),
    r'features \(300, 16\) and weight \(12, 5\); expected \(N, D\) and \(K, D\)': dict(weight=torch.zeros(12, 5)),
    r'features \(16,\) and': dict(features=torch.zeros(16)),
    r'bias has shape \(3,\), weight \(12, 16\)': dict(bias=torch.zeros(3)),
    r'features has shape \(0, 16\)': dict(features=torch.zeros(0, 16)),
    'weight has shape': dict(weight=torch.zeros(0, 16)),
    'features has dtype <U1': dict(features=np.array([['a'] * 16])),
    r'complex64; expected real': dict(features=torch.zeros(3, 16, dtype=torch.complex64)),
    'power': dict(power=0), 'tol': dict(tol=-1), 'block': dict(block=0), 'dtype': dict(dtype='f16'),
    'relax': dict(relax=2), 'tol_kind': dict(tol_kind='largest')}


@pytest.mark.parametrize('words', BAD)
def test_bad_input(words):
    features, weight, bias = problem()
    with pytest.raises(InputError, match=words) as e:
        sinkhorn_features(**(dict(features=features, weight=weight, bias=bias, power=5.) | BAD[words]))
    assert '\n' not in str(e.value)


def test_it_warns_where_it_does_not_converge():
    with pytest.warns(UserWarning, match='stopped after 3 iterations'): plan = streamed(problem(), max_iter=3)
    assert not plan.converged and plan.n_iter == 3


# ---- devices and ranks

@pytest.mark.parametrize('options', [{}, dict(dtype='f32', block=16), dict(sharded=True)], ids=str)
@pytest.mark.parametrize('features_on', ['cuda', 'cpu'])
def test_on_a_gpu_nothing_waits(features_on, options):
    "Features that lie on the host go to the weight's device block by block."
    with fake_cuda() as cuda:
        features = torch.randn(64, 8, device=features_on)
        weight, bias = torch.randn(6, 8, device='cuda'), torch.randn(6, device='cuda')
        with cuda.no_waiting(WAITS): plan = sinkhorn_features(features, weight, bias, 12., **options)
    assert plan.labels.shape == (64,) and plan.row_potential.shape == (6,)


FEW = dict(tol_kind='marginal', tol=.05, check_every=1)       # iterations


def on_rank(rank, port, out):
    with member(rank, port, seconds=30):
        features, weight, bias = problem()
        plan = streamed((features[:100] if rank == 0 else features[100:], weight, bias), sharded=True, **FEW)
        torch.save(dict(labels=plan.labels, u=plan.row_potential, n_iter=plan.n_iter, rows=plan[:50]),
                   f'{out}/rank{rank}.pt')


@pytest.mark.slow
def test_two_ranks_find_what_one_does(tmp_path):
    alone, (first, second) = streamed(problem(), **FEW), together(on_rank, tmp_path)
    assert np.array_equal(np.r_[first['labels'], second['labels']], alone.labels)
    assert first['n_iter'] == second['n_iter'] == alone.n_iter and np.array_equal(first['u'], second['u'])
    np.testing.assert_allclose(first['u'], alone.row_potential, rtol=0, atol=1e-9)
    np.testing.assert_allclose(second['rows'], alone[100:150], rtol=1e-6)


# ---- SeLa

@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.mark.parametrize('dtype', ['f64', 'f32'])
def test_sela_takes_the_features_above_its_limit_and_gets_the_same_labels(digits, dtype):
    "All heads; up to the limit nothing differs from what `sinkhorn` alone gives."
    size, found, asked = 10 * len(digits), {}, []
    def watched(*args, **more): asked.append(more['dtype']); return sinkhorn_features(*args, **more)
    for limit in (size, size - 1):
        update = labels_of(digits, dtype=dtype, label_mode='eval', power=200., tol=.01)
        with patch.object(stages, 'FROM_FEATURES', limit), patch.object(stages, 'sinkhorn_features', watched):
            update.update(0, 0)
        assert asked == ([] if limit == size else [dtype] * 3)
        found[limit] = update
    small, large = found.values()
    assert torch.equal(small.labels, large.labels)
    small.updates.zero_()                               # the views of the same update
    (network,), (index, features) = small.net, small.features()
    for head, labels in zip(network.heads, small.labels):
        c, rows = small.config, HeadLogits(features, head.weight, head.bias)
        plan = sinkhorn(rows, c.power, c.tol, 'logits', dtype=dtype, relax=c.relax)
        assert np.array_equal(plan.labels, labels[index].numpy())


# ---- the kernel of Triton

PLANS = """
import torch
from nmc_workbench.core.kernels import softmax_sums
from nmc_workbench.transport import sinkhorn_features
g = torch.Generator().manual_seed(0)
for n, k, d in (1, 1, 1), (65, 63, 33), (200, 130, 20):
    x, weight, bias = (torch.randn(*size, generator=g) for size in ((n, d), (k, d), (k,)))
    z = (4 * x.double() @ weight.double().T + bias)
    log_sums, totals = softmax_sums(x, weight, bias, 4.)
    torch.testing.assert_close(log_sums.double(), z.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(totals.double(), z.softmax(1).sum(0), rtol=1e-4, atol=1e-5)
options = dict(power=3., dtype='f32', tol_kind='marginal', tol=1e-4, active=False, block=90)
one, other = (sinkhorn_features(x, weight, bias, kernel=kernel, **options) for kernel in ('torch', 'triton'))
assert (one.labels == other.labels).all() and one.n_iter == other.n_iter > 10 and other.converged
assert abs(one.row_potential - other.row_potential).max() < 1e-4 > abs(one.col_potential - other.col_potential).max()
x[7] = torch.nan
try: sinkhorn_features(x, weight, bias, kernel='triton', **options)
except ValueError as e: assert 'row 7 is not finite' in str(e)
print('the same')
"""


def test_the_kernel_finds_what_pytorch_does():
    done = subprocess.run([sys.executable, '-c', PLANS], env=os.environ | dict(TRITON_INTERPRET='1'),
                          capture_output=True, text=True)
    assert done.stdout == 'the same\n', done.stderr[-1000:]


def test_the_bench_of_both_kernels(tmp_path):
    command = '-m', 'tests.bench.sinkhorn_gpu', '--device', 'cpu', '--samples', '70', '--repeats', '1', '--record'
    done = subprocess.run([sys.executable, '-c', SMALL, *command, tmp_path / 'record.json'], capture_output=True,
                          text=True, env=os.environ | dict(TRITON_INTERPRET='1'), cwd=Path(__file__).parents[1])
    assert not done.returncode, done.stderr[-1000:]
    rows = json.loads((tmp_path / 'record.json').read_text())['rows']
    assert [(r['K'], r['d']) for r in rows] == [(90, 8), (90, 40)] and all(r['ratio'] > 0 for r in rows)
    assert max(r['v_apart'] for r in rows) < 1e-4 > max(r['t_apart'] for r in rows)


SMALL = """
import sys
from tests.bench import sinkhorn_gpu
sinkhorn_gpu.CLUSTERS, sinkhorn_gpu.SIZES, sys.argv = (90,), (8, 40), sys.argv[2:]
sinkhorn_gpu.main()
"""


def test_the_kernel_compiles_for_a_gpu(tmp_path, monkeypatch):
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nmc_workbench.core.kernels import TILE, _sums
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    names = _sums.arg_names
    kinds = dict.fromkeys(names[:5], '*fp32') | dict.fromkeys('nkd', 'i32') | dict(power='fp32')
    made = ASTSource(_sums, kinds | dict.fromkeys(TILE, 'constexpr'), {(names.index(k),): v for k, v in TILE.items()})
    assert triton.compile(made, target=GPUTarget('cuda', 90, 32)).metadata.shared < 100_000


@pytest.mark.parametrize('given, says', [
    (dict(kernel='cuda'), "unknown kernel 'cuda'"), (dict(kernel='triton'), "take dtype='f32'"),
    (dict(kernel='triton', dtype='f32'), "runs on a CUDA device, and this is cpu")])
def test_kernels_that_cannot_be(given, says):
    with pytest.raises(InputError, match=says): sinkhorn_features(torch.ones(9, 3), torch.ones(4, 3), **given)
