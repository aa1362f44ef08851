from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_interval, tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved class-conditional pipeline, and a schedule for it."""
    folder, pipe = tmp_path_factory.mktemp("pipeline"), tiny_pipeline("dit")
    pipe.save_pretrained(folder / "pipe")
    tiny_interval(pipe, "dit").save_pretrained(folder / "schedule")
    return folder


def test_check_measures_and_records_and_compares(invoke, folder, tmp_path):
    pipe, schedule = folder / "pipe", folder / "schedule"
    recorded = tmp_path / "recorded.safetensors"
    first = invoke("check", pipe, schedule, "--labels", "1,2", "--record", recorded)
    assert first.code == 0, first.err
    assert "over 2 runs; none was recorded when the schedule was made" in first.out
    assert CacheSchedule.load(recorded).provenance["drift"]["runs"] == 2
    second = invoke("check", pipe, recorded, "--labels", "1,2", "--json")
    assert second.code == 0, second.err
    figures = json.loads(second.out)
    assert figures["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert figures["accepted"] is True
    mapped = invoke("check", pipe, recorded, "--labels", "1,2", "--json", "--device-map", "cpu")
    assert json.loads(mapped.out)["error"] == figures["error"]
    assert figures["fraction"] == pytest.approx(CacheSchedule.load(recorded).cost.fraction)
    third = invoke("check", pipe, recorded, "--labels", "1,2", "--limit", "0.5")
    assert third.code == 1
    assert "beyond the limit of 0.5" in third.out


def test_check_takes_models(invoke, tmp_path, checkpoint, other_checkpoint, schedule):
    recorded = tmp_path / "recorded.safetensors"
    finished = invoke("check", checkpoint, schedule, "--record", recorded, "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["unit"] == "absolute"
    again = invoke("check", checkpoint, recorded, "--seeds", "0,1")
    assert "1.00 times" in again.out
    assert invoke("check", other_checkpoint, schedule).code == 1


def test_check_says_what_is_wrong(invoke, folder, tmp_path):
    pipe, schedule = folder / "pipe", folder / "schedule"
    for arguments, code, said in (
        (
            (pipe, schedule, "--labels", "1", "--device-map", "cpu", "--device", "cpu"),
            2,
            "device map cpu says where weights are, and so does the device cpu; leave one of the two out",
        ),
        ((pipe, schedule), 2, "needs either prompts, with --prompt or --prompts, or --labels"),
        ((pipe, schedule, "--labels", "1", "--call", "height"), 2, "--call takes NAME=VALUE"),
        ((pipe, schedule, "--labels", "1", "--limit", "0"), 2, "--limit must be more than 0"),
        ((pipe, schedule, "--prompts", tmp_path / "no"), 2, "is no text file with prompts"),
        ((tmp_path, schedule), 1, "there is no configuration of a model"),
        (
            (pipe, schedule, "--labels", "1", "--call", "guidance=4"),
            2,
            "takes no argument 'guidance'; did you mean guidance_scale?",
        ),
        ((pipe, schedule, "--labels", "1", "--call", "num_inference_steps=4"), 1, "covers 6 evaluations but"),
    ):
        finished = invoke("check", *arguments)
        assert (finished.code, said in finished.err) == (code, True), finished.err
