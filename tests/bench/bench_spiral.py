"""The double spiral on one thread: processor seconds and accuracy of the recipe `spiral`, and of the original's
optimiser on batches of the same size.

    python -m tests.bench.bench_spiral [seeds of ours] [seeds of the original]

The original trains with Adam at a constant rate on batches of 4,096. Here it gets batches of 512 and 16,400 steps,
about three times the processor seconds of ours."""
import json
import resource
import subprocess
import sys

ORIGINAL = dict(optimizer='adam', lr=1e-3, schedule='constant', warmup_epochs=0, batch_size=512, epochs=328,
                weight_decay=1e-5, momentum=.9, beta2=.99)


def one(seed, **options):
    "Train once; accuracy on points drawn for scoring, processor seconds of the training loop alone."
    from nmc_workbench.data import load
    from nmc_workbench.losses import optimal_reduction
    from nmc_workbench.methods import NMCE
    from nmc_workbench.methods.nmce.config import RECIPES
    size = options.get('batch_size', RECIPES['spiral']['batch_size'])
    model = NMCE(dataset='spiral', seed=seed, device='cpu', **options)
    trainer = model.prepare(load('spiral', n=50 * size, seed=seed, fresh=True))
    start = cpu_seconds()
    last = trainer.train()[-1]
    spent = cpu_seconds() - start
    return dict(seed=seed, acc=model.finish().results_['acc'], n_points=len(model.labels_), steps=last['step'],
                batch_size=size, cpu_seconds=round(spent, 1), reduction=round(last['R'] - last['Rc'], 3),
                best=round(optimal_reduction(6, 2, .01), 3), similarity=round(last['similarity'], 5))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


CODE = '''
import json, torch
torch.set_num_threads(1)
from tests.bench.bench_spiral import one
print(json.dumps(one({seed}, **{options!r})))
'''


def apart(seed, options):
    "Train once in a process of its own with one thread."
    code = CODE.format(seed=seed, options=options)
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    print(out.stdout.strip(), flush=True)
    return json.loads(out.stdout.splitlines()[-1])


def measure(seeds=(0, 1, 2), original=(0, 1, 2)):
    return dict(ours=[apart(s, {}) for s in seeds], original=[apart(s, ORIGINAL) for s in original])


if __name__ == '__main__':
    seeds = [tuple(int(s) for s in a.split(',') if s) for a in sys.argv[1:]]
    measure(*seeds)
