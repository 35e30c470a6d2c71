"""Labels in a file and back, whatever the images are called; what does not fit is refused; training on them,
interrupted and resumed."""
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nmc_workbench.augment import preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet
from nmc_workbench.evaluation.retrain import LabelTraining, read_labels, train_on_labels, write_labels
from nmc_workbench.runs.index import list_runs
from nmc_workbench.runs.metrics_log import read_metrics

NAMES = ['plain.png', 'a,b.png', '"quoted".png', 'half "quoted', 'two\nlines.png', 'dos\r\nlines', 'bare\rreturn',
         ' spaces ', '', 'naïve 🌱🧪.png', os.fsdecode(b'latin-\xe9.png'),
         '=1+1', "it's; a\ttab", 'line\u2028separator', 'id']
LABELS = np.random.default_rng(0).integers(0, 9, (3, len(NAMES)))


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=120)


@pytest.fixture
def file(tmp_path): return tmp_path / 'labels.csv'


def refused(match, call, *args, **kwargs):
    with pytest.raises(InputError, match=match) as e: call(*args, **kwargs)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('as_given', [np.asarray, torch.from_numpy, lambda a: a.tolist(), lambda a: a.astype('u1')])
def test_there_and_back(file, as_given):
    write_labels(file, np.array(NAMES), as_given(LABELS))
    found = read_labels(file, np.array(NAMES))
    assert found.dtype == np.int64 and found.flags.c_contiguous and np.array_equal(found, LABELS)
    order = np.random.default_rng(1).permutation(len(NAMES))
    assert np.array_equal(read_labels(str(file), [NAMES[i] for i in order]), LABELS[:, order])


def test_the_text(file):
    write_labels(file, ['a', 'b,c', 'd"e'], [4, 0, 12])
    assert file.read_bytes() == b'id,head0\na,4\n"b,c",0\n"d""e",12\n'
    write_labels(file, ['a'], [[1], [2]])
    assert file.read_text() == 'id,head0,head1\na,1,2\n' and np.array_equal(read_labels(file, ['a']), [[1], [2]])


def test_another_programs_file(file):
    "A byte-order mark, line ends of DOS, quotes everywhere, empty lines."
    file.write_bytes('\ufeff"id","head0"\r\n"b","1"\r\n\r\n"a","0"\r\n'.encode())
    assert np.array_equal(read_labels(file, ['a', 'b']), [[0, 1]])


def test_many(file):
    "Row by row against a plain loop."
    ids, labels = [f'train/{i}' for i in range(5000)], np.random.default_rng(0).integers(0, 3000, (10, 5000))
    write_labels(file, ids, labels)
    rows = [line.split(',') for line in file.read_text().splitlines()]
    assert rows[0] == ['id', *(f'head{h}' for h in range(10))]
    for i, row in enumerate(rows[1:]): assert row == [ids[i], *(str(n) for n in labels[:, i])]
    assert np.array_equal(read_labels(file, ids), labels)


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / 'labels.csv'
    write_labels(file, ['a', 'b'], [0, 1])
    before = file.read_bytes()
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    refused('disk full while writing', write_labels, file, ['a', 'b'], [1, 1])
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['labels.csv']


@pytest.mark.parametrize('ids, labels, message', [
    (['a', 'b', 'a'], [0, 1, 2], "the id 'a' stands for several images"),
    (['', 'b', ''], [0, 1, 2], "the id '' stands for several images"),
    (['a', 'b'], [0, 1, 2], r'labels of shape \(1, 3\) for 2 images; expected \(2,\) or \(heads, 2\)'),
    (['a', 'b'], [[[0, 1]]], 'labels of shape'),
    ([], [], 'labels of shape'),
    (['a'], 3, 'labels of shape'),
    (['a', 'b'], [[0, 1], [1]], 'labels has rows of several lengths'),
    (['a', 'b'], [0., 1.], 'labels of type float64; expected whole numbers'),
    (['a', 'b'], ['0', '1'], 'labels of type <U1'),
    (['a', 'b'], [True, False], 'labels of type bool'),
    (['a', 'b'], [[0, 1], [0, -1]], 'a label of image 1 is -1; expected 0 and above')])
def test_labels_that_cannot_be_written(file, ids, labels, message):
    refused(message, write_labels, file, ids, labels)
    assert not file.exists()


HEAD = 'id,head0,head1\n'

