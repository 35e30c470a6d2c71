"Pictures of angles, rates and clusters: the right numbers and images, where they belong."
import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.diagnostics.geometry import rate_report, subspace_angles
from nmc_workbench.plotting.geometry import _NOT_UNIT, _blocks, angle_matrix, cluster_sheet, rate_bars

from tests.toys import HOSTILE, PLOTLY, clustering, png

pytest.importorskip('matplotlib')

@pytest.fixture(scope='module')
def toy():
    out = clustering()
    return {**out, 'z': out['z'] / np.linalg.norm(out['z'], axis=1, keepdims=True)}

def texts(picture): return [t.get_text() for t in picture.still.axes[0].texts]

# angles

@pytest.mark.parametrize('which', ['largest', 'mean', 'smallest'])
def test_angles_stand_in_their_cells(toy, which):
    picture = angle_matrix(toy['z'], toy['labels'], which, n_components=2)
    wanted = getattr(subspace_angles(toy['z'], toy['labels'], n_components=2), which)
    ax = picture.still.axes[0]
    image = ax.images[0]
    assert np.allclose(image.get_array(), wanted) and image.get_clim() == (0, 90)
    assert texts(picture) == [f'{a:.0f}' for a in wanted.ravel()]
    rows = [f'{k} · {(toy["labels"] == k).sum()} · 2' for k in range(4)]
    assert [t.get_text() for t in ax.get_yticklabels()] == rows
    assert f'{wanted[~np.eye(4, dtype=bool)].mean():.1f}° on average' in picture.caption

def test_angles_to_hover_over(toy):
    pytest.importorskip('plotly')
    picture = angle_matrix(toy['z'], toy['labels'])
    heat, found = picture.interactive.data[0], subspace_angles(toy['z'], toy['labels'])
    assert np.allclose(np.asarray(heat.z), found.mean.round(1)) and (heat.zmin, heat.zmax) == (0, 90)
    text = heat.customdata[1][2]
    assert text.startswith('clusters 1 and 2<br>') and f'largest {found.largest[1, 2]:.1f}°' in text
    assert PLOTLY in picture._repr_mimebundle_()[0]

def test_many_clusters_have_no_numbers():
    z, labels = np.random.default_rng(0).normal(size=(210, 6)), np.arange(210) % 70
    picture = angle_matrix(z, labels)
    assert texts(picture) == [] and len(picture.still.axes[0].get_yticks()) <= 40 and len(picture.png()) < 150_000
    assert picture.interactive is None or len(picture.interactive.to_json()) < 100_000
    assert texts(angle_matrix(z, labels % 20))[0] == '0'

def test_one_cluster_and_noise(toy):
    picture = angle_matrix(toy['z'], np.where(toy['labels'] == 2, 2, -1))
    assert texts(picture) == ['0'] and 'average' not in picture.caption and png(picture).width > 100

# rates

def bars(ax): return [p.get_height() for p in ax.patches]

def test_bars_have_the_report_s_heights(toy):
    picture, report = rate_bars(toy['z'], toy['labels'], .1), rate_report(toy['z'], toy['labels'], .1)
    rate, dimension, total = picture.still.axes
    assert np.allclose(bars(total), [report.R, report.Rc, report.reduction])
    best = [s[0][1] for s in total.collections[0].get_segments()]
    assert np.allclose(best, [report.best[k] for k in ('R', 'Rc', 'reduction')])
    assert np.allclose(bars(rate), [c['rate'] for c in report.clusters])
    assert bars(dimension) == [c['dimension'] for c in report.clusters]
    assert rate.lines[0].get_ydata()[0] == report.best['Rc'] and dimension.lines[0].get_ydata()[0] == 1
    assert [t.get_text() for t in dimension.get_xticklabels()] == list('0123')
    assert total.get_title('left') == f'{report.share:.1%} of the largest reduction'
    assert picture.still._suptitle is None

