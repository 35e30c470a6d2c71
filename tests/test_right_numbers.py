"""Numbers that mean what they seem to: evaluation of a run's own data, answers that do not depend on origin and unit,
notebooks that run again in one kernel."""
import json
import os
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_array, write_json
from nmc_workbench.data import as_images, load
from nmc_workbench.evaluation.agreement import compare
from nmc_workbench.evaluation.features import train_and_test
from nmc_workbench.evaluation.protocols import PROTOCOLS, EvaluateConfig, evaluate
from nmc_workbench.evaluation.probes import ProbeConfig
from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from nmc_workbench.methods import ANDConfig, DeepClusterConfig, NMCEConfig, NMCConfig, SeLaConfig
from nmc_workbench.methods.base import open_run
from nmc_workbench.methods.config import load_images
from nmc_workbench.metrics import accuracy
from nmc_workbench.runs.checkpoints import load_checkpoint
from nmc_workbench.runs.index import list_runs, newest_of_one_set, newest_run, run_choices, scores_table

ROOT = Path(__file__).parents[1]
SMALL = dict(backbone='smallconv(width=4, stages=2)', n_clusters=2, epochs=1, batch_size=12, device='cpu')
RUNS = dict(
    nmce=lambda **k: NMCE(**SMALL, hidden_dim=8, z_dim=8, cluster_epochs=1, finetune_epochs=1, n_init=1,
                          augment='cifar_byol(size=16)', **k),
    sela=lambda **k: SeLa(**SMALL, n_heads=1, n_label_updates=1, **k))


# ---- evaluation reads the run's own data


def pictures(root, classes, n=12, seed=0):
    rng = np.random.default_rng(seed)
    for c in classes:
        (Path(root) / c).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(root) / c / f'{i}.png')


@pytest.fixture(params=list(RUNS))
def made(request, tmp_path, monkeypatch):
    "A run on the folder `pictures`, and other images in the folder `data`, which is the default."
    monkeypatch.chdir(tmp_path)
    pictures('pictures', ['cat', 'dog'])
    pictures('data', ['left', 'right', 'top'])
    model = RUNS[request.param](dataset='folder', data_dir='pictures', size=16, run_dir='run')
    model.fit(load_images(model))
    return open_run('run', 'cpu')


def test_a_run_is_evaluated_on_its_own_data(made):
    train, test, _ = train_and_test(made.config_)
    assert train.class_names == test.class_names == ['cat', 'dog'] and len(train) + len(test) == 24
    assert {p.split('/')[0] for p in [*train.ids, *test.ids]} == {'cat', 'dog'}
    assert len(train_and_test(made.config_, limit=8)[0]) == 4
    shutil.move('pictures', 'elsewhere')
    assert train_and_test(made.config_, 'elsewhere')[0].class_names == ['cat', 'dog']


def refused(config, data_dir=None, **options):
    with pytest.raises(InputError) as e: train_and_test(config, data_dir, **options)
    assert '\n' not in str(e.value) and 'root=' not in str(e.value) and 'data_dir' in str(e.value)
    return str(e.value)


def test_data_that_are_gone_or_differ_are_refused(made):
    assert 'not what the run was fitted to' in refused(made.config_, 'data')
    Image.new('RGB', (16, 16)).save('pictures/cat/0.png')                       # one image is another
    assert 'not what the run was fitted to' in refused(made.config_)
    assert 'not what the run was fitted to' in refused(made.config_, limit=8)
    shutil.rmtree('pictures')
    assert 'data_dir=pictures' in refused(made.config_)


def test_a_run_on_arrays_is_not_evaluated_on_the_default_data_set(tmp_path):
    NMC(device='cpu', epochs=2, run_dir=tmp_path / 'run').fit(groups()[0], groups()[1])
    assert 'fitted to arrays' in refused(open_run(tmp_path / 'run').config_)


