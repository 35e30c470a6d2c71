"Fill the places `<!-- bench:NAME -->` of the notebooks and pages with the tables of docs/records/NAME.json."
import json
import re
from functools import cache
from pathlib import Path
from statistics import mean, median, pstdev

import scale

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r'(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)', re.S)
WIDTH = 120         # of a line of text; a row of a table is one line, however long


def table(head, rows):
    "A markdown table."
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [head, ['---'] * len(head), *rows])


def wrapped(text):
    "Text in lines of at most 120 characters; what stands between backticks is not broken."
    lines = ['']
    for word in re.findall(r'(?:`[^`]*`|\S)+', text):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH: lines.append(word)
        else: lines[-1] = f'{lines[-1]} {word}'.strip()
    return '\n'.join(lines)


def page(*parts):
    "Tables and sentences, one below the other."
    return '\n\n'.join(filter(None, parts))


def made(record, more=''):
    "The sentence below a table that says where it comes from."
    v = record['versions']
    packages = ', '.join(f'{k} {v[k]}' for k in ('torch', 'torchvision', 'scikit-learn'))
    machine = f'{record["cores"]} cores of {record["processor"]}, Python {record["python"]}, {packages}'
    note = f'; {record["note"]}' if record.get('note') else ''
    return wrapped(f'`{record["command"]}`, {record["date"]}: {machine}{note}. {more}')


def spread(rows, key, form='{:.3f}'):
    "Mean ± standard deviation over the rows; of one row, its value."
    values = [r[key] for r in rows]
    if len(values) == 1: return form.format(values[0])
    return f'{form.format(mean(values))} ± {form.format(pstdev(values))}'


def bold(text):
    "The same with the mean in bold."
    return '**' + text.replace(' ±', '** ±')


def threads(n): return f'{n} thread{"s" * (n > 1)}'
def times(ratio): return f'{ratio:.1f} times'


# --- training ------------------------------------------------------------------------------------------

ON_PIXELS = dict(kmeans_pixels='k-means on pixels', umap_kmeans_pixels='UMAP + k-means on pixels')


@cache
def by_umap(): return json.loads((ROOT / 'docs/records/pixel_baselines.json').read_text(encoding='utf-8'))['rows']


def on_pixels(record):
    "Baselines on pixels, title -> scores; UMAP's are in a record of their own where the runs did not keep them."
    later = {'umap_kmeans_pixels': by_umap()[record['title']]} if record['title'] in by_umap() else {}
    found = later | record if 'kmeans_pixels' in record else record
    return {title: found[name] for name, title in ON_PIXELS.items() if name in found}


def titles(record): return list(on_pixels(record))
def beside(record, key): return [f'{s[key]:.3f}' for s in on_pixels(record).values()]


def trained(record):
    "The seeds of a train notebook beside the baselines on pixels that were measured with them."
    runs, several = record['rows'], len(record['rows']) > 1
    head = [record['title'], *(f'seed {r["seed"]}' for r in runs), *['mean ± std'] * several, *titles(record)]
    rows = [[k.upper(), *(f'{r[k]:.3f}' for r in runs), *[bold(spread(runs, k))] * several, *beside(record, k)]
            for k in ('acc', 'nmi', 'ari')]
    seconds = [r['seconds'] for r in runs]
    last = ['seconds, whole notebook', *(f'{s:.0f}' for s in seconds), *[f'{mean(seconds):.0f}'] * several,
            *[''] * len(titles(record))]
    return page(table(head, [*rows, last]), made(record))


def spiral(record):
    "Ours and the original's optimiser, seed by seed."
    head = ['double spiral', 'seed', 'ACC', 'processor seconds', 'steps', 'batch', 'R - Rc, nats']
    names = (('recipe `spiral`', 'ours'), ("the original's: Adam, constant rate", 'original'))
    rows = [[name, r['seed'], f'**{r["acc"]:.4f}**', f'{r["cpu_seconds"]:.0f}', f'{r["steps"]:,}', r['batch_size'],
             f'{r["reduction"]:.2f} of {r["best"]:.2f}'] for name, key in names for r in record[key]]
    return page(table(head, rows), made(record))


def nmc_digits(record):
    "NMC's seeds beside k-means with as many clusters on the same embedding."
    runs = [{**r, **{f'kmeans_{k}': v for k, v in r['kmeans'].items()}, 'all': r['seconds'] + r['seconds_encoder']}
            for r in record['rows']]
    none = [''] * len(titles(record))
    def line(name, key, form='{:.3f}', means='{:.3f}', more=none):
        return [name, *(form.format(r[key]) for r in runs), bold(spread(runs, key, means)), *more]
    rows = [line('clusters found', 'n_clusters', '{}', '{:.1f}'),
            line('modes before merging', 'n_modes', '{}', '{:.1f}'),
            *(line(k.upper(), k, more=beside(record, k)) for k in ('acc', 'nmi', 'ari')),
            *(line(f'{k.upper()}, k-means with as many clusters', f'kmeans_{k}') for k in ('acc', 'nmi')),
            line('seconds, encoder and all', 'all', '{:.0f}', '{:.0f}')]
    head = [record['title'], *(f'seed {r["seed"]}' for r in runs), 'mean ± std', *titles(record)]
    return page(table(head, rows), made(record))


