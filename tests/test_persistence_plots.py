"Persistence pictures: every component where it belongs, in the colour of its cluster."
import numpy as np
import pytest

for name in ('gudhi', 'matplotlib'): pytest.importorskip(name)

from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from nmc_workbench.core.errors import InputError
from nmc_workbench.persistence import knn_edges, merge_tree
from nmc_workbench.plotting.colours import NOISE_COLOUR, cluster_colours
from nmc_workbench.plotting.persistence import persistence_picture

from tests.toys import png

def tree_of(n, k=3, seed=0, scale=1.):
    g = np.random.default_rng(seed)
    return merge_tree(knn_edges(g.normal(size=(n, 3)), k), scale * g.normal(size=n))

def points(picture):
    "Position and colour of every point of the diagram."
    drawn = [s for s in picture.still.axes[0].collections if isinstance(s, PathCollection)]
    return [(*xy, to_hex(c)) for s in drawn for xy, c in zip(s.get_offsets(), s.get_facecolors())]

def test_points_and_bars():
    tree = tree_of(80)
    tau = tree.tau_of(40)
    picture = persistence_picture(tree, tau)
    found, k, immortal = points(picture), tree.n_clusters(tau), len(tree.immortal_births)
    assert len(found) == len(tree.births) and sorted(round(p[0], 9) for p in found) == sorted(tree.births.round(9))
    by_birth = {round(b, 9): (d, c) for b, d, c in found}
    wanted, lowest = iter(cluster_colours(k)), tree.deaths[tree.mortal].min()
    for birth, death, lives in zip(tree.births, tree.deaths, tree.persistence >= tau):
        d, colour = by_birth[round(birth, 9)]
        assert d == death if np.isfinite(death) else d < lowest
        assert colour == (next(wanted) if lives else NOISE_COLOUR)
    bars = [b.get_width() for b in picture.still.axes[1].patches]
    assert np.allclose(sorted(bars[immortal:]), np.sort(tree.persistence[tree.mortal]))
    assert bars[0] >= max(bars[immortal:])
    assert f'{len(tree.births)} components, {immortal} immortal; {k} survive' in picture.caption
    assert picture.still.axes[0].get_yticklabels()[0].get_text() == '−inf'

def test_the_line_is_parallel_to_the_diagonal():
    tree = tree_of(60)
    def offsets(picture):
        return [x - y for line in picture.still.axes[0].lines for x, y in zip(*line.get_data())]
    assert np.allclose(offsets(persistence_picture(tree)), 0)
    assert np.allclose(offsets(persistence_picture(tree, .7)), [0, 0, .7, .7])
    assert np.allclose(offsets(persistence_picture(tree, np.inf)), 0)

def test_one_survivor():
    assert '1 survives' in persistence_picture(merge_tree([[0, 1]], [1, 2]), np.inf).caption

TREES = dict(
    one=merge_tree([], [0.]),
    equal=merge_tree([], [-7., -7]),
    two=merge_tree([[0, 1], [1, 2]], [3., 1, 2]),
    many=tree_of(900, 2),
    tiny=tree_of(50, scale=1e-9),
    huge=tree_of(50, scale=1e12))

@pytest.mark.parametrize('tree', TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize('tau', [None, 0, 1e-9, 5])
def test_any_number_and_size(tree, tau):
    picture = persistence_picture(tree, tau)
    assert len(points(picture)) == len(tree.births) and png(picture).width == 1800 and len(picture.png()) < 150_000

def test_bad_input():
    with pytest.raises(InputError, match='ndarray; expected a MergeTree'): persistence_picture(np.zeros((3, 2)))
    with pytest.raises(InputError, match='tau=-1'): persistence_picture(merge_tree([], [0.]), -1)
