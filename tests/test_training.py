"""The loop: order, log, checkpoints, time, compilation, a loss that is not a number, and two processes."""
import json
import shutil
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nmc_workbench.training import callbacks, timing, trainer as training
from nmc_workbench.augment import preset
from nmc_workbench.core.errors import InputError, TrainingError
from nmc_workbench.core.ranks import from_main, mean_over_ranks, rank_and_world
from nmc_workbench.training.batches import Batches
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE, NMCEConfig
from nmc_workbench.methods.config import with_recipe
from nmc_workbench.methods.nmce.stages import ClusterHeads, FineTune, Representation
from nmc_workbench.methods.nmce.config import recipe
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import SubspaceNet
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.folder import Run
from nmc_workbench.runs.metrics_log import read_metrics
from nmc_workbench.core.devices import keep_memory
from nmc_workbench.core.progress import progress
from nmc_workbench.training.precision import Precision, compiled
from nmc_workbench.training.stage import Stage
from nmc_workbench.training.timing import PARTS, Stopwatch, budget_line, time_budget
from nmc_workbench.training.trainer import Trainer
from tests.ranks import member, together


class Agree(Stage):
    name = 'agree'
    def start(self): return dict(sgd=torch.optim.SGD(self.learns(self.network), lr=.01, momentum=.9))
    def step(self, index, views):
        a, b = (self.network(v.flatten(1)) for v in views)
        loss = (a - b).square().mean() - a.var(0).clamp(max=1).mean() + torch.rand((), generator=self.noise)
        return loss, dict(variance=a.detach().var(0).mean())


class Second(Agree):
    name = 'second'


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=60)


@pytest.fixture
def make(digits, tmp_path):
    def make(kinds=(Agree, Second), epochs=5, folder='run', resume=False, every=2):
        net = initialised(lambda: nn.Linear(64, 4), 0)
        run = Run(tmp_path / folder, dict(epochs=epochs), resume) if folder else None
        return Trainer([k(net, epochs) for k in kinds], Batches(digits, preset('digits'), 20), run,
                       checkpoint_every=every, resume=resume)
    return make


def interrupt_after(trainer, stage, epoch, error=KeyboardInterrupt):
    "Raise once the row of that epoch is written, before its checkpoint is."
    record = trainer._record
    def stop(row):
        record(row)
        if (row['stage'], row['epoch']) == (stage, epoch): raise error
    trainer._record = stop
    return trainer


def same(a, b):
    assert all(p.equal(q) for p, q in zip(a.network.state_dict().values(), b.network.state_dict().values()))
    assert [r['loss'] for r in a.history] == [r['loss'] for r in b.history]


def test_a_stage_must_say_what_it_does(digits):
    stage = Stage(nn.Linear(64, 2), 1)
    with pytest.raises(TypeError, match=r'Stage does not say which optimisers it uses: define start\(\)'): stage.start()
    with pytest.raises(TypeError, match=r'does not say what a step is: define step\(\)'): stage(None, None)


def test_learns_lets_nothing_else_learn():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert len(Stage(net, 1).learns(net[2])) == 2
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    Stage(net, 1).learns(net[0], net[1])
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] * 2


def test_hooks_are_called_in_order(make):
    calls = []
    class Told(Agree):
        def start(self): calls.append('start'); return super().start()
        def before_epoch(self, epoch): calls.append(f'before {epoch}'); super().before_epoch(epoch)
        def step(self, *a): calls.append('step'); return super().step(*a)
        def after_epoch(self, epoch): calls.append(f'after {epoch}'); return dict(more=7.)
        def finish(self): calls.append('finish')
    history = make([Told], 2, None).train()
    assert calls == ['start', *(c for e in range(2) for c in (f'before {e}', 'step', 'step', 'step', f'after {e}')),
                     'finish']
    assert [r['more'] for r in history] == [7., 7.]


