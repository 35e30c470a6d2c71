"Curves that follow a training: seldom enough, in one output, and never in its way."
import os
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from nmc_workbench.plotting import live_curves
from nmc_workbench.data import load
from nmc_workbench.plotting.live_curves import LiveCurves, WAIT
from nmc_workbench.methods import NMCE
from tests.processes import python
from tests.toys import PLOTLY

nbformat = pytest.importorskip('nbformat')
pytest.importorskip('matplotlib')
pytest.importorskip('plotly')
ROOT = Path(__file__).resolve().parents[1]
PANELS = [('loss', ['loss'])]
STILL, WHOLE = {'text/plain', 'image/png'}, {'text/plain', 'image/png', PLOTLY}


def rows(n): return [dict(stage='first', epoch=e, loss=1 / (e + 1)) for e in range(n)]


def trainer(folder=None, **more):
    "Two stages of a small run, of four epochs and three."
    config = dict(dataset='digits', epochs=4, cluster_epochs=3, stages='representation,cluster_heads', batch_size=50,
                  n_init=2, device='cpu', checkpoint_every=1)
    return NMCE(**config, run_dir=None if folder is None else str(folder), **more).prepare(load('digits', limit=100))


def weights(trainer): return {k: v.clone() for k, v in trainer.network.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.fixture
def shown(monkeypatch):
    "What a notebook would get: `(which output, kinds of data)` for every display and update."
    import IPython.display
    got, handles = [], []
    class Handle:
        def __init__(self): handles.append(self)
        def update(self, picture): got.append((handles.index(self), set(picture._repr_mimebundle_()[0])))
    def display(picture, display_id):
        assert display_id is True
        handle = Handle()
        handle.update(picture)
        return handle
    monkeypatch.setattr(IPython.display, 'display', display)
    monkeypatch.setattr(live_curves, '_in_kernel', lambda: True)
    return got


@pytest.fixture
def clock(monkeypatch):
    "A clock that only a test moves, and drawings that take 0.4 s by it; the number of rows of each."
    clock = SimpleNamespace(now=100., drawn=[], perf_counter=lambda: clock.now)
    real = live_curves.curves
    def curves(rows, *args):
        clock.now += .4
        clock.drawn.append((clock.now, len(rows)))
        return real(rows, *args)
    monkeypatch.setattr(live_curves, 'curves', curves)
    monkeypatch.setattr(live_curves, 'time', clock)
    return clock


# ---- while it trains

def test_the_hook_gets_the_log_after_every_epoch():
    got, run = [], trainer()
    assert len(run.train('representation', watch=lambda log: got.append([r['epoch'] for r in log]))) == 4
    assert got == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    run.train()                                                 # another call without it: it is not kept
    assert len(got) == 4 and len(run.history) == 7


def test_one_output_updated_while_it_trains(shown, monkeypatch):
    monkeypatch.setattr(live_curves, 'WAIT', 0)
    run, live = trainer(), LiveCurves(PANELS)
    run.train('representation', watch=live)
    assert shown == [(0, STILL)] * 3                            # nothing after the first epoch, which has no curve
    assert live.finish(run.history) is run.history
    assert shown == [(0, STILL)] * 3 + [(0, WHOLE)]


def test_a_later_stage_begins_when_it_has_two_epochs_of_its_own(shown, monkeypatch):
    monkeypatch.setattr(live_curves, 'WAIT', 0)
    run = trainer()
    run.train('representation')
    live = LiveCurves([('spread', ['spread'])], derive=lambda log: [r for r in log if r['stage'] == 'cluster_heads'])
    live.finish(run.train('cluster_heads', watch=live))
    assert shown == [(0, STILL)] * 2 + [(0, WHOLE)]


def test_drawing_takes_no_more_than_two_percent(shown, clock):
    live = LiveCurves(PANELS)
    clock.drawn.clear()                                         # one is before the training
    start = clock.now
    for n in range(1, 601):
        clock.now += 1.
        live(rows(n))
    times = [t for t, _ in clock.drawn]
    assert clock.drawn[0][1] == 2                               # the first as soon as there is a curve
    assert all(b - a >= WAIT * .4 for a, b in zip(times, times[1:])) and len(times) >= 25
    assert .4 * len(times) <= .02 * (clock.now - start) + .4


def test_a_slow_drawing_waits_longer(shown, clock):
    live = LiveCurves(PANELS)
    live(rows(2))
    clock.now += 10 + WAIT * .4
    live(rows(3))
    assert len(shown) == 2
    clock.now += WAIT * .4 - .1
    live(rows(4))
    assert len(shown) == 2
    clock.now += .2
    live(rows(5))
    assert len(shown) == 3


def test_a_failure_to_draw_warns_once_and_the_training_goes_on(shown, monkeypatch):
    monkeypatch.setattr(live_curves, 'WAIT', 0)
    live, run, real, calls = LiveCurves(PANELS), trainer(), live_curves.curves, []
    def broken(log, *args):
        calls.append(len(log))
        if len(log) < 4: raise ValueError('no\nroom')
        return real(log, *args)
    monkeypatch.setattr(live_curves, 'curves', broken)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        run.train('representation', watch=live)
    said = [str(w.message) for w in told if 'curves' in str(w.message)]
    assert said == ['the curves are not drawn, and the training goes on: ValueError: no room']
    assert calls == [2, 3, 4] and shown == [(0, STILL)]         # and the curves come back when they can


def test_a_failure_to_show_is_no_more_than_a_warning(shown, monkeypatch):
    import IPython.display
    def display(*args, **kwargs): raise OSError('the page is gone')
    monkeypatch.setattr(IPython.display, 'display', display)
    with pytest.warns(UserWarning, match='OSError: the page is gone'):
        trainer().train('representation', watch=LiveCurves(PANELS))


def test_a_failing_drawing_waits_too(shown, clock, monkeypatch):
    live, calls = LiveCurves(PANELS), []
    def broken(*args):
        clock.now += 3.
        calls.append(clock.now)
        raise ValueError
    monkeypatch.setattr(live_curves, 'curves', broken)
    with pytest.warns(UserWarning): live(rows(2))
    clock.now += WAIT * 3 - 1
    live(rows(3))
    assert len(calls) == 1


def test_an_interrupt_is_not_swallowed(shown, monkeypatch):
    live = LiveCurves(PANELS)
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(live_curves, 'curves', interrupted)
    with pytest.raises(KeyboardInterrupt): live(rows(2))


def test_a_mistake_in_the_panels_comes_before_the_training(shown):
    with pytest.raises(ValueError): LiveCurves(['loss'])
    with pytest.raises(TypeError): LiveCurves(PANELS, limits={'loss': 1.})


# ---- what is trained, and from where

def test_the_same_bits_with_and_without(shown, monkeypatch):
    monkeypatch.setattr(live_curves, 'WAIT', 0)
    watched, plain = trainer(), trainer()
    watched.train(watch=LiveCurves(PANELS)), plain.train()
    assert len(shown) == 6 and same(weights(watched), weights(plain))
    timed = ('seconds', 'views_per_second')
    def untimed(run): return [{k: v for k, v in r.items() if not k.startswith(timed)} for r in run.history]
    assert untimed(watched) == untimed(plain)


def test_a_resumed_run_shows_all_epochs_and_ends_with_the_same_bits(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(live_curves, 'WAIT', 0)
    def stop(log):
        if len(log) == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): trainer(tmp_path / 'run').train(watch=stop)
    resumed, plain, drawn, real = trainer(tmp_path / 'run', resume=True), trainer(), [], live_curves.curves
    live = LiveCurves(PANELS)
    monkeypatch.setattr(live_curves, 'curves',
                        lambda log, *args: [drawn.append([r['epoch'] for r in log]), real(log, *args)][1])
    live.finish(resumed.train('representation', watch=live))
    assert drawn == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]] and shown == [(0, STILL)] * 2 + [(0, WHOLE)]
    plain.train('representation')
    assert same(weights(resumed), weights(plain))


