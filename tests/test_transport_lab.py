"The transport lab without a browser: what the slider does, and what a page is sent."
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError

for name in ('gudhi', 'matplotlib', 'plotly', 'anywidget'): pytest.importorskip(name)

from nmc_workbench.data import load
from nmc_workbench.evaluation.features import extract
from nmc_workbench.plotting.colours import cluster_colours
from nmc_workbench.transport import sinkhorn
from nmc_workbench.explore.transport_lab import LARGEST, POWERS, TransportLab, plan_summary, powers_picture, solved
from nmc_workbench.plotting.transport import mattering, plan_matrix

from .processes import python
from .toys import HOSTILE, png

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def lab(): return TransportLab.of_blobs()


@pytest.fixture(scope='module')
def run(tiny_run): return tiny_run('nmce')


def shown(lab):
    "The heat map, back in the order of the samples."
    z = np.empty_like(lab.logits)
    z[lab.order] = lab.heat.trace('plan').z
    return z


def test_everything_follows_the_power(lab):
    for power in (1., 7.5, 25., 100.):
        lab.power = power
        plan = sinkhorn(lab.logits, power, given='logits')
        assert np.array_equal(lab.labels, plan.labels) and lab.plan.n_iter == plan.n_iter and lab.slider.value == power
        np.testing.assert_allclose(shown(lab), 60 * plan_matrix(lab.logits, plan, power, 'logits'), atol=1e-5)
        assert lab.heat.trace('sizes').y.tolist() == plan.sizes.tolist()
        summary = plan_summary(lab.plan, lab.matrix, lab.logits)
        assert summary['cost, mean of −ln p'] == f'{plan.cost:.4f}' and summary['iterations'] == f'{plan.n_iter:,}'
        for text in summary.values(): assert f'<b>{text}</b>' in lab.summary.value
        colours = np.array(cluster_colours(64))
        assert (colours[lab.map.trace('samples').marker.color] == colours[plan.labels]).all()


def test_slider_and_attribute_do_the_same(lab):
    lab.slider.value = 4.
    a = lab.matrix
    lab.power = 9.
    lab.power = 4
    assert lab.power == 4 and np.array_equal(a, lab.matrix)
    for beyond, end in ((.5, POWERS[0]), (300, POWERS[1])):
        lab.power = beyond
        assert lab.power == beyond and lab.slider.value == end
    before = lab.matrix
    for bad in (0, -1, float('nan'), 'much'):
        with pytest.raises(InputError, match='power='): lab.power = bad
    assert lab.power == 300 and lab.matrix is before


def test_a_larger_power_is_sharper(lab):
    found = [solved(lab.logits, p) for p in (1, 5, 25, 100)]
    shares, largest = [mattering(Q) for _, Q in found], [(60 * Q.max(1)).mean() for _, Q in found]
    iterations = [plan.n_iter for plan, _ in found]
    assert shares == sorted(shares, reverse=True) and largest == sorted(largest) and iterations == sorted(iterations)
    assert np.ptp(found[-1][0].sizes) <= 1 < np.ptp(np.bincount(lab.logits.argmax(1)))


def test_what_a_page_is_sent(lab):
    sent = []
    lab.heat.send = lab.map.send = lambda content, buffers=None: sent.append(content)
    lab.slider.value = 3.
    assert len(sent) == 2                       # one message per figure
    text = json.dumps(sent)
    assert len(text) < 8_000 and 'NaN' not in text
    changes = sent[0]['change']['traces']
    assert {lab.heat.figure.data[i].name for i in changes} == {'plan', 'sizes'}
    lab.heat.answer(dict(ask='state'))
    plan = next(t for t in sent[-1]['state']['figure']['data'] if t['name'] == 'plan')
    assert len(plan['customdata']) == 60
    assert lab.ui.children and 'λ = 3' in repr(lab) and 'λ = 3' in lab.picture().caption


def test_rows_keep_their_order(lab):
    order = lab.order.copy()
    names = [n[0] for n in lab.heat.trace('plan').customdata]
    lab.power = 2
    assert np.array_equal(lab.order, order) and names == [lab.names[i] for i in order]
    sharp = solved(lab.logits, POWERS[1])[0].labels[order]
    assert (np.diff(sharp) >= 0).all()


