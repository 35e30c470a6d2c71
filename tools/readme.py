"""Make README.md from nbs/index.ipynb.

Markdown stays as it is, code becomes python blocks, and links, which lead on from the notebook's folder there, lead on
from the root here."""
import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def from_the_root(link): return f']({posixpath.normpath("nbs/" + link[1])})'


def text(cell):
    "A cell as markdown, or nothing for hidden ones."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown': return re.sub(r'\]\((?!http)([^)]+)\)', from_the_root, source)
    return None if source.startswith('#| hide') else f'```python\n{source}\n```'


cells = json.loads((ROOT / 'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
parts = [t for t in map(text, cells) if t]
head = '<!-- Made from nbs/index.ipynb by tools/readme.py; change the notebook. -->'
(ROOT / 'README.md').write_text('\n\n'.join([head, *parts]) + '\n', encoding='utf-8')