def nmc_mixtures(record):
    "Clusters found in mixtures of Gaussians."
    head = ['Gaussians 8 standard deviations apart', 'clusters found, by seed', 'worst ACC', 'seconds per fit']
    rows = [[name, ', '.join(str(r['n_clusters']) for r in runs), f'{min(r["acc"] for r in runs):.3f}',
             f'{mean(r["seconds"] for r in runs):.0f}'] for name, runs in record['rows'].items()]
    return page(table(head, rows), made(record))


def nmc_study(record):
    "Every data set's variants, then the range of eps."
    parts = [part for name, found in record['sets'].items() for part in (variants(name, found), eps_range(name, found))]
    return page(*parts, made(record))


def variants(name, found):
    "The variants of a data set, as means over their seeds."
    head = [name, 'seeds', 'clusters', 'modes', 'ACC', 'NMI', 'ARI',
            'stable within eps', 'stable label', 'k-means stood in']
    columns = [*((k, '{:.1f}') for k in ('n_clusters', 'n_modes')), *((k, '{:.3f}') for k in ('acc', 'nmi', 'ari')),
               *((k, '{:.2f}') for k in ('stability_eps', 'stability_assign'))]
    return table(head, [[variant, len(r), *(spread(r, k, form) for k, form in columns),
                         'yes' if any(x['fallback'] for x in r) else ''] for variant, r in found['rows'].items()])


def eps_range(name, found):
    "What other values of eps than the recipe's give."
    rows = [['clusters', *(spread(r, 'n_clusters', '{:.1f}') for r in found['eps'].values())],
            ['NMI', *(spread(r, 'nmi') for r in found['eps'].values())]]
    return table([f"{name}, dbscan_eps of the recipe's fit", *found['eps']], rows)


def by_seed(record, **more):
    "The seeds: features before and after training, scores, and what `more` names (title -> key of a row)."
    runs, several, none = record['rows'], len(record['rows']) > 1, [''] * len(titles(record))
    def line(name, key, form='{:.3f}', more=none):
        return [name, *(form.format(r[key]) for r in runs), *[bold(spread(runs, key, form))] * several, *more]
    rows = [line('nearest neighbours, untrained', 'knn_untrained'), line('nearest neighbours', 'knn'),
            *(line(k.upper(), k, more=beside(record, k)) for k in ('acc', 'nmi', 'ari')),
            *(line(name, key) for name, key in more.items()), line('seconds, whole notebook', 'seconds', '{:.0f}')]
    seeds = [f'seed {r["seed"]}' for r in runs]
    return page(table([record['title'], *seeds, *['mean ± std'] * several, *titles(record)], rows), made(record))


def sela(record): return by_seed(record, purity='purity')


def deepcluster(record):
    return by_seed(record, **{'NMI of the first clusters in training': 'nmi_first',
                              'NMI of the last clusters in training': 'pseudo_nmi'})


def rounds(record):
    "The seeds of AND: features round by round, and the clusters that were read from them."
    runs, several, none = record['rows'], len(record['rows']) > 1, [''] * len(titles(record))
    def line(name, of, form='{:.3f}', more=none):
        values = [of(r) for r in runs]
        mean_of = bold(spread([dict(x=v) for v in values], 'x', form))
        return [name, *map(form.format, values), *[mean_of] * several, *more]
    rows = [line(f'nearest neighbours in the memory, round {i}', lambda r: r['neighbours'][i])
            for i in range(len(runs[0]['neighbours']))]
    rows += [line('nearest neighbours, unchanged images', lambda r: r['knn']),
             line('neighbours of anchors of one class, last round', lambda r: r['consistency'][-1]),
             ['clusters found', *(str(r['n_clusters']) for r in runs), *[''] * several, *['given: 10'] * len(none)],
             *(line(k.upper(), lambda r: r[k], more=beside(record, k)) for k in ('acc', 'nmi', 'ari')),
             line('seconds, whole notebook', lambda r: r['seconds'], '{:.0f}')]
    seeds = [f'seed {r["seed"]}' for r in runs]
    rules = [[f'`{name}`', r['n_clusters'], f'{r["acc"]:.3f}', f'{r["nmi"]:.3f}']
             for name, r in runs[0].get('rules', {}).items()]
    more = table(['every rule with its own defaults, on the features of seed 0', 'K', 'ACC', 'NMI'], rows=rules)
    return page(table([record['title'], *seeds, *['mean ± std'] * several, *titles(record)], rows),
                more if rules else '', made(record))


def deepcluster_variant(record):
    "What the variant's own files say of its runs."
    rows = [[r['network'], r['kmeans'], str(r['runs']), f'{r["first"]:.3f}', f'{r["best"]:.3f}',
             f'{r["last"]:.3f} ± {r["std"]:.3f}'] for r in record['rows']]
    head = ['MNIST, 60,000 images, 25 epochs, K = 10', 'k-means by', 'runs', 'NMI: first epoch', 'best', 'last']
    return page(table(head, rows), f'From the {record["source"]}.')


