"A verdict on clusters without labels: earned by what repeats them, refused to noise and to collapse."
import json

import numpy as np
import pytest

from nmc_workbench import cluster
from nmc_workbench.cluster import kmeans_labels
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.data.readers import as_images
from nmc_workbench.diagnostics.checks import Finding
from nmc_workbench.diagnostics.diagnosis import Diagnosis
from nmc_workbench.evaluation import quality as module
from nmc_workbench.evaluation.quality import VERDICTS, assess, input_rows, quality, structureless
from nmc_workbench.methods import NMC, SeLa
from nmc_workbench.methods.base import open_run
from nmc_workbench.runs.label_history import LabelHistory

KINDS = ['nmce', 'nmc', 'sela', 'deep_cluster', 'anchors']


def blobs(n=400, k=5, d=8, apart=8., seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (g.normal(size=(n, d)) + apart * np.eye(k, d)[y]).astype('float32'), y


X, Y = blobs()


def judged(z=X, labels=Y, **more): return assess(z, labels, baselines=False, **more)


def half_wrong(y, share, seed=0):
    g = np.random.default_rng(seed)
    return np.where(g.random(len(y)) < share, g.permutation(y), y)


# --- the verdict


@pytest.mark.parametrize('d', [2, 16])
@pytest.mark.parametrize('k', [3, 8])
@pytest.mark.parametrize('seed', range(3))
def test_uniform_noise_is_not_trusted(d, k, seed):
    z = np.random.default_rng(seed).uniform(size=(500, d)).astype('float32')
    found = judged(z, kmeans_labels(z, k, seed), seed=seed)
    assert found.verdict == 'not trusted' and abs(found.measured['beyond']) < module.QUALITY_LIMITS.beyond[0]


@pytest.mark.parametrize('seed', range(3))
def test_noise_is_not_trusted_even_if_views_and_another_run_agree(seed):
    z = np.random.default_rng(seed).normal(size=(500, 3)).astype('float32')
    labels = kmeans_labels(z, 6, seed)
    assert judged(z, labels, views=labels[None], other=labels).verdict == 'not trusted'


@pytest.mark.parametrize('k, d, apart', [(3, 2, 12.), (5, 8, 8.), (8, 16, 8.), (20, 32, 10.)])
def test_groups_far_apart_are_trusted(k, d, apart):
    x, y = blobs(600, k, d, apart)
    found = judged(x, y)
    assert found.verdict == 'trusted' and found.sentence.startswith('The groups can be trusted: ')
    assert judged(1000 * x + 7, y).verdict == 'trusted'


@pytest.mark.parametrize('labels', [np.zeros(400, int), np.where(Y == 0, -1, 0), np.full(400, -1),
                                    np.where(np.arange(400) < 3, Y, 0)])
def test_what_collapsed_is_not_trusted(labels):
    assert judged(labels=labels).verdict == 'not trusted'
    assert judged(np.ones((400, 3)), labels).verdict == 'not trusted'


def test_a_failed_training_is_not_trusted_and_a_doubtful_one_in_part():
    sign = Finding('noise', 1., .5, 'the loss is nan', 'lower the learning rate')
    assert judged(views=Y[None], diagnosis=Diagnosis([sign])).verdict == 'not trusted'
    from dataclasses import replace
    found = judged(views=Y[None], diagnosis=Diagnosis([replace(sign, failed=False)]))
    assert found.verdict == 'in part' and 'the doctor says' in found.reasons[0]


@pytest.mark.parametrize('name', ['views', 'other'])
def test_views_and_another_run_decide(name):
    def given(labels): return {name: labels[None] if name == 'views' else labels}
    verdicts = [judged(**given(half_wrong(Y, share))).verdict for share in (0, .35)]
    assert verdicts == ['trusted', 'in part']
    apart = X + 3 * np.random.default_rng(1).normal(size=X.shape)         # k-means does not find the groups
    assert judged(apart, **given(half_wrong(Y, 1))).verdict == 'not trusted'
    assert judged(**given((Y + 2) % 5)).measured[name] == 1               # other numbers, the same groups


def test_the_numbers_of_clusters_do_not_matter():
    a, b = judged(views=Y[None]), judged(labels=7 * ((Y + 2) % 5), views=7 * ((Y + 2) % 5)[None])
    assert a.verdict == b.verdict and a.measured['views'] == b.measured['views'] == 1


def test_who_still_moves_leaves_trust_in_part():
    still = np.stack([Y] * 20)
    moving = np.stack([half_wrong(Y, .4, i) for i in range(20)])
    for labels, verdict in ((still, 'trusted'), (moving, 'in part')):
        found = judged(views=Y[None], history=LabelHistory(labels, [('a', i) for i in range(20)]))
        assert found.verdict == verdict
    fine = np.stack([np.random.default_rng(i).permutation(400) // 4 for i in range(20)])    # trained on 100 others
    found = judged(views=Y[None], history=LabelHistory(fine, [('a', i) for i in range(20)]))
    assert found.verdict == 'trusted' and 'moved' not in found.measured


def test_there_is_no_verdict_where_nothing_repeats_the_groups():
    found = judged(labels=kmeans_labels(X, 9))
    assert found.verdict is None and found.sentence.startswith(VERDICTS[None])


def test_no_class_is_read(monkeypatch):
    images = as_images(X, Y)
    model = NMC(epochs=1, batch_size=50, potential_hidden=16, device='cpu').fit(images)
    one = quality(model, baselines=False).to_dict()
    other = NMC(epochs=1, batch_size=50, potential_hidden=16, device='cpu').fit(as_images(X))
    assert one == quality(other, baselines=False).to_dict()


# --- the measurements


@pytest.mark.parametrize('how', ['shift', 'scale', 'rotation'])
def test_no_structure_has_no_unit_and_no_origin(how):
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    z = dict(shift=X + 50, scale=X * 1e-3, rotation=X @ q)[how]
    assert abs(structureless(z, 5) - structureless(X, 5)) < .03


def test_views_that_were_not_drawn_do_not_count():
    views = np.full((2, 400), -2)
    views[:, ::4] = Y[::4]
    views[1, 0] = (Y[0] + 1) % 5
    found = judged(views=views)
    assert np.isclose(found.measured['same'], 1 - 1 / 200) and found.measured['views'] > .97
    assert 'views' not in judged(views=np.full((2, 400), -2)).measured


@pytest.mark.parametrize('n', [600, 5000])
def test_what_is_looked_at_is_bounded(n, monkeypatch):
    seen, real = [], module.silhouette_score
    monkeypatch.setattr(module, 'silhouette_score', lambda z, labels: seen.append(len(z)) or real(z, labels))
    x, y = blobs(n)
    judged(x, y)
    assert set(seen) == {min(n, 2000)}


def test_rules_and_baselines_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(cluster, 'umap_rows', lambda x, seed: x[:, :2])
    found = assess(X, Y, rows=X)
    assert set(found.measured['k_by_rule']) == set(module.RULES) and found.measured['baseline_kmeans'] == 1
    assert 'on the input' in found.numbers[-1].name and 'on the embedding' in assess(X, Y).numbers[-1].name
    assert found.verdict == judged().verdict


@pytest.mark.parametrize('x, k, says', [(X, len(X) + 1, 'choose fewer'), (X[:14], 3, 'at least 15 rows'),
                                        (X, 0, 'n_clusters=0'), (X * np.nan, 3, 'NaN')])
def test_umap_kmeans_refuses_before_it_maps(x, k, says, monkeypatch):
    monkeypatch.setattr(cluster, 'umap_rows', None)
    with pytest.raises(InputError, match=says): cluster.umap_kmeans_labels(x, k)


def test_every_row_says_what_it_means():
    found = judged(views=Y[None], other=Y, history=LabelHistory(np.stack([Y, Y]), [('a', 0), ('a', 1)]))
    assert found.frame.columns.tolist() == ['value', 'beside', 'meaning'] and (found.frame.meaning.str.len() > 20).all()
    text, page = str(found), found._repr_html_()
    assert found.sentence in text and all(n.meaning in text for n in found.numbers)
    assert page.count('<tr>') == len(found.numbers) + 1 and json.loads(json.dumps(found.to_dict()))['verdict']
    assert '<script' not in judged(diagnosis=Diagnosis([Finding('x', 1, 1, '<script>', 'y')]))._repr_html_()


def test_large_images_are_averaged():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 48), np.uint8)
    rows = input_rows(as_images(pixels))
    assert rows.shape == (3, 32 * 32) and np.allclose(rows[0, 0], pixels[0, :2, :2].mean(), atol=40)
    assert np.array_equal(input_rows(as_images(X)), X)


# --- runs of every method


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_of_every_method(tiny_run, kind):
    found = quality(tiny_run(kind), baselines=False)
    assert found.verdict in ('not trusted', 'in part', None)       # an epoch or two is not enough
    model = open_run(tiny_run(kind), 'cpu')
    same = quality(model, other=tiny_run(kind), baselines=False)
    assert same.measured['other'] == 1 and same.measured['n_clusters'] == found.n_clusters
    if kind != 'nmc': assert 'views' in found.measured


def test_a_finished_run_with_its_baselines(tiny_run, monkeypatch):
    monkeypatch.setattr(cluster, 'umap_rows', lambda x, seed: x[:, :2])
    found = quality(tiny_run('sela'))
    assert {'baseline_kmeans', 'baseline_umap', 'k_by_rule'} <= found.measured.keys()


def test_noise_images_are_not_trusted():
    noise = as_images(np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype('u1'))
    model = SeLa(n_clusters=8, backbone='smallconv', n_heads=1, epochs=6, n_label_updates=4, batch_size=100,
                 device='cpu').fit(noise)
    assert quality(model, baselines=False).verdict == 'not trusted'


def test_images_of_the_fit_may_be_given(tiny_run):
    images, model = load('digits', limit=120), open_run(tiny_run('sela'), 'cpu')
    assert quality(model, images, baselines=False).to_dict() == quality(model, baselines=False).to_dict()


BAD = {
    'a name': (lambda run: quality(3), 'expected a fitted estimator'),
    'no run': (lambda run: quality('nowhere'), 'not a run folder'),
    'not fitted': (lambda run: quality(NMC()), 'not fitted'),
    'images out of step': (lambda run: quality(run, X, baselines=False), '400 images, and the fit had 120'),
    'labels out of step': (lambda run: quality(run, other=[0, 1]), 'expected 120'),
    'other data': (lambda run: quality(run, other=NMC(epochs=1, batch_size=50, device='cpu').fit(X)), 'other data'),
    'views out of step': (lambda run: judged(views=Y[:-1][None]), r'expected \(V, 400\)'),
    'none in both': (lambda run: judged(other=np.full(400, -2)), 'has 0 of the samples'),
    'history out of step': (lambda run: judged(history=LabelHistory(np.zeros((2, 3), int), [('a', 0)] * 2)),
                            'history has 3 samples'),
    'labels and embedding': (lambda run: judged(labels=Y[:-1]), 'labels has 399 entries; expected 400'),
    'nan': (lambda run: judged(X * np.nan), 'NaN'),
    'rows out of step': (lambda run: assess(X, Y, rows=X[:-1]), r'expected \(400, d\)'),
    'more clusters than samples': (lambda run: structureless(X[:5], 5), 'expected fewer clusters'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_line(tiny_run, what):
    call, message = BAD[what]
    with pytest.raises(InputError, match=message) as e: call(tiny_run('sela'))
    assert '\n' not in str(e.value)
