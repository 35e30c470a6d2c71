"Pictures: valid in every form, safe with hostile names, untouched by the notebook's style."
import base64, builtins, io, json, re, subprocess, sys

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.checks import as_array, as_finite, as_integers
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.labels import cluster_name, clusters_in
from nmc_workbench.plotting.colours import NOISE_COLOUR, cluster_colours, colour_of
from nmc_workbench.plotting.confusion import confusion_matrix, sizes
from nmc_workbench.plotting.curves import curves
from nmc_workbench.plotting.embedding import embedding_map, points
from nmc_workbench.plotting.figure import Picture, mpl_text, plotly_text
from nmc_workbench.plotting.galleries import gallery, views_sheet
from nmc_workbench.plotting.geometry import spectra

from tests.toys import HOSTILE, PLOTLY, clustering, metrics, png

pytest.importorskip('matplotlib')

@pytest.fixture(scope='module')
def toy(): return clustering()

def every_picture(t, names=None):
    a, b, c, d = names = names or list('abcd')
    hover = [f'{d} {i}' for i in range(120)]
    views = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return dict(
        curves=curves(metrics(R=2.), [('loss', ['loss']), (a, ['R'])], {'R': (3., b)}, c),
        gallery=gallery(t['pixels'], t['labels'], t['z'], n=4, class_labels=t['y'], names=names, hover=hover),
        confusion=confusion_matrix(t['y'], t['labels'], names),
        spectra=spectra(t['z'], t['labels']),
        map=embedding_map(t['z'], t['labels'], t['y'], 'pca', names=names, hover=[a] * 120),
        sizes=sizes(t['labels']),
        views=views_sheet(t['pixels'][:3], views),
        points=points(t['z'][:, :2], t['labels'], a))

# forms

def test_every_picture_has_its_forms(toy):
    for name, picture in every_picture(toy).items():
        data, metadata = picture._repr_mimebundle_()
        raw = base64.b64decode(data['image/png'])
        image = Image.open(io.BytesIO(raw))
        image.load()
        shown = metadata['image/png']
        assert abs(png(picture).width - 2 * shown['width']) <= 2, name
        assert image.format == 'PNG' and len(raw) <= picture.budget, name
        assert 200 <= shown['width'] <= 930 and 60 <= shown['height'] <= 900, name
        assert abs(image.width - (1.1 if PLOTLY in data else 2) * shown['width']) <= 2, name
        assert 'text/html' not in data and data['text/plain'].startswith('Picture: ')
        assert (PLOTLY in data) == (name in ('curves', 'gallery', 'confusion', 'spectra', 'map')), name
        if PLOTLY in data: assert json.loads(json.dumps(data[PLOTLY]))['data']

