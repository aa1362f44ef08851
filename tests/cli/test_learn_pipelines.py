"""`l2c learn` and `l2c repair` on diffusers pipelines."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.records import Record
from l2c.schedule.cost import CostTable
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_pipeline

PROMPTS = ("a photo of a cat", "a painting of the green house", "a bird and a boat", "a dog")
SMALL = ("--height", "16", "--width", "16", "--call", "use_resolution_binning=false")
CALL = (*SMALL, "--call", "clean_caption=false", "--call", "max_sequence_length=8", "--steps", "6")
FEW = ("--iterations", "4", "--batch-size", "1", "--examples", "4", "--reference-steps", "8", "--lr", "0.01")
QUICK = (*FEW, "--trials", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline and a file with prompts."""
    folder = tmp_path_factory.mktemp("pixart")
    tiny_pipeline("pixart").save_pretrained(folder / "pipe")
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def learned(folder):
    """A schedule that the command has learned, and the command."""
    from l2c.cli.main import run

    out = folder / "learned.safetensors"
    command = [
        "learn",
        str(folder / "pipe"),
        "--prompts",
        str(folder / "prompts.txt"),
        *CALL,
        *QUICK,
    ]
    assert run([*command, "-o", str(out)]) == 0
    return out, command


def test_a_schedule_is_learned_for_the_prompts_of_a_file(invoke, folder, learned):
    path, command = learned
    schedule = CacheSchedule.load(path)
    assert schedule.cost.fraction <= 0.5
    assert schedule.contract.model == "pipe"
    made = schedule.provenance
    assert (made["conditions"], made["iterations"], made["error_unit"]) == (4, 4, "relative")
    assert made["resolution"] == {"height": 16, "width": 16}
    assert not path.with_name(f"{path.name}.checkpoint").exists()
    again = folder / "again.safetensors"
    finished = invoke(*command, "-o", again)
    assert finished.code == 0, finished.err
    assert again.read_bytes() == path.read_bytes()
    text = " ".join(finished.out.split())
    assert f"Error of pictures that were not learned on: {made['held_out_error']:.4f} (relative)" in text
    for line in ("fine-step solutions 4/4", "judging masks 2/3", "learning 4/4"):
        assert line in finished.err
    checked = invoke("check", folder / "pipe", path, "--prompt", PROMPTS[0], "--limit", "9", *SMALL, "--json")
    assert checked.code == 0, checked.err
    figures = json.loads(checked.out)
    assert (figures["recorded"], figures["unit"]) == (made["held_out_error"], "relative")


def test_labels_and_json(invoke, tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    out = tmp_path / "schedule.safetensors"
    options = ("--labels", "1,4,7", "--steps", "4", "--budget", "0.7", "--bf16", "--recompute", "--json")
    finished = invoke("learn", tmp_path / "pipe", *options, *QUICK, "-o", out)
    assert finished.code == 0, finished.err
    data = json.loads(finished.out)
    assert data["file"] == str(out)
    assert data["seconds"] > 0
    assert data["provenance"]["settings"]["bf16"] is True
    assert data["cost"]["fraction"] <= 0.7


def test_several_budgets_make_a_family(invoke, folder, tmp_path):
    out = tmp_path / "family.safetensors"
    budget = ("--budget", "0.8,0.6", "--json", "-o", out)
    finished = invoke("learn", folder / "pipe", "--prompt", "a cat", *CALL, *QUICK, *budget)
    assert finished.code == 0, finished.err
    assert [one.provenance["budget"] for one in ScheduleFamily.load(out)] == [0.8, 0.6]
    assert len(json.loads(finished.out)["schedules"]) == 2


def test_a_budget_in_macs(invoke, folder, tmp_path):
    out = tmp_path / "macs.safetensors"
    options = ("--prompt", "a cat", *CALL, *QUICK, "--macs", "700K", "-o", out)
    finished = invoke("learn", folder / "pipe", *options)
    assert finished.code == 0, finished.err
    schedule = CacheSchedule.load(out)
    assert schedule.provenance["budget_unit"] == "MACs"
    assert schedule.cost.macs <= 7e5


def test_a_latency_is_met_that_a_profile_tells(invoke, folder, tmp_path):
    costs, out = tmp_path / "costs.json", tmp_path / "fast.safetensors"
    call = ("--prompt", "a cat", *SMALL, "--call", "clean_caption=false")
    finished = invoke("profile", folder / "pipe", *call, "--steps", 5, "--repetitions", 1, "--out", costs)
    assert finished.code == 0, finished.err
    assert "cross-attention" in finished.out
    record = Record.load(costs)
    measured = CostTable.from_json(record.results["costs"])
    known = replace(measured, layers=(1.0,) * len(measured.layers), rest=0.5)  # as no clock would have it
    replace(record, results={**record.results, "costs": known.to_json()}).save(costs)
    budget = ("--latency-ms", 5 * known.full, "--costs", costs, "-o", out)
    finished = invoke("learn", folder / "pipe", *call, "--steps", 6, *QUICK, *budget)
    assert finished.code == 0, finished.err
    made = CacheSchedule.load(out).provenance
    assert (made["budget_unit"], made["budget_cost"] <= 5 * known.full) == ("ms", True)


def test_a_pipeline_is_timed_with_the_schedule(invoke, folder, learned):
    options = ("--prompt", "a cat", "-s", learned[0], "--batch-sizes", 1, "--repetitions", 1, "--json")
    finished = invoke("bench", folder / "pipe", *options)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)["results"]["rows"]
    assert [row["schedule"] for row in rows] == ["everything computed", "learned"]


