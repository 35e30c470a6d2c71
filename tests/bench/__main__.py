"""Measure the figures the pages quote, write them to docs/records/, and put them into the pages.

    python -m tests.bench                                      the benches that need no data
    python -m tests.bench coil20 mnist cifar10 --data FOLDER   the benches named, on the data sets in FOLDER

FOLDER holds coil20_32.npz (x, y), mnist.npz (x_train, y_train) and cifar10 (train/<class>/*).
The runs stay in runs/bench/. An interrupted bench continues its unfinished run; `--fresh` starts it over."""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from nmc_workbench.data import load

from . import bench_nmc

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / 'docs/records'


def circumstances(command, *more):
    "Where and when a figure was measured, without which it means nothing."
    packages = ('nmc_workbench', 'torch', 'torchvision', 'numpy', 'scikit-learn', *more)
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return dict(command=command, date=time.strftime('%Y-%m-%d'), python=platform.python_version(), device='CPU',
                cores=os.cpu_count(), processor=next(iter(models), platform.machine()),
                versions={p: metadata.version(p) for p in packages})


def command_for(data):
    "The command that measures again, with or without data sets."
    return 'make bench' if data is None else 'make bench-data DATA=folder'


def trained(title, name, command, seeds, notebook='train_nmce', more=lambda run, results: {}, **parameters):
    "The record of a train notebook, run by papermill once per seed; `more` gives additional entries of each row."
    rows, scores = [], ('acc', 'nmi', 'ari')
    for seed in seeds:
        out = ROOT / f'runs/bench/{name}_seed{seed}'
        results = papermill(notebook, out, dict(parameters, seed=seed, run_dir=out / 'run', resume='true'))
        found = {k: results[k] for k in scores}
        rows.append(dict(seed=seed, **found, seconds=results['seconds'], **more(out / 'run', results)))
        print(rows[-1], flush=True)
    pixels = {name: {k: results[name][k] for k in scores} for name in ('kmeans_pixels', 'umap_kmeans_pixels')
              if name in results}
    return dict(**circumstances(command), title=title, n=len(rows), rows=rows, **pixels)


def papermill(notebook, out, parameters):
    "Run a notebook with these parameters; the results that its run has written."
    out.mkdir(parents=True, exist_ok=True)
    words = [w for k, v in parameters.items() for w in ('-p', k, str(v))]
    program = Path(sys.executable).with_name('papermill')
    subprocess.run([str(program), f'nbs/{notebook}.ipynb', str(out / f'{notebook}.ipynb'), '--no-progress-bar', *words],
                   cwd=ROOT, check=True)
    return json.loads((out / 'run/results.json').read_text())


def digits(data):
    record = trained('1,797 digits, K = 10', 'digits', 'make bench', range(5), dataset='digits')
    demo_picture(ROOT / 'runs/bench/digits_seed0/run/figures', ROOT / 'nbs/images/demo.png')
    return record


def nmc_digits(data):
    def more(run, results):
        encoder = json.loads((run.parent / 'run_encoder/results.json').read_text())
        return dict(n_clusters=results['n_clusters'], n_modes=results['n_modes'], seconds_encoder=encoder['seconds'],
                    kmeans=bench_nmc.kmeans_row(run / 'comparison.csv'))
    title = '1,797 digits, K not given'
    return trained(title, 'nmc_digits', 'make bench', range(5), 'train_nmc', more, dataset='digits')


def nmc_mixtures(data):
    "Gaussians eight standard deviations apart."
    return dict(**circumstances('make bench'), rows=bench_nmc.mixtures())


def _studied(name, images, train, data, seeds, from_seed=bench_nmc.FROM_SEED):
    "The original's values, the recipe's, and what lies between, on the encoders of the runs of `train`."
    run = 'run_encoder' if train is nmc_digits else 'run'
    paths = [ROOT / f'runs/bench/{train.__name__}_seed{s}/{run}' for s in range(seeds)]
    def encoders(): return [p for p in paths if p.joinpath('model.pt').is_file()]
    if not encoders(): train(data)
    found = dict(rows=bench_nmc.variants(images, encoders(), name, from_seed),
                 eps=bench_nmc.over_eps(images, encoders(), name))
    return dict(**circumstances(command_for(data)), sets={name: found})


