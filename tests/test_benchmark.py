"The benchmark: baselines, the table that says who wins, what is done again and what is not, and the speedrun."
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nmc_workbench import cluster, methods
from nmc_workbench.core.config import convert
from nmc_workbench.core.errors import InputError
from nmc_workbench.data import as_images, load
from nmc_workbench.evaluation import baselines
from nmc_workbench.evaluation.baselines import BASELINES, baseline, not_installed, on_pixels, pixel_baselines
from nmc_workbench.metrics import accuracy
from nmc_workbench.sweeps.benchmark import METHODS, PIXELS, SETS, Benchmark, data_of, verdicts
from nmc_workbench.sweeps.grid import cells_of
from nmc_workbench.sweeps.worker import put_json, run_cell, state_of
from tests.sweep_toys import ROOT, STEPS, STEPS_PARAMETERS, notebook

sys.path.insert(0, str(ROOT / 'tools'))
import speedrun  # noqa: E402
import tables  # noqa: E402


# --- baselines


def blobs(n=240, d=5, k=3):
    "Three clouds far apart, and whose points are whose."
    y = np.arange(n) % k
    return (np.random.default_rng(0).normal(size=(n, d)) + 12 * np.eye(k, d)[y]).astype(np.float32), y


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow) if n == 'umap_kmeans' else n
                                  for n in BASELINES])
def test_every_baseline_finds_three_clouds(name):
    if said := not_installed(name): pytest.skip(said)
    x, y = blobs()
    found = baseline(name, x, 3)
    assert accuracy(y, found.labels) > .8 and found.labels.dtype == np.int64 and len(found.labels) == len(x)
    assert found.seconds > 0 and (found.memory_mb is None or found.memory_mb >= 0)
    assert found.n_clusters >= 3 and .5 < found.clustered <= 1
    assert np.array_equal(found.labels, baseline(name, torch.from_numpy(x), 3).labels)


@pytest.mark.parametrize('name', [n for n, b in BASELINES.items() if not b.finds_k])
def test_a_baseline_that_is_told_k_asks_for_it(name, monkeypatch):
    monkeypatch.setattr(baselines, 'not_installed', lambda name: '')
    for k in (None, 999):
        with pytest.raises(InputError, match='is told the number of clusters'): baseline(name, blobs()[0], k)


@pytest.mark.parametrize('name', [n for n, b in BASELINES.items() if b.needs])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, 'find_spec', lambda module: None)
    with pytest.raises(InputError, match=f'is not installed: pip install {BASELINES[name].needs[1]}$'):
        baseline(name, blobs()[0], 3)


def test_of_too_many_samples_some_are_clustered_and_the_others_follow():
    x, y = blobs(600)
    assert accuracy(y, baseline('kmeans', x, 3, at_most=60).labels) == 1
    with pytest.raises(InputError, match="baseline 'kmean'"): baseline('kmean', x, 3)


def test_the_memory_of_a_block_is_counted():
    with baselines.measured() as took: held = np.ones(2 ** 23)
    assert took.memory_mb is None or 50 < took.memory_mb < 200
    del held
    with baselines.measured() as took: pass
    assert took.memory_mb is None or took.memory_mb < 20        # what was freed does not count again


def test_pixel_baselines_without_umap_or_with_few_samples(monkeypatch):
    few = load('digits', limit=12)
    assert list(pixel_baselines(few, 10)) == ['kmeans_pixels']
    monkeypatch.setattr(baselines, 'not_installed', lambda name: 'not installed')
    assert list(pixel_baselines(load('digits', limit=60), 10)) == ['kmeans_pixels']


def test_pixels_reach_umap_between_0_and_1_and_only_labelled_ones_are_scored(monkeypatch):
    seen = []
    monkeypatch.setattr(baselines, 'not_installed', lambda name: '')
    monkeypatch.setattr(cluster, 'umap_rows', lambda x, seed: seen.append(x) or x)
    images = load('digits', limit=100)
    y = images.labels.clone().numpy()
    y[:30] = -1
    found = baselines.umap_baseline(as_images(images.pixels.numpy(), y), 10, at_most=80)
    assert seen[0].shape == (80, 64) and seen[0].max() == 1 and 0 < found['acc'] < 1