def test_the_log_has_the_mean_of_the_steps(make):
    losses = []
    class Told(Agree):
        def step(self, *a):
            loss, log = super().step(*a)
            losses.append(loss.item())
            return loss, log
    trainer = make([Told], 2)
    trainer.train()
    assert [r['loss'] for r in trainer.history] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-6)
    assert trainer.history == read_metrics(trainer.run.folder)
    row = trainer.history[1]
    assert (row['stage'], row['epoch'], row['step'], row['lr']) == ('agree', 1, 6, .01) and row['views_per_second'] > 0


def test_the_noise_of_a_stage_is_the_epochs_own(make):
    seeds = {}
    class Told(Agree):
        def before_epoch(self, epoch):
            super().before_epoch(epoch)
            seeds.setdefault((self.name, self.seed, epoch), []).append(self.noise.initial_seed())
    class Other(Told): name = 'other'
    for _ in range(2):
        trainer = make([Told, Other], 3, None)
        trainer.stages.append(Told(trainer.network, 3, seed=1))
        trainer.train()
    assert len(seeds) == 9 == len({s for s, _ in seeds.values()}) and all(a == b for a, b in seeds.values())


def test_until_stops_after_a_stage_and_goes_on(make):
    whole, parts = make(folder=None), make(folder=None)
    whole.train()
    assert len(parts.train(until='agree')) == 5
    assert len(parts.train(until='agree')) == 5
    parts.train()
    same(whole, parts)
    with pytest.raises(InputError, match="unknown stage 'secnod'; did you mean 'second'"):
        make(folder=None).train(until='secnod')


