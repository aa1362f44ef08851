"""The compiled engine against the eager one, on the trained models and over whole runs."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

import l2c
from l2c.engine.engine import Engine
from l2c.engine.graphs import held_elements, share_graphs
from l2c.engine.run import REFILL, PreparedJob
from l2c.errors import CacheStateError, ConfigError, ContractError
from l2c.models import random_model
from l2c.sampling.compiled import CompiledSampler, engine_of, release_engines
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise

FLOAT32 = 5e-4
"""Largest difference of a picture in [-1, 1]: rounding, which a run of noise predictions carries on."""


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether samples of a model with random weights, which can be of any size, are equal but for rounding."""
    return bool((ours - theirs).abs().max() < 1e-4 * theirs.abs().max())


RUNS = [("dit", "ddim", 6), ("dit", "unipc", 6), ("dit", "euler", 5), ("uvit", "dpmsolver-singlestep", 6)]


def uncompiled(sampler: Sampler, schedule) -> CompiledSampler:
    """A sampler whose pieces run as they are: the same work, at once and on any machine."""
    compiled = sampler.compile(schedule, "compile")
    assert isinstance(compiled, CompiledSampler)
    compiled.engine.pieces.compiled = False
    return compiled


@pytest.fixture(autouse=True)
def no_engines_left(dit, uvit):
    yield
    for model in (dit, uvit):
        release_engines(model)


@pytest.mark.parametrize(("name", "solver", "steps"), RUNS)
@pytest.mark.parametrize("predictor", [None, "copy", "taylor-2"])
def test_a_whole_run_equals_the_eager_one(request, name, solver, steps, predictor):
    model = request.getfixturevalue(name)
    schedule = (
        None
        if predictor is None
        else l2c.methods.interval(model, solver=solver, steps=steps, every=2, predictor=predictor)
    )
    sampler = Sampler(Denoiser.of(model), solver, steps)
    noise, labels = seeded_noise([5, 6], sampler.denoiser.sample_shape), torch.tensor([1, 7])
    eager = sampler.compile(schedule, "eager")(noise, labels)
    assert (uncompiled(sampler, schedule)(noise, labels) - eager).abs().max() < FLOAT32


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(2.0, "split"), Guidance(3.0, channels=1)])
def test_every_kind_of_guidance(tiny_dit, guidance):
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2, predictor="taylor-1")
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 6, guidance=guidance)
    noise, labels = seeded_noise([1, 2, 3], sampler.denoiser.sample_shape), torch.tensor([1, 7, 2])
    eager = sampler.compile(schedule, "eager")(noise, labels)
    assert close(uncompiled(sampler, schedule)(noise, labels), eager)


class Replay:
    """Launches the work of an evaluation again, as a CUDA graph of it would, on the CPU."""

    def __init__(self, run: PreparedJob, evaluation: int) -> None:
        self.run, self.evaluation = run, evaluation

    def replay(self) -> None:
        self.run._launch(self.evaluation)


