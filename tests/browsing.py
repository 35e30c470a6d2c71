"What browser tests do in a notebook: open, run, read, take hold of points."
import json
import time


def notebook(path, *cells):
    "Write a notebook of code cells."
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    code = [dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None) for i, c in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=code, metadata=kernel, nbformat=4, nbformat_minor=5)))


def run_all(page, address):
    "Open a notebook and run every cell; returns when the kernel is at work or done."
    page.goto(address)
    page.wait_for_selector('.jp-Notebook .jp-Cell')
    # the session itself is asked: the toolbar shows "idle" before there is a kernel, and running then opens a dialog
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def drawn(page, selector, least=1):
    "Wait until a map or a page of tiles has been drawn so often."
    page.wait_for_function("([s, n]) => +((document.querySelector(s + ' canvas') ?? document.querySelector(s))?.dataset.drawn ?? 0) >= n", arg=[selector, least])


def times_drawn(page, selector):
    return page.evaluate("s => +((document.querySelector(s + ' canvas') ?? document.querySelector(s)).dataset.drawn ?? 0)", selector)


def point(page, i):
    "Where sample `i` of the map is on the screen."
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
    "A notebook with its parameters set, as papermill sets them."
    from papermill.execute import parameterize_notebook
    from papermill.iorw import load_notebook_node, write_ipynb
    write_ipynb(parameterize_notebook(load_notebook_node(source), parameters), str(out))


def seconds_until(page, act, selector):
    "From an act to the next drawing of a map or a page of tiles."
    before = times_drawn(page, selector)
    start = time.perf_counter()
    act()
    drawn(page, selector, before + 1)
    return time.perf_counter() - start