@pytest.mark.parametrize('text, message', [
    ('', 'is empty; expected a header id,head0 and a row per image'),
    ('\n\n', 'is empty'),
    ('a,1,2\nb,1,2\n', "begins with 'a,1,2'; expected a header id,head0,head1,..."),
    ('id\na\n', "begins with 'id'"),
    ('id,head1,head0\n', 'begins with'),
    ('id;head0\n', 'begins with'),
    ('\xff\xfei\0d\0', 'begins with'),
    (f'{HEAD}a,1,2\nb,1\n', "row 3, 'b,1', has 2 fields; expected the id and 2 labels"),
    (f'{HEAD}a,1,2,3\nb,1,2\n', "row 2, 'a,1,2,3', has 4 fields"),
    (f'{HEAD}a,1,2\nc,1,2\n', "row 3 is of 'c', which is none of the 2 images"),
    (f'{HEAD}a,1,2\n"x\ny",1,2\n', r"row 3 is of 'x\\ny', which is none"),
    (f'{HEAD}a,1,2\na,1,2\n', "row 3 is of 'a', which has a row already"),
    (f'{HEAD}b,1,2\n', "has no row of 'a' and has 1 for 2 images"),
    (HEAD, "has no row of 'a' and has 0"),
    (f'{HEAD}a,1,-2\nb,1,2\n', "row 2 has the label '-2'; expected a whole number from 0"),
    (f'{HEAD}a,1.0,2\nb,1,2\n', "has the label '1.0'"),
    (f'{HEAD}a,,2\nb,1,2\n', "has the label ''"),
    (f'{HEAD}a, 1,2\nb,1,2\n', "has the label ' 1'"),
    (f'{HEAD}a,1_0,2\nb,1,2\n', "has the label '1_0'"),
    (f'{HEAD}a,nan,2\nb,1,2\n', "has the label 'nan'"),
    (f'{HEAD}a,٣,2\nb,1,2\n', 'has the label'),
    (f'{HEAD}a,{"9" * 30},2\nb,1,2\n', "has the label '9+'"),
    (f'{HEAD}a,1,2\n"b,1,2\n', 'is damaged or no CSV file'),
    (f'{HEAD}a,1,2\n"b"x,1,2\n', 'is damaged or no CSV file')])
def test_files_that_do_not_fit(file, text, message):
    file.write_text(text, encoding='utf-8')
    refused(message, read_labels, file, ['a', 'b'])


def test_images_of_one_name(file):
    write_labels(file, ['a', 'b'], [1, 2])
    refused("the id 'a' stands for several images", read_labels, file, ['a', 'b', 'a'])


def test_no_file(tmp_path):
    refused('cannot read the labels .*nothing.csv: No such file', read_labels, tmp_path / 'nothing.csv', ['a'])
    refused('is no regular file', read_labels, tmp_path, ['a'])


def test_the_loss_is_the_mean_of_the_heads(digits):
    net = initialised(lambda: HeadsNet(*backbone('smallconv'), n_clusters=5, n_heads=3), 0)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (3, 120)))
    index, views = torch.tensor([3, 50, 7, 119]), torch.rand(2, 4, 1, 8, 8)
    stage = LabelTraining(net, 10, labels, lr=.1)
    net.eval()
    loss, log = stage(index, views)
    def of_view(v): return torch.stack([F.cross_entropy(net(v)[h], labels[h, index]) for h in range(3)]).mean()
    heads = torch.stack([of_view(v) for v in views])
    torch.testing.assert_close(loss, heads.mean())
    right = torch.stack([net(v).argmax(2) == labels[:, index] for v in views])
    torch.testing.assert_close(log['accuracy'], right.float().mean())


@pytest.mark.parametrize('epochs', [1, 5, 10, 400])
def test_learning_rates(epochs):
    "Constant, a tenth from 60 % of the epochs on, a hundredth from 80 %."
    net = HeadsNet(*backbone('smallconv'), n_clusters=5)
    stage = LabelTraining(net, epochs, torch.zeros(1, 4, dtype=torch.int64), lr=.05)
    stage.optimisers = stage.start()
    for epoch in range(epochs):
        stage.before_epoch(epoch)
        want = .05 * .1 ** (max(0, int((epoch - .4 * epochs) / (.2 * epochs) + 1e-9)))
        assert stage.optimisers['sgd'].param_groups[0]['lr'] == pytest.approx(want, rel=1e-12)


QUICK = dict(backbone='smallconv(width=4)', epochs=5, batch_size=40, device='cpu', checkpoint_every=2)


def train(digits, labels, **more): return train_on_labels(digits, labels, **{**QUICK, **more})