def deepcluster_study(record):
    "Means over the seeds of the variant's values, of each remedy, and of all."
    head = [f'MNIST, {record["n"]:,} images, {record["epochs"]} epochs, mean of {record["seeds"]} seeds', 'ACC', 'NMI',
            'NMI in training: first', 'best', 'last', 'labels predicted', 'largest cluster', 'clustering of time']
    def line(name, r):
        nmi = r['nmi_by_epoch']
        return [name, f'{r["acc"]:.3f}', f'{r["nmi"]:.3f} ± {r["nmi_std"]:.3f}', f'{nmi[0]:.3f}', f'{max(nmi):.3f}',
                f'{nmi[-1]:.3f}', f'{r["predicted"]:.2f}', f'{r["largest_share"]:.2f}', f'{r["clustering"]:.0%}']
    rows = [line(name, r) for name, r in record['rows'].items()]
    if pixels := record.get('kmeans_pixels'):
        rows.append(['k-means on pixels', f'{pixels["acc"]:.3f}', f'{pixels["nmi"]:.3f}', *[''] * 6])
    return page(table(head, rows), made(record))


# of a network: what the tables call it, and its name among the variant's
_CALLED = dict(feedforward=('a feed-forward network', 'feed-forward'), resnet18=('ResNet-18', 'ResNet-18'))
_CONTRASTS = dict(none='cross-entropy alone', labels='with the contrast of pseudo-labels',
                  views='with the contrast of two views')


def deepcluster_strategies(record):
    "Each second loss here, then in the variant, each as first, best and last epoch, and k-means on pixels."
    name, there = next(v for k, v in _CALLED.items() if record['backbone'].startswith(k))
    runs = 'one seed' if record['seeds'] == 1 else f'mean of {record["seeds"]} seeds'
    head = [f'MNIST, {record["n"]:,} images, {name}, {record["epochs"]} epochs, {runs}', 'ACC: untrained', 'best',
            'last', 'NMI: untrained', 'best', 'last', 's per epoch']
    rows = [[_CONTRASTS[k], *course(r['acc_wanted'], r['acc'], r['acc_std']),
             *course(r['nmi_wanted'], r['nmi'], r['nmi_std']), f'{r["epoch_seconds"]:.0f}']
            for k, r in record['rows'].items()]
    published = json.loads((ROOT / 'docs/records/deepcluster_curves.json').read_text(encoding='utf-8'))
    rows += [[f'the variant, {_CONTRASTS[r["contrast"]]}, k-means by {r["kmeans"]}', *three(r.get('acc')),
              *three(r['nmi']), ''] for r in published['rows'] if r['network'] == there]
    pixels = record['kmeans_pixels']
    rows.append(['k-means on pixels', '', '', f'{pixels["acc"]:.3f}', '', '', f'{pixels["nmi"]:.3f}', ''])
    return page(table(head, rows), made(record))


def course(curve, last, std):
    "The first and the best value of a curve, and the last one of the fit with its deviation over the seeds."
    return f'{curve[0]:.3f}', f'{max(*curve, last):.3f}', f'**{last:.3f}** ± {std:.3f}' if std else f'**{last:.3f}**'


def three(curve):
    "First, best and last value of a published curve, or nothing."
    return ['', '', ''] if curve is None else [f'{curve[k]:.2f}' for k in ('first', 'best', 'last')]


def deepcluster_architectures(record):
    "Seconds and loss of the two epochs of every network and family of images."
    families = list(dict.fromkeys(r['family'] for r in record['rows']))
    networks = list(dict.fromkeys(r['backbone'] for r in record['rows']))
    found = {(r['backbone'], r['family']): r for r in record['rows']}
    def cell(r):
        (a, b), (c, d) = r['seconds'], r['losses']
        return f'{a:.1f} s, {b:.1f} s; {c:.2f}, {d:.2f}'
    rows = [[f'`{n}`', *(cell(found[n, f]) for f in families)] for n in networks]
    grown = [n for n in networks if any(str(found[n, f]['size']) not in f for f in families)]
    said = (f'Seconds of each epoch; its loss. Between the two the run was resumed. '
            f'Enlarged for {" and ".join(f"`{n}`" for n in grown)}, which take images of at least '
            f'{" and ".join(str(min(found[n, f]["size"] for f in families)) for n in grown)} pixels per side.')
    head = [f'{record["n"]} images, two epochs', *families]
    return page(table(head, rows), wrapped(said), made(record))


def deepcluster_epoch(record):
    "What an epoch spends its time on."
    epochs = f'{record["epochs"]} epoch{"s" * (record["epochs"] > 1)}'
    head = [f'{record["n"]:,} images, {epochs}', 's per epoch', 'features', 'PCA', 'k-means', 'PCA and k-means']
    rows = [[f'{name}, {r["components"]} components', *(f'{r[k]:.1f}' for k in ('seconds', 'features_time', 'pca_time',
             'cluster_time')), f'**{r["share"]:.1%}**'] for name, r in record['rows'].items()]
    return page(table(head, rows), made(record))


def deepcluster_start(record):
    "Features of the run that is started from, and after DeepCluster, for every seed."
    head = [f'CIFAR-10, {record["n"]:,} images', 'seed', 'nearest neighbours', 'ACC', 'NMI', 'seconds']
    after = f'after {record["epochs"]} epochs of DeepCluster'
    rows = [[name, str(r['seed']), *(f'{r[when][k]:.3f}' for k in ('knn', 'acc', 'nmi')), f'{r[seconds]:.0f}']
            for r in record['rows']
            for name, when, seconds in ((f'the start: {record["start"]}', 'before', 'seconds_start'),
                                        (after, 'after', 'seconds'))]
    return page(table(head, rows), wrapped(f'ACC and NMI of ten clusters by k-means. {record["tried"]}'), made(record))


