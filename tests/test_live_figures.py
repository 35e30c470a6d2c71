"""A live figure in a real JupyterLab: clicked, changed, dragged, replaced, in two views and after a reload.

What needs no browser is tested in the notebook of `widgets.plotly_figure`."""
import pytest

from tests.browsing import notebook, run_all

pytestmark = pytest.mark.slow

CODE = '''
import ipywidgets as w, numpy as np, plotly.graph_objects as go
from nmc_workbench.widgets.plotly_figure import live_figure

figure = go.Figure(go.Scatter(name='points', x=[1, 2, 3], y=[2, 1, 3], mode='markers', marker=dict(size=20)))
figure.add_shape(type='line', x0=1.5, x1=1.5, y0=1, y1=3, line=dict(width=6))
live = live_figure(figure, dict(edits=dict(shapePosition=True)))
click, shape = w.Label(), w.Label()

def clicked(name, i):
    click.value = f'clicked {name} {i}'
    live.change({name: {'marker.color': np.array([0, 1, 2], np.uint8)}}, {'title.text': f'title {i}'})

def dragged(shapes):
    shape.value = f'right of 2: {shapes[0]["x0"] > 2}'
    live.replace(go.Figure(go.Scatter(name='other', x=[1, 2], y=[1, 2]), layout=dict(title='replaced')))

live.on_click(clicked)
live.on_shape(dragged)
w.VBox([click, shape, live])
'''
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"


def both_have_title(page, title):
    page.wait_for_function(f"t => {PLOTS}.filter(e => e.layout?.title?.text === t).length === 2", arg=title)


def middle(place):
    box = place.bounding_box()
    return box['x'] + box['width'] / 2, box['y'] + box['height'] / 2


def test_two_views_follow_and_answer(page, lab):
    notebook(lab.work / 'live.ipynb', CODE, 'live')         # the second cell is another view of the same figure
    run_all(page, lab('live.ipynb'))
    page.locator('.js-plotly-plot .points path').nth(5).wait_for()
    plot = page.locator('.js-plotly-plot').first
    plot.scroll_into_view_if_needed()
    at = middle(plot.locator('.points path').nth(1))
    page.mouse.move(*at)
    page.locator('.hoverlayer .hovertext').first.wait_for()
    page.mouse.click(*at)
    page.locator('.widget-label', has_text='clicked points 1').wait_for()
    both_have_title(page, 'title 1')
    assert page.evaluate(f'() => {PLOTS}.map(e => Array.from(e.data[0].marker.color))') == [[0, 1, 2]] * 2
    # a reloaded page shows what is, and what is dragged there reaches Python
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    both_have_title(page, 'title 1')
    x, y = middle(page.locator('.js-plotly-plot').first.locator('.shapelayer path').first)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 200, y, steps=8)
    page.mouse.up()
    page.locator('.widget-label', has_text='right of 2: True').wait_for()
    both_have_title(page, 'replaced')
    assert page.errors == [] and page.outside == []
