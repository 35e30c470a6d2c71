"""The method that the tutorial writes is at home everywhere: opened, compared, explored, resumed.

The code blocks of docs/pages/tutorials/own_method.md are run as they stand; nothing here is defined twice."""
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nmc_workbench.core.errors import InputError
from nmc_workbench.data import load
from nmc_workbench.evaluation import evaluate, extract
from nmc_workbench.evaluation.agreement import compare
from nmc_workbench.methods import NMC, NMCE
from nmc_workbench.methods.base import keeps_merge_tree, method_of, open_run, own_kind, registered
from nmc_workbench.runs.index import list_runs

PAGE = Path(__file__).parents[1] / 'docs/pages/tutorials/own_method.md'
OPTIONS = dict(limit=400, device='cpu')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "The tutorial's module, in the folder where its blocks were run."
    folder, patch = tmp_path_factory.mktemp('own'), pytest.MonkeyPatch()
    module = types.ModuleType('tutorial')
    patch.chdir(folder)
    patch.setitem(sys.modules, 'tutorial', module)
    blocks = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.S | re.M)
    exec(compile('\n\n'.join(blocks), 'tutorial', 'exec'), vars(module))
    yield module, folder / 'runs/contrast'
    patch.undo()
    from nmc_workbench.methods import base
    base._METHODS.pop('Contrast', None)


@pytest.fixture(scope='module')
def images(): return load('digits', limit=400)


def test_it_is_registered(home):
    module, folder = home
    assert registered()['Contrast'] is module.Contrast is method_of(folder)


def test_open_run(home, images):
    module, folder = home
    model = open_run(folder, 'cpu')
    assert type(model) is module.Contrast and (model.predict(images) == module.model.labels_).mean() > .99
    assert own_kind(model) == 'projection' and not keeps_merge_tree(folder)


def test_the_lists_of_runs_know_it(home):
    found = {r['method'] for r in list_runs(home[1].parent)}
    assert 'Contrast' in found


def test_features_and_evaluation(home, images):
    model = open_run(home[1], 'cpu')
    z = extract(model, images)
    assert np.allclose(z, model.embedding_ if hasattr(model, 'embedding_') else model.transform(images), atol=1e-5)
    with pytest.raises(InputError, match='Contrast'): extract(model, images, 'pool')
    found = evaluate(z[::2], images.labels[::2], z[1::2], images.labels[1::2], protocols=['knn'])
    assert found['knn']['knn_accuracy' if 'knn_accuracy' in found['knn'] else 'acc'] > .5


def test_as_an_encoder(home, images, tmp_path):
    "NMC stands on it, is saved with it, and opened again."
    few = images.limit(120)
    model = NMC(encoder=f'run:{home[1]}', dataset='digits', limit=120, epochs=2, batch_size=60,
                potential_hidden=16, embedding_dim=4, max_steps=5, device='cpu',
                run_dir=str(tmp_path / 'hills')).fit(few)
    again = open_run(tmp_path / 'hills', 'cpu')
    assert (again.predict(few) == model.labels_).mean() > .99


def test_the_explorer(home):
    pytest.importorskip('anywidget')
    from nmc_workbench.explore.explorer import Explorer
    explorer = Explorer(home[1], map_method='pca')
    assert 'Contrast' in explorer.run.title and explorer.ui is not None


def test_compare(home, images, tmp_path):
    module, folder = home
    module.Contrast(**OPTIONS, seed=1, run_dir=str(tmp_path / 'other')).fit(images)
    both = compare(folder, tmp_path / 'other')
    assert len(both) == 400 and both.table()['nmi'][0, 1] > .3


def test_the_persistence_page(home):
    pytest.importorskip('anywidget')
    from nmc_workbench.explore.persistence_lab import PersistenceLab
    lab = PersistenceLab.of_run(home[1], method='pca')
    lab.n_clusters = min(5, len(lab.tree.births))
    assert 'Contrast' in lab.picture().caption or lab.n_clusters > 0


def test_resume(home, images, tmp_path):
    "Interrupted and taken up again, it ends with the same bits."
    module, folder = home
    cut = module.Contrast(**OPTIONS, run_dir=str(tmp_path / 'cut'))
    cut.prepare(images).train(seconds=0)
    assert not (tmp_path / 'cut/model.pt').exists()
    resumed = module.Contrast(**OPTIONS, run_dir=str(tmp_path / 'cut'), resume=True).fit(images)
    assert (resumed.embedding_ == module.model.embedding_).all() and (resumed.labels_ == module.model.labels_).all()


def test_a_method_that_is_not_imported_is_named(home, tmp_path):
    from nmc_workbench.core.files import write_json
    write_json(tmp_path / 'config.json', dict(method='Elsewhere'))
    with pytest.raises(InputError,
                       match="unknown method 'Elsewhere'; known: .*NMCE.*Import the module that defines it"):
        open_run(tmp_path)


def test_nothing_outside_methods_asks_for_a_method_by_its_name():
    package = Path(__file__).parents[1] / 'nmc_workbench'
    asked = re.compile(r"""(==|!=|\bin\b)\s*\(?['"](NMCE|NMC|SeLa)['"]""")
    for path in package.rglob('*.py'):
        if 'methods' not in path.parts and path.name != '_modidx.py': assert not asked.search(path.read_text()), path


def test_a_private_base_is_no_method():
    class _Half(NMCE): pass
    assert '_Half' not in registered() and set(registered()) >= {'NMCE', 'NMC', 'SeLa'}
