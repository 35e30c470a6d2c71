"""The pictures of these pages: `python docs/pages/draw.py architecture nmc sela`, or some of them; about two minutes.

architecture.svg has the modules in the order in which data pass them; the others come from runs on a CPU with seed 0."""
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
W, H = 716, 770
BLUE, ORANGE, OLIVE, PINK, GREEN, PURPLE = '#0072b2', '#c04f00', '#7a6200', '#a8468a', '#007a58', '#5b4bb0'
HEAD = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 0 {W} {H}" font-family="sans-serif" role="img">',
        '<title>From images to clusters: the modules of nmc_workbench in the order in which data pass them</title>',
        '<style>.title{font-size:16px;font-weight:bold}.module,.notebook{font-size:14px;fill:#111111}.says{font-size:13px;fill:#444444}.flow{font-size:13px;fill:#111111;font-style:italic}</style>',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444444"/></marker></defs>',
        f'<rect x="-16" width="{W}" height="{H}" rx="8" fill="#ffffff"/>']


def text(x, y, kind, words, colour=None, anchor='start'):
    return f'<text class="{kind}" x="{x}" y="{y}"' + (f' style="fill:{colour}"' if colour else '') + (f' text-anchor="{anchor}"' if anchor != 'start' else '') + f'>{words}</text>'


def box(x, y, w, h, colour, title, says=(), modules=(), more='stroke-width="1.3"', fill=None):
    "A frame with a title, lines of words, and lines of module names."
    return [f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill or colour}" fill-opacity="{1 if fill else .09}" stroke="{colour}" {more}/>', text(x + 14, y + 24, 'title', title, colour),
            *(text(x + 14, y + 44 + 19 * i, 'says', line) for i, line in enumerate(says)), *(text(x + 14, y + 44 + 19 * (len(says) + i), 'module', line) for i, line in enumerate(modules))]


def arrow(path, *labels):
    return [f'<path d="{path}" fill="none" stroke="#444444" stroke-width="1.8" marker-end="url(#a)"/>', *(text(x, y, 'flow', words, anchor=anchor) for x, y, words, anchor in labels)]


def side(y, h, notebooks):
    "A bar on the left: the notebooks that go through the boxes beside it."
    return [f'<path d="M104 {y}H96V{y + h}H104" fill="none" stroke="{PURPLE}" stroke-width="1.8"/>', *(text(88, y + h / 2 - 9 * len(notebooks) + 14 + 18 * i, 'notebook', n, PURPLE, 'end') for i, n in enumerate(notebooks))]


def architecture():
    folder = ['config.json · provenance.json · metrics.jsonl · checkpoint.pt · model.pt · lineage.bin', 'ids.npy · predictions.npy · embeddings.npy · results.json · figures/']
    parts = [
        side(16, 490, ['train_nmce', 'train_nmc', 'train_sela', 'spiral_toy']),
        side(528, 224, ['explore_*', 'compare_runs', 'evaluate', 'probe_layers']),
        box(116, 16, 568, 80, BLUE, 'Images', ['pixels uint8 (N, C, H, W) with stable ids; views are drawn in batches'], ['data · readers · archives · images · batches · augment · imageops · operations']),
        arrow('M250 96V140', (262, 123, 'batches: index, and views (V, B, C, H, W)', 'start')),
        box(116, 142, 290, 118, ORANGE, 'Methods', ['a network, stages, a rule for labels;', 'your own stands here too'], ['methods.base · methods.nmce', 'methods.nmc · methods.sela']),
        box(446, 142, 238, 160, OLIVE, 'Kernels', (), ['nets · layers · losses · optim', 'transport · assign · subspaces', 'potential · ascent · modes', 'mode_tree · persistence', 'metrics · instruments · collapse', 'basics · config']),
        arrow('M446 202H410', (428, 194, 'used', 'middle')),
        arrow('M250 260V314', (262, 282, 'stages: modules, optimisers,', 'start'), (262, 299, 'step → loss, logs', 'start')),
        box(116, 316, 568, 76, PINK, 'Training', ['one loop for every stage: mixed precision, ranks, checkpoints, resume, a stop on NaN'], ['training · lineage · runs']),
        arrow('M250 392V424', (262, 412, 'writes', 'start')),
        box(116, 426, 568, 84, '#333333', "A run's folder", folder, more='stroke-width="2"', fill='#f2f2f2'),
        arrow('M220 510V540', (232, 530, 'reads', 'start')),
        arrow('M500 510V540', (512, 530, 'reads', 'start')),
        box(116, 542, 228, 96, GREEN, 'Measure', (), ['features · evaluate · probes', 'doctor · signs · baselines', 'rotation · pseudo_labels']),
        box(366, 542, 318, 96, GREEN, 'Look', (), ['run_data · explorer · curation · compare', 'lineage_lab · persistence_lab · transport_lab', 'point_map · tiles · plots · sheets · report']),
        arrow('M650 542V514', (640, 530, 'curation.json', 'end')),
        arrow('M230 638V676'), arrow('M525 638V676'),
        box(116, 678, 568, 74, '#333333', 'What you take along', ['scores and probes · labels.csv with names and confidence · a folder a cluster · pictures'], more='stroke-width="1.3" stroke-dasharray="5 4"', fill='#ffffff')]
    HERE.joinpath('architecture.svg').write_text('\n'.join([*HEAD, *(line for part in parts for line in part), '</svg>']) + '\n', encoding='utf-8')


def nmc():
    "Five Gaussians of unit variance, no two nearer than eleven standard deviations."
    import numpy as np
    import torch
    from nmc_workbench.ascent import ascend
    from nmc_workbench.methods import NMC
    from nmc_workbench.persistence_plots import persistence_picture
    from nmc_workbench.potential_plots import potential_picture
    centres = 4. * np.array([[0, 0], [3, 1], [1, 3.2], [4, 4], [6, 2]])
    points = (np.repeat(centres, 200, 0) + np.random.default_rng(0).normal(size=(1000, 2))).astype('float32')
    model = NMC(device='cpu').fit(points)
    up = ascend(model.network_.potential, torch.from_numpy(model.embedding_), model.config_.step_size * model.unit_, model.config_.max_steps, record=True)
    cluster = np.array([model.labels_[model.modes_ == i][0] for i in range(len(model.centres_))])
    picture = potential_picture(model.network_.potential, model.embedding_, model.labels_, up.paths, model.centres_, cluster)
    picture.budget = 300_000        # fewer bytes would blur the colours
    picture.save(HERE / 'methods/nmc_climb')
    persistence_picture(model.tree_.tree, model.tau_).save(HERE / 'methods/nmc_persistence')


def sela():
    "What the updates of the labels do in a run on the digits."
    from nmc_workbench.data import load
    from nmc_workbench.methods import SeLa
    from nmc_workbench.transport_plots import turnover_picture
    turnover_picture(SeLa(device='cpu').fit(load('digits')).history_).save(HERE / 'methods/sela_turnover')


if __name__ == '__main__':
    for name in sys.argv[1:]: dict(architecture=architecture, nmc=nmc, sela=sela)[name]()
