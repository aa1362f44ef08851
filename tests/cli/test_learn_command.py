from __future__ import annotations

import json

import pytest

from l2c.cache.schedule import CacheSchedule

SMALL = ("--steps", 4, "--iterations", 3, "--batch-size", 1)


def test_learn_writes_a_schedule_that_sample_takes(invoke, tmp_path, checkpoint):
    out = tmp_path / "new" / "router.safetensors"
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--lambda", "1e-4", "--out", out)
    assert finished.code == 0, finished.err
    assert "ddim, 4 steps" in finished.out
    schedule = CacheSchedule.load(out)
    assert schedule.provenance["iterations"] == 3
    assert schedule.provenance["lambda"] == 1e-4
    assert schedule.contract.model == checkpoint.name
    command = ("sample", "-m", checkpoint, "-s", out, "--num", 1, "--out", tmp_path / "pictures")
    assert invoke(*command).code == 0


def test_learn_prints_json(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    data = json.loads(invoke("learn", "-m", checkpoint, *SMALL, "--out", out, "--json").out)
    assert data["file"] == str(out)
    assert data["evaluations"] == 4
    assert data["provenance"]["method"] == "l2c"


def test_learn_on_images(invoke, tmp_path, checkpoint):
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "data" / label / "0.png")
    out = tmp_path / "router.safetensors"
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--data", tmp_path / "data", "--out", out)
    assert finished.code == 0, finished.err
    assert CacheSchedule.load(out).provenance["inputs"] == "real images"


@pytest.fixture
def interrupt_after(monkeypatch):
    """Presses Ctrl-C in a later iteration."""
    from l2c.learning import learn

    def arrange(iterations: int) -> None:
        backward, count = learn._RouterTask.backward, 0

        def interrupted(task, iteration):
            nonlocal count
            if count == iterations:
                raise KeyboardInterrupt
            count += 1
            return backward(task, iteration)

        monkeypatch.setattr(learn._RouterTask, "backward", interrupted)

    return arrange


def test_interrupt_keeps_what_was_learned(invoke, tmp_path, checkpoint, interrupt_after):
    interrupt_after(2)
    out = tmp_path / "router.safetensors"
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--out", out)
    assert finished.code == 130
    assert "interrupted after 2 of 3 iterations" in finished.err
    provenance = CacheSchedule.load(out).provenance
    assert (provenance["iterations"], provenance["interrupted"]) == (2, True)


def test_interrupt_before_anything_was_learned_leaves_the_old_file(
    invoke, tmp_path, checkpoint, schedule, interrupt_after
):
    interrupt_after(0)
    out = tmp_path / "router.safetensors"
    out.write_bytes(schedule.read_bytes())
    assert invoke("learn", "-m", checkpoint, *SMALL, "--out", out).code == 130
    assert out.read_bytes() == schedule.read_bytes()
