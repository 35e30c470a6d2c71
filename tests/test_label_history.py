"The label history: the file, what follows from it, what the methods record, and the lab that replays it."
import errno
import itertools
import shutil

import numpy as np
import pytest
import torch

from nmc_workbench.core import files
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.runs.label_history import LabelHistory, LabelHistoryLog, StepLabels, read_label_history
from nmc_workbench.methods import NMCE, SeLa
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.training.callbacks import Callback
from tests.ranks import member, together
from tests.toys import HOSTILE, png

QUICK = dict(dataset='digits', limit=200, epochs=3, cluster_epochs=5, finetune_epochs=4, n_init=3, batch_size=60,
             hidden_dim=32, checkpoint_every=2, device='cpu')
QUICK_SELA = dict(epochs=6, n_label_updates=4, n_heads=3, batch_size=50, checkpoint_every=2, device='cpu')
NONE = 'has no label history .* only methods which assign clusters while they train record one, .* at the end'


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=200)


@pytest.fixture(scope='module')
def nmce(digits, tmp_path_factory):
    "A run of 200 samples in batches of 60, so that every epoch leaves 20 out."
    return NMCE(**QUICK, run_dir=str(tmp_path_factory.mktemp('nmce') / 'run')).fit(digits)


@pytest.fixture(scope='module')
def sela(digits, tmp_path_factory):
    return SeLa(**QUICK_SELA, run_dir=str(tmp_path_factory.mktemp('sela') / 'run')).fit(digits)


def written(folder, history, stage='heads'):
    log = LabelHistoryLog(folder)
    for t, labels in enumerate(history): log.append(stage, t, labels)
    return log


def history(T=6, n=300, k=5, moving=.2, low=0, seed=0):
    g, out = np.random.default_rng(seed), []
    out.append(g.integers(low, k, n))
    for _ in range(T - 1): out.append(np.where(g.random(n) < moving, g.integers(low, k, n), out[-1]))
    return out


# --- the file


TYPES = [(10, np.int16), (255, np.int16), (256, np.int32), (65535, np.int32), (65536, np.int64)]


@pytest.mark.parametrize('k, dtype', TYPES)
def test_what_is_written_is_read(tmp_path, k, dtype):
    past = history(k=k, low=-1)
    past[1][0] = k - 1
    past.append(past[-1].copy())                # nobody moved
    written(tmp_path, past)
    found = read_label_history(tmp_path)
    assert (found.labels == past).all() and found.labels.dtype == dtype
    assert found.epochs == [('heads', t) for t in range(7)]


def test_types_follow_the_labels(tmp_path):
    "A record whose labels need more bytes stands alone, and so does the one after it that needs fewer."
    past = [np.array([0, 254, -1]), np.array([0, 255, 3]), np.array([70_000, 1, 2]), np.array([4, -1, 2])]
    raw = written(tmp_path, past).path.read_bytes()
    assert [f'"{t}"'.encode() in raw for t in ('uint8', 'uint16', 'uint32')] == [True] * 3
    assert raw.count(b'"alone": true') == 4
    assert (read_label_history(tmp_path).labels == past).all()


def test_several_heads(tmp_path):
    past = np.array([history(seed=h) for h in range(3)]).transpose(1, 0, 2)
    written(tmp_path, past)
    for head in range(3): assert (read_label_history(tmp_path, head).labels == past[:, head]).all()
    assert (read_label_history(tmp_path).labels == past[:, 0]).all()
    (tmp_path / 'results.json').write_text('{"head": 2}')
    assert (read_label_history(tmp_path).labels == past[:, 2]).all()
    with pytest.raises(InputError, match='head=3; the run has 3, so expected 0 to 2'):
        read_label_history(tmp_path, 3)


def test_unchanged_labels_cost_a_line(tmp_path):
    log = written(tmp_path, [np.arange(50_000) % 10] * 2)
    raw = log.path.read_bytes()
    assert len(raw) - raw.rfind(b'{') < 120


