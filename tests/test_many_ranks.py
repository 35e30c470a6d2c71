"""One, two and four processes that share every batch: each method has the losses of one process, and a run that one
number of processes began is ended by another. The samples' views and the noise do not depend on the rank here."""
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nmc_workbench.cluster import kmeans
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.ranks import ShardedRows
from nmc_workbench.losses import nt_xent
from nmc_workbench.lloyd import lloyd
from nmc_workbench.methods import AND, DeepCluster, NMC, NMCE, SeLa
from nmc_workbench.methods.nmc import stages as nmc_stages
from nmc_workbench.methods.nmce.stages import Representation
from nmc_workbench.modes.potential import dsm_loss
from nmc_workbench.nets import SubspaceNet, backbone
from nmc_workbench.projection import fit_pca
from tests.ranks import member, still, together

SIZE = dict(batch_size=40, device='cpu')
MLP = dict(backbone='mlp(width=32)', augment='spiral(noise=0)', **SIZE)


def samples(): return still()[:120]


def blobs():
    "Points (10001, 8) in seven groups."
    g = torch.Generator().manual_seed(3)
    return 6 * torch.randn(7, 8, generator=g)[torch.arange(10_001) % 7] + torch.randn(10_001, 8, generator=g)


def views():
    "Rows of unit length (2, 24, 5): two views of each sample."
    return F.normalize(torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64), dim=2)


def of_samples(z, **options):
    "The contrast of views (V, B, d), and its gradient."
    z = z.clone().requires_grad_()
    loss = nt_xent(z.flatten(0, 1), .3, len(z), **options)
    loss.backward()
    return loss.detach(), z.grad


class _PlainNMCE(NMCE):
    "Its first stage alone, on a net without batch norm, whose statistics are those of a rank's own share."
    @staticmethod
    def _build(config, shape):
        torch.manual_seed(0)
        return SubspaceNet(*backbone('mlp', 2, width=16, depth=2), 4, 2, hidden=None)

    def _stages(self, config): return [Representation(self.network_, config.epochs, config)]

    def finish(self): return self


def of_the_place(potential, z, sigma, noise, weight):
    "The loss with noise that follows from the sample, and not from the rank that has it."
    return dsm_loss(potential, z, sigma.fill_(.3), (1000 * z.detach()).sin(), weight)


METHODS = {
    'NMCE': lambda **o: _PlainNMCE(n_clusters=2, z_dim=4, epochs=3, augment='spiral(noise=0)', **SIZE, **o),
    'NMCE with a contrast': lambda **o: _PlainNMCE(n_clusters=2, z_dim=4, epochs=3, augment='spiral(noise=0)',
                                                   loss='nt_xent', **SIZE, **o),
    'NMC': lambda **o: NMC(epochs=3, potential_hidden=16, lambda_inv=0., **SIZE, **o),
    'SeLa': lambda **o: SeLa(n_clusters=5, n_heads=2, epochs=3, n_label_updates=4, lr=.05, power=5, **MLP, **o),
    'DeepCluster': lambda **o: DeepCluster(n_clusters=5, n_pseudo_labels=8, epochs=3, lr=.01, engine='torch',
                                           sampling='images', **MLP, **o),
    'DeepCluster with a contrast': lambda **o: DeepCluster(n_clusters=5, n_pseudo_labels=8, epochs=3, lr=.01, pca_dim=6,
                                                           contrast='views', sampling='images', **MLP, **o),
    'AND': lambda **o: AND(rounds=3, epochs=1, lr=.01, first_memory='random', **MLP, **o),
}


def losses_of(name, seconds=None, **options):
    "Every epoch's loss; with `seconds` of zero, of the first alone."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nmc_stages, 'dsm_loss', of_the_place)
        trainer = METHODS[name](**options).prepare(samples())
        rows = trainer.train(seconds=seconds)
    return [r['loss'] for r in rows]


def on_rank(rank, port, out, world):
    with member(rank, port, world, seconds=120):
        found = {}
        for name in METHODS:
            found[name] = dict(whole=losses_of(name), begun=losses_of(name, 0, run_dir=f'{out}/begun/{name}'),
                               ended=losses_of(name, run_dir=f'{out}/to end/{name}', resume=True))
        torch.save(found, f'{out}/rank{rank}.pt')


def on_rank_of_two(rank, port, out): on_rank(rank, port, out, 2)


def on_rank_of_four(rank, port, out): on_rank(rank, port, out, 4)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "Losses of one process, and a folder of runs that it left after an epoch."
    out = tmp_path_factory.mktemp('one')
    for name in METHODS: assert len(losses_of(name, 0, run_dir=str(out / name))) == 1
    return {name: losses_of(name) for name in METHODS}, out


@pytest.fixture(scope='module', params=[2, 4])
def ranks(request, alone, tmp_path_factory):
    "What every rank found, and their folder."
    out = tmp_path_factory.mktemp('many')
    shutil.copytree(alone[1], out / 'to end')
    (out / 'begun').mkdir()
    return together({2: on_rank_of_two, 4: on_rank_of_four}[request.param], out, request.param), out


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_ranks_have_the_losses_of_one_process(name, alone, ranks):
    wanted = alone[0][name]
    assert len(wanted) == 3 and len({round(x, 5) for x in wanted}) == 3
    for found in ranks[0]:
        np.testing.assert_allclose(found[name]['whole'], wanted, rtol=1e-5)
        assert found[name] == ranks[0][0][name]


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_run_is_ended_by_another_number_of_processes(name, alone, ranks):
    wanted, (found, out) = alone[0][name], ranks
    assert len(found[0][name]['begun']) == 1
    np.testing.assert_allclose(found[0][name]['ended'], wanted, rtol=1e-5)              # one began, several ended
    back = losses_of(name, run_dir=str(out / 'begun' / name), resume=True)              # several began, one ends
    np.testing.assert_allclose(back, wanted, rtol=1e-5)


