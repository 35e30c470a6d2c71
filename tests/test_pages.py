"""The pages of the docs: their code runs as written, their options and names exist, their numbers come from records.

The Python blocks of a page run in order in one namespace, in a folder of their own. Of the commands, targets of make
are looked up; for papermill every parameter is looked up and every value is checked by the method's configuration.
Commands that need neither a GPU nor data that are not here are run, with the notebooks' small path (IN_TEST)."""
import ast
import importlib.util
import inspect
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from nmc_workbench.data import catalog as data
from nmc_workbench import methods
from nmc_workbench.nets import backbones
from nmc_workbench.nets.deep_cluster import NETWORKS
from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

PAGES = sorted((ROOT / 'docs/pages').rglob('*.md'))
RUN = [p for p in PAGES if p.parent.name in ('tutorials', 'howto') or p.stem in ('home', 'quickstart')]
TARGETS = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
EXTRAS = re.findall(r"'(\w+)'", re.search('^extras = .*', (ROOT / 'setup.py').read_text(), re.M)[0])
WITH_COMMANDS = {'own_images'}      # its commands run between its blocks: tests/test_own_images.py
name = lambda p: p.relative_to(ROOT / 'docs/pages').as_posix()
FLAGS = sorted((ROOT / 'docs/records').glob('flags_*.json'))


def read(path): return (ROOT / 'docs/pages' / path).read_text(encoding='utf-8')
def unwrapped(text): return re.sub(r'\s+', ' ', text)
def blocks(path, language): return re.findall(rf'^```{language}\n(.*?)^```', read(path), re.S | re.M)
def config(method): return next(v for k, v in vars(methods).items() if k.lower() == f'{method}config')
def recipes(method): return importlib.import_module(f'nmc_workbench.methods.{folder(method)}.config').RECIPES
def folder(method):
    "The folder of a method whose notebook is train_<method>.ipynb."
    kind = config(method).__module__
    return kind.split('.')[-2]


def parameters(notebook):
    cells = json.loads((ROOT / notebook).read_text(encoding='utf-8'))['cells']
    source = next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
    return {n.target.id for n in ast.parse(source).body if isinstance(n, ast.AnnAssign)}


def commands(path):
    "The command lines of a page, continued lines joined; of a loop, the line inside."
    lines = [line for b in blocks(path, 'bash') for line in re.sub(r'\\\n\s*', '', b).splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith(('for ', 'done'))]


def execute(code, folder, monkeypatch):
    "Code in a module of its own, in a folder of its own."
    monkeypatch.chdir(folder)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    page = types.ModuleType('page')
    monkeypatch.setitem(sys.modules, 'page', page)
    exec(compile(code, 'page', 'exec'), vars(page))


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in RUN if blocks(p, 'python') and p.stem not in WITH_COMMANDS], ids=name)
def test_python_blocks_run_as_written(path, tmp_path, monkeypatch):
    execute('\n\n'.join(blocks(path, 'python')), tmp_path, monkeypatch)


@pytest.mark.parametrize('path', [p for p in PAGES if blocks(p, 'bash')], ids=name)
def test_commands_exist(path):
    "Targets of make, notebooks, every parameter that is set, and its value; words for packs, and extras."
    for line in commands(path): check_command(line)


README = (ROOT / 'README.md').read_text(encoding='utf-8')
README_COMMANDS = [re.split(r'\s+#', line.strip())[0] for line in re.sub(r'\\\n\s*', '', README).splitlines()
                   if re.match('    (make|papermill|python) ', line)]


@pytest.mark.parametrize('line', README_COMMANDS)
def test_the_commands_of_the_readme(line): check_command(line)


