"Fill the places `<!-- bench:NAME -->` of the notebooks with the tables of docs/records/NAME.json."
import json
import re
from pathlib import Path
from statistics import mean, pstdev

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r'(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)', re.S)


def table(head, rows):
    "A markdown table."
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [head, ['---'] * len(head), *rows])


def made(record):
    "The line below a table that says where it comes from."
    v = record['versions']
    return f'`{record["command"]}`, {record["date"]}: {record["cores"]} cores of {record["processor"]}, Python {record["python"]}, torch {v["torch"]}, torchvision {v["torchvision"]}, scikit-learn {v["scikit-learn"]}{"; " + record["note"] if record.get("note") else ""}.'


def trained(record):
    "The seeds of a train notebook beside k-means on pixels."
    runs, several = record['rows'], len(record['rows']) > 1
    head = [record['title'], *(f'seed {r["seed"]}' for r in runs), *['mean ± std'] * several, 'k-means on pixels']
    def spread(k): return [f'**{mean(r[k] for r in runs):.3f}** ± {pstdev(r[k] for r in runs):.3f}'] * several
    rows = [[name, *(f'{r[k]:.3f}' for r in runs), *spread(k), f'{record["kmeans_pixels"][k]:.3f}'] for name, k in (('ACC', 'acc'), ('NMI', 'nmi'), ('ARI', 'ari'))]
    seconds = ['seconds, whole notebook', *(f'{r["seconds"]:.0f}' for r in runs), *[f'{mean(r["seconds"] for r in runs):.0f}'] * several, '']
    return f'{table(head, [*rows, seconds])}\n\n{made(record)}'


def speed(record):
    "Ours against the baseline, measured in turns in one run."
    a, c, i, e = (record[k] for k in ('augment', 'coding_rate', 'import', 'subspace'))
    codes = e['threads_1']
    rows = [['SimCLR preset at 32 x 32, images/s, 1 core', f'{a["images_per_s"]:,.0f}', f'{a["torchvision_images_per_s"]:,.0f} (torchvision on PIL, one by one)', f'{a["ratio"]:.1f} times'],
            *([f'coding rate reduction, forward and backward, ({c["n"]}, {c["d"]}, {c["n_clusters"]}), ms, {t} thread{"s" * (t > 1)}', f'{c[f"threads_{t}"]["ours_ms"]:.1f}',
               f'{c[f"threads_{t}"]["plain_ms"]:.1f} (K x d x n tensor, logdet, autograd)', f'{c[f"threads_{t}"]["ratio"]:.1f} times'] for t in (1, 2)),
            [f'elastic-net codes, {e["n"]} x {e["d"]}, s, 1 thread', f'{codes["ours_s"]:.2f}', f'{min(codes["lasso_lars_s"], codes["lasso_cd_s"]):.2f} (scikit-learn `sparse_encode`, sample by sample, scaled up from every 12th)', f'{codes["ratio"]:.1f} times'],
            ['`import nmc_workbench`, s', f'{i["seconds_package"]:.2f}', f'{i["seconds_baseline"]:.2f} (`import torch, torchvision, sklearn`)', f'{i["ratio_package"]:.2f} of it'],
            ['`from nmc_workbench.methods import NMCE`, s', f'{i["seconds_methods"]:.2f}', f'{i["seconds_baseline"]:.2f}', f'{i["ratio_methods"]:.2f} of it']]
    return f'{table(["medians of one run", "here", "baseline", "ratio"], rows)}\n\n{made(record)}'


def spiral(record):
    "Ours and the original's optimiser, seed by seed."
    def row(name, r): return [name, r['seed'], f'**{r["acc"]:.4f}**', f'{r["cpu_seconds"]:.0f}', f'{r["steps"]:,}', r['batch_size'], f'{r["reduction"]:.2f} of {r["best"]:.2f}']
    rows = [row(name, r) for name, key in (('recipe `spiral`', 'ours'), ("the original's: Adam, constant rate", 'original')) for r in record[key]]
    return f'{table(["double spiral", "seed", "ACC", "processor seconds", "steps", "batch", "R - Rc, nats"], rows)}\n\n{made(record)}'


def coil_step(record):
    "One training step, ours against the original's way."
    rows = [[f'COIL-20 training step, 2,880 views of 64 x 64, processor s, {t} thread{"s" * (t > 1)}', f'{r["ours_cpu_s"]:.1f}', f'{r["plain_cpu_s"]:.1f} (torchvision on PIL one by one, PyTorch as it comes)', f'{r["ratio_cpu"]:.1f} times']
            for t in (1, 2) if (r := record.get(f'threads_{t}'))]
    return f'{table(["medians of one run", "here", "baseline", "ratio"], rows)}\n\n{made(record)}'


