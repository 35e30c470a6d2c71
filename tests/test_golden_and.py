"""Arrays that the original code of AND computed, as the files hold them.

The folder can be replaced with NMC_GOLDEN_AND: sizes and parameters are read from the files."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nmc_workbench.anchors import Anchors, anchor_count, discover, entropies
from nmc_workbench.losses import neighbourhood_nll
from nmc_workbench.methods.anchor_neighbourhoods.memory import Memory
from nmc_workbench.methods.anchor_neighbourhoods.rates import multistep_rate, parse_schedule, rate_policy
from nmc_workbench.metrics import knn_accuracy, knn_predict
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import UnitNet

GOLDEN = Path(os.environ.get('NMC_GOLDEN_AND', Path(__file__).parent / 'golden' / 'and'))


def load(name):
    with np.load(GOLDEN / f'{name}.npz') as f: return {k: f[k] for k in f.files}


def cases(name, ending): return sorted(k.removesuffix(ending) for k in load(name) if k.endswith(ending))
def tensor(x): return torch.from_numpy(np.asarray(x))


def close(found, want, tolerance): assert np.abs(np.asarray(found) - want).max(initial=0) <= tolerance


def memory_of(rows, temperature, momentum):
    found = Memory(*rows.shape, temperature=float(temperature), momentum=float(momentum))
    found.rows.copy_(tensor(rows))
    return found


def anchors_of(position, neighbours):
    "The anchors that a table of positions and the lists of neighbours describe."
    position, n_anchors = tensor(position), int((position >= 0).sum())
    anchors = position.argsort(descending=True)[:n_anchors].flip(0)
    return Anchors(anchors, tensor(neighbours).reshape(n_anchors, neighbours.size // max(n_anchors, 1)),
                   torch.zeros(len(position)))


# ---- the memory


@pytest.mark.parametrize('case', cases('npc', '_memory0'))
def test_memory(case):
    a = {k.removeprefix(f'{case}_'): v for k, v in load('npc').items() if k.startswith(f'{case}_')}
    memory = memory_of(a['memory0'], a['T'], a['m'])
    for x, y, g, out, grad, after in zip(*(a[k] for k in ('x', 'y', 'g', 'out', 'grad_x', 'memory'))):
        x = tensor(x).requires_grad_()
        z = memory.logits(x)
        z.backward(tensor(g))
        memory.update(x, tensor(y))
        close(z.detach(), out, 2e-5), close(x.grad, grad, 2e-5), close(memory.rows, after, 1e-6)


def test_first_memory():
    a = load('npc')
    for d, want in zip(a['init_dims'], a['init_absmax_py3']):
        rows = Memory(20_000, int(d), generator=torch.Generator().manual_seed(0)).rows
        assert rows.abs().max() <= np.float32((3 / d) ** .5)
        assert rows.abs().max().item() == pytest.approx(want, rel=1e-3)
        assert rows.square().sum(1).mean().item() == pytest.approx(1, abs=.01)


# ---- discovery


@pytest.mark.parametrize('case, place', [(c, i) for c in cases('ans', '_rounds')
                                         for i in range(len(load('ans')[f'{c}_rounds']))])
def test_discovery(case, place):
    a = {k.removeprefix(f'{case}_'): v for k, v in load('ans').items() if k.startswith(f'{case}_')}
    memory, number = tensor(a['memory'][place]), int(a['rounds'][place])
    n_anchors = anchor_count(len(memory), float(a['rate']), number)
    assert n_anchors == a['count'][place]
    found = discover(memory, n_anchors, int(a['k']), float(a['T']))
    want = {k.removeprefix(f'r{number}_'): v for k, v in a.items() if k.startswith(f'r{number}_')}
    assert np.array_equal(found.anchors, want['anchor_indexes'])
    assert np.array_equal(found.instances, want['instance_indexes'])
    assert np.array_equal(found.position, want['position']) and np.array_equal(found.neighbours, want['neighbours'])
    close(found.entropy, want['entropy'], 1e-5), close(found.entropy, want['entropy64'], 1e-5)
    consistency = found.consistency(a['labels'])
    if n_anchors: assert consistency == pytest.approx(float(want['consistency']), abs=1e-6)
    else: assert consistency is None and np.isnan(want['consistency'])
    assert np.array_equal(Anchors.none(len(memory)).position, a['initial_position'])


def test_entropy_of_rows_that_are_not_of_unit_length():
    a = load('ans')
    close(entropies(tensor(a['u_memory']), float(a['u_T'])), a['u_entropy'], 1e-5)


def test_counts():
    a = load('counts')
    for i, n in enumerate(a['N']):
        found = [[anchor_count(int(n), float(q), int(r)) for r in a['round']] for q in a['rate']]
        off = np.abs(found - np.minimum(a['table'][i], n))
        # the original multiplies in single precision
        assert off.max() <= (n > 1_000_000) and (off > 0).sum() <= 2


# ---- the loss


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', cases('criterion', '_y'))
def test_loss(case, dtype):
    a = {k.removeprefix(f'{case}_'): v for k, v in load('criterion').items() if k.startswith(f'{case}_')}
    anchors, y = anchors_of(a['position'], a['neighbours']), tensor(a['y'])
    z = tensor(a['x']).to(dtype).requires_grad_()
    loss = neighbourhood_nll(z, y, anchors.of(y))
    loss.backward()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4 if case == 'big' else 1e-5
    close(loss.item(), a['loss64'], tolerance), close(z.grad, a['grad64'], min(tolerance, 1e-6))
    close(loss.item(), a['loss'], max(tolerance, 1e-5)), close(z.grad, a['grad'], 1e-6)


def test_memory_and_loss_together():
    a = load('chain')
    memory, anchors = memory_of(a['memory0'], a['T'], a['m']), anchors_of(a['position'], a['neighbours'])
    for x, y, want, grad, after in zip(*(a[k] for k in ('x', 'y', 'loss', 'grad_x', 'memory'))):
        x, y = tensor(x).requires_grad_(), tensor(y)
        loss = neighbourhood_nll(memory.logits(x), y, anchors.of(y))
        loss.backward()
        memory.update(x, y)
        close(loss.item(), want, 1e-5), close(x.grad, grad, 2e-5), close(memory.rows, after, 1e-6)


# ---- learning rates


@pytest.mark.parametrize('case', cases('lr', '_params'))
def test_rates_in_steps(case):
    a = load('lr')
    if case not in a: pytest.skip('the file holds the parameters alone')
    base, offset, step, decay = a[f'{case}_params']
    rate = rate_policy('step', float(base), int(offset), int(step), float(decay))
    close([rate(int(e)) for e in a['epochs']], a[case], 1e-12)


def test_fixed_rate_and_schedule():
    a = load('lr')
    fixed = rate_policy('fixed', float(a['fixed'][0]))
    close([fixed(int(e)) for e in a['epochs']], a['fixed'], 1e-12)
    text, base = str(a['multistep_file']), float(a['multistep_base_lr'])
    for rate in (multistep_rate(base, parse_schedule(text)), rate_policy('multistep', base, schedule=text)):
        close([rate(int(e)) for e in a['epochs']], a['multistep_intended'], 1e-12)


# ---- scores


@pytest.mark.parametrize('rows, score', [('train', '{}_acc'), ('train_fresh', '{}_acc_recompute')])
@pytest.mark.parametrize('case', cases('protocols', '_K'))
def test_scores(case, rows, score):
    a = {k.removeprefix(f'{case}_'): v for k, v in load('protocols').items() if k.startswith(f'{case}_')}
    given = (a[rows], a['train_labels'], a['test'], a['test_labels'])
    knn, nearest = dict(k=int(a['K']), temperature=float(a['sigma']), normalise=False), dict(k=1, normalise=False)
    assert knn_accuracy(*given, **knn) == pytest.approx(float(a[score.format('knn')]), abs=1e-6)
    assert knn_accuracy(*given, **nearest) == pytest.approx(float(a[score.format('nn')]), abs=1e-6)
    if rows == 'train':
        assert np.array_equal(knn_predict(*given[:3], **knn), a['knn_pred'])
        assert np.array_equal(knn_predict(*given[:3], **nearest), a['nn_pred'])


# ---- the network


def fill(net, phase):
    "The rule that the weights of the recorded pass follow."
    for i, (name, p) in enumerate(net.named_parameters()):
        j = np.arange(p.numel(), dtype=float)
        if p.ndim > 1:
            w = np.sin(.731 * j + 1.3 * i + phase) * np.sqrt(2 / (p.numel() / len(p))) * np.sqrt(2)
        elif name.endswith('weight'): w = 1 + .1 * np.sin(.913 * j + .5 * i + phase)
        else: w = .1 * np.cos(.377 * j + .9 * i + phase)
        p.data.copy_(tensor(w.reshape(p.shape)))
    return net


def test_network():
    a = load('resnet')
    net, x = fill(UnitNet(*backbone('resnet18cifar'), a['eval_out'].shape[1]), float(a['phase'])), tensor(a['x'])
    with torch.no_grad():
        close(net.eval()(x), a['eval_out'], 1e-4), close(net.train()(x), a['train_out'], 1e-3)
        close(net.eval()(x), a['eval_out_after'], 1e-4)
    close(net.backbone.bn1.running_mean, a['bn1_running_mean_after'], 1e-4)
    close(net.backbone.bn1.running_var, a['bn1_running_var_after'], 1e-4)


@pytest.mark.parametrize('name', ['ResNet18', 'ResNet50'])
def test_layers_stand_in_the_same_order(name):
    a = load('resnet')
    net = UnitNet(*backbone(f'{name.lower()}cifar'), 128)
    assert sum(p.numel() for p in net.parameters()) == a[f'{name}_nparam']
    def ours(key):
        return key.removeprefix('backbone.').replace('downsample', 'shortcut').replace('projection', 'linear')
    assert [ours(k) for k in net.state_dict()] == a[f'{name}_names'].tolist()
    assert [list(v.shape) for v in net.state_dict().values()] == [json.loads(s) for s in a[f'{name}_shapes']]


# ---- a whole training


@pytest.mark.parametrize('iter_size', [1, 2])
def test_trajectory(iter_size):
    """Four rounds on a linear encoder.

    With two batches per step, the original steps after the first of them and drops the last: so does this test."""
    a = load('trajectory')
    want = {k.removeprefix(f'iter{iter_size}_'): v for k, v in a.items()}
    T, mu, select, base, momentum, decay, offset, step, factor, knn_k, sigma = a['hyper']
    x, labels, n = tensor(a['X']), a['labels'], len(a['X'])
    weight, bias = tensor(a['W0']).requires_grad_(), tensor(a['b0']).requires_grad_()
    def encode(x): return F.normalize(F.linear(x, weight, bias))
    memory, anchors = memory_of(a['memory0'], T, mu), Anchors.none(n)
    sgd = torch.optim.SGD([weight, bias], base, momentum, weight_decay=decay, nesterov=True)
    rate, losses, rates, scores = rate_policy('step', base, int(offset), int(step), factor), [], [], []
    for number, epochs in enumerate(a['order']):
        if number: anchors = memory.discover(anchor_count(n, select, number), int(a['k']))
        check_anchors(anchors, {k: want[f'r{number}_{k}'] for k in ('anchors', 'neighbours', 'position', 'entropy',
                                                                    'consistency')}, labels)
        for epoch, order in enumerate(epochs):
            sgd.param_groups[0]['lr'] = rate(epoch)
            sgd.zero_grad()
            for b, batch in enumerate(tensor(order).split(int(a['batch']))):
                features = encode(x[batch])
                loss = neighbourhood_nll(memory.logits(features), batch, anchors.of(batch))
                (loss / iter_size).backward()
                memory.update(features, batch)
                if b % iter_size == 0: sgd.step(), sgd.zero_grad()
                losses.append(loss.item()), rates.append(rate(epoch))
            scores.append(knn_accuracy(memory.rows, labels, encode(tensor(a['Xtest'])), a['labels_test'], int(knn_k),
                                       False, sigma))
        close(weight.detach(), want['W_end'][number], 2e-5), close(bias.detach(), want['b_end'][number], 2e-5)
        close(memory.rows, want['memory_end'][number], 2e-5)
    close(losses, want['loss'], 5e-5), close(rates, want['lr'], 1e-12), close(scores, want['knn_acc'], 1e-6)


def check_anchors(found, want, labels):
    "The anchors of a round against the original's, which holds nothing in the first."
    assert np.array_equal(found.anchors, want['anchors']) and np.array_equal(found.position, want['position'])
    assert np.array_equal(found.neighbours.flatten(), want['neighbours'].flatten())
    assert (found.consistency(labels) or 0) == pytest.approx(float(want['consistency']), abs=1e-6)
    if len(want['entropy']): close(found.entropy, want['entropy'], 1e-5)
