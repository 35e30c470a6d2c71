"""One, two and four processes that share every batch: each method has the losses of one process, and a run that one
number of processes began is ended by another. The samples' views and the noise do not depend on the rank here."""
import shutil

import numpy as np
import pytest
import torch

from nmc_workbench.methods import AND, DeepCluster, NMC, NMCE, SeLa
from nmc_workbench.methods.nmc import stages as nmc_stages
from nmc_workbench.methods.nmce.stages import Representation
from nmc_workbench.modes.potential import dsm_loss
from nmc_workbench.nets import SubspaceNet, backbone
from tests.ranks import member, still, together

SIZE = dict(batch_size=40, device='cpu')
MLP = dict(backbone='mlp(width=32)', augment='spiral(noise=0)', **SIZE)


def samples(): return still()[:120]


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
    'NMC': lambda **o: NMC(epochs=3, potential_hidden=16, lambda_inv=0., **SIZE, **o),
    'SeLa': lambda **o: SeLa(n_clusters=5, n_heads=2, epochs=3, n_label_updates=4, lr=.05, power=5, **MLP, **o),
    'DeepCluster': lambda **o: DeepCluster(n_clusters=5, n_pseudo_labels=8, epochs=3, lr=.01, engine='torch',
                                           sampling='images', **MLP, **o),
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