def nmc_digits(record):
    "NMC's seeds beside k-means with as many clusters on the same embedding."
    runs = record['rows']
    def line(name, value, form='{:.3f}', means='{:.3f}'): return [name, *(form.format(value(r)) for r in runs), f'**{means.format(mean(map(value, runs)))}** ± {means.format(pstdev(map(value, runs)))}']
    rows = [line('clusters found', lambda r: r['n_clusters'], '{}', '{:.1f}'), line('modes before merging', lambda r: r['n_modes'], '{}', '{:.1f}'),
            *(line(k.upper(), lambda r, k=k: r[k]) for k in ('acc', 'nmi', 'ari')), *(line(f'{k.upper()}, k-means with as many clusters', lambda r, k=k: r['kmeans'][k]) for k in ('acc', 'nmi')),
            line('seconds, encoder and all', lambda r: r['seconds'] + r['seconds_encoder'], '{:.0f}', '{:.0f}')]
    head = [record['title'], *(f'seed {r["seed"]}' for r in runs), 'mean ± std']
    return f'{table(head, rows)}\n\n{made(record)}'


def spread(rows, key, form='{:.3f}'): return f'{form.format(mean(r[key] for r in rows))} ± {form.format(pstdev(r[key] for r in rows))}' if len(rows) > 1 else form.format(rows[0][key])


def nmc_mixtures(record):
    rows = [[name, ', '.join(str(r['n_clusters']) for r in runs), f'{min(r["acc"] for r in runs):.3f}', f'{mean(r["seconds"] for r in runs):.0f}'] for name, runs in record['rows'].items()]
    return f'{table(["Gaussians 8 standard deviations apart", "clusters found, by seed", "worst ACC", "seconds a fit"], rows)}\n\n{made(record)}'


def nmc_kernels(record):
    "Climbing against a plain loop, and the end points' modes as they grow in number."
    def named(key): return key.replace('_threads_1', ', 1 thread').replace('_threads_2', ', 2 threads')
    climbs = [[f'climb of {record["ascent"]["n"]:,} x {record["ascent"]["d"]}, 20 steps, 512 x 4, {named(k)}', f'{r["ours_s"]:.1f} s', f'{r["plain_s"]:.1f} s (every sample, every try)', f'{r["ratio"]:.1f} times']
              for k, r in record['ascent'].items() if isinstance(r, dict)]
    modes, sizes = record['modes'], (10_000, 30_000, 100_000)
    growth = [[f'{form} end points, 128-d', *(f'{modes[f"{form}_{n}"]["deduplicate_cpu_s"] + modes[f"{form}_{n}"]["tree_s"]:.1f}' for n in sizes), f'{modes[f"{form}_{sizes[-1]}"]["memory_mb"] / 1024:.1f}']
              for form in ('collapsed', 'loose', 'many_modes', 'thin', 'spread') if f'{form}_{sizes[-1]}' in modes]
    again, two = modes['relabel'], modes.get('two_threads', {})
    whole = [f'{form.removesuffix("_100000")} {r["deduplicate_s"] + r["tree_s"]:.0f} s' for form, r in two.items() if isinstance(r, dict)]
    waited = [f'At 100,000 on two threads, from start to end: {", ".join(whole)}.'] * bool(whole)
    return '\n\n'.join([table(['faster of two runs', 'here', 'baseline', 'ratio'], climbs), table(['deduplication and merge tree, processor s', *(f'{n:,}' for n in sizes), 'GiB'], growth), *waited,
                        f'A new tau on {again["n"]:,} samples of {again["modes"]} modes: {again["median_ms"]:.2f} ms, at most {again["max_ms"]:.1f}, of {again["taus"]} values.', made(record)])


def nmc_study(record):
    "Every data set's variants, then the range of eps."
    out = []
    for name, found in record['sets'].items():
        rows = [[v, len(r), spread(r, 'n_clusters', '{:.1f}'), spread(r, 'n_modes', '{:.1f}'), *(spread(r, k) for k in ('acc', 'nmi', 'ari')), spread(r, 'stability_eps', '{:.2f}'), spread(r, 'stability_assign', '{:.2f}'), 'yes' if any(x['fallback'] for x in r) else ''] for v, r in found['rows'].items()]
        out.append(table([name, 'seeds', 'clusters', 'modes', 'ACC', 'NMI', 'ARI', 'stable within eps', 'stable label', 'k-means stood in'], rows))
        out.append(table([f"{name}, dbscan_eps of the recipe's fit", *found['eps']], [['clusters', *(spread(r, 'n_clusters', '{:.1f}') for r in found['eps'].values())], ['NMI', *(spread(r, 'nmi') for r in found['eps'].values())]]))
    return '\n\n'.join([*out, made(record)])


