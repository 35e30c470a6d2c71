"""Diagnosis: what it measures, against closed forms and slow references; that each sign of failure is seen, and that
healthy, uneven and small data raise no alarm."""
import json
import math

import numpy as np
import pytest
import torch

from nmc_workbench.diagnostics import checks
from nmc_workbench.core.errors import InputError, TrainingError
from nmc_workbench.core.files import write_json
from nmc_workbench.diagnostics.collapse import (
    assignment_statistics, cluster_shares, directions, effective_rank, spread, thinned)
from nmc_workbench.data import load
from nmc_workbench.diagnostics.diagnosis import Diagnosis, diagnose, diagnose_run
from nmc_workbench.losses import coding_rate, coding_rate_reduction, marginal_entropy, max_coding_rate
from nmc_workbench.methods import NMCE
from nmc_workbench.runs.folder import Run


def unit(x): return x / np.linalg.norm(x, axis=1, keepdims=True)
def logged(n=8, stage='one', **values):
    def row(e): return {k: v[e] if isinstance(v, list) else v for k, v in values.items()}
    return [dict(stage=stage, epoch=e, **row(e)) for e in range(n)]
def names(diagnosis): return [f.sign for f in diagnosis.findings]


# effective rank and spread

def slow_rank(z):
    s = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    s = s[s > 1e-20 * s.max()] / s.sum()
    return math.exp(-(s * np.log(s)).sum())


@pytest.mark.parametrize('shape', [(200, 8), (9, 30), (2, 5), (50, 1)])
def test_effective_rank_against_the_singular_values(shape):
    z = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1])
    assert effective_rank(z) == pytest.approx(slow_rank(z), rel=1e-9)
    assert effective_rank(torch.tensor(z, dtype=torch.float32)) == pytest.approx(slow_rank(z), rel=1e-5)


@pytest.mark.parametrize('r', [1, 2, 5, 12])
def test_effective_rank_of_equal_directions(r):
    z = np.concatenate([np.eye(12)[:r], -np.eye(12)[:r]])
    assert effective_rank(z) == pytest.approx(r)


def test_effective_rank_does_not_see_rotation_scale_place_or_order():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(60, 7)) * np.arange(1, 8)
    turn = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    for other in (z @ turn, 100 * z, z + 50, z[rng.permutation(60)], np.concatenate([z, z])):
        assert effective_rank(other) == pytest.approx(effective_rank(z))


def test_effective_rank_of_large_embeddings_comes_in_parts():
    z = np.random.default_rng(0).normal(size=(40_000, 128)).astype(np.float32)
    assert z.size > 2 ** 22
    assert effective_rank(z) == pytest.approx(slow_rank(z.astype(float)), rel=1e-6)


def test_thinned_rows_lie_at_even_distances():
    z = np.arange(100)[:, None]
    assert thinned(z, 4).ravel().tolist() == [0, 33, 66, 99] and thinned(z) is z
    sorted_by_class = np.repeat(np.eye(8), 5000, 0)
    assert effective_rank(thinned(sorted_by_class)) == pytest.approx(7, rel=1e-6) == effective_rank(sorted_by_class)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_a_point_has_no_rank_and_no_spread(dtype):
    point = np.full((500, 64), 1 / 8, dtype) * np.float32(.333)
    assert effective_rank(point) == 0 and spread(point) < 1e-12
    assert effective_rank(np.zeros((5, 3))) == 0 == spread(np.zeros((5, 3)))
    assert effective_rank(point[:1]) == 0


def test_spread_of_unit_rows_is_one_minus_the_mean_cosine():
    z = unit(1 + np.random.default_rng(0).normal(size=(40, 6)))
    assert spread(z) == pytest.approx(1 - (z @ z.T).mean())