def test_rates_to_hover_over(toy):
    pytest.importorskip('plotly')
    report = rate_report(toy['z'], toy['labels'], .1)
    data = rate_bars(toy['z'], toy['labels'], .1).interactive.data
    assert np.allclose(np.asarray(data[0].y, float), [report.R, report.Rc, report.reduction])
    assert np.allclose(np.asarray(data[1].y, float), [c['rate'] for c in report.clusters])
    assert data[2].customdata[3].startswith('cluster 3<br>') and list(data[1].x) == list('0123')

@pytest.mark.parametrize('labels, k', [
    (np.zeros(120, int), None), (np.arange(120) % 60, None), (np.arange(120) % 3 * 50, 7)])
def test_rates_of_one_many_and_missing_clusters(toy, labels, k):
    assert png(rate_bars(toy['z'], labels, .1, k)).width > 100

def test_rows_that_are_not_unit_are_pointed_out(toy):
    assert rate_bars(3 * toy['z'], toy['labels'], .1).still._suptitle.get_text() == _NOT_UNIT
    assert rate_bars(toy['z'], np.zeros(120, int), .1).caption.startswith('one cluster')

# sheets

GREYS = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 1, 8, 8) * 20       # one grey per image

def seen(picture, columns):
    "The grey in the middle of every tile, row by row, and where the blocks' names stand."
    ax = picture.still.axes[0]
    canvas, pitch = ax.images[0].get_array(), 102       # 12 canvas pixels for each of 8, edges of 1, a gap of 4
    tops = [round(t.get_position()[1]) + 7 for t in ax.texts]
    blocks = [range(a, end - 14, pitch) for a, end in zip(tops, [b - 40 for b in tops[1:]] + [len(canvas)])]
    return [[int(canvas[y + 49, j * pitch + 49, 0]) for y in block for j in range(columns)] for block in blocks]

def test_the_first_images_in_the_order_given():
    picture = cluster_sheet(GREYS, [1, 0, 1, 0, 1, 0, 1, -1, 1, 1, 0, 0], per_cluster=5, columns=3)
    assert texts(picture) == ['cluster 0 · 5', 'cluster 1 · 6', 'noise · 1']
    white = 255
    assert seen(picture, 3) == [[20, 60, 100, 200, 220, white], [0, 40, 80, 120, 160, white], [140, white, white]]
    assert picture.still.texts[0].get_text() == 'the first 5 images of each cluster'

@pytest.mark.parametrize('labels, names', [
    ([0] * 12, ['cluster 0 · 12']),
    ([-1] * 12, ['noise · 12']),
    ([5] + [-1] * 11, ['cluster 5 · 1', 'noise · 11']),
    ([0, 3] * 6, ['cluster 0 · 6', 'cluster 3 · 6']),
    ([-1, -2] * 6, ['noise · 12'])])
def test_one_cluster_none_and_small_ones(labels, names):
    picture = cluster_sheet(GREYS, labels)
    assert texts(picture) == names and not picture.still.texts and png(picture).width > 300

def test_clusters_that_do_not_fit_are_counted():
    labels = np.r_[np.arange(30), np.full(30, 7), np.full(20, 29)]
    pixels = torch.zeros(80, 3, 4, 4, dtype=torch.uint8)
    picture = cluster_sheet(pixels, labels, most=2)
    assert texts(picture) == ['cluster 7 · 31', 'cluster 29 · 21']
    assert picture.still.texts[0].get_text() == 'the 2 largest of 30 clusters, 28 left out'
    assert len(texts(cluster_sheet(pixels, labels, most=30))) == 30

@pytest.mark.parametrize('per_cluster, columns', [
    (4000, 50), (4000, 20), (100, 1), (1, 1), (4000, 1), (999, 50), (100, 20)])
