"""Sinkhorn's iteration against the original's results, a plain loop, the linear programme, and itself on two ranks.

The folder of results can be replaced with NMC_GOLDEN_SELA: sizes and powers are read from the files."""
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from nmc_workbench.core.errors import InputError
from nmc_workbench.transport import HeadLogits, _Scores, sinkhorn
from tests.ranks import member, together

GOLDEN = Path(os.environ.get('NMC_GOLDEN_SELA', Path(__file__).parent / 'golden' / 'sela'))
MAIN, CIFAR = (sorted(GOLDEN.glob(f'sk_{kind}_*.npz')) for kind in ('main', 'cifar'))
HEADS = sorted(GOLDEN.glob('heads_*.npz')) + sorted(GOLDEN.glob('sharded.npz'))


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(path):
    with np.load(path) as f: return {k: f[k] for k in f.files}


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def case_of(path):
    "The file's arrays, with logits x and probabilities p in float64, the power and the tolerance."
    case = read(path)
    x = case['logits'].astype('f8')
    tol = .1 if 'main' in path.name else .01
    return case | dict(x=x, p=case.get('probs', softmax(x)), power=float(case['lamb']), tol=tol)


@pytest.fixture(params=MAIN + CIFAR, ids=lambda f: f.stem)
def case(request): return case_of(request.param)


def plain(p, power, tol, most=5000):
    "The iteration as the paper has it, in float64: r, c, labels and the errors."
    M, (n, k) = p ** power, p.shape
    c, errors = np.full(n, 1 / n), []
    for i in range(most):
        r = 1 / k / (M.T @ c)
        new = 1 / n / (M @ r)
        if i % 10 == 0: errors.append(np.abs(c / new - 1).sum())
        c = new
        if i % 10 == 0 and errors[-1] <= tol: break
    return r, c, (M * r).argmax(1), errors


def logits(n=120, k=7, scale=1., seed=0):
    "Of k groups of different sizes."
    g = np.random.default_rng(seed)
    centres, of = g.normal(size=(k, 12)), g.choice(k, n, p=np.arange(1, k + 1) / (k * (k + 1) / 2))
    return scale * (centres[of] + .6 * g.normal(size=(n, 12))) @ g.normal(size=(12, k))


def plan_of(x, **options): return sinkhorn(x, **(dict(power=5, given='logits') | options))


def alike(a, b, atol=1e-9):
    assert a.n_iter == b.n_iter and np.array_equal(a.labels, b.labels) and a.converged == b.converged
    np.testing.assert_allclose(a.row_potential, b.row_potential, rtol=0, atol=atol)
    np.testing.assert_allclose(a.col_potential, b.col_potential, rtol=0, atol=atol)
    assert a.cost == pytest.approx(b.cost, rel=1e-9)


def matrix(plan, x, power): # (n, K), log Q
    return power * np.log(softmax(x)) + plan.row_potential + plan.col_potential[:, None]


# ---- the original's results

def test_there_are_files():
    assert MAIN and CIFAR and HEADS and (GOLDEN / 'stress.npz').is_file() and (GOLDEN / 'softmax.npz').is_file()