@pytest.mark.parametrize('at', [('agree', e) for e in range(5)] + [('second', e) for e in range(5)])
def test_an_interruption_after_any_epoch_changes_nothing(make, at):
    whole = make(folder=None)
    whole.train()
    with pytest.raises(KeyboardInterrupt): interrupt_after(make(), *at).train()
    again = make(resume=True)
    rows = len(again.history)
    assert (again.next_stage, again.next_epoch) == (at[0] == 'second', at[1] // 2 * 2)
    assert rows == 5 * again.next_stage + again.next_epoch
    assert len(read_metrics(again.run.folder)) == rows      # the log too goes back to the checkpoint
    again.train()
    same(whole, again)
    assert [r['loss'] for r in read_metrics(again.run.folder)] == [r['loss'] for r in whole.history]


def test_a_log_cut_in_a_line_after_the_checkpoint_does_no_harm(make):
    whole = make(folder=None)
    whole.train()
    with pytest.raises(KeyboardInterrupt): interrupt_after(make(), 'second', 2).train()
    path = make(resume=True).run.path('metrics.jsonl')
    path.write_bytes(path.read_bytes() + b'{"stage": "second", "epo')
    again = make(resume=True)
    again.train()
    same(whole, again)
    assert len(read_metrics(path)) == 10


def test_resume_where_nothing_lies_starts_anew(make):
    whole, fresh = make(folder=None), make(resume=True, folder='never')
    whole.train(), fresh.train()
    same(whole, fresh)


def test_resume_of_a_finished_run_does_nothing(make):
    make().train()
    again = make(resume=True)
    again._epoch = None
    assert len(again.train()) == 10


def test_weights_of_every_stage_are_kept(make):
    trainer = make()
    trainer.train(until='agree')
    middle = trainer.network.weight.detach().clone()
    trainer.train()
    kept = [load_checkpoint(trainer.run.path(f'{s}.pt'))['weight'] for s in ('agree', 'second')]
    assert kept[0].equal(middle) and kept[1].equal(trainer.network.weight) and not kept[0].equal(kept[1])


def test_a_stage_is_recorded_as_done_only_when_its_weights_are_there(make, monkeypatch):
    trainer = make()
    def fail(path, value):
        if path.name == 'agree.pt': raise InputError('disk full')
        return write(path, value)
    write = callbacks.write_torch
    monkeypatch.setattr(callbacks, 'write_torch', fail)
    with pytest.raises(InputError, match='disk full'): trainer.train()
    assert load_checkpoint(trainer.run.path('checkpoint.pt'))['next_stage'] == 0
    monkeypatch.setattr(callbacks, 'write_torch', write)
    again = make(resume=True)
    again.train()
    assert again.run.path('agree.pt').is_file() and len(read_metrics(again.run.folder)) == 10


# --- not a number


class Breaks(Second):
    "Is not a number in epoch 3, from step 1 on."
    value = float('nan')
    def before_epoch(self, epoch):
        super().before_epoch(epoch)
        self.count, self.bad = 0, epoch == 3
    def step(self, *a):
        loss, log = super().step(*a)
        self.count += 1
        return loss * (self.value if self.bad and self.count > 1 else 1), log


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_not_a_number_stops_and_says_where(make, monkeypatch, value):
    whole = make(folder=None)
    whole.train()
    monkeypatch.setattr(Breaks, 'value', value)
    trainer = make([Agree, Breaks])
    path = trainer.run.path('checkpoint.pt')
    said = f'not a number in stage second, epoch 3, step 1; the last good checkpoint is {path}; try'
    with pytest.raises(TrainingError, match=said) as error: trainer.train()
    assert '\n' not in str(error.value)
    saved = load_checkpoint(path)
    assert (saved['next_stage'], saved['next_epoch'], saved['rows']) == (1, 2, 7)
    assert all(v.isfinite().all() for v in saved['weights'].values())
    # the bad epoch is not in the log
    assert [r['epoch'] for r in read_metrics(trainer.run.folder)[5:]] == [0, 1, 2]
    again = make(resume=True)
    again.train()
    same(whole, again)


def test_a_long_epoch_stops_before_its_end(make, monkeypatch):
    monkeypatch.setattr(training, '_CHECK_EVERY', 2)
    trainer = make([Agree, Breaks], folder=None)
    with pytest.raises(TrainingError, match='epoch 3, step 1; no checkpoint was made yet'): trainer.train()
    assert trainer.stages[1].count == 2


# --- precision and progress


def test_fp16_needs_cuda():
    with pytest.raises(InputError, match='amp=fp16 needs a CUDA device, this run is on cpu; use amp=bf16 or amp=off'):
        Precision('fp16', torch.device('cpu'))


def test_bf16_casts_and_off_does_not():
    net, x = nn.Linear(4, 4), torch.ones(2, 4)
    for amp, dtype in (('off', torch.float32), ('bf16', torch.bfloat16)):
        with Precision(amp, torch.device('cpu')).cast(): assert net(x).dtype == dtype


def test_a_step_updates_every_optimiser():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    a.grad = torch.full((1,), 100.)       # of an earlier step
    precision, optimisers = Precision('off', torch.device('cpu')), [torch.optim.SGD([p], lr=.1) for p in (a, b)]
    precision.backward((a * 2 + b * 3).sum(), optimisers)
    precision.step(optimisers)
    assert a.item() == pytest.approx(.8) and b.item() == pytest.approx(.7)


def test_the_bar_shows_rate_and_time_left(capsys):
    bar = progress(10, 'stage', 5)
    bar.update(3)
    bar.refresh()
    bar.close()
    text = capsys.readouterr().err
    assert 'stage' in text and '8/10' in text and 'it/s' in text and '<' in text


# --- what the seconds are spent on


def parts_of(row): return {k: row[f'seconds_{k}'] for k in (*PARTS, 'other')}


@pytest.fixture
def clock(monkeypatch):
    "A clock that stands still unless it is told to go on: clock(seconds)."
    now = [100.]
    for module in (training, timing):
        monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    def go(seconds): now[0] += seconds
    return go


def test_every_second_of_an_epoch_has_a_name(make, monkeypatch, clock):
    class Sgd(torch.optim.SGD):
        def step(self, closure=None): clock(3); super().step(closure)
    class Timed(Agree):
        def start(self): return dict(sgd=Sgd(self.learns(self.network), lr=.01))
        def before_epoch(self, epoch): super().before_epoch(epoch); clock(5)
        def after_epoch(self, epoch): clock(1000); return {}        # not part of the epoch
        def step(self, *a):
            loss, log = super().step(*a)
            loss.register_hook(lambda g: clock(2))
            clock(1)
            return loss, log
    draw = Batches.epoch
    def slow(self, *a):
        for item in draw(self, *a): clock(4); yield item
    monkeypatch.setattr(Batches, 'epoch', slow)
    for row in make([Timed], 2).train():
        assert row['seconds'] == 35 and parts_of(row) == dict(augment=12, forward=3, backward=6, optimiser=9, other=5)


def test_the_parts_of_a_plain_run_add_up(make):
    for row in make().train():
        assert sum(parts_of(row).values()) == pytest.approx(row['seconds'], abs=1e-9)
        assert min(parts_of(row).values()) >= -1e-4


@pytest.mark.timing
def test_a_mark_costs_little():
    watch, start = Stopwatch(torch.device('cpu')), time.perf_counter()
    for _ in range(2000): watch.mark('forward')
    assert time.perf_counter() - start < .1       # 50 microseconds each, on a busy machine


def row(stage, seconds, *parts):
    return dict(stage=stage, seconds=seconds, views_per_second=10 / seconds,
                **{f'seconds_{k}': v for k, v in zip((*PARTS, 'other'), parts, strict=True)})


def test_the_budget_is_per_stage():
    rows = [row('b', 1., .5, .25, .25, 0., 0.), row('b', 3., .5, 2., 0., 0., .5), row('a', 2., 0., 1., 1., 0., 0.),
            row('b', 10., 9., .75, 0., .25, 0.)]
    b, a = time_budget(rows)
    assert (b['stage'], b['epochs'], b['seconds'], b['views_per_second']) == ('b', 3, 3., 3.3333)
    assert (a['stage'], a['epochs'], a['forward']) == ('a', 1, .5)
    assert [b[k] for k in (*PARTS, 'other')] == pytest.approx([10 / 14, 3 / 14, .25 / 14, .25 / 14, .5 / 14])
    shares = 'augment 71%, forward 21%, backward 2%, optimiser 2%, other 4%'
    assert budget_line(b) == f'b: 3 epochs of 3 s, 3 views/s; {shares}'


def test_a_log_without_parts_has_no_budget():
    assert time_budget([]) == [] == time_budget([dict(stage='a', epoch=0, seconds=1., views_per_second=1.)])
    # an epoch quicker than the clock
    assert time_budget([dict(row('a', 1., 0., 0., 0., 0., 0.), seconds=0.)])[0]['other'] == 0


def test_a_long_stage_says_what_it_was_spent_on(make, monkeypatch, capsys):
    make(folder=None).train()
    assert 'views/s' not in capsys.readouterr().err
    monkeypatch.setattr(callbacks, '_LONG', 0)
    make(folder=None).train()
    lines = [line for line in capsys.readouterr().err.splitlines() if 'views/s' in line]
    assert [line.split(': ')[0] for line in lines] == ['agree', 'second']
    assert all(line.count('%') == 5 for line in lines)


# --- a limit of time


@pytest.mark.parametrize('every', [2, 100])
def test_a_run_in_pieces_equals_a_whole_one(make, every):
    whole = make(folder=None)
    whole.train()
    for calls in range(1, 12):
        trainer = make(resume=True, every=every)
        assert len(trainer.history) == calls - 1 and not trainer.done        # one epoch a call, and none is lost
        trainer.train(seconds=0)
        if trainer.done: break
    assert calls == 10
    same(whole, trainer)


def test_enough_time_is_as_good_as_no_limit(make):
    trainer = make()
    assert len(trainer.train(seconds=60)) == 10 and trainer.done


def test_the_limit_is_kept(make, clock):
    class Timed(Agree):
        def before_epoch(self, epoch): super().before_epoch(epoch); clock(10)
    # another epoch must fit in one and a half times
    for seconds, epochs in ((24, 1), (25, 2), (35, 3), (1, 1), (40, 3)):
        trainer = make([Timed], 50, f'run{seconds}')
        trainer.train(seconds=seconds)
        assert trainer.next_epoch == epochs
        assert load_checkpoint(trainer.run.path('checkpoint.pt'))['next_epoch'] == epochs


# --- compilation


class Convolutions(Stage):
    name = 'convolutions'
    def start(self): return dict(sgd=torch.optim.SGD(self.learns(self.network), lr=.01))
    def step(self, index, views):
        z = self.network.project(views.flatten(0, 1))
        return z.square().mean() - z.var(0).sum(), {}


def small_trainer(digits, folder=None, compile=False, resume=False, epochs=2):
    net = initialised(lambda: SubspaceNet(*backbone('smallconv', 1, width=2), 4, 3, hidden=8), 0)
    run = Run(folder, dict(epochs=epochs), resume) if folder else None
    return Trainer([Convolutions(net, epochs)], Batches(digits, preset('digits'), 20), run, resume=resume,
                   compile=compile)


def count_compilations(monkeypatch, backend):
    "torch.compile with another backend; returns the graphs it was given."
    graphs, compile = [], torch.compile
    def told(graph, inputs):
        graphs.append(graph)
        return backend(graph, inputs)
    monkeypatch.setattr(torch, 'compile', lambda f, backend: compile(f, backend=told))
    torch._dynamo.reset()
    return graphs


def as_it_is(graph, inputs): return graph.forward


@pytest.mark.slow
def test_compilation_changes_neither_names_nor_values(digits, tmp_path, monkeypatch):
    graphs = count_compilations(monkeypatch, as_it_is)
    plain, quick = small_trainer(digits), small_trainer(digits, tmp_path / 'run', compile=True)
    plain.train()
    assert not graphs
    quick.train()
    same(plain, quick)
    assert len(graphs) == 1 and list(plain.network.state_dict()) == list(quick.network.state_dict())
    assert 'forward' not in vars(quick.network.backbone)      # only while a stage runs
    assert small_trainer(digits, tmp_path / 'run', resume=True).done        # what one wrote the other reads


@pytest.mark.slow
def test_a_run_goes_on_without_the_compilation_it_began_with(digits, tmp_path, monkeypatch):
    count_compilations(monkeypatch, as_it_is)
    whole = small_trainer(digits, epochs=4)
    whole.train()
    small_trainer(digits, tmp_path / 'run', compile=True, epochs=4).train(seconds=0)
    for compile in (False, True):
        again = small_trainer(digits, tmp_path / 'run', compile, resume=True, epochs=4)
        again.train(seconds=0)
    again.train()
    same(whole, again)


@pytest.mark.slow
def test_without_a_compiler_one_line_warns_and_the_run_goes_on(digits, monkeypatch):
    def fails(graph, inputs): raise RuntimeError('no compiler here\nand more lines')
    count_compilations(monkeypatch, fails)
    plain, quick = small_trainer(digits), small_trainer(digits, compile=True)
    plain.train()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        quick.train()
    told = [str(w.message) for w in told if 'compile' in str(w.message)]
    assert len(told) == 1
    assert '\n' not in told[0]
    assert 'Sequential runs as it is' in told[0]
    assert 'no compiler here' in told[0]
    same(plain, quick)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
def test_the_default_compiler_computes_the_same():
    torch._dynamo.reset()
    net = initialised(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), compiled(net):
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', message='.*CUDA.*')
        net(x).sum().backward()
    quick = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(quick, net.parameters()))


