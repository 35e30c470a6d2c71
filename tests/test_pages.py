"""The pages of the docs: their code runs as it is written, their options and names exist, their numbers come from records.

Python blocks of a page run in order in one namespace, in a folder of their own. Commands: targets of make are looked up; of papermill every parameter is looked up and every value
checked by the method's configuration; those that need neither a GPU nor data that are not here run, with the notebooks' small path (IN_TEST)."""
import ast
import importlib
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
from statistics import mean, pstdev

import pytest
import yaml

from nmc_workbench.data import catalog as data
from nmc_workbench import methods

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import tables  # noqa: E402

PAGES = sorted((ROOT / 'docs/pages').rglob('*.md'))
RUN = [p for p in PAGES if p.parent.name in ('tutorials', 'howto') or p.stem in ('home', 'quickstart')]
name = lambda p: p.relative_to(ROOT / 'docs/pages').as_posix()
FLAGS = sorted((ROOT / 'docs/records').glob('flags_*.json'))


def read(path): return (ROOT / 'docs/pages' / path).read_text(encoding='utf-8')
def blocks(path, language): return re.findall(rf'^```{language}\n(.*?)^```', read(path), re.S | re.M)
def config(method): return next(v for k, v in vars(methods).items() if k.lower() == f'{method}config')
def recipes(method): return importlib.import_module(f'nmc_workbench.methods.{method}.config').RECIPES
def parameters(notebook):
    cells = json.loads((ROOT / notebook).read_text(encoding='utf-8'))['cells']
    source = next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
    return {n.target.id for n in ast.parse(source).body if isinstance(n, ast.AnnAssign)}


def commands(path):
    "The command lines of a page; of a loop, the line inside."
    return [line.strip() for b in blocks(path, 'bash') for line in b.splitlines() if line.strip() and not line.startswith(('for ', 'done'))]


def execute(code, folder, monkeypatch):
    "Code in a module of its own, in a folder of its own."
    monkeypatch.chdir(folder)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    page = types.ModuleType('page')
    monkeypatch.setitem(sys.modules, 'page', page)
    exec(compile(code, 'page', 'exec'), vars(page))


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in RUN if blocks(p, 'python')], ids=name)
def test_python_blocks_run_as_written(path, tmp_path, monkeypatch):
    execute('\n\n'.join(blocks(path, 'python')), tmp_path, monkeypatch)


@pytest.mark.parametrize('path', [p for p in PAGES if blocks(p, 'bash')], ids=name)
def test_commands_exist(path):
    "Targets of make, notebooks, every parameter that is set, and its value."
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    for line in commands(path):
        words = shlex.split(line)
        if words[0] == 'make': assert words[1] in targets, line
        elif words[0].endswith('papermill'): check_papermill(words)
        else: assert words[0].endswith('torchrun'), line


def check_papermill(words):
    given = {words[i + 1]: yaml.safe_load(words[i + 2]) for i, w in enumerate(words) if w == '-p'}
    assert words[2].endswith('.ipynb') and set(given) <= parameters(words[1]), words
    if 'train_' not in words[1]: return
    method = Path(words[1]).stem.removeprefix('train_')
    config(method)(**{k: v for k, v in given.items() if v != '$seed'}).checked()
    assert given['dataset'] in data.names()
    assert given.get('recipe') in {None, *recipes(method)}


SHORT = [(p, line) for p in RUN for line in commands(p) if 'papermill' in line and re.search(r'-p dataset (digits|folder)', line) and not re.search(r'run_dir|\$', line)]