@pytest.mark.parametrize('options', [dict(), dict(active=False), dict(chunk=64)], ids=str)
def test_double_precision(case, options):
    if options.get('chunk') and case['p'].size * case['iters'] > 300_000:
        options = dict(chunk=case['p'].size // 3)       # small chunks are slow
    plan = sinkhorn(case['p'], case['power'], case['tol'], **options)
    assert plan.converged and plan.n_iter == case['iters'] and np.array_equal(plan.labels, case['labels'])
    np.testing.assert_allclose(plan.row_scale, case['r'].ravel(), rtol=1e-8)
    np.testing.assert_allclose(plan.col_scale, case['c'].ravel(), rtol=1e-8)
    assert plan.errors[-1] == pytest.approx(float(case['err']), rel=1e-6)
    assert np.array_equal(plan.checks, np.arange(0, plan.n_iter, 10))
    assert len(plan.marginal_errors) == len(plan.errors) == len(plan.checks)
    if 'err_history' in case:
        large = case['err_history'] > 1e-3
        np.testing.assert_allclose(plan.errors[large], case['err_history'][large], rtol=1e-6)
    if 'cost' in case: assert plan.cost == pytest.approx(float(case['cost']), rel=1e-9)
    if 'Q' in case: np.testing.assert_allclose(np.exp(matrix(plan, case['x'], case['power'])).T, case['Q'], rtol=1e-8)


def gaps(log_q): # (n,), 1 - second / best
    second, best = np.sort(log_q, 1)[:, -2:].T
    return -np.expm1(second - best)


@pytest.mark.parametrize('active', [True, False])
def test_single_precision(case, active):
    plan = sinkhorn(case['x'].astype('f4'), case['power'], case['tol'], 'logits', dtype='f32', active=active)
    assert plan.converged and abs(plan.n_iter - int(case['iters'])) <= 10
    same = plan.labels == case['labels']
    clear = gaps(case['power'] * np.log(case['p']) + np.log(case['r'].ravel())) > 1e-3
    assert same[clear].all() and same.mean() >= .999


@pytest.mark.parametrize('path', HEADS, ids=lambda f: f.stem)
@pytest.mark.parametrize('chunk', [None, 100])
def test_every_head_from_the_features(path, chunk):
    case = read(path)
    features = case.get('feats', np.maximum(case['x'] @ case['feat_w'].T + case['feat_b'], 0))
    labels, iters = case.get('L', case.get('labels_dataset_order')), case['iters']
    for w, b, wanted, n in zip(*(torch.from_numpy(case[k]) for k in ('head_w', 'head_b')), labels, iters):
        rows = HeadLogits(torch.from_numpy(features), w, b)
        plan = sinkhorn(rows, float(case['lamb']), given='logits', chunk=chunk)
        assert plan.n_iter == n and np.array_equal(plan.labels, wanted)
        alike(plan, sinkhorn(features @ w.numpy().T + b.numpy(), float(case['lamb']), given='logits'))


def test_probabilities_of_logits():
    case = read(GOLDEN / 'softmax.npz')
    for x, p in ((case['x'], case['axis1']), (case['x'].T.copy(), case['axis0'].T.copy())):
        scores = _Scores(x, 1, 'logits', 'f64', None, None)
        found = torch.cat([scores.checked(rows) for rows in scores.rows]).exp()
        np.testing.assert_allclose(found, p, rtol=1e-12, atol=1e-300)
    x = logits()
    alike(plan_of(x), sinkhorn(softmax(x), 5))


STRESS = read(GOLDEN / 'stress.npz') if (GOLDEN / 'stress.npz').is_file() else {}
NAMES = sorted(key.removesuffix('_logits') for key in STRESS if key.endswith('_logits'))
# `wide` in single precision takes thousands of iterations
RUNS = [(n, d) for n in NAMES for d in ('f64', 'f32') if (n, d) != ('wide', 'f32')]


@pytest.mark.parametrize('name, dtype', RUNS)
def test_where_the_original_fails(name, dtype):
    "A cluster no one wants, logits far apart, flat ones, a large power: the labels of the optimum."
    case = {k.removeprefix(f'{name}_'): v for k, v in STRESS.items() if k.startswith(f'{name}_')}
    x, power = case['logits'], float(case['lamb'])
    plan = sinkhorn(x, power, .05, 'logits', dtype=dtype, relax=1.9)
    assert plan.converged and np.isfinite(plan.row_potential).all() and np.isfinite(plan.col_potential).all()
    assert np.array_equal(plan.labels, case['labels'])
    if dtype == 'f64' and plan.n_iter < 400:        # else another minute
        tight = sinkhorn(x, power, 1e-9, 'logits')
        np.testing.assert_allclose(tight.row_potential - tight.row_potential.mean(), case['u'], rtol=0, atol=1e-8)
        np.testing.assert_allclose(tight.col_potential + tight.row_potential.mean(), case['v'], rtol=0, atol=1e-8)


# ---- slow references

@pytest.mark.parametrize('seed', range(4))
def test_a_plain_loop(seed):
    p = softmax(logits(90 + 7 * seed, 5 + seed, .3, seed))
    r, c, labels, errors = plain(p, 8, .05)
    plan = sinkhorn(p, 8, .05)
    assert np.array_equal(plan.labels, labels)
    for a, b in ((plan.row_scale, r), (plan.col_scale, c), (plan.errors, errors)):
        np.testing.assert_allclose(a, b, rtol=1e-8)
    assert plan.cost == pytest.approx(-np.log(p[np.arange(len(p)), labels]).mean(), rel=1e-12)
    share = (r * p ** 8 * c[:, None]).sum(0)
    assert plan.marginal_errors[-1] == pytest.approx(np.abs(share - 1 / len(r)).sum(), rel=1e-6)
    assert np.array_equal(plan.sizes, np.bincount(labels, minlength=len(r)))


@pytest.mark.parametrize('seed', range(2))
def test_the_linear_programme(seed):
    "With a large power the labels are those of the cheapest assignment of N / K samples to each cluster."
    p = softmax(logits(60, 5, .3, seed))
    rows, columns = linear_sum_assignment(np.repeat(-np.log(p), 12, axis=1))
    best = -np.log(p[rows, columns // 12]).mean()
    plan = sinkhorn(p, 400, .01, relax=1.95)
    assert np.array_equal(plan.labels, columns // 12) and plan.sizes.tolist() == [12] * 5
    assert plan.cost == pytest.approx(best, rel=1e-9)


def test_closed_forms():
    plan = sinkhorn(np.full((40, 5), .2), 25)
    assert plan.n_iter == 1 and not plan.labels.any()           # ties: the first cluster
    np.testing.assert_allclose(plan.row_potential, 24 * np.log(5))
    np.testing.assert_allclose(plan.col_potential, -np.log(40))
    assert plan.cost == pytest.approx(np.log(5)) and plan.errors[0] == pytest.approx(0, abs=1e-9)
    two = sinkhorn(np.repeat([[.9, .1], [.1, .9]], 6, axis=0), 3)
    assert two.n_iter == 1 and two.labels.tolist() == [0] * 6 + [1] * 6 and two.cost == pytest.approx(-np.log(.9))
    alone = sinkhorn(np.ones((9, 1)), 25)
    assert alone.sizes.tolist() == [9] and alone.cost == 0
    # fewer samples than clusters
    assert sinkhorn(softmax(logits(1, 4)), 25).converged and sinkhorn(softmax(logits(3, 20)), 5).converged


# ---- invariances

def test_order_and_shifts():
    x = logits()
    g = np.random.default_rng(1)
    rows, columns = g.permutation(len(x)), g.permutation(x.shape[1])
    plan, moved = plan_of(x), plan_of(x[rows][:, columns])
    assert moved.n_iter == plan.n_iter and np.array_equal(columns[moved.labels], plan.labels[rows])
    np.testing.assert_allclose(moved.row_potential, plan.row_potential[columns], rtol=1e-9)
    np.testing.assert_allclose(moved.errors, plan.errors, rtol=1e-6)
    alike(plan, plan_of(x + 100 * g.normal(size=(len(x), 1))))              # a softmax does not see it
    tight, tilted = (plan_of(y, tol=1e-10) for y in (x, x + g.normal(size=x.shape[1])))
    assert np.array_equal(tight.labels, tilted.labels)                      # a cluster's bias is what r makes up for


def test_power_and_scale_are_one():
    "The plan of a power is that of logits times as large."
    x = logits()
    a, b = plan_of(x, tol=1e-9), plan_of(5 * x, power=1, tol=1e-9)
    assert np.array_equal(a.labels, b.labels)
    u, v = (plan.row_potential - plan.row_potential.mean() for plan in (a, b))
    np.testing.assert_allclose(u, v, atol=1e-8)


@pytest.mark.parametrize('scale', [.2, 1, 8])
def test_chunks_and_entries_that_matter(scale):
    x, some = logits(500, 30, scale), dict(tol=10)
    slow, quick = (plan_of(x, active=a, **some) for a in (False, True))
    for chunk in (4_000, 10 ** 9):
        for active in (True, False): alike(plan_of(x, active=active, chunk=chunk, **some), slow)
    alike(quick, slow)
    assert slow.full_passes == slow.n_iter and slow.selections == 0 and quick.full_passes <= quick.n_iter
    if scale == 8: assert quick.full_passes < quick.n_iter / 4 and 0 < quick.selections < quick.n_iter / 4


def test_many_where_few_matter():
    "A plan too large for a set of all its entries: passes over all come first."
    x = logits(3000, 60, 2., seed=3)
    quick, slow = (plan_of(x, active=a, relax=1.8, tol=5) for a in (True, False))
    alike(quick, slow)
    single = plan_of(x.astype('f4'), dtype='f32', relax=1.8, tol=5)
    assert abs(single.n_iter - slow.n_iter) <= 10 and (single.labels == slow.labels).mean() >= .999


@pytest.mark.parametrize('relax', [1.2, 1.5, 1.8])
def test_relaxed_iterations_end_at_the_same_plan(relax):
    x = logits(300, 12, 2.)
    one, more = (plan_of(x, relax=w, tol=1e-6) for w in (1., relax))
    assert more.converged and more.n_iter < one.n_iter and np.array_equal(more.labels, one.labels)
    u, v = (p.row_potential - p.row_potential.mean() for p in (one, more))
    np.testing.assert_allclose(u, v, atol=1e-4)
    alike(more, plan_of(x, relax=relax, tol=1e-6, active=False))


def test_tolerances():
    x = logits(300, 12)
    for kind in ('sum', 'mean', 'marginal'):
        loose, tight = (plan_of(x, tol=t, tol_kind=kind) for t in (1e-1, 1e-6))
        assert loose.n_iter < tight.n_iter and tight.converged
        found = dict(sum=tight.errors, mean=tight.errors / 300, marginal=tight.marginal_errors)[kind]
        assert found[-1] <= 1e-6 < found[-2]
    one, doubled = (plan_of(y, tol=1e-4, tol_kind='mean') for y in (x, np.concatenate([x, x])))
    assert doubled.n_iter == one.n_iter        # a mean does not tighten as samples are added
    each = plan_of(x, tol=1e-3, check_every=1)
    assert each.checks.tolist() == list(range(each.n_iter)) and plan_of(x, tol=1e-3).n_iter - each.n_iter in range(10)


# ---- where rows come from

def test_sources(tmp_path):
    x = logits(200, 9)
    plan = plan_of(x)
    sources = (torch.from_numpy(x), x.tolist(), np.asfortranarray(x), torch.from_numpy(x).requires_grad_(),
               np.concatenate([x, x], 1)[:, :9])
    for source in sources: alike(plan_of(source), plan)
    kept = x.copy()
    plan_of(x)
    assert np.array_equal(x, kept)          # the input is left as it is
    np.save(tmp_path / 'x.npy', x)
    for chunk in (None, 50):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            alike(plan_of(np.load(tmp_path / 'x.npy', mmap_mode='r'), chunk=chunk), plan)
    half = x.astype('f2')
    alike(plan_of(half), plan_of(half.astype('f8')))
    alike(plan_of(torch.from_numpy(half)), plan_of(half))


def test_rows_are_asked_for_a_chunk_at_a_time():
    x, asked = logits(100, 4), []
    class Rows:
        shape = x.shape
        def __getitem__(self, rows): asked.append(rows.stop - (rows.start or 0)); return x[rows]
    alike(plan_of(Rows(), chunk=40, active=False), plan_of(x))
    assert max(asked[1:]) == 10


def test_a_head_with_and_without_bias():
    g = torch.Generator().manual_seed(0)
    features, bias = torch.randn(80, 6, generator=g), torch.randn(5, generator=g)
    weight = torch.randn(5, 6, generator=g, requires_grad=True)
    for b in (None, bias):
        rows = HeadLogits(features, weight, b)
        whole = (features @ weight.detach().T + (0 if b is None else b))
        assert rows.shape == (80, 5) and not rows[:1].requires_grad
        assert torch.allclose(rows[7:20], whole[7:20], atol=1e-5)
        assert np.array_equal(plan_of(rows).labels, plan_of(whole).labels)
    double = HeadLogits(features, weight.double(), None)        # the weights' precision is the logits'
    assert double[:2].dtype == torch.float64


# ---- what goes wrong

def test_a_plan_that_does_not_converge_warns():
    x = logits()
    why = (r'stopped after 5 iterations with an error \(sum\) of .*\(tol=0.1\); '
           'raise max_iter or tol, or lower power=5')
    with pytest.warns(UserWarning, match=why) as found: plan = plan_of(x, max_iter=5)
    assert '\n' not in str(found[0].message)
    assert not plan.converged and plan.n_iter == 5 and plan.checks.tolist() == [0]
    assert 'not converged after 5 iterations' in repr(plan)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'converged after' in repr(plan_of(x)) and plan_of(x).converged
    with pytest.warns(UserWarning):         # no plan gives both clusters half
        sinkhorn(np.array([[1., 0], [1, 0], [0, 1]]), 1, max_iter=50)


def put(x, row, value):
    x = x.copy()
    x[row, 1] = value
    return x


X, P = logits(50, 4), softmax(logits(50, 4))
BAD = {
    'power 0': (dict(power=0), r'power=0.0; expected more than 0'),
    'power nan': (dict(power=float('nan')), 'power=nan'),
    'power inf': (dict(power=float('inf')), 'power=inf'),
    'power text': (dict(power='much'), "power='much'"),
    'tol': (dict(tol=0), 'tol=0.0; expected more than 0'),
    'tol nan': (dict(tol=float('nan')), 'tol=nan; expected a finite number'),
    'relax low': (dict(relax=.9), r'relax=0.9 is too small; expected at least 1'),
    'relax high': (dict(relax=2), r'relax=2.0; expected less than 2'),
    'check_every': (dict(check_every=0), 'check_every=0 is too small; expected at least 1'),
    'max_iter': (dict(max_iter=0), 'max_iter=0 is too small; expected at least 1'),
    'given': (dict(given='logit'), "given='logit'; expected one of 'prob', 'logits'"),
    'dtype': (dict(dtype='f16'), "dtype='f16'; expected one of"),
    'tol_kind': (dict(tol_kind='max'), "tol_kind='max'; expected one of 'sum', 'mean', 'marginal'"),
    'device': (dict(device='abacus'), "unknown device 'abacus'"),
    'vector': (dict(prob=P[0]), r'prob has shape \(4,\); expected \(N, K\)'),
    'cube': (dict(prob=P[None]), r'prob has shape \(1, 50, 4\)'),
    'no clusters': (dict(prob=P[:, :0]), r'prob has shape \(50, 0\)'),
    'no shape': (dict(prob=None), r'prob has shape \(\)'),
    'no rows': (dict(prob=P[:0]), 'no rows; expected at least one'),
    'logits for probabilities': (dict(prob=X), r'row \d+ holds NaN or a negative probability'),
    'nan': (dict(prob=put(P, 31, np.nan)), 'row 31 holds NaN'),
    'zero row': (dict(prob=np.vstack([P, 0 * P[:1]])), 'row 50 is all zero'),
    'scaled': (dict(prob=2 * P), r'row 0 does not sum to one; give softmax outputs'),
    'nan logit': (dict(prob=put(X, 7, np.nan), given='logits'), 'row 7 is not finite'),
    'inf logit': (dict(prob=put(X, 9, -np.inf), given='logits'), 'row 9 is not finite'),
    'dead cluster': (dict(prob=np.eye(4)[[0, 1, 3, 0]]), r'cluster 2 has probability 0 for every sample.*give logits'),
}


@pytest.mark.parametrize('change, why', BAD.values(), ids=BAD)
@pytest.mark.parametrize('chunk', [None, 40])
def test_bad_input(change, why, chunk):
    with pytest.raises(InputError, match=why) as e: sinkhorn(**(dict(prob=P, chunk=chunk) | change))
    assert '\n' not in str(e.value)


def test_bad_heads():
    x, w = torch.zeros(5, 3), torch.zeros(2, 4)
    for features, weight in ((x, w), (x[0], w), (x, w[0])):
        with pytest.raises(InputError, match=r'features .* and weight .*; expected \(N, D\) and \(K, D\)'):
            HeadLogits(features, weight)


# ---- two ranks

def shards():
    "Name -> (rows, where the second rank's begin, options)."
    small, sharp = logits(170, 14), logits(600, 40, 6., seed=2)
    return {
        'uneven': (small, 120, {}),
        'first empty': (small, 0, {}),
        'last empty': (small, 170, {}),
        'one row': (small, 1, dict(tol_kind='mean', tol=1e-5)),
        'sharp': (sharp, 400, dict(tol=5)),
        'sharp, one empty': (sharp, 600, dict(tol=5)),
        'all entries': (sharp, 400, dict(active=False, tol=5)),
        'relaxed': (sharp, 233, dict(relax=1.7, tol=5)),
        'single precision': (small, 60, dict(dtype='f32')),
        'dead': (np.c_[small, np.full(170, -900.)], 99, {}),
        'few iterations': (small, 80, dict(max_iter=3))}


KEYS = ('labels', 'n_iter', 'row_potential', 'col_potential', 'errors', 'marginal_errors', 'cost', 'converged', 'sizes')


def on_rank(rank, port, out):
    with member(rank, port, seconds=30): _on_rank(rank, out)


def _on_rank(rank, out):
    warnings.simplefilter('ignore')
    answer = {}
    for name, (x, cut, options) in shards().items():
        rows = x[:cut] if rank == 0 else x[cut:]
        plan = plan_of(rows, sharded=True, **options)
        answer[name] = {k: getattr(plan, k) for k in KEYS}
    answer['alone'] = plan_of(shards()['uneven'][0][:50 + rank]).n_iter          # not sharded: a rank for itself
    torch.save(answer, f'{out}/rank{rank}.pt')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp('ranks')
    return together(on_rank, out)


@pytest.mark.parametrize('name', shards())
def test_two_ranks_find_what_one_does(ranks, name):
    x, cut, options = shards()[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        alone = plan_of(x, **options)
    first, second = (r[name] for r in ranks)
    atol = 1e-3 if options.get('dtype') == 'f32' else 1e-9
    assert len(first['labels']) == cut
    assert np.array_equal(np.r_[first['labels'], second['labels']], alone.labels)
    assert np.array_equal(first['sizes'] + second['sizes'], alone.sizes)
    for found in (first, second):
        assert found['n_iter'] == alone.n_iter and found['converged'] == alone.converged
        assert found['cost'] == pytest.approx(alone.cost, rel=1e-6)
        np.testing.assert_allclose(found['row_potential'], alone.row_potential, rtol=0, atol=atol)
        np.testing.assert_allclose(found['errors'], alone.errors, rtol=1e-2 if atol > 1e-6 else 1e-6, atol=1e-8)
    # to the bit, or the ranks would part
    for key in ('row_potential', 'errors'): assert np.array_equal(first[key], second[key])
    v = np.r_[first['col_potential'], second['col_potential']]
    np.testing.assert_allclose(v, alone.col_potential, rtol=0, atol=atol)


def test_ranks_may_work_alone(ranks):
    x = shards()['uneven'][0]
    assert [r['alone'] for r in ranks] == [plan_of(x[:50 + r]).n_iter for r in range(2)]
