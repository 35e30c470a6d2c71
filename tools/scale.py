"""What a billion images would ask of each method: state, memory, traffic and time, by arithmetic.

`ASSUMED` holds what is taken from data sheets or assumed, and says which; `constants` adds what docs/records hold.
Every method is a function from these constants and a number of devices to lines of a table; nothing is measured here.
Bytes are those of the library as it is: which arrays every process holds whole, and which it shares."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

RECORDS = Path(__file__).resolve().parents[1] / 'docs/records'
DEVICES = 8, 64, 512

SHEET, ASSUMPTION, CHOICE = 'data sheet of an H200', 'an assumption', 'a choice'
# name: value, what it is, where it comes from
ASSUMED = dict(
    n=(10 ** 9, 'images', CHOICE),
    batch=(128, 'images per device and step', CHOICE),
    device_memory=(141e9, 'bytes of memory per device', SHEET),
    flops=(67e12, 'operations per second and device, float32 without tensor cores, at most', SHEET),
    share=(.4, 'share of that which a product of matrices reaches', ASSUMPTION),
    images_per_s=(2_500, 'views per second and device in training, ResNet-50 at 224 pixels, bf16', ASSUMPTION),
    forward=(3, 'times as many when there is no backward pass', ASSUMPTION),
    link=(50e9, 'bytes per second that a device sends to others, 400 Gbit/s', ASSUMPTION),
    image_bytes=(110e3, 'bytes per image file', ASSUMPTION),
    z_dim=(128, 'numbers per embedding (NMCE, NMC, AND)', CHOICE),
    nmce_k=(1_000, 'clusters of NMCE', CHOICE),
    sela_k=(3_000, 'clusters per head of SeLa, as published', CHOICE),
    sela_heads=(10, 'heads of SeLa, as published', CHOICE),
    deepcluster_k=(10_000, 'clusters of DeepCluster, as published', CHOICE),
    pca_dim=(256, 'components of DeepCluster, as published', CHOICE),
    lloyd=(20, 'iterations of k-means', ASSUMPTION),
    climb_steps=(100, 'steps uphill of NMC', ASSUMPTION))


def record(name): return json.loads((RECORDS / f'{name}.json').read_text(encoding='utf-8'))


def measured(scale):
    "name: value, what it is, where it comes from; `scale` is the record of that name."
    iterations = next(r for r in record('sinkhorn')['rows'] if r['K'] == 1000)['relaxed_iterations']
    pass_, pairs = record('sinkhorn_features'), record('discover')['growth'][-1]
    largest, modes, climb = pass_['rows'][-1], record('nmc_kernels')['modes'], record('nmc_kernels')['ascent']
    per_entry = largest['cpu_seconds'] / largest['n'] / pass_['K']
    climbing = climb['spectral_threads_1']['ours_s'] / climb['n'] / climb['n_steps']
    join = [modes[f'loose_{n}']['deduplicate_cpu_s'] for n in (30_000, 100_000)]
    return dict(
        parameters=(scale['parameters'], 'weights of a ResNet-50 without its last layer', '`scale`, counted'),
        features=(scale['features'], 'features of a ResNet-50', '`scale`, counted'),
        index_bytes=(scale['index_bytes'], 'bytes per image of the list of files, in every process', '`scale`'),
        iterations=(iterations, "iterations of SeLa's transport, relax=1.8", '`sinkhorn`, 50,000 x 1,000'),
        core_entry_s=(per_entry, 'seconds per sample and cluster and iteration of the transport, one core, d = 128',
                      '`sinkhorn_features`'),
        core_pair_s=(pairs['cpu_s'] / pairs['n'] ** 2, "seconds per two rows of AND's discovery, one core",
                     '`discover`, 100,000 rows'),
        core_climb_s=(climbing, 'seconds per sample and step uphill, one core', '`nmc_kernels`'),
        join_s=(join[1], 'seconds to join 100,000 end points into modes, one core', '`nmc_kernels`, loose'),
        join_power=(math.log(join[1] / join[0]) / math.log(100 / 30), 'power of N by which that grows, from 30,000 on',
                    '`nmc_kernels`, loose'))


def constants(scale): return SimpleNamespace(**{k: v[0] for k, v in (ASSUMED | measured(scale)).items()})


# --- lines: name, and a text for a number of devices


def size(x):
    "Bytes in words."
    return in_words(x, 'B', 'kB', 'MB', 'GB', 'TB', 'PB')


def in_words(x, *units):
    power = min(int(math.log10(1.0005 * x)) // 3, len(units) - 1) if x >= 1 else 0
    return f'{x / 1000 ** power:.3g} {units[power]}'


def span(s):
    "Seconds in words."
    for unit, length in (('years', 365 * 86_400), ('days', 86_400), ('h', 3_600), ('min', 60)):
        if s >= 2 * length: return f'{s / length:.3g} {unit}'
    return f'{s:.3g} s' if s >= 1 else f'{1000 * s:.3g} ms'


def room(c):
    "Bytes per device, in bold where one device does not hold them."
    return lambda x: f'**{size(x)}**' if x > c.device_memory else size(x)


def around(p, x): return 2 * (p - 1) / p * x      # bytes that a device sends to sum x bytes over all, in a ring


def product(c, rows, columns, inner): return 2 * rows * columns * inner / (c.flops * c.share)       # on one device


def epoch_of(c, p, views=1): return views * c.n / (p * c.images_per_s)


def forward_pass(c, p, views=1): return epoch_of(c, p, views) / c.forward


def common(c, p):
    "What every method has that trains a ResNet-50."
    gradient = around(p, 4 * c.parameters)
    return {
        'images per step': f'{p * c.batch:,}',
        'weights, gradients and momentum, per device': room(c)(12 * c.parameters),
        'list of files, per process': size(c.index_bytes * c.n),
        'order of an epoch, per process': size(8 * c.n),
        'clusters of all images for the label history, per device': room(c)(8 * c.n),
        'gradients sent per step and device': size(gradient),
        'the same in time': span(gradient / c.link),
        'arithmetic of a step with one view': span(c.batch / c.images_per_s),
        'read from the disks per second': size(p * c.images_per_s * c.image_bytes),
        'epoch with one view': span(epoch_of(c, p))}


def nmce(c, p):
    "Two views; the matrices of all clusters are summed over the devices."
    grams = 4 * c.z_dim ** 2 * (1 + c.nmce_k)
    return {
        'epoch of representation, two views': span(epoch_of(c, p, 2)),
        'one Gram matrix per cluster and one of all, per device': room(c)(grams),
        'Gram matrices sent per step and device': size(around(p, grams)),
        'the same in time': span(around(p, grams) / c.link),
        'arithmetic of a step, two views': span(2 * c.batch / c.images_per_s),
        'arithmetic of the Gram matrices': span(product(c, c.z_dim, c.z_dim * (1 + c.nmce_k), 2 * c.batch))}


def nmc(c, p):
    "A frozen encoder; a potential on its features; all samples climb."
    return {
        'features of all images, two views, by the frozen encoder': span(forward_pass(c, p, 2)),
        'features of both views, per device, if cached': room(c)(2 * 4 * c.n * c.features),
        'embeddings of the fit, in one process': room(c)(4 * c.n * c.z_dim),
        'climb of all samples, this many cores as measured': span(c.core_climb_s * c.climb_steps * c.n / p),
        'end points joined into modes, one process, one core': span(c.join_s * (c.n / 1e5) ** c.join_power)}


def sela(c, p):
    "The labels of all heads on every device; features and transport shared."
    iteration = product(c, c.n, c.sela_k, c.features) / p
    labels = 8 * c.n
    return {
        'epoch': span(epoch_of(c, p)),
        'labels of all heads, per device': room(c)(labels * c.sela_heads),
        'features of an update, per device': room(c)(4 * c.n * c.features / p),
        'the same while its parts are joined': room(c)(8 * c.n * c.features / p),
        'logits of one head, which are not kept, per device': room(c)(4 * c.n * c.sela_k / p),
        'features for an update': span(forward_pass(c, p)),
        'iteration of one head': span(iteration),
        'sent per iteration and device': size(around(p, 8 * c.sela_k)),
        'transport of all heads': span(iteration * c.iterations * c.sela_heads),
        'labels sent per update and device': size(around(p, labels * c.sela_heads)),
        'iteration of one head, d = 128, this many cores as measured': span(c.core_entry_s * c.n * c.sela_k / p)}


def deepcluster(c, p):
    "Features, PCA and k-means shared; the labels on every device."
    features, lloyd = 4 * c.n * c.features / p, product(c, c.n, c.deepcluster_k, c.pca_dim)
    return {
        'epoch': span(epoch_of(c, p)),
        'labels, per device': room(c)(8 * c.n),
        'features, per device': room(c)(features),
        'reduced features, per device': room(c)(4 * c.n * c.pca_dim / p),
        'features for a clustering': span(forward_pass(c, p)),
        'labels sent per clustering and device': size(8 * c.n * (p - 1) / p),
        'sums of clusters sent per iteration and device': size(around(p, 8 * c.deepcluster_k * (c.pca_dim + 1))),
        'PCA': span(product(c, c.n, c.features, c.features) / p),
        'k-means': span(c.lloyd * lloyd / p),
        'k-means by one device': span(c.lloyd * lloyd)}


def anchors(c, p):
    "The memory shared by the devices; a step compares the batches of all with a device's rows, block by block."
    compared = 3 * product(c, p * c.batch, c.n / p, c.z_dim)
    steps, batch = c.n / (p * c.batch), 4 * c.z_dim * c.batch
    return {
        'memory, per device': room(c)(4 * c.n * c.z_dim / p),
        'the same while anchors are discovered, per device': room(c)(8 * c.n * c.z_dim),
        'position, entropy and one neighbour, per device': room(c)(20 * c.n),
        'logits of a step, which are not kept, per device': room(c)(4 * c.batch * c.n),
        'features and gradients sent per step and device': size(2 * batch * (p - 1) + around(p, batch * p)),
        'arithmetic of a step, network': span(c.batch / c.images_per_s),
        'arithmetic of a step, comparison with all rows': span(compared),
        'epoch': span(steps * (c.batch / c.images_per_s + compared)),
        'discovery of anchors': span(product(c, c.n, c.n, c.z_dim) / 2 / p),
        'discovery of anchors, this many cores as measured': span(c.core_pair_s * c.n ** 2 / p)}


METHODS = dict(common=common, nmce=nmce, nmc=nmc, sela=sela, deepcluster=deepcluster, anchors=anchors)


# --- tables


def lines(name, scale):
    "Head and rows of the table of a method."
    c = constants(scale)
    found = [METHODS[name](c, p) for p in DEVICES]
    return [f'{c.n:,} images', *(f'{p} devices' for p in DEVICES)], [[k, *(f[k] for f in found)] for k in found[0]]


def number(x):
    "A constant, in figures that one can read."
    return f'{x:,}' if isinstance(x, int) else f'{x:,.0f}' if x >= 1000 else f'{x:.3g}'


def sources(scale):
    "Head and rows of the table of constants."
    found = (ASSUMED | measured(scale)).values()
    return ['constant', 'value', 'from'], [[what, number(x), of] for x, what, of in found]