@pytest.mark.parametrize("mode", ["batch", "split"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shared_graphs_and_fixed_places_do_what_eager_runs_do(tiny_uvit, mode, depth):
    torch.manual_seed(depth)
    sampler = Sampler(Denoiser.of(tiny_uvit), "ddim", 14, guidance=Guidance(1.5, mode))
    base = l2c.methods.interval(
        tiny_uvit, solver="ddim", steps=14, every=2, predictor=f"taylor-{depth - 1}" if depth > 1 else "copy"
    )
    regular = base.compute
    noise, labels = seeded_noise([1, 2], sampler.denoiser.sample_shape), torch.tensor([4, 5])
    for mask in (regular, torch.rand(regular.shape) > 0.5, regular | (torch.rand(regular.shape[1]) > 0.5)):
        mask[0] = True
        schedule = replace(base, compute=mask)
        compiled = uncompiled(sampler, schedule)
        run = PreparedJob(compiled.engine.program, compiled.job, noise)
        run.share(lambda captured, run=run: {e: Replay(run, e) for e in (REFILL, *captured)})
        assert run.num_graphs <= 14
        eager = sampler.compile(schedule, "eager")(noise, labels)
        for _ in range(2):
            assert close(run(noise, labels, 1.5), eager)
        values = 2 if mode == "split" else 4
        branches = 2 if mode == "split" else 1
        held = held_elements(share_graphs(schedule.plan, 14), schedule.layers)
        assert run.store_bytes == held * values * branches * 4


def test_a_learned_schedule_with_a_solver_of_its_own(dit):
    schedule = l2c.CacheSchedule.load("dit-mini-cifar10-auto-6")
    eager = l2c.sample(dit, [3, 5], schedule=schedule, engine="eager")
    engine_of(dit, "compile").pieces.compiled = False
    assert (l2c.sample(dit, [3, 5], schedule=schedule, engine="compile") - eager).abs().max() < FLOAT32


def test_constants_that_do_not_fit_at_once_are_computed_in_parts(tiny_dit, monkeypatch):
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 7)
    noise, labels = seeded_noise([1], sampler.denoiser.sample_shape), torch.tensor([4])
    whole = uncompiled(sampler, None)(noise, labels)
    release_engines(tiny_dit)
    monkeypatch.setattr("l2c.engine.run.CONSTANTS_BYTES", 3 * 10_000)
    compiled = uncompiled(sampler, None)
    assert close(compiled(noise, labels), whole)
    (run,) = compiled.engine.runs
    assert run._window < 7


def test_an_interrupted_run_leaves_nothing_behind(tiny_dit, monkeypatch):
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=3)
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 6)
    noise, labels = seeded_noise([1], sampler.denoiser.sample_shape), torch.tensor([4])
    compiled = uncompiled(sampler, schedule)
    whole = compiled(noise, labels)
    mix = type(tiny_dit.blocks[2].attn).mix
    calls = iter(range(100))

    def interrupted(self, h):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return mix(self, h)

    monkeypatch.setattr(type(tiny_dit.blocks[2].attn), "mix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiled(noise, labels)
    monkeypatch.undo()
    assert torch.equal(compiled(noise, labels), whole)


def test_calls_that_do_the_same_share_one_run(tiny_dit, tmp_path):
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2)
    schedule.save(tmp_path / "one.safetensors")
    engine = engine_of(tiny_dit, "compile")
    engine.pieces.compiled = False
    for again in (schedule, l2c.CacheSchedule.load(tmp_path / "one.safetensors"), None, None):
        l2c.sample(tiny_dit, [1, 2], steps=6, schedule=again, engine="compile")
    assert len(engine.runs) == 2
    l2c.sample(tiny_dit, [1, 2], steps=6, guidance=3.0, engine="compile")
    assert len(engine.runs) == 2
    l2c.sample(tiny_dit, [1, 2], steps=6, guidance=1.0, engine="compile")
    l2c.sample(tiny_dit, [1, 2], steps=7, engine="compile")
    assert len(engine.runs) == 4


def test_weights_that_change_in_place_count(tiny_dit):
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 4)
    noise, labels = seeded_noise([1], sampler.denoiser.sample_shape), torch.tensor([4])
    compiled = uncompiled(sampler, None)
    before = compiled(noise, labels)
    with torch.no_grad():
        tiny_dit.blocks[1].attn.proj.weight.mul_(1.5)
    after = compiled(noise, labels)
    assert not torch.equal(before, after)
    assert close(after, sampler.compile(None, "eager")(noise, labels))


def test_the_model_is_not_kept_alive_and_not_changed(tiny_dit):
    model = random_model(tiny_dit.config)
    forwards = [module.forward for module in model.modules()]
    sampler = Sampler(Denoiser.of(model), "ddim", 4)
    uncompiled(sampler, None)(seeded_noise([1], (3, 8, 8)), torch.tensor([4]))
    assert forwards == [module.forward for module in model.modules()]
    there = weakref.ref(model)
    del model, sampler, forwards
    gc.collect()
    assert there() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in its compiler
def test_no_breaks_and_nothing_compiled_again_over_ten_schedules(tiny_dit):
    torch._dynamo.reset()
    counters.clear()
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 8)
    engine = engine_of(tiny_dit, "compile")
    noise = seeded_noise([1, 2], sampler.denoiser.sample_shape)
    torch.manual_seed(1)
    schedules = []
    for _ in range(10):
        schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=8, every=2, predictor="taylor-2")
        compute = torch.rand(schedule.compute.shape) > 0.6
        compute[:1] = True
        schedules.append(l2c.CacheSchedule(compute, schedule.layers, schedule.contract, schedule.predictor))
    engine.warm_up(sampler.compile(schedules[0], "compile").job, noise)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == len(engine.pieces) > 0
    for index, schedule in enumerate(schedules):
        guidance = Guidance(1.5 + index / 10)
        other = Sampler(sampler.denoiser, "ddim", 8, guidance=guidance)
        labels = torch.tensor([index, 9 - index])
        compiled = other.compile(schedule, "compile")(noise + index, labels)
        eager = other.compile(schedule, "eager")(noise + index, labels)
        assert close(compiled, eager)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
    assert len(engine.pieces) == graphs


