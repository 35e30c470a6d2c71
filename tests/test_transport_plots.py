"Transport pictures: every number where it belongs."
import numpy as np
import pytest

pytest.importorskip('matplotlib')

from matplotlib.colors import to_hex

from nmc_workbench.core.errors import InputError
from nmc_workbench.plotting.colours import cluster_colours
from nmc_workbench.plotting.transport import (MOST, mattering, plan_matrix, plan_order, plan_picture, residual_picture,
                                              sizes_picture, turnover_picture)
from nmc_workbench.transport import sinkhorn

from .toys import HOSTILE, png


def problem(n=60, k=5, power=10, scale=1., seed=0):
    "Logits, and their plan."
    x = scale * np.random.default_rng(seed).normal(size=(n, k))
    return x, sinkhorn(x, power, given='logits', max_iter=3000)


def softmax(x): return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def test_the_matrix():
    x, plan = problem()
    Q = plan_matrix(x, plan, 10, 'logits')
    wanted = plan.row_scale * softmax(x) ** 10 * plan.col_scale[:, None]
    np.testing.assert_allclose(Q, wanted, rtol=1e-9)
    np.testing.assert_allclose(plan_matrix(softmax(x), plan, 10), Q, rtol=1e-9)
    np.testing.assert_allclose(plan_matrix(x + 500, plan, 10, 'logits'), Q, rtol=1e-9)
    certain = np.eye(3)[[0, 1, 2] * 4]          # probabilities of zero
    assert np.allclose(plan_matrix(certain, sinkhorn(certain, 25), 25) * 12, certain)


def test_order_and_share():
    Q = np.array([[.6, .4, 0], [1e-9, 1, 0], [.9, .1, 0], [0, .5, .5]])
    assert plan_order(Q).tolist() == [2, 0, 1, 3]
    assert mattering(Q) == pytest.approx(7 / 12) and mattering(Q, .2) == .5


@pytest.mark.parametrize('n, k', [(60, 5), (200, 30), (1, 1), (3, 8), (MOST + 50, 4), (30, 100)])
def test_plan_picture(n, k):
    x, plan = problem(n, k)
    picture = plan_picture(x, plan, 10, 'logits')
    Q, (top, _, heat, rows) = plan_matrix(x, plan, 10, 'logits'), picture.still.axes[:4]
    np.testing.assert_allclose([b.get_height() for b in top.patches], Q.sum(0))
    assert [to_hex(b.get_facecolor()) for b in top.patches] == cluster_colours(k)
    assert top.lines[0].get_ydata() == pytest.approx([1 / k] * 2)
    shown = heat.images[0].get_array()
    assert shown.shape == (min(n, MOST), k) and (np.diff(shown.argmax(1)) >= 0).all()
    if n <= MOST: np.testing.assert_allclose(shown, n * Q[plan_order(Q)])
    np.testing.assert_allclose([b.get_width() for b in rows.patches], 1, rtol=1e-6)
    assert f'{n:,} samples to {k:,} clusters' in picture.caption and ('shown' in picture.caption) == (n > MOST)
    assert len(picture.png()) < 150_000


def test_what_does_not_belong_to_the_plan():
    x, plan = problem()
    def refused(match, *args):
        with pytest.raises(InputError, match=match) as e: plan_picture(*args)
        assert '\n' not in str(e.value)
    refused('with power=25 some sample has .* give prob, power and given as sinkhorn had them', x, plan, 25, 'logits')
    refused('with power=10 some sample', softmax(x)[::-1], plan, 10)
    refused(r'prob has shape \(59, 5\); expected \(60, 5\)', x[1:], plan, 10, 'logits')
    refused("unknown given 'log'", x, plan, 10, 'log')
    refused('plan=float64 of shape .*; expected Transport', x, x, 10)
    refused('some sample', np.full_like(x, np.nan), plan, 10, 'logits')