def test_moves_cost_little(tmp_path):
    log, past = LabelHistoryLog(tmp_path), history(T=3, n=60_000, k=10, moving=.001)
    log.append('heads', 0, past[0])
    for t in (1, 2):
        before = log.path.stat().st_size
        log.append('heads', t, past[t])
        assert log.path.stat().st_size - before < 500       # some 54 moves


def test_a_kill_in_the_middle_of_a_record(tmp_path):
    "At every byte of the last record: those before it are read, and a resumed run writes the same file."
    past = history(T=4, n=40)
    log = written(tmp_path, past)
    whole = log.path.read_bytes()
    last = whole.rfind(b'{"stage"')
    rows = [dict(stage='heads', epoch=t) for t in range(3)]
    for cut in range(last, len(whole)):
        log.path.write_bytes(whole[:cut])
        assert (read_label_history(tmp_path).labels == past[:3]).all()
        again = LabelHistoryLog(tmp_path)
        assert (again.rewind(rows) == past[2]).all() and log.path.read_bytes() == whole[:last]
        again.append('heads', 3, past[3])
        assert log.path.read_bytes() == whole


def test_rewound_to_the_rows_of_the_log(tmp_path):
    past = history(T=5)
    for kept in range(6):
        log = written(tmp_path, past)
        whole, again = log.path.read_bytes(), LabelHistoryLog(tmp_path)
        rows = [dict(stage='before', epoch=e) for e in range(9)] + [dict(stage='heads', epoch=t) for t in range(kept)]
        last = again.rewind(rows)
        assert (last == past[kept - 1]).all() if kept else last is None and not log.path.exists()
        for t in range(kept, 5): again.append('heads', t, past[t])
        assert log.path.read_bytes() == whole
        log.path.unlink()
    assert LabelHistoryLog(tmp_path).rewind([]) is None and not log.path.exists()


def as_before(folder):
    "Give the file the name it had in older runs; returns its bytes."
    path = (folder / 'label_history.bin').rename(folder / 'lineage.bin')
    return path.read_bytes()


def names_in(folder): return sorted(p.name for p in folder.iterdir())


def test_a_file_with_the_old_name_is_read_where_it_is(tmp_path):
    past = history()
    written(tmp_path, past)
    as_before(tmp_path)
    assert (read_label_history(tmp_path).labels == past).all() and names_in(tmp_path) == ['lineage.bin']
    (tmp_path / 'lineage.bin').write_bytes(b'nothing of the kind')
    with pytest.raises(InputError, match='lineage.bin is damaged'): read_label_history(tmp_path)
    written(tmp_path, past)                     # where there are both, the new name counts
    assert (read_label_history(tmp_path).labels == past).all()


@pytest.mark.parametrize('kept', [0, 2, 4])
def test_a_file_with_the_old_name_is_renamed_when_the_run_is_resumed(tmp_path, kept):
    past = history(T=4)
    written(tmp_path, past)
    whole, again = as_before(tmp_path), LabelHistoryLog(tmp_path)
    last = again.rewind([dict(stage='heads', epoch=t) for t in range(kept)])
    assert (last == past[kept - 1]).all() if kept else last is None
    assert names_in(tmp_path) == (['label_history.bin'] if kept else [])
    for t in range(kept, 4): again.append('heads', t, past[t])
    assert names_in(tmp_path) == ['label_history.bin'] and again.path.read_bytes() == whole


def test_renaming_never_overwrites_a_file_with_the_new_name(tmp_path):
    past = history(T=3)
    written(tmp_path, past)
    (tmp_path / 'lineage.bin').write_bytes(b'old')
    assert (LabelHistoryLog(tmp_path).rewind([dict(stage='heads', epoch=t) for t in range(3)]) == past[2]).all()
    assert names_in(tmp_path) == ['label_history.bin', 'lineage.bin']


def test_a_log_that_was_not_rewound_goes_on_readably(tmp_path):
    past = history(T=2)
    written(tmp_path, past), written(tmp_path, past)
    assert (read_label_history(tmp_path).labels == [*past, *past]).all()