def test_an_error_of_the_module_is_not_hidden():
    class Wrong(nn.Module):
        def forward(self, x): return x @ x
    with compiled(Wrong(), as_it_is) as wrong, pytest.raises(Exception, match='(?i)shape|size'): wrong(torch.ones(2, 3))


def test_memory_is_kept_for_large_steps_on_a_processor_alone(digits, monkeypatch):
    called = []
    monkeypatch.setattr(training, 'keep_memory', lambda: called.append(1))
    stages, augment = [Agree(nn.Linear(64, 4), 1)], preset('digits')
    for limits, calls in (((1, 20 * 2 * 64), 0), ((1, 20 * 2 * 64 + 1), 1), ((20 * 2 * 64 + 1, 1 << 24), 0),
                          ((20 * 2 * 64, 1 << 24), 1)):
        monkeypatch.setattr(training, 'LARGE', limits)
        called.clear()
        trainer = Trainer(stages, Batches(digits, augment, 20))
        assert not called, 'a constructor makes no setting of the process'
        trainer.train()
        assert len(called) == calls, limits


def test_keeping_memory_never_fails(monkeypatch):
    import ctypes
    assert keep_memory() in (True, False)
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: object())
    assert keep_memory() is False


# --- on a GPU


on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


def nmce_on_cuda(compile=False, amp='bf16', **params):
    model = NMCE(recipe='cifar10', n_clusters=3, epochs=2, cluster_epochs=1, finetune_epochs=1, batch_size=64,
                 hidden_dim=64, device='cuda', amp=amp, **params)
    trainer = model.prepare(torch.randint(0, 256, (192, 3, 32, 32), dtype=torch.uint8,
                                          generator=torch.Generator().manual_seed(0)))
    trainer.compile = compile
    return trainer


