"""The processes that learn together, started by `accelerate launch`; usually it is one.

Every process has the whole frozen model and takes its rows of every batch. What they share is small: the gradients of
some thousand numbers, once per iteration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2c.errors import ConfigError, L2CError
from l2c.hosts.base import Examples

_LAUNCHED = ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_T = TypeVar("_T")


class Processes:
    """This process among those that learn together.

    Args:
        device: Where the model is.
        log_dir: Folder for TensorBoard, if there is to be a log.

    Attributes:
        accelerator: The `accelerate.Accelerator` underneath.
        count: How many there are.
        index: Which one this is.

    Raises:
        ConfigError: If TensorBoard is wanted and not installed, or if one of several processes has its model on
            another device than its own.
    """

    def __init__(self, device: torch.device, log_dir: Path | None = None) -> None:
        from accelerate import Accelerator
        from accelerate.utils import is_tensorboard_available

        if log_dir is not None and not is_tensorboard_available():
            raise ConfigError("a log needs TensorBoard; install it with: pip install 'l2c[log]'")
        launched = any(name in os.environ for name in _LAUNCHED)
        self.accelerator: Any = Accelerator(
            cpu=launched and device.type == "cpu",
            log_with=None if log_dir is None else "tensorboard",
            project_dir=log_dir,
        )
        self.count: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.device, self.log_dir = device, log_dir
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count != started:
            raise ConfigError(
                f"{started} processes were started together but accelerate counts {self.count}; let nothing set it up "
                "before learning does, and put the model on a device that can be shared, or the CPU"
            )
        if self.count > 1 and _place(device) != _place(self.accelerator.device):
            raise ConfigError(
                f"the model of process {self.index} is on {device} but the process has {self.accelerator.device}; "
                "load it there (accelerate.PartialState().device)"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ConfigError: If the batch cannot be shared evenly.
        """
        if batch_size % self.count:
            raise ConfigError(
                f"a batch of {batch_size} cannot be shared evenly by {self.count} processes; "
                f"take a batch size that is a multiple of {self.count}"
            )
        share = batch_size // self.count
        return slice(self.index * share, (self.index + 1) * share)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of equally shaped tensors over the processes."""
        if self.count == 1:
            return values
        mean: Tensor = self.accelerator.reduce(values, "mean")
        return mean

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in one of the processes."""
        return self.mean(torch.tensor(float(flag), device=self.device)).item() > 0

    def each(self, values: Tensor) -> Tensor:
        """Equally shaped tensors of all processes (count, ...), in their order."""
        if self.count == 1:
            return values[None]
        every: Tensor = self.accelerator.gather(values[None].contiguous())
        return every

    def in_rounds(
        self, function: Callable[[Examples], Tensor], examples: Examples, size: int, start: int = 0
    ) -> Iterator[Tensor]:
        """A function of examples, `size` of them at a time, each process computing its part of them.

        Args:
            function: Returns a row for each example that it is given.
            examples: Its argument for all rows.
            size: Examples that all processes together compute in a round.
            start: Example to begin with.

        Yields:
            The rows of a round, the same in every process.
        """
        for begin in range(start, len(examples), size):
            rows = range(begin, min(begin + size, len(examples)))
            if self.count == 1:
                yield function(examples.rows(slice(rows.start, rows.stop)))
                continue
            share = -(-len(rows) // self.count)  # the last ones may be made twice
            mine = [min(self.index * share + place, len(rows) - 1) for place in range(share)]
            result = function(examples.rows([rows[place] for place in mine]))
            yield self.each(result).flatten(0, 1)[: len(rows)]

    def agree(self, decide: Callable[[], _T]) -> _T:
        """What the main process decides, in all of them; an error of l2c is raised in all of them, too."""
        if self.count == 1:
            return decide()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = decide()
            except L2CError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        decided: _T = outcome[0]
        return decided


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0