def test_runs_of_every_age_show_the_baselines_they_have():
    one = dict(acc=.8, nmi=.7, ari=.6)
    assert on_pixels({}) == on_pixels(dict(kmeans_pixels=None, umap_kmeans_pixels=dict(acc='x'))) == {}
    assert on_pixels(dict(kmeans_pixels=one)) == {'k-means on pixels': one}
    both = on_pixels(dict(umap_kmeans_pixels=one, kmeans_pixels=one, acc=.9))
    assert list(both) == ['k-means on pixels', 'UMAP + k-means on pixels']


def test_every_train_page_shows_both():
    pages = sorted((ROOT / 'nbs').glob('train_*.ipynb'))
    assert len(pages) >= 5
    for page in pages:
        code = '\n'.join(''.join(c['source']) for c in json.loads(page.read_text())['cells'])
        assert 'pixel_baselines(images' in code and 'on_pixels(baseline)' in code, page.name


# --- the benchmark


def finished(cell, seed, labels, y, encoder=None, **state):
    "A run as a train notebook and its sweep leave it."
    put_json(cell / 'cell.json', dict(notebook='n.ipynb', parameters=dict(seed=seed)))
    put_json(cell / 'state.json', dict(dict(status='done', memory_mb=700), **state))
    put_json(cell / 'run/results.json', dict(acc=1., seconds=10.))
    if encoder: put_json(cell / 'run_encoder/results.json', dict(seconds=encoder))
    rows = np.eye(10, dtype=np.float32)[y] + np.random.default_rng(seed).normal(0, .05, (len(y), 10)).astype(np.float32)
    for name, values in dict(predictions=labels, true_labels=y, embeddings=rows).items():
        np.save(cell / f'run/{name}.npy', values)


def row_of(benchmark, by, on=None, name='digits'):
    return next(r for r in benchmark.table() if (r['set'], r['by'], r['on']) == (name, by, on))


def test_a_killed_benchmark_does_only_what_is_missing(tmp_path):
    y, said = np.arange(100) % 10, []
    finished(tmp_path / 'runs/digits/nmc/aa', 0, np.where(y == 9, -1, y), y, encoder=5.)
    finished(tmp_path / 'runs/digits/nmc/bb', 1, y, y, status='failed', reason='the loss is no number')
    made = Benchmark(tmp_path, more=dict(limit=200), tell=said.append)
    made.run(['digits'], [], ['kmeans'], [0, 1])
    for _ in range(2): made.cluster('digits', 'NMC', 'kmeans', 0)
    assert len(said) == 3                                       # two seeds on pixels, one on the embedding
    again = Benchmark(tmp_path, more=dict(limit=200), tell=said.append)
    assert again.run(['digits'], [], ['kmeans'], [0, 1]) and again.cluster('digits', 'NMC', 'kmeans', 0) is None
    again.cluster('digits', 'NMC', 'kmeans', 1)                 # its run has failed
    assert len(said) == 3
    run, = row_of(again, 'NMC')['runs']
    assert run['acc'] == run['clustered'] == .9 and run['seconds'] == 15 and run['memory_mb'] == 700
    assert row_of(again, 'k-means', 'NMC')['runs'][0]['acc'] > .95
    assert len(row_of(again, 'k-means', PIXELS)['runs']) == 2


def test_a_baseline_is_done_again_where_the_run_is_another(tmp_path):
    y, said = np.arange(60) % 10, []
    finished(tmp_path / 'runs/digits/nmce/aa', 0, y, y)
    Benchmark(tmp_path, tell=said.append).cluster('digits', 'NMCE', 'kmeans', 0)
    (tmp_path / 'runs/digits/nmce/aa').rename(tmp_path / 'runs/digits/nmce/bb')
    Benchmark(tmp_path, tell=said.append).cluster('digits', 'NMCE', 'kmeans', 0)
    assert len(said) == 2 and len(json.loads((tmp_path / 'baselines.json').read_text())) == 1


