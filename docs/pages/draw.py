"""The pictures of these pages: `python docs/pages/draw.py architecture nmc sela deepcluster`, or only some.

Two minutes in all.

architecture.svg shows the rooms of the package, each above the rooms it may import; the others come from runs on a CPU
with seed 0."""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIDTH, STEP, GAP = 716, 42, 5         # of the picture, of a row, between rooms
BLUE, ORANGE, OLIVE, PINK, GREEN, PURPLE = '#0072b2', '#c04f00', '#7a6200', '#a8468a', '#007a58', '#5b4bb0'
STYLE = """.room,.title{font-size:14.5px;font-weight:bold}.module,.notebook{font-size:13px;fill:#111111}
.says{font-size:13px;font-weight:normal;fill:#444444}.answer{font-size:13px;font-weight:bold;fill:#a3002e}"""

# From the top to the bottom: (room, share of the width, colour, what it is for, modules worth knowing, answers).
# The numbers in the answers are those of the questions in architecture.md.
MATHEMATICS = ('losses · optim · metrics · subspaces · persistence · transport · cluster · k_rules · projection · '
               'anchors')
ROWS = [
    [('explore', .58, PURPLE, 'screens that know runs',
      'explorer · look_closer · curation · transport_lab · compare_lab', ''),
     ('sweeps', .24, PURPLE, 'many runs', 'grid · launch · table', ''),
     ('reports', .18, PURPLE, '', 'html · summary', '')],
    [('widgets', 1, PURPLE, 'live parts that know no run', 'base · scatter · image_grid · table · plotly_figure', '')],
    [('plotting', 1, PURPLE, 'still pictures of arrays',
      'figure · colours · galleries · curves · confusion · embedding · geometry · merge_tree · live_curves', '')],
    [('evaluation', 1, GREEN, 'against labels and without',
      'features · protocols · quality · probes · rotation · retrain · baselines · agreement', '')],
    [('methods.nmce', .33, ORANGE, '', 'config · stages · estimator', '2, 3'),
     ('methods.nmc', .33, ORANGE, '', 'config · stages · estimator', '2, 3'),
     ('methods.sela', .34, ORANGE, '', 'config · stages · estimator', '2, 3')],
    [('methods.deep_cluster', .33, ORANGE, '', 'config · stages · estimator', '2, 3'),
     ('methods.anchor_neighbourhoods', .43, ORANGE, '', 'config · memory · rates · stages · estimator', '2, 3'),
     ('', .24, ORANGE, 'your method', '', '2, 3')],
    [('methods', 1, ORANGE, 'what every method shares', 'base · config', '')],
    [('training', .62, PINK, 'one loop', 'batches · stage · trainer · callbacks · embed · timing',
      '1 batches makes views, 2 trainer runs steps'),
     ('diagnostics', .38, GREEN, 'without labels', 'diagnosis · clusters · collapse · geometry', '')],
    [('runs', .66, PINK, "a run's folder, written and read",
      'folder · metrics_log · checkpoints · label_history · finished · index · table', ''),
     ('modes', .34, OLIVE, 'hills of a learned density', 'potential · ascent · endpoints · tree', '')],
    [('data', .34, BLUE, 'sets of images', 'catalog · readers · images', ''),
     ('augment', .38, BLUE, 'views', 'presets · compose · operations', '1'),
     ('nets', .28, BLUE, 'networks', 'encoders · backbones', '')],
    [(None, 1, OLIVE, 'tensors in, tensors out', MATHEMATICS, '3 losses')],
    [('core', 1, '#333333', 'what every room needs',
      'errors · files · seeds · devices · ranks · config · checks · labels · progress · processes', '')]]
HEIGHT = STEP * (len(ROWS) + 1) + 12


def text(x, y, kind, words, colour=None, anchor='start', more=''):
    "Words at a place; `kind` is their class in the style sheet, which the tests read too."
    colour = f' style="fill:{colour}"' if colour else ''
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{colour}{more}>{words}</text>'


def frame(x, y, width, colour, more=''):
    "The frame of a room."
    return (f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{STEP - GAP}" rx="5" fill="{colour}" '
            f'fill-opacity=".08" stroke="{colour}" stroke-width="1.2"{more}/>')


def room(x, y, width, name, colour, says, modules, answer):
    "A room: its name, what it is for, the modules worth knowing, and the questions it answers on the right."
    title = 'The mathematics' if name is None else name
    yield frame(x, y, width, colour, '' if title else ' stroke-dasharray="5 4"')
    said = f'<tspan class="says" dx="{8 if title else 0}">{says}</tspan>' if says else ''
    yield text(x + 9, y + 16, 'room' if name else 'title', title + said, colour)
    if modules: yield text(x + 9, y + 32, 'module', modules, more=f' data-room="{name or ""}"')
    if answer: yield text(x + width - 9, y + 16, 'answer', answer, anchor='end')


def row(y, rooms, left=0, width=WIDTH - 40):
    "The rooms that stand side by side."
    for name, share, *rest in rooms:
        yield from room(left, y, width * share - GAP, name, *rest)
        left += width * share


def notebooks(y):
    "The line above the rooms."
    names = 'train_* · spiral_toy · explore_* · compare_runs · evaluate · probe_layers · embed · sweep · benchmark'
    yield frame(0, y, WIDTH - 40 - GAP, '#333333', ' stroke-dasharray="5 4"')
    yield text(9, y + 16, 'says', 'Notebooks of nbs/, which may import every room')
    yield text(9, y + 32, 'notebook', names)