def without_waiting(trainer):
    "Let every step raise where it waits for the device."
    step, back, draw = trainer.precision.step, trainer.precision.backward, trainer.batches.epoch
    def guarded(f):
        def g(*a):
            torch.cuda.set_sync_debug_mode('error')
            try: return f(*a)
            finally: torch.cuda.set_sync_debug_mode('default')
        return g
    trainer.precision.step, trainer.precision.backward = guarded(step), guarded(back)
    for s in trainer.stages: s.step = guarded(s.step)
    def epoch(*a):
        items = draw(*a)
        while (item := guarded(lambda: next(items, None))()) is not None: yield item
    return trainer, epoch


@pytest.mark.parametrize('amp', [pytest.param(a, marks=on_cuda) for a in ('off', 'bf16')])
def test_no_step_waits_for_the_device(amp):
    trainer, epoch = without_waiting(nmce_on_cuda(amp=amp))
    rows = trainer.train()
    for r in rows:
        assert sum(parts_of(r).values()) == pytest.approx(r['seconds'], abs=1e-9) and min(parts_of(r).values()) >= -1e-3
    list(trainer.batches.epoch('representation', 0))
    assert all(len(views) == 2 for _, views in epoch('representation', 1))


@pytest.mark.parametrize('compile', [pytest.param(c, marks=on_cuda) for c in (False, True)])
def test_the_seconds_of_the_device_are_found(compile):
    rows = nmce_on_cuda(compile).train()
    assert all(r['seconds_forward'] > 0 and r['seconds_backward'] > 0 and r['seconds_optimiser'] > 0 for r in rows)


