"""AND: what a run leaves, its rounds, how it goes on, the original's options and files, and what it refuses."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.anchors import discover
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.methods import AND, ANDConfig, NMCE
from nmc_workbench.methods.anchor_neighbourhoods.config import RECIPES, epochs_of_a_round, views_of
from nmc_workbench.methods.anchor_neighbourhoods.estimator import read_round
from nmc_workbench.methods.anchor_neighbourhoods.stages import neighbour_score
from nmc_workbench.methods.base import open_run
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.finished import read_run
from nmc_workbench.runs.label_history import read_label_history
from nmc_workbench.runs.metrics_log import read_metrics
from tests import killed
from tests.ranks import member, still, together

QUICK = dict(dataset='digits', rounds=3, epochs=2, batch_size=100, device='cpu')


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=300)


@pytest.fixture(scope='module')
def finished(digits, tmp_path_factory):
    return AND(**QUICK, run_dir=tmp_path_factory.mktemp('run') / 'run').fit(digits)


# ---- a run


def test_a_run_leaves_what_other_pages_open(finished, digits):
    run, opened = read_run(finished.run_.folder), open_run(finished.run_.folder, 'cpu')
    assert np.array_equal(opened.predict(digits), finished.labels_) and opened.n_clusters_ == finished.n_clusters_ > 1
    assert np.allclose(np.linalg.norm(opened.transform(digits), axis=1), 1, atol=1e-5)
    assert np.array_equal(opened.memory_, finished.memory_) and opened.k_found_ == finished.k_found_
    assert opened.anchors_.anchors.equal(finished.anchors_.anchors) and len(opened.anchors_) == 150
    assert run.results['k_found']['rule'] == 'communities' and 0 < run.results['neighbours'] <= 1
    assert np.allclose(opened.predict_proba(digits).sum(1), 1)


def test_each_round_has_more_anchors(finished):
    rows = finished.history_
    assert [(r['round'], r['n_anchors']) for r in rows] == [(0, 0), (0, 0), (1, 75), (1, 75), (2, 150), (2, 150)]
    assert ['neighbours' in r for r in rows] == [False, True] * 3
    assert ['consistency' in r for r in rows] == [False] * 2 + [True] * 4
    assert rows[2]['entropy_anchors'] < rows[2]['entropy_all'] < rows[2]['entropy_instances']


def test_anchors_are_those_of_the_memory_between_rounds(finished, digits):
    "A round's file keeps the memory of its last epoch; the next round's anchors come from it."
    kept, c = [read_round(p) for p in sorted((finished.run_.folder / 'rounds').iterdir())], finished.config_
    assert [(k['round'], len(k['anchors'])) for k in kept] == [(0, 0), (1, 75), (2, 150)]
    for before, after in zip(kept, kept[1:]):
        again = discover(before['memory'], len(after['anchors']), c.n_neighbours, c.temperature)
        assert again.anchors.equal(after['anchors'].anchors) and again.neighbours.equal(after['anchors'].neighbours)
    assert np.array_equal(kept[-1]['memory'].numpy(), finished.memory_)


def test_the_label_history_has_a_step_per_round(finished):
    history = read_label_history(finished.run_.folder)
    assert history.labels.shape == (3, 300) and [e for _, e in history.epochs] == [1, 3, 5]


def test_a_number_of_clusters_may_be_given(digits):
    model = AND(**QUICK, n_clusters=7).fit(digits)
    assert model.n_clusters_ == 7 and model.k_found_['rule'] == 'kmeans'


@pytest.mark.parametrize('rule', ['hierarchy', 'silhouette'])
def test_the_rule_is_a_parameter(rule, digits):
    model = AND(**QUICK | dict(rounds=1, epochs=1), k_rule=rule).fit(digits)
    assert model.k_found_['rule'] == rule and model.labels_.shape == (300,)


def test_points_and_the_spiral():
    g = np.random.default_rng(0)
    points = np.concatenate([g.normal(c, .3, (40, 2)) for c in ([0, 0], [4, 0], [0, 4])]).astype('f4')
    assert AND(rounds=2, epochs=1, batch_size=30, device='cpu').fit(points).labels_.shape == (120,)
    spiral = load('spiral', limit=200)
    model = AND(dataset='spiral', rounds=2, epochs=1, batch_size=50, device='cpu').fit(spiral)
    assert model.memory_.shape[0] == len(spiral)


# ---- rates, optimisers, several batches a step


def test_a_round_ends_where_the_schedule_says(digits, tmp_path):
    schedule = tmp_path / 'rates.txt'
    schedule.write_text('0:0.1\n1:0.01  # lower\n2:-\n')
    model = AND(**QUICK | dict(epochs=9), lr_policy='multistep', lr_schedule=str(schedule)).fit(digits)
    assert len(model.history_) == 6 and [r['lr'] for r in model.history_] == [.1, .01] * 3
    assert model.config_.lr_schedule == schedule.read_text()


@pytest.mark.parametrize('optimizer, kind', dict(adam=torch.optim.Adam, rmsprop=torch.optim.RMSprop).items())
def test_optimisers(optimizer, kind, digits):
    trainer = AND(**QUICK | dict(rounds=1, epochs=1), optimizer=optimizer, lr=1e-3, momentum=.4).prepare(digits)
    trainer.stages[0].optimisers = trainer.stages[0].start()
    found = trainer.stages[0].optimisers['main']
    assert type(found) is kind and found.defaults.get('momentum', .4) == .4


def test_several_batches_make_a_step_and_the_rest_makes_one_too(digits):
    "Three batches, two a step: the memory follows every batch, the weights move twice."
    model, steps = AND(**QUICK | dict(rounds=1, epochs=1), accumulate=2), []
    trainer = model.prepare(digits)
    step = trainer.precision.step
    trainer.precision.step = lambda optimisers: (steps.append(1), step(optimisers))
    before = trainer.stages[0].memory.rows.clone()
    trainer.train()
    assert len(steps) == 2 and not (trainer.stages[0].memory.rows == before).all(1).any()


# ---- killed and resumed, several ranks


@pytest.mark.slow
@pytest.mark.parametrize('at, every', [(1, 1), (3, 2), (4, 1)], ids=['between rounds', 'at a round\'s end', 'within'])
def test_killed_and_resumed_ends_with_the_same_bits(at, every, tmp_path):
    options = {**QUICK, 'checkpoint_every': every}
    folders = killed.whole_and_parts('AND', options, tmp_path, at)
    whole, parts = (load_checkpoint(f / 'model.pt') for f in folders)
    assert all(v.equal(parts['weights'][k]) for k, v in whole['weights'].items())
    assert whole['more']['memory'].equal(parts['more']['memory'])
    assert whole['more']['clusters'].equal(parts['more']['clusters'])
    assert all(v.equal(parts['more']['anchors'][k]) for k, v in whole['more']['anchors'].items() if k != 'entropy')
    same = 'epoch', 'loss', 'lr', 'n_anchors', 'consistency', 'entropy_all', 'neighbours'
    rows = [[[r.get(k) for k in same] for r in read_metrics(f)] for f in folders]
    names = [sorted(p.name for p in (f / 'rounds').iterdir()) for f in folders]
    assert rows[0] == rows[1] and len(rows[0]) == 6 and names[0] == names[1]


@pytest.mark.slow
def test_killed_anywhere(tmp_path):
    "At moments drawn at random, also while files are written; NMC_KILLS=20 makes twenty of them."
    options, kills = {**QUICK, 'checkpoint_every': 1}, int(os.environ.get('NMC_KILLS', 3))
    seconds = killed.fit('AND', options | dict(run_dir=str(tmp_path / 'whole')))
    g, ended = np.random.default_rng(0), 0
    wanted = load_checkpoint(tmp_path / 'whole/model.pt')
    for i in range(3 * kills):              # a run that has come to its end before its moment counts for nothing
        if ended == kills: break
        given = options | dict(run_dir=str(tmp_path / f'run{i}'))
        ended += killed.fit_for('AND', given, g.uniform(0, .9) * seconds)
        killed.fit('AND', given | dict(resume=True))
        found = load_checkpoint(tmp_path / f'run{i}/model.pt')
        assert all(v.equal(found['weights'][k]) for k, v in wanted['weights'].items())
        assert found['more']['memory'].equal(wanted['more']['memory'])
    assert ended == kills, f'only {ended} of {kills} were killed before their end'


def test_a_finished_run_that_is_resumed_has_its_memory(finished, digits):
    again = AND(**QUICK, run_dir=finished.run_.folder, resume=True).fit(digits)
    assert np.array_equal(again.memory_, finished.memory_) and np.array_equal(again.labels_, finished.labels_)


def learned():
    "Losses, memory and anchors."
    model = AND(rounds=3, epochs=2, batch_size=20, backbone='mlp(width=32)', augment='spiral(noise=0)', lr=.01,
                device='cpu')
    model.prepare(still()).train()
    stage = model.trainer_.stages[0]
    model.finish()
    assert np.array_equal(model.predict(still()), model.labels_)        # also on several ranks
    return dict(losses=[r['loss'] for r in model.trainer_.history], memory=stage.memory.whole(),
                anchors=stage.anchors.anchors)


def on_rank(rank, port, out):
    with member(rank, port): torch.save(learned(), f'{out}/rank{rank}.pt')


@pytest.mark.slow
def test_two_ranks_have_the_memory_and_the_anchors_of_one(tmp_path):
    one, two = learned(), together(on_rank, tmp_path)
    assert two[0]['memory'].equal(two[1]['memory']) and two[0]['anchors'].equal(two[1]['anchors'])
    for other in two:
        np.testing.assert_allclose(one['losses'], other['losses'], rtol=1e-4)
        np.testing.assert_allclose(one['memory'], other['memory'], atol=1e-4)
        assert set(one['anchors'].tolist()) == set(other['anchors'].tolist())


# ---- the original's options, files and log


def test_the_original_s_command_is_taken():
    given = dict(cfgs=None, dataset='cifar10', data_root='data/cifar10', network='ResNet18', low_dim=128, max_epoch=200,
                 max_round=5, iter_size=1, display_freq=80, ANs_select_rate=.25, ANs_size=1, npc_temperature=.1,
                 npc_momentum=.5, base_lr=.03, lr_policy='step', lr_decay_offset=80, lr_decay_step=40, lr_decay_rate=.1,
                 weight_decay='5e-4', momentum=.9, nesterov=True, batch_size=128, workers_num=4, resize=32,
                 size='(32, 32)', scale='(0.2, 1.)', ratio='(0.75, 1.333333)', colorjitter='(0.4, 0.4, 0.4, 0.4)',
                 random_grayscale=.2, session='one', sess_dir='sessions', gpus='0')
    c = ANDConfig.from_names(given)
    assert (int(c.backbone[6:8]), c.dim, c.epochs, c.rounds, c.lr, c.weight_decay) == (18, 128, 200, 5, .03, 5e-4)
    assert (c.run_dir, c.device, c.view_crop, c.log_every) == ('sessions/one', 'cuda:0', 32, 80)
    c = replace(c, augment="anchors(data='cifar10')")
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert views_of(c)(x, noise[0]).equal(views_of(ANDConfig(**RECIPES['cifar10']))(x, noise[1]))
    with pytest.raises(InputError, match='torchrun'): ANDConfig.from_names(dict(gpus='0,1'))


def test_sessions_in_yaml_are_the_published_values():
    folder = Path(__file__).parents[1] / 'sessions/and'
    for data in ('cifar10', 'cifar100', 'svhn'):
        c = ANDConfig.from_names(dict(cfgs=f'[{folder}/base.yaml, {folder}/{data}.yaml]', rounds=7))
        assert c.dataset == data and c.rounds == 7
        wanted = RECIPES[data] | dict(rounds=7)
        assert {k: getattr(c, k) for k in wanted if k != 'checkpoint_every'} == \
               {k: v for k, v in wanted.items() if k != 'checkpoint_every'}


def test_files_of_parameters_may_mix_both_names(tmp_path):
    "The later file wins, also where one has the original's name and the other the name here."
    (tmp_path / 'a.yaml').write_text('epochs: 3\nmax_round: 2\nsize: (8, 8)\n')
    (tmp_path / 'b.yaml').write_text('max-epoch: 1\nrounds: 4\n')
    one, two = tmp_path / 'a.yaml', tmp_path / 'b.yaml'
    assert [AND(cfgs=[one, two]).epochs, AND(cfgs=[one, two]).rounds, AND(cfgs=[two, one]).epochs] == [1, 4, 3]
    assert AND(cfgs=one).view_crop == 8 and AND(cfgs=one, max_epoch=7).epochs == 7
    both = ANDConfig.from_names(dict(cfgs=f'[{one}, {two}]', max_round=5))
    assert (both.epochs, both.rounds, both.cfgs) == (1, 5, None)
    injected = dict(cfgs=str(one), seed=0, In=['seed = 1', '# Parameters\nseed = 0\n'])
    one.write_text('seed: 3\n')
    assert ANDConfig.from_names(injected).seed == 0 and ANDConfig.from_names(dict(cfgs=str(one), seed=0)).seed == 3


def test_a_file_of_a_round_is_read_like_the_original_s(finished, digits, tmp_path):
    "Also with the prefix of a data-parallel net, and under the original's names of the layers, in their order."
    path = finished.run_.folder / 'rounds/0002-00150.ckpt'
    saved = load_checkpoint(path)
    assert set(saved) == {'net', 'optimizer', 'ANs_discovery', 'npc', 'acc', 'epoch', 'round', 'session'}
    saved['net'] = {f'module.layer{i}': v for i, v in enumerate(saved['net'].values())}
    torch.save(saved, tmp_path / 'original.ckpt')
    for start in (path, tmp_path / 'original.ckpt'):
        again = AND(**QUICK, start_from=str(start), test_only=True).fit(digits)
        assert np.allclose(again.embedding_, finished.embedding_, atol=1e-6) and not again.history_
        assert np.array_equal(again.memory_, finished.memory_)
    with pytest.raises(InputError, match='test_only scores a trained network'): AND(**QUICK, test_only=True).fit(digits)


def test_a_run_goes_on_in_another_folder(digits, tmp_path):
    first = AND(**QUICK, run_dir=tmp_path / 'a', checkpoint_every=1).prepare(digits)
    first.train(seconds=0)
    copy = ANDConfig.from_names(dict(resume=str(tmp_path / 'a/checkpoint.pt'), restart=True))
    assert copy.resume and copy.resume_from == str(tmp_path / 'a') and copy.run_dir is None
    model = AND(**QUICK, resume=str(tmp_path / 'a/checkpoint.pt'), restart=True, run_dir=tmp_path / 'b',
                checkpoint_every=1).fit(digits)
    assert len(model.history_) == 6 and len(read_metrics(tmp_path / 'a')) == 1
    whole = AND(**QUICK).fit(digits)
    assert np.array_equal(whole.memory_, model.memory_)
    with pytest.raises(InputError, match='needs another folder'):
        AND(**QUICK, resume=True, resume_from=tmp_path / 'a', run_dir=tmp_path / 'a').fit(digits)


def test_tensorboard_has_the_original_s_folders(finished):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    def tags(name):
        found = events.EventAccumulator(str(finished.run_.folder / 'events' / name)).Reload()
        return {t: [(s.step, round(s.value, 4)) for s in found.Scalars(t)] for t in found.Tags()['scalars']}
    top, last = tags('global'), tags('0001-00075')
    assert top['ANs/Number'] == [(0, 0), (1, 75), (2, 150)] and set(top) == {'ANs/Number', 'ANs/Consistency',
                                                                          'Evaluate/best_acc'}
    assert top['ANs/Consistency'][1][1] == round(finished.history_[2]['consistency'], 4)
    assert set(last) == {'Train/Loss', 'Train/Learning_Rate', 'Evaluate/Rank-1'}
    lines = (finished.run_.folder / 'log.txt').read_text().splitlines()
    assert len(lines) == 6 and 'round 2, epoch 2/2' in lines[-1] and 'entropy_anchors' in lines[-1]


def test_the_best_epoch_of_a_round_is_kept_by_the_test_split(tmp_path):
    "As in the original, of equal scores the later one; the run itself goes on from its last epoch."
    pixels = np.random.default_rng(0).integers(0, 255, (90, 8, 8), dtype=np.uint8)
    for split in ('train', 'test'):
        for i, image in enumerate(pixels):
            place = tmp_path / 'images' / split / str(i % 3)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f'{i}.png')
    given = dict(dataset='folder', data_dir=str(tmp_path / 'images'), size=8, rounds=1, epochs=4, batch_size=30,
                 test_split='test', score_every=1, device='cpu', run_dir=tmp_path / 'run', augment='digits',
                 backbone='smallconv(stride=2)')
    model = AND(**given).fit(load('folder', root=tmp_path / 'images', size=8))
    scores = [r['neighbours'] for r in model.history_]
    kept = read_round(next((tmp_path / 'run/rounds').iterdir()))
    assert kept['acc'] == max(scores) and kept['epoch'] == 4 - scores[::-1].index(max(scores))


def test_the_score_counts_classes_that_are_known():
    y = np.array([0, 1] * 20 + [-1] * 10)
    rows = np.eye(2, dtype='f4')[np.maximum(y, 0)]
    c = ANDConfig(n_votes=3, temperature=.1)
    assert neighbour_score(rows, y, c) == 1 == neighbour_score(rows, y, replace(c, protocol='nn'))


# ---- what is refused


BAD = [
    (dict(rounds=0), 'rounds=0 is too small'),
    (dict(select_rate=1.5), 'select_rate=1.5 is too large'),
    (dict(select_rate=-.1), 'select_rate=-0.1 is too small'),
    (dict(n_neighbours=300), 'n_neighbours=300 of 300 samples; expected at most 299'),
    (dict(temperature=0), 'temperature=0'),
    (dict(memory_momentum=1), 'memory_momentum=1'),
    (dict(k_rule='guess'), 'k_rule'),
    (dict(lr_policy='cosine'), 'multistep'),
    (dict(lr_policy='multistep'), 'schedule'),
    (dict(lr_policy='multistep', lr_schedule='0:-'), 'ends every round before its first epoch'),
    (dict(nesterov=True, momentum=0), 'nesterov with momentum=0'),
    (dict(start_from='nowhere'), 'nowhere'),
    (dict(view_scale='wide'), "view_scale='wide'; expected numbers in brackets"),
    (dict(view_scale="__import__('os')"), 'expected numbers in brackets'),
    (dict(test_split='holdout'), 'holdout'),
    (dict(backbone='resnet19'), 'resnet19'),
    (dict(size='(8, 9)'), 'two equal numbers'),
    (dict(resume_from='nowhere'), 'nowhere is no run')]


@pytest.mark.parametrize('options, message', BAD, ids=str)
def test_bad_input_is_one_line_before_a_folder_is_made(options, message, digits, tmp_path):
    with pytest.raises(InputError, match=message) as e:
        AND(**QUICK | options, run_dir=tmp_path / 'run').fit(digits)
    assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_files_that_are_no_round_are_refused(finished, digits, tmp_path):
    (tmp_path / 'text.ckpt').write_text('hello')
    torch.save(dict(net={}, npc={}, ANs_discovery={}), tmp_path / 'empty.ckpt')
    small = load_checkpoint(finished.run_.folder / 'rounds/0002-00150.ckpt')
    small['net'] = dict(list(small['net'].items())[:3])
    torch.save(small, tmp_path / 'other.ckpt')
    for name, message in dict(text='text.ckpt', empty='empty.ckpt', other='3 tensors and this network').items():
        with pytest.raises(InputError, match=message): AND(**QUICK, start_from=tmp_path / f'{name}.ckpt').fit(digits)


def test_other_data_under_the_same_folder_are_refused(finished):
    with pytest.raises(InputError, match='belongs to another configuration'):
        AND(**QUICK, run_dir=finished.run_.folder, resume=True).fit(load('digits', limit=200))


def test_starting_from_a_run_of_another_method(digits, tmp_path):
    NMCE(dataset='digits', epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1, batch_size=100, device='cpu',
         backbone='smallconv(stride=2)', run_dir=tmp_path / 'nmce').fit(digits)
    model = AND(**QUICK, start_from=str(tmp_path / 'nmce'))
    model.prepare(digits)
    other = open_run(tmp_path / 'nmce', 'cpu').network_.backbone.state_dict()
    assert all(v.equal(other[k]) for k, v in model.network_.backbone.state_dict().items())


def test_epochs_of_published_rounds(): assert epochs_of_a_round(ANDConfig(**RECIPES['cifar10'])) == 200
def test_results_are_plain(finished): json.dumps(finished.results_)