def arrow():
    "On the right: which way imports look."
    x, middle = WIDTH - 34, HEIGHT / 2
    yield f'<path d="M{x} 10V{HEIGHT - 14}" fill="none" stroke="#444444" stroke-width="1.8" marker-end="url(#a)"/>'
    turned = f' transform="rotate(90 {x + 9} {middle:g})"'
    yield text(x + 9, middle, 'says', 'a room imports only rooms below it', anchor='middle', more=turned)


def architecture():
    "Write architecture.svg."
    size = f'viewBox="-8 0 {WIDTH} {HEIGHT}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">',
            '<title>The rooms of nmc_workbench, each above the rooms it may import</title>',
            f'<style>{STYLE}</style>',
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#444444"/></marker></defs>',
            f'<rect x="-8" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>']
    rows = [line for i, rooms in enumerate(ROWS, 1) for line in row(8 + STEP * i, rooms)]
    lines = [*head, *notebooks(8), *rows, *arrow(), '</svg>']
    HERE.joinpath('architecture.svg').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def nmc():
    "Five Gaussians of unit variance, no two nearer than eleven standard deviations."
    import numpy as np
    import torch
    from nmc_workbench.methods import NMC
    from nmc_workbench.modes.ascent import ascend
    from nmc_workbench.plotting.persistence import persistence_picture
    from nmc_workbench.plotting.potential import potential_picture
    centres = 4. * np.array([[0, 0], [3, 1], [1, 3.2], [4, 4], [6, 2]])
    noise = np.random.default_rng(0).normal(size=(1000, 2))
    model = NMC(device='cpu').fit((np.repeat(centres, 200, 0) + noise).astype('float32'))
    potential, start = model.network_.potential, torch.from_numpy(model.embedding_)
    up = ascend(potential, start, model.config_.step_size * model.unit_, model.config_.max_steps, record=True)
    cluster = np.array([model.labels_[model.modes_ == i][0] for i in range(len(model.centres_))])
    picture = potential_picture(potential, model.embedding_, model.labels_, up.paths, model.centres_, cluster)
    picture.budget = 300_000        # fewer bytes would blur the colours
    picture.save(HERE / 'methods/nmc_climb')
    persistence_picture(model.tree_.tree, model.tau_).save(HERE / 'methods/nmc_persistence')


def deepcluster():
    "NMI by epoch of the variant's values, of each remedy, and of the recipe; beside it the variant's published curves."
    import json
    from nmc_workbench.plotting.figure import Picture, new_figure
    def rows(name): return json.loads((HERE.parent / f'records/{name}.json').read_text())['rows']
    figure, axes = new_figure(9.6, 5.6, ncols=2)
    ours, theirs = axes[0]
    studied(ours, rows('deepcluster_study'))
    published(theirs, [r for r in rows('deepcluster_curves') if r['contrast'] == 'none'])
    for ax in (ours, theirs):
        ax.set(ylim=(.1, .9), ylabel='NMI with the classes')
        ax.grid(axis='y', color='#dddddd', lw=.6)
        ax.legend(loc='upper center', bbox_to_anchor=(.5, -.16), frameon=False, fontsize=8, ncols=2)
    Picture(figure).save(HERE / 'methods/deepcluster_study')


def studied(ax, rows):
    "The curves of the study; a dot for the clusters after training, which are as many as the classes."
    from nmc_workbench.plotting.colours import curve_colours
    for (name, row), colour in zip(rows.items(), curve_colours(len(rows))):
        curve, whole = row['nmi_by_epoch'], name.startswith(('the variant', 'the recipe'))
        ax.plot(curve, label=name, color=colour, lw=2.5 if whole else 1.2)
        ax.plot([len(curve)], [row['nmi']], 'o', color=colour, ms=7 if whole else 4)
    ax.set(title='here: 10,000 images', xlabel='epochs of training; dots: ten clusters at the end')


def published(ax, rows):
    "First, best and last value of the variant's curves; a colour for each network, dashes for scikit-learn."
    networks = list(dict.fromkeys(r['network'] for r in rows))
    colours = dict(zip(networks, (BLUE, ORANGE, PURPLE, GREEN)))
    for r in rows:
        style = '-' if r['kmeans'] == 'faiss' else '--'
        ax.plot([r['nmi'][k] for k in ('first', 'best', 'last')], style, marker='o', ms=4,
                color=colours[r['network']], label=f'{r["network"]}, {r["kmeans"]}')
    ax.set(title="the variant's published curves: 60,000 images", xticks=range(3), xlim=(-.2, 2.2))
    ax.set_xticklabels(['first epoch', 'best epoch', 'last of 25'])


def sela():
    "What the updates of the labels do in a run on the digits."
    from nmc_workbench.data import load
    from nmc_workbench.methods import SeLa
    from nmc_workbench.plotting.transport import turnover_picture
    turnover_picture(SeLa(device='cpu').fit(load('digits')).history_).save(HERE / 'methods/sela_turnover')


def own_images():
    "What the command of the tutorial finds in the photographs of its first block; ENCODER names the encoder."
    import os, re, tempfile
    from nmc_workbench.data import load
    from nmc_workbench.methods import AND
    from nmc_workbench.plotting.galleries import gallery
    page = HERE.joinpath('tutorials/own_images.md').read_text(encoding='utf-8')
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(re.search(r'```python\n(.*?)```', page, re.S)[1], {})
        photos = load('unlabelled_folder', root='photos')
        model = AND(encoder=os.environ['ENCODER'], n_clusters=6, device='cpu', run_dir='run').fit(photos)
        gallery(photos, model.labels_, model.embedding_, 7).save(HERE / 'tutorials/own_images')


PICTURES = dict(architecture=architecture, nmc=nmc, sela=sela, deepcluster=deepcluster, own_images=own_images)

if __name__ == '__main__':
    for name in sys.argv[1:]: PICTURES[name]()
