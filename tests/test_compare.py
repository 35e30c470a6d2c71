"Comparisons go by ids and never by place, numbers of clusters have no meaning, and planted errors are found."
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_array, write_json
from nmc_workbench.evaluation.agreement import Comparison, label_agreement, matched_to
from nmc_workbench.explore.compare_lab import CompareLab
from nmc_workbench.plotting.agreement import agreement_picture, maps_of, maps_picture, run_palette, sheet_picture
from nmc_workbench.runs.index import newest_of_one_set, scores_table
from nmc_workbench.runs.finished import FinishedRun

HOSTILE = '<script>alert("x")</script> & \'q\' 😀' + 'y' * 280


def run(labels, x, ids=None, seed=0, y=None, names=(), dataset='toy', images=None):
    ids = np.array([f'a/{i}' for i in range(len(labels))]) if ids is None else ids
    config = dict(method='NMCE', dataset=dataset, seed=seed)
    return FinishedRun(Path(f'runs/{seed}'), config, ids, np.asarray(labels), np.asarray(x, 'f4'), images=images,
                       class_labels=y, class_names=list(names))


def three(n=150, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return y, (4 * np.eye(3)[y] + rng.normal(size=(n, 3))).astype('f4'), rng


@pytest.mark.parametrize('seed', range(20))
def test_matching_against_every_permutation(seed):
    rng = np.random.default_rng(seed)
    k, m = rng.integers(2, 6, 2)
    a, b = rng.integers(-1, k, 60), rng.integers(-1, m, 60)
    found = matched_to(a, b)
    def overlap(p): return sum(((a == i) & (b == p[i]) & (a >= 0)).sum() for i in range(k) if p[i] < m)
    best = max(map(overlap, permutations(range(max(k, m)), int(k))))
    assert ((found == b) & (b >= 0)).sum() == best and ((found == -1) == (a == -1)).all()
    assert len(set(zip(a.tolist(), found.tolist()))) == len(set(a.tolist()))          # one number each
    assert np.isclose(label_agreement(a, b), (found == b).mean())


def test_numbers_order_and_subsets_change_nothing():
    y, x, rng = three()
    a = np.where(rng.random(150) < .1, rng.integers(0, 3, 150), y)
    b = np.where(rng.random(150) < .1, rng.integers(0, 3, 150), y)
    one = Comparison([run(a, x, y=y), run(b, x, seed=1)])
    order = rng.permutation(150)
    ids = np.array([f'a/{i}' for i in range(150)])
    other = Comparison([run(a, x, y=y), run(np.array([7, 2, 5])[b][order], x[order], ids[order], seed=1)])
    assert (one.matched == other.matched).all() and (one.label_errors() == other.label_errors()).all()
    assert np.allclose(one.table()['agreement'], other.table()['agreement'])
    part = Comparison([run(a, x, y=y), run(b[order[:100]], x[order[:100]], ids[order[:100]], seed=1)])
    assert set(part.ids) == set(ids[order[:100]]) and part.left_out == [50, 0]
    for c in (one, part): assert all(c.labels[1][i] == b[int(k.split('/')[1])] for i, k in enumerate(c.ids))


def test_the_table_of_runs_with_noise():
    "Noise of any run is one cluster more; which run comes first makes no difference."
    y, x, rng = three()
    noisy = np.where(rng.random(150) < .2, -1, y)
    one, other = (Comparison([run(a, x), run(b, x, seed=1)]).table() for a, b in ((y, noisy), (noisy, y)))
    for k in ('agreement', 'nmi', 'ari'): assert .5 < one[k][1, 0] < 1 and np.isclose(one[k], other[k]).all()
    both = Comparison([run(noisy, x), run(noisy, x, seed=1)]).table()
    assert all(np.isclose(both[k], 1).all() for k in both)


def test_planted_label_errors_come_first():
    y, x, rng = three(300)
    labels = y.copy()
    planted = rng.choice(300, 6, replace=False)
    labels[planted] = (labels[planted] + 1) % 3
    c = Comparison([run(rng.permutation(3)[y], x, y=labels, seed=s) for s in range(3)])
    found = c.label_errors()
    assert sorted(found) == sorted(planted) and (np.diff(c.typical[found]) >= 0).all()


def test_hard_images():
    y, x, rng = three()
    a, b, c = y.copy(), y.copy(), y.copy()
    a[:4], b[:4], c[:4] = 0, 1, 2
    hard, what = Comparison([run(v, x, seed=s) for s, v in enumerate((a, b, c))]).hard()
    assert sorted(hard) == [0, 1, 2, 3] and what == 'no two runs agree'
    c[:4] = 1
    hard, what = Comparison([run(v, x, seed=s) for s, v in enumerate((a, b, c))]).hard()
    assert sorted(hard) == [0, 1, 2, 3] and what.startswith('at most 2 of 3 runs agree')
    hard, what = Comparison([run(y, x), run(y, x, seed=1)]).hard()
    assert not len(hard) and what == 'all runs agree on every sample'


def test_runs_of_other_numbers_of_clusters():
    y, x, rng = three()
    fine = 2 * y + (rng.random(150) < .3)
    c = Comparison([run(y, x), run(fine, x, seed=1), run(np.full(150, -1), x, seed=2)])
    matched = c.matched[1]
    assert set(matched) == {0, 1, 2, 3, 4, 5} and (matched[matched < 3] == y[matched < 3]).all()
    assert (c.matched[2] == -1).all()
    assert len(run_palette(c)) == 7


def test_without_classes():
    y, x, _ = three()
    c = Comparison([run(y, x), run(y, x, seed=1)])
    assert not len(c.label_errors())
    assert 'the runs have no classes' in CompareLab(c).tiles['label_errors']._told['nothing']


def test_names_are_text():
    from nmc_workbench.data import load
    digits = load('digits', limit=40)
    y = np.minimum(digits.labels.numpy(), 2)
    x = digits.pixels.flatten(1).numpy()
    hostile = dict(names=[HOSTILE] * 3, dataset=HOSTILE, images=digits)
    c = Comparison([run(y, x, digits.ids, y=(y + 1) % 3, **hostile), run(y, x, digits.ids, seed=1, **hostile)])
    lab = CompareLab(c)
    assert lab.ui is not None and lab.points[0]._told['title'] == c.names[0]             # the page writes it as text
    widgets = [w for box in lab.ui.children for part in box.children for w in part.children]
    html = ''.join(w.value for w in widgets if isinstance(getattr(w, 'value', None), str))
    assert '<script' not in html
    plotly = agreement_picture(c).interactive.to_json()
    assert 'script>' not in plotly.replace('\\u003c', '<').replace('&lt;', '') or '<script' not in plotly
    for picture in (sheet_picture(c, [1, 2, 3]), maps_picture(c, maps_of(c)), agreement_picture(c)):
        assert picture.png()[:4] == b'\x89PNG'


def test_linked_maps():
    y, x, _ = three()
    lab = CompareLab(Comparison([run(y, x, seed=s) for s in range(4)]))
    assert len(lab.points) == 3
    lab.points[1].calls['lasso'](np.array([3, 9]))
    assert all(p.selected.tolist() == [3, 9] for p in lab.points)
    assert lab.selection.tolist() == ['a/3', 'a/9'] and lab.tiles['selection'].shown.tolist() == [3, 9]


def test_table_over_seeds(tmp_path):
    for seed, acc in enumerate((.8, .9, 1.)):
        folder = tmp_path / f'n{seed}'
        write_json(folder / 'config.json', dict(method='NMCE', dataset='digits', seed=seed, data='d'))
        write_json(folder / 'results.json', dict(acc=acc, nmi=.5, seconds=3.))
        for name in ('predictions', 'embeddings'): write_array(folder / f'{name}.npy', np.zeros(3))
    write_json(tmp_path / 'half/config.json', dict(method='NMC', dataset='digits', seed=0))
    write_json(tmp_path / 'other/config.json', dict(method='NMCE', dataset='digits', seed=0, recipe='digits_small'))
    write_json(tmp_path / 'other/results.json', dict(nmi=.1, seconds=1.))
    rows = scores_table(tmp_path)
    assert [(r['recipe'], r['seeds']) for r in rows] == [('', 3), ('recipe=digits_small', 1), ('', 0)]
    assert np.isclose(rows[0]['acc'], .9) and np.isclose(rows[0]['acc_std'], np.std([.8, .9, 1]))
    assert 'acc' not in rows[1] and rows[2]['note'] == 'unfinished: half'
    assert len(newest_of_one_set(tmp_path)) == 3 and newest_of_one_set(tmp_path / 'half') == []


def test_bad_input():
    y, x, _ = three()
    with pytest.raises(InputError, match='1 run to compare; expected at least two'): Comparison([run(y, x)])
    others = np.array([f'b/{i}' for i in range(150)])
    with pytest.raises(InputError, match='share no sample .toy.'): Comparison([run(y, x), run(y, x, others)])
    with pytest.raises(InputError, match='reference=5; expected 0 to 1'): Comparison([run(y, x), run(y, x)], 5)
    with pytest.raises(InputError, match='is not a run folder'): Comparison.of_runs(['nowhere', 'neither'])


@pytest.mark.timing
@pytest.mark.slow
def test_sixty_thousand_and_five_runs():
    import time
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 60_000)
    x = (4 * np.eye(10)[y] + rng.normal(size=(60_000, 10))).astype('f4')
    start = time.perf_counter()
    def noisy(y): return np.where(rng.random(60_000) < .1, rng.integers(0, 10, 60_000), rng.permutation(10)[y])
    c = Comparison([run(noisy(y), x, seed=s, y=y) for s in range(5)])
    c.table(), c.label_errors(), c.hard()
    took = time.perf_counter() - start
    print(f'{took:.1f} s')
    assert took < 60
