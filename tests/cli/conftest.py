from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import l2c
from l2c.cli.main import run
from l2c.models import save_model
from l2c.testing import tiny_dit, tiny_uvit


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


Invoke = Callable[..., Finished]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs `l2c` in this process, on a terminal that is wide enough for any line."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> Finished:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DiT that makes pictures."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(tiny_dit(), path)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny U-ViT."""
    path = tmp_path_factory.mktemp("models") / "uvit.safetensors"
    save_model(tiny_uvit(), path)
    return path


@pytest.fixture(scope="session")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule for the tiny DiT and four DPM-Solver++ evaluations in log-SNR spacing."""
    path = tmp_path_factory.mktemp("schedules") / "interval.safetensors"
    l2c.methods.interval(tiny_dit(), solver="dpmsolver++", steps=4, spacing="logsnr").save(path)
    return path
