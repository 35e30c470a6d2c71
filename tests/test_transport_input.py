"""What `transport.sinkhorn` takes, and what it refuses in one line."""
import signal
import warnings

import numpy as np
import pytest
import torch

from nmc_workbench.core.errors import InputError
from nmc_workbench.transport import HeadLogits, sinkhorn

x = 6 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))


def go(x=x, **o): return sinkhorn(x, **(dict(power=25, given='logits', tol=5) | o))


@pytest.mark.parametrize('dtype', ['f32', 'f64'])
def test_overflow_does_not_hang(dtype):
    def late(*a): raise TimeoutError
    signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        with pytest.raises(InputError): go(x.double() * (1e37 if dtype == 'f32' else 1e307), dtype=dtype, max_iter=20)
    finally: signal.alarm(0)


def test_bfloat16(): assert go(x.bfloat16()).converged


@pytest.mark.parametrize('power', [np.int64(25), np.float32(25), np.array(25)])
def test_numpy_power(power): assert go(power=power).n_iter == go().n_iter


@pytest.mark.parametrize('kind', ['mean', 'marginal'])
def test_warning_names_the_error_of_its_kind(kind):
    with pytest.warns(UserWarning) as w: p = go(tol=1e-9, tol_kind=kind, max_iter=11)
    found = dict(mean=p.errors / 200, marginal=p.marginal_errors)[kind][-1]
    assert f'{found:.3g}' in str(w[0].message)


def test_memmap_is_silent(tmp_path):
    np.save(tmp_path / 'x.npy', x.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        go(np.load(tmp_path / 'x.npy', mmap_mode='r'))


def test_reversed_array(): assert (go(x.numpy()[::-1]).labels[::-1] == go().labels).all()


@pytest.mark.parametrize('bad', [
    dict(chunk=-5), dict(chunk=0), dict(tol='a'), dict(tol=None), dict(max_iter=2.5), dict(check_every=2.5),
    dict(x=[[1.], [.5, .5]]), dict(x=[['a', 'b']]), dict(x=x.numpy().astype(complex))], ids=str)
def test_bad_input(bad):
    with pytest.raises(InputError): go(**bad)


def test_bad_heads():
    with pytest.raises(InputError): HeadLogits(x, torch.randn(5, 10), torch.zeros(4))


def test_features_as_array(): assert go(HeadLogits(x.numpy(), torch.randn(5, 10))).converged
