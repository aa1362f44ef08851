"""`LearnedScheduler`: what diffusers tests its own schedulers for, and what it makes in every kind of pipeline."""

import json
import logging
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import l2c
from l2c.errors import ConfigError
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler, learned_from
from l2c.hosts.pipeline.runs import describe_run
from l2c.sampling.linear import LinearSolver
from l2c.schedule.contract import Run
from l2c.testing import tiny_call, tiny_pipeline, tiny_run

STEPS = 8
KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def known(kind, **changes):
    """DPM-Solver++(2M) of diffusers, with a run set."""
    flow = {"use_flow_sigmas": True, "flow_shift": 1.0} if kind == "flow_prediction" else {}
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=kind, final_sigmas_type="zero", **{**flow, **changes}
    )
    scheduler.set_timesteps(STEPS)
    return scheduler


def like(scheduler):
    """A learned scheduler that has learned nothing, at the noise levels of another one."""
    return learned_from(scheduler, describe_run(scheduler).log_snrs)


def learned(kind="epsilon", scales=1):
    """A learned scheduler whose weights are of no known solver."""
    made = like(known(kind))
    generator = torch.Generator().manual_seed(1)
    change = 0.05 * torch.randn(scales, STEPS + 1, STEPS + 1, generator=generator).tril()
    change[:, 0] = 0
    change[0] += torch.tensor(made.config.weights)
    weights = change.transpose(0, 1).flatten(1).tolist()
    return LearnedScheduler.from_config(made.config, weights=weights)


def settings(scheduler):
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def noise(*shape, seed=0):
    return torch.randn(*(shape or (1, 4, 8, 8)), generator=torch.Generator().manual_seed(seed))


def sample(scheduler, x=None, begin=0, **run):
    """A run of a network that depends on samples and on the evaluation."""
    x = noise() if x is None else x
    scheduler.set_timesteps(STEPS, **run)
    if begin:
        scheduler.set_begin_index(begin)
    for index, t in enumerate(scheduler.timesteps[begin:]):
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(0.5 * torch.tanh(given) + 0.02 * (begin + index), t, x).prev_sample
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_learned_it_is_dpm_solver_2m(kind):
    other = known(kind)
    torch.testing.assert_close(sample(like(other)), sample(other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", [1, 3, STEPS - 1])
def test_a_run_that_begins_in_the_middle_is_dpm_solver_2m_from_there(kind, begin):
    other = known(kind)
    expected = sample(other, begin=begin)
    torch.testing.assert_close(sample(like(other), begin=begin), expected, atol=1e-4, rtol=1e-4)


def test_levels_of_known_solvers_have_their_timesteps():
    for kind in KINDS:
        other = known(kind)
        made = like(other)
        made.set_timesteps(STEPS)
        torch.testing.assert_close(made.timesteps, other.timesteps.float(), atol=1.0, rtol=0)  # it rounds
        torch.testing.assert_close(made.sigmas, other.sigmas, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "scales"), [*((kind, 1) for kind in KINDS), ("epsilon", 3)])
def test_a_saved_scheduler_samples_the_same(kind, scales, tmp_path):
    made = learned(kind, scales)
    made.save_pretrained(tmp_path)
    again = LearnedScheduler.from_pretrained(tmp_path)
    assert settings(again) == settings(made)
    assert torch.equal(sample(again), sample(made))
    assert not torch.allclose(sample(made), sample(like(known(kind))), atol=1e-3)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == "LearnedScheduler"


def test_scales_are_those_of_our_sampler():
    made, x = learned(scales=3), noise()
    weights = tuple(tuple(row) for row in made.config.weights)
    levels = tuple(made.config.log_snrs)
    run = Run("learned", STEPS, "learned", levels, levels, weights=weights)
    ours = LinearSolver.of_run(run)
    plain, expected = learned(), x
    for index in range(STEPS):
        expected = ours.step(index, expected, 0.5 * torch.tanh(expected) + 0.02 * index)
    assert torch.equal(sample(made, x), expected)
    assert not torch.allclose(sample(plain, x), expected, atol=1e-2)


def test_its_configuration_comes_back_whole():
    made = learned()
    again = LearnedScheduler.from_config(made.config)
    assert settings(again) == settings(made)
    assert torch.equal(sample(again), sample(made))
    assert made.compatibles == []  # no other scheduler has a table


def test_a_pipeline_is_saved_and_loaded_with_it(tmp_path):
    pipe = tiny_pipeline("dit")
    pipe.scheduler.set_timesteps(6)
    pipe.scheduler = like(pipe.scheduler)
    expected = tiny_run(pipe, "dit")
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, l2c.LearnedScheduler)
    assert torch.equal(tiny_run(again, "dit"), expected)