def kmeans(record):
    "Engines of k-means, and PCA, each against the libraries in the same run."
    parts, pca, contrast = [], record['pca'], record['contrast']
    for k, engines in record['kmeans'].items():
        own = engines['default']['seconds']
        rows = [[name, f'{e["seconds"]:.2f}', f'{e["seconds"] / own:.2f}', f'{e["objective"]:.4f}', f'{e["mb"]:,}']
                for name, e in engines.items()]
        head = [f'{pca["shape"][0]:,} x 256, K = {int(k):,}', 's', 'times the default', 'objective over the default',
                'MB beside the samples']
        parts.append(table(head, rows))
    said = (f'PCA of {pca["shape"][0]:,} x {pca["shape"][1]:,} to {pca["components"]}: {pca["seconds"]:.1f} s, faiss '
            f'{pca["faiss"]:.1f} s. NT-Xent at batch {contrast["batch"]}, forward and backward: '
            f'{1e3 * contrast["ours"]:.1f} ms, a masked matrix {1e3 * contrast["plain"]:.1f} ms.')
    return page(*parts, wrapped(said), made(record))


# --- speed ---------------------------------------------------------------------------------------------

SPEED = ['medians of one run', 'here', 'baseline', 'ratio']


def speed(record):
    "Ours against the baseline, measured in turns in one run."
    a, c, i, e = (record[k] for k in ('augment', 'coding_rate', 'import', 'subspace'))
    codes, shape = e['threads_1'], f'({c["n"]}, {c["d"]}, {c["n_clusters"]})'
    rows = [['SimCLR preset at 32 x 32, images/s, 1 core', f'{a["images_per_s"]:,.0f}',
             f'{a["torchvision_images_per_s"]:,.0f}', times(a['ratio'])],
            *coding_rates(c, shape),
            [f'elastic-net codes, {e["n"]} x {e["d"]}, s, 1 thread', f'{codes["ours_s"]:.2f}',
             f'{min(codes["lasso_lars_s"], codes["lasso_cd_s"]):.2f}', times(codes['ratio'])],
            *(imports(i, *words) for words in (('import nmc_workbench', 'package'),
                                               ('from nmc_workbench.methods import NMCE', 'methods')))]
    said = ('Baselines, from the top: torchvision on PIL, image by image; a K x d x n tensor with logdet and autograd; '
            "scikit-learn's `sparse_encode`, sample by sample, scaled up from every 12th sample; "
            '`import torch, torchvision, sklearn`.')
    return page(table(SPEED, rows), wrapped(said), made(record))


def coding_rates(measured, shape):
    "Rows of the coding rates, on one thread and on two."
    for t in (1, 2):
        m = measured[f'threads_{t}']
        yield [f'coding rate reduction and its gradient, {shape}, ms, {threads(t)}', f'{m["ours_ms"]:.1f}',
               f'{m["plain_ms"]:.1f}', times(m['ratio'])]


def imports(measured, statement, key):
    "The row of an import."
    return [f'`{statement}`, s', f'{measured[f"seconds_{key}"]:.2f}', f'{measured["seconds_baseline"]:.2f}',
            f'{measured[f"ratio_{key}"]:.2f} of it']


def coil_step(record):
    "One training step, ours against the original's way."
    rows = [[f'COIL-20 training step, 2,880 views of 64 x 64, processor s, {threads(t)}', f'{r["ours_cpu_s"]:.1f}',
             f'{r["plain_cpu_s"]:.1f}', times(r['ratio_cpu'])] for t in (1, 2) if (r := record.get(f'threads_{t}'))]
    said = "Baseline: torchvision on PIL, image by image, and PyTorch with its defaults."
    return page(table(SPEED, rows), said, made(record))


def nmc_kernels(record):
    "Climbing against a plain loop, and the end points' modes as they grow in number."
    again = record['modes']['relabel']
    said = (f'A new tau on {again["n"]:,} samples of {again["modes"]} modes takes {again["median_ms"]:.2f} ms, '
            f'at most {again["max_ms"]:.1f} ms, over {again["taus"]} values.')
    return page(climbs(record['ascent']), 'Baseline: every sample is evaluated in every try.', growth(record['modes']),
                waited(record['modes'].get('two_threads', {})), said, made(record))


def climbs(measured):
    "The climb, beside a plain loop."
    def named(key): return key.replace('_threads_1', ', 1 thread').replace('_threads_2', ', 2 threads')
    start = f'climb of {measured["n"]:,} x {measured["d"]}, 20 steps, 512 x 4'
    rows = [[f'{start}, {named(k)}', f'{r["ours_s"]:.1f} s', f'{r["plain_s"]:.1f} s', times(r['ratio'])]
            for k, r in measured.items() if isinstance(r, dict)]
    return table(['faster of two runs', 'here', 'baseline', 'ratio'], rows)


def growth(modes, sizes=(10_000, 30_000, 100_000)):
    "Deduplication and merge tree, for end points that lie in different ways."
    def seconds(r): return f'{r["deduplicate_cpu_s"] + r["tree_s"]:.1f}'
    forms = [f for f in ('collapsed', 'loose', 'many_modes', 'thin', 'spread') if f'{f}_{sizes[-1]}' in modes]
    rows = [[f'{form} end points, 128-d', *(seconds(modes[f'{form}_{n}']) for n in sizes),
             f'{modes[f"{form}_{sizes[-1]}"]["memory_mb"] / 1024:.1f}'] for form in forms]
    return table(['deduplication and merge tree, processor s', *(f'{n:,}' for n in sizes), 'GiB'], rows)