def test_what_is_not_finite_has_no_rank():
    z = np.ones((5, 3))
    z[2, 1] = math.nan
    assert math.isnan(effective_rank(z)) and math.isnan(spread(z))
    for bad in (np.ones(3), np.ones((0, 3)), np.array([['a', 'b']])):
        with pytest.raises(InputError, match='expected'): effective_rank(bad)


def test_bfloat16_is_read():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    assert effective_rank(z) == pytest.approx(effective_rank(z.detach().float()))


@pytest.mark.parametrize('r, d, eps', [(1, 64, .2), (3, 64, .2), (64, 64, .2), (7, 128, .5), (2, 6, .01)])
def test_directions_turn_the_rate_round(r, d, eps):
    z = torch.eye(d, dtype=torch.float64)[:r].repeat(5, 1)
    assert directions(coding_rate(z, eps).item(), d, eps) == pytest.approx(r, rel=1e-6)


def test_directions_end_at_none_and_all():
    assert directions(0, 64, .2) < 1e-9 and directions(-1, 64, .2) < 1e-9 and directions(1e9, 64, .2) == 64
    grow = [directions(R, 64, .2) for R in np.linspace(1, max_coding_rate(64, .2), 30)]
    assert grow == sorted(grow)


# clusters

def test_shares_count_noise():
    assert cluster_shares([0, 1, 1, -1], 3).tolist() == [.25, .5, 0]
    assert cluster_shares(torch.tensor([2, 2])).tolist() == [0, 0, 1]
    assert cluster_shares([-1, -1]).tolist() == [] and cluster_shares([-1, -1], 2).tolist() == [0, 0]
    for bad in ([0, 5], [-2, 0], [.5, 0], [[0, 1]], []):
        with pytest.raises(InputError): cluster_shares(bad, 3)


