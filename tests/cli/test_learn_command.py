from __future__ import annotations

import errno
import io
import json
import os
from contextlib import redirect_stdout
from functools import partialmethod
from pathlib import Path

import pytest

import l2c
from l2c.cli.main import run
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

SMALL = ("--pattern", "alternate", "--steps", 4, "--iterations", 3, "--batch-size", 1)
QUICK = ("--examples", 8, "--reference-steps", 6, "--trials", 3, "--batch-size", 2)


def test_a_published_kind_of_schedule_is_one_that_sample_takes(invoke, tmp_path, checkpoint):
    out = tmp_path / "new" / "router.safetensors"
    finished = invoke("learn", checkpoint, *SMALL, "--lambda", "1e-4", "--out", out)
    assert finished.code == 0, finished.err
    assert "ddim, 4 steps" in finished.out
    schedule = CacheSchedule.load(out)
    assert schedule.provenance["iterations"] == 3
    assert schedule.provenance["lambda"] == 1e-4
    assert schedule.contract.model == checkpoint.name
    command = ("sample", checkpoint, "-s", out, "--num", 1, "--out", tmp_path / "pictures")
    assert invoke(*command).code == 0


def test_learn_prints_json(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    data = json.loads(invoke("learn", checkpoint, *SMALL, "--out", out, "--json").out)
    assert data["file"] == str(out)
    assert data["evaluations"] == 4
    assert data["provenance"]["method"] == "l2c"


def test_learn_on_images(invoke, tmp_path, checkpoint):
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "data" / label / "0.png")
    out = tmp_path / "router.safetensors"
    finished = invoke("learn", checkpoint, *SMALL, "--data", tmp_path / "data", "--out", out)
    assert finished.code == 0, finished.err
    assert CacheSchedule.load(out).provenance["inputs"] == "real images"


@pytest.fixture
def interrupt_after(monkeypatch):
    """Presses Ctrl-C in a later iteration, counted over everything that is learned."""
    from l2c.learning import closed_loop, paper

    def arrange(iterations: int) -> None:
        count = 0

        def interrupted(task, iteration, backward):
            nonlocal count
            if count == iterations:
                raise KeyboardInterrupt
            count += 1
            return backward(task, iteration)

        for task in (paper._RouterTask, closed_loop.StudentTask):
            monkeypatch.setattr(task, "backward", partialmethod(interrupted, backward=task.backward))

    return arrange


both = pytest.mark.parametrize(
    "options", [SMALL, ("--steps", 4, "--iterations", 3, *QUICK)], ids=["alternate", "closed-loop"]
)


@both
def test_interrupt_keeps_what_was_learned(invoke, tmp_path, checkpoint, interrupt_after, options):
    interrupt_after(2)
    out = tmp_path / "router.safetensors"
    finished = invoke("learn", checkpoint, *options, "--out", out)
    assert finished.code == 130
    assert "interrupted after 2 of 3 iterations" in finished.err
    provenance = CacheSchedule.load(out).provenance
    assert (provenance["iterations"], provenance["interrupted"]) == (2, True)


@both
def test_interrupt_before_anything_was_learned_leaves_the_old_file(
    invoke, tmp_path, checkpoint, schedule, interrupt_after, options
):
    interrupt_after(0)
    out = tmp_path / "router.safetensors"
    out.write_bytes(schedule.read_bytes())
    assert invoke("learn", checkpoint, *options, "--out", out).code == 130
    assert out.read_bytes() == schedule.read_bytes()