def waited(two):
    "How long one waits on two threads, where it was measured."
    whole = [f'{form.removesuffix("_100000")} {r["deduplicate_s"] + r["tree_s"]:.0f} s'
             for form, r in two.items() if isinstance(r, dict)]
    return f'At 100,000 on two threads, from start to end: {", ".join(whole)}.' if whole else ''


def sinkhorn(record):
    "End to end against the original's form, then milliseconds per iteration."
    head = ['logits of a trained network', 's', 'original, s', 'times faster', 'iterations', 'other labels', 'memory']
    rows = [solved(record['n'], r, name, key) for r in record['rows']
            for name, key in (("the original's iterates", 'parity'), ('relax=1.8', 'relaxed'))]
    floors = [f'K = {r["K"]:,}: {r["baseline_ms_an_iteration"]:.1f} ms per iteration of the original, '
              f'{r["floor_ms"]:.1f} ms to read its matrix twice' for r in record['rows']]
    said = f'Memory is a multiple of the float32 logits. {"; ".join(floors)}.'
    by_size = [[f'{g["n"]:,} x {g["K"]:,}', g['all_entries_ms'], g['those_that_matter_ms']] for g in record['growth']]
    return page(table(head, rows), wrapped(said),
                table(['milliseconds per iteration', 'over all entries', 'over those that matter'], by_size),
                made(record, f'Logits of a network trained on {record["trained_on"]}.'))


def solved(n, r, name, key):
    "A row: one way to solve a problem of n samples."
    return [f'{n:,} x {r["K"]:,}, {name}', f'{r[f"{key}_s"]:.2f}', f'{r["baseline_s"]:.1f}',
            f'{r[f"{key}_times_faster"]:.1f}', f'{r[f"{key}_iterations"]:,} of {r["baseline_iterations"]:,}',
            r[f'{key}_labels_that_differ'], f'{r[f"{key}_memory"]:.2f}']


def sinkhorn_features(record):
    "Memory and time of an iteration, by the number of samples."
    k, default = record['K'], record['default']
    head = [f'K = {k:,}, d = {record["d"]}', 'processor s', 'ns per entry', 'features, MB', 'logits, MB',
            'most memory, MB', 'imports alone']
    rows = [[f'{r["n"]:,} samples', f'{r["cpu_seconds"]:.2f}', f'{r["cpu_seconds"] / r["n"] / k * 1e9:.2f}',
             f'{r["n"] * record["d"] * 4 / 2 ** 20:,.0f}', f'{r["n"] * k * 4 / 2 ** 20:,.0f}', f'{r["peak_mb"]:,}',
             r['imported_mb']] for r in record['rows']]
    said = (f'Processor seconds of an iteration over all entries, in single precision, on '
            f'{threads(record["threads"])}; {record["times_n"]:.0f} times the samples take {record["ratio"]:.2f} times '
            f'as long. The logits are never there as a whole. In double precision, and leaving out the entries too '
            f'small to count where they fit, as is the default, {default["n"]:,} samples take at most '
            f'{default["peak_mb"]:,} MB.')
    return page(table(head, rows), wrapped(said), made(record))


def discover(record):
    "Anchors and neighbours against the original's way and the product alone, then their growth, then ImageNet."
    head = [f'd = {record["d"]}, processor s', 'here', 'original', 'times faster', 'product alone', 'times that',
            'other anchors', 'neighbours']
    rows = [[f'N = {r["n"]:,}, {r["n_anchors"]:,} anchors, k = {r["k"]}', f'{r["ours_cpu_s"]:.2f}',
             f'{r["original_cpu_s"]:.1f}', f'{r["times_faster_cpu_s"]:.1f}', f'{r["floor_cpu_s"]:.2f}',
             f'{r["times_floor_cpu_s"]:.2f}', r['other_anchors'], r['other_neighbours']] for r in record['rows']]
    sizes = [[f'{r["n"]:,}', f'{r["cpu_s"]:.1f}', f'{r["ns"]:.2f}', f'{r["memory_mb"]:.0f}', f'{r["rows_mb"]:.0f}']
             for r in record['growth']]
    head_of_sizes = ['N, all of them anchors', 'processor s', 'ns per pair', 'memory, MB', 'the rows themselves, MB']
    least, worst = record['rows'][0], max(r['entropy_gap_to_double'] for r in record['rows'])
    said = (f'On the clock, with {threads(record["threads"])}, the first row is {least["ours_s"]:.2f}, '
            f'{least["original_s"]:.1f} and {least["floor_s"]:.2f}. '
            f'Entropies differ from those in double precision by at most {worst:.0e}.')
    return page(table(head, rows), wrapped(said), table(head_of_sizes, sizes), wrapped(for_imagenet(record)),
                made(record))


def for_imagenet(record):
    "What ImageNet would take, and where that comes from."
    i, sheet = record['imagenet'], record['sheet']
    tflops, tbytes = (f'{sheet[k] / 1e12:.3g}' for k in ('flops_per_s', 'bytes_per_s'))
    return (f'For the {i["n"]:,} images of ImageNet, this machine would take {i["here_s"] / 3600:.1f} processor '
            f'hours, by the square of N from N = {i["from_n"]:,}. A GPU that did {tflops} TFLOP/s in float32 and '
            f'{tbytes} TB/s, the peaks of an H200 by its data sheet, would take {i["gpus_1_s"]:.0f} s, and eight '
            f'{i["gpus_8_s"]:.1f} s: a bound from counted operations, not a measurement.')