def test_assignment_statistics_against_the_definition():
    logits = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1).double().numpy()
    found = {k: v.item() for k, v in assignment_statistics(logits).items()}
    count = np.bincount(p.argmax(1), minlength=6)
    assert found['entropy'] == pytest.approx(-(p.mean(0) * np.log2(p.mean(0))).sum(), rel=1e-5)
    assert found['entropy'] == pytest.approx(marginal_entropy(logits).item(), rel=1e-5)
    assert found['conditional_entropy'] == pytest.approx(-(p * np.log2(p)).sum(1).mean(), rel=1e-5)
    assert found['largest_share'] == pytest.approx(count.max() / 200) and found['n_empty'] == (count == 0).sum()
    same = assignment_statistics(torch.tensor(p), probabilities=True)
    assert all(same[k].item() == pytest.approx(v, rel=1e-5) for k, v in found.items())
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    permuted = assignment_statistics(logits[:, order])
    assert all(v.item() == pytest.approx(found[k], rel=1e-5) for k, v in permuted.items())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_assignment_statistics_wait_for_nothing_and_carry_no_gradient(dtype):
    for probabilities in (False, True):         # a tensor on meta has no values to wait for
        found = assignment_statistics(torch.empty(512, 10, dtype=dtype, device='meta'), probabilities)
        assert all(v.shape == () and v.is_floating_point() for v in found.values())
    found = assignment_statistics(torch.zeros(4, 3, dtype=dtype, requires_grad=True))
    assert not any(v.requires_grad for v in found.values())
    assert found['entropy'].item() == pytest.approx(math.log2(3), rel=1e-6)
    with pytest.raises(InputError): assignment_statistics(torch.zeros(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_assignment_statistics_on_a_gpu():
    logits = torch.randn(4096, 100, device='cuda')
    torch.cuda.set_sync_debug_mode('error')
    try: found = assignment_statistics(logits)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert found['entropy'].item() == pytest.approx(marginal_entropy(logits).item(), rel=1e-4)


# checks of a log

STUCK = [dict(loss=8.006), dict(n_clusters=3000), 'loss_at_ln_k']
BROKEN = [
    STUCK,
    [dict(loss=math.log(50000)), dict(classes=50000), 'loss_at_ln_k'],
    [dict(loss=math.log(10) * 1.004), dict(classes=dict(one=10, other=7)), 'loss_at_ln_k'],
    [dict(loss=[3., 2., 1., math.nan, 1., 1., 1., 1.]), {}, 'not_finite'],
    [dict(loss=-5., R=math.inf), {}, 'not_finite'],
    [dict(loss=[float(9 - e) for e in range(8)], lr=0.), {}, 'no_learning_rate'],
    [dict(loss=[float(9 - e) for e in range(8)], lr_main=1e-12, lr_head=1e-11), {}, 'no_learning_rate'],
    [dict(loss=[5., 5.01, 4.99, 5., 5.01, 5., 4.99, 5.]), {}, 'loss_unchanged'],
    [dict(loss=[2., 2.5, 3., 3.2, 3.5, 4., 4.2, 5.]), {}, 'loss_rising'],
    [dict(loss=[float(9 - e) for e in range(8)], drift=.1, moved=.002, nmi_last=.99), {}, 'committed'],
    [dict(loss=[float(9 - e) for e in range(8)], entropy_all=6., entropy_anchors=5.99, entropy_instances=6.01), {},
     'unsure_anchors'],
    [dict(R=2.9), dict(z_dim=64, eps=.2), 'rate_at_floor'],
    [dict(R=6.8), dict(z_dim=64, eps=.2), 'rate_at_floor'],
    [dict(R=3.3), dict(z_dim=128, eps=.2), 'rate_at_floor'],
    [dict(R=55., similarity=.1), dict(z_dim=64, eps=.2), 'spread_without_invariance'],
    [dict(R=30., Rc=29.9), dict(n_clusters=10, z_dim=64, eps=.2), 'no_reduction'],
    [dict(R=30., Rc=29.9), {}, 'no_reduction'],
    [dict(nmi_last=.01, loss=1.), {}, 'unsettled'],
    [dict(effective_rank=1.05, R=20.), dict(n_clusters=10), 'collapsed_embedding'],
    [dict(effective_rank=1.05), {}, 'collapsed_embedding'],
    [dict(entropy=.05), dict(n_clusters=10), 'one_cluster'],
    [dict(largest_share=.99), dict(n_clusters=10), 'one_cluster'],
    [dict(sizes=[[990, 10] + [0] * 8] * 8), dict(n_clusters=10), 'one_cluster'],
    [dict(sizes=[[100] * 4 + [0] * 6] * 8), dict(n_clusters=10), 'empty_clusters'],
    [dict(conditional_entropy=3.31), dict(n_clusters=10), 'undecided'],
]


@pytest.mark.parametrize('values, known, sign', BROKEN, ids=[f'{i}-{b[2]}' for i, b in enumerate(BROKEN)])
def test_a_broken_log(values, known, sign):
    found = diagnose(logged(**values), **known)
    finding = next(f for f in found.findings if f.sign == sign)
    assert finding.stage == 'one' and finding.epoch == (3 if values.get('loss', [0]) == BROKEN[3][0]['loss'] else 0)
    assert finding.sentence in str(found) or found.findings[0].failed and not finding.failed
    assert str(found).startswith('Training ') and str(found).count('\n') == 0
    assert finding.advice == checks.ADVICE[sign]


HEALTHY = [
    [dict(loss=[2.3, 2.0, 1.4, 1.0, .8, .7, .65, .6], lr=.05, sizes=[[40] * 10] * 8, nmi_last=.6), dict(n_clusters=10)],
    [dict(loss=[8.006, 7.9, 7.7, 7.5, 7.3, 7.1, 7.0, 6.9]), dict(n_clusters=3000)],
    [dict(loss=[3.045 - .158 * e / 7 for e in range(8)]), dict(n_clusters=21)],
    # targets change every epoch
    [dict(loss=[1.62, 1.63, 1.61, 1.62, 1.63, 1.62, 1.61, 1.62], nmi_last=.7), dict(n_clusters=10)],
    [dict(loss=[-68., -75., -80., -82., -84., -86., -87., -88.], R=44., similarity=.74, lr=[1e-3] * 7 + [0.]),
     dict(n_clusters=10, z_dim=64, eps=.2)],
    [dict(loss=-37., R=55.5, Rc=18.6, similarity=.89, entropy=3.31, conditional_entropy=.02, largest_share=.12,
          effective_rank=58.), dict(n_clusters=10, z_dim=64, eps=.2)],
    [dict(loss=-9., R=39., Rc=30., entropy=.97, largest_share=.6), dict(n_clusters=2, z_dim=64, eps=.2)],
    # two clusters on a line, as they should be
    [dict(R=10.6, Rc=7., effective_rank=1.05), dict(n_clusters=2, z_dim=6, eps=.01)],
    [dict(largest_share=.4, entropy=2.8), dict(n_clusters=10)],
    # a batch cannot fill 3,000 clusters
    [dict(largest_share=.004, entropy=7.9, n_empty=2800.), dict(n_clusters=3000)],
    # noisier than it can fall
    [dict(loss=[1310., 1380., 1360., 1450., 1370., 1320., 1400., 1350.]), {}],
    [dict(something_else='text', loss=None), dict(n_clusters=10, z_dim=64, eps=.2)],
    [dict(Rc=3., loss=[2., 1.8, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1]), {}],
]


@pytest.mark.parametrize('values, known', HEALTHY)
def test_a_healthy_log(values, known):
    if values.get('loss') == -37.: values = values | dict(loss=[-35. - e / 4 for e in range(8)])
    if values.get('loss') == -9.: values = values | dict(loss=[-8. - e / 9 for e in range(8)])
    found = diagnose(logged(**values), **known)
    assert found.ok and not found.failed, str(found)
    assert str(found).startswith(('No sign of collapse', 'Nothing to judge'))


PROGRESS = 'loss_at_ln_k', 'loss_unchanged', 'loss_rising', 'no_reduction', 'unsettled'

@pytest.mark.parametrize('sign, values, known', [(s, v, k) for v, k, s in BROKEN if s in PROGRESS])
def test_no_progress_is_not_said_of_the_first_epochs(sign, values, known):
    assert sign not in names(diagnose(logged(n=checks.THRESHOLDS.min_epochs - 1, **values), **known))


def test_a_loss_that_is_mostly_a_constant():
    rng = np.random.default_rng(0)
    losses = [float(-4000 - min(e, 10) / 5 + .1 * rng.normal()) for e in range(60)]
    assert diagnose(logged(60, loss=losses)).ok
    without = [x + min(e, 10) / 5 for e, x in enumerate(losses)]
    assert names(diagnose(logged(60, loss=without))) == ['loss_unchanged']


@pytest.mark.parametrize('seed', range(5))
def test_noise_alone_is_a_loss_that_stands_still(seed):
    noise = np.random.default_rng(seed).normal(size=30)
    assert names(diagnose(logged(30, loss=[float(-62 + .05 * x) for x in noise]))) in (['loss_unchanged'], [])
    assert diagnose(logged(30, loss=[float(-62 - e / 100 + .05 * x) for e, x in enumerate(noise)])).ok


def test_a_slow_start_at_ln_k_is_a_doubt():
    found = diagnose(logged(6, loss=[2.302 - .003 * e for e in range(6)]), n_clusters=10)
    assert names(found) == ['loss_at_ln_k'] and not found.failed
    assert str(found).startswith('Training is doubtful: the loss is still')


def test_since_when_and_where():
    rows = logged(6, 'first', largest_share=.2) + logged(6, 'second', largest_share=[.2, .97, .2, .97, .98, .99])
    found = diagnose(rows, n_clusters=10).findings
    assert [(f.stage, f.epoch) for f in found] == [('second', 3)]
    rows = logged(6, 'first', largest_share=[.2] * 4 + [.97] * 2) + logged(6, 'second', largest_share=.97)
    assert [(f.stage, f.epoch) for f in diagnose(rows, n_clusters=10).findings] == [('first', 4)]
    recovered = logged(6, 'first', largest_share=.97) + logged(6, 'second', largest_share=.2)
    assert diagnose(recovered, n_clusters=10).ok


def test_a_stage_that_collapsed_is_named_even_if_later_ones_look_better():
    rows = logged(6, 'representation', R=3., similarity=.999)
    rows += logged(6, 'cluster_heads', R=22., Rc=17., similarity=.4)
    found = diagnose(rows, n_clusters=10, z_dim=64, eps=.2)
    assert names(found) == ['rate_at_floor'] and found.findings[0].stage == 'representation'
    assert 'stage representation from epoch 0' in str(found)


def test_a_doubt_that_failure_followed_comes_first():
    rows = logged(6, 'representation', R=52., similarity=.25) + logged(6, 'cluster_heads', R=3., Rc=1.)
    found = diagnose(rows, z_dim=64, eps=.2)
    assert names(found) == ['spread_without_invariance', 'rate_at_floor']
    assert all(f.failed for f in found.findings)
    assert not diagnose(rows[:6], z_dim=64, eps=.2).failed


# checks of arrays

def embedding(n=300, d=64, seed=0): return unit(np.random.default_rng(seed).normal(size=(n, d)))


def test_collapsed_embeddings():
    rng = np.random.default_rng(0)
    point = unit(1 + .02 * rng.normal(size=(300, 64)))
    line = unit(rng.choice([-1, 1], (300, 1)) * np.ones(64) + .05 * rng.normal(size=(300, 64)))
    nan = embedding()
    nan[7] = math.nan
    assert 'point' in checks.collapsed_embedding(point).sentence
    assert 'rank of 1.' in checks.collapsed_embedding(line).sentence
    assert checks.collapsed_embedding(nan).sentence.startswith('1 of 300 rows')
    assert names(diagnose(embedding=nan)) == ['not_finite']
    assert checks.collapsed_embedding(line, 2) is None and checks.collapsed_embedding(embedding()) is None
    found = diagnose(embedding=np.ones((300, 64)))
    assert names(found) == ['collapsed_embedding'] and str(found).count('%') == 0


@pytest.mark.parametrize('K', [2, 3, 4, 5, 10, 30])
def test_neural_collapse_is_no_collapse(K):
    "Clusters at the corners of a simplex, K - 1 directions, of any sizes up to five to one."
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = rng.choice(K, 400, p=np.linspace(1, 5, K) / np.linspace(1, 5, K).sum())
        z = unit(np.eye(64)[y] + .02 * rng.normal(size=(400, 64)))
        assert diagnose(embedding=z, labels=y, n_clusters=K).ok


def test_features_that_are_no_unit_rows():
    "Features after a rectifier lie far from the origin, and a few of them are large."
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(500, 128)) + 2, 0) * np.r_[[6.] * 4, [1.] * 124]
    assert diagnose(embedding=z).ok and diagnose(embedding=rng.normal(size=(500, 2)) * [3, 1] + 20).ok
    assert diagnose(embedding=z * np.r_[1000., [1.] * 127]).failed is False


