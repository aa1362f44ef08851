"""A TensorBoard log of learning, through accelerate's trackers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from l2c.learning.processes import Processes


class Log:
    """The log of one run, written by the main process; without a folder for it, nothing happens.

    If it cannot be written, as on a full disk, it warns, and learning goes on without.

    Args:
        processes: Made with the folder of the log.
        name: Name of the run, a folder in that of the log.
    """

    def __init__(self, processes: Processes, name: str) -> None:
        self._accelerator = processes.accelerator
        self._name = name
        self.writes = processes.log_dir is not None

    def open(self, settings: Mapping[str, Any], iteration: int) -> None:
        """Begins after an iteration; what an earlier run logged of later ones is replaced."""
        options = {"tensorboard": {"purge_step": iteration + 1}}
        text = json.dumps(settings, indent=2)
        self._try(lambda: self._accelerator.init_trackers(self._name, init_kwargs=options))
        self._try(lambda: self._accelerator.log({"settings": f"```\\n{text}\\n```"}, step=iteration))

    def add(self, values: Mapping[str, float], iteration: int) -> None:
        """Logs figures of an iteration."""
        self._try(lambda: self._accelerator.log(values, step=iteration))

    def close(self) -> None:
        """Writes what is left."""
        for tracker in self._accelerator.trackers:
            self._try(tracker.finish)

    def _try(self, write: Callable[[], object]) -> None:
        if not self.writes:
            return
        try:
            write()
        except OSError as error:
            self.writes = False
            warnings.warn(f"cannot write the log: {error.strerror or error}; learning goes on", stacklevel=3)