def test_a_damaged_file_is_one_line(tmp_path):
    "Any byte may be wrong: what is read then is one line, or labels; and labels are never wrong."
    past = np.array(history(T=4, n=60))
    log = written(tmp_path, past)
    whole = log.path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        log.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        try: labels = read_label_history(tmp_path).labels
        except InputError as e:
            refused += 1
            assert '\n' not in str(e) and 'is damaged' in str(e) and str(log.path) in str(e)
        else: assert np.array_equal(labels, past)       # a stage's name, or an epoch's number
    assert refused > .85 * len(whole)
    torn, headless = whole[:200] + b'\0' * 50 + whole[200:], whole[whole.find(b'{', 9):]
    for bad in (b'nothing of the kind', torn, headless, b'[1]\n', b'{"shape": 3}\n', b'\n'):
        log.path.write_bytes(bad)
        with pytest.raises(InputError, match='is damaged'): read_label_history(tmp_path)


def test_records_of_different_sets_are_refused(tmp_path):
    written(tmp_path, [np.arange(5), np.arange(6)])
    with pytest.raises(InputError, match=r'is damaged \(records of 5 and of 6 samples\)'): read_label_history(tmp_path)


def test_labels_below_noise_are_refused(tmp_path):
    with pytest.raises(InputError, match='labels go down to -2; expected -1 for noise'):
        LabelHistoryLog(tmp_path).append('heads', 0, np.array([0, -2]))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    past = history(T=3)
    log = written(tmp_path, past[:2])
    before = log.path.read_bytes()
    def full(f, data):
        f.write(data[:9])
        raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(files, '_write_all', full)
        with pytest.raises(InputError, match='disk full'): log.append('heads', 2, past[2])
    assert log.path.read_bytes() == before
    log.append('heads', 2, past[2])
    assert (read_label_history(tmp_path).labels == past).all()


@pytest.mark.parametrize('content', [None, b'', b'{"stage": "he'])
def test_a_run_without_label_history(tmp_path, content):
    if content is not None: (tmp_path / 'label_history.bin').write_bytes(content)
    with pytest.raises(InputError, match=NONE) as error: read_label_history(tmp_path)
    assert '\n' not in str(error.value)


# --- what follows from it


def history_of(labels): return LabelHistory(np.asarray(labels, np.int16), [('heads', t) for t in range(len(labels))])


@pytest.mark.parametrize('seed', range(20))
def test_matched_keeps_as_many_as_any_renumbering(seed):
    "Against all permutations, with noise and with clusters that come and go."
    g = np.random.default_rng(seed)
    past = history_of([g.integers(-1, g.integers(1, 5), 14) for _ in range(4)])
    matched, k = past.matched(), int(past.labels.max()) + 1
    assert (matched[-1] == past.labels[-1]).all() and ((matched < 0) == (past.labels < 0)).all()
    for t in range(3):
        rename = dict(zip(past.labels[t].tolist(), matched[t].tolist()))
        assert len(set(rename.values())) == len(rename)
        assert [rename[c] for c in past.labels[t].tolist()] == matched[t].tolist()
        real = past.labels[t] >= 0
        before, after = past.labels[t][real], matched[t + 1][real]
        best = max((np.array(p)[before] == after).sum() for p in itertools.permutations(range(k)))
        assert (matched[t][real] == after).sum() == best


def test_matched_undoes_a_change_of_numbers():
    g = np.random.default_rng(0)
    end = g.integers(0, 6, 500)
    past = [g.permutation(6)[end] for _ in range(8)] + [end]
    past = history_of(past)
    assert (past.matched() == end).all() and past.moves().max() == 0 and (past.settled_at() == 0).all()
    other = g.permutation(6)[end]
    assert (past.matched(other) == other).all()