@pytest.mark.parametrize('K, p', [
    (10, [.4] + [.6 / 9] * 9),
    (10, [.55] + [.05] * 9),
    (2, [.85, .15]),
    (3, [.7, .2, .1]),
    (100, [.3] + [.7 / 99] * 99),
])
@pytest.mark.parametrize('n', [10, 30, 100, 3000])
def test_honest_imbalance(K, p, n):
    for seed in range(100):
        labels = np.random.default_rng(seed).choice(K, n, p=p)
        assert checks.check_labels(labels, K) == [], seed


@pytest.mark.parametrize('K', [2, 10, 1000])
def test_one_cluster_for_all(K):
    found = diagnose(labels=np.zeros(20_000, int), n_clusters=K)
    assert found.failed and found.findings[0].value == 1
    assert {'one_cluster', 'empty_clusters'} == set(names(found))
    assert '100 %' in str(found) and (K == 2 or f'{K - 1} of {K} clusters are empty' in str(found))


def test_empty_clusters_are_named():
    found = checks.empty_clusters(cluster_shares(np.arange(600) % 6, 10), 600)
    assert found.value == .4 and not found.failed and '4 of 10 clusters are empty: 6, 7, 8, 9' in found.sentence
    assert checks.empty_clusters(cluster_shares(np.arange(600) % 8, 10), 600) is None
    assert checks.empty_clusters(cluster_shares([0, 1], 10), 2) is None