@pytest.mark.parametrize('kind', ['sum', 'mean', 'marginal'])
def test_residual_picture(kind):
    _, a = problem()
    with pytest.warns(UserWarning): b = sinkhorn(problem()[0], 40, given='logits', max_iter=15)
    picture = residual_picture({'a': a, HOSTILE: b}, .1, kind)
    ax = picture.still.axes[0]
    for line, plan in zip(ax.lines, (a, b)):
        wanted = dict(sum=plan.errors, mean=plan.errors / 60, marginal=plan.marginal_errors)[kind]
        assert line.get_xdata().tolist() == (plan.checks + 1).tolist()
        np.testing.assert_allclose(line.get_ydata(), wanted)
    assert ax.get_yscale() == 'log' and ax.lines[2].get_ydata() == [.1, .1]
    assert 'not converged' in ax.get_legend().get_texts()[1].get_text()
    assert png(picture).width == 1280


def test_one_plan_without_a_tolerance():
    _, plan = problem()
    ax = residual_picture(plan, None).still.axes[0]
    assert len(ax.lines) == 1 and ax.get_legend() is None
    exact = sinkhorn(np.eye(2)[[0, 1] * 3], 25)             # an error of zero has no place on a logarithmic axis
    assert exact.n_iter == 1 and png(residual_picture(exact))


@pytest.mark.parametrize('bad, why', [
    (dict(plans=5), 'plan is a int'),
    (dict(plans={'x': None}), 'x is a NoneType'),
    (dict(plans={}), 'no plans'),
    (dict(plans=problem()[1], kind='max'), "unknown kind 'max'")])
def test_bad_plans(bad, why):
    with pytest.raises(InputError, match=why): residual_picture(**bad)


@pytest.mark.parametrize('k', [1, 4, 30, 31, 300])
def test_sizes_picture(k):
    g = np.random.default_rng(0)
    named = {'argmax of p': g.zipf(1.5, 900) % k, 'plan': np.r_[np.arange(900) % k, -1, -1], HOSTILE: np.zeros(9, int)}
    picture = sizes_picture(named, k)
    ax = picture.still.axes[0]
    wanted = [sorted(np.bincount(v[v >= 0], minlength=k), reverse=True) for v in named.values()]
    if k <= 30: assert [b.get_height() for b in ax.patches] == sum(wanted, [])
    else: assert [p.get_data().values.tolist() for p in ax.patches] == wanted
    assert ax.lines[0].get_ydata() == pytest.approx([900 / k] * 2)
    assert f'plan: {900 // k}' in picture.caption and ('empty' in picture.caption) == (k > 1)
    assert len(picture.png()) < 150_000


@pytest.mark.parametrize('labels, why', [
    ([0, 5], r'labels has 2 labels up to 5; expected some, of 0 to 4'),
    ([.5], 'whole numbers'),
    (np.zeros(0, int), 'has 0 labels'),
    ({}, 'no labels')])
def test_bad_sizes(labels, why):
    with pytest.raises(InputError, match=why): sizes_picture(labels, 5)


def test_turnover_picture():
    rows = [
        dict(stage='a', epoch=0, loss=1.),
        dict(epoch=1, moved=.5, nmi_last=.25),
        dict(epoch=2, moved=.25, nmi_last=.5),
        dict(epoch=3, moved=None, nmi_last=None)]
    picture = turnover_picture(rows, HOSTILE)
    lines = [ax.lines[0].get_ydata().tolist() for ax in picture.still.axes]
    assert lines == [[.5, .25], [.25, .5]] and not picture.still.axes[0].collections
    assert png(picture).width == 1720
    assert turnover_picture(rows).caption == '2 updates of the labels; at the last 25.0% moved, NMI 0.5000'
    assert turnover_picture(rows[:2]).caption.startswith('1 update of')
    for bad in ([], rows[:1]):
        with pytest.raises(InputError, match='no row has moved and nmi_last'): turnover_picture(bad)


def test_heads_and_several_updates_in_an_epoch():
    def head(step, h, moved): return dict(step=step, head=h, moved=moved, nmi_last=1 - moved, iterations=11)
    first = [head(0, 0, .2), head(0, 1, .4), head(7, 0, .1), head(7, 1, .3)]
    second = [head(12, 0, 0.)]
    rows = [dict(epoch=e, moved=9., nmi_last=9., label_updates=updates) for e, updates in enumerate((first, second))]
    left, right = turnover_picture(rows).still.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [.3, .2, 0])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [.7, .8, 1])
    np.testing.assert_allclose(left.collections[0].get_offsets(), [[1, .2], [1, .4], [2, .1], [2, .3], [3, 0]])
