"The landscape of a potential: heights, ascents and basins where they belong."
import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.modes.ascent import ascend
from nmc_workbench.modes.potential import Potential
from nmc_workbench.plotting import potential as potential_plots
from nmc_workbench.plotting.potential import potential_picture, potential_surface

from tests.toys import HOSTILE, png

pytest.importorskip('matplotlib')

TOPS = torch.tensor([[0., 0.], [2., .3], [.8, 1.8]])


def hills(z): return torch.logsumexp(-(z[:, None] - TOPS).square().sum(2) / .3, 1)


@pytest.fixture(scope='module')
def toy():
    points = TOPS[torch.arange(60) % 3] + .3 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found = ascend(hills, points, record=True)
    return dict(points=points, paths=found.paths, labels=torch.cdist(found.endpoints, TOPS).argmin(1))


def of_type(ax, name): return [c for c in ax.collections if type(c).__name__ == name]


def test_samples_and_ascents(toy):
    ax = potential_picture(hills, **toy).still.axes[0]
    drawn = np.concatenate([c.get_offsets() for c in of_type(ax, 'PathCollection')])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, toy['points'].double().numpy()))
    lines = of_type(ax, 'LineCollection')[0].get_segments()
    assert np.allclose(np.array(lines), toy['paths'].numpy().swapaxes(0, 1))


def test_basins_part_the_modes(toy):
    picture = potential_picture(hills, **toy, modes=TOPS)
    plain = potential_picture(hills, **toy)
    count = lambda p: len(of_type(p.still.axes[0], 'QuadContourSet'))
    assert count(picture) == count(plain) + 3
    assert count(potential_picture(hills, **toy, modes=TOPS, mode_labels=[0, 0, 0])) == count(plain)
    texts = [t.get_text() for t in picture.still.legends[0].get_texts()]
    assert texts == [f'cluster {k} · {n}' for k, n in enumerate(toy['labels'].bincount())] + ['3 modes']
    assert png(picture).width > 100


def test_a_network_and_many_paths_stay_small():
    torch.manual_seed(0)
    potential, z = Potential(2, hidden=16).train(), torch.randn(2000, 2)
    paths = ascend(potential, z, record=True, max_steps=3).paths
    picture = potential_picture(potential, z, np.full(2000, -1), paths, title=HOSTILE)
    assert potential.training and len(picture.png()) < 150_000
    assert len(of_type(picture.still.axes[0], 'LineCollection')[0].get_segments()) == 200


def test_flat_and_single(toy):
    assert png(potential_picture(lambda z: 0 * z.sum(1), toy['points'][:1], modes=TOPS[:1])).width > 100


def test_the_surface(toy):
    pytest.importorskip('plotly')
    figure = potential_surface(hills, **toy, title=HOSTILE)
    surface, *others = figure.data
    x, y = np.meshgrid(surface.x, surface.y)
    places = torch.from_numpy(np.stack([x, y], 2).reshape(-1, 2))
    assert np.allclose(surface.z, hills(places).reshape(x.shape), atol=1e-5)
    for trace in others:
        at = hills(torch.from_numpy(np.stack([trace.x, trace.y], 1))).numpy()
        assert np.nanmax(np.abs(trace.z - at)) < .02 * np.ptp(surface.z)
    names = [f'cluster {k} · {n}' for k, n in enumerate(toy['labels'].bincount())]
    assert [t.name for t in others if t.showlegend is not False] == names
    assert '<script>' not in figure.layout.title.text
    assert len(potential_surface(hills, toy['points']).data) == 2


def test_the_surface_without_plotly(toy, monkeypatch):
    monkeypatch.setattr(potential_plots, 'graph_objects', lambda: None)
    with pytest.raises(InputError, match='plotly'): potential_surface(hills, toy['points'])


@pytest.mark.parametrize('bad', [
    dict(points=np.zeros((3, 5))),
    dict(paths=np.zeros((4, 7, 2))),
    dict(labels=[0]),
    dict(points=np.full((60, 2), np.nan)),
    dict(modes=TOPS, mode_labels=[0])])
def test_bad_input(toy, bad):
    with pytest.raises(InputError) as e: potential_picture(hills, **{**toy, **bad})
    assert '\n' not in str(e.value)