def test_methods_that_choose_their_own_number():
    labels = np.r_[np.zeros(60, int), np.ones(30, int), -np.ones(10, int)]
    found = diagnose(labels=labels)
    assert found.ok and str(found) == 'No sign of collapse: 2 clusters, the largest holds 60 %, 10 % are noise.'
    assert names(diagnose(labels=[0] * 100)) == ['one_cluster']
    assert names(diagnose(labels=[-1] * 95 + [0] * 3 + [1] * 2)) == ['noise']
    assert names(diagnose(labels=[-1] * 100)) == ['noise'] and names(diagnose(labels=np.arange(100))) == ['fragments']
    assert diagnose(labels=[-1] * 60 + [0] * 20 + [1] * 20).failed is False and diagnose(labels=[0] * 10).ok


def test_logits():
    rng = np.random.default_rng(0)
    sharp = np.eye(10)[rng.integers(0, 10, 500)] * 20
    assert diagnose(logits=sharp).measured['n_used'] == 10 and diagnose(logits=sharp).ok
    assert diagnose(logits=torch.tensor(sharp).softmax(1), probabilities=True).ok
    assert 'undecided' in names(diagnose(logits=sharp / 1e4))
    assert 'one_cluster' in names(diagnose(logits=sharp + 100 * np.eye(10)[3]))
    assert 'not_finite' in names(diagnose(logits=np.full((50, 3), math.nan)))