def sela(record):
    "The seeds, their nearest neighbours before and after training."
    runs, several = record['rows'], len(record['rows']) > 1
    seeds = [f'seed {r["seed"]}' for r in runs]
    def line(name, key, form='{:.3f}', beside=''): return [name, *(form.format(r[key]) for r in runs), *['**' + spread(runs, key, form).replace(' ±', '** ±')] * several, beside]
    def pixels(key): return f'{record["kmeans_pixels"][key]:.3f}'
    rows = [line('nearest neighbours, untrained', 'knn_untrained'), line('nearest neighbours', 'knn'), *(line(k.upper(), k, beside=pixels(k)) for k in ('acc', 'nmi', 'ari')), line('purity', 'purity'), line('seconds, whole notebook', 'seconds', '{:.0f}')]
    return f'{table([record["title"], *seeds, *["mean ± std"] * several, "k-means on pixels"], rows)}\n\n{made(record)}'


def sinkhorn(record):
    "End to end against the original's form, then milliseconds an iteration."
    rows = [[f'{record["n"]:,} x {r["K"]:,}, {name}', f'{r[f"{key}_s"]:.2f}', f'{r["baseline_s"]:.1f}', f'{r[f"{key}_times_faster"]:.1f}', f'{r[f"{key}_iterations"]:,} of {r["baseline_iterations"]:,}', r[f'{key}_labels_that_differ'], f'{r[f"{key}_memory"]:.2f}']
            for r in record['rows'] for name, key in (("the original's iterates", 'parity'), ('relax=1.8', 'relaxed'))]
    floors = '; '.join(f'K = {r["K"]:,}: {r["baseline_ms_an_iteration"]:.1f} ms an iteration of the original, {r["floor_ms"]:.1f} ms to read its matrix twice' for r in record['rows'])
    growth = [[f'{g["n"]:,} x {g["K"]:,}', g['all_entries_ms'], g['those_that_matter_ms']] for g in record['growth']]
    return '\n\n'.join([table(['logits of a trained network', 'seconds', 'original, seconds', 'times faster', 'iterations', 'labels that differ', 'memory, of the float32 logits'], rows), floors + '.',
                        table(['milliseconds an iteration', 'over all entries', 'over those that matter'], growth), f'{made(record)} Logits of a network trained on {record["trained_on"]}.'])


# name of the record: how its table is made; the others are seeds of a train notebook
def explorer(record):
    "What a person waits for."
    rows = [('first picture after a run is chosen, s', 'first_picture_s', 5), (f'lasso of {record["lasso_points"]:,} points to the gallery, ms, median of 7', 'lasso_ms', 500),
            ('next page of the gallery, ms, median of 7', 'page_ms', 300), ('memory of the kernel, MB', 'kernel_mb', 1500)]
    heads = [f'{record["n"]:,} images of 28 x 28 in a browser', 'measured', 'wanted at most']
    return f'{table(heads, [[name, record[key], most] for name, key, most in rows])}\n\n{made(record)}'


def flags(record):
    "Every option of an original's scripts, and what stands for it here."
    def here(ours):
        if ours == '-': return ''
        kind, _, rest = ours.partition(':')
        if kind == 'function': return f'`{rest.replace(":", "(")}=)`'
        return f'`{rest}` of `{kind}.ipynb`' if rest else f'`{ours}`'
    return '\n\n'.join(f'**{script}**\n\n' * (len(record['scripts']) > 1) + table(['there', 'here', ''], [[f'`{r["flag"]}`', here(r['ours']), r['note']] for r in rows]) for script, rows in record['scripts'].items())


TABLES = dict(flags_nmce=flags, flags_nmc=flags, flags_sela=flags, explorer=explorer, speed=speed, coil_step=coil_step, nmce_spiral=spiral, nmc_digits=nmc_digits, nmc_mixtures=nmc_mixtures, nmc_kernels=nmc_kernels, nmc_study=nmc_study, nmc_study_mnist=nmc_study, nmc_study_coil20=nmc_study,
              sela_digits=sela, sela_mnist=sela, sela_cifar10_cpu=sela, sinkhorn=sinkhorn)


def fill(match):
    "A place with its table, if there is a record."
    path = ROOT / f'docs/records/{match[2]}.json'
    if not path.is_file(): return match[0]
    return match[1] + TABLES.get(match[2], trained)(json.loads(path.read_text())) + '\n' + match[3]


def main():
    "Every notebook and every page that has a place."
    for path in sorted((ROOT / 'docs/pages').rglob('*.md')):
        text = path.read_text(encoding='utf-8')
        if '<!-- bench:' in text: path.write_text(PLACE.sub(fill, text), encoding='utf-8')
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        cells = [c for c in notebook['cells'] if c['cell_type'] == 'markdown' and '<!-- bench:' in ''.join(c['source'])]
        for c in cells: c['source'] = PLACE.sub(fill, ''.join(c['source'])).splitlines(keepends=True)
        if cells: path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