# On the larger sets a fit with the original's end-point loss takes a quarter of an hour, so they get only its first
# and its last variant.
FEW = {k: bench_nmc.FROM_SEED[k] for k in (list(bench_nmc.FROM_SEED)[0], list(bench_nmc.FROM_SEED)[-1])}


def nmc_study(data): return _studied('digits', load('digits'), nmc_digits, None, 3)


def nmc_study_mnist(data):
    images = load('npz', root=found(data, 'mnist.npz'), limit=10_000)
    return _studied('mnist', images, mnist, data, 1, FEW)


def nmc_study_coil20(data):
    images = load('npz', root=found(data, 'coil20_32.npz'))
    return _studied('coil20', images, coil20, data, 1, FEW)


def coil20(data):
    return trained('COIL-20, 1,440 images at 32 x 32, K = 20', 'coil20', command_for(data), range(3),
                   dataset='npz', data_dir=found(data, 'coil20_32.npz'), recipe='coil20_small')


def mnist(data):
    return trained('MNIST, 10,000 images, K = 10', 'mnist', command_for(data), range(3),
                   dataset='npz', data_dir=found(data, 'mnist.npz'), recipe='mnist_small', limit=10_000)


def cifar10(data):
    return trained('CIFAR-10, K = 10, on a CPU', 'cifar10', command_for(data), range(1),
                   dataset='folder', data_dir=found(data, 'cifar10'), recipe='cifar10_small')


def _neighbours(run, results):
    return {**{k: results[k] for k in ('purity', 'head_agreement')}, **json.loads((run / 'knn.json').read_text())}


def sela_digits(data):
    return trained('1,797 digits, 10 heads', 'sela_digits', 'make bench', range(3), 'train_sela', _neighbours,
                   dataset='digits')


def sela_mnist(data):
    return trained('MNIST, 10,000 images, 2 heads', 'sela_mnist', command_for(data), range(3), 'train_sela',
                   _neighbours, dataset='npz', data_dir=found(data, 'mnist.npz'), recipe='mnist', limit=10_000)


def sela_cifar10(data):
    return trained('CIFAR-10, 10,000 images, 10 heads', 'sela_cifar10', command_for(data), range(1), 'train_sela',
                   _neighbours, dataset='folder', data_dir=found(data, 'cifar10'), recipe='cifar10_small', limit=10_000)


def _pseudo_labels(run, results):
    "Scores of the pseudo-labels, nearest neighbours, and the NMI of the clusters before the first epoch."
    first = json.loads((run / 'metrics.jsonl').read_text().splitlines()[0])
    return dict(purity=results['purity'], pseudo_nmi=results['pseudo_nmi'], nmi_first=first['nmi_true_pred'],
                **json.loads((run / 'knn.json').read_text()))


def _rounds(run, results):
    "The score of neighbours and the consistency by round, and the clusters that were found."
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    ends = [r for r in rows if 'neighbours' in r]
    more = results['k_found'].get('more', {})
    return dict(neighbours=[r['neighbours'] for r in ends], consistency=[r.get('consistency') for r in ends],
                knn=results['neighbours'], n_clusters=results['n_clusters'], k_range=more.get('k_range'),
                **(dict(rules=_by_rule(run)) if run.parent.name.endswith('seed0') else {}))


def _by_rule(run):
    "K, ACC and NMI by every rule for the number of clusters that can be used here, on a run's embedding."
    from nmc_workbench.core.errors import InputError
    from nmc_workbench.k_rules import RULES, find_k
    from nmc_workbench.metrics import accuracy, nmi
    from nmc_workbench.runs.finished import read_run
    found, out = read_run(run), {}
    for rule in RULES:
        try: k = find_k(found.embedding, rule, 0)
        except InputError: continue                 # its package is not installed
        y = found.class_labels
        out[rule] = dict(n_clusters=k.n_clusters, acc=accuracy(y, k.labels), nmi=nmi(y, k.labels))
    return out


