"""The processes that learn together, started by `accelerate launch`; usually it is one.

Every process takes its rows of every batch. Where a pipeline is split by context, the processes of a group make each
run together, and a group takes its rows. What all of them share is small: the gradients of some thousand numbers, once
per iteration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2c.digest import digest
from l2c.errors import ConfigError, L2CError
from l2c.hosts.base import Examples
from l2c.hosts.parallel import ContextGroup

_LAUNCHED = ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_T = TypeVar("_T")


class Processes:
    """This process among those that learn together.

    Args:
        device: Where the model is.
        log_dir: Folder for TensorBoard, if there is to be a log.
        context: Processes that make one run with this one; None if it makes its own.

    Attributes:
        accelerator: The `accelerate.Accelerator` underneath.
        count: How many there are.
        index: Which one this is.
        num_groups: How many runs they make at a time.
        group: Which of those this process is in.

    Raises:
        ConfigError: If TensorBoard is wanted and not installed, if one of several processes has its model on
            another device than its own, or if processes have other groups than those that they are in.
    """

    def __init__(
        self, device: torch.device, log_dir: Path | None = None, context: ContextGroup | None = None
    ) -> None:
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

        groups = self._groups(context)
        self.num_groups, self._first = len(groups), [ranks[0] for ranks in groups]
        self.group = next(place for place, ranks in enumerate(groups) if self.index in ranks)

    def _groups(self, context: ContextGroup | None) -> list[tuple[int, ...]]:
        """The processes of every run, in order; the same in all processes."""
        mine = (self.index,) if context is None else context.ranks
        groups = sorted(set(self._gather(mine)))
        if sorted(rank for ranks in groups for rank in ranks) != list(range(self.count)):
            raise ConfigError(
                f"the {self.count} processes do not agree on which of them make a run together ("
                f"{' and '.join(map(str, groups))}); enable the same context parallelism in all, on one mesh of all "
                "processes"
            )
        if len({len(ranks) for ranks in groups}) > 1:
            raise ConfigError(
                f"the groups of processes that make a run together are of different sizes "
                f"({' and '.join(map(str, groups))}); take a mesh of data x context processes"
            )
        return groups

    def _gather(self, value: _T) -> list[_T]:
        """Plain data of all processes, in their order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        every: list[_T] = gather_object([value])
        return every

    def check_alike(self, values: Mapping[str, object]) -> None:
        """Compares what decides the result between the processes, so that none waits for another in vain.

        Args:
            values: Plain data by name.

        Raises:
            ConfigError: If something differs, in all of them.
        """
        first, *others = self._gather({name: digest(value) for name, value in values.items()})
        for index, other in enumerate(others, start=1):
            names = sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
            if names:
                raise ConfigError(
                    f"process {index} learns with another {names[0]} than process 0; start all processes that learn "
                    "together with the same pipeline, call and settings"
                )

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process runs.

        Raises:
            ConfigError: If the batch cannot be shared evenly.
        """
        if batch_size % self.num_groups:
            what = "processes" if self.num_groups == self.count else "groups of processes"
            raise ConfigError(
                f"a batch of {batch_size} cannot be shared evenly by {self.num_groups} {what}; "
                f"take a batch size that is a multiple of {self.num_groups}"
            )
        share = batch_size // self.num_groups
        return slice(self.group * share, (self.group + 1) * share)

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
        """Equally shaped tensors of all groups (num_groups, ...), in their order."""
        if self.count == 1:
            return values[None]
        every: Tensor = self.accelerator.gather(values[None].contiguous())
        return every[self._first]

    def in_rounds(
        self, function: Callable[[Examples], Tensor], examples: Examples, size: int, start: int = 0
    ) -> Iterator[Tensor]:
        """A function of examples, `size` of them at a time, each process computing its part of them.

        Args:
            function: Returns a row for each example that it is given.
            examples: Its argument for all rows.
            size: Examples that all groups together compute in a round.
            start: Example to begin with.

        Yields:
            The rows of a round, the same in every process.
        """
        for begin in range(start, len(examples), size):
            rows = range(begin, min(begin + size, len(examples)))
            if self.count == 1:
                yield function(examples.rows(slice(rows.start, rows.stop)))
                continue
            share = -(-len(rows) // self.num_groups)  # the last ones may be made twice
            mine = [min(self.group * share + place, len(rows) - 1) for place in range(share)]
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