def check_command(line):
    words = shlex.split(line)
    if words[0] == 'make': assert words[1] in TARGETS, line
    elif words[0].endswith('papermill'): check_papermill(words)
    elif words[1:3] == ['-m', 'nmc_workbench.data']: check_pack(words[3:])
    elif words[1:3] == ['-m', 'nmc_workbench.sweeps']: check_sweep(words[3:])
    elif words[0].endswith('pip'): assert re.search(r'\[(\w+)\]', line)[1] in EXTRAS, line
    else: assert words[0].endswith('torchrun'), line


def check_sweep(words):
    assert {words[i + 1] for i, w in enumerate(words) if w in ('-p', '-f')} <= parameters(words[0]), words


def check_pack(words):
    from nmc_workbench.data.__main__ import _parser
    dataset = _parser().parse_args(words).dataset
    assert dataset in data.names() or dataset.startswith('hf:'), words


def check_papermill(words):
    given = {words[i + 1]: yaml.safe_load(words[i + 2]) for i, w in enumerate(words) if w == '-p'}
    assert words[2].endswith('.ipynb') and set(given) <= parameters(words[1]), words
    if 'train_' not in words[1]: return
    method = Path(words[1]).stem.removeprefix('train_')
    filled = config(method)(**{k: v for k, v in given.items() if v != '$seed'}).checked()
    assert filled.dataset in data.names() or filled.dataset.startswith('hf:')
    assert given.get('recipe') in {None, *recipes(method)}


def runs_here(line):
    "Whether a command of papermill needs no data but what is here, and writes where the test looks."
    return 'papermill' in line and re.search(r'-p dataset (digits|folder)', line) and not re.search(r'run_dir|\$', line)


SHORT = [(p, line) for p in RUN for line in commands(p) if runs_here(line)]