def and_digits(data):
    return trained('1,797 digits, K found', 'and_digits', 'make bench', range(3), 'train_and', _rounds,
                   dataset='digits')


def and_mnist(data):
    return trained('MNIST, 10,000 images, K found', 'and_mnist', command_for(data), range(3), 'train_and', _rounds,
                   dataset='npz', data_dir=found(data, 'mnist.npz'), recipe='mnist', limit=10_000)


def and_cifar10(data):
    return trained('CIFAR-10, 10,000 images, K found', 'and_cifar10', command_for(data), range(1), 'train_and', _rounds,
                   dataset='folder', data_dir=found(data, 'cifar10'), recipe='cifar10_small', limit=10_000)


def deepcluster_digits(data):
    return trained('1,797 digits, 100 clusters in training', 'deepcluster_digits', 'make bench', range(3),
                   'train_deepcluster', _pseudo_labels, dataset='digits')


def deepcluster_mnist(data):
    return trained('MNIST, 10,000 images, 100 clusters in training', 'deepcluster_mnist', command_for(data), range(3),
                   'train_deepcluster', _pseudo_labels, dataset='npz', data_dir=found(data, 'mnist.npz'),
                   recipe='mnist', limit=10_000)


def deepcluster_study(data):
    "The values of luftmeer's variant, and each remedy, on MNIST."
    from . import bench_deep_cluster
    return dict(**circumstances(command_for(data)), **bench_deep_cluster.study(found(data, 'mnist.npz')))


def deepcluster_strategies(data):
    "Both second losses, with a feed-forward network."
    from . import bench_deep_cluster
    path = found(data, 'mnist.npz')
    return dict(**circumstances(command_for(data)), **bench_deep_cluster.strategies(path, 'feedforward'))


def deepcluster_architectures(data):
    "Every network on made images of every family."
    from . import bench_deep_cluster
    return dict(**circumstances('make bench'), **bench_deep_cluster.architectures())


def deepcluster_strategies_resnet18(data):
    "Both second losses, with a residual network of 18 layers."
    from . import bench_deep_cluster
    path = found(data, 'mnist.npz')
    return dict(**circumstances(command_for(data)),
                **bench_deep_cluster.strategies(path, 'resnet18', epochs=4))


def deepcluster_cifar10(data):
    "DeepCluster from a short run of SeLa."
    from . import bench_deep_cluster
    path = found(data, 'cifar10')
    return dict(**circumstances(command_for(data)), **bench_deep_cluster.cifar10(path, ROOT / 'runs/bench'))


def deepcluster_epoch(data):
    "What an epoch of 50,000 images spends its seconds on."
    from . import bench_deep_cluster
    return dict(**circumstances(command_for(data)), **bench_deep_cluster.epoch(found(data, 'cifar10')))


def kmeans(data):
    "k-means and PCA on the pixels of CIFAR-10 against the libraries that do the same."
    import torch

    from . import bench_kmeans
    images = load('folder', root=found(data, 'cifar10'))
    return dict(**circumstances(command_for(data)), **bench_kmeans.measure(images.take(torch.arange(len(images)))))


def sinkhorn(data):
    "The iteration against the original's form, and its growth."
    from . import bench_sinkhorn
    return dict(**circumstances(command_for(data)), **bench_sinkhorn.measure(data))


def sinkhorn_features(data):
    "The iteration from features and a head: memory and growth."
    from . import bench_sinkhorn_features
    return dict(**circumstances('python -m tests.bench sinkhorn_features'), **bench_sinkhorn_features.measure())


def scale(data):
    "What the plan to a billion images needs beside the other records."
    from . import bench_scale
    return dict(**circumstances('python -m tests.bench scale'), **bench_scale.measure())