@pytest.mark.slow
@pytest.mark.parametrize('path, line', SHORT, ids=[f'{name(p)}-{shlex.split(line)[1]}' for p, line in SHORT])
def test_papermill_commands_run(path, line, tmp_path, monkeypatch):
    "In a folder where the page's first block has made the data."
    if 'data_dir' in line: execute(blocks(path, 'python')[0], tmp_path, monkeypatch)
    tmp_path.joinpath('runs').mkdir(exist_ok=True)
    words = shlex.split(line)
    words[:2] = str(Path(sys.executable).with_name('papermill')), str(ROOT / words[1])
    done = subprocess.run([*words, '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'IN_TEST': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / words[2]).is_file()


@pytest.mark.slow
def test_the_script_for_several_devices(tmp_path):
    "As the quick start has it, on two processes without a GPU."
    script = next(b for b in blocks(ROOT / 'docs/pages/quickstart.md', 'python') if 'init_process_group' in b)
    (tmp_path / 'train.py').write_text(script + "\nmain('gloo', dataset='digits', limit=200, batch_size=100, epochs=1, cluster_epochs=1, finetune_epochs=1, n_init=1, device='cpu', run_dir='run')\n")
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    done = subprocess.run([str(Path(sys.executable).with_name('torchrun')), '--nproc_per_node', '2', '--master_port', str(port), 'train.py'], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'run/results.json').is_file()


@pytest.mark.parametrize('record', FLAGS, ids=lambda p: p.stem)
def test_every_option_of_the_originals(record):
    "It is on the page, and what stands for it exists."
    page, scripts = read('coming_from.md'), json.loads(record.read_text())['scripts']
    page = page[page.index(f'<!-- bench:{record.stem} -->'):].split('<!-- /bench -->')[0]
    known = {f.name for f in fields(config(record.stem.removeprefix('flags_')))}
    for script, rows in scripts.items():
        part = page.split(f'**{script}**')[1].split('**')[0] if len(scripts) > 1 else page
        for r in rows:
            assert f'| `{r["flag"]}` |' in part
            kind, _, rest = r['ours'].partition(':')
            if r['ours'] == '-': assert r['note'], f'{script} {r["flag"]} is left out without a word'
            elif kind == 'function':
                module, function, parameter = re.match(r'(\w+)\.(\w+):(\w+)', rest).groups()
                place = f'nmc_workbench.methods.{module}' if module == 'sela_weights' else f'nmc_workbench.{module}'
                assert parameter in inspect.signature(getattr(importlib.import_module(place), function)).parameters, r
            elif rest: assert rest in parameters(f'nbs/{kind}.ipynb'), r
            else: assert r['ours'] in known, r


def test_the_lists_are_whole():
    "As many options as the specifications of the originals count, script by script."
    counted = {s: len(v) for record in FLAGS for s, v in json.loads(record.read_text())['scripts'].items()}
    assert counted == {'train_selfsup.py': 24, 'train_clustering.py': 24, 'evaluate.py': 32, 'convert_imgs.py': 2, 'options': 21, 'main.py': 23, 'cifar.py': 16, 'eval_linear_probes.py': 14, 'eval_resnet.py': 14, 'retrain_with_rotnet.py': 19}


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_names_in_the_text_exist(path):
    "`module.name` of ours can be imported, or is of a class there."
    modules = {p.stem for p in (ROOT / 'nmc_workbench').glob('*.py')}
    for module, attribute in re.findall(r'`(\w+)\.(\w+)[`(]', path.read_text(encoding='utf-8')):
        if module not in modules or attribute in ('py', 'ipynb', 'json', 'npy', 'csv', 'pt'): continue
        found = importlib.import_module(f'nmc_workbench.{module}')
        assert any(hasattr(x, attribute) for x in (found, *(v for v in vars(found).values() if isinstance(v, type)))), f'{module}.{attribute}'


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_files_in_the_text_exist(path):
    "Notebooks, pictures and pages that a page names."
    text = path.read_text(encoding='utf-8')
    for found in re.findall(r'`(nbs/[\w/]+\.ipynb)`', text): assert (ROOT / found).is_file(), found
    for found in re.findall(r'\]\((?!http)([^)#]+)\)', text): assert (ROOT / found[1:] if found.startswith('/') else path.parent / found).resolve().is_file(), found


@pytest.mark.parametrize('path', [p for p in PAGES if p.parent.name == 'methods'], ids=name)
def test_parameters_in_the_text_exist(path):
    "A single word in backticks is a parameter of the method, a recipe, or a column of its log; `name=value` is a value that the method takes."
    known = {f.name for f in fields(config(path.stem))} | set(recipes(path.stem)) | {'moved'}
    assert set(re.findall(r'`([a-z_]+)`', read(path))) <= known
    for parameter, value in re.findall(r"`(\w+)='?([\w.]+)'?`", read(path)): config(path.stem)(**{parameter: yaml.safe_load(value)}).checked()


def test_the_picture_of_the_modules():
    "Every module it names is there, every method, and every notebook."
    picture = read('architecture.svg')
    named = {m for line in re.findall(r'class="module"[^>]*>([^<]+)<', picture) for m in line.split(' · ')}
    for m in named: importlib.import_module(f'nmc_workbench.{m}')
    assert {f'methods.{p.stem.removeprefix("train_")}' for p in (ROOT / 'nbs').glob('train_*.ipynb')} <= named
    assert all(list((ROOT / 'nbs').glob(f'{n}.ipynb')) for n in re.findall(r'class="notebook"[^>]*>([^<]+)<', picture))


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_tables_say_what_the_records_say(path):
    text = read(path)
    assert tables.PLACE.sub(tables.fill, text) == text
    assert not re.search(r'<!-- bench:\w+ -->\n<!-- /bench -->', text), 'a table without a record'


def rows(record): return json.loads((ROOT / f'docs/records/{record}.json').read_text())
def average(record, key): return f'{mean(r[key] for r in rows(record)["rows"]):.3f}'
def spread(record, key, form='.3f'):
    values = [r[key] for r in rows(record)['rows']]
    return f'{mean(values):{form}}' + (f' ± {pstdev(values):{form}}' if len(values) > 1 else '')
def minutes(record): return f'{mean(r["seconds"] + r.get("seconds_encoder", 0) for r in rows(record)["rows"]) / 60:.0f}'
def pixels(record, key='acc'): return f'{rows(record)["kmeans_pixels"][key]:.3f}'
def reached(record): return f'{minutes(record)} | ACC {spread(record, "acc")} (k-means on the pixels: {pixels(record)})'
def found(): return sorted(r['n_clusters'] for r in rows('nmc_digits')['rows'])


# What stands outside the tables that tools/tables.py fills: page, and the text as the records give it.
SAID = [
    ('home.md', lambda: f'in about {minutes("nmce_digits")} minutes on two cores (accuracy {average("nmce_digits", "acc")}, k-means on the pixels {pixels("nmce_digits")})'),
    ('quickstart.md', lambda: f'| NMCE, 10 clusters | {reached("nmce_digits")} |'),
    ('quickstart.md', lambda: f'| NMC, not told how many clusters | {minutes("nmc_digits")} | {spread("nmc_digits", "n_clusters", ".1f")} clusters, NMI {spread("nmc_digits", "nmi")} |'),
    ('quickstart.md', lambda: f'| SeLa, 10 heads | {minutes("sela_digits")} | nearest neighbours {spread("sela_digits", "knn")} (untrained: {average("sela_digits", "knn_untrained")}) |'),
    ('quickstart.md', lambda: f'| COIL-20, 1,440 images | {reached("nmce_coil20")} |'),
    ('quickstart.md', lambda: f'| MNIST, 10,000 images | {reached("nmce_mnist")} |'),
    ('quickstart.md', lambda: f'| CIFAR-10 | {reached("nmce_cifar10_cpu")} |'),
    ('which_method.md', lambda: f'| NMCE | given | {average("nmce_digits", "acc")} | {average("nmce_digits", "nmi")} | {minutes("nmce_digits")} |'),
    ('which_method.md', lambda: f'| NMC | found: {found()[0]} to {found()[-1]} | {average("nmc_digits", "acc")} | {average("nmc_digits", "nmi")} | {minutes("nmc_digits")} |'),
    ('which_method.md', lambda: f'| SeLa | given | {average("sela_digits", "acc")} | {average("sela_digits", "nmi")} | {minutes("sela_digits")} |'),
    ('which_method.md', lambda: f'| k-means on the pixels | given | {pixels("nmce_digits")} | {pixels("nmce_digits", "nmi")} | |'),
    ('methods/nmce.md', lambda: f'ACC {min(r["acc"] for r in rows("nmce_spiral")["ours"]):.4f} on {len(rows("nmce_spiral")["ours"])} of {len(rows("nmce_spiral")["ours"])} seeds')]
PAPERS = json.loads((ROOT / 'docs/pages/papers.json').read_text())


@pytest.mark.parametrize('page, said', SAID, ids=[f'{p}-{i}' for i, (p, _) in enumerate(SAID)])
def test_figures_in_the_text_are_the_records(page, said):
    assert read(page).count(said()) == 1, said()


def test_what_is_said_of_the_records_holds():
    "NMCE agrees most with the classes; the original's values of NMC end on one hill; Sinkhorn over-relaxed gives the same labels in fewer iterations."
    assert float(average('nmce_digits', 'acc')) > max(float(average(r, 'acc')) for r in ('nmc_digits', 'sela_digits'))
    for study in ('nmc_study', 'nmc_study_mnist', 'nmc_study_coil20'):
        for found in rows(study)['sets'].values(): assert all(r['n_clusters'] == 1 for r in found['rows']["the original's values"])
    assert all(r['relaxed_labels_that_differ'] == 0 and r['relaxed_iterations'] < r['parity_iterations'] for r in rows('sinkhorn')['rows'])


@pytest.mark.parametrize('paper', PAPERS, ids=lambda p: p['text'])
def test_figures_of_papers_have_a_source(paper):
    assert read(paper['page']).count(paper['text']) == 1 and paper['source'] and paper['what']


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_no_figure_without_a_source(path):
    "No decimal, percentage or time stands on a page but those above; versions, identifiers and sizes of the installation, which the README has too, aside."
    text = re.sub(r'```.*?```|<!-- bench.*?<!-- /bench -->|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`', '', read(path), flags=re.S)
    text = re.sub(r'arXiv \d+\.\d+|Python 3\.\d+ to 3\.\d+', '', text)
    for words in (*(said() for page, said in SAID if page == name(path)), *(p['text'] for p in PAPERS if p['page'] == name(path))): text = text.replace(words, '')
    left = re.findall(r'\d+\.\d+|\d[\d.,]* ?(?:%|GB|MB|seconds?|minutes?|hours?|times)', text)
    readme = (ROOT / 'README.md').read_text()
    assert [n for n in left if not (n.endswith('GB') and n in readme)] == []