def test_a_cluster_that_vanishes_keeps_its_number_where_there_is_a_choice():
    merged = history_of([[0, 0, 1, 2, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert merged.matched()[0].tolist() in ([0, 0, 1, 2, 2], [2, 2, 1, 0, 0])
    assert history_of([[0, 0, 0, 1, 2], [0, 0, 0, 0, 0]]).matched()[0].tolist() == [0, 0, 0, 1, 2]


def test_noise_alone_and_a_single_epoch():
    none = history_of([[-1, -1], [-1, -1]])
    assert none.matched().tolist() == [[-1, -1]] * 2 and none.moves().tolist() == [0]
    one = history_of([[1, 0, 1]])
    assert one.matched().tolist() == [[1, 0, 1]] and one.moves().shape == (0,) and one.flows(0) == []
    assert one.settled_at().tolist() == [0] * 3 and len(one.unsettled()[0]) == 0


def test_hand_made_moves():
    past = history_of([[0, 0, 0, 1, 1, 1, 0, -1],
                    [0, 0, 0, 1, 1, 1, 1, -1],      # the seventh moves
                    [0, 0, 0, 1, 1, 1, 0, 1],       # and back; being assigned for the first time is no move
                    [0, 0, 0, 1, 1, 1, 1, 0],       # both move
                    [0, 0, 0, 1, 1, 0, 1, 0]])      # the sixth
    assert np.allclose(past.moves(), np.array([1, 1, 2, 1]) / 8)
    assert [past.moved(t).tolist() for t in range(5)] == [[], [6], [6], [6, 7], [5]]
    assert past.flows(3) == [(0, 1, 1), (1, 0, 1)] and past.flows(4) == [(1, 0, 1)] and past.flows(0) == []
    assert past.settled_at().tolist() == [0, 0, 0, 0, 0, 4, 3, 3]
    for last, wanted in ((1, [[6, 5, 7], [3, 1, 1]]), (.5, [[5, 6, 7], [1, 1, 1]]), (.25, [[5], [1]])):
        assert [a.tolist() for a in past.unsettled(last)] == wanted
    assert [a.tolist() for a in past.unsettled(1, n=1)] == [[6], [3]]
    for bad in (0, 1.5):
        with pytest.raises(InputError, match='last=.*expected a finite number'): past.unsettled(bad)


@pytest.mark.parametrize('seed', range(5))
def test_moves_against_a_loop(seed):
    past = history_of(history(T=9, n=80, k=4, moving=.3, low=-1, seed=seed))
    m, T, n = past.matched(), 9, 80
    def left(i, t): return m[t, i] != m[t - 1, i]
    moved = [[i for i in range(n) if left(i, t) and any(m[s, i] >= 0 for s in range(t))] for t in range(1, T)]
    assert [past.moved(t).tolist() for t in range(1, T)] == moved
    assert np.allclose(past.moves(), [len(i) / n for i in moved])
    for t in range(1, T):
        flows, counts = past.flows(t), [c for *_, c in past.flows(t)]
        assert sum(counts) == len(moved[t - 1]) and counts == sorted(counts, reverse=True)
        for a, b, c in flows: assert sum(m[t - 1, i] == a and m[t, i] == b for i in moved[t - 1]) == c
    assert past.settled_at().tolist() == [max([t for t in range(1, T) if left(i, t)], default=0) for i in range(n)]
    index, counts = past.unsettled(.5, n=80)
    expected = {i: sum(i in late for late in moved[4:]) for i in range(n)}
    assert dict(zip(index.tolist(), counts.tolist())) == {i: c for i, c in expected.items() if c}


# --- from the steps


def test_steps_left_out_keep_what_they_had():
    steps, before = StepLabels(), torch.tensor([4, 3, 2, 1])
    steps.add(torch.tensor([2, 0]), torch.eye(5)[None, :2])
    assert steps.of_all(4, before).tolist() == [1, 3, 0, 1] and steps.of_all(4).tolist() == [1, -1, 0, -1]
    steps.clear()
    assert steps.of_all(4, before) is None


def test_the_views_vote_by_their_mean():
    steps, views = StepLabels(), torch.tensor([[[3., 0, 0]], [[0, 2., 0]], [[0, 2., 0]]])
    steps.add(torch.tensor([0]), views.requires_grad_())
    assert steps.of_all(1).tolist() == [1] and not steps.parts[0][1].requires_grad


def on_rank(rank, port, out):
    with member(rank, port):
        from pathlib import Path
        steps = StepLabels()
        steps.add(torch.arange(rank, 6, 2), torch.eye(3)[None] + rank)
        model = NMCE(**{**QUICK, 'batch_size': 40}, run_dir=str(Path(out) / 'run')).fit(load('digits', limit=200))
        torch.save((steps.of_all(8), model.trainer_.labels.labels), Path(out) / f'rank{rank}.pt')


@pytest.mark.slow
def test_two_ranks_record_what_both_saw(tmp_path):
    (one, end), (two, same) = together(on_rank, tmp_path)
    assert one.tolist() == two.tolist() == [0, 0, 1, 1, 2, 2, -1, -1]
    found = read_label_history(tmp_path / 'run')
    assert found.labels.shape == (9, 200) and found.labels.min() >= 0
    assert end.equal(same) and (found.labels[-1] == end.numpy()).all()


# --- the methods


def test_nmce_records_its_heads(nmce):
    found = read_label_history(nmce.run_.folder)
    assert found.epochs == [('cluster_heads', e) for e in range(5)] + [('fine_tune', e) for e in range(4)]
    assert found.labels.shape == (9, 200) and found.labels[-1].min() >= 0
    assert (found.labels[0] < 0).sum() == 20                    # three steps of 60 leave 20 out
    checkpoint, model = (load_checkpoint(nmce.run_.path(f'{name}.pt')) for name in ('checkpoint', 'model'))
    assert not any('label' in k or 'history' in k for k in checkpoint)
    assert not any('step' in k or 'assigned' in k for k in model['weights'])


def test_the_last_epoch_is_near_the_predictions(tmp_path):
    "Not equal: a step sees augmented views, and the network before it has learnt from them."
    longer = dict(limit=300, epochs=15, cluster_epochs=30, finetune_epochs=8, n_init=2, batch_size=100, hidden_dim=256)
    model = NMCE(**{**QUICK, **longer}, run_dir=str(tmp_path / 'run')).fit(load('digits', limit=300))
    found = read_label_history(tmp_path / 'run')
    assert (found.labels[-1] == np.load(tmp_path / 'run/predictions.npy')).mean() > .7
    assert (found.matched(model.labels_)[-1] == model.labels_).mean() > .7
    assert found.moves()[-5:].mean() < found.moves()[:5].mean()


def test_the_labels_are_those_of_the_steps(digits):
    "What ClusterHeads keeps is the largest mean logit of the pair with the largest reduction."
    model, seen = NMCE(**QUICK), []
    trainer = model.prepare(digits)
    trainer.train('representation')
    stage = trainer.stages[1]
    step, heads = stage.step, stage.clusters
    def watched(index, views):
        with torch.no_grad(): h = model.network_.features(views.flatten(0, 1), 'pre_feature')
        seen.append((index, [k(h).unflatten(0, views.shape[:2]).mean(0).argmax(1) for k in heads]))
        return step(index, views)
    model.network_.eval()
    stage.step, stage.epochs = watched, 1
    trainer.train('cluster_heads')
    best, wanted = int(stage.reduction.argmax()), torch.full((200,), -1)
    for index, labels in seen: wanted[index] = labels[best]
    # batch norm may be in another mode in the second pass
    assert (wanted == trainer.labels.labels).float().mean() > .99


def resumed(kind, params, digits, folder, stage, epoch):
    "A fit that is interrupted when an epoch is written and its checkpoint is not, and taken up again."
    class Stop(Callback):
        def on_epoch_end(self, trainer, row):
            if (row['stage'], row['epoch']) == (stage, epoch): raise KeyboardInterrupt
    trainer = kind(**params, run_dir=str(folder)).prepare(digits)
    trainer.callbacks.append(Stop())            # every callback sees the end of an epoch before any writes a checkpoint
    with pytest.raises(KeyboardInterrupt): trainer.train()
    return kind(**params, run_dir=str(folder), resume=True).fit(digits)


STOPS = [('cluster_heads', 0), ('cluster_heads', 2), ('cluster_heads', 4), ('fine_tune', 0), ('fine_tune', 3)]


@pytest.mark.parametrize('stage, epoch', STOPS)
def test_a_resumed_run_leaves_the_same_label_history(digits, nmce, tmp_path, stage, epoch):
    again = resumed(NMCE, QUICK, digits, tmp_path / 'run', stage, epoch)
    assert (tmp_path / 'run/label_history.bin').read_bytes() == nmce.run_.path('label_history.bin').read_bytes()
    assert (again.embedding_ == nmce.embedding_).all()


def test_an_older_run_is_resumed_under_the_new_name(digits, nmce, tmp_path):
    params = {**QUICK, 'run_dir': str(tmp_path / 'run')}
    NMCE(**params).prepare(digits).train('cluster_heads')
    as_before(tmp_path / 'run')
    NMCE(**params, resume=True).fit(digits)
    assert not (tmp_path / 'run/lineage.bin').exists()
    assert (tmp_path / 'run/label_history.bin').read_bytes() == nmce.run_.path('label_history.bin').read_bytes()


def test_resumed_without_the_past(digits, nmce, tmp_path):
    "A run whose label history was deleted, or which began before there was one, records the rest."
    params = {**QUICK, 'run_dir': str(tmp_path / 'run')}
    trainer = NMCE(**params).prepare(digits)
    trainer.train('cluster_heads')
    (tmp_path / 'run/label_history.bin').unlink()
    again = NMCE(**params, resume=True).fit(digits)
    assert [s for s, _ in read_label_history(tmp_path / 'run').epochs] == ['fine_tune'] * 4
    assert (again.embedding_ == nmce.embedding_).all()


def test_a_damaged_label_history_is_named_when_a_run_is_resumed(nmce, digits, tmp_path):
    folder = shutil.copytree(nmce.run_.folder, tmp_path / 'run')
    (folder / 'label_history.bin').write_bytes(b'nothing of the kind')
    with pytest.raises(InputError, match='label_history.bin is damaged .* or delete it'):
        NMCE(**QUICK, run_dir=str(folder), resume=True).fit(digits)


def test_sela_records_all_heads(sela, digits, tmp_path):
    folder = sela.run_.folder
    kept = np.load(folder / 'self_labels.npy')
    for h in range(3): assert (read_label_history(folder, h).labels[-1] == kept[h]).all()
    found = read_label_history(folder)
    updated = [('self_labelling', r['epoch']) for r in sela.history_ if 'label_updates' in r]
    assert (found.labels[-1] == kept[sela.head_]).all() and found.labels.shape == (len(updated), 200)
    assert found.epochs == updated and 1 < len(updated) < 6
    assert all((a != b).any() for a, b in itertools.pairwise(found.labels))
    for epoch in (1, 2):
        resumed(SeLa, QUICK_SELA, digits, tmp_path / f'run{epoch}', 'self_labelling', epoch)
        file = tmp_path / f'run{epoch}/label_history.bin'
        assert file.read_bytes() == (folder / 'label_history.bin').read_bytes()


def test_what_trains_no_heads_records_nothing(digits, tmp_path):
    short, fresh = {**QUICK, 'epochs': 1}, load('spiral', n=600, fresh=True)
    NMCE(**short, stages='representation', clusters='kmeans', run_dir=str(tmp_path / 'run')).fit(digits)
    NMCE(dataset='spiral', epochs=1, device='cpu', run_dir=str(tmp_path / 'fresh')).fit(fresh)
    for name in ('run', 'fresh'): assert not (tmp_path / name / 'label_history.bin').exists()
    without_folder = NMCE(**{**short, 'cluster_epochs': 1, 'finetune_epochs': 1}).fit(digits)
    assert without_folder.trainer_.label_history is None


# --- the lab


@pytest.fixture
def lab(nmce):
    for name in ('matplotlib', 'plotly', 'anywidget'): pytest.importorskip(name)
    from nmc_workbench.explore.label_history_lab import LabelHistoryLab
    return LabelHistoryLab.of_run(nmce.run_.folder)


def test_an_epoch_is_one_array_to_the_map(lab):
    sent = []
    lab.map.send = lambda content, buffers: sent.append([len(b) for b in buffers])
    lab.epoch = 3
    assert sent == [[200]] and lab.map._told['codes'].dtype == np.uint8
    assert lab.map._told['codes'].tolist() == lab.labels[3].tolist()
    lab.slider.value = 0
    assert (lab.map._told['codes'][lab.labels[0] < 0] == len(lab.map._told['palette']) - 1).all() and lab.epoch == 0


def test_every_view_follows_the_epoch(lab):
    from nmc_workbench.plotting.colours import colour_of
    assert lab.epoch == 8 and not lab.run.notes and len(lab.ui.children) == 3
    past, tiles = lab.history, lab.moved_tiles
    for t in (1, 6):
        lab.epoch = t
        stage, epoch = past.epochs[t]
        assert f'{stage}, epoch {epoch}' in lab.about.value and f'{len(past.moved(t)):,} of 200' in lab.about.value
        assert lab.curve.figure.layout.shapes[0].x0 == t == lab.curve.figure.layout.shapes[0].x1
        shown, (a, b, count) = tiles.shown, past.flows(t, lab.labels)[0]
        assert set(shown) <= set(past.moved(t)) and f'>{count}</td>' in lab.table.value
        assert f'{a} → {b} · {count}' == tiles._told['headings'][0][1]
        assert lab.labels[t - 1, shown[0]] == a and lab.labels[t, shown[0]] == b
        assert tiles._told['edges'][0] == colour_of(b)
    lab.epoch = 0
    assert len(tiles.shown) == 0 and 'nothing was recorded before' in lab.about.value
    lab.curve.answer(dict(click=[0, 4]))
    assert lab.epoch == 5
    index, counts = past.unsettled(n=lab.n_unsettled)
    assert lab.unsettled_tiles.shown.tolist() == index.tolist()
    assert f'moved {counts[0]} times' in lab.unsettled_tiles._told['texts'][0]


def test_colours_agree_with_the_run(lab, nmce):
    agree = (lab.labels[-1] == nmce.labels_).mean()
    assert agree >= (lab.history.labels[-1] == nmce.labels_).mean() and agree > .3
    text, pixels = lab.map.calls['hover'](7)
    assert str(lab.run.ids[7]) in text and tuple(pixels.shape) == (1, 8, 8)


@pytest.mark.parametrize('t', [-1, 9])
def test_an_epoch_that_is_not_there(lab, t):
    with pytest.raises(InputError, match=f'epoch={t}; expected 0 to 8'): lab.epoch = t


def test_the_still(lab):
    picture = lab.picture()
    assert picture.caption == 'clusters of 200 samples at 6 of 9 recorded epochs, and the share that moved'
    image = png(picture)
    assert image.width > 800 and len(image.getcolors(1 << 24)) > 20
    from nmc_workbench.explore.label_history_lab import label_history_picture
    where = np.random.default_rng(0).normal(size=(50, 2))
    for T in (1, 2):
        picture = label_history_picture(where, history_of(history(T=T, n=50)))
        assert 'recorded epochs' in picture.caption and png(picture)


def test_names_are_text(lab):
    from nmc_workbench.explore.label_history_lab import LabelHistoryLab, label_history_picture, moves_figure
    odd = LabelHistory(lab.history.labels, [(HOSTILE, t) for t in range(9)])
    other = LabelHistoryLab(lab.run, odd)
    assert '<script' not in other.about.value and '<script' not in moves_figure(odd).to_json()
    assert png(label_history_picture(lab.where, odd, title=HOSTILE))


def test_what_the_lab_refuses(lab, tiny_run):
    from nmc_workbench.explore.label_history_lab import LabelHistoryLab
    with pytest.raises(InputError, match='the label history has 3 samples, the run 200'):
        LabelHistoryLab(lab.run, history_of([[0, 1, 1]]))
    with pytest.raises(InputError, match=NONE): LabelHistoryLab.of_run(tiny_run('nmc'))


def test_the_lab_of_a_run_of_sela(sela, digits):
    from nmc_workbench.explore.label_history_lab import LabelHistoryLab
    lab = LabelHistoryLab.of_run(sela.run_.folder)
    assert len(lab.labels) == len(read_label_history(sela.run_.folder).epochs)
    assert lab.run.images is None and lab.run.notes
    lab.epoch = 1
    assert lab.ui and lab.moved_tiles._told['sprite'] == b''        # fitted to arrays: tiles show texts
