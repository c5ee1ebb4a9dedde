"""Two processes on gloo that each leave a file of what they found."""

import os
import sys

import torch
from torch import distributed, multiprocessing


def results_of(find, folder):
    """What `find(rank)` gives in each of two processes."""
    # A fork has torch loaded already; where there is none, the processes start from nothing.
    start = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(_work, (find, str(folder / "meet"), str(folder)), nprocs=2, start_method=start)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank, find, rendezvous, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.save(find(rank), os.path.join(results, f"{rank}.pt"))  # noqa: PTH118
    distributed.destroy_process_group()