def explorer(record):
    "What a person waits for."
    rows = [('first picture after a run is chosen, s', 'first_picture_s', 5),
            (f'lasso of {record["lasso_points"]:,} points to the gallery, ms, median of 7', 'lasso_ms', 500),
            ('next page of the gallery, ms, median of 7', 'page_ms', 300),
            ('memory of the kernel, MB', 'kernel_mb', 1500)]
    head = [f'{record["n"]:,} images of 28 x 28 in a browser', 'measured', 'wanted at most']
    return page(table(head, [[name, record[key], most] for name, key, most in rows]), made(record))


def k_rules(record):
    "K of every rule on every set, its agreement with the classes, and its seconds on the first of the largest sets."
    sets = record['rows']
    rules = list(next(iter(sets.values()))['rules'])
    def lines(of, some=rules): return [[f'`{r}`', *(of(s['rules'][r]) for s in sets.values())] for r in some]
    def part(words, of, *more): return table([words, *sets], lines(of, *more))
    true = ['classes', *(s['n_classes'] for s in sets.values())]
    found = table(['K, and its range over settings', *sets], [true, *lines(k_found)])
    noisy = [r for r in rules if any(k_covered(s['rules'][r]) for s in sets.values())]
    largest = max(sets.values(), key=lambda s: s['n'])
    seconds = ', '.join(f'`{r}` {v["cpu_seconds"]:.0f}' for r, v in largest['rules'].items() if v)
    return page(found, *(part(k.upper(), lambda r, k=k: f'{r[k]:.2f}' if r else '') for k in ('nmi', 'acc')),
                part('share that was not noise', k_covered, noisy),
                wrapped(f'Processor seconds for {largest["n"]:,} samples of {largest["d"]} dimensions: {seconds}.'),
                made(record))


def k_found(r):
    "K, and its range where the rule tells one."
    if not r: return 'not installed'
    low, high = r['k_range'] or (r['n_clusters'],) * 2
    return f'{r["n_clusters"]}' + (f' ({low}-{high})' if low < high else '')


def k_covered(r): return f'{r["covered"]:.0%}' if r and r['covered'] < .995 else ''


# --- the benchmark ---------------------------------------------------------------------------------------

def benchmark(record):
    "Every set: methods and baselines on pixels with K given and found, baselines on embeddings, wins and losses."
    parts = [part for name, title in record['sets'].items() for part in of_set(record, name, title)]
    said = '\n'.join(wrapped(f'- {s}').replace('\n', '\n  ') for s in record['said'])
    return page(*parts, said, made(record))


def of_set(record, name, title):
    "The tables of a set; of one without any run, that it has none."
    rows = [r for r in record['rows'] if r['set'] == name]
    said = papers(name)
    if not any(r['runs'] for r in rows):
        return [wrapped(' '.join([f'**{title}**: not run yet.', *(f"{m}'s paper: {v}." for m, v in said.items())]))]
    return [*(ranked([r for r in rows if r['k'] == k and r['on'] in (None, 'pixels')], f'{title}, K {k}', said)
              for k in ('given', 'found')), on_embeddings(rows, title)]


COLUMNS = dict(acc=('ACC', '{:.3f}'), nmi=('NMI', '{:.3f}'), ari=('ARI', '{:.3f}'), n_clusters=('clusters', '{:.1f}'),
               clustered=('clustered', '{:.0%}'), seconds=('seconds', '{:.1f}'), memory_mb=('MB', '{:,.0f}'))


def ranked(rows, title, said):
    "Methods and baselines on pixels, the best first; those without a run come last, with the reason."
    done = sorted((r for r in rows if r['runs']), key=lambda r: -mean(v['acc'] for v in r['runs']))
    def tells(key): return len({v[key] for r in done for v in r['runs']}) > 1
    columns = {k: v for k, v in COLUMNS.items() if k not in ('n_clusters', 'clustered') or tells(k)}
    lines = [[*called(r), *(known(r['runs'], k, form) for k, (_, form) in columns.items())] for r in done]
    if lines: lines[0][2] = bold(lines[0][2]) if '±' in lines[0][2] else f'**{lines[0][2]}**'
    lines += [[*called(r), r['missing'], *[''] * (len(columns) - 1)] for r in rows if not r['runs']]
    if said: lines = [[*line, said.get(line[0], '')] for line in lines]
    return table([title, 'seeds', *(name for name, _ in columns.values()), *['its paper'] * bool(said)], lines)


def called(r): return r['by'] + (' on pixels' if r['on'] else ''), len(r['runs']) or ''


def known(runs, key, form):
    "Mean and deviation of what was measured."
    runs = [r for r in runs if r.get(key) is not None]
    return spread(runs, key, form) if runs else ''


def on_embeddings(rows, title):
    "ACC of every baseline on the pixels and on the embedding of each method that has runs, the best in bold."
    found = {(r['by'], r['on']): mean(v['acc'] for v in r['runs']) for r in rows if r['on'] and r['runs']}
    places = list(dict.fromkeys(r['on'] for r in rows if (r['by'], r['on']) in found))
    if places in ([], ['pixels']): return ''
    best = max(found.values())
    def cell(by, on): return '' if (v := found.get((by, on))) is None else f'**{v:.3f}**' if v == best else f'{v:.3f}'
    ways = list(dict.fromkeys(by for by, _ in found))
    lines = [[by, *(cell(by, on) for on in places)] for by in ways]
    return table([f'{title}: mean ACC of baselines on', *places], lines)