# --- two processes


class Turning:
    "Views without noise, each a linear map of the points of its own: the same on one rank and on two."
    def __init__(self): self.count = 0
    def __call__(self, x, generator=None):
        self.count += 1
        return x @ torch.tensor([[[1., .1], [0, 1]], [[1., 0], [-.2, .9]]][self.count % 2])
    @property
    def plain(self): return lambda x: x


def nmce_trainer(folder=None, epochs=3):
    "NMCE's stages on a net without batch norm; one step an epoch."
    points = load('spiral', n=80)
    given = NMCEConfig(dataset='spiral', n_clusters=2, z_dim=4, z_weight=2., n_init=1, optimizer='lars', lr=.05,
                       cluster_lr=.05, cluster_batch_size=80)
    config = with_recipe(given, recipe('npz', points.shape))
    net = initialised(lambda: SubspaceNet(*backbone('mlp', 2, width=16, depth=2), 4, 2, hidden=None), 5)
    run = Run(folder, dict(method='NMCE')) if folder and rank_and_world()[0] == 0 else None
    return Trainer([s(net, epochs, config) for s in (Representation, ClusterHeads, FineTune)],
                   Batches(points, Turning(), 80, 2), run)


QUICK = dict(epochs=4, cluster_epochs=4, finetune_epochs=4, n_init=3, batch_size=40, hidden_dim=16, checkpoint_every=3,
             device='cpu')


