"""`l2c learn` as processes of their own: killed, interrupted, and several that learn together."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import l2c
from l2c.cli.main import run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

CLOSED = ("--batch-size", "2", "--examples", "12", "--reference-steps", "8", "--trials", "3")
PATTERNS = {
    "alternate": ("--batch-size", "2", "--pattern", "alternate"),
    "closed-loop": CLOSED,
    "family": (*CLOSED, "--budget", "0.7,0.5"),
}
STAGES = ("", "at 0.7", "at 0.5")
"""What checkpoints call what is learned one after another."""


@pytest.fixture
def start(fork_server, checkpoint):
    """Starts `l2c learn` on the tiny model; what still runs is killed after the test."""
    started = []

    def begin(out: Path, pattern: str, *options: str, iterations: int = 25) -> multiprocessing.Process:
        arguments = ["learn", str(checkpoint), "--steps", "6", "--save-every", "0", "--out", str(out)]
        arguments += ["--iterations", str(iterations), *PATTERNS[pattern], *options]
        process = fork_server.Process(target=run, args=(arguments,))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def finish(process) -> None:
    process.join(60)
    assert process.exitcode == 0


def iteration(path: Path) -> int:
    return torch.load(path, weights_only=True)["state"]["iteration"]


def place(path: Path) -> tuple[int, int]:
    """How far a checkpoint is: in what is learned one after another, and in iterations of it."""
    state = torch.load(path, weights_only=True)["state"]
    return STAGES.index(state["stage"]), state["iteration"]


def wait_for(path: Path, process, done: int = 0) -> None:
    """Until a checkpoint has been written after so many iterations."""
    while not (path.exists() and iteration(path) >= done):
        assert process.is_alive()
        time.sleep(0.002)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(start, tmp_path, pattern):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    checkpoint = tmp_path / "killed.safetensors.checkpoint"
    began = time.monotonic()
    finish(start(whole, pattern))
    duration = time.monotonic() - began
    process = start(out, pattern)
    wait_for(checkpoint, process)
    process.kill()  # in the middle, for certain
    process.join()
    moments, reached = random.Random(pattern), []
    for _ in range(4):
        process = start(out, pattern)
        time.sleep(moments.random() * duration)
        process.kill()
        process.join()
        if not checkpoint.exists():  # it was done before
            break
        reached.append(place(checkpoint))
    assert reached == sorted(reached)
    finish(start(out, pattern))
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]


def test_ctrl_c_keeps_the_file_and_the_same_command_goes_on(start, tmp_path):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    finish(start(whole, "alternate", iterations=60))
    process = start(out, "alternate", iterations=60)
    checkpoint = tmp_path / "out.safetensors.checkpoint"
    wait_for(checkpoint, process, done=3)
    os.kill(process.pid, signal.SIGINT)
    finish(process)
    provenance = l2c.CacheSchedule.load(out).provenance
    assert provenance["interrupted"] is True
    assert 3 <= provenance["iterations"] == iteration(checkpoint) < 60
    finish(start(out, "alternate", iterations=60))
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


LAUNCHED = """
import json, sys
import torch
import l2c
from pathlib import Path
from l2c.cli.main import run
from l2c.errors import ConfigError
from l2c.hosts.labelled_noise import LabelledNoise
from l2c.learning.settings import LearnSettings
from l2c.learning.paper import RouterSettings
from l2c.learning.processes import Processes
from l2c.models import load_model

folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
processes = Processes(torch.device("cpu"))
rows = processes.rows(4)
def refuse(): raise ConfigError("no")
try:
    processes.agree(refuse)
except ConfigError as error:
    refused = str(error)
examples = LabelledNoise(torch.ones(5, 2), torch.arange(5))
rounds = processes.in_rounds(lambda some: some.noise + some.labels[:, None], examples, 3)
(folder / f"{processes.index}.json").write_text(json.dumps({
    "rows": [rows.start, rows.stop],
    "agreed": processes.agree(lambda: processes.index + 7),
    "refused": refused,
    "any": processes.any(processes.index == 1),
    "rounds": torch.cat(list(rounds))[:, 0].tolist(),
}))
model = load_model(checkpoint)
mask = l2c.methods.interval(model, solver="ddim", steps=6)
settings = LearnSettings(iterations=4, batch_size=4, num_examples=10, reference_steps=6)
predictor = l2c.repair(model, mask, settings=settings)
router = l2c.learn(model, pattern="alternate", solver="ddim", steps=6, settings=RouterSettings(iterations=12))
if processes.is_main:
    predictor.save(folder / "predictor.safetensors")
    router.save(folder / "router.safetensors")
options = ["--steps", "6", "--iterations", "3", "--batch-size", "4", "--examples", "10", "--reference-steps", "6"]
options += ["--trials", "4", "--budget", "0.7,0.5", "--save-every", "0"]
sys.exit(run(["learn", checkpoint, *options, "--out", str(folder / "family.safetensors")]))
"""


def test_two_processes_learn_what_one_does(tmp_path, checkpoint):
    """As `accelerate launch` and `torchrun` start them."""
    scripts = {count: tmp_path / f"{count}.py" for count in (1, 2)}
    output = {}
    for count, script in scripts.items():
        script.write_text(LAUNCHED)
        folder = tmp_path / str(count)
        folder.mkdir()
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if count == 2 else []
        done = subprocess.run(
            [sys.executable, *launcher, script, folder, checkpoint],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        output[count] = done.stdout
    first, second = (json.loads((tmp_path / "2" / f"{index}.json").read_text()) for index in (0, 1))
    assert (first.pop("rows"), second.pop("rows")) == ([0, 2], [2, 4])
    assert first == second
    assert first == {"agreed": 7, "refused": "no", "any": True, "rounds": [1, 2, 3, 4, 5]}
    for name in ("predictor", "router", "family"):
        paths = [tmp_path / str(count) / f"{name}.safetensors" for count in scripts]
        if name == "family":
            pairs = list(zip(*map(l2c.ScheduleFamily.load, paths), strict=True))
        else:
            pairs = [tuple(map(l2c.CacheSchedule.load, paths))]
        assert len(pairs) == (2 if name == "family" else 1)
        for alone, together in pairs:
            assert alone.provenance == {k: approximately(v) for k, v in together.provenance.items()}
            assert torch.equal(alone.compute, together.compute)
            values = [s.scores if name == "router" else s.predictor.coefficients for s in (alone, together)]
            torch.testing.assert_close(*values, atol=1e-5, rtol=0.0, equal_nan=True)
    words, figures = zip(
        *(split_figures(output[count].replace("/1/", "/2/")) for count in scripts), strict=True
    )
    assert words[0] == words[1]  # printed once, by the main process
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    left = sorted(path.name for path in (tmp_path / "2").iterdir())
    assert left == [
        "0.json",
        "1.json",
        *(f"{name}.safetensors" for name in ("family", "predictor", "router")),
    ]


def split_figures(text):
    """A text with its numbers taken out, and these."""
    number = r"[0-9]+\.[0-9]+"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def approximately(value):
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