def same(a, b): return all(p.equal(q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_takes_every_form_of_labels(digits, file):
    y = digits.labels.numpy()
    labels = np.stack([y, (y + 3) % 10])
    net = train(digits, labels, backbone='smallconv', epochs=15)
    assert not net.training and len(net.heads) == 2
    with torch.no_grad(): assert ((net(digits.pixels / 255).argmax(2).numpy() == labels).mean(1) > .9).all()
    write_labels(file, digits.ids, labels)
    one, two, three = (train(digits, given, epochs=2) for given in (labels, torch.from_numpy(labels), file))
    assert same(one, two) and same(one, three)
    assert not same(one, train(digits, labels, epochs=2, seed=1))
    assert len(train(digits, y, epochs=1, n_clusters=12).heads[0].weight) == 12


def test_arrays_points_and_views():
    rng = np.random.default_rng(0)
    pixels, points, labels = rng.random((30, 12, 12, 3)), rng.normal(size=(30, 2)), np.arange(30) % 3
    net = train(pixels, labels, augment=preset('cifar_simclr_norm', size=8), batch_size=10, epochs=1)
    assert net(torch.rand(2, 3, 8, 8)).shape == (1, 2, 3)
    assert train(points, labels, backbone='mlp(width=8)', batch_size=10, epochs=1)(torch.rand(2, 2)).shape == (1, 2, 3)


@pytest.mark.parametrize('batch_size, sizes', [(40, [40, 40, 40]), (50, [50, 50, 20]), (119, [119])])
def test_no_image_is_left_out(digits, monkeypatch, batch_size, sizes):
    "But for a last one alone, which batch norm cannot take."
    seen, step = [], LabelTraining.step
    def spy(self, index, views):
        seen.append(index)
        return step(self, index, views)
    monkeypatch.setattr(LabelTraining, 'step', spy)
    train(digits, np.arange(120) % 4, epochs=1, batch_size=batch_size)
    assert list(map(len, seen)) == sizes and len(torch.cat(seen).unique()) == sum(sizes)


@pytest.mark.parametrize('stop', [0, 2, 3, 4])
def test_an_interrupted_run_resumes_to_the_bit(digits, tmp_path, monkeypatch, stop):
    labels, run = np.arange(120) % 4, tmp_path / 'run'
    whole = train(digits, labels, augment='digits', run_dir=tmp_path / 'whole')
    def kill(self, epoch):
        if epoch == stop: raise KeyboardInterrupt
        return {}
    with monkeypatch.context() as m:
        m.setattr(LabelTraining, 'after_epoch', kill)
        with pytest.raises(KeyboardInterrupt): train(digits, labels, augment='digits', run_dir=run)
    assert not (run / 'results.json').exists()
    assert same(whole, train(digits, labels, augment='digits', run_dir=run, resume=True))
    def rows(folder): return [{k: r[k] for k in ('epoch', 'loss', 'accuracy', 'lr')} for r in read_metrics(folder)]
    assert rows(tmp_path / 'whole') == rows(run) and len(rows(run)) == 5


def test_what_a_run_keeps(digits, tmp_path):
    labels = np.arange(120) % 4
    net = train(digits, labels, run_dir=tmp_path / 'run')
    kept = {'config.json', 'metrics.jsonl', 'checkpoint.pt', 'labels.pt', 'results.json', 'provenance.json'}
    assert kept <= {p.name for p in (tmp_path / 'run').iterdir()}
    (row,) = list_runs(tmp_path)
    assert row['method'] == 'labels' and row['dataset'] == 'digits'
    assert row['accuracy'] == read_metrics(tmp_path / 'run')[-1]['accuracy']
    weights = torch.load(tmp_path / 'run/labels.pt', weights_only=True)
    assert all(v.equal(net.state_dict()[k]) for k, v in weights.items())
    for other in (dict(labels=(labels + 1) % 4), dict(lr=.1), dict(augment='digits')):
        given = {**dict(labels=labels, run_dir=tmp_path / 'run', resume=True), **other}
        refused('belongs to another configuration', train, digits, **given)
    assert json.loads((tmp_path / 'run/config.json').read_text())['lr'] == .05


@pytest.mark.parametrize('options, message', [
    (dict(labels=np.zeros(7, int)), r'labels of shape \(1, 7\) for 120 images'),
    (dict(labels=np.full(120, -1)), 'a label of image 0 is -1'),
    (dict(labels='nothing.csv'), 'cannot read the labels nothing.csv'),
    (dict(labels=np.full(120, 10 ** 9)), 'labels go up to 1000000000 for 120 images'),
    (dict(n_clusters=3), 'n_clusters=3, and labels go up to 3; expected at least 4'),
    (dict(epochs=0), 'epochs=0; expected'),
    (dict(lr=0.), 'lr=0.0; expected'),
    (dict(lr=float('nan')), 'lr=nan; expected'),
    (dict(lr=float('inf')), 'lr=inf; expected'),
    (dict(momentum=1.), 'momentum=1.0; expected'),
    (dict(weight_decay=-1.), 'weight_decay=-1.0'),
    (dict(batch_size=0), 'batch_size=0'),
    (dict(batch_size=121), 'batch_size=121 > n_samples=120'),
    (dict(backbone='small'), 'unknown backbone'),
    (dict(augment='no'), 'unknown preset'),
    (dict(backbone='alexnet'), '8 x 8 pixels; alexnet takes 223'),
    (dict(device='cuda:99'), "device 'cuda:99'")])
def test_bad_input_leaves_no_folder(digits, tmp_path, options, message):
    refused(message, train, digits, **{**dict(labels=np.arange(120) % 4, run_dir=tmp_path / 'run'), **options})
    assert not (tmp_path / 'run').exists()


def test_samples_that_are_drawn_anew_have_no_labels():
    points = load('spiral', n=20, fresh=True)
    refused('draws new samples at every step', train, points, np.zeros(20, int), backbone='mlp', batch_size=10)