def test_what_pipelines_read_of_it():
    for kind in KINDS:
        made = learned(kind)
        made.set_timesteps(STEPS, device="cpu")
        assert made.num_inference_steps == len(made.timesteps) == STEPS
        assert len(made.sigmas) == STEPS + 1
        assert made.sigmas[-1] == 0
        assert (made.timesteps.diff() < 0).all()
        assert (made.sigmas.diff() < 0).all()
        assert made.timesteps.dtype == made.sigmas.dtype == torch.float32
        assert made.timesteps.device == torch.device("cpu")
        assert len(made) == made.config.num_train_timesteps == 1000
        assert (made.init_noise_sigma, made.order) == (1.0, 1)
        x = noise()
        assert made.scale_model_input(x, made.timesteps[0]) is x
        assert made.config.prediction_type == kind


def test_steps_are_counted_in_order():
    made, x = learned(), noise()
    made.set_timesteps(STEPS)
    assert made.step_index is made.begin_index is None
    for index, t in enumerate(made.timesteps):
        (after,) = made.step(x, t, x, return_dict=False)
        assert made.step_index == index + 1
        assert after.shape == x.shape
    made.set_timesteps(STEPS)
    made.set_begin_index(2)
    assert (made.step_index, made.begin_index) == (None, 2)
    made.step(x, made.timesteps[2], x)
    assert made.step_index == 3
    made.set_timesteps(STEPS)
    made.step(x, made.timesteps[4], x)  # no begin index: told by the timestep
    assert made.step_index == 5


def test_a_run_leaves_nothing_for_the_next_one():
    made = learned()
    first = sample(made)
    made.set_timesteps(STEPS)
    made.step(noise(seed=3), made.timesteps[0], noise(seed=4))  # and is left
    sample(made, begin=3)
    assert torch.equal(sample(made), first)