def test_pictures_do_not_need_pyplot(toy):
    code = """
import sys
from nmc_workbench.plotting.confusion import sizes
assert not {'matplotlib', 'plotly', 'umap'} & set(sys.modules)
sizes([0, 1, 1]).png()
assert 'matplotlib.pyplot' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True)

def test_save(tmp_path, toy):
    picture = spectra(toy['z'], toy['labels'])
    path = picture.save(tmp_path / 'new' / 'spectra', interactive=True)
    assert path.name == 'spectra.png' and Image.open(path).format == 'PNG'
    assert json.loads(path.with_suffix('.json').read_text())['data']
    assert sorted(p.name for p in path.parent.iterdir()) == ['spectra.json', 'spectra.png']

def test_a_dark_style_of_the_notebook_changes_nothing(toy):
    import matplotlib as mpl
    plain = sizes(toy['labels']).png()
    dark = {'text.color': 'white', 'axes.facecolor': 'black', 'savefig.transparent': True}
    with mpl.rc_context(dark): assert sizes(toy['labels']).png() == plain

def test_too_large_a_png_gives_up_resolution_not_readability():
    noise = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = gallery(noise, np.arange(400) % 10, np.random.default_rng(0).normal(size=(400, 3)))
    width = 100 * picture.still.get_figwidth()
    assert width - 1 <= png(picture).width <= 2 * width and len(picture.png()) < 2 * picture.budget

def test_without_plotly_the_still_remains(toy, monkeypatch):
    real = builtins.__import__
    def missing(name, *args, **kwargs):
        if name.split('.')[0] == 'plotly': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', missing)
    for name, picture in every_picture(toy).items():
        data, _ = picture._repr_mimebundle_()
        assert picture.interactive is None and set(data) == {'text/plain', 'image/png'}, name

def test_hostile_names_are_text(toy):
    for name, picture in every_picture(toy, [f'{HOSTILE}{i}' for i in range(4)]).items():
        assert png(picture).width > 0
        text = json.dumps(picture._repr_mimebundle_()[0].get(PLOTLY, {}))
        assert '<script' not in text and 'alert("' not in text, name
        # what plotly fills in by itself must not come from a name
        for template in re.findall(r'"hovertemplate": "(.*?)"', text):
            assert template.count('%{y}') == 0 or 'script' not in template

# colours

def test_cluster_colours_are_one_sequence():
    assert cluster_colours(4) == cluster_colours(200)[:4] and len(set(cluster_colours(100))) == 100
    assert all(re.fullmatch('#[0-9a-f]{6}', c) for c in cluster_colours(100))
    assert cluster_colours(0) == []

# how colours look with red-green blindness: Machado et al. (2009), severity 1, on linear RGB
SIGHT = dict(
    normal=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    protan=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    deutan=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]])

def cielab(linear):
    "Linear RGB (n, 3) as CIELAB."
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = linear.clip(0, 1) @ to_xyz.T / [.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)

@pytest.mark.parametrize('sight', SIGHT)
def test_first_ten_colours_are_apart_with_red_green_blindness(sight):
    rgb = np.array([[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in cluster_colours(10) + [NOISE_COLOUR]]) / 255
    linear = np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
    lab = cielab(linear @ np.array(SIGHT[sight]).T)
    far = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 999 * np.eye(len(lab))
    assert far[:10, :10].min() > 17

def test_noise_is_grey_and_last():
    assert colour_of(-1) == NOISE_COLOUR not in cluster_colours(100)
    assert [colour_of(k) for k in range(30)] == cluster_colours(30)
    assert clusters_in(np.array([3, -1, 0, 3])) == [0, 3, -1]
    assert (cluster_name(-1, 1200), cluster_name(4)) == ('noise · 1,200', 'cluster 4')

# inputs

def test_tensors_of_any_kind(toy):
    z = torch.from_numpy(toy['z']).bfloat16().requires_grad_()
    assert png(spectra(z, torch.from_numpy(toy['labels']))).width > 100
    assert isinstance(sizes(torch.tensor([0, 1, 1], dtype=torch.int32)), Picture)

KINDS = [torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8), np.array([1, 2], np.int32), [1, 2]]

@pytest.mark.parametrize('x', KINDS)
def test_integers_of_any_kind(x):
    out = as_integers(x, 'x', 2)
    assert out.dtype == np.int64 and out.tolist() == [1, 2]

@pytest.mark.parametrize('call, said', [
    (lambda: as_integers([1, 2], 'labels', 3), 'labels has 2 entries; expected 3'),
    (lambda: as_integers([1.5], 'y'), 'y has shape .* float64'),
    (lambda: as_integers([[1]], 'y'), r'shape \(1, 1\)'),
    (lambda: as_finite([1., 2], 'z'), r'shape \(2,\); expected \(n, d\)'),
    (lambda: as_finite(np.zeros((0, 2)), 'z'), 'expected'),
    (lambda: as_finite([[1., np.inf], [np.nan, 0]], 'z'), 'holds 2 values')])
def test_what_errors_say(call, said):
    with pytest.raises(InputError, match=said) as e: call()
    assert '\n' not in str(e.value)

def test_half_precision_with_gradient():
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).tolist() == [1, 1]
    assert as_finite([[1, 2]], 'z').dtype == np.float32

def test_names_become_one_harmless_line():
    assert '\n' not in mpl_text('a\n\tb') and mpl_text('$x$') == r'\$x\$'
    assert len(mpl_text('y' * 99, 10)) == 10
    assert plotly_text('a<b>&"') == 'a&lt;b&gt;&amp;&quot;'