def test_predictions_unlike_training():
    rows, labels = logged(6, largest_share=.2, entropy=3.2), np.zeros(500, int)
    found = diagnose(rows, labels=labels, n_clusters=10)
    assert 'unlike_training' in names(found) and 'batch norm' in str(found) and '20 % of a batch' in str(found)
    assert 'unlike_training' not in names(diagnose(logged(6, largest_share=.99), labels=labels, n_clusters=10))
    assert diagnose(logged(6, largest_share=.99), labels=np.arange(500) % 10, n_clusters=10).ok


def test_rates_of_arrays():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 4
    z = np.zeros((600, 32))
    for c in range(4): z[y == c, 8 * c:8 * c + 8] = rng.normal(size=(150, 8))
    z = unit(z)
    split = diagnose(embedding=z, labels=y, n_clusters=4, eps=.2)
    across = diagnose(embedding=z, labels=rng.permutation(y), n_clusters=4, eps=.2)
    R, Rc = coding_rate_reduction(torch.tensor(z), torch.tensor(y), .2)
    assert split.ok and split.measured['reduction'] == pytest.approx((R - Rc).item(), rel=1e-5)
    assert names(across) == ['no_reduction'] and diagnose(embedding=z, labels=y, eps=.2).ok
    assert diagnose(embedding=z, labels=np.arange(600) % 300, n_clusters=300, eps=.2)


# the answer

def test_nothing_to_judge():
    assert diagnose().ok and str(diagnose()).startswith('Nothing to judge') and diagnose(iter([])).ok


