"""Batches are a function of seed, stage and epoch; ranks share them."""
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.training import batches as module
from nmc_workbench.augment import preset
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.ranks import from_main, mean_over_ranks
from nmc_workbench.data.images import prefetch
from nmc_workbench.training.batches import Batches
from nmc_workbench.data import load


@pytest.fixture(scope='module')
def digits(): return load('digits', limit=110)


def make(images, **options): return Batches(images, preset('digits'), **{**dict(batch_size=25), **options})


def test_every_sample_at_most_once_and_the_last_incomplete_batch_dropped(digits):
    batches = make(digits)
    index = [i for i, _ in batches.epoch('one', 0)]
    assert len(batches) == len(index) == 4 and all(i.shape == (25,) and i.dtype == torch.int64 for i in index)
    seen = torch.cat(index)
    assert len(seen.unique()) == 100 and 0 <= seen.min() and seen.max() < 110 and not seen.equal(seen.sort().values)


@pytest.mark.parametrize('n_views', [1, 2, 3])
def test_views_are_of_the_samples_they_are_said_to_be(digits, n_views):
    class Plain:
        def __call__(self, pixels, generator): return pixels.float() + torch.rand(1, generator=generator)
    for index, views in Batches(digits, Plain(), 25, n_views).epoch('one', 0):
        assert views.shape == (n_views, 25, 1, 8, 8) and views.dtype == torch.float32
        assert views.floor().equal(digits.pixels[index].float().expand_as(views))
        assert len(views.flatten(1)[:, 0].unique()) == n_views


def test_an_epoch_is_a_function_of_seed_stage_and_number(digits):
    def first(seed=0, stage='one', epoch=3, before=()):
        batches = make(digits, seed=seed)
        for e in before: list(batches.epoch('one', e))
        return next(iter(batches.epoch(stage, epoch)))
    index, views = first()
    for again in (first(), first(before=(0, 1)), first(before=(3, 4))):
        assert index.equal(again[0]) and views.equal(again[1])
    for other in (first(seed=1), first(stage='two'), first(epoch=4)):
        assert not index.equal(other[0]) and not views.equal(other[1])


def test_the_noise_of_the_views_is_the_epochs_own(digits):
    "Not only the order changes from epoch to epoch."
    class Noise:
        def __call__(self, pixels, generator): return torch.rand(len(pixels), generator=generator)
    def views(seed=0, stage='one', epoch=3):
        return torch.cat([v for _, v in Batches(digits, Noise(), 25, 2, seed).epoch(stage, epoch)])
    assert views().equal(views()) and len(views().unique()) == views().numel()
    for other in (views(seed=1), views(stage='two'), views(epoch=4)): assert not views().equal(other)


def test_plain_gives_every_sample_once_in_order(digits):
    for size in (1, 7, 110, 1000):
        parts = list(make(digits).plain(size))
        assert torch.cat([i for i, _ in parts]).equal(torch.arange(110))
        assert max(len(i) for i, _ in parts) == min(size, 110)
        torch.testing.assert_close(torch.cat([x for _, x in parts]), digits.pixels / 255)


def test_streamed_files_give_what_memory_gives(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(23):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f'{i % 2}/{i}.png')
    streamed = load('imagenet_folder', root=tmp_path, size=8, channels=1)
    assert streamed.streams
    for (i, a), (j, b) in zip(make(streamed, batch_size=5).epoch('one', 2),
                              make(streamed.resident(), batch_size=5).epoch('one', 2), strict=True):
        assert i.equal(j) and a.equal(b)
    for (i, a), (j, b) in zip(make(streamed).plain(5) if len(streamed) > 25 else make(streamed, batch_size=5).plain(5),
                              make(streamed.resident(), batch_size=5).plain(5), strict=True):
        assert i.equal(j) and a.equal(b)


@pytest.mark.parametrize('world', [2, 5])
def test_ranks_share_each_batch(digits, monkeypatch, world):
    size = 25 if world == 5 else 24
    whole = [i for i, _ in make(digits, batch_size=size).epoch('one', 1)]
    parts, views = [], []
    for rank in range(world):
        monkeypatch.setattr(module, 'rank_and_world', lambda: (rank, world))
        batches = make(digits, batch_size=size)
        assert len(batches) == len(whole)
        parts.append([i for i, _ in batches.epoch('one', 1)])
        views.append(next(iter(batches.epoch('one', 1)))[1])
    for step, index in enumerate(whole): assert torch.stack([p[step] for p in parts], 1).flatten().equal(index)
    assert not views[0].equal(views[1])


def test_batch_size_is_checked(digits, monkeypatch):
    with pytest.raises(InputError, match='batch_size=111 > n_samples=110; choose a smaller'):
        make(digits, batch_size=111)
    assert len(make(digits, batch_size=110)) == 1
    monkeypatch.setattr(module, 'rank_and_world', lambda: (0, 2))
    with pytest.raises(InputError, match='batch_size=25 is not a multiple of the 2 ranks'): make(digits)


def test_ahead_prepares_one_item_while_another_is_used():
    started, n = [], 5
    def prepare(i):
        started.append(i)
        return i * i, threading.current_thread() is threading.main_thread()
    got = []
    for value, in_main in prefetch(range(n), prepare):
        got.append(value)
        assert not in_main and len(started) <= len(got) + 2
    assert got == [0, 1, 4, 9, 16] and list(prefetch([], prepare)) == []
    with pytest.raises(ZeroDivisionError): list(prefetch([1, 0], lambda i: 1 / i))


def test_one_process_asks_nobody():
    x = torch.ones(2)
    assert mean_over_ranks(x) is x and from_main(lambda: 'a') == 'a'
    with pytest.raises(InputError, match='no'): from_main(lambda: (_ for _ in ()).throw(InputError('no')))
