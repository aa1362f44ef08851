"""`Record`: what was run, on what, and every raw figure, as one JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from typing_extensions import TypedDict

from l2c import __version__
from l2c.documents import Cost, parse, read_document
from l2c.errors import DataError
from l2c.files import atomic_write

FORMAT = "l2c.run-record"
NOT_ONE, ADVICE = "is not a record written by l2c", "make it anew"
_PACKAGES = ("torch", "diffusers", "numpy", "safetensors")


class _Stored(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    format: Literal["l2c.run-record"]
    seeds: list[int]


@dataclass(frozen=True)
class Record:
    """One run of a command, in plain data.

    Attributes:
        command: Name of the command: `sample`, `demo`.
        config: Every setting with the value that was used, defaults resolved.
        seeds: Seed of each image, in order.
        timings: Raw wall-clock seconds by name, every repetition.
        results: Figures and names of the files that came out.
        device: Where it ran, from `describe_device`.
        versions: Of Python, l2c and the libraries underneath.
        commit: Commit of the source tree, if l2c runs from one.
        created: Time in UTC, ISO 8601.
    """

    command: str
    config: Mapping[str, Any]
    seeds: tuple[int, ...] = ()
    timings: Mapping[str, list[Cost]] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: find_versions())
    commit: str | None = field(default_factory=lambda: find_commit())
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """Plain data with the name of the format."""
        return {"format": FORMAT, **asdict(self), "seeds": list(self.seeds)}

    def save(self, path: str | Path) -> None:
        """Writes the record whole or not at all.

        Raises:
            OutputError: If the file cannot be written.
        """
        atomic_write(path, (json.dumps(self.to_json(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, within: Path | None = None) -> Record:
        """Reads a record.

        Args:
            path: The file.
            within: Folder that it must really be in, with a path from there; see `l2c.documents.read_own_file`.

        Raises:
            DataError: If the file is missing or not a record.
        """
        stored = read_document(path, _Stored, advice=ADVICE, within=within, what=NOT_ONE)
        return parse(cls, stored, f"{path} {NOT_ONE}", DataError, ADVICE)


def find_versions() -> dict[str, str]:
    """Versions of Python, l2c and the libraries that decide what comes out."""
    versions = {"python": platform.python_version(), "l2c": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def find_commit() -> str | None:
    """Commit of the source tree that l2c is imported from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe_device(device: str) -> dict[str, Any]:
    """Name, threads and platform of a torch device, in plain data."""
    import torch

    described: dict[str, Any] = {"device": device, "platform": platform.platform()}
    if device.startswith("cuda"):
        described["name"] = torch.cuda.get_device_name(device)
    else:
        described["name"] = _processor()
        described["threads"] = torch.get_num_threads()
    return described


def _processor() -> str:
    """Model of the processor, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()
