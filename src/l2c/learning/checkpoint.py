"""Checkpoints of learning: what a run that was killed goes on from."""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from typing_extensions import TypedDict

from l2c.documents import check_value
from l2c.errors import CheckpointError, ConfigError, OutputError
from l2c.files import atomic_write, remove_partial
from l2c.models.checkpoints import read_pickle

FORMAT = "l2c.learning-checkpoint"
VERSION = 2


class _State(TypedDict):
    kept: dict[str, Any]
    stage: str
    iteration: Annotated[int, Field(ge=0, lt=2**31)]
    learned: dict[str, Any]
    aside: dict[str, Any]


class Checkpoint:
    """One file with the state of a run, replaced as a whole every so often.

    It holds tensors and plain data, and nothing in it is executed when it is read.

    Args:
        path: Where it is.
        identity: Everything that decides what is learned, by name, in JSON types. A checkpoint with another one is
            not gone on from.
        save_every_s: Least time between two writes, in seconds.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], save_every_s: float) -> None:
        self.path = path
        self.identity = {name: json.dumps(value, sort_keys=True) for name, value in identity.items()}
        self.save_every_s = save_every_s
        self._saved = time.monotonic()
        self._failed = False

    @property
    def due(self) -> bool:
        """Whether the last write was long enough ago."""
        return time.monotonic() - self._saved >= self.save_every_s

    def load(self, restart: bool = False) -> dict[str, Any] | None:
        """The state to go on from; None if there is none, or none that is wanted.

        Args:
            restart: Begin anew and let the file be replaced.

        Raises:
            CheckpointError: If there is a file that is no checkpoint of learning.
            ConfigError: If it is that of a run with other settings.
        """
        remove_partial(self.path)
        if not self.path.exists():
            return None
        known = whole = False
        if self.path.is_file():  # a named pipe is none
            with suppress(Exception):  # a damaged file can fail in any way
                content: Any = read_pickle(self.path)
                known = content["format"] == FORMAT and content["version"] == VERSION
                identity, state = content["identity"], content["state"]
                check_value("state", state, _State)
                whole = not known or content["digest"] == _digest(identity, state)
        if not whole:
            raise CheckpointError(
                f"{self.path} is damaged or no checkpoint of learning; delete it, or choose another --checkpoint"
            )
        if not known:
            raise CheckpointError(
                f"{self.path} was written by another version of l2c; delete it, or choose another --checkpoint"
            )
        if restart:
            return None
        changes = [
            f"{name.rstrip('_')} was {identity.get(name)} and is now {self.identity.get(name)}"
            for name in {**identity, **self.identity}
            if identity.get(name) != self.identity.get(name)
        ]
        if changes:
            raise ConfigError(
                f"{self.path} was left by a run with other settings: {', '.join(changes)}; go on with the settings of "
                "then, or discard it with restart=True (--restart)"
            )
        loaded: dict[str, Any] = state
        return loaded

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes the state. If that fails, as on a full disk, it warns, once, and the last checkpoint stays."""
        buffer = io.BytesIO()
        content = {"format": FORMAT, "version": VERSION, "identity": self.identity, "state": dict(state)}
        content["digest"] = _digest(self.identity, content["state"])
        torch.save(content, buffer)
        try:
            atomic_write(
                self.path, buffer.getvalue(), "learning goes on, but cannot be resumed from here if killed"
            )
            self._failed = False
        except OutputError as error:
            if not self._failed:
                warnings.warn(str(error), stacklevel=2)
            self._failed = True
        self._saved = time.monotonic()


def _digest(*contents: object) -> str:
    """Tells whether everything in a checkpoint, each number of each tensor, is as it was written."""
    total, rest = hashlib.sha256(), list(reversed(contents))
    while rest:
        value = rest.pop()
        if isinstance(value, torch.Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, (dict, list, tuple)):
            total.update(f"{type(value).__name__} {len(value)}".encode())
            rest += value if not isinstance(value, dict) else chain.from_iterable(value.items())
        else:
            total.update(f"{type(value).__name__} {value!r}".encode())
    return total.hexdigest()
