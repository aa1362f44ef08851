from __future__ import annotations

import errno
import json
import os
from pathlib import Path

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


INTERVAL = ("--pattern", "interval", "--pictures", 8, "--reference-steps", 6, "--batch-size", 2)


def test_learn_with_an_interval(invoke, tmp_path, checkpoint):
    out = tmp_path / "interval.safetensors"
    finished = invoke(
        "learn", "-m", checkpoint, "--steps", 6, "--iterations", 2, *INTERVAL, "--every", 3, "--out", out
    )
    assert finished.code == 0, finished.err
    assert "Error of pictures that were not learned on" in finished.out
    assert "fine-step solutions 8/8" in finished.err
    schedule = CacheSchedule.load(out)
    assert schedule.predictor.name == "linear-3"
    assert schedule.compute.all(dim=1).tolist() == [True, False, False, True, False, False]
    assert schedule.contract.model == checkpoint.name
    assert schedule.contract.run.guidance == 1.5
    command = ("sample", "-m", checkpoint, "-s", out, "--num", 1, "--out", tmp_path / "pictures")
    assert invoke(*command).code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pattern", "stripes"), ("unknown pattern 'stripes'", "alternate or interval")),
        (("--every", 3), ("--every belongs to --pattern interval, not alternate",)),
        (
            ("--pattern", "interval", "--lambda", 1),
            ("--lambda belongs to --pattern alternate, not interval",),
        ),
        (("--pattern", "interval", "--data", "x"), ("--data belongs to --pattern alternate",)),
        (("--pattern", "interval", "--every", 1), ("--every must be at least 2",)),
        (("--max-minutes", 0), ("time limit must be more than 0",)),
    ],
)
def test_options_that_do_not_go_together(invoke, tmp_path, checkpoint, options, words):
    out = tmp_path / "out.safetensors"
    finished = invoke("learn", "-m", checkpoint, "--steps", 4, *options, "--out", out)
    assert finished.code == 2
    assert len(finished.err.splitlines()) == 1
    assert all(word in finished.err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_max_minutes_ends_with_what_was_learned(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    options = ("-m", checkpoint, "--steps", 4, "--iterations", 2, "--batch-size", 1, "--out", out)
    finished = invoke("learn", *options, "--max-minutes", 1e-6)
    assert finished.code == 0
    assert "the time was up after 1 of 2 iterations" in finished.err
    assert CacheSchedule.load(out).provenance["iterations"] == 1
    assert (tmp_path / "router.safetensors.checkpoint").exists()
    finished = invoke("learn", *options, "--max-minutes", 1e-6)
    assert "time was up" not in finished.err
    assert CacheSchedule.load(out).provenance["iterations"] == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_checkpoint_with_other_settings_is_refused(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    assert invoke("learn", "-m", checkpoint, *SMALL, "--max-minutes", 1e-6, "--out", out).code == 0
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--lambda", 1, "--out", out)
    assert finished.code == 2
    assert "lambda was 1e-05 and is now 1.0" in finished.err
    assert "--restart" in finished.err
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--lambda", 1, "--out", out, "--restart")
    assert finished.code == 0, finished.err
    assert CacheSchedule.load(out).provenance["lambda"] == 1.0


def test_a_result_that_cannot_be_written_is_not_lost(invoke, tmp_path, checkpoint, monkeypatch):
    out, other = tmp_path / "full" / "router.safetensors", tmp_path / "router.safetensors"
    with monkeypatch.context() as patch:
        replace = os.replace

        def full(source, target):
            if Path(target) == out:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        patch.setattr(os, "replace", full)
        finished = invoke("learn", "-m", checkpoint, *SMALL, "--out", out)
    kept = tmp_path / "full" / "router.safetensors.checkpoint"
    assert finished.code == 1
    assert "No space left on device; choose another --out, and add --checkpoint" in finished.err
    assert list(out.parent.iterdir()) == [kept]
    finished = invoke("learn", "-m", checkpoint, *SMALL, "--out", other, "--checkpoint", kept)
    assert finished.code == 0
    assert "learning 1/3" not in finished.err
    assert CacheSchedule.load(other).provenance["iterations"] == 3
    assert not kept.exists()
