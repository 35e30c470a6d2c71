"What browser tests do in a notebook: open it, run it, read it, and draw around points."
import json
import time


def notebook(path, *cells):
    "Write a notebook of code cells."
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    empty = dict(cell_type='code', metadata={}, outputs=[], execution_count=None)
    code = [empty | dict(id=f'c{i}', source=c) for i, c in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=code, metadata=kernel, nbformat=4, nbformat_minor=5)))


KERNEL = 'window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel'


def run_all(page, address):
    "Open a notebook and start all its cells."
    page.goto(address)
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    # ask the session itself: the toolbar shows "idle" before there is a kernel, and running then opens a dialog
    page.wait_for_function(f"() => {KERNEL}?.status === 'idle'")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


COUNT = "+((document.querySelector(s + ' canvas') ?? document.querySelector(s))?.dataset.drawn ?? 0)"


def drawn(page, selector, least=1):
    "Wait until a map or a page of tiles has been drawn at least so often."
    page.wait_for_function(f'([s, n]) => {COUNT} >= n', arg=[selector, least])


def times_drawn(page, selector):
    "How often a map or a page of tiles has been drawn."
    return page.evaluate(f's => {COUNT}', selector)


def point(page, i):
    "The place of sample `i` of the map on the screen."
    return page.evaluate("i => document.querySelector('.nmc-map').nmcPoint(i)", i)


def lasso(page, corners):
    "Draw around a region of the screen."
    page.mouse.move(*corners[0])
    page.mouse.down()
    for x, y in [*corners[1:], corners[0]]: page.mouse.move(x, y, steps=4)
    page.mouse.up()


def around(points, margin=8):
    "The corners of a rectangle around places on the screen."
    (x0, x1), (y0, y1) = ((min(v) - margin, max(v) + margin) for v in zip(*points))
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def prepared(source, out, **parameters):
    "Write a notebook with its parameters set, as papermill sets them."
    from papermill.execute import parameterize_notebook
    from papermill.iorw import load_notebook_node, write_ipynb
    write_ipynb(parameterize_notebook(load_notebook_node(source), parameters), str(out))


def seconds_until(page, act, selector):
    "Seconds from an act to the next drawing of a map or a page of tiles."
    before = times_drawn(page, selector)
    start = time.perf_counter()
    act()
    drawn(page, selector, before + 1)
    return time.perf_counter() - start
