"""The loop: order, log, checkpoints, a loss that is not a number, and two processes."""
import json
import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import nn

from nmc_workbench import training
from nmc_workbench.augment import preset
from nmc_workbench.basics import InputError, TrainingError
from nmc_workbench.batches import Batches, from_main, mean_over_ranks, rank_and_world
from nmc_workbench.data import load
from nmc_workbench.methods import NMCE, NMCEConfig
from nmc_workbench.methods.base import fill
from nmc_workbench.methods.nmce import ClusterHeads, FineTune, Representation, recipe
from nmc_workbench.nets import SubspaceNet, backbone, initialised
from nmc_workbench.runs import Run, load_checkpoint, read_metrics
from nmc_workbench.training import Precision, Stage, Trainer, progress


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
        return Trainer([k(net, epochs) for k in kinds], Batches(digits, preset('digits'), 20), run, checkpoint_every=every, resume=resume)
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
    assert len(Stage(net, 1).learns(net[2])) == 2 and [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
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
    assert calls == ['start', *(c for e in range(2) for c in (f'before {e}', 'step', 'step', 'step', f'after {e}')), 'finish']
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
        def before_epoch(self, epoch): super().before_epoch(epoch); seeds.setdefault((self.name, self.seed, epoch), []).append(self.noise.initial_seed())
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
    with pytest.raises(InputError, match="unknown stage 'secnod'; did you mean 'second'"): make(folder=None).train(until='secnod')


@pytest.mark.parametrize('at', [('agree', e) for e in range(5)] + [('second', e) for e in range(5)])
def test_an_interruption_after_any_epoch_changes_nothing(make, at):
    whole = make(folder=None)
    whole.train()
    with pytest.raises(KeyboardInterrupt): interrupt_after(make(), *at).train()
    again = make(resume=True)
    rows = len(again.history)
    assert (again.next_stage, again.next_epoch) == (at[0] == 'second', at[1] // 2 * 2) and rows == 5 * again.next_stage + again.next_epoch
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
    write = training.write_torch
    monkeypatch.setattr(training, 'write_torch', fail)
    with pytest.raises(InputError, match='disk full'): trainer.train()
    assert load_checkpoint(trainer.run.path('checkpoint.pt'))['next_stage'] == 0
    monkeypatch.setattr(training, 'write_torch', write)
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
    with pytest.raises(TrainingError, match=f'not a number in stage second, epoch 3, step 1; the last good checkpoint is {path}; try') as error: trainer.train()
    assert '\n' not in str(error.value)
    saved = load_checkpoint(path)
    assert (saved['next_stage'], saved['next_epoch'], saved['rows']) == (1, 2, 7) and all(v.isfinite().all() for v in saved['weights'].values())
    assert [r['epoch'] for r in read_metrics(trainer.run.folder)[5:]] == [0, 1, 2]       # the bad epoch is not in the log
    again = make(resume=True)
    again.train()
    same(whole, again)


def test_a_long_epoch_stops_before_its_end(make, monkeypatch):
    monkeypatch.setattr(training, 'CHECK_EVERY', 2)
    trainer = make([Agree, Breaks], folder=None)
    with pytest.raises(TrainingError, match='epoch 3, step 1; no checkpoint was made yet'): trainer.train()
    assert trainer.stages[1].count == 2


# --- precision and progress


def test_fp16_needs_cuda():
    with pytest.raises(InputError, match='amp=fp16 needs a CUDA device, this run is on cpu; use amp=bf16 or amp=off'): Precision('fp16', torch.device('cpu'))


def test_bf16_casts_and_off_does_not():
    net, x = nn.Linear(4, 4), torch.ones(2, 4)
    for amp, dtype in (('off', torch.float32), ('bf16', torch.bfloat16)):
        with Precision(amp, torch.device('cpu')).cast(): assert net(x).dtype == dtype


def test_a_step_updates_every_optimiser():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    a.grad = torch.full((1,), 100.)       # of an earlier step
    Precision('off', torch.device('cpu')).update((a * 2 + b * 3).sum(), [torch.optim.SGD([p], lr=.1) for p in (a, b)])
    assert a.item() == pytest.approx(.8) and b.item() == pytest.approx(.7)


def test_the_bar_shows_rate_and_time_left(capsys):
    bar = progress(10, 'stage', 5)
    bar.update(3)
    bar.refresh()
    bar.close()
    text = capsys.readouterr().err
    assert 'stage' in text and '8/10' in text and 'it/s' in text and '<' in text


# --- two processes


class Turning:
    "Views without noise, each a linear map of the points of its own: the same on one rank and on two."
    def __init__(self): self.count = 0
    def __call__(self, x, generator=None):
        self.count += 1
        return x @ torch.tensor([[[1., .1], [0, 1]], [[1., 0], [-.2, .9]]][self.count % 2])
    @property
    def baseline(self): return lambda x: x


def nmce_trainer(folder=None, epochs=3):
    "NMCE's stages on a net without batch norm; one step an epoch."
    points = load('spiral', n=80)
    config = fill(NMCEConfig(dataset='spiral', n_clusters=2, z_dim=4, z_weight=2., n_init=1, optimizer='lars', lr=.05, cluster_lr=.05), recipe('spiral', points.shape))
    net = initialised(lambda: SubspaceNet(*backbone('mlp', 2, width=16, depth=2), 4, 2, hidden=None), 5)
    run = Run(folder, dict(method='NMCE')) if folder and rank_and_world()[0] == 0 else None
    return Trainer([s(net, epochs, config) for s in (Representation, ClusterHeads, FineTune)], Batches(points, Turning(), 80, 2), run)


QUICK = dict(epochs=4, cluster_epochs=4, finetune_epochs=4, n_init=3, batch_size=40, hidden_dim=16, checkpoint_every=3, device='cpu')


def fit(folder, resume=False, stop=None):
    model, images = NMCE(**QUICK, run_dir=folder, resume=resume), load('digits', limit=80)
    if stop:
        try: interrupt_after(model.begin(images), *stop).train()
        except KeyboardInterrupt: return None
    return model.fit(images)


def message_of(f):
    try: return f() and None
    except InputError as e: return str(e)


def on_rank(rank, port, out):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2, timeout=timedelta(seconds=60))     # ranks that wait for each other fail
    answer = dict(mean=mean_over_ranks(torch.tensor([float(rank)])).item(), main=from_main(lambda: f'from {rank}'))
    trainer = nmce_trainer(f'{out}/points')
    answer |= dict(history=trainer.train(), points=trainer.network.state_dict())
    for name, stop in dict(whole=None, first=('representation', 3), second=('cluster_heads', 3), third=('fine_tune', 3)).items():
        model = fit(f'{out}/{name}', stop=stop) or fit(f'{out}/{name}', resume=True)
        answer[name] = dict(weights=model.network_.state_dict(), losses=[r['loss'] for r in model.history_], labels=model.labels_, has_run=model.run_ is not None)
    answer['refused'] = message_of(lambda: NMCE(**{**QUICK, 'epochs': 5}, run_dir=f'{out}/whole', resume=True).fit(load('digits', limit=80)))
    if rank == 0:
        with open(f'{out}/first/checkpoint.pt', 'wb') as f: f.write(b'half')
    answer['truncated'] = message_of(lambda: fit(f'{out}/first', resume=True))
    torch.save(answer, f'{out}/rank{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp('ranks')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(on_rank, (port, str(out)), nprocs=2)
    return [torch.load(out / f'rank{r}.pt', weights_only=False) for r in range(2)], out


def alike(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(ranks):
    "The rate of the concatenated batch, the gradient of its loss, and the mean of the rest: to rounding, as long as no noise of a rank's own enters."
    (first, second), _ = ranks
    alone = nmce_trainer()
    history = alone.train()
    assert alike(first['points'], second['points'])
    for key in ('loss', 'R', 'similarity'):
        assert [r[key] for r in first['history'][:3]] == pytest.approx([r[key] for r in history[:3]], rel=1e-4)
        assert [r[key] for r in first['history']] == [r[key] for r in second['history']]
    assert history[0]['similarity'] < .9999 and len({round(r['loss'], 4) for r in history[:3]}) == 3
    assert first['history'][3]['R'] == pytest.approx(history[3]['R'], rel=1e-4)       # stage 2: memberships are drawn per rank, the rate of the whole is not
    assert len(first['history']) == 9


@pytest.mark.slow
def test_ranks_end_with_equal_weights_and_labels(ranks):
    (first, second), out = ranks
    for name in ('whole', 'first', 'second', 'third'):
        assert alike(first[name]['weights'], second[name]['weights']), name      # batch norm's statistics too
        assert (first[name]['labels'] == second[name]['labels']).all() and first[name]['losses'] == second[name]['losses']
        assert first[name]['has_run'] and not second[name]['has_run']
    assert len(read_metrics(out / 'whole')) == 12 and json.loads((out / 'whole/results.json').read_text())


@pytest.mark.slow
def test_ranks_resume_to_the_bit(ranks):
    answers, _ = ranks
    for answer in answers:
        for name in ('first', 'second', 'third'):
            assert alike(answer['whole']['weights'], answer[name]['weights']) and answer['whole']['losses'] == answer[name]['losses'], name


@pytest.mark.slow
def test_an_error_on_the_first_rank_is_raised_on_all(ranks):
    (first, second), _ = ranks
    assert first['mean'] == second['mean'] == .5 and first['main'] == second['main'] == 'from 0'
    assert 'another configuration (epochs=4 there, 5 here)' in first['refused'] and first['refused'] == second['refused']
    assert 'is truncated or not a checkpoint' in first['truncated'] and first['truncated'] == second['truncated']
