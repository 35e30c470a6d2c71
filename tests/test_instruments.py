"Spectra, rates and angles of clusters against closed forms, other libraries and symmetries."
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles as scipy_angles

from nmc_workbench.core.errors import InputError
from nmc_workbench.diagnostics.geometry import (
    cluster_bases, cluster_spectra, principal_angles, rate_report, subspace_angles)
from nmc_workbench.losses import coding_rate, coding_rate_reduction, max_coding_rate, optimal_reduction


def rotation(d, seed=0): return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]

def clusters(n=60, d=9, k=3, rank=2, seed=0):
    "Unit rows near k planes, their labels, and some noise."
    g = np.random.default_rng(seed)
    planes = [g.normal(size=(n, rank)) @ g.normal(size=(rank, d)) + .05 * g.normal(size=(n, d)) for _ in range(k)]
    z = np.concatenate([*planes, g.normal(size=(7, d))])
    return z / np.linalg.norm(z, axis=1, keepdims=True), np.r_[np.repeat(np.arange(k), n), [-1] * 7]

def spread(basis, n=50, seed=0):
    "Rows that fill the span of the columns."
    return np.random.default_rng(seed).normal(size=(n, basis.shape[1])) @ basis.T

# spectra

def test_spectra_against_numpy():
    z, labels = clusters()
    found = cluster_spectra(z, labels)
    assert list(found) == [0, 1, 2]
    for k, s in found.items():
        wanted = np.linalg.svd(z[labels == k], compute_uv=False)
        assert np.allclose(s.values, wanted, rtol=1e-12) and s.size == 60 and s.values.dtype == np.float64
        assert s.dimension == (wanted > .01 * wanted[0]).sum()
        assert cluster_spectra(z, labels, threshold=.5)[k].dimension == (wanted > .5 * wanted[0]).sum()

def test_dimension_by_hand():
    z = np.diag([1., .02, .005, 0])
    assert [cluster_spectra(z, [3] * 4, threshold=t)[3].dimension for t in (0, .001, .01, .1)] == [3, 3, 2, 1]
    assert cluster_spectra(np.zeros((2, 3)), [0, 0])[0].dimension == 0

def test_a_cluster_of_one_sample_is_one_direction():
    s = cluster_spectra(np.array([[0., 3, 4], [1, 0, 0]]), [0, 9])
    assert list(s) == [0, 9] and np.allclose(s[0].values, [5]) and s[0].dimension == s[0].size == 1

# rates

def test_rates_are_those_of_the_loss():
    z, labels = clusters()
    real = labels >= 0
    report = rate_report(z, labels, .2)
    R, Rc = coding_rate_reduction(torch.from_numpy(z[real]), torch.from_numpy(labels[real]), .2, sync=False)
    assert np.allclose([report.R, report.Rc, report.reduction], [R, Rc, R - Rc], rtol=1e-8) and report.n_noise == 7
    for row in report.clusters:
        own = torch.from_numpy(z[labels == row['cluster']])
        assert math.isclose(row['rate'], coding_rate(own, .2, sync=False), rel_tol=1e-8)
    assert math.isclose(sum(r['share'] * r['rate'] for r in report.clusters), report.Rc)
    assert math.isclose(sum(r['share'] for r in report.clusters), 1)