@pytest.mark.parametrize('page', ['evaluate', 'probe_layers'])
def test_the_page_reads_the_data_of_the_run(made, page):
    "The cells up to where data are read, as the notebook has them."
    nb = nbformat.read(ROOT / f'nbs/{page}.ipynb', 4)
    space = {}
    for cell in (c.source for c in nb.cells if c.cell_type == 'code' and 'IN_TEST' not in c.source):
        if 'tags' in cell: continue
        exec(cell, space)
        if 'run_dir:' in cell: space |= dict(run_dir='run', device='cpu')
        if 'train_and_test(model' in cell: break
    assert space['train'].class_names == ['cat', 'dog']


# ---- origin, unit and axes


def groups(n=20, d=2):
    "Three clear groups, and which sample is in which."
    rng = np.random.default_rng(0)
    centres = np.zeros((3, d))
    centres[1, :2], centres[2, 0] = (5, 5), 9
    x = np.repeat(centres, n, 0) + .3 * rng.normal(size=(3 * n, d))
    return x.astype('f4'), np.repeat(range(3), n)


def turned(x):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(x.shape[1],) * 2))[0]
    return x @ turn


CHANGES = {
    'moved by 10': lambda x: x + 10,
    'moved by -100': lambda x: x - 100,
    'moved along one axis': lambda x: x + 50 * np.eye(x.shape[1])[0],
    'times 100': lambda x: x * 100,
    'times 0.001': lambda x: x * 1e-3,
    'times a million': lambda x: x * 1e6,
    'turned': turned,
    'all of it': lambda x: 30 * turned(x) + 500}


FIT = {2: (20, {}), 8: (60, dict(epochs=300)), 20: (60, {})}      # dimension: samples per group, parameters
CASES = [(2, change) for change in CHANGES] + [(d, change) for d in (8, 20) for change in ('moved by 10', 'all of it')]
AS_IT_IS = {}


def fitted(d, change=lambda x: x):
    n, parameters = FIT[d]
    x, y = groups(n, d)
    x = change(x).astype('f4')
    return NMC(encoder='features', device='cpu', **parameters).fit(x, y), x


@pytest.mark.parametrize('d, change', CASES)
def test_nmc_finds_the_same_groups(d, change):
    if d not in AS_IT_IS: AS_IT_IS[d] = fitted(d)[0]
    as_it_is, (model, z) = AS_IT_IS[d], fitted(d, CHANGES[change])
    assert model.n_clusters_ == as_it_is.n_clusters_ and accuracy(as_it_is.labels_, model.labels_) == 1
    if d < 20: assert model.n_clusters_ == 3 and model.results_['acc'] == 1
    assert (model.predict(z) == model.labels_).all() and np.allclose(model.transform(z), model.embedding_, atol=1e-5)
    if d < 20 and change not in ('turned', 'all of it'):
        assert np.allclose(model.embedding_, as_it_is.embedding_, atol=1e-4)


def test_nmc_keeps_origin_and_unit_with_the_model(tmp_path):
    x, y = groups()
    x = 1e-3 * x + 7
    model = NMC(device='cpu', epochs=100, run_dir=tmp_path / 'run').fit(x, y)
    opened = open_run(tmp_path / 'run', 'cpu')
    assert np.array_equal(opened.transform(x), model.embedding_) and np.array_equal(opened.predict(x), model.labels_)
    assert abs(model.embedding_.mean(0)).max() < 1e-2 and model.embedding_.std() == pytest.approx(1, abs=.3)
    again = NMC(device='cpu', epochs=100, run_dir=tmp_path / 'run', resume=True).fit(x, y)
    assert np.array_equal(again.embedding_, model.embedding_)
    assert json.loads((tmp_path / 'run/config.json').read_text())['standardised'] is True
    assert {'centre', 'spread'} <= load_checkpoint(tmp_path / 'run/nmc_model.pt').keys()


def test_nmc_of_an_older_version_takes_arrays_as_they_are():
    model = open_run(ROOT / 'tests/saved_runs/nmc_points', 'cpu')
    x = np.load(ROOT / 'tests/saved_runs/points.npy')
    assert model.standard_ is None and np.allclose(model.transform(x), x)
    seed = NMC(recipe='seed', encoder='features', device='cpu', epochs=1, normalise=False, train_projection=False)
    assert np.allclose(seed.fit(x).transform(x), x)