def test_the_sentence_of_a_healthy_run():
    rows = logged(6, R=41.2, Rc=20.2, loss=[-18., -19., -19.5, -20., -20.5, -21.])
    found = diagnose(rows, embedding(500), np.arange(500) % 10, n_clusters=10, eps=.2)
    start = 'No sign of collapse: 10 of 10 clusters in use, the largest holds 10 %, effective rank '
    assert str(found).startswith(start)
    assert str(found).endswith(' of 64, R - Rc 21 of at most 44.75 nats.')
    falling = str(diagnose(logged(6, loss=[2., 1.8, 1.6, 1.4, 1.2, 1.]), classes=10))
    assert falling == 'No sign of collapse: loss 1, uniform predictions would have 2.303.'


def test_worst_first_and_no_more_than_three_clauses():
    found = diagnose(logged(8, loss=2.303, lr=0.), embedding=np.ones((300, 64)), logits=np.zeros((300, 10)))
    failed = [f.failed for f in found.findings]
    assert failed == sorted(failed, reverse=True) and len(failed) > 4
    assert str(found).count(';') == 3 and 'more sign' in str(found)
    assert str(found).endswith(f'({found.findings[0].advice}).')
    assert len(set(names(found))) == len(names(found))


def test_results_json_and_markdown(tmp_path):
    rows = logged(8, 'a|b<i>', loss=math.nan, R=3.)
    found = diagnose(rows, np.ones((300, 64)), np.zeros(300, int), n_clusters=10, eps=.2)
    write_json(tmp_path / 'd.json', found.to_dict())
    def refuse(constant): raise AssertionError(constant)
    back = json.loads((tmp_path / 'd.json').read_text(), parse_constant=refuse)
    assert back['failed'] and not back['ok'] and back['sentence'] == str(found)
    assert [f['sign'] for f in back['findings']] == names(found) and back['findings'][0]['value'] is None
    page = found._repr_markdown_()
    table = page.splitlines()[2:]
    assert '<i>' not in page.replace('\\<i\\>', '')
    assert all(line.replace('\\|', '').count('|') == 6 for line in table) and len(table) == 2 + len(found.findings)
    assert Diagnosis()._repr_markdown_() == str(Diagnosis())


def test_every_sign_has_advice_and_every_finding_is_a_clause():
    assert {s for _, _, s in BROKEN} | {'unlike_training', 'noise', 'fragments'} == set(checks.ADVICE)
    for values, known, _ in BROKEN:
        for f in diagnose(logged(**values), **known).findings:
            assert f.sentence[0].islower() or f.sentence[0].isdigit() or f.sentence[:2] == 'R '


def test_one_more_sign_is_not_plural():
    def found(n): return str(Diagnosis([checks.Finding('noise', 1, 0, 'a', 'b')] * n))
    assert found(3).count('more') == 0 and '1 more sign (' in found(4)
    assert '2 more signs (' in found(5) and '11 more signs (' in found(14)


@pytest.mark.parametrize('share, text', [(0, '0 %'), (1e-9, 'less than 1 %'), (.004, 'less than 1 %'), (.006, '1 %'),
                                         (.5, '50 %'), (.997, 'more than 99 %'), (1, '100 %')])
def test_percent(share, text):
    assert checks.percent(share) == text


def test_thresholds_cannot_be_changed_and_name_their_limits():
    with pytest.raises(AttributeError): checks.THRESHOLDS.min_epochs = 1
    assert checks.THRESHOLDS == checks.Thresholds() and len(checks.Thresholds.__dataclass_fields__) == 25
    a, b = checks.THRESHOLDS.one_cluster
    for K, limit in ((2, .9), (10, .58)):
        assert a + b / K == pytest.approx(limit)
        def shares(largest): return np.r_[largest, np.full(K - 1, (1 - largest) / (K - 1))]
        assert checks.one_cluster(shares(limit - .01), 10 ** 9) is None
        found = checks.one_cluster(shares(limit + .01), 10 ** 9)
        assert not found.failed and found.limit == pytest.approx(limit, abs=1e-4)