def test_a_finished_run_taken_up_again_shows_its_curves(shown, tmp_path):
    live = LiveCurves(PANELS, title='all <there>', path=tmp_path / 'figures/loss.png')
    live.finish(rows(5))
    assert shown == [(0, WHOLE)] and (tmp_path / 'figures/loss.png').is_file()


# ---- where nothing is shown

def test_outside_a_notebook_nothing_is_drawn_but_the_file(tmp_path, monkeypatch):
    calls, real = [], live_curves.curves
    monkeypatch.setattr(live_curves, 'curves', lambda *args: [calls.append(args), real(*args)][1])
    live = LiveCurves(PANELS, path=tmp_path / 'loss.png')
    for n in range(1, 6): live(rows(n))
    assert not calls and not live.shown
    live.finish(rows(5))
    assert len(calls) == 1 and (tmp_path / 'loss.png').read_bytes()[1:4] == b'PNG'


def test_not_shown_on_request(shown, tmp_path):
    live = LiveCurves(PANELS, path=tmp_path / 'loss.png', shown=False)
    live(rows(3)), live.finish(rows(4))
    assert not shown and (tmp_path / 'loss.png').is_file()


# ---- in notebooks

def papermill(notebook, out, cwd, **parameters):
    "Exit code, standard error and the notebook that was left."
    pytest.importorskip('papermill')
    words = [w for k, v in parameters.items() for w in ('-p', k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    run = subprocess.run(python('-m', 'papermill', str(notebook), str(out), '--no-progress-bar', *words),
                         cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return run.returncode, run.stderr, nbformat.read(out, as_version=4)


def outputs(notebook): return [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs if 'data' in o]
def pictures(notebook):
    return [o for o in outputs(notebook) if o.data.get('text/plain', '').startswith('Picture: curves of')]


@pytest.mark.slow
def test_a_run_of_the_train_notebook(tmp_path):
    "One output of curves per stage, each with a still beside the figure; the same in the HTML copy."
    from nmc_workbench.reports.html import html_copy
    small = dict(limit=200, batch_size=100, epochs=4, cluster_epochs=3, finetune_epochs=3, n_init=2, device='cpu')
    code, err, notebook = papermill(ROOT / 'nbs/train_nmce.ipynb', tmp_path / 'out.ipynb', tmp_path, run_dir='run',
                                    **small)
    assert code == 0, err[-2000:]
    curves = pictures(notebook)
    assert len(curves) == 3 and all(set(o.data) == WHOLE for o in curves)
    assert [o.data['text/plain'].count(k) for o, k in zip(curves,
                                                          ['effective rank', 'best start minus worst',
                                                           'similarity of views'])] == [1, 1, 1]
    # all epochs of its stages, and a gap between two
    assert [len(o.data[PLOTLY]['data'][0]['text']) for o in curves] == [4, 3, 7]
    for stage in ('representation', 'cluster_heads', 'fine_tune'):
        assert (tmp_path / f'run/figures/{stage}.png').stat().st_size > 10_000
    interactive = [o for o in outputs(notebook) if any('plotly' in k or 'widget' in k for k in o.data)]
    assert len(interactive) >= 7 and all(len(o.data.get('image/png', '')) > 1000 for o in interactive)

    html = html_copy(tmp_path / 'out.ipynb').read_text()
    assert html.count('class="interactive"') == len(interactive)
    assert all(html.count(o.data['image/png'].strip()) == 1 for o in interactive)
    assert "default-src 'none'" in html and 'effective rank of the embedding' in html


TRAINING = '''
import os, time
from nmc_workbench.plotting import live_curves
from nmc_workbench.plotting.live_curves import LiveCurves
live_curves.WAIT = 0
rows, live = [], LiveCurves([('loss', ['loss'])])
for e in range(EPOCHS):
    rows.append(dict(stage='first', epoch=e, loss=1 / (e + 1)))
    live(rows)
    time.sleep(PAUSE)
'''


def training(epochs, pause): return TRAINING.replace('EPOCHS', str(epochs)).replace('PAUSE', str(pause))


@pytest.mark.slow
@pytest.mark.parametrize('end', ['raise KeyboardInterrupt', 'os.kill(os.getpid(), 9)'])
def test_an_interrupted_notebook_has_kept_the_last_picture(end, tmp_path):
    from tests.browsing import notebook
    notebook(tmp_path / 'in.ipynb', training(3, .5) + end)
    code, err, left = papermill(tmp_path / 'in.ipynb', tmp_path / 'out.ipynb', tmp_path)
    assert code != 0 and ('KeyboardInterrupt' in err or 'DeadKernel' in err)
    [picture] = pictures(left)
    assert set(picture.data) == STILL and len(picture.data['image/png']) > 10_000
    from nmc_workbench.reports.html import html_copy
    assert html_copy(tmp_path / 'out.ipynb').read_text().count(picture.data['image/png'].strip()) == 1


@pytest.mark.slow
def test_in_jupyterlab_one_picture_changes_in_place_and_stays_after_a_reload(page, lab):
    from tests.browsing import notebook, run_all
    notebook(lab.work / 'curves.ipynb', training(6, 1.) + 'live.finish(rows);')
    # what comes and goes in the page, noted from before the run on
    page.add_init_script('''window.stills = []; window.most = 0;
        new MutationObserver(() => {
            const all = [...document.querySelectorAll('.jp-OutputArea-output img')];
            window.most = Math.max(window.most, all.length);
            for (const i of all) if (i.src && !window.stills.includes(i.src)) window.stills.push(i.src);
        }).observe(document, {subtree: true, childList: true, attributes: true})''')
    run_all(page, lab('curves.ipynb'))
    page.locator('.jp-RenderedPlotly img').wait_for()
    # five stills, and the picture's own
    assert page.evaluate('[window.stills.length, window.most]') == [6, 1]
    assert page.locator('.jp-OutputArea-output').count() == 1
    page.locator('.jp-RenderedPlotly').hover()                  # JupyterLab draws the figure where the pointer is
    page.locator('.jp-RenderedPlotly.js-plotly-plot .scatterlayer').wait_for()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.goto(lab('curves.ipynb'))
    page.locator('.jp-RenderedPlotly img').wait_for()
    page.locator('.jp-RenderedPlotly').hover()
    page.locator('.jp-RenderedPlotly.js-plotly-plot .scatterlayer').wait_for()
    [picture] = pictures(nbformat.read(lab.work / 'curves.ipynb', as_version=4))
    assert set(picture.data) == WHOLE and not page.outside and not page.errors
