"""Runs of `l2c` that are harmed on the way, of commands that are small enough to be run often."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import l2c
from l2c.models import save_model
from l2c.records import Record
from l2c.testing import tiny_dit

SAFE = "a folder of 模型 é"
"""Name of the folder that everything is in."""
COMPARISON = """
model = "{model}"
images = 2
batch_size = 2
timing_images = 1
repetitions = 1
shown_images = 1
metrics = ["rmse"]
reference = {{ solver = "dpmsolver++3", steps = 4, spacing = "logsnr" }}

[[base]]
solver = "ddim"
steps = 3
budgets = [0.7]

[[method]]
name = "fora"

[[method]]
name = "taylorseer"
settings = [{{ every = 2, order = 1 }}]
budgets = []
"""
LEARNING = (
    "--save-every", "0", "--iterations", "3", "--batch-size", "1", "--examples", "4", "--reference-steps", "4",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A run that has ended: exit code, negative for a signal, and what was written to stderr."""

    code: int
    err: str

    def check(self) -> Ended:
        """Fails unless it ended in success or one sentence."""
        assert "Traceback" not in self.err, self.err
        assert "\x1b" not in self.err  # it is no terminal
        assert self.code in (0, 1, 2, 130), (self.code, self.err)
        if self.code:
            assert self.err.rstrip().splitlines()[-1].startswith("l2c: error: "), self.err
        return self


class Runs:
    """Starts runs of `l2c` as fast as they can be forked; see `fork_server.py`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._number = scratch, 0
        server = Path(__file__).parent / "fork_server.py"
        self._server = subprocess.Popen(
            [sys.executable, server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def _order(self, order: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def start(self, arguments: list[str], folder: Path, **order: Any) -> tuple[int, int]:
        """Starts a run; returns its process and a pipe that its stderr comes from, which no limit on files cuts off."""
        self._number += 1
        err = self._scratch / f"{self._number}.pipe"
        os.mkfifo(err)
        pipe = os.open(err, os.O_RDONLY | os.O_NONBLOCK)
        given = {"stderr": str(err), "folder": str(folder), "arguments": arguments}
        return self._order({**given, **order}), pipe

    def end(self, started: tuple[int, int]) -> Ended:
        """Waits for a run to end."""
        process, pipe = started
        code = self._order({"wait": process})
        with os.fdopen(pipe, "rb") as stderr:
            return Ended(code, (stderr.read() or b"").decode())

    def __call__(self, arguments: list[str], folder: Path, **order: Any) -> Ended:
        """A run from beginning to end."""
        return self.end(self.start(arguments, folder, **order))

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts runs of `l2c`."""
    made = Runs(tmp_path_factory.mktemp("stderr"))
    yield made
    made.close()


@dataclass(frozen=True)
class Undisturbed:
    """A command, and what a run of it that nothing disturbs leaves and does.

    Attributes:
        name: `learn`, `sample`, `compare` or `repair`.
        inputs: Folder of what it reads.
        results: What is in its folder afterwards, see `results_of`.
        operations: By how many file operations.
    """

    name: str
    inputs: Path
    results: dict[str, Any]
    operations: int

    def arguments(self, folder: Path) -> list[str]:
        """What follows `l2c` for a run into a folder."""
        return arguments_of(self.name, self.inputs, folder)

    def moments(self, purpose: str, count: int) -> list[int]:
        """File operations to strike at, drawn at random, always the same."""
        draw = random.Random(f"{purpose} {self.name}")
        return [draw.randint(1, self.operations) for _ in range(count)]

    def is_done(self, folder: Path) -> bool:
        """Whether a folder has what an undisturbed run leaves. Fails where a file in it is not whole."""
        return results_of(folder) == self.results

    def finish(self, runs: Runs, folder: Path) -> None:
        """Runs the command to its end; fails unless it leaves what an undisturbed run leaves, and nothing else."""
        ended = runs(self.arguments(folder), folder).check()
        assert ended.code == 0, ended.err
        assert results_of(folder) == self.results
        assert list(folder.rglob(".*.l2c-partial")) == []


def arguments_of(name: str, inputs: Path, folder: Path) -> list[str]:
    """What follows `l2c` for a command, with all that it writes in one folder."""
    model, schedule = str(inputs / "tiny.safetensors"), str(inputs / "schedule.safetensors")
    out = ["--out", str(folder / "learned.safetensors")]
    five = ["-n", "5", "--batch-size", "2", "--steps", "2"]
    return {
        "learn": ["learn", model, "--steps", "4", "--budget", "0.7,0.6", "--trials", "2", *LEARNING, *out],
        "repair": ["repair", model, schedule, *LEARNING, *out],
        "sample": ["sample", model, *five, "--npz", "--resume", "-o", f"{folder}"],
        "compare": ["compare", str(inputs / "tiny.toml"), "--out", str(folder)],
    }[name]  # fmt: skip


def results_of(folder: Path) -> dict[str, Any]:
    """Content of every file in a folder by its path; of records what is not of time and machine.

    Fails where a file is not whole. What killed writes have left is none.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith(".l2c-partial"):
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content)
            if content.get("format") == "l2c.run-record":
                record = Record.load(path)
                content = (record.command, record.config, record.seeds, record.results)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".npz":
            assert zipfile.ZipFile(path).testzip() is None
            np.load(path)["arr_0"]
        elif path.suffix == ".checkpoint":
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors" and path.parent.name != "work":
            l2c.load_schedule(path, 1.0) if b"schedule-family" in content else l2c.load_schedule(path)
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a schedule for it, and a comparison."""
    folder = tmp_path_factory.mktemp("inputs") / SAFE
    folder.mkdir()
    model = tiny_dit()
    save_model(model, folder / "tiny.safetensors")
    l2c.methods.interval(model, solver="ddim", steps=4, every=2).save(folder / "schedule.safetensors")
    (folder / "tiny.toml").write_text(COMPARISON.format(model=folder / "tiny.safetensors"))
    return folder


@pytest.fixture(scope="session", params=["learn", "sample", "compare", "repair"])
def undisturbed(
    request: pytest.FixtureRequest, runs: Runs, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """Each command, with what it does when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed") / SAFE
    counted = folder.with_name("counted")
    arguments = arguments_of(request.param, inputs, folder)
    ended = runs(arguments, folder, counted=str(counted)).check()
    assert ended.code == 0, ended.err
    return Undisturbed(request.param, inputs, results_of(folder), int(counted.read_text()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run writes, which is not there yet."""
    return tmp_path / SAFE
