"Write one plain page that lists every exported name with its signature, parameters and one line: python tools/api_page.py OUT.html"
import importlib
import inspect
import sys
from html import escape
from pathlib import Path

from fastcore.docments import docments

import nmc_workbench

STYLE = '''body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2328}
h2{border-top:1px solid #d0d7de;padding-top:1rem} code,pre{font:14px ui-monospace,monospace} dt{margin-top:1rem}
table{border-collapse:collapse;font-size:14px;margin:.3rem 0} td{padding:.1rem .8rem .1rem 0;vertical-align:top} nav a{margin-right:.7rem}'''


def modules():
    "Every module of the package, by name."
    root = Path(nmc_workbench.__file__).parent
    names = sorted('.'.join(p.relative_to(root.parent).with_suffix('').parts) for p in root.rglob('*.py') if not p.name.startswith('_'))
    return [importlib.import_module(n) for n in names]


def comments(value):
    "What the source says beside each parameter or field, inherited fields included."
    found = {}
    for part in reversed(value.__mro__) if inspect.isclass(value) else [value]:
        try: found |= {k: v for k, v in docments(part).items() if v and k not in ('self', 'return')}
        except Exception: continue      # values without source have no comments
    return found


def entry(name, value):
    "One exported name as HTML."
    try: signature = str(inspect.signature(value))
    except (TypeError, ValueError): signature = ''
    rows = ''.join(f'<tr><td><code>{escape(k)}</code></td><td>{escape(v)}</td></tr>' for k, v in comments(value).items())
    return f'<dt><code><b>{escape(name)}</b>{escape(signature)}</code></dt><dd>{escape(inspect.getdoc(value) or "")}<table>{rows}</table></dd>'


def section(module):
    "One module as HTML."
    names = [n for n in getattr(module, '__all__', []) if callable(getattr(module, n))]
    body = ''.join(entry(n, getattr(module, n)) for n in names)
    return f'<h2 id="{module.__name__}">{module.__name__}</h2><p>{escape(module.__doc__ or "")}</p><dl>{body}</dl>'


def main(out):
    "Write the page."
    found = modules()
    links = ' '.join(f'<a href="#{m.__name__}">{m.__name__.removeprefix("nmc_workbench.")}</a>' for m in found)
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>nmc_workbench API</title><style>{STYLE}</style><h1>nmc_workbench</h1><nav>{links}</nav>{"".join(map(section, found))}</html>'
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(page, encoding='utf-8')
    print(f'{out}: {len(found)} modules')


if __name__ == '__main__': main(*sys.argv[1:])
