"""Files of schedules and families: safetensors, with everything that is not a tensor as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from l2c.documents import parse
from l2c.errors import ScheduleError, Told
from l2c.files import atomic_write
from l2c.schedule.header import Versioned

ANEW = "write it anew with l2c learn"
KINDS = {
    "l2c.cache-schedule": "a schedule; read it with l2c.CacheSchedule.load",
    "l2c.schedule-family": "a family of schedules; take one with l2c.ScheduleFamily.load(path).at(budget), or on the "
    "command line with --budget",
}


def write_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Writes one file; an interrupted write leaves the old file.

    Raises:
        OutputError: If the file cannot be written.
    """
    # One key, because safetensors does not fix the order of several, and files should repeat.
    metadata = {kind: json.dumps(header, sort_keys=True)}
    atomic_write(path, safetensors.torch.save(dict(tensors), metadata=metadata))


def read_tensors(path: str | Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads one file; nothing in it is ever executed.

    Args:
        path: The file.
        kind: One of `KINDS`.
        version: Latest version of its format that is understood.

    Raises:
        ScheduleError: If the file is missing, truncated, of another kind, of a later version, or malformed.
    """
    metadata, tensors = _read(path)
    if kind not in metadata:
        for other, advice in KINDS.items():
            if other in metadata:
                raise ScheduleError(f"{path} is {advice}")
        raise ScheduleError(f"{path} is a safetensors file but not a schedule written by l2c")
    header = parse(Versioned, metadata[kind], f"{path} is malformed", ScheduleError, ANEW)
    if header["version"] > version:
        raise ScheduleError(
            f"{path} has schedule format {header['version']}, this l2c reads up to {version}; update l2c"
        )
    return tensors, dict(header)


def kind_of(path: str | Path) -> str:
    """Which of `KINDS` a file is, or an empty string.

    Raises:
        ScheduleError: If the file is missing or truncated.
    """
    return next((kind for kind in KINDS if kind in _read(path)[0]), "")


def shipped() -> dict[str, Path]:
    """Files of the schedules and families that come with l2c, for the embedded models, by name."""
    models = {"dit-mini-cifar10", "uvit-mini-cifar10"}
    folder = Path(str(resources.files("l2c") / "assets"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors")) if path.stem not in models}


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, or of a shipped one by its name."""
    path = Path(path)
    if not path.is_file():
        found = shipped().get(str(path))
        if found is None:
            raise ScheduleError(
                f"there is no schedule file {path}; l2c learn --out makes one, and these come with l2c: "
                f"{', '.join(shipped())}"
            )
        path = found
    hint = (
        ""
        if path.suffix == ".safetensors"
        else "; a published router (.pt) is imported with l2c.import_router"
    )
    wrong = f"{path} is not a whole schedule file ({{said}}){hint}"
    with Told(ScheduleError, wrong, SafetensorError, OSError), safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