def test_all_that_can_be_asked_for_fits(per_cluster, columns):
    labels = np.repeat(np.arange(-2, 40), 4000).clip(-1)
    blocks, pitch, note = _blocks(labels, per_cluster, columns, 1000)
    rows = sum(-(-len(index) // columns) for _, index in blocks)
    assert pitch >= 28 and pitch * columns <= 1480
    assert rows * columns * pitch ** 2 <= 7e6 and rows * pitch + 54 * len(blocks) <= 14_000
    assert len(blocks) >= 2 and blocks[-1][0] == -1
    assert all((np.diff(index) > 0).all() for _, index in blocks)
    assert (len(blocks) == 41) == ('left out' not in note)

def test_only_what_is_shown_is_read():
    class Lazy:
        asked = 0
        def __len__(self): return 60_000
        def take(self, index):
            Lazy.asked += len(index)
            return torch.zeros(len(index), 3, 12, 9, dtype=torch.uint8)
    cluster_sheet(Lazy(), np.arange(60_000) % 10, per_cluster=20)
    assert Lazy.asked == 10 * 20 + 1

@pytest.mark.slow
def test_the_png_stays_small():
    g = np.random.default_rng(0)
    pixels = torch.from_numpy(g.integers(0, 256, (1000, 3, 32, 32), dtype=np.uint8))      # nothing compresses worse
    picture = cluster_sheet(pixels, np.arange(1000) % 12, per_cluster=60, class_labels=g.integers(0, 10, 1000))
    assert len(picture.png()) < 2_000_000

def test_values_that_are_not_pixels_are_stretched():
    def canvas(images): return cluster_sheet(images, [0]).still.axes[0].images[0].get_array()
    ramp = torch.linspace(-3, 5, 64).view(1, 1, 8, 8)
    shown = canvas(ramp)
    assert np.array_equal(shown, canvas((ramp * 99).double())) and shown[45, 5, 0] < shown[100, 60, 0]
    flat = canvas(torch.full((1, 1, 8, 8), 77, dtype=torch.uint8))
    assert flat[90, 50].tolist() == [77] * 3        # pixels stay as they are

def test_edges_have_the_class_s_colour():
    y = np.arange(12) % 2
    picture = cluster_sheet(GREYS, [0] * 12, columns=4, class_labels=y, names=['even', HOSTILE])
    canvas = picture.still.axes[0].images[0].get_array()
    assert [canvas[41, j * 102 + 40].tolist() for j in range(4)] == [[0x11, 0x22, 0x99], [0xdd, 0xbb, 0x77]] * 2
    assert [t.get_text() for t in picture.still.legends[0].get_texts()][:2] == ['frame: class', 'even']
    assert png(picture).width > 100
    assert not cluster_sheet(GREYS, [0] * 12).still.legends

@pytest.mark.parametrize('call, match', [
    (lambda t: angle_matrix(t['z'], t['labels'], 'median'), 'unknown angle'),
    (lambda t: angle_matrix(t['z'], t['labels'][:9]), 'labels has 9 entries; expected 120'),
    (lambda t: rate_bars(t['z'], t['labels'], -1), 'eps=-1'),
    (lambda t: cluster_sheet(t['pixels'], t['labels'][:9]), 'expected 120'),
    (lambda t: cluster_sheet(t['z'], t['labels']), 'C, H, W'),
    (lambda t: cluster_sheet(t['pixels'] * torch.nan, t['labels']), 'NaN'),
    (lambda t: cluster_sheet(t['pixels'], t['labels'], columns=0), 'columns=0'),
    (lambda t: cluster_sheet(t['pixels'], t['labels'], per_cluster=0), 'per_cluster=0'),
    (lambda t: cluster_sheet(t['pixels'], t['labels'], class_labels=[0]), 'class_labels'),
    (lambda t: cluster_sheet(t['pixels'][:0], np.zeros(0, int)), 'one per image')])
def test_wrong_input_is_one_line(toy, call, match):
    with pytest.raises(InputError, match=match) as e: call(toy)
    assert '\n' not in str(e.value) and ('expected' in str(e.value) or 'known' in str(e.value))