def test_nmc_takes_the_strong_views_in_the_same_unit():
    x, y = groups()
    model = NMC(device='cpu', epochs=60).fit(100 * x + 500, y, X_aug=100 * (x + .01) + 500)
    assert model.results_['Stability@Assign'] == 1


TRAINED = dict(
    NMCE=(NMCE, dict(n_clusters=3, epochs=60, cluster_epochs=30, finetune_epochs=5)),
    SeLa=(SeLa, dict(n_clusters=3, epochs=60)),
    DeepCluster=(DeepCluster, dict(n_clusters=3, epochs=30)),
    AND=(AND, dict(n_clusters=3, rounds=2, epochs=30)))


@pytest.mark.parametrize('method', TRAINED)
@pytest.mark.parametrize('change', CHANGES)
def test_networks_on_points_find_the_same_groups(method, change):
    (kind, parameters), (x, y) = TRAINED[method], groups()
    z = CHANGES[change](x).astype('f4')
    model = kind(device='cpu', **parameters).fit(z, y)
    assert model.results_['acc'] == 1 and model.n_clusters_ == 3
    assert (model.predict(z) == model.labels_).all() and np.allclose(model.transform(z), model.embedding_, atol=1e-5)


@pytest.mark.parametrize('method', TRAINED)
def test_origin_and_unit_of_points_are_kept_with_the_model(method, tmp_path):
    (kind, parameters), (x, y) = TRAINED[method], groups()
    x = 1e-3 * x + 7
    model = kind(device='cpu', run_dir=tmp_path / 'run', **parameters).fit(x, y)
    opened = open_run(tmp_path / 'run', 'cpu')
    assert np.array_equal(opened.transform(x), model.embedding_) and np.array_equal(opened.predict(x), model.labels_)
    assert json.loads((tmp_path / 'run/config.json').read_text())['standardised'] is True
    some = opened.predict(x[:7])                    # the origin is that of the fit, not that of what is asked
    assert np.array_equal(some, model.labels_[:7])


@pytest.mark.parametrize('method', TRAINED)
def test_a_run_that_took_points_as_they_are_goes_on_so(method, tmp_path):
    (kind, parameters), (x, y) = TRAINED[method], groups()
    fit = dict(device='cpu', run_dir=tmp_path / 'run', **parameters)
    kind(**fit).fit(x, y)
    written = json.loads((tmp_path / 'run/config.json').read_text())
    del written['standardised']
    (tmp_path / 'run/config.json').write_text(json.dumps(written))
    assert kind(**fit, resume=True).prepare(x, y).batches.augment.standard is None


def test_the_spiral_keeps_its_unit():
    images = load('spiral', n=300)
    assert NMCE(dataset='spiral', device='cpu', epochs=1).fit(images).standard_ is None


def test_an_encoder_on_points_takes_them_in_its_own_unit(tmp_path):
    x, y = groups()
    kind, parameters = TRAINED['NMCE']
    inner = kind(device='cpu', run_dir=tmp_path / 'run', **parameters).fit(100 * x + 50, y)
    outer = NMC(encoder=f'run:{tmp_path}/run', encoder_kind='subspace', device='cpu', epochs=1, cache_embeddings=False)
    trainer = outer.prepare(100 * x + 50, y)
    features = torch.cat([f for _, f in trainer.batches.plain()])
    assert np.allclose(features, inner.transform(100 * x + 50), atol=1e-5)
    trainer.train()
    outer.finish()
    outer.save(tmp_path / 'outer.pt')
    assert np.array_equal(NMC.load(tmp_path / 'outer.pt', 'cpu').transform(100 * x + 50), outer.embedding_)


# ---- recipes for arrays, and the last batch


ARRAYS = {(2,): 'mlp', (40,): 'mlp', (1, 8, 8): 'smallconv(stride=2)', (1, 28, 28): 'smallconv(stride=2)',
          (3, 32, 32): 'smallconv(width=24, stride=2, stages=3)', (3, 96, 96): 'alexnet'}