@pytest.mark.slow
@pytest.mark.parametrize('path, line', SHORT, ids=[f'{name(p)}-{shlex.split(line)[1]}' for p, line in SHORT])
def test_papermill_commands_run(path, line, tmp_path, monkeypatch):
    "In a folder where the page's first block has made the data."
    if 'data_dir' in line: execute(blocks(path, 'python')[0], tmp_path, monkeypatch)
    tmp_path.joinpath('runs').mkdir(exist_ok=True)
    words = shlex.split(line)
    words[:2] = *python('-m', 'papermill'), str(ROOT / words[1])
    done = subprocess.run([*words, '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'IN_TEST': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / shlex.split(line)[2]).is_file()


@pytest.mark.slow
def test_the_script_for_several_devices(tmp_path):
    "As the quick start has it, on two processes without a GPU."
    script = next(b for b in blocks(ROOT / 'docs/pages/quickstart.md', 'python') if 'init_process_group' in b)
    small = dict(dataset='digits', limit=200, batch_size=100, device='cpu', run_dir='run')
    short = dict(epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1)
    (tmp_path / 'train.py').write_text(f"{script}\nmain('gloo', **{small | short!r})\n")
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torchrun = str(Path(sys.executable).with_name('torchrun'))
    done = subprocess.run([torchrun, '--nproc_per_node', '2', '--master_port', str(port), 'train.py'], cwd=tmp_path,
                          capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'run/results.json').is_file()


@pytest.mark.parametrize('record', FLAGS, ids=lambda p: p.stem)
def test_every_option_of_the_originals(record):
    "It is on the page, and what stands for it exists."
    page, scripts = read('coming_from.md'), json.loads(record.read_text())['scripts']
    page = page[page.index(f'<!-- bench:{record.stem} -->'):].split('<!-- /bench -->')[0]
    here = config(record.stem.removeprefix('flags_'))
    known = {f.name for f in fields(here)}
    for script, rows in scripts.items():
        part = page.split(f'**{script}**')[1].split('**')[0] if len(scripts) > 1 else page
        for r in rows:
            assert f'| `{r["flag"]}` |' in part
            kind, _, rest = r['ours'].partition(':')
            if r['ours'] == '-': assert r['note'], f'{script} {r["flag"]} is left out without a word'
            elif kind == 'function':
                module, function, parameter = re.match(r'([\w.]+)\.(\w+):(\w+)', rest).groups()
                found = getattr(importlib.import_module(f'nmc_workbench.{module}'), function)
                assert parameter in inspect.signature(found).parameters, r
            elif rest: assert rest in parameters(f'nbs/{kind}.ipynb'), r
            else:
                assert r['ours'] in known, r
                assert here.aliases.get(r['flag'].strip('-').replace('-', '_'), [r['ours']])[0] == r['ours'], r


def test_the_lists_are_whole():
    "As many options as the specifications of the originals count, script by script."
    counted = {s: len(v) for record in FLAGS for s, v in json.loads(record.read_text())['scripts'].items()}
    assert counted == {'train_selfsup.py': 24, 'train_clustering.py': 24, 'evaluate.py': 32, 'convert_imgs.py': 2,
                       'options': 21, 'main.py': 23, 'cifar.py': 16, 'eval_linear_probes.py': 14, 'eval_resnet.py': 14,
                       'retrain_with_rotnet.py': 19, 'main.py of DeepCluster': 51,
                       'main.py of AND': 54}


PACKAGE = ROOT / 'nmc_workbench'
ROOMS = {p.name for p in PACKAGE.iterdir() if (p / '__init__.py').is_file()}
MATHEMATICS = {p.stem for p in PACKAGE.glob('[a-z]*.py')}
SUFFIXES = 'py ipynb json yaml ckpt npy csv pt sh jsonl bin svg png'.split()


def resolved(words):
    "What `nmc_workbench.first.second...` is: a module, a name in it, or a name in one of its classes; else None."
    value = importlib.import_module('nmc_workbench')
    for word in words: value = value and below(value, word)
    return value


def below(value, word):
    "The module, the attribute, or the attribute of a class in the module that `word` names; None where there is none."
    if not isinstance(value, types.ModuleType): return getattr(value, word, None)
    if hasattr(value, '__path__') and importlib.util.find_spec(f'{value.__name__}.{word}'):
        return importlib.import_module(f'{value.__name__}.{word}')
    classes = [v for v in vars(value).values() if isinstance(v, type)]
    return next((getattr(v, word) for v in (value, *classes) if hasattr(v, word)), None)


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_names_in_the_text_exist(path):
    "`room.module.name` of ours can be imported, or is of a class there; other dotted names are files or variables."
    text = path.read_text(encoding='utf-8')
    variables = {'model', *re.findall(r'^(\w+) = ', text, re.M)}
    for dotted in re.findall(r'`((?:\w+\.)+\w+)[`(]', text):
        first, *rest = dotted.removeprefix('nmc_workbench.').removeprefix('nmc.').split('.')
        if rest and rest[-1] in SUFFIXES or first in variables: continue
        assert first in ROOMS | MATHEMATICS or dotted.startswith('nmc'), f'{dotted}: {first} is no room'
        assert resolved([first, *rest]) is not None, f'{dotted} does not exist'


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_files_in_the_text_exist(path):
    "Notebooks, pictures and pages that a page names."
    text = path.read_text(encoding='utf-8')
    for notebook in re.findall(r'`(nbs/[\w/]+\.ipynb)`', text): assert (ROOT / notebook).is_file(), notebook
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (ROOT / link[1:] if link.startswith('/') else path.parent / link).resolve().is_file(), link


@pytest.mark.parametrize('path', [p for p in PAGES if p.parent.name == 'methods'], ids=name)
def test_parameters_in_the_text_exist(path):
    """A word in backticks is a parameter, one of its choices, a recipe, a network, or a column of the log; the method
    takes the value of `name=value`."""
    choices = {c for f in fields(config(path.stem)) for c in f.metadata.get('choices') or ()}
    networks = {*backbones.names(), *NETWORKS}
    known = {f.name for f in fields(config(path.stem))} | choices | set(recipes(path.stem)) | networks | {'moved'}
    assert set(re.findall(r'`([a-z_]+)`', read(path))) <= known
    for parameter, value in re.findall(r"`(\w+)='?([\w.]+)'?`", read(path)):
        config(path.stem)(**{parameter: yaml.safe_load(value)}).checked()


def test_the_readme_names_all_there_is():
    "Every notebook that is run, every room, every method's page, every extra; and every file it links to is there."
    for path in (ROOT / 'nbs').glob('*.ipynb'): assert path.stem == 'index' or f'`nbs/{path.name}`' in README, path
    for path in (ROOT / 'docs/pages/methods').glob('*.md'): assert f'(docs/pages/methods/{path.name})' in README, path
    rooms = README[README.index("The library's rooms"):]
    assert {*ROOMS, *MATHEMATICS} - set(re.findall(r'`(\w+)`', rooms)) == set()
    assert {*EXTRAS} - set(re.findall(r'`(\w+)`', README)) == set()
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', README): assert (ROOT / link).is_file(), link


PICTURE = read('architecture.svg')
HEIGHTS = {m[2]: float(m[1]) for m in re.finditer(r'class="room" x="[^"]*" y="([^"]*)"[^>]*>([^<]+)<', PICTURE)}
TITLE = re.search(r'class="title" x="[^"]*" y="([^"]*)"[^>]*>The mathematics<', PICTURE)


def test_the_picture_of_the_modules():
    "Every module it names is there, and every method and every notebook is named."
    for room, line in re.findall(r'class="module"[^>]*data-room="([^"]*)">([^<]+)<', PICTURE):
        place = f'nmc_workbench.{room}' if room else 'nmc_workbench'
        for module in line.split(' · '): importlib.import_module(f'{place}.{module}')
    trained = [p.stem.removeprefix('train_') for p in (ROOT / 'nbs').glob('train_*.ipynb')]
    assert {f'methods.{folder(name)}' for name in trained} <= set(HEIGHTS)
    patterns = re.search(r'class="notebook"[^>]*>([^<]+)<', PICTURE)[1].split(' · ')
    named = [set((ROOT / 'nbs').glob(f'{p}.ipynb')) for p in patterns]
    assert all(named) and set.union(*named) == set((ROOT / 'nbs').glob('*.ipynb')) - {ROOT / 'nbs/index.ipynb'}


def drawn(module):
    "The room of a module in the picture, and how far down it stands; modules at the top are the mathematics."
    parts = module.split('.')
    room = '.'.join(parts[:2]) if '.'.join(parts[:2]) in HEIGHTS else parts[0]
    return (room, HEIGHTS[room]) if room in HEIGHTS else ('The mathematics', float(TITLE[1]))


def imports(path):
    "What of the library a file imports, wherever in it: module, without the package's name in front, and name."
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        base = package[1:len(package) - node.level + 1]
        for a in node.names: yield '.'.join([*base, node.module or a.name]), a.name


def arrows():
    "Every import across rooms: module, what it imports, and the name. The list of methods is left out: it looks up."
    for path in PACKAGE.rglob('*.py'):
        module = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')
        if module in ('__init__', '_modidx', 'methods'): continue
        yield from ((module, other, n) for other, n in imports(path) if drawn(other)[0] != drawn(module)[0])


def test_the_picture_says_who_imports_whom():
    "Every import goes to the same room or to one that is drawn below; nothing goes to a room beside."
    assert [(m, other) for m, other, _ in arrows() if drawn(other)[1] <= drawn(m)[1]] == []
    assert len(list(arrows())) > 200
    assert set(HEIGHTS) == ROOMS | {f'methods.{p.parent.name}' for p in PACKAGE.glob('methods/*/__init__.py')}


def test_pictures_know_no_method_and_no_private_name_leaves_its_room():
    for module, other, n in arrows():
        assert module.split('.')[0] not in ('plotting', 'widgets') or other.split('.')[0] not in ('training', 'methods')
        assert not n.startswith('_'), f'{module} imports {n} of {other}'