@pytest.mark.parametrize('k, d', [(2, 6), (3, 6), (6, 6), (4, 8)])
def test_orthogonal_subspaces_reach_the_optimum(k, d):
    axes, labels = np.tile(np.eye(d), (5, 1)) @ rotation(d), np.tile(np.arange(d) * k // d, 5)
    report = rate_report(axes, labels, .05)
    assert math.isclose(report.share, 1, rel_tol=1e-12) and report.unit_rows
    assert math.isclose(report.R, max_coding_rate(d, .05))
    assert math.isclose(report.best['reduction'], optimal_reduction(d, k, .05))
    assert {r['dimension'] for r in report.clusters} == {d // k} == {report.best['dimension']}
    assert all(math.isclose(r['rate'], report.best['Rc']) for r in report.clusters)
    assert report.totals == dict(R=report.R, Rc=report.Rc, reduction=report.reduction,
                                 optimum=report.best['reduction'], share=report.share)

def test_noise_does_not_flatter():
    "What is left out is left out of the whole, too."
    z, labels = clusters()
    kept = labels >= 0
    with_noise, without = rate_report(z, labels, .1), rate_report(z[kept], labels[kept], .1)
    assert with_noise.totals == without.totals and with_noise.clusters == without.clusters
    hidden = np.where(np.arange(len(z)) % 2, labels, -1)
    assert rate_report(z, hidden, .1).share < 1

def test_more_clusters_than_dimensions_and_empty_ones():
    z = np.tile(np.eye(2), (3, 1))
    more = rate_report(z, np.arange(6) % 3, .1)
    assert more.best == rate_report(z, np.arange(6) % 2, .1).best and more.n_clusters == 3
    z, labels = clusters(d=9)
    empty = rate_report(z, labels, .1, n_clusters=9)
    assert empty.best['dimension'] == 1 and len(empty.clusters) == 3
    assert math.isnan(rate_report(z, np.zeros(len(z), int), .1).share)

def test_rows_are_used_as_they_are():
    z, labels = clusters()
    assert not rate_report(2 * z, labels, .1).unit_rows
    assert math.isclose(rate_report(2 * z, labels, .4).R, rate_report(z, labels, .1).R)

def test_rates_do_not_see_rotation_order_or_names():
    z, labels = clusters()
    order = np.random.default_rng(1).permutation(len(z))
    renamed = np.where(labels < 0, -1, 7 - labels)
    first, second = rate_report(z, labels, .1), rate_report((z @ rotation(9))[order], renamed[order], .1)
    assert np.allclose(list(first.totals.values()), list(second.totals.values()), rtol=1e-10)
    assert np.allclose([r['rate'] for r in first.clusters], [r['rate'] for r in second.clusters][::-1], rtol=1e-10)
    assert [r['cluster'] for r in second.clusters] == [5, 6, 7]

def test_float32_and_half_are_measured_in_double_precision():
    z, labels = clusters()
    for x in (torch.from_numpy(z).float(), torch.from_numpy(z).bfloat16()):
        assert rate_report(x, torch.from_numpy(labels), .01).R == rate_report(x.double(), labels, .01).R

def test_rows_are_ready_for_a_table():
    pd = pytest.importorskip('pandas')
    table = pd.DataFrame(rate_report(*clusters(), .1).clusters)
    assert table.columns.tolist() == ['cluster', 'size', 'share', 'rate', 'dimension']
    assert table['size'].tolist() == [60] * 3

# angles

def test_principal_angles_against_scipy():
    g = np.random.default_rng(0)
    for p, q in ((1, 1), (2, 2), (3, 1), (2, 5), (4, 4)):
        u, v = (np.linalg.qr(g.normal(size=(8, r)))[0] for r in (p, q))
        ours = principal_angles(torch.from_numpy(u), torch.from_numpy(v))
        assert np.allclose(ours, np.rad2deg(scipy_angles(u, v))[::-1], atol=1e-10) and len(ours) == min(p, q)
        assert np.allclose(ours, principal_angles(torch.from_numpy(v), torch.from_numpy(u)), atol=1e-10)

@pytest.mark.parametrize('angle', [0, 1e-12, 1e-9, 1e-5, .3, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2])
def test_a_known_rotation(angle):
    "Two axes, one of them turned by the angle into a third, seen from a turned space; the other stays."
    turn = rotation(6)
    tilted = np.array([[math.cos(angle), 0, math.sin(angle), 0, 0, 0], [0, 1, 0, 0, 0, 0]]).T
    z = np.concatenate([spread(turn @ np.eye(6)[:, :2]), spread(turn @ tilted, seed=1)])
    found = subspace_angles(z, np.arange(100) // 50, energy=1)
    largest = found.largest[0, 1]
    assert found.dimensions == [2, 2]
    assert math.isclose(math.radians(largest), angle, rel_tol=1e-6, abs_tol=3e-15)
    assert found.smallest[0, 1] < 1e-13 and math.isclose(found.mean[0, 1], largest / 2, abs_tol=1e-12)

def test_orthogonal_and_equal_subspaces():
    turn = rotation(6)
    bases = turn[:, :2], turn[:, 2:4], turn[:, :2], turn[:, :1]
    z = np.concatenate([spread(basis, seed=i) for i, basis in enumerate(bases)])
    found = subspace_angles(z, np.arange(200) // 50, energy=1)
    assert found.dimensions == [2, 2, 2, 1]
    assert np.allclose(found.smallest[1, [0, 2, 3]], 90) and np.allclose(found.largest[1, [0, 2, 3]], 90)
    assert np.allclose(found.largest[0, [2, 3]], 0, atol=1e-12)      # the line lies in the plane

def test_angles_against_scipy_for_clusters():
    z, labels = clusters()
    found = subspace_angles(z, labels, n_components=2)
    for i in range(3):
        for j in range(i):
            bases = [np.linalg.svd(z[labels == k])[2][:2].T for k in (i, j)]
            wanted = np.rad2deg(scipy_angles(*bases))
            ours = [found.largest[i, j], found.mean[i, j], found.smallest[i, j]]
            assert np.allclose(ours, [wanted[0], wanted.mean(), wanted[-1]])
    for m in (found.largest, found.mean, found.smallest):
        assert np.array_equal(m, m.T) and (m.diagonal() == 0).all()

def test_angles_do_not_see_rotation_scale_or_order():
    z, labels = clusters()
    order = np.random.default_rng(1).permutation(len(z))
    first, second = subspace_angles(z, labels), subspace_angles(3 * (z @ rotation(9))[order], labels[order])
    for name in ('largest', 'mean', 'smallest'):
        assert np.allclose(getattr(first, name), getattr(second, name), atol=1e-9)

def test_other_names_permute_rows_and_columns():
    z, labels = clusters()
    to = np.array([40, 7, 19, -1])        # of clusters 0, 1, 2 and noise
    first, second = subspace_angles(z, labels), subspace_angles(z, to[labels])
    assert second.clusters == [7, 19, 40] and second.sizes == [60] * 3
    order = [1, 2, 0]
    for name in ('largest', 'mean', 'smallest'):
        assert np.allclose(getattr(second, name), getattr(first, name)[np.ix_(order, order)], atol=1e-9)
    assert second.dimensions == [first.dimensions[i] for i in order]

def test_one_sample_duplicates_and_noise():
    z = np.array([[1., 0, 0], [0, 1, 0], [0, 2, 0], [1, 1, 0], [5, 5, 5]])
    found = subspace_angles(z, [0, 3, 3, 8, -1], energy=1)
    assert found.clusters == [0, 3, 8] and found.sizes == [1, 2, 1] and found.dimensions == [1, 1, 1]
    assert np.allclose(found.mean, [[0, 90, 45], [90, 0, 45], [45, 45, 0]])
    alone = subspace_angles(z, [4] * 5)
    assert alone.clusters == [4] and alone.largest.tolist() == [[0]]

def test_components_by_energy_and_by_number():
    z = np.diag([3., 2, 1])       # energies 9, 4, 1 of 14
    sizes = {e: cluster_bases(z, [0] * 3, energy=e)[0].shape[1] for e in (.6, 9 / 14, .65, 13 / 14, .95, 1)}
    assert list(sizes.values()) == [1, 1, 2, 2, 3, 3]
    assert [cluster_bases(z, [0] * 3, n_components=r)[0].shape[1] for r in (1, 2, 3)] == [1, 2, 3]
    flat = spread(np.eye(5)[:, :2])
    for x in (flat, torch.from_numpy(flat).float()):        # no more than the rows span
        assert cluster_bases(x, [0] * 50, n_components=4)[0].shape[1] == 2

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_rounding_does_not_count_as_a_direction(dtype):
    g = torch.Generator().manual_seed(0)
    def draw(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    x = torch.nn.functional.normalize((draw(4000, 3) @ draw(3, 64)).to(dtype))
    basis = cluster_bases(x, torch.zeros(4000, dtype=torch.int64), energy=1)[0]
    assert basis.shape == (64, 3) and torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64), atol=1e-12)

# input

def test_what_is_taken():
    z, labels = clusters()
    wanted = rate_report(z, labels, .1).R
    frozen = z.copy()
    frozen.flags.writeable = False
    for x in (z.tolist(), torch.from_numpy(z).requires_grad_(), frozen, z[::-1][::-1]):
        assert rate_report(x, labels.tolist(), .1).R == wanted
    assert cluster_spectra([[1, 0], [0, 1]], [True, True])[1].dimension == 2

Z, Y = clusters()

@pytest.mark.parametrize('call, match', [
    (lambda: cluster_spectra(Z[0], Y), 'shape'),
    (lambda: cluster_spectra(Z, Y[:5]), 'one per sample'),
    (lambda: cluster_spectra(Z, Y + .5), 'whole numbers'),
    (lambda: cluster_spectra(Z[:0], Y[:0]), 'at least 1 row'),
    (lambda: cluster_spectra(Z * np.nan, Y), 'NaN'),
    (lambda: cluster_spectra(Z, Y * 0 - 1), 'every sample is noise'),
    (lambda: cluster_spectra(Z, Y, threshold=1), 'threshold=1'),
    (lambda: cluster_spectra(Z.astype(str), Y), 'real numbers'),
    (lambda: cluster_spectra(Z * 1j, Y), 'real numbers'),
    (lambda: rate_report(Z, Y, 0.), 'eps=0'),
    (lambda: rate_report(Z, Y, .1, n_clusters=2), 'n_clusters=2'),
    (lambda: subspace_angles(Z, Y, energy=0), 'energy=0'),
    (lambda: subspace_angles(Z, Y, n_components=10), 'n_components=10'),
    (lambda: subspace_angles(Z, Y, n_components=0), 'n_components=0'),
    (lambda: subspace_angles(Z * (Y != 1)[:, None], Y), 'cluster 1 holds only rows of zeros'),
])
def test_wrong_input_is_one_line(call, match):
    with pytest.raises(InputError, match=match) as e: call()
    assert '\n' not in str(e.value) and 'expected' in str(e.value)