# ---- work that is shared outside of a step


def parts_on_rank(rank, port, out):
    with member(rank, port, 2):
        x, own = blobs(), views()[:, 12 * rank:12 * rank + 12]
        def mine(n): return ShardedRows(x[:n][rank::2], torch.arange(n)[rank::2])
        torch.save(dict(lloyd=lloyd(mine(len(x)), 7), few=lloyd(mine(3), 2), given=lloyd(mine(200), 3, start=x[:3]),
                        sklearn=kmeans(mine(len(x)), 7, 'sklearn'), pca=fit_pca(mine(len(x)), 3),
                        wide=fit_pca(mine(5), 3), by_sklearn=fit_pca(mine(300), 3, engine='sklearn'),
                        nan=refused(x, rank), rows=rows_of(mine(9)), contrast=of_samples(own, positives='first'),
                        alone=of_samples(own, sync=False), **{k: labelled(k) for k in ('SeLa', 'AND')}),
                   f'{out}/rank{rank}.pt')


def refused(x, rank):
    "What is said where one rank alone has a value that is not finite."
    x = torch.where((torch.arange(len(x)) == 6)[:, None], torch.nan, x)[rank::2]
    said = []
    for call in (fit_pca, kmeans):
        with pytest.raises(InputError) as e: call(ShardedRows(x, torch.arange(10_001)[rank::2]), 3)
        said.append(str(e.value))
    return said


def rows_of(x):
    "The rows of a few samples, those of them that are here, a sum, and all."
    some = torch.tensor([8, 0, 3, 8])
    return x.at(some), x.among(some), x.sum(x.own.sum(0)), x.whole(x.own), (len(x), *x.shape), x.part(torch.arange(9))


def labelled(name):
    "Labels, embedding, an embedding that one process computes, and how many samples this rank took at the end."
    kind, seen = type(METHODS[name]()), []
    with pytest.MonkeyPatch.context() as patch:
        model = METHODS[name]()
        model.prepare(samples()[:119]).train()
        outputs = kind._outputs
        patch.setattr(kind, '_outputs', lambda self, x: seen.append(len(x)) or outputs(self, x))
        model.finish()
    return model.labels_, model.embedding_, model.transform(samples()[:119]), sum(seen)


@pytest.fixture(scope='module')
def parts(tmp_path_factory): return together(parts_on_rank, tmp_path_factory.mktemp('parts'))


def test_ranks_that_share_kmeans_find_the_clusters_of_one(parts):
    x = blobs()
    alone = dict(lloyd=lloyd(x, 7), few=lloyd(x[:3], 2), given=lloyd(x[:200], 3, start=x[:3]),
                 sklearn=kmeans(x, 7, 'sklearn'))
    for key, one in alone.items():
        for found in (p[key] for p in parts):
            assert (found.labels == one.labels).all() and found.engine == one.engine
            np.testing.assert_allclose(found.centres, one.centres, atol=1e-4)
            assert found.objective == pytest.approx(one.objective, rel=1e-5)
        assert (parts[0][key].centres == parts[1][key].centres).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('nmc_workbench.core.ranks.rank_and_world', lambda: pytest.fail('asked where nothing is shared'))
        lloyd(x[:50], 3)


def test_rows_stay_where_they_are(parts):
    x = blobs()[:9]
    for rank, (at, among, total, whole, shape, own) in enumerate(p['rows'] for p in parts):
        assert torch.equal(at, x[[8, 0, 3, 8]]) and torch.equal(among, x[[3]] if rank else x[[8, 0, 8]])
        torch.testing.assert_close(total, x.sum(0))
        assert torch.equal(whole, x) and shape == (9, 9, 8) and own.tolist() == list(range(9))[rank::2]
        assert all('not finite' in s or 'NaN' in s for s in parts[rank]['nan']) and len(parts[rank]['nan']) == 2


def test_ranks_that_share_principal_components_find_those_of_one(parts):
    x = blobs()
    alone = dict(pca=fit_pca(x, 3), wide=fit_pca(x[:5], 3), by_sklearn=fit_pca(x[:300], 3, engine='sklearn'))
    for key, one in alone.items():
        for found in (p[key] for p in parts):
            torch.testing.assert_close(found.project(x), one.project(x), atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(found.variances, one.variances, rtol=1e-5, atol=0)


def test_negatives_come_from_every_rank(parts):
    whole, gradient = of_samples(views(), positives='first')
    assert torch.stack([p['contrast'][0] for p in parts]).mean() == pytest.approx(float(whole), rel=1e-12)
    for rank, p in enumerate(parts):
        torch.testing.assert_close(p['contrast'][1] / 2, gradient[:, 12 * rank:12 * rank + 12])
        assert p['alone'][0] == pytest.approx(float(of_samples(views()[:, 12 * rank:12 * rank + 12])[0]), rel=1e-12)
        assert p['alone'][0] < whole


@pytest.mark.parametrize('name', ['SeLa', 'AND'])
def test_ranks_share_the_last_pass(name, parts):
    for rank, (labels, embedding, alone, seen) in enumerate(p[name] for p in parts):
        assert seen == 60 - rank and len(labels) == 119
        np.testing.assert_allclose(embedding, alone, atol=1e-5)
        assert (labels == parts[0][name][0]).all() and (embedding == parts[0][name][1]).all()
