"Every method in bf16 on a CPU: the loss of its first epoch is close to that in full precision, and it stays finite."
import numpy as np
import pytest
import torch

from nmc_workbench.methods import AND, NMC, NMCE, DeepCluster, SeLa
from tests.bench import bench_bf16

IMAGES = dict(backbone='smallconv(width=8)', batch_size=48, seed=0, device='cpu')
METHODS = {
    NMCE: dict(IMAGES, recipe='cifar10_small', n_clusters=4, epochs=2, cluster_epochs=1, finetune_epochs=1),
    NMC: dict(epochs=2, potential_hidden=32, dbscan_eps=1.5, batch_size=48, seed=0, device='cpu'),
    SeLa: dict(IMAGES, recipe='cifar10_small', n_clusters=6, n_heads=2, epochs=2, n_label_updates=2),
    DeepCluster: dict(IMAGES, recipe='cifar10_small', n_clusters=4, n_pseudo_labels=6, epochs=2),
    AND: dict(IMAGES, recipe='cifar10_small', rounds=1, epochs=2, k_neighbours=10)}


def trained(method, amp):
    g = torch.Generator().manual_seed(0)
    if method is NMC: x = torch.randn(96, 6, generator=g).numpy()
    else: x = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8, generator=g)
    return method(**METHODS[method], amp=amp).fit(x)


@pytest.mark.filterwarnings('ignore:all samples climb to one mode')      # of so few epochs
@pytest.mark.parametrize('method', METHODS, ids=lambda m: m.__name__)
def test_bf16_on_a_cpu_is_close_to_full_precision(method):
    whole, half = (trained(method, amp) for amp in ('off', 'bf16'))
    first, other = (m.history_[0]['loss'] for m in (whole, half))
    assert first != other and other == pytest.approx(first, rel=.05)
    assert all(np.isfinite(v) for row in half.history_ for v in row.values() if isinstance(v, float))
    assert half.embedding_.dtype == whole.embedding_.dtype and np.isfinite(half.embedding_).all()
    assert {p.dtype for p in half.network_.parameters()} == {p.dtype for p in whole.network_.parameters()}


@pytest.mark.parametrize('recipe', bench_bf16.SHAPES)
def test_the_bench_takes_turns(recipe):
    row = bench_bf16.compared(AND, recipe, n=80, turns=1)
    assert row['ratio'] == row['off'] / row['bf16'] > 0