def overview(record):
    "Mean ACC and minutes of every method on every set, and the best baseline on the pixels, K given and K found."
    return page(*(summed(record, k) for k in ('given', 'found')), wrapped(
        'Mean ACC over the seeds, and median minutes of one core, with the recipes for two cores. Seeds, deviations '
        'and all baselines, also on the embedding of each method, stand on the page *Benchmark*.'), made(record))


def summed(record, k):
    "The part of one kind of K, a column per set; the best of the methods in bold."
    rows = [r for r in record['rows'] if r['k'] == k and r['on'] in (None, 'pixels') and r['runs']]
    def over_seeds(runs): return mean(v['acc'] for v in runs), median(v['seconds'] for v in runs)
    found = {(r['set'], r['by'], r['on']): over_seeds(r['runs']) for r in rows}
    def best(name, on):
        return max((key for key in found if key[0] == name and key[2] == on), key=found.get, default=None)
    def said(key):
        if key not in found: return ''
        text = f'{found[key][0]:.3f}' if key[2] or key != best(key[0], None) else f'**{found[key][0]:.3f}**'
        return f'{text}, {minutes_of(found[key][1])}'
    lines = [[by, *(said((name, by, None)) for name in record['sets'])]
             for by in dict.fromkeys(r['by'] for r in rows if r['on'] is None)]
    against = [best(name, 'pixels') for name in record['sets']]
    lines.append(['the best baseline on pixels', *(f'{key[1]}: {said(key)}' if key else '' for key in against)])
    return table([f'K {k}', *record['sets'].values()], lines)


def minutes_of(seconds):
    if seconds < 1: return 'under 1 s'
    return f'{seconds / 60:.0f} min' if seconds >= 30 else f'{seconds:.0f} s'


def papers(name):
    "Method -> what its paper reports on a set."
    said = json.loads((ROOT / 'docs/pages/papers.json').read_text(encoding='utf-8'))
    return {p['method']: p['text'] for p in said if p['page'] == 'benchmark.md' and p.get('set') == name}


# --- features of an encoder -------------------------------------------------------------------------------

def streamed(record):
    "An epoch on a pack and in memory, and images per second of each way to read."
    names = dict(resident='in memory', pack='a pack')
    rows = [[name, f'{record["epoch"][k]["seconds"]:.1f}', f'{record["epoch"][k]["cpu_seconds"]:.1f}']
            for k, name in names.items()]
    rows.append(['ratio', f'**{record["ratio"]:.2f}**', f'{record["ratio_cpu"]:.2f}'])
    ways = dict(pack='a pack', files='JPEG files', litdata_jpeg='litdata, the same JPEG files in chunks',
                litdata_bytes='litdata, their bytes in chunks')
    read = [[ways[k], f'{r["per_second"]:,}', f'{r["per_cpu_second"]:,}'] for k, r in record['reading'].items()]
    weights = 'the same weights' if record['same_weights'] else 'other weights'
    version = f' litdata {record["litdata"]}.' if record['litdata'] else ''
    said = (f'SeLa, one epoch, {weights} after it; packing took {record["seconds_packing"]:.0f} s and '
            f'{record["megabytes"]:,.0f} MB. Load of the machine: {record["load_average"]}.{version}')
    return page(table([f'{record["n"]:,} images of CIFAR-10, an epoch', 's', 'processor s'], rows),
                table(['reading in random order', 'images per second', 'per processor second'], read),
                made(record, said))


def bf16(record):
    "An epoch and whole runs in bf16 against float32 on a CPU."
    epochs = [[r['method'], f'`{r["recipe"]}`', f'{r["off"]:.2f}', f'{r["bf16"]:.2f}', f'**{r["ratio"]:.1f} times**']
              for r in record['epoch']]
    runs = [[method, *(', '.join(f'{v["acc"]:.3f}' for v in r[amp]) for amp in ('off', 'bf16'))]
            for method, r in record['runs'].items()]
    said = f'The processor has {", ".join(record["instructions"])}; one thread.'
    return page(table([f'seconds per epoch of {record["n"]:,} images', 'recipe', 'float32', 'bf16', 'faster'], epochs),
                table(['ACC of whole runs on MNIST, 10,000 images', 'float32, by seed', 'bf16'], runs),
                made(record, said))


def speedrun(record):
    "Minutes from random weights to the labels, on each set that was run."
    rows = []
    for name, r in record['sets'].items():
        reached = 'reached' if mean(v['acc'] for v in r['runs']) >= r['target'] else '**not reached**'
        rows.append([name, r['method'], f'{r["target"]:.2f}', spread(r['runs'], 'acc'), reached, str(len(r['runs'])),
                     f'{mean(v["minutes"] for v in r["runs"]):.1f}'])
    head = ['from random weights', 'by', 'target', 'ACC', '', 'seeds', 'minutes per seed']
    where = '; '.join(sorted({r['machine'] for r in record['sets'].values()}))
    return page(table(head, rows), made(record, f'The runs had {where}.'))


