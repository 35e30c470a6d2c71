"The train notebook as people run it: papermill from the root of the checkout."
import json
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest

from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
QUICK = dict(limit=300, batch_size=100, cluster_epochs=2, finetune_epochs=2, n_init=2, device='cpu')


def papermill(tmp_path, timeout=300, cwd=ROOT, **parameters):
    "Exit code, standard error and the finished notebook."
    out = tmp_path / 'out.ipynb'
    words = [w for k, v in parameters.items() for w in ('-p', k, str(v))]
    command = python('-m', 'papermill', str(ROOT / 'nbs/train_nmce.ipynb'), str(out), '--no-progress-bar')
    run = subprocess.run([*command, *words], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    return run.returncode, run.stderr, nbformat.read(out, as_version=4) if out.exists() else None


@pytest.mark.slow
def test_two_epochs_from_the_root(tmp_path):
    given = dict(epochs=2, run_dir=tmp_path / 'run', n_init=2, cluster_epochs=3, finetune_epochs=2)
    code, err, notebook = papermill(tmp_path, **given)
    assert code == 0, err[-2000:]
    assert all(c.metadata.papermill.status == 'completed' for c in notebook.cells)
    outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
    assert sum('image/png' in o.get('data', {}) for o in outputs) >= 8
    names = {p.name for p in (tmp_path / 'run').iterdir()}
    assert names >= {'config.json', 'provenance.json', 'metrics.jsonl', 'events',
                     'checkpoint.pt', 'representation.pt', 'cluster_heads.pt', 'fine_tune.pt', 'model.pt',
                     'results.json', 'predictions.npy', 'embeddings.npy', 'ids.npy', 'figures', 'map2d.npy'}
    assert np.load(tmp_path / 'run/predictions.npy').shape == (1797,)
    assert json.loads((tmp_path / 'run/config.json').read_text())['epochs'] == 2
    assert json.loads((tmp_path / 'run/results.json').read_text())['kmeans_pixels']['acc'] > .7

    from nmc_workbench.reports.summary import main
    main(str(tmp_path / 'out.ipynb'), str(tmp_path / 'run'))
    assert (tmp_path / 'out.html').stat().st_size > 1_000_000

    # the same command with resume: nothing left to train, the same results
    before = (tmp_path / 'run/model.pt').read_bytes()
    code, err, notebook = papermill(tmp_path, **given, resume='true')
    assert code == 0, err[-2000:]
    assert (tmp_path / 'run/model.pt').read_bytes() == before


@pytest.mark.slow
def test_without_run_dir_and_labels(tmp_path):
    "A folder of own images, unlabelled, run outside the checkout: the run folder is made under the current folder."
    from PIL import Image
    from sklearn.datasets import load_digits
    (tmp_path / 'pictures').mkdir()
    for i, image in enumerate(load_digits().images[:120]):
        Image.fromarray((image * 15.9).astype('uint8')).save(tmp_path / f'pictures/{i}.png')
    small = {**QUICK, 'limit': 'None', 'batch_size': 60}
    data = dict(dataset='folder', data_dir=tmp_path / 'pictures')
    code, err, notebook = papermill(tmp_path, cwd=tmp_path, **data, n_clusters=5, epochs=2, **small)
    assert code == 0, err[-2000:]
    [run] = (tmp_path / 'runs').iterdir()
    assert run.name.startswith('nmce_folder_seed0_') and 'acc' not in json.loads((run / 'results.json').read_text())
    assert list(np.load(run / 'ids.npy')[:2]) == ['0.png', '1.png']


BAD = {
    'unknown data set': (dict(dataset='minst'), "unknown data set 'minst'; did you mean 'mnist'?"),
    'unknown parameter': (dict(epoch=3), "unknown parameter 'epoch'; did you mean 'epochs'?"),
    'wrong type': (dict(epochs='many'), "epochs='many' is a str; expected int or None"),
    'out of range': (dict(n_clusters=1), 'n_clusters=1 is too small; expected at least 2'),
    'more clusters than images': (dict(limit=20, n_clusters=30), 'n_clusters=30 > n_samples=20'),
    'batch larger than the set': (dict(limit=50, batch_size=64), 'batch_size=64 > n_samples=50'),
    'device not there': (dict(device='cuda:7'), "device 'cuda:7' is not on this machine"),
    'data missing': (dict(dataset='npz', data_dir='nowhere.npz'), 'nowhere.npz does not exist'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, tmp_path):
    parameters, message = BAD[case]
    code, err, notebook = papermill(tmp_path, cwd=tmp_path, **parameters)
    assert code == 1
    last = [line for line in err.splitlines() if line.strip()][-1]
    assert last.startswith('InputError: ') and message in last
    error = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'error']
    assert len(error) == 1 and len(error[0].traceback) == 1 and '\n' not in error[0].traceback[0]
    assert not (tmp_path / 'runs').exists()
