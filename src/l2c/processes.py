"""Several processes of one command, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os

from l2c.devices import resolve_device
from l2c.errors import ConfigError

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_main() -> bool:
    """Whether this process is the only one, or the first of those that were started together."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def process_index() -> int:
    """Which of the processes that were started together this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes were started together; 1 for a command on its own."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(name: str, device_map: str | None = None) -> str:
    """The device of this process, which is one of its own where several were started together.

    Args:
        name: The one that was asked for, or `auto`.
        device_map: What spreads a pipeline over devices instead, if it is.

    Raises:
        ConfigError: If there is no such device, it cannot be that of several processes, or they are given a map.
    """
    if num_processes() == 1:
        return resolve_device(name)
    if device_map is not None:
        raise ConfigError(
            f"the device map {device_map} is for one process, and {num_processes()} were started together, each with a "
            "device of its own; leave --device-map out, or start one"
        )
    from accelerate import PartialState

    kind = resolve_device(name.partition(":")[0])
    own = str(PartialState(cpu=kind == "cpu").device)
    if name not in ("auto", kind, own) or not own.startswith(kind):
        raise ConfigError(
            f"several processes cannot all have the device '{name}'; say --device {kind}, or none"
        )
    return own


def wait_for_all() -> None:
    """Waits until every process has come here."""
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def part() -> None:
    """Lets go of the other processes, when all are done."""
    if num_processes() > 1:
        from accelerate import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()