def frozen(record):
    "Every method's recipe `frozen`, and its opponents on the same features, the best first."
    head = [f'CIFAR-10, test split, {record["n"]:,} images', 'ACC', 'NMI', 'ARI', 'clusters', 'processor seconds']
    found = sorted(record['rows'].items(), key=lambda item: -mean(r['acc'] for r in item[1]))
    rows = [[name, *(spread(r, k) for k in ('acc', 'nmi', 'ari')), _range([v['n_clusters'] for v in r]),
             f'{mean(v["cpu_seconds"] for v in r):.0f}'] for name, r in found]
    seeds = len(found[0][1])
    said = (f'Mean and deviation over {seeds} seeds; `{record["encoder"]}` at {record["size"]} pixels, '
            f'{record["dim"]:,} features, {record["views"]} views of every image.')
    return page(table(head, rows), wrapped(said), made(record))


def _range(counts): return f'{min(counts)} to {max(counts)}' if len(set(counts)) > 1 else str(counts[0])


def photographs(record):
    "The tutorial's command beside what the same features give without it."
    head = ['ACC against the hidden truth', 'the command', 'UMAP + k-means', 'k-means', 'seconds of the command']
    rows = [[f'{r[0]["n"]} images of {name}', *(spread(r, k) for k in ('AND', 'UMAP + k-means', 'k-means')),
             ', '.join(f'{v["seconds"]:.0f}' for v in r)] for name, r in record['rows'].items()]
    return page(table(head, rows), wrapped(f'Mean and deviation over {len(next(iter(record["rows"].values())))} seeds; '
                                           f'`{record["encoder"]}`.'), made(record))


# --- a billion images ----------------------------------------------------------------------------------

def at_scale(name): return lambda record: table(*scale.lines(name, record))


def scale_constants(record): return page(table(*scale.sources(record)), made(record))


# --- options of the originals --------------------------------------------------------------------------

def flags(record):
    "Every option of an original's scripts, and what stands for it here."
    several = len(record['scripts']) > 1
    def options(rows):
        return table(['there', 'here', ''], [[f'`{r["flag"]}`', here(r['ours']), r['note']] for r in rows])
    return page(*(f'**{script}**\n\n' * several + options(rows) for script, rows in record['scripts'].items()))


def here(ours):
    "What a record's `parameter`, `notebook:parameter` or `function:place:parameter` reads like."
    kind, _, rest = ours.partition(':')
    if ours == '-': return ''
    if kind == 'function': return f'`{rest.replace(":", "(")}=)`'
    return f'`{rest}` of `{kind}.ipynb`' if rest else f'`{ours}`'


# Name of the record: how its table is made. All others are seeds of a train notebook.
TABLES = dict(
    flags_nmce=flags, flags_nmc=flags, flags_sela=flags, flags_deepcluster=flags, flags_and=flags,
    and_digits=rounds, and_mnist=rounds, and_mnist_random_memory=rounds, and_cifar10=rounds,
    benchmark=benchmark, benchmark_overview=overview, k_rules=k_rules, frozen=frozen, photographs=photographs,
    speed=speed, coil_step=coil_step,
    explorer=explorer, sinkhorn=sinkhorn, discover=discover, nmc_kernels=nmc_kernels,
    nmce_spiral=spiral, nmc_digits=nmc_digits, nmc_mixtures=nmc_mixtures,
    nmc_study=nmc_study, nmc_study_mnist=nmc_study, nmc_study_coil20=nmc_study,
    sela_digits=sela, sela_mnist=sela, sela_cifar10_cpu=sela,
    deepcluster_digits=deepcluster, deepcluster_mnist=deepcluster, deepcluster_study=deepcluster_study,
    deepcluster_strategies=deepcluster_strategies, deepcluster_strategies_resnet18=deepcluster_strategies,
    deepcluster_architectures=deepcluster_architectures, deepcluster_epoch=deepcluster_epoch,
    deepcluster_cifar10=deepcluster_start, deepcluster_variant=deepcluster_variant, kmeans=kmeans,
    bf16=bf16, streamed=streamed, speedrun=speedrun, sinkhorn_features=sinkhorn_features, scale=scale_constants,
    **{f'scale_{name}': at_scale(name) for name in scale.METHODS})


def record_of(name):
    "The file of the record that a table is made of, which several tables of one kind may share."
    shared = re.match('(scale|benchmark)_', name)
    return ROOT / f'docs/records/{shared[1] if shared else name}.json'


def fill(match):
    "A place with its table, if there is a record."
    path = record_of(match[2])
    if not path.is_file(): return match[0]
    return match[1] + TABLES.get(match[2], trained)(json.loads(path.read_text(encoding='utf-8'))) + '\n' + match[3]


def fill_page(path):
    "Fill the places of a page."
    text = path.read_text(encoding='utf-8')
    if '<!-- bench:' in text: path.write_text(PLACE.sub(fill, text), encoding='utf-8')


def fill_notebook(path):
    "Fill the places of a notebook's markdown."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    markdown = [c for c in notebook['cells'] if c['cell_type'] == 'markdown']
    cells = [c for c in markdown if '<!-- bench:' in ''.join(c['source'])]
    for c in cells: c['source'] = PLACE.sub(fill, ''.join(c['source'])).splitlines(keepends=True)
    if not cells: return
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + '\n', encoding='utf-8')


def main():
    "Fill every page and every notebook that has a place."
    for path in sorted((ROOT / 'docs/pages').rglob('*.md')): fill_page(path)
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')): fill_notebook(path)


if __name__ == '__main__': main()