def test_a_solver_is_learned_with_the_schedule(invoke, folder, tmp_path):
    out = tmp_path / "auto.safetensors"
    options = ("--prompt", "a cat", *SMALL, "--call", "clean_caption=false", *QUICK)
    finished = invoke(
        "learn", folder / "pipe", *options, "--solver", "auto", "--budget-evals", "3", "-o", out
    )
    assert finished.code == 0, finished.err
    assert "Plain fewer steps at that cost: " in finished.out
    assert CacheSchedule.load(out).contract.run.weights is not None


def test_the_router_of_the_paper_is_learned(invoke, folder, tmp_path):
    out = tmp_path / "router.safetensors"
    few = ("--pattern", "alternate", "--iterations", "2", "--batch-size", "1", "-o", out)
    finished = invoke("learn", folder / "pipe", "--prompt", "a cat", *CALL, *few)
    assert finished.code == 0, finished.err
    assert CacheSchedule.load(out).scores is not None


def test_repair_tells_the_error_before_and_after(invoke, folder, learned, tmp_path):
    pipe = tiny_pipeline("pixart")
    with torch.no_grad():
        for index, weight in enumerate(pipe.transformer.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            weight.add_(noise, alpha=0.5 * weight.abs().mean().item())
    pipe.save_pretrained(tmp_path / "tuned")
    out, (path, _) = tmp_path / "repaired.safetensors", learned
    options = ("--prompts", folder / "prompts.txt", *FEW, "--iterations", "8", "-o", out)
    finished = invoke("repair", tmp_path / "tuned", path, *options)
    assert finished.code == 0, finished.err
    before, after = CacheSchedule.load(path), CacheSchedule.load(out)
    made = after.provenance
    assert made["held_out_error"] < made["held_out_error_before"]
    assert torch.equal(after.compute, before.compute)
    assert after.contract.model == "tuned"
    assert after.contract.fingerprint != before.contract.fingerprint
    for words in (
        f"{made['held_out_error_before']:.4f} before and {made['held_out_error']:.4f} after the repair",
        f"it was {before.provenance['held_out_error']:.4f} when the schedule was made",
    ):
        assert words in finished.out
    data = json.loads(invoke("repair", tmp_path / "tuned", path, *options, "--json").out)
    assert data["error_when_made"] == before.provenance["held_out_error"]
    assert data["provenance"]["held_out_error"] == made["held_out_error"]


def test_what_is_wrong_is_one_sentence_and_nothing_is_left(invoke, folder, learned, tmp_path):
    pipe, prompt, out = folder / "pipe", ("--prompt", "a cat"), tmp_path / "out.safetensors"
    broken, nothing = folder / "broken", folder / "nothing.txt"
    broken.mkdir()
    (broken / "model_index.json").write_text("{}")
    nothing.write_text("\n  \n")
    for arguments, code, said in (
        (("learn", pipe), 2, "needs either prompts, with --prompt or --prompts, or --labels"),
        (("learn", pipe, *prompt, "--labels", "1"), 2, "needs either prompts"),
        (("learn", pipe, "--prompts", tmp_path / "no.txt"), 2, "is no text file with prompts"),
        (("learn", pipe, "--prompts", nothing), 2, "has no prompts; write one in each line"),
        (("learn", pipe, *prompt, "--steps", "0"), 2, "num_inference_steps must be at least 1"),
        (("learn", pipe, *prompt, "--budget", "2"), 2, "budgets are fractions of the MACs"),
        (("learn", pipe, *prompt, "--examples", "0"), 2, "num_examples must be at least 1, got 0"),
        (("learn", pipe, *prompt, "--max-minutes", "0"), 2, "the time limit must be more than 0"),
        (
            ("learn", pipe, *prompt, "--call", "hight=16"),
            2,
            "takes no argument 'hight'; did you mean height?",
        ),
        (("learn", pipe, *prompt, "--solver", "ddim"), 2, "takes no argument 'solver'; did you mean another"),
        (("learn", pipe, *prompt, "--spacing", "karras"), 2, "takes no argument 'spacing'"),
        (("learn", pipe, *prompt, "--height", "17"), 2, "PixArtAlphaPipeline refuses the call"),
        (("learn", pipe, *prompt, "--call", "height"), 2, "--call takes NAME=VALUE"),
        (("learn", "./nothing", *prompt), 1, "there is no folder './nothing'"),
        (("learn", broken, *prompt), 1, "cannot load the pipeline"),
        (("learn", pipe, *prompt, "--lora", tmp_path), 1, "with the LoRA"),
        (
            ("learn", pipe, *prompt, *CALL, "--pattern", "alternate", "--data", tmp_path),
            2,
            "learning on images needs a model sampled by class labels, not a pipeline",
        ),
        (("learn", "dit-mini-cifar10", *prompt), 2, "prompts and labels are for diffusers pipelines"),
        (("learn", "dit-mini-cifar10", "--height", "16"), 2, "a model takes no argument 'height'"),
        (("learn", "dit-mini-cifar10", "--lora", "style"), 2, "a LoRA is for diffusers pipelines"),
        (("repair", pipe, tmp_path / "no", *prompt), 1, "there is no schedule file"),
        (
            ("repair", pipe, learned[0], *prompt, "--call", "num_inference_steps=4"),
            1,
            "covers 6 evaluations but",
        ),
    ):
        finished = invoke(*arguments, "-o", out)
        assert (finished.code, said in finished.err) == (code, True), (arguments, finished.err)
        assert finished.out == ""
        assert len(finished.err.splitlines()) == 1, finished.err
    assert invoke("learn", pipe, *prompt, "-o", "schedule.pt").code == 2
    assert list(tmp_path.iterdir()) == []


CHILD = """
import os, sys
os.environ.update({environment})
sys.stdout, sys.stderr = (open(path, "w", buffering=1) for path in {streams})
from l2c.cli.main import run
sys.exit(run({arguments}))
"""


@pytest.fixture(scope="module")
def start(fork_server, tmp_path_factory):
    """Starts `l2c` in processes that have everything imported, alone or as `torchrun` starts several."""
    streams = tmp_path_factory.mktemp("streams")
    started = []

    def begin(*arguments, count=1):
        port = 29500 + os.getpid() % 1000
        for rank in range(count):
            several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            several |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            paths = [str(streams / f"{len(started)}.{kind}") for kind in ("out", "err")]
            code = CHILD.format(
                environment={"OMP_NUM_THREADS": "1", **(several if count > 1 else {})},
                streams=paths,
                arguments=[str(argument) for argument in arguments],
            )
            process = fork_server.Process(target=exec, args=(code,))
            process.start()
            started.append((process, [Path(path) for path in paths]))
        return started[-count:]

    yield begin
    for process, _ in started:
        process.kill()
        process.join()


def finish(processes):
    """What they wrote, on stdout and on stderr, one after the other."""
    for process, (_, said) in processes:
        process.join(120)
        assert process.exitcode == 0, said.read_text()
    return ["".join(paths[index].read_text() for _, paths in processes) for index in (0, 1)]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_run_that_is_killed_ends_with_the_same_bytes(start, learned, tmp_path):
    whole, command = learned
    out = tmp_path / "out.safetensors"
    checkpoint = tmp_path / "out.safetensors.checkpoint"
    for least in (0, 2):
        ((killed, _),) = start(*command, "--save-every", "0", "-o", out)
        while not (checkpoint.exists() and torch.load(checkpoint)["state"]["iteration"] >= least):
            assert killed.is_alive()
            time.sleep(0.002)
        killed.kill()
        killed.join()
        assert not out.exists()
    _, said = finish(start(*command, "-o", out))
    assert "learning 1/4" not in said
    assert "fine-step solutions" not in said
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_two_processes_learn_what_one_does(start, folder, tmp_path):
    """With the same number of pictures per step in all."""
    schedules, outputs = [], []
    for count in (1, 2):
        out = tmp_path / f"{count}.safetensors"
        command = ["learn", folder / "pipe", "--prompts", folder / "prompts.txt", *CALL, *QUICK]
        output, said = finish(
            start(*command, "--batch-size", "2", "--examples", "8", "--json", "-o", out, count=count)
        )
        schedules.append(CacheSchedule.load(out))
        outputs.append(json.loads(output))  # printed once, by the main process
        assert "learning 4/4" in said
    alone, together = schedules
    assert torch.equal(alone.compute, together.compute)
    torch.testing.assert_close(
        alone.predictor.coefficients, together.predictor.coefficients, atol=1e-5, rtol=0.0
    )
    for name in ("held_out_error_before", "held_out_error"):
        assert together.provenance[name] == pytest.approx(alone.provenance[name], abs=1e-4)
    assert outputs[0]["rows"] == outputs[1]["rows"]
    assert {path.name for path in tmp_path.iterdir()} == {"1.safetensors", "2.safetensors"}


def test_several_processes_have_a_device_each_and_take_no_map(invoke, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ("learn", folder / "pipe", "--prompts", folder / "prompts.txt", *CALL, *QUICK)
    refused = invoke(*command, "--device-map", "cpu", "-o", tmp_path / "out.safetensors")
    assert refused.code == 2
    assert "the device map cpu is for one process, and 2 were started together" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_embedded_pipeline_needs_no_prompts_and_no_call(invoke, scenes_pipeline, tmp_path):
    out = tmp_path / "four.safetensors"
    auto = ("--solver", "auto", "--budget-evals", "2", "--per-computed", "2")
    done = invoke("learn", "l2c:scenes-sd3", *auto, *QUICK, "--iterations", "1", "-o", out)
    assert done.code == 0, done.err
    schedule = CacheSchedule.load(out)
    assert schedule.provenance["call"]["max_sequence_length"] == 0
    assert schedule.contract.run.guidance == 4.5
    done = invoke("check", "l2c:scenes-sd3", out, "--prompt", "a red ring on a grey background", "--json")
    assert done.code == 0, done.err


def test_a_dry_run_says_what_would_be_learned_and_writes_nothing(invoke, folder, tmp_path):
    command = ("learn", folder / "pipe", "--prompts", folder / "prompts.txt", *CALL, *QUICK, "--dry-run")
    out = tmp_path / "out.safetensors"
    told = invoke(*command, "--recompute-evaluations", "--scheduler", "UniPCMultistepScheduler", "-o", out)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].endswith(" layers at 6 evaluations, 50% of the work, 1 schedule")
    assert [line.partition(":")[0] for line in lines[1:]] == ["memory", "disk", "time"]
    found = json.loads(invoke(*command, "--offload", "--json", "-o", out).out)
    assert found["kept_bytes"] > 0
    assert list(found["minutes"]) == ["fine-step solutions", "searching masks", "learning"]
    assert list(tmp_path.iterdir()) == []
    refused = invoke(
        "learn", folder / "pipe", "--pattern", "alternate", "--dry-run", "--labels", "1", "-o", out
    )
    assert "--dry-run belongs to --pattern closed-loop" in refused.err
