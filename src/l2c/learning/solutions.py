"""Fine-step solutions in a folder, for all that is learned of one model on the same examples."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from l2c.digest import digest
from l2c.errors import OutputError
from l2c.files import atomic_write
from l2c.hosts.base import Examples, Host, errors
from l2c.learning.trainer import Trainer

logger = logging.getLogger(__name__)

FORMAT = "l2c.solutions"
MOST_BYTES = 4_000_000_000
"""Of all files in a folder: those that were not used for longest go."""
SHORT = 2
"""Steps of the run that tells whether a model still does what it did."""
SAME = 1e-3
"""Relative error of such runs that is rounding."""


class Solutions:
    """The solutions that a run of learning comes close to, as an earlier run with the same examples left them.

    A file is named after all that decides what is in it, as far as can be read off. What can not, as an adapter of
    which the weights say nothing, shows in a short run of the first example, which is made anew and compared.

    Args:
        trainer: Whose session names the folder; what it keeps is filled and read.
        fine: What solves.
        probe: A short run of the first example (1, ...).
        examples: What is solved, by the names of the solutions in what the trainer keeps.
    """

    def __init__(self, trainer: Trainer, fine: Host, probe: Tensor, examples: Mapping[str, Examples]) -> None:
        self._trainer, self._probe, self._names = trainer, probe.float().cpu(), list(examples)
        rounded = [torch.__version__, torch.get_num_threads()]  # what decides the last bits
        told = [FORMAT, dict(fine.identity), rounded, {name: it.identity for name, it in examples.items()}]
        folder = trainer.session.solutions
        self._path = None if folder is None else Path(folder) / f"{digest(told)}.safetensors"
        self._taken = False

    @classmethod
    @torch.no_grad()
    def of(cls, trainer: Trainer, host: Host, fine: Host, examples: Mapping[str, Examples]) -> Solutions:
        """Those of a host, with a probe of it; see `Solutions`."""
        if trainer.session.solutions is None:
            return cls(trainer, fine, torch.zeros(1), examples)
        short = fine if fine is host else host.reference(SHORT)
        first = next(some for some in examples.values() if len(some))
        return cls(trainer, fine, short.sample(first.rows([0])), examples)

    def take(self) -> None:
        """Gives the trainer what the folder has."""
        if self._path is None:
            return
        found = self._trainer.processes.agree(self._load)
        if found is not None:
            logger.info("the fine-step solutions are those of an earlier run (%s)", self._path)
            self._trainer.kept.update(found)
            self._taken = True

    def put(self) -> None:
        """Writes what the trainer has into the folder, from the main process; if that fails, learning goes on."""
        kept, path = self._trainer.kept, self._path
        if path is None or self._taken or not self._trainer.processes.is_main:
            return
        tensors = {name: kept[name].contiguous() for name in self._names if name in kept}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > MOST_BYTES:
            logger.info("%.1f GB of fine-step solutions are too many to be kept for other runs", size / 1e9)
            return
        tensors["probe"] = self._probe
        data = safetensors.torch.save(tensors, {FORMAT: _digest(tensors)})
        try:
            atomic_write(
                path, data, "learning goes on, without keeping solutions for other runs", replace=True
            )
        except OutputError as error:
            warnings.warn(str(error), stacklevel=2)
            return
        _make_room(path)

    def _load(self) -> Mapping[str, Tensor] | None:
        """What the file has, if the model still does what it did."""
        path = self._path
        assert path is not None
        found: dict[str, Any] = {}
        if path.is_file():
            with (
                suppress(Exception),
                safe_open(path, framework="pt") as file,
            ):  # of a damaged one, whatever it is
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                found = tensors if file.metadata()[FORMAT] == _digest(tensors) else {}
        probe = found.pop("probe", None)
        if probe is None or probe.shape != self._probe.shape:
            return None
        if not errors(probe, self._probe, "relative").max() < SAME:
            logger.info("solutions of an earlier run are left, since the model makes something else now")
            return None
        with suppress(OSError):
            path.touch()
        return found


def _make_room(newest: Path) -> None:
    """Removes the files of a folder that were not used for longest, until the rest is small enough."""
    with suppress(OSError):
        files = [path for path in newest.parent.glob("*.safetensors") if _is_ours(path)]
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > MOST_BYTES and path != newest:
                path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Tells whether every number is as it was written."""
    parts = [tensors[name].contiguous().flatten().view(torch.uint8) for name in sorted(tensors)]
    return digest(sorted(tensors), *parts)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return json.dumps(FORMAT).encode() in head