def test_logits_without_a_map():
    "With fewer samples than clusters, and more clusters than colours."
    x = np.random.default_rng(0).normal(size=(30, 70))
    lab = TransportLab(x, names=[HOSTILE] * 30)
    assert lab.map is None and '<script>' not in str(lab.heat.trace('plan').customdata)
    lab.slider.value = 10.
    assert lab.plan.sizes.sum() == 30 and png(lab.picture())
    assert TransportLab(np.zeros((4, 1))).plan.sizes.tolist() == [4]


def test_powers_picture(lab):
    picture = powers_picture(lab.logits, (1, 30), HOSTILE)
    last = solved(lab.logits, 30)[1]
    images = [ax.images[0].get_array() for ax in picture.still.axes]
    assert len(images) == 2 and (np.diff(images[1].argmax(1)) >= 0).all()
    assert np.allclose(np.sort(images[1].max(1)), np.sort(60 * last.max(1)))
    assert 'iterations' in picture.still.axes[0].get_xlabel() and len(picture.png()) < 150_000
    with pytest.raises(InputError, match='powers=.*not empty'): powers_picture(lab.logits, ())


def test_bad_input(run, tmp_path):
    def refused(match, call, *args, **kwargs):
        with pytest.raises(InputError, match=match) as e: call(*args, **kwargs)
        assert '\n' not in str(e.value)
    x = np.zeros((20, 3))
    refused(r'logits has shape \(20,\)', TransportLab, x[:, 0])
    refused('values that are not finite', TransportLab, x + np.nan)
    refused(f'expected at most {LARGEST:,} entries', TransportLab, np.zeros((LARGEST, 2)))
    refused(r'where has shape \(5, 2\)', TransportLab, x, np.zeros((5, 2)))
    refused(r'where has shape \(20, 3\)', TransportLab, x, x)
    refused('names has 2 entries; expected 20', TransportLab, x, names=['a', 'b'])
    refused('power=0', TransportLab, x, power=0)
    refused('is not a run folder', TransportLab.of_run, tmp_path)
    other = tmp_path / 'other'
    other.mkdir()
    for name in ('config.json', 'model.pt'): (other / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / 'config.json').read_text())
    (other / 'config.json').write_text(json.dumps(config | dict(limit=90)))
    refused('no images: .*; the logits are computed from the images', TransportLab.of_run, other)


def test_a_run(run):
    lab = TransportLab.of_run(run, n=40, seed=3)
    images = load('digits', limit=120)
    place = {i: n for n, i in enumerate(images.ids)}
    index = [place[name] for name in lab.names]
    assert lab.power == 25 and lab.logits.shape == (40, 10) and len(set(index)) == 40 and index == sorted(index)
    np.testing.assert_allclose(lab.logits, extract(run, images, 'cluster')[index], rtol=1e-4, atol=1e-5)
    assert 'NMCE, digits: 40 of 120' in lab.title and TransportLab.of_run(run, n=40, seed=4).names != lab.names
    assert TransportLab.of_run(run, n=500, power=3.).logits.shape == (120, 10)


def test_a_run_of_self_labelling(tiny_run):
    lab = TransportLab.of_run(tiny_run('sela'), n=30)
    assert lab.power == 12 and lab.logits.shape == (30, 6)
    assert np.load(tiny_run('sela') / 'self_labels.npy').shape == (2, 120)


@pytest.mark.slow
def test_papermill_opens_a_run(run, tmp_path):
    out = tmp_path / 'out.ipynb'
    papermill = python('-m', 'papermill', str(ROOT / 'nbs/explore_transport.ipynb'), str(out))
    given = ['-p', 'run_dir', str(run), '-p', 'n', '20', '-p', 'power', '4']
    subprocess.run([*papermill, '--no-progress-bar', *given], check=True, capture_output=True, timeout=300)
    cells = json.loads(out.read_text())['cells']
    printed = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    assert 'NMCE, digits: 20 of 120 samples' in printed and 'a run of SeLa is needed' in printed
    assert out.stat().st_size < 2_000_000
