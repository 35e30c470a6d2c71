"Sheets of images: the right ones, in the right places."
import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.plotting.canvas import frame_colours, stretched
from nmc_workbench.plotting.galleries import gallery, nearest_and_farthest, views_sheet

from tests.toys import clustering, png

pytest.importorskip('matplotlib')

@pytest.fixture(scope='module')
def toy(): return clustering()

def test_prototypes_are_the_nearest_by_hand():
    x = np.array([[0., 0], [4, 0], [5, 0], [6, 0], [10, 0], [100, 0]])     # the first five have mean (5, 0)
    near, far = nearest_and_farthest(x, [0, 0, 0, 0, 0, 1], 0, 2)
    assert near.tolist() == [2, 1] and sorted(far.tolist()) == [0, 4]

def test_near_and_far_match_a_slow_reference(toy):
    z = toy['z'] / np.linalg.norm(toy['z'], axis=1, keepdims=True)
    for k in range(4):
        mine = np.flatnonzero(toy['labels'] == k)
        mean = z[mine].mean(0)
        # with unit rows the order by distance is that by angle
        by_angle = sorted(mine, key=lambda i: -(z[i] @ mean) / np.linalg.norm(mean))
        near, far = nearest_and_farthest(z, toy['labels'], k, 5)
        assert near.tolist() == by_angle[:5] and far.tolist() == by_angle[-5:]

@pytest.mark.parametrize('size, n_near, n_far', [(1, 1, 0), (3, 3, 0), (4, 4, 0), (6, 4, 2), (8, 4, 4), (20, 4, 4)])
def test_small_clusters_show_no_image_twice(size, n_near, n_far):
    near, far = nearest_and_farthest(np.random.default_rng(0).normal(size=(size, 3)), np.zeros(size, int), 0, 4)
    assert (len(near), len(far)) == (n_near, n_far) and len({*near, *far}) == n_near + n_far

def test_noise_is_ordered_by_the_nearest_cluster():
    x = np.array([[0.], [0], [10], [10], [11], [5], [0.5]])
    assert nearest_and_farthest(x, [0, 0, 1, 1, -1, -1, -1], -1, 3)[0].tolist() == [6, 4, 5]

def test_gallery_shows_the_right_pixels():
    greys = torch.arange(6, dtype=torch.uint8)[:, None, None, None] * 40        # each image one grey of its own
    x, labels = np.array([[0.], [4], [5], [6], [10], [7]]), [0, 0, 0, 0, 0, 1]
    canvas = gallery(greys.expand(6, 1, 8, 8), labels, x, n=2).still.axes[0].images[0].get_array()
    pitch, width = canvas.shape[0] // 2, canvas.shape[1]
    places = [(0, pitch / 2), (0, 1.5 * pitch), (0, width - 1.5 * pitch), (0, width - pitch / 2), (1, pitch / 2)]
    seen = [canvas[row * pitch + pitch // 2, int(column)].tolist() for row, column in places]
    near, far = nearest_and_farthest(x, labels, 0, 2)
    assert seen == [[40 * i] * 3 for i in [*near, *far, 5]]

def row_names(picture): return [t.get_text() for t in picture.still.axes[0].texts if '·' in t.get_text()]

def test_gallery_rows(toy):
    labels = np.full(120, -1)
    labels[:30], labels[30:33] = 0, 3
    wanted = ['cluster 0 · 30', 'cluster 1 · 0', 'cluster 2 · 0', 'cluster 3 · 3', 'noise · 87']
    assert row_names(gallery(toy['pixels'], labels, toy['z'], n=4)) == wanted
    assert row_names(gallery(toy['pixels'], np.zeros(120, int), toy['z'], n=4)) == ['cluster 0 · 120']
    many = np.r_[np.arange(30), np.arange(30), np.full(60, 29)]
    picture = gallery(toy['pixels'], many, toy['z'], n=2, most=20)
    assert len(row_names(picture)) == 20 and 'cluster 29 · 62' in row_names(picture)
    assert picture.still.texts[0].get_text() == 'the 20 largest of 30 clusters'

def test_gallery_takes_from_a_dataset_and_greys_and_oblong_images(toy):
    class Lazy:
        asked = 0
        def take(self, index):
            Lazy.asked += len(index)
            return toy['pixels'][index][:, :1, :, :9]
    picture = gallery(Lazy(), toy['labels'], toy['z'], n=2)
    assert Lazy.asked <= 5 * 4 + 1 and png(picture).width > 100

def test_frames_by_class(toy):
    picture = gallery(toy['pixels'], toy['labels'], toy['z'], n=2, class_labels=toy['y'], names=list('abcd'))
    assert [t.get_text() for t in picture.still.legends[0].get_texts()] == ['frame: class', 'a', 'b', 'c', 'd']
    edges, legend = frame_colours(np.arange(120), None, toy['labels'])       # more classes than colours
    assert len(legend) == 2 and set(edges) == {c for c, _ in legend}

def test_views_are_stretched():
    x = torch.tensor([-2., 0, 2]).repeat(2, 1, 3, 1)
    assert stretched(x).unique().tolist() == [0, 128, 255]
    assert stretched(torch.ones(1, 1, 2, 2)).unique().tolist() == [0]

def test_as_many_views_as_originals():
    originals = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match='as many as originals'): views_sheet(originals, [torch.zeros(2, 1, 4, 4)])

@pytest.mark.parametrize('call', [
    lambda t: gallery(t['pixels'], t['labels'][:5], t['z']),
    lambda t: gallery(t['pixels'].float(), t['labels'], t['z']),
    lambda t: nearest_and_farthest(t['z'] * np.nan, t['labels'], 0)])
def test_wrong_input_is_one_line(toy, call):
    with pytest.raises(InputError) as e: call(toy)
    assert '\n' not in str(e.value) and 'expected' in str(e.value)