@pytest.mark.parametrize('shape', ARRAYS, ids=str)
def test_sela_takes_a_recipe_by_the_shape_of_an_array(shape):
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    x = x.astype('f4') if len(shape) == 1 else x
    config = SeLa(n_clusters=3, device='cpu').config(as_images(x))
    assert config.backbone == ARRAYS[shape]
    assert shape != (3, 32, 32) or config.augment == 'sela_cifar(size=32)'


@pytest.mark.parametrize('n', [40, 41, 42, 61])
@pytest.mark.parametrize('augment', ['coil', None])
def test_sela_takes_any_number_of_samples(n, augment, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    given = dict(n_clusters=3, n_heads=2, epochs=1, n_label_updates=1, batch_size=20, device='cpu', augment=augment)
    model = SeLa(backbone='resnet10imgs', run_dir=tmp_path / 'run', **given).fit(x)
    assert model.labels_.shape == (n,) and np.isfinite(model.embedding_).all()


@pytest.mark.parametrize('size', [2, 3, 20, 40])
@pytest.mark.parametrize('kind', [NMCE, NMC, SeLa, DeepCluster, AND], ids=lambda k: k.__name__)
def test_every_method_takes_every_batch_size(kind, size):
    x, y = groups(7)                                # 21 points: a last batch of one for 2 and for 20
    small = dict(epochs=1, device='cpu', batch_size=min(size, 21)) | (dict(n_clusters=3) if kind is not NMC else {})
    more = dict(NMCE=dict(cluster_epochs=1, finetune_epochs=1), SeLa=dict(n_label_updates=1)).get(kind.__name__, {})
    if size > 21: small['batch_size'] = None
    assert kind(**small, **more).fit(x, y).labels_.shape == (21,)


def test_batches_of_one_are_refused_where_the_network_normalises_them(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    for kind in (NMCE, SeLa):
        with pytest.raises(InputError, match='n_clusters|batch'):
            kind(n_clusters=2, device='cpu', run_dir=tmp_path / kind.__name__).fit(x)
        assert not (tmp_path / kind.__name__).exists()


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_protocols_do_not_depend_on_origin_and_unit(protocol, change):
    x, y = groups(30, 6)
    x = x + np.random.default_rng(3).normal(size=x.shape) * .7
    options = dict(n_components=2, probe_epochs=20, k=5, gamma=20., device='cpu')
    def numbers(x):
        found = evaluate(x[::2], y[::2], x[1::2], y[1::2], [protocol], (x, y), **options)[protocol]
        return {k: v for k, v in found.items() if k not in ('seconds', 'scored_on')}
    assert numbers(CHANGES[change](x)) == pytest.approx(numbers(x), abs=.03 if protocol == 'linear_probe' else 1e-6)


def test_features_on_a_sphere_keep_their_origin():
    from nmc_workbench.metrics import nearest_subspace_accuracy
    x, y = groups(30, 6)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    options = dict(n_components=2, device='cpu')
    def svd(x): return evaluate(x[::2], y[::2], x[1::2], y[1::2], ['nearest_subspace'], **options)['nearest_subspace']
    assert svd(x)['acc'] == svd(40 * x)['acc'] == nearest_subspace_accuracy(x[::2], y[::2], x[1::2], y[1::2], 2, 'svd')


# ---- all cells again, in one kernel


CONFIGS = dict(train_nmc=NMCConfig, train_nmce=NMCEConfig, train_sela=SeLaConfig, evaluate=EvaluateConfig,
               train_deepcluster=DeepClusterConfig, train_and=ANDConfig, probe_layers=ProbeConfig)
OWN = dict(baseline=dict(acc=.5), scored=True, folder='runs/x', curves=[('loss', ['loss'])], rows=[], n=3)


class Kernel:
    "Runs cells as a kernel does: one namespace, and the cells in `In`."
    def __init__(self, page):
        self.page, self.space = page, dict(In=[''], Out={})
        nb = nbformat.read(ROOT / f'nbs/{page}.ipynb', 4)
        code = [c for c in nb.cells if c.cell_type == 'code']
        self.parameters = next(c.source for c in code if 'parameters' in c.metadata.get('tags', []))
        self.reads = next(c.source for c in code if 'from_names(' in c.source)
        self.later = [c.source for c in code[2:]]

    def run(self, cell):
        self.space['In'].append(cell)
        exec(cell, self.space)

    def all(self, *injected):
        "All cells: those after the parameters only bind what the notebook binds, and are not computed."
        for cell in (self.parameters, *injected, self.reads): self.run(cell)
        self.space['In'] += self.later
        self.space |= OWN
        return self.space['config']


@pytest.fixture(params=list(CONFIGS))
def kernel(request): return Kernel(request.param)


def test_all_cells_again_take_the_changed_values(kernel):
    assert kernel.all('# Parameters\nseed = 3').seed == 3
    assert kernel.all('# Parameters\nseed = "4"').seed == 4
    kernel.parameters = kernel.parameters.replace('seed: int = 0', 'seed: int = 5')
    assert kernel.all().seed == 5
    kernel.run('seed = 6')                          # a cell of the user's own, then the second cell alone
    kernel.run(kernel.reads)
    assert kernel.space['config'].seed == 6


@pytest.mark.parametrize('typo', ['sede = 1', '# Parameters\nsede = 1', 'sede: int = 1  # mine', 'seed = 1; sede = 2'])
def test_a_misspelled_parameter_is_refused_in_every_run(kernel, typo):
    for _ in range(2):
        with pytest.raises(InputError, match="unknown parameter 'sede'; did you mean 'seed'"): kernel.all(typo)
        del kernel.space['sede']
        kernel.all()
    kernel.parameters += '\nsede: int = 1'
    with pytest.raises(InputError, match="unknown parameter 'sede'"): kernel.all()


def test_a_corrected_name_is_forgotten(kernel):
    with pytest.raises(InputError, match="'sede'"): kernel.all('sede = 1')
    assert kernel.all('seed = 1').seed == 1


@pytest.mark.parametrize('page, alias, name', [('train_nmc', 'save_dir', 'run_dir'), ('train_sela', 'hc', 'n_heads')])
def test_aliases_in_a_second_run(page, alias, name):
    kernel, (one, two) = Kernel(page), ('3', '4')
    assert str(getattr(kernel.all(f'{alias} = "{one}"'), name)) == one
    assert str(getattr(kernel.all(f'{alias} = "{two}"'), name)) == two
    assert getattr(kernel.all(), name) is None      # the cell with the alias is gone, and what it said with it


def test_names_without_a_kernel_are_all_checked():
    with pytest.raises(InputError, match='unknown parameter'): NMCConfig.from_names(OWN)


# ---- what shares a mean


def a_run(root, name, seed=0, acc=.5, finished=True, **config):
    "The folder of a run with scores, made after the ones before."
    folder = root / name
    write_json(folder / 'config.json', dict(method='NMCE', dataset='digits', seed=seed, data='d', epochs=5) | config)
    if finished:
        write_json(folder / 'results.json', dict(acc=acc, nmi=acc, ari=acc, n_clusters=3, seconds=1.))
        for file, array in dict(predictions=np.arange(4) % 2, embeddings=np.eye(4), ids=np.array(list('abcd'))).items():
            write_array(folder / f'{file}.npy', array)
    os.utime(folder / 'config.json', (len(os.listdir(root)), len(os.listdir(root))))
    return str(folder)


OTHERS = [dict(data='e'), dict(n_clusters=4), dict(limit=100), dict(train_limit=100), dict(epochs=6), dict(size=16),
          dict(split='test'), dict(lr=.1), dict(recipe='small'), dict(dataset='mnist'), dict(method='SeLa')]


@pytest.mark.parametrize('other', OTHERS, ids=str)
def test_runs_that_differ_in_more_than_the_seed_share_no_mean(tmp_path, other):
    for seed in range(2): a_run(tmp_path, f'{seed}', seed, .8 + .1 * seed)
    a_run(tmp_path, 'other', 2, .1, **other)
    rows = {r['seeds']: r for r in scores_table(tmp_path)}
    assert rows.keys() == {1, 2} and rows[2]['acc'] == pytest.approx(.85) and rows[2]['acc_std'] == pytest.approx(.05)
    assert rows[1]['acc'] == .1 and rows[1]['acc_std'] is None and rows[1]['note'] == 'one run, no spread'
    named = [tuple(row[k] for k in ('method', 'dataset', 'recipe')) for row in rows.values()]
    assert len(set(named)) == 2


@pytest.mark.parametrize('where', [dict(device='cuda'), dict(num_workers=3), dict(run_dir='x'), dict(data_dir='y')],
                         ids=str)
def test_where_a_run_computes_makes_no_other_row(tmp_path, where):
    for seed in range(2): a_run(tmp_path, f'{seed}', seed, **where if seed else {})
    assert [r['seeds'] for r in scores_table(tmp_path)] == [2]


@pytest.mark.parametrize('part', ['1_encoder', '1/encoder', '1.previous', '1.previous/encoder'])
def test_a_part_of_a_run_is_no_run(tmp_path, part):
    for seed in range(2): a_run(tmp_path, f'{seed}', seed)
    a_run(tmp_path, part, 5, .1)
    assert len(list_runs(tmp_path)) == len(run_choices(tmp_path)) == 2 and scores_table(tmp_path)[0]['seeds'] == 2
    assert newest_run(tmp_path) == str(tmp_path / '1') and len(newest_of_one_set(tmp_path)) == 2
    assert [r['folder'] for r in list_runs(tmp_path / part)] == [str(tmp_path / part)]      # asked for by name


def test_a_run_that_only_lies_below_a_foreign_config_counts(tmp_path):
    a_run(tmp_path, 'mine/a')
    for name in ('config.json', 'mine/config.json'): (tmp_path / name).write_text('{"editor": 1}')
    assert str(tmp_path / 'mine/a') in [r['folder'] for r in list_runs(tmp_path)]


def test_a_run_that_was_kept_is_no_second_seed(tmp_path):
    kept, new, other = a_run(tmp_path, 'a.kept', 0, .2), a_run(tmp_path, 'a', 0, .8), a_run(tmp_path, 'b', 1, .6)
    row, = scores_table(tmp_path)
    assert row['seeds'] == 2 and row['acc'] == pytest.approx(.7)
    assert newest_of_one_set(tmp_path) == [other, new] and kept in [r['folder'] for r in list_runs(tmp_path)]
    shutil.rmtree(other)
    assert scores_table(tmp_path)[0]['acc_std'] is None and newest_of_one_set(tmp_path) == []


def test_seeds_with_encoders_of_their_own_share_a_mean(tmp_path):
    for seed in range(2):
        folder = tmp_path / f'{seed}'
        a_run(tmp_path, f'{seed}', seed, method='NMC', run_dir=str(folder), encoder=f'run:{folder}_encoder')
        a_run(tmp_path, f'{seed}_encoder', seed)
    assert [(r['method'], r['seeds']) for r in scores_table(tmp_path)] == [('NMC', 2)]


def test_runs_on_other_data_are_not_compared(tmp_path):
    a, b = a_run(tmp_path, 'a'), a_run(tmp_path, 'b', 1)
    assert len(compare(a, b)) == 4                                              # the same ids, and the same data
    for name, change in dict(arrays=dict(data='e'), split=dict(data='e', split='test')).items():
        other = a_run(tmp_path, name, 1, **change)
        with pytest.raises(InputError, match='was fitted to other data than') as e: compare(a, other)
        assert '\n' not in str(e.value) and other in str(e.value)
    small, large = (tmp_path / f'{n}' for n in (100, 200))
    for folder in (small, large):
        SeLa(dataset='digits', limit=int(folder.name), **SMALL, n_heads=1, n_label_updates=1, run_dir=folder).fit(
            load_images(SeLaConfig(limit=int(folder.name))))
    assert len(compare(small, large)) > 0 and newest_of_one_set(tmp_path / '100') == []