@pytest.mark.parametrize('bad, words', [
    (dict(labels=[0, 12], n_clusters=10), 'n_clusters=10'),
    (dict(labels=[.5, 1.]), 'whole numbers'),
    (dict(labels=[0, -3]), '-1 for noise'),
    (dict(embedding=np.zeros((5, 2)), labels=[0, 1]), '5 rows.*one per sample'),
    (dict(logits=np.zeros((5, 3)), n_clusters=4), '3 columns'),
    (dict(embedding=np.zeros(5)), r'\(n, d\)'),
])
def test_bad_arrays_are_refused_in_one_line(bad, words):
    with pytest.raises(InputError, match=words) as e: diagnose(**bad)
    assert '\n' not in str(e.value)


# runs

def test_a_folder_that_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / 'absent'):
        with pytest.raises(InputError, match='config.json'): diagnose_run(folder)


def test_the_folder_of_a_run(tmp_path):
    run = Run(tmp_path / 'run', dict(method='NMCE', n_clusters=10, eps=.2, z_dim=64, epochs=5))
    assert str(diagnose_run(run.folder)).endswith('; the run has not come to its end.')
    for row in logged(6, R=40., Rc=20., loss=[-15., -16., -17., -18., -19., -20.]): run.metrics.append(row)
    partly = diagnose_run(run.folder)
    assert partly.ok and partly.measured['best_reduction'] == pytest.approx(44.75, abs=.01) and not partly.finished
    run.finish({}, predictions=np.arange(400) % 10, embeddings=embedding(400).astype(np.float32))
    whole = diagnose_run(run.folder)
    assert whole.ok and whole.finished and whole.measured['n_used'] == 10
    assert names(diagnose_run(run.folder, labels=np.zeros(400, int))) == ['one_cluster', 'empty_clusters']


def test_eps_of_a_method_without_rates_is_not_taken_for_one(tmp_path):
    run = Run(tmp_path / 'run', dict(method='other', n_clusters=10, eps=.05))
    run.metrics.append(dict(stage='one', epoch=0, loss=2.))
    run.finish({}, predictions=np.arange(400) % 10, embeddings=embedding(400))
    assert 'reduction' not in diagnose_run(run.folder).measured


QUICK = dict(dataset='digits', batch_size=100, epochs=20, cluster_epochs=6, finetune_epochs=2, n_init=1, device='cpu')


def fitted(folder, **change):
    return NMCE(**QUICK, run_dir=str(folder), **change).fit(load('digits', limit=200))


def test_a_run_that_stopped_in_its_first_epoch(tmp_path):
    with pytest.raises(TrainingError): fitted(tmp_path / 'run', lr=1e30)
    assert str(diagnose_run(tmp_path / 'run')) == ('Nothing to judge: no epoch was logged and there is no embedding or '
                                                   'label; the run has not come to its end.')


@pytest.mark.slow
@pytest.mark.parametrize('change, sign', [
    ({}, None), (dict(seed=1), None), (dict(loss='nt_xent'), None),
    (dict(z_weight=1e6), 'rate_at_floor'), (dict(z_weight=0.), 'spread_without_invariance'),
    (dict(lr=1e4), 'rate_at_floor'), (dict(lr=1e-12), 'no_learning_rate'), (dict(tau=100.), 'no_reduction'),
])
def test_real_runs(tmp_path, change, sign):
    fitted(tmp_path / 'run', **change)
    found = diagnose_run(tmp_path / 'run')
    assert (found.ok if sign is None else sign in names(found)), str(found)


@pytest.mark.slow
def test_a_head_that_knows_one_cluster(tmp_path):
    model = fitted(tmp_path / 'run')
    with torch.no_grad(): model.network_.cluster.bias[4] += 100
    shares = model.predict_proba(load('digits', limit=200))
    found = diagnose(model.history_, logits=shares, probabilities=True, eps=model.config_.eps, z_dim=64)
    assert found.failed and {'one_cluster', 'empty_clusters', 'unlike_training'} <= set(names(found))
