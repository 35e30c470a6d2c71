"""Write the parameters cell of every train notebook from its method's config: `python tools/parameters.py`.

The cell has the config's fields in their order, under the headings that stand as comments in the config's source. Where
a field is None, its comment says the value that the recipe of the default data set gives."""
import inspect
import json
import re
import typing
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from argument_comments import comments

ROOT = Path(__file__).resolve().parents[1]
FIRST_LINE = '# None stands for the recipe\'s value; where the recipe for {dataset} has one, the comment ends with it.'


def config_of(path):
    "The config class and the recipes of a train notebook, by the notebook's name."
    wanted = path.stem.removeprefix('train_') + 'config'
    for place in (ROOT / 'nmc_workbench/methods').glob('*/config.py'):
        module = import_module(f'nmc_workbench.methods.{place.parent.name}.config')
        kind = next((v for k, v in vars(module).items() if k.lower() == wanted), None)
        if kind: return kind, module.RECIPES
    raise SystemExit(f'{path}: no method has a {wanted}')


def headings(config):
    "Field name -> the heading above it, a comment on a line of its own, for the fields that have one."
    found = {}
    for kind in reversed(config.__mro__):
        if kind.__module__.startswith('nmc_workbench.methods.'):
            pairs = re.findall(r'^ +# (.+)\n +(\w+):', inspect.getsource(kind), re.M)
            found |= {name: text for text, name in pairs}
    return found


def shown(value):
    "A recipe's value in a comment: papermill reads no line with a second equals sign, so options are said in words."
    if not isinstance(value, str): return repr(value)
    name, _, options = value.rstrip(')').partition('(')
    return f'{name} with {options.replace("=", " ")}' if options else name


def line(field, kind, comment, value):
    "One parameter: `name: type = default  # comment; digits: value`."
    said = comment if field.default is not None or value is None else f'{comment}; digits: {shown(value)}'
    return f'{field.name}: {kind} = {field.default!r}  # {said}'


def cell(config, recipes):
    "The source of the parameters cell."
    dataset = config().dataset
    hints, said, above, recipe = typing.get_type_hints(config), comments(config), headings(config), recipes[dataset]
    out = [FIRST_LINE.format(dataset=dataset)]
    for f in fields(config):
        if f.name in above: out += ['', f'# {above[f.name]}']
        kind = next(k for k in (*typing.get_args(hints[f.name]), hints[f.name]) if k is not type(None)).__name__
        out.append(line(f, kind, said[f.name], recipe.get(f.name)))
    return '\n'.join(out)


def main():
    "Every train notebook."
    for path in sorted((ROOT / 'nbs').glob('train_*.ipynb')):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        tagged = next(c for c in notebook['cells'] if 'parameters' in c['metadata'].get('tags', []))
        source = cell(*config_of(path)).splitlines(keepends=True)
        if tagged['source'] == source: continue
        tagged['source'] = source
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__': main()
