"Processes that work together over gloo, for the tests of several ranks."
import os
import socket
from contextlib import contextmanager
from datetime import timedelta

import torch


@contextmanager
def member(rank, port, world=2, seconds=60):
    "This process is one of `world`; ranks that wait for each other longer fail."
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world, timeout=timedelta(seconds=seconds))
    yield
    torch.distributed.destroy_process_group()


def together(function, out, world=2):
    "`function(rank, port, out)` in `world` processes, and what each left in `out/rank<n>.pt`."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(function, (port, str(out)), nprocs=world)
    return [torch.load(out / f'rank{r}.pt', weights_only=False) for r in range(world)]


def still():
    "Points (130, 2) whose views are themselves where the augmentation has no noise: nothing differs between ranks."
    g = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(5, 2, generator=g)
    return centres[torch.arange(130) % 5] + torch.randn(130, 2, generator=g)
