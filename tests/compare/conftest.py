from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from l2c.cli.main import run
from l2c.compare.config import CompareConfig
from l2c.compare.runner import Comparison
from l2c.models import save_model
from l2c.testing import tiny_dit

TINY = """
model = "{model}"
images = 4
batch_size = 2
timing_images = 1
repetitions = 2
shown_images = 2
metrics = ["rmse", "psnr"]
reference = {{ solver = "dpmsolver++3", steps = 8, spacing = "logsnr" }}

[[base]]
solver = "ddim"
steps = 6
budgets = [0.7, 0.5]

[[base]]
solver = "dpmsolver++"
steps = 5
budgets = [0.6]

[[method]]
name = "fewer-steps"

[[method]]
name = "fora"

[[method]]
name = "smoothcache"
settings = [{{ num_images = 1 }}]
bases = ["ddim-6"]

[[method]]
name = "l2c"
settings = [{{ iterations = 1, batch_size = 1 }}]
bases = ["ddim-6"]

[[method]]
name = "taylorseer"
settings = [{{ every = 2, order = 1 }}]
budgets = []

[[method]]
name = "diffusers-first-block"
settings = [{{ threshold = 0.5 }}]
bases = ["ddim-6"]
"""


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory) -> Path:
    """A comparison of a tiny model, as a TOML file."""
    folder = tmp_path_factory.mktemp("compare")
    save_model(tiny_dit(), folder / "tiny.safetensors")
    path = folder / "tiny.toml"
    path.write_text(TINY.format(model=folder / "tiny.safetensors"))
    return path


@pytest.fixture(scope="session")
def compared(tmp_path_factory, tiny_file) -> Path:
    """The folder of a finished comparison; not to be changed."""
    folder = tmp_path_factory.mktemp("compared")
    Comparison(CompareConfig.load(tiny_file), folder, "cpu").run()
    return folder


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def invoke(capsys, monkeypatch):
    """Runs `l2c` in this process, on a terminal that is wide enough for any line."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Finished:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call