def test_what_the_engine_cannot_do_is_said(tiny_dit):
    denoiser = Denoiser.of(tiny_dit)
    with pytest.raises(ConfigError, match="choose one of auto, graph, compile, eager"):
        l2c.sample(tiny_dit, [1], steps=2, engine="fast")
    with pytest.raises(ConfigError, match="observer"):
        l2c.sample(tiny_dit, [1], steps=2, engine="compile", observer=print)
    with pytest.raises(ConfigError, match="CUDA device"):
        Engine(tiny_dit, "graph")
    with pytest.raises(ConfigError, match="own DiT and UViT"):
        Engine(torch.nn.Linear(1, 1), "compile")
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2)
    with pytest.raises(ContractError, match="covers 6 evaluations"):
        Sampler(denoiser, "ddim", 8).compile(schedule, "compile")
    with l2c.enable_cache(tiny_dit, schedule), pytest.raises(CacheStateError, match="disable it"):
        l2c.sample(tiny_dit, [1], engine="compile")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_a_compiler_everything_still_works(tiny_dit, monkeypatch):
    def no_compiler(function, index):
        def broken(*_):
            raise torch._dynamo.exc.TorchDynamoException("no compiler")

        return broken

    monkeypatch.setattr("l2c.engine.pieces._compile", no_compiler)
    eager = l2c.sample(tiny_dit, [1, 2], steps=4, engine="eager")
    with pytest.warns(UserWarning, match="cannot be compiled here"):
        compiled = l2c.sample(tiny_dit, [1, 2], steps=4, engine="compile")
    assert (compiled - eager).abs().max() < FLOAT32


def test_a_fault_in_a_piece_is_not_taken_for_the_compilers(tiny_dit, monkeypatch):
    def broken(*_):
        raise ValueError("a fault")

    monkeypatch.setattr("l2c.engine.pieces._compile", lambda function, index: broken)
    with pytest.raises(ValueError, match="a fault"):
        l2c.sample(tiny_dit, [1], steps=2, engine="compile")


def test_a_run_that_does_not_fit_as_graphs_is_launched_piece_by_piece(tiny_dit, monkeypatch):
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2, predictor="taylor-1")
    sampler = Sampler(Denoiser.of(tiny_dit), "ddim", 6)
    noise, labels = seeded_noise([1], sampler.denoiser.sample_shape), torch.tensor([4])
    eager = sampler.compile(schedule, "eager")(noise, labels)
    compiled = uncompiled(sampler, schedule)
    monkeypatch.setattr(compiled.engine, "mode", "graph")
    attempts = []

    def no_memory(run):
        taken = torch.ones(1)  # what a capture that fails has allocated so far
        assert all(earlier() is None for earlier in attempts)
        attempts.append(weakref.ref(taken))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PreparedJob, "capture", no_memory)
    with pytest.warns(UserWarning, match="not enough memory to capture"):
        made = compiled(noise, labels)
    assert len(attempts) == 2  # once more when others have given theirs up
    assert close(made, eager)


def test_one_log_line_says_which_engine_runs_and_why(tiny_dit, caplog):
    with caplog.at_level("INFO", "l2c.sampling.compiled"):
        l2c.sample(tiny_dit, [1], steps=2)
    assert [record.message for record in caplog.records] == ["engine: eager (DiT on cpu)"]


def test_the_log_line_is_of_the_engine_that_runs(tiny_dit, caplog):
    engine_of(tiny_dit, "compile").pieces.compiled = False
    with caplog.at_level("INFO", "l2c.sampling.compiled"):
        l2c.sample(tiny_dit, [1], steps=2, observer=lambda *_: None)
        l2c.sample(tiny_dit, [1], steps=2, engine="compile")
    said = [record.message for record in caplog.records]
    assert said == ["engine: eager (an observer)", "engine: compile (asked for)"]