def discover(data):
    "Anchors and neighbours against the original's way, the product alone, and the growth."
    from . import bench_anchors
    return dict(**circumstances('python -m tests.bench discover'), **bench_anchors.measure())


def explorer(data):
    "The explorer on MNIST in a browser."
    from . import bench_explorer
    found(data, 'mnist.npz')
    return dict(**circumstances(command_for(data)), **bench_explorer.measure(data))


def find_similar(data):
    "The samples most like one, of 60,000."
    from . import bench_look_closer
    return dict(**circumstances('python -m tests.bench find_similar'), **bench_look_closer.similar())


def point_map(data):
    "The map of points in a browser, beside another widget."
    from . import bench_look_closer
    return dict(**circumstances('python -m tests.bench point_map'), **bench_look_closer.point_map())


def k_rules(data):
    "Every rule for the number of clusters on the same sets."
    from . import bench_k_rules
    files = dict(mnist='mnist.npz', coil20='coil20_32.npz', cifar10='cifar10')
    measured = bench_k_rules.measure(**{k: found(data, name) for k, name in files.items()})
    packages = ('umap-learn', 'networkx', 'evoc', 'fast-plscan')
    note = ', '.join(f'{p} {metadata.version(p)}' for p in packages if bench_k_rules.installed(p))
    return dict(**circumstances('python -m tests.bench k_rules --data folder'), note=note, **measured)


def found(data, name):
    "A file or folder in the folder given with --data."
    if data is None or not (Path(data) / name).exists():
        sys.exit(f'bench: no {name} in {data}; give a folder that has it with --data (python -m tests.bench --help)')
    return (Path(data) / name).resolve()