def fit(folder, resume=False, stop=None):
    model, images = NMCE(**QUICK, run_dir=folder, resume=resume), load('digits', limit=80)
    if stop:
        try: interrupt_after(model.prepare(images), *stop).train()
        except KeyboardInterrupt: return None
    return model.fit(images)


def message_of(f):
    try: return f() and None
    except InputError as e: return str(e)


def on_rank(rank, port, out):
    with member(rank, port): _on_rank(rank, out)


def _on_rank(rank, out):
    answer = dict(mean=mean_over_ranks(torch.tensor([float(rank)])).item(), main=from_main(lambda: f'from {rank}'))
    trainer = nmce_trainer(f'{out}/points')
    answer |= dict(history=trainer.train(), points=trainer.network.state_dict())
    for name, stop in dict(whole=None, first=('representation', 3), second=('cluster_heads', 3),
                           third=('fine_tune', 3)).items():
        model = fit(f'{out}/{name}', stop=stop) or fit(f'{out}/{name}', resume=True)
        answer[name] = dict(weights=model.network_.state_dict(), losses=[r['loss'] for r in model.history_],
                            labels=model.labels_, has_run=model.run_ is not None)
    answer['refused'] = message_of(lambda: NMCE(**{**QUICK, 'epochs': 5}, run_dir=f'{out}/whole',
                                                resume=True).fit(load('digits', limit=80)))
    if rank == 0:
        with open(f'{out}/first/checkpoint.pt', 'wb') as f: f.write(b'half')
    answer['truncated'] = message_of(lambda: fit(f'{out}/first', resume=True))
    torch.save(answer, f'{out}/rank{rank}.pt')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp('ranks')
    return together(on_rank, out), out


def alike(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(ranks):
    """The rate of the concatenated batch, the gradient of its loss, and the mean of the rest: equal to rounding, as
    long as no noise of a rank's own enters."""
    (first, second), _ = ranks
    alone = nmce_trainer()
    history = alone.train()
    assert alike(first['points'], second['points'])
    for key in ('loss', 'R', 'similarity'):
        assert [r[key] for r in first['history'][:3]] == pytest.approx([r[key] for r in history[:3]], rel=1e-4)
        assert [r[key] for r in first['history']] == [r[key] for r in second['history']]
    assert history[0]['similarity'] < .9999 and len({round(r['loss'], 4) for r in history[:3]}) == 3
    # stage 2: memberships are drawn per rank, the rate of the whole is not
    assert first['history'][3]['R'] == pytest.approx(history[3]['R'], rel=1e-4)
    assert len(first['history']) == 9


@pytest.mark.slow
def test_ranks_end_with_equal_weights_and_labels(ranks):
    (first, second), out = ranks
    for name in ('whole', 'first', 'second', 'third'):
        assert alike(first[name]['weights'], second[name]['weights']), name      # batch norm's statistics too
        assert (first[name]['labels'] == second[name]['labels']).all()
        assert first[name]['losses'] == second[name]['losses']
        assert first[name]['has_run'] and not second[name]['has_run']
    assert len(read_metrics(out / 'whole')) == 12 and json.loads((out / 'whole/results.json').read_text())


@pytest.mark.slow
def test_ranks_resume_to_the_bit(ranks):
    answers, _ = ranks
    for answer in answers:
        for name in ('first', 'second', 'third'):
            assert alike(answer['whole']['weights'], answer[name]['weights']), name
            assert answer['whole']['losses'] == answer[name]['losses'], name


@pytest.mark.slow
def test_an_error_on_the_first_rank_is_raised_on_all(ranks):
    (first, second), _ = ranks
    assert first['mean'] == second['mean'] == .5 and first['main'] == second['main'] == 'from 0'
    assert 'another configuration (epochs=4 there, 5 here)' in first['refused']
    assert first['refused'] == second['refused']
    assert 'is truncated or not a checkpoint' in first['truncated'] and first['truncated'] == second['truncated']
