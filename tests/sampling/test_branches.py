"""Guidance whose passes have rows of their own: both halves computed, forecast, or one derived from the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import l2c
from l2c.cache.branches import BOTH
from l2c.engine.run import REFILL, PreparedJob
from l2c.errors import CacheStateError
from l2c.sampling.compiled import CompiledSampler
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.memory import planned_store_bytes, store_bytes
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.branches import join_branches
from l2c.schedule.forecast import Predictor

STEPS = 10
MODES = ("batch", "split")


@pytest.fixture(params=["tiny_dit", "tiny_uvit"])
def model(request):
    return request.getfixturevalue(request.param)


def sampler_of(model, mode="batch", scale=1.5, channels=None):
    return Sampler(Denoiser.of(model), "dpmsolver++", STEPS, guidance=Guidance(scale, mode, channels))


def every_second(model, predictor="taylor-2"):
    return l2c.methods.interval(
        model, solver="dpmsolver++", steps=STEPS, every=2, predictor=predictor
    ).with_any_weights()


def irregular(model, predictor="taylor-2"):
    """Passes that are computed in part, forecast and derived in every combination."""
    base, generator = every_second(model, predictor), torch.Generator().manual_seed(3)
    cond, uncond = (torch.rand(base.compute.shape, generator=generator) < 0.5 for _ in range(2))
    runs = torch.rand(STEPS, generator=generator) < 0.6
    for part in (cond, uncond, runs[:, None]):
        part[0] = True
    cond[4] = uncond[4] = runs[4] = True
    return replace(base, compute=join_branches(cond, uncond, runs))


def inputs(model, count=3):
    return seeded_noise(range(count), Denoiser.of(model).sample_shape), torch.arange(count)


def close(ours, theirs):
    return bool((ours - theirs).abs().max() < 1e-4 * theirs.abs().max())


@pytest.mark.parametrize("mode", MODES)
def test_passes_with_equal_rows_make_the_same_pictures_as_one_mask(model, mode):
    one = every_second(model)
    both = replace(one, compute=join_branches(one.compute, one.compute, torch.ones(STEPS, dtype=torch.bool)))
    sampler, (noise, labels) = sampler_of(model, mode), inputs(model)
    assert torch.equal(
        sampler.compile(both, "eager")(noise, labels), sampler.compile(one, "eager")(noise, labels)
    )


@pytest.mark.parametrize("channels", [None, 1])
def test_a_derived_pass_follows_the_continued_difference(model, channels):
    one, guided = every_second(model), (0, 1, 4)
    runs = torch.zeros(STEPS, dtype=torch.bool)
    runs[list(guided)] = True
    cond = torch.ones_like(one.compute)
    coefficients = torch.zeros(STEPS, 2 * len(one.layers) + 1, 2)
    coefficients[:, -1] = torch.tensor([1.5, -0.5])
    schedule = replace(
        one,
        compute=join_branches(cond, cond & runs[:, None], runs),
        predictor=Predictor("linear", coefficients=coefficients),
    )
    sampler, (noise, labels) = sampler_of(model, channels=channels, scale=2.0), inputs(model)
    denoiser, differences, solver = sampler.denoiser, [], sampler.make_solver()
    x = noise * solver.init_scale
    with torch.no_grad():
        for evaluation, timestep in enumerate(solver.run.timesteps):
            at = solver.scale_input(x, evaluation)
            conditional = denoiser(at, torch.tensor(timestep), labels)
            if evaluation in guided:
                null = torch.full_like(labels, denoiser.null_class)
                differences.insert(0, conditional - denoiser(at, torch.tensor(timestep), null))
                difference = differences[0]
            else:
                last, before = differences[:2]
                difference = 1.5 * last - 0.5 * before
            steered = conditional + difference
            if channels is not None:
                steered = torch.cat([steered[:, :channels], conditional[:, channels:]], 1)
            x = solver.step(evaluation, x, steered)
    assert close(sampler.compile(schedule, "eager")(noise, labels), x)


def test_calls_in_one_batch_and_in_two_make_the_same_pictures(model):
    schedule, (noise, labels) = irregular(model), inputs(model)
    batch, split = (sampler_of(model, mode).compile(schedule, "eager")(noise, labels) for mode in MODES)
    assert close(batch, split)


def test_only_what_a_pass_computes_is_called(model):
    one = every_second(model)
    runs = torch.zeros(STEPS, dtype=torch.bool)
    runs[[0, 4]] = True
    schedule = replace(one, compute=join_branches(one.compute, one.compute & runs[:, None], runs))
    sampler, (noise, labels) = sampler_of(model), inputs(model)
    rows = []
    layer = model.get_submodule(one.layers.layers[0].module_path)
    first = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    handle = first.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    with l2c.enable_cache(model, schedule) as cache, torch.no_grad():
        sampler(noise, labels)
    handle.remove()
    found = cache.summary().models["model"]
    assert rows == [6, 3, 6, 3, 3]
    assert found.calls == {"cond": STEPS, "uncond": 2}
    assert found.derived == STEPS - 2
    assert found.fraction == pytest.approx(schedule.cost.fraction)
    assert "8 unconditional passes derived" in str(cache.summary())


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_known_before_anything_runs(model, mode):
    schedule, sampler, (noise, labels) = irregular(model), sampler_of(model, mode), inputs(model)
    with l2c.enable_cache(model, schedule) as cache:
        planned, store, most = store_bytes(cache, sampler, 3), cache.policy.store, 0
        put = store.put

        def watched(*args):
            nonlocal most
            put(*args)
            most = max(most, store.nbytes)

        store.put = watched
        with torch.no_grad():
            sampler(noise, labels)
    assert most == planned
    guidance = sampler.guidance
    rows, calls = guidance.call_size(3), guidance.calls
    assert planned_store_bytes(schedule, schedule.layers, rows, calls, torch.float32, "eager") == planned


def test_without_guidance_the_conditional_rows_are_followed(model):
    schedule, (noise, labels) = irregular(model), inputs(model)
    sampler, count = sampler_of(model, scale=1.0), len(schedule.layers)
    alone = replace(schedule, compute=schedule.compute[:, :count])
    for engine in ("eager", "compile"):
        made = run(sampler, schedule, engine, noise, labels)
        assert close(made, sampler.compile(alone, "eager")(noise, labels))


def test_a_call_that_does_not_say_which_pass_it_makes_is_refused(tiny_dit):
    noise, labels = inputs(tiny_dit)
    with l2c.enable_cache(tiny_dit, irregular(tiny_dit)) as cache, cache.run() as clock:
        clock.tick(0)
        with pytest.raises(CacheStateError, match="rows of its own for each pass of guidance"):
            tiny_dit(noise, torch.full((3,), 999.0), labels)
        with clock.in_branch(BOTH), torch.no_grad():
            tiny_dit(noise[:2], torch.full((2,), 999.0), labels[:2])


def run(sampler, schedule, engine, noise, labels):
    compiled = sampler.compile(schedule, engine)
    if isinstance(compiled, CompiledSampler):
        compiled.engine.pieces.compiled = False
    return compiled(noise, labels)


@pytest.mark.parametrize("predictor", ["copy", "taylor-2"])
@pytest.mark.parametrize("mode", MODES)
def test_compiled_runs_and_shared_graphs_do_what_eager_ones_do(model, mode, predictor):
    schedule, (noise, labels) = irregular(model, predictor), inputs(model)
    sampler = sampler_of(model, mode)
    eager = sampler.compile(schedule, "eager")(noise, labels)
    assert close(run(sampler, schedule, "compile", noise, labels), eager)
    compiled = sampler.compile(schedule, "compile")
    prepared = PreparedJob(compiled.engine.program, compiled.job, noise)

    class Replay:
        def __init__(self, evaluation):
            self.evaluation = evaluation

        def replay(self):
            prepared._launch(self.evaluation)

    prepared.share(lambda captured: {e: Replay(e) for e in (REFILL, *captured)})
    for _ in range(2):
        assert close(prepared(noise, labels, 1.5), eager)
    rows, calls = sampler.guidance.call_size(3), sampler.guidance.calls
    planned = planned_store_bytes(schedule, schedule.layers, rows, calls, torch.float32, "graph")
    assert prepared.store_bytes == planned


def test_evaluations_with_one_pass_have_a_graph_of_their_own(tiny_dit):
    one = every_second(tiny_dit)
    runs = torch.zeros(STEPS, dtype=torch.bool)
    runs[[0, 4]] = True
    schedule = replace(one, compute=join_branches(one.compute, one.compute & runs[:, None], runs))
    compiled = sampler_of(tiny_dit).compile(schedule, "compile")
    assert compiled.job.passes == ("both", "cond", "cond", "cond", "both", *["cond"] * 5)
    assert len(compiled.job.forecasts) == 5 * len(one.layers)