def demo_picture(figures, out):
    "The gallery and the map of a run side by side, for the first page."
    from PIL import Image
    left, right = (Image.open(figures / f'{name}.png').convert('RGB') for name in ('gallery', 'map'))
    height = 620
    left, right = (p.resize((round(p.width * height / p.height), height), Image.LANCZOS) for p in (left, right))
    sheet = Image.new('RGB', (left.width + right.width, height), 'white')
    sheet.paste(left, (0, 0)), sheet.paste(right, (left.width, 0))
    out.parent.mkdir(exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def speed(data):
    "Each part against its baseline in the same run."
    from . import bench_augment, bench_coding_rate, bench_import, bench_subspace
    modules = dict(augment=bench_augment, coding_rate=bench_coding_rate, subspace=bench_subspace)
    modules['import'] = bench_import
    parts = {}
    for name, module in modules.items():
        parts[name] = module.measure()
        print(name, parts[name], flush=True)
    return dict(**circumstances('make bench'), **parts)


def nmc_kernels(data):
    "Climbing against a plain loop; deduplication and persistence up to 100,000 end points; relabelling."
    from . import bench_ascent, bench_modes
    return dict(**circumstances('make bench'), ascent=bench_ascent.measure(), modes=bench_modes.measure())


def coil_step(data):
    from . import bench_coil_step
    return dict(**circumstances('make bench'), **bench_coil_step.measure())


def spiral(data):
    "The double spiral with our recipe and with the original's."
    from . import bench_spiral
    return dict(**circumstances('make bench'), **bench_spiral.measure())


def embed_speed(data):
    "Features of a frozen encoder against a bare loop of its network."
    from . import embed
    return dict(**circumstances('python -m tests.bench embed_speed'), **embed.measure())


ENCODER = 'ENCODER=file:weights.safetensors?timm:tf_efficientnet_lite0'


def frozen(data):
    "Every method on the features of one encoder; ENCODER names it, such as timm:tf_efficientnet_lite0 or file:..."
    from . import bench_frozen
    command = f'{ENCODER} python -m tests.bench frozen --data folder'
    return dict(**circumstances(command), **bench_frozen.measure(Path(data) / 'cifar10', ROOT / 'runs/bench/features'))


def photographs(data):
    "The tutorial's command on folders of photographs; ENCODER names the encoder, as for `frozen`."
    from . import bench_photographs
    command = f'{ENCODER} python -m tests.bench photographs --data folder'
    return dict(**circumstances(command), **bench_photographs.measure(
        papermill, found(data, 'cifar10'), found(data, 'coil20_32.npz'), ROOT / 'runs/bench/photographs'))


def benchmark(data):
    "What lies in runs/benchmark, as nbs/benchmark.ipynb has left it."
    path = ROOT / 'runs/benchmark/table.json'
    if not path.is_file(): sys.exit('bench: runs/benchmark has no table; make benchmark runs nbs/benchmark.ipynb first')
    return dict(**circumstances('make benchmark DATA=folder'), **json.loads(path.read_text()))


def speedrun(data):
    "What `make speedrun` has left in runs/speedrun, a file for each set."
    found = [json.loads(p.read_text()) for p in sorted((ROOT / 'runs/speedrun').glob('*.json'))]
    if not found: sys.exit('bench: runs/speedrun is empty; make speedrun fills it')
    command = 'make speedrun ARGS="--set mnist --data folder --seeds 0,1,2"'
    return dict(**circumstances(command), sets={r['set']: {k: r[k] for k in ('target', 'method', 'machine', 'runs')}
                                                for r in found})


def runs_index(data):
    "The table of 10,000 runs, with and without its index."
    from . import bench_runs
    return dict(**circumstances('make bench'), **bench_runs.measure())


def streamed(data):
    "An epoch on a pack against memory, and what reading costs; STREAMED_N takes a part of the 50,000 images."
    from . import bench_streamed
    n = int(os.environ.get('STREAMED_N', 50_000))
    command = ('' if n == 50_000 else f'STREAMED_N={n} ') + 'python -m tests.bench streamed --data folder'
    return dict(**circumstances(command), **bench_streamed.measure(found(data, 'cifar10'), n))


def bf16(data):
    "Methods in bf16 against float32 on this CPU."
    from . import bench_bf16
    found(data, 'mnist.npz')
    command = 'python -m tests.bench bf16 --data folder'
    return dict(**circumstances(command), **bench_bf16.measure(data, ROOT / 'runs'))


def pixel_baselines(data):
    "UMAP with k-means on the pixels, with the K of each table whose runs did not keep it: title -> scores."
    from nmc_workbench.evaluation.baselines import umap_baseline
    mnist, coil20 = (load('npz', root=found(data, f), limit=n) for f, n in
                     (('mnist.npz', 10_000), ('coil20_32.npz', None)))
    cifar10, ten = load('folder', root=found(data, 'cifar10'), limit=10_000), load('digits')
    asked = ((ten, 10, ('1,797 digits, K = 10', '1,797 digits, K not given', '1,797 digits, K found',
                        '1,797 digits, 10 heads', '1,797 digits, 100 clusters in training')),
             (coil20, 20, ('COIL-20, 1,440 images at 32 x 32, K = 20',)),
             (mnist, 10, ('MNIST, 10,000 images, K = 10', 'MNIST, 10,000 images, K found')),
             (cifar10, 10, ('CIFAR-10, K = 10, on a CPU', 'CIFAR-10, 10,000 images, K found')),
             (cifar10, 128, ('CIFAR-10, 10,000 images, 10 heads',)))
    rows = {}
    for images, k, titles in asked:
        start = time.perf_counter()
        rows |= dict.fromkeys(titles, umap_baseline(images, k) | dict(k=k, seconds=time.perf_counter() - start))
        print(titles[0], rows[titles[0]], flush=True)
    return dict(**circumstances(command_for(data), 'umap-learn'), rows=rows)


# the name of each bench: its record, what measures it, and whether it needs data
BENCHES = {
    'speed':            ('speed', speed, False),
    'runs_index':       ('runs_index', runs_index, False),
    'benchmark':        ('benchmark', benchmark, True),
    'speedrun':         ('speedrun', speedrun, True),
    'coil_step':        ('coil_step', coil_step, False),
    'embed_speed':      ('embed_speed', embed_speed, False),
    'digits':           ('nmce_digits', digits, False),
    'spiral':           ('nmce_spiral', spiral, False),
    'nmc_digits':       ('nmc_digits', nmc_digits, False),
    'nmc_mixtures':     ('nmc_mixtures', nmc_mixtures, False),
    'nmc_kernels':      ('nmc_kernels', nmc_kernels, False),
    'nmc_study':        ('nmc_study', nmc_study, False),
    'nmc_study_mnist':  ('nmc_study_mnist', nmc_study_mnist, True),
    'nmc_study_coil20': ('nmc_study_coil20', nmc_study_coil20, True),
    'sela_digits':      ('sela_digits', sela_digits, False),
    'sela_mnist':       ('sela_mnist', sela_mnist, True),
    'sela_cifar10':     ('sela_cifar10_cpu', sela_cifar10, True),
    'and_digits':       ('and_digits', and_digits, False),
    'and_mnist':        ('and_mnist', and_mnist, True),
    'and_cifar10':      ('and_cifar10', and_cifar10, True),
    'deepcluster_digits': ('deepcluster_digits', deepcluster_digits, False),
    'deepcluster_mnist':  ('deepcluster_mnist', deepcluster_mnist, True),
    'deepcluster_study':  ('deepcluster_study', deepcluster_study, True),
    'deepcluster_strategies': ('deepcluster_strategies', deepcluster_strategies, True),
    'deepcluster_strategies_resnet18': ('deepcluster_strategies_resnet18', deepcluster_strategies_resnet18, True),
    'deepcluster_cifar10': ('deepcluster_cifar10', deepcluster_cifar10, True),
    'deepcluster_epoch': ('deepcluster_epoch', deepcluster_epoch, True),
    'deepcluster_architectures': ('deepcluster_architectures', deepcluster_architectures, False),
    'kmeans':           ('kmeans', kmeans, True),
    'sinkhorn':         ('sinkhorn', sinkhorn, False),
    'sinkhorn_features': ('sinkhorn_features', sinkhorn_features, False),
    'scale':            ('scale', scale, False),
    'discover':         ('discover', discover, False),
    'explorer':         ('explorer', explorer, True),
    'find_similar':     ('find_similar', find_similar, False),
    'point_map':        ('point_map', point_map, True),
    'k_rules':          ('k_rules', k_rules, True),
    'frozen':           ('frozen', frozen, True),
    'streamed':         ('streamed', streamed, True),
    'bf16':             ('bf16', bf16, True),
    'photographs':      ('photographs', photographs, True),
    'pixel_baselines':  ('pixel_baselines', pixel_baselines, True),
    'coil20':           ('nmce_coil20', coil20, True),
    'mnist':            ('nmce_mnist', mnist, True),
    'cifar10':          ('nmce_cifar10_cpu', cifar10, True)}


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help=f'some of {", ".join(BENCHES)}')
    parser.add_argument('--data', help='the folder with the data sets')
    parser.add_argument('--fresh', action='store_true', help='delete the runs of an earlier bench first')
    o = parser.parse_args()
    for name in o.names:
        if name not in BENCHES: parser.error(f'unknown bench {name!r}; known: {", ".join(BENCHES)}')
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name in o.names or [n for n, (*_, needs) in BENCHES.items() if not needs]:
        if o.fresh:
            for path in (ROOT / 'runs/bench').glob(f'{name}_seed*'): shutil.rmtree(path)
        record, measure, _ = BENCHES[name]
        (RECORDS / f'{record}.json').write_text(json.dumps(measure(o.data), indent=1) + '\n')
    for tool in ('tables.py', 'readme.py'): subprocess.run([sys.executable, str(ROOT / 'tools' / tool)], check=True)


if __name__ == '__main__': main()