def test_a_baseline_that_cannot_is_a_row_and_not_the_end(tmp_path, monkeypatch):
    def fail(*given): raise MemoryError('full')
    monkeypatch.setattr('nmc_workbench.sweeps.benchmark.baseline', fail)
    made = Benchmark(tmp_path, more=dict(limit=50), tell=lambda line: None)
    assert made.run(['digits'], [], ['kmeans'], [0]) and row_of(made, 'k-means', PIXELS)['missing'] == 'full'


def test_failed_and_missing_runs_say_so(tmp_path):
    y = np.zeros(9, int)
    finished(tmp_path / 'runs/digits/nmce/aa', 0, y, y, status='failed', reason='no memory')
    made = Benchmark(tmp_path)
    assert row_of(made, 'NMCE')['missing'] == 'failed: no memory' and row_of(made, 'SeLa')['missing'] == 'not run yet'
    assert not made.run(['digits'], ['NMCE'], ['kmeans'], [0], budget=-1)


def test_the_first_seed_comes_first_and_what_draws_nothing_once(tmp_path):
    steps = [(f.__name__, *what) for f, *what in Benchmark(tmp_path).steps(['digits'], ['NMCE'], ['kmeans', 'hdbscan'],
                                                                          [0, 1])]
    assert steps[:3] == [('cluster', 'digits', PIXELS, 'kmeans', 0), ('cluster', 'digits', PIXELS, 'hdbscan', 0),
                         ('train', 'digits', 'NMCE', 0)]
    assert steps.count(('cluster', 'digits', PIXELS, 'hdbscan', 1)) == 0 and steps[-1][-1] == 1


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('method', METHODS)
def test_every_cell_has_parameters_that_its_notebook_and_its_method_take(method, name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    e = METHODS[method]
    given = data_of(name, tmp_path) | e.always | e.on.get(name, {})
    cell, = cells_of(e.notebook, dict(seed=[0]), given | dict(device='cpu'))
    kind = getattr(methods, dict(nmce='NMCE', nmc='NMC', sela='SeLa', deepcluster='DeepCluster',
                                 **{'and': 'AND'})[cell.notebook.stem.removeprefix('train_')])
    if name == 'digits': return
    shape = dict(mnist=(1, 28, 28), coil20=(1, 32, 32), cifar10=(3, 32, 32))[name]
    y = np.arange(600) % SETS[name].n_classes
    images = as_images(np.random.default_rng(0).integers(0, 255, (600, *shape), dtype=np.uint8), y)
    known = {k: v for k, v in cell.parameters.items() if k not in ('data_dir', 'encoder')}
    filled = kind(**known).config(images)
    assert filled.recipe == known['recipe'] and all(getattr(filled, k) == convert(k, v, type(getattr(filled, k)))
                                                    for k, v in known.items())


def test_a_set_is_read_from_its_file_where_there_is_one(tmp_path):
    assert data_of('mnist', tmp_path) == dict(dataset='mnist', limit=10_000, data_dir=str(tmp_path))
    (tmp_path / 'mnist.npz').touch(), (tmp_path / 'cifar10').mkdir()
    assert data_of('mnist', tmp_path) == dict(dataset='npz', data_dir=str(tmp_path / 'mnist.npz'), limit=10_000)
    assert data_of('cifar10', tmp_path)['dataset'] == 'folder'
    with pytest.raises(InputError, match='data set of the benchmark'): data_of('minst')


def test_a_sweep_knows_the_memory_of_its_runs(tmp_path):
    path = notebook(tmp_path / 'toy.ipynb', STEPS_PARAMETERS, STEPS)
    put_json(tmp_path / 'cell/cell.json', dict(notebook=str(path), parameters=dict(seed=1, steps=12)))
    assert run_cell(path, tmp_path / 'cell') == 'done'
    memory = state_of(tmp_path / 'cell')['memory_mb']
    assert 10 < memory < 2000 if Path('/proc/self/status').is_file() else memory is None


# --- the table


def toy(by, on, *acc, k='given', missing='', name='digits'):
    runs = [dict(seed=i, acc=a, nmi=a, ari=a, n_clusters=10, clustered=1., seconds=9., memory_mb=None)
            for i, a in enumerate(acc)]
    return dict(set=name, by=by, on=on, k=k, runs=runs, missing=missing)


TABLE = [toy('NMCE', None, .95, .97), toy('SeLa', None, .6), toy('AND', None, missing='not run yet'),
         toy('UMAP + k-means', PIXELS, .88, .88), toy('k-means', PIXELS, .79), toy('k-means', 'NMCE', .94),
         toy('NMC', None, .5, .9, k='found'), toy('HDBSCAN', PIXELS, .6, k='found'),
         toy('EVoC', PIXELS, k='found', missing='not installed: pip install evoc')]


def test_wins_losses_and_what_is_level():
    given, found = verdicts(TABLE)
    assert given == ('1,797 digits, K given: the best baseline on pixels is UMAP + k-means (0.880); above it: NMCE '
                     '(0.960); below it: SeLa (0.600).')
    assert found.endswith('is HDBSCAN (0.600); level with it: NMC (0.700).') and verdicts([]) == []


def test_the_page_shows_the_best_in_bold_and_what_is_missing():
    record = dict(rows=TABLE, said=verdicts(TABLE), sets={'digits': '1,797 digits', 'mnist': 'MNIST'}, command='c',
                  date='d', cores=2, processor='p', python='3', versions={'torch': '2', 'torchvision': '1',
                                                                          'scikit-learn': '1'})
    page = tables.benchmark(record)
    assert '| NMCE | 2 | **0.960** ± 0.010 |' in page and page.index('| UMAP + k-means on pixels | 2 | 0.880') > 0
    assert '| AND |  | not run yet |' in page and '**MNIST**: not run yet.' in page
    assert '| EVoC on pixels |  | not installed: pip install evoc |' in page
    assert '| k-means | 0.790 | **0.940** |' in page and '- 1,797 digits, K given' in page
    assert all(len(line) <= 120 or line.startswith('|') for line in page.splitlines())


def test_records_made_before_have_no_column_for_umap():
    row = dict(seed=0, acc=.9, nmi=.8, ari=.7, seconds=60)
    record = dict(title='t', rows=[row], command='c', date='d', cores=2, processor='p', python='3',
                  versions={'torch': '2', 'torchvision': '1', 'scikit-learn': '1'}, kmeans_pixels=row)
    assert 'UMAP' not in tables.trained(record)
    assert '| ACC | 0.900 | 0.900 | 0.880 |' in tables.trained(record | dict(umap_kmeans_pixels=row | dict(acc=.88)))


# --- the speedrun


def test_a_speedrun_keeps_its_values_and_its_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, 'LOGS', tmp_path)
    speedrun.main(['--seeds', '0,1', '--more', 'epochs 1; cluster_epochs 1; finetune_epochs 1; n_init 1'])
    assert 'over 2 seeds, target 0.95 NOT reached' in capsys.readouterr().out
    text = next(tmp_path.glob('digits-*.txt')).read_text()
    assert Path(speedrun.__file__).read_text() in text and '"epochs": 1,' in text and '"seed": 1,' in text
    assert 'reached' in speedrun.said('mnist', [dict(acc=.96, minutes=4.)])


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_speedrun_without_its_gpu_is_refused_in_a_line(capsys):
    with pytest.raises(SystemExit) as e: speedrun.main(['--set', 'cifar10'])
    assert str(e.value) == 'speedrun: cifar10 takes one GPU, and this machine has none'
    with pytest.raises(SystemExit) as e: speedrun.main(['--more', 'epoks 1'])
    assert 'epoks' in str(e.value)