def test_learn_for_a_budget_writes_a_schedule_that_sample_takes(invoke, tmp_path, checkpoint):
    out = tmp_path / "half.safetensors"
    finished = invoke("learn", checkpoint, "--steps", 6, "--iterations", 2, *QUICK, "--out", out)
    assert finished.code == 0, finished.err
    assert "Error of pictures that were not learned on" in finished.out
    for line in ("fine-step solutions 8/8", "judging masks 2/3", "learning 2/2"):
        assert line in finished.err
    schedule = CacheSchedule.load(out)
    assert schedule.predictor.name == "linear-3"
    assert schedule.cost.fraction == pytest.approx(0.5, abs=0.02)
    assert schedule.cost.fraction <= 0.5
    assert schedule.provenance["budget"] == 0.5
    assert schedule.contract.model == checkpoint.name
    assert schedule.contract.run.guidance == 1.5
    assert list(tmp_path.iterdir()) == [out]
    command = ("sample", checkpoint, "-s", out, "--num", 1, "--out", tmp_path / "pictures")
    assert invoke(*command).code == 0


@pytest.fixture(scope="module")
def family(checkpoint, tmp_path_factory):
    """A family that was learned for two budgets, and what the command printed."""
    out = tmp_path_factory.mktemp("family") / "family.safetensors"
    options = ("--steps", 6, "--iterations", 1, *QUICK, "--budget", "0.5,0.75", "--json")
    with redirect_stdout(io.StringIO()) as printed:
        assert run([str(word) for word in ("learn", checkpoint, *options, "--out", out)]) == 0
    return out, json.loads(printed.getvalue())


def test_several_budgets_make_a_family_that_inspect_lists(invoke, family):
    path, printed = family
    assert [s.provenance["budget"] for s in ScheduleFamily.load(path)] == [0.75, 0.5]
    listed = json.loads(invoke("inspect", path, "--json").out)
    assert listed == {"file": str(path), "schedules": printed["schedules"]}
    text = invoke("inspect", path).out
    assert "2 schedules for tiny.safetensors, ddim, 6 steps, linspace spacing" in " ".join(text.split())
    shares = [f"{row['cost']['macs'] / row['cost']['full_macs']:.1%}" for row in listed["schedules"]]
    lines = [line.split() for line in text.splitlines() if "linear-3" in line]
    assert [set(line) & set(shares) for line in lines] == [{share} for share in shares]


@pytest.mark.parametrize(("budget", "index"), [(0.8, 0), (0.5, 1)])
def test_inspect_takes_one_schedule_of_a_family(invoke, family, tmp_path, budget, index):
    path, printed = family
    saved, plot = tmp_path / "one.safetensors", tmp_path / "one.png"
    options = ("--budget", budget, "--save", saved, "--plot", plot, "--json")
    shown = json.loads(invoke("inspect", path, *options).out)
    assert shown == {"file": str(path), **printed["schedules"][index]}
    assert CacheSchedule.load(saved).compute.equal(list(ScheduleFamily.load(path))[index].compute)
    assert plot.stat().st_size > 1000


