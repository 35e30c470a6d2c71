"""The pages of the docs: their code runs as it is written, their options and names exist, their numbers come from records.

Python blocks of a page run in order in one namespace, in a folder of their own. Commands: targets of make are looked up; papermill runs with the
notebooks' small path (IN_TEST), or, where it wants a GPU or data that are not here, only its parameters are looked up."""
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
from dataclasses import fields
from pathlib import Path

import pytest

from nmc_workbench import methods

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / 'docs/pages').rglob('*.md'))
RUN = [p for p in PAGES if p.parent.name in ('tutorials', 'howto') or p.stem in ('home', 'quickstart')]
name = lambda p: p.relative_to(ROOT / 'docs/pages').as_posix()
FLAGS = sorted((ROOT / 'docs/records').glob('flags_*.json'))


def blocks(path, language): return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(encoding='utf-8'), re.S | re.M)
def parameters(notebook):
    cells = json.loads((ROOT / notebook).read_text(encoding='utf-8'))['cells']
    source = next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
    return {n.target.id for n in ast.parse(source).body if isinstance(n, ast.AnnAssign)}


def commands(path):
    "The command lines of a page: loops count once, with their variable as it stands."
    return [line.strip() for b in blocks(path, 'bash') for line in b.splitlines() if line.strip() and not line.startswith(('for ', 'done'))]


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in RUN if blocks(p, 'python')], ids=name)
def test_python_blocks_run_as_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = '\n\n'.join(blocks(path, 'python'))
    (tmp_path / 'page.py').write_text(code, encoding='utf-8')
    done = subprocess.run([sys.executable, 'page.py'], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'MPLBACKEND': 'agg'})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('path', [p for p in PAGES if blocks(p, 'bash')], ids=name)
def test_commands_exist(path):
    "Targets of make, notebooks, and every parameter that is set."
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    for line in commands(path):
        words = shlex.split(line)
        if words[0] == 'make': assert words[1] in targets, line
        elif words[0].endswith('papermill'):
            known = parameters(words[1])
            assert words[2].endswith('.ipynb') and {words[i + 1] for i, w in enumerate(words) if w == '-p'} <= known, line
        else: assert words[0].endswith('torchrun'), line


SHORT = sorted({line for p in RUN for line in commands(p) if 'papermill' in line and not re.search(r'cuda|start_from|data_dir|run_dir|\$', line)})


@pytest.mark.slow
@pytest.mark.parametrize('line', SHORT)
def test_papermill_commands_run(line, tmp_path):
    words = shlex.split(line)
    words[0], words[2] = str(Path(sys.executable).with_name('papermill')), str(tmp_path / 'out.ipynb')
    done = subprocess.run([*words, '--no-progress-bar'], cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'IN_TEST': '1'})
    assert done.returncode == 0, done.stderr[-3000:]


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


def config(record): return next(v for k, v in vars(methods).items() if k.lower() == f'{record.stem.removeprefix("flags_")}config')


@pytest.mark.parametrize('record', FLAGS, ids=lambda p: p.stem)
def test_every_option_of_the_originals(record):
    "It is on the page, and what stands for it exists."
    page = (ROOT / 'docs/pages/coming_from.md').read_text(encoding='utf-8')
    known = {f.name for f in fields(config(record))}
    for script, rows in json.loads(record.read_text())['scripts'].items():
        if len(json.loads(record.read_text())['scripts']) > 1: assert f'**{script}**' in page
        for r in rows:
            assert f'| `{r["flag"]}` |' in page
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


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_tables_say_what_the_records_say(path):
    sys.path.insert(0, str(ROOT / 'tools'))
    import tables
    text = path.read_text(encoding='utf-8')
    assert tables.PLACE.sub(tables.fill, text) == text
    assert not re.search(r'<!-- bench:\w+ -->\n<!-- /bench -->', text), 'a table without a record'


# Figures of papers and of the originals' pages that stand in the text, and where they are from.
CITED = {'61.5': 'arXiv 1911.05371', '77.6': 'arXiv 1911.05371', '83': 'the NMCE repository', '.99': '', '2.6': ''}


@pytest.mark.parametrize('path', [p for p in PAGES if p.parent.name == 'methods' or p.stem in ('home', 'quickstart', 'which_method')], ids=name)
def test_no_figure_without_a_record(path):
    "Percentages in the prose are those that are cited."
    prose = re.sub(r'```.*?```|<!-- bench.*?<!-- /bench -->|\$\$.*?\$\$|\$[^$]*\$', '', path.read_text(encoding='utf-8'), flags=re.S)
    assert {n for n in re.findall(r'(\d+(?:\.\d+)?) %', prose)} <= set(CITED)
