"""Make explore_run fit for a browser tab of its own: its title, and without the cells that only a notebook needs.

    python tools/app_notebook.py NOTEBOOK RUN"""
import json
import sys
from pathlib import Path


def title_of(run):
    "What the browser's tab is called: method, data set, seed, and the run's folder."
    config = json.loads((run / 'config.json').read_text(encoding='utf-8'))
    name = f'{config.get("method")}, {config.get("dataset")}, seed {config.get("seed")}'
    return f'{name} · {"/".join(run.resolve().parts[-2:])}'


def main(path, run):
    "Change the notebook where it lies."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    notebook['metadata']['title'] = title_of(run)
    notebook['cells'] = [c for c in notebook['cells'] if 'not-in-app' not in c['metadata'].get('tags', [])]
    path.write_text(json.dumps(notebook), encoding='utf-8')


if __name__ == '__main__': main(Path(sys.argv[1]), Path(sys.argv[2]))