def test_sample_takes_one_schedule_of_a_family(invoke, family, tmp_path, checkpoint):
    path, printed = family
    options = ("-s", path, "--num", 1, "--budget", 0.6)
    finished = invoke("sample", checkpoint, *options, "--out", tmp_path / "out", "--json")
    assert finished.code == 0, finished.err
    data = json.loads(finished.out)
    assert data["config"]["budget"] == 0.6
    assert data["results"]["macs_per_picture"] == printed["schedules"][1]["cost"]["macs"]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("sample", (), ("a family of schedules", "--budget")),
        ("inspect", ("--save", "one.safetensors"), ("a family of schedules", "--budget")),
        (
            "sample",
            ("--budget", 0.3),
            ("the cheapest schedule of the family takes", "l2c learn MODEL --budget 0.3"),
        ),
        ("inspect", ("--budget", 2), ("budgets are fractions of the MACs",)),
        ("sample", ("--budget", "half"), ("--budget",)),
    ],
)
def test_what_a_family_does_not_have_is_one_sentence(
    invoke, family, tmp_path, checkpoint, command, options, words
):
    out = tmp_path / "out"
    arguments = (checkpoint, "--out", out, "-s", family[0]) if command == "sample" else (family[0],)
    options = tuple(tmp_path / o if o == "one.safetensors" else o for o in options)
    refused(invoke(command, *arguments, *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_for_families_alone(invoke, tmp_path, schedule):
    refused(invoke("inspect", schedule, "--budget", 0.5), "not a family of schedules")
    finished = invoke("sample", "--budget", 0.5, "--out", tmp_path / "out")
    refused(finished, "--budget chooses from a family", "--schedule")


def refused(finished, *words):
    """One sentence with some words in it, and nothing printed."""
    assert finished.code in (1, 2)
    assert finished.out == ""
    assert len(finished.err.splitlines()) == 1, finished.err
    assert all(word in finished.err for word in words), finished.err


def test_a_budget_in_macs(invoke, tmp_path, checkpoint):
    out = tmp_path / "out.safetensors"
    options = ("--steps", 6, "--iterations", 1, *QUICK, "--macs", "2M")
    finished = invoke("learn", checkpoint, *options, "--out", out)
    assert finished.code == 0, finished.err
    schedule = CacheSchedule.load(out)
    assert (schedule.provenance["budget_unit"], schedule.provenance["budget"]) == ("MACs", 2e6)
    assert 2e6 - min(layer.macs for layer in schedule.layers.layers) < schedule.cost.macs <= 2e6


def test_a_latency_that_everything_meets(invoke, tmp_path, checkpoint, monkeypatch):
    costs = l2c.CostTable("ms", (1.0,) * 6, 0.5)
    monkeypatch.setattr("l2c.bench.cost.measure_costs", lambda *_args, **_kwargs: costs)
    options = ("--steps", 6, "--latency-ms", "1e7", "--out", tmp_path / "out.safetensors")
    finished = invoke("learn", checkpoint, *options)
    refused(finished, "a budget of 1e+07 ms is more than the", "no schedule is needed")


def test_a_latency_that_is_measured_here_is_met(invoke, tmp_path, checkpoint, monkeypatch):
    """Each of six layers takes 1 ms, the rest of an evaluation 0.5 ms."""
    costs = l2c.CostTable("ms", (1.0,) * 6, 0.5)
    batches = []
    monkeypatch.setattr(
        "l2c.bench.cost.measure_costs",
        lambda _sampler, batch_size, engine: batches.append((batch_size, engine)) or costs,
    )
    out = tmp_path / "out.safetensors"
    options = ("--steps", 6, "--iterations", 1, *QUICK, "--latency-ms", 20, "--latency-batch", 3)
    options += ("--engine", "eager")
    finished = invoke("learn", checkpoint, *options, "--out", out)
    assert finished.code == 0, finished.err
    schedule = CacheSchedule.load(out)
    assert batches == [(3, "eager")]
    assert schedule.provenance["budget_unit"] == "ms"
    assert costs.of(schedule.compute) == schedule.provenance["budget_cost"] == 20


def test_a_solver_is_learned_with_the_schedule(invoke, tmp_path, checkpoint):
    out = tmp_path / "auto.safetensors"
    options = ("--solver", "auto", "--budget-evals", 3, "--iterations", 1, *QUICK)
    finished = invoke("learn", checkpoint, *options, "--out", out)
    assert finished.code == 0, finished.err
    assert "Chosen: " in finished.out
    assert "Plain fewer steps at that cost: " in finished.out
    assert CacheSchedule.load(out).contract.run.weights is not None
    assert "learned" in invoke("inspect", out).out
    finished = invoke("sample", checkpoint, "-s", out, "--num", 1, "--out", tmp_path / "out", "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["config"]["solver"] == "learned"
    named = ("sample", checkpoint, "-s", out, "--solver", "ddim", "--out", tmp_path / "other")
    refused(invoke(*named), "name no solver, steps or spacing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pattern", "stripes"), ("unknown pattern 'stripes'", "closed-loop, alternate")),
        (
            ("--trials", 3, "--pattern", "alternate"),
            ("--trials belongs to --pattern closed-loop, not alternate",),
        ),
        (("--budget", 0.5, "--pattern", "alternate"), ("--budget belongs to --pattern closed-loop",)),
        (("--lambda", 1), ("--lambda belongs to --pattern alternate, not closed-loop",)),
        (("--data", "x"), ("--data belongs to --pattern alternate",)),
        (("--budget", 0.5, "--macs", "1G"), ("--budget and --macs are budgets in different units",)),
        (("--latency-ms", 5, "--budget", 0.5), ("--budget and --latency-ms", "give one of them")),
        (("--solver", "auto"), ("--solver auto needs --budget-evals",)),
        (("--solver", "auto", "--budget", 0.5), ("--solver auto needs --budget-evals",)),
        (("--solver", "auto", "--budget-evals", 8, "--steps", 9), ("--solver auto chooses --steps itself",)),
        (
            ("--solver", "auto", "--budget-evals", 4, "--per-computed", 999),
            ("must be at most 1000, got 3996",),
        ),
        (("--per-computed", 2), ("--per-computed is for --solver auto",)),
        (
            ("--solver", "auto", "--budget-evals", 4, "--per-computed", 0),
            ("per_computed must be at least 1",),
        ),
        (("--budget-evals", 8), ("--budget-evals is for --solver auto",)),
        (("--solver", "auto", "--budget-evals", 1), ("at least 2 whole evaluations, got 1",)),
        (("--solver", "auto", "--budget-evals", "nan"), ("at least 2 whole evaluations, got nan",)),
        (("--budget", "0.5;0.3"), ("fractions of the MACs", "got '0.5;0.3'")),
        (("--budget", ""), ("fractions of the MACs", "got ''")),
        (("--budget", "1.5"), ("more than 0 and at most 1", "got '1.5'")),
        (("--budget", "0.5,nan"), ("more than 0 and at most 1", "got '0.5,nan'")),
        (("--budget", "0.5,0.50"), ("names a fraction twice",)),
        (("--budget", 0.1), ("a budget of ", "cannot be met", "take more steps")),
        (("--macs", "many"), ("a number such as 16.6G", "got 'many'")),
        (("--macs", 0), ("a budget in MACs is a number",)),
        (("--macs", "1T"), ("a budget of 1000 GMACs is more than the", "no schedule is needed")),
        (("--latency-ms", 0), ("--latency-ms must be more than 0",)),
        (("--latency-ms", 5, "--latency-batch", 0), ("--latency-batch must be at least 1",)),
        (("--latency-batch", 2), ("--latency-batch is for --latency-ms",)),
        (("--engine", "eager", "--budget", 0.5), ("--engine is for --latency-ms",)),
        (("--costs", "costs.json"), ("--costs is for --latency-ms",)),
        (("--latency-ms", 5, "--engine", "steam"), ("unknown engine 'steam'", "graph, compile, eager")),
        (
            ("--latency-ms", 5, "--costs", "a.json", "--engine", "eager"),
            ("--engine is for measuring", "--costs"),
        ),
        (("--trials", 0), ("trials must be at least 1",)),
        (("--max-minutes", 0), ("time limit must be more than 0",)),
    ],
)
def test_options_that_do_not_go_together(invoke, tmp_path, checkpoint, options, words):
    out = tmp_path / "out.safetensors"
    steps = () if "auto" in options else ("--steps", 4)
    finished = invoke("learn", checkpoint, *steps, *options, "--out", out)
    assert finished.code == 2
    assert len(finished.err.splitlines()) == 1
    assert all(word in finished.err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_max_minutes_ends_with_what_was_learned(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    options = (checkpoint, *SMALL, "--iterations", 2, "--out", out)
    finished = invoke("learn", *options, "--max-minutes", 1e-6)
    assert finished.code == 0
    assert "the time was up after 1 of 2 iterations" in finished.err
    assert CacheSchedule.load(out).provenance["iterations"] == 1
    assert (tmp_path / "router.safetensors.checkpoint").exists()
    finished = invoke("learn", *options, "--max-minutes", 1e-6)
    assert "time was up" not in finished.err
    assert CacheSchedule.load(out).provenance["iterations"] == 2
    assert list(tmp_path.iterdir()) == [out]


def test_budgets_that_the_time_cut_short_are_named(invoke, tmp_path, checkpoint):
    out = tmp_path / "family.safetensors"
    options = ("--steps", 6, *QUICK, "--iterations", 2, "--budget", "0.75,0.5", "--out", out)
    seconds = 1e-6
    for _ in range(20):  # fine-step solutions come first, and what is done of them counts
        finished = invoke("learn", checkpoint, *options, "--max-minutes", seconds)
        if finished.code == 0:
            break
    last = finished.err.strip().splitlines()[-1]
    assert "the time was up after 0 of 2 budgets (0.75 has 1 of 2, 0.5 has 1 of 2 iterations); " in last
    assert all(schedule.provenance["time_was_up"] for schedule in ScheduleFamily.load(out))


def test_a_checkpoint_with_other_settings_is_refused(invoke, tmp_path, checkpoint):
    out = tmp_path / "router.safetensors"
    assert invoke("learn", checkpoint, *SMALL, "--max-minutes", 1e-6, "--out", out).code == 0
    finished = invoke("learn", checkpoint, *SMALL, "--lambda", 1, "--out", out)
    assert finished.code == 2
    assert "lambda was 1e-05 and is now 1.0" in finished.err
    assert "--restart" in finished.err
    finished = invoke("learn", checkpoint, *SMALL, "--lambda", 1, "--out", out, "--restart")
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
        finished = invoke("learn", checkpoint, *SMALL, "--out", out)
    kept = tmp_path / "full" / "router.safetensors.checkpoint"
    assert finished.code == 1
    assert "No space left on device; choose another --out, and add --checkpoint" in finished.err
    assert list(out.parent.iterdir()) == [kept]
    finished = invoke("learn", checkpoint, *SMALL, "--out", other, "--checkpoint", kept)
    assert finished.code == 0
    assert "learning 1/3" not in finished.err
    assert CacheSchedule.load(other).provenance["iterations"] == 3
    assert not kept.exists()


def test_an_effort_sets_what_is_not_given_and_says_how_long_it_takes(invoke, tmp_path, checkpoint):
    out = tmp_path / "effort.safetensors"
    options = ("--steps", 6, "--solver", "dpmsolver++", "--effort", "quick", "--iterations", 1, "--trials", 2)
    finished = invoke("learn", checkpoint, *options, "--reference-steps", 4, "--tail", 2, "--out", out)
    assert finished.code == 0, finished.err
    assert "--effort quick: about a minute on this machine" in finished.err
    settings = l2c.load_schedule(out).provenance["settings"]
    assert (settings["num_examples"], settings["iterations"], settings["tail"]) == (16, 1, 2.0)


def test_an_effort_is_for_the_closed_loop(invoke, tmp_path, checkpoint):
    options = ("--pattern", "alternate", "--effort", "best", "--out", tmp_path / "out.safetensors")
    refused(invoke("learn", checkpoint, *options), "--effort belongs to --pattern closed-loop")


def test_passes_of_guidance_stay_together_if_asked(invoke, tmp_path, checkpoint):
    out = tmp_path / "alike.safetensors"
    options = ("--steps", 6, "--solver", "dpmsolver++", "--iterations", 1, "--no-branches")
    assert invoke("learn", checkpoint, *options, *QUICK, "--out", out).code == 0
    learned = l2c.load_schedule(out)
    assert not learned.provenance["settings"]["branches"]
    assert not learned.has_branches
