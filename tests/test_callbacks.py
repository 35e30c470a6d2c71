"The guests of the training loop: when their hooks are called, and what they remember over an interruption."
import pytest
import torch
from torch import nn

from nmc_workbench.augment import preset
from nmc_workbench.core.seeds import initialised
from nmc_workbench.data import load
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.folder import Run
from nmc_workbench.training.batches import Batches
from nmc_workbench.training.callbacks import Callback, EveryEpochs, StopOnNaN, Watch
from nmc_workbench.training.stage import Stage
from nmc_workbench.training.trainer import Trainer


class Agree(Stage):
    name = 'agree'
    def start(self): return dict(sgd=torch.optim.SGD(self.learns(self.network), lr=.01, momentum=.9))
    def step(self, index, views):
        a, b = (self.network(v.flatten(1)) for v in views)
        return (a - b).square().mean() - a.var(0).clamp(max=1).mean(), {}


class Second(Agree):
    name = 'second'


class Log(Callback):
    "Writes down every hook but those of parts."
    def __init__(self): self.calls = []
    def on_resume(self, trainer): self.calls.append('resume')
    def on_stage_start(self, trainer, stage): self.calls.append(f'start {stage.name}')
    def on_epoch_start(self, trainer, stage): self.calls.append(f'epoch {trainer.next_epoch}')
    def on_steps(self, trainer, stage, logs, first): self.calls.append(f'{len(logs)} steps')
    def on_epoch_logs(self, trainer, stage): return dict(mine=len(self.calls))
    def on_epoch_end(self, trainer, row): self.calls.append(f'{trainer.next_epoch} done, mine {row["mine"]}')
    def on_stage_end(self, trainer, stage, rows): self.calls.append(f'end {stage.name}, {len(rows)} rows')


class Count(Callback):
    "Counts epochs, and remembers."
    def __init__(self): self.n = 0
    def on_epoch_end(self, trainer, row): self.n += 1
    def state(self): return dict(n=self.n)
    def load_state(self, state): self.n = state['n']


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=60)


@pytest.fixture
def make(digits, tmp_path):
    def make(*callbacks, folder=None, resume=False, kinds=(Agree,), epochs=3, every=1):
        net = initialised(lambda: nn.Linear(64, 4), 0)
        run = Run(tmp_path / folder, dict(epochs=epochs), resume) if folder else None
        batches = Batches(digits, preset('digits'), 20)
        return Trainer([k(net, epochs) for k in kinds], batches, run, checkpoint_every=every, resume=resume,
                       callbacks=list(callbacks))
    return make


def test_hooks_in_their_order(make):
    log = Log()
    rows = make(log, kinds=(Agree, Second), epochs=1).train()
    assert log.calls == ['start agree', 'epoch 0', '3 steps', '1 done, mine 3', 'end agree, 1 rows',
                         'start second', 'epoch 0', '3 steps', '1 done, mine 8', 'end second, 1 rows']
    assert [r['mine'] for r in rows] == [3, 8]


def test_parts_of_a_step(make):
    parts = []
    class Parts:        # an object that derives from nothing
        def on_part(self, trainer, part): parts.append(part)
    make(Parts(), epochs=1).train()
    assert parts == ['other'] + ['augment', 'forward', 'backward', 'optimiser', 'other'] * 3


def test_a_guest_changes_no_weight(make):
    plain, watched = make(), make(Log(), Count())
    plain.train(), watched.train(watch=lambda rows: None)
    assert plain.network.weight.equal(watched.network.weight)


def test_what_a_callback_remembers_is_resumed(make):
    def stop(rows):
        if len(rows) == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): make(Count(), folder='run', epochs=4).train(watch=stop)
    assert load_checkpoint(make(folder='run', epochs=4,
                                resume=True).run.path('checkpoint.pt'))['callbacks'] == dict(Count=dict(n=2))
    count, log = Count(), Log()
    make(count, log, folder='run', epochs=4, resume=True).train()
    assert count.n == 4 and log.calls[:3] == ['resume', 'start agree', 'epoch 2']


def test_a_checkpoint_without_callbacks_is_read(make, tmp_path):
    "As those were that had none to remember, and those before there were callbacks."
    make(folder='run').train(seconds=0)
    assert 'callbacks' not in load_checkpoint(tmp_path / 'run/checkpoint.pt')
    count = Count()
    make(count, folder='run', resume=True).train()
    assert count.n == 2


def test_a_watch_is_a_guest_of_one_call(make):
    seen, trainer = [], make(kinds=(Agree, Second), epochs=2)
    before = list(trainer.callbacks)
    trainer.train('agree', watch=lambda rows: seen.append(len(rows)))
    assert seen == [1, 2] and trainer.callbacks == before
    trainer.train(watch=EveryEpochs(seen.append, 2))
    assert seen == [1, 2, 0, 2] and trainer.callbacks == before
    with pytest.raises(ZeroDivisionError): make().train(watch=lambda rows: 1 / 0)


def test_the_loop_asks_for_no_guest_by_its_kind(make):
    "Without checkpoints, history, timing and the check of the loss the stages are trained all the same."
    whole, bare = make(), make()
    bare.callbacks.clear()
    whole.train(), bare.train()
    assert whole.network.weight.equal(bare.network.weight)
    assert [r['loss'] for r in whole.history] == [r['loss'] for r in bare.history]
    assert any(isinstance(c, StopOnNaN) for c in whole.callbacks)
    assert 'seconds' in whole.history[0]
    assert 'seconds' not in bare.history[0]


def test_every_epochs_after_an_interruption(make):
    "The picture before the first epoch is drawn once."
    seen = []
    make(folder='run', epochs=5).train(seconds=0)
    make(EveryEpochs(seen.append, 2), folder='run', epochs=5, resume=True).train()
    assert seen == [2, 4, 5]
    assert Watch(seen.append).state() == {}


def test_no_setting_of_the_process_is_made_by_a_constructor(make, monkeypatch):
    from nmc_workbench.training import trainer as module
    monkeypatch.setattr(module, 'keep_memory', lambda: pytest.fail('memory is kept'))
    monkeypatch.setattr(module, 'LARGE', (0, 1 << 40))
    before = torch.backends.cudnn.benchmark
    make()
    assert torch.backends.cudnn.benchmark == before