def test_a_result_is_a_tuple_or_diffusers_output():
    made, x = learned(), noise()
    made.set_timesteps(STEPS)
    (one,) = made.step(x, made.timesteps[0], x, return_dict=False)
    made.set_timesteps(STEPS)
    output = made.step(x, made.timesteps[0], x, generator=torch.Generator())
    assert isinstance(output, diffusers.schedulers.scheduling_utils.SchedulerOutput)
    assert torch.equal(output.prev_sample, one)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_a_batch_are_what_they_are_alone(kind):
    made, x = learned(kind), noise(3, 4, 8, 8)
    together = sample(made, x)
    torch.testing.assert_close(together, torch.cat([sample(made, x[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_keep_their_dtype(dtype):
    made = learned()
    exact, rounded = sample(made), sample(made, noise().to(dtype))
    assert rounded.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(rounded.float(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_where_it_is_told_to():
    made = learned()
    made.set_timesteps(STEPS, device="cuda")
    assert made.timesteps.device.type == "cuda"
    x = noise().cuda()
    for t in made.timesteps:
        x = made.step(0.5 * torch.tanh(x), t, x).prev_sample
    assert x.device.type == "cuda"


def test_another_number_of_steps_is_told_once(caplog):
    made = learned()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made.set_timesteps(20)
            assert len(made.timesteps) == STEPS
        made.set_timesteps(sigmas=[1.0, 0.5])
        made.set_timesteps(STEPS)
    assert [record.message for record in caplog.records] == [
        f"the learned solver makes {STEPS} steps, not the 20 that were asked for"
    ]


def test_a_check_tells_of_another_number_of_steps(everywhere, caplog):
    call = {key: value for key, value in tiny_call("sd3").items() if key != "generator"}
    schedule = everywhere[0]["sd3"]
    with caplog.at_level(logging.WARNING):
        for steps in (schedule.contract.run.steps, 20):
            l2c.check(tiny_pipeline("sd3"), schedule, seeds=[0], **{**call, "num_inference_steps": steps})
    assert [record.message for record in caplog.records if "not the" in record.message] == [
        f"the learned solver makes {schedule.contract.run.steps} steps, not the 20 that were asked for"
    ]


def test_noise_is_added_as_known_schedulers_add_it():
    picture, random = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    other = diffusers.DDIMScheduler()
    other.set_timesteps(STEPS)
    made = like(other)
    times = other.timesteps[[0, 3, 7]]
    expected = other.add_noise(picture, random, times)
    torch.testing.assert_close(made.add_noise(picture, random, times), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        made.scale_noise(picture[:1], made.timesteps[3:4], random[:1]),
        other.add_noise(picture[:1], random[:1], times[1:2]),
        atol=1e-4,
        rtol=1e-4,
    )
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(STEPS)
    made = like(flow)
    for index in (0, 3, 7):
        expected = flow.scale_noise(picture, flow.timesteps[index : index + 1], random)
        scaled = made.scale_noise(picture, made.timesteps[index : index + 1], random)
        torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=1e-5)
    assert made.add_noise(picture.half(), random.half(), times).dtype == torch.float16


def test_noise_that_is_added_is_taken_away_again():
    """A network that knows the picture brings it back from wherever a run begins."""
    picture, random = noise(), noise(seed=1)
    for kind in KINDS:
        made = like(known(kind))
        for begin in (0, 4):
            made.set_timesteps(STEPS)
            made.set_begin_index(begin)
            x = made.add_noise(picture, random, made.timesteps[begin : begin + 1])
            for t in made.timesteps[begin:]:
                alpha = made.add_noise(torch.ones(1), torch.zeros(1), t[None])
                sigma = made.add_noise(torch.zeros(1), torch.ones(1), t[None])
                predicted = {
                    "epsilon": random,
                    "sample": picture,
                    "v_prediction": alpha * random - sigma * picture,
                    "flow_prediction": random - picture,
                }[kind]
                x = made.step(predicted, t, x).prev_sample
            torch.testing.assert_close(x, picture, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_another_resolution_shifts_the_levels_as_it_shifts_those_of_the_pipeline(kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    given = torch.linspace(1, 1 / STEPS, STEPS).tolist()
    levels, sigmas = {}, {}
    for mu in (0.6, 1.1):
        scheduler.set_timesteps(sigmas=given, mu=mu)
        levels[mu], sigmas[mu] = describe_run(scheduler).log_snrs, scheduler.sigmas
    made, anew = (learned_from(scheduler, levels[mu], mu=mu) for mu in (0.6, 1.1))
    made.set_timesteps(STEPS, mu=0.6)
    torch.testing.assert_close(made.sigmas, sigmas[0.6], atol=1e-4, rtol=1e-4)
    made.set_timesteps(STEPS, sigmas=given, mu=1.1)
    torch.testing.assert_close(made.sigmas, sigmas[1.1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.timesteps, scheduler.timesteps, atol=1e-2, rtol=0)
    moved, expected = sample(made, mu=1.1), sample(anew, mu=1.1)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(moved, sample(made, mu=0.6), atol=1e-3)


@pytest.mark.parametrize("scales", [1, 2])
def test_what_was_learned_stays_at_another_resolution(scales):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.6)
    plain = learned_from(scheduler, describe_run(scheduler).log_snrs, mu=0.6)
    weights = torch.nn.functional.pad(torch.tensor(plain.config.weights), (0, 5 * (scales - 1)))
    weights[2, 1 + 5 * (scales - 1)] += 0.25
    made = LearnedScheduler.from_config(plain.config, weights=weights.tolist())
    x, ones = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)  # as it is, and as what passes a scale
    for mu in (0.6, 1.1):
        after = []
        for one in (plain, made):
            one.set_timesteps(4, mu=mu)
            for index, t in enumerate(one.timesteps[:2]):
                last = one.step(ones if index == 0 else x, t, x).prev_sample
            after.append(last)
        torch.testing.assert_close(after[1] - after[0], 0.25 * ones)


def test_what_makes_no_solver_is_refused():
    with pytest.raises(ConfigError, match=r"of 2 evaluations has a table of 3 x 3 weights, .* got 2 rows"):
        LearnedScheduler(log_snrs=[-1.0, 1.0], weights=[[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ConfigError, match="load one with LearnedScheduler.from_pretrained"):
        LearnedScheduler()
    with pytest.raises(ConfigError, match="levels and weights of a solver have values that are not finite"):
        LearnedScheduler(log_snrs=[float("nan")], weights=[[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ConfigError, match="unknown prediction type 'score'"):
        learned_from(diffusers.DDIMScheduler(), [-1.0, 1.0], prediction_type="score")


PIPELINES = ("flux", "sd3", "wan", "qwen", "pixart", "sana", "dit")
QUICK = l2c.LearnSettings(
    iterations=3,
    batch_size=1,
    num_examples=4,
    trials=2,
    trial_examples=1,
    reference_steps=10,
    learning_rate=1e-3,
)
SAMPLE = """
import sys, torch, l2c
from l2c.testing import tiny_pipeline, tiny_run
folder, *names = sys.argv[1:]
for name in names:
    pipe = tiny_pipeline(name)
    with l2c.enable_cache(pipe, f"{folder}/{name}.safetensors"):
        torch.save(tiny_run(pipe, name), f"{folder}/{name}.pt")
"""


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """A schedule with its solver for each pipeline, and what another process samples with their files."""
    folder, schedules = tmp_path_factory.mktemp("learned"), {}
    for name in PIPELINES:
        call = {key: value for key, value in tiny_call(name).items() if key != "generator"}
        schedules[name] = l2c.learn(tiny_pipeline(name), solver="auto", evaluations=3, settings=QUICK, **call)
        schedules[name].save(folder / f"{name}.safetensors")
    program = [sys.executable, "-W", "ignore", "-c", SAMPLE, str(folder), *PIPELINES]
    subprocess.run(program, check=True)
    return schedules, {name: torch.load(folder / f"{name}.pt") for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_solver_learned_through_a_pipeline_comes_and_goes_with_its_schedule(everywhere, name):
    schedules, elsewhere = everywhere
    schedule, pipe = schedules[name], tiny_pipeline(name)
    bare, own, config = tiny_run(pipe, name), pipe.scheduler, dict(pipe.scheduler.config)
    assert schedule.contract.run.weights is not None
    assert schedule.cost.fraction * len(schedule.compute) <= 3 * (1 + 1e-6)
    assert schedule.provenance["fewer_steps"]
    with l2c.enable_cache(pipe, schedule) as cache:
        assert isinstance(pipe.scheduler, LearnedScheduler)
        made = tiny_run(pipe, name)
        seen = cache.summary()
        assert torch.equal(tiny_run(pipe, name), made)
    assert seen.finished
    assert seen.evaluations == len(schedule.compute)
    assert seen.models["transformer"].unplanned == 0
    assert torch.equal(made, elsewhere[name])
    assert not torch.equal(made, bare)
    assert pipe.scheduler is own
    assert dict(own.config) == config
    assert torch.equal(tiny_run(pipe, name), bare)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_learned_solver_is_closer_than_known_ones(everywhere, name):
    made = everywhere[0][name].provenance
    known = min(error for solver, error in made["fewer_steps"].items() if "," in solver)
    assert made["held_out_error"] < known * (
        0.75 if name != "dit" else 0.97
    )  # tiny DiT leaves all of them at 4
    assert made["error_unit"] == "relative"


def test_a_solver_that_was_learned_serves_without_a_cache(everywhere):
    schedule, pipe = everywhere[0]["sd3"], tiny_pipeline("sd3")
    run = schedule.contract.run
    pipe.scheduler = learned_from(pipe.scheduler, run.log_snrs, run.weights)
    alone = tiny_run(pipe, "sd3")
    everything = l2c.CacheSchedule(torch.ones_like(schedule.compute), schedule.layers, schedule.contract)
    other = tiny_pipeline("sd3")
    with l2c.enable_cache(other, everything):
        assert torch.equal(tiny_run(other, "sd3"), alone)
    with l2c.enable_cache(pipe, schedule):  # it is there already
        assert not torch.equal(tiny_run(pipe, "sd3"), alone)
    assert torch.equal(tiny_run(pipe, "sd3"), alone)
