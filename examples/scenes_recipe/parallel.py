"""Data-parallel training in processes of one thread each: small operations do not wait for each other's threads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing


class Workers:
    """One process of a training run, seen from inside.

    Args:
        rank: Number of this process; 0 logs and saves.
        number: How many there are.
    """

    def __init__(self, rank: int = 0, number: int = 1) -> None:
        self.rank, self.number = rank, number

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The first process's values, in all of them."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.number > 1:
            distributed.broadcast(tensor, src=0)
        return [float(value) for value in tensor]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.number == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.number
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one after the other."""
        if self.number == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.number)]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)


def run_workers(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(workers, *arguments)` in `number` processes of one thread each and wait for them.

    Args:
        number: How many processes; with one, the function runs in this one.
        function: What to run; its name must be importable.
        *arguments: For the function; they must pickle.
    """
    if number == 1:
        torch.set_num_threads(1)
        function(Workers(), *arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_work, (number, port, function, arguments), nprocs=number)  # type: ignore[no-untyped-call]


def _work(
    rank: int, number: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=number
    )
    try:
        function(Workers(rank, number), *arguments)
    finally:
        distributed.destroy_process_group()
