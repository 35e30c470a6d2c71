"""Parameters from YAML files, for every method: layers, what wins, what a run writes, and what is refused."""
import pytest
import yaml

from nmc_workbench import methods
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.sessions import layer_paths, read_layers, write_session
from nmc_workbench.data import load

METHODS = ['NMCE', 'NMC', 'SeLa', 'DeepCluster', 'AND']


def kinds(name): return getattr(methods, name), getattr(methods, f'{name}Config')


@pytest.mark.parametrize('name', METHODS)
def test_later_files_win_and_what_is_given_is_on_top(name, tmp_path):
    (tmp_path / 'base.yaml').write_text('epochs: 7\nbatch-size: 64\nseed: 3\n')
    (tmp_path / 'mine.yaml').write_text('epochs: 9\n')
    files = f'[{tmp_path}/base.yaml, {tmp_path}/mine.yaml]'
    kind, config = kinds(name)
    for made in (kind(cfgs=files, seed=0), config.from_names(dict(cfgs=files, batch_size=None))):
        assert (made.epochs, made.batch_size, made.cfgs) == (9, 64, None)
    assert kind(cfgs=files, seed=0).seed == 0 and config(cfgs=files).checked().seed == 3
    assert kind(cfgs=[tmp_path / 'base.yaml'], epochs=2).epochs == 2


@pytest.mark.parametrize('name', METHODS)
def test_a_run_writes_parameters_that_run_again(name, tiny_run):
    folder = tiny_run(dict(DeepCluster='deep_cluster', AND='anchors').get(name, name.lower()))
    kind, config = kinds(name)
    again = config(cfgs=str(folder / 'config.yaml')).checked()
    written = yaml.safe_load((folder / 'config.yaml').read_text())
    assert {'run_dir', 'resume', 'cfgs'}.isdisjoint(written) and written['epochs'] == again.epochs
    filled = {k: v for k, v in again.to_dict().items() if k in written}
    assert filled == written


def test_it_ends_as_the_first_run_did(tiny_run, tmp_path):
    import numpy as np
    first = tiny_run('anchors')
    again = methods.AND(cfgs=first / 'config.yaml').fit(load('digits', limit=120))
    assert np.array_equal(again.labels_, np.load(first / 'predictions.npy'))


BAD = dict(
    unknown=('epocs: 3', "unknown parameter 'epocs'; did you mean 'epochs'"),
    type=('epochs: many', "epochs='many' is a str; expected int"),
    nested=('lr: {a: 1}', 'expected a number, a word'),
    code=('lr: !!python/object/apply:os.system ["touch HERE"]', 'cannot be read as plain YAML'),
    tag=('lr: !thing 3', 'cannot be read as plain YAML'),
    twice=('epochs: 1\nepochs: 2', 'epochs stands there twice'),
    list=('- epochs', 'expected a parameter per line'),
    word=('epochs', 'expected a parameter per line'),
    broken=('epochs: [', 'cannot be read as plain YAML'),
    merged=('<<: *nothing', 'cannot be read as plain YAML'),
    itself=('cfgs: other.yaml', "unknown parameter 'cfgs'"),
    deep=('lr: ' + '[' * 5000, 'cannot be read as plain YAML'))


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('name', METHODS)
def test_what_is_refused(name, case, tmp_path):
    text, message = BAD[case]
    path, made = tmp_path / 'bad.yaml', tmp_path / 'made'
    path.write_text(text.replace('HERE', str(made)))
    with pytest.raises(InputError) as e: kinds(name)[0](cfgs=path).config_class(cfgs=str(path)).checked()
    assert message in str(e.value) and '\n' not in str(e.value) and not made.exists()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / 'large.yaml').write_text('# ' + 'a' * 2 ** 21)
    (tmp_path / 'latin.yaml').write_bytes(b'augment: \xe9\n')
    for name, message in dict(large='more than 1 MB', latin='not UTF-8', none='is no file').items():
        with pytest.raises(InputError, match=message): read_layers(tmp_path / f'{name}.yaml', ['augment'])
    with pytest.raises(InputError, match='is no file'): read_layers(tmp_path, ['augment'])
    for bad in (3, '[1, 2]', '[', [], ['']):
        with pytest.raises(InputError, match='cfgs'): layer_paths(bad)
    (tmp_path / 'empty.yaml').write_text('')
    assert read_layers(tmp_path / 'empty.yaml', ['augment']) == {}


def test_written_and_read_again(tmp_path):
    values = dict(lr=1e-5, name='on', text='3', flag=True, none=None, word='Grüße: # "a"')
    write_session(tmp_path / 'a.yaml', values)
    assert read_layers(tmp_path / 'a.yaml', list(values)) == values
