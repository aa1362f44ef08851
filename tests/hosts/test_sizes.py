"""Pictures of several sizes: one schedule for all of them, and what it is told to expect at others."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

import l2c
from l2c.compare.choices import PipelineChoice
from l2c.errors import ConfigError, ContractError
from l2c.hosts.base import errors, filled_up, of_one_size
from l2c.hosts.pipeline.conditions import choose
from l2c.schedule.sizes import size_name
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline

QUICK = l2c.LearnSettings(
    iterations=4,
    batch_size=2,
    num_examples=8,
    reference_steps=12,
    trials=3,
    trial_examples=2,
    level_trials=2,
    learning_rate=1e-2,
)
SIZES = {
    "flux": ((16, 16), (64, 32)),
    "qwen": ((64, 64), (128, 256)),
    "pixart": ((16, 16), (32, 16)),
    "wan": ((16, 16), (32, 16)),
}
LEARNING = {"budget": {"budget": 0.6}, "solver": {"solver": "auto", "evaluations": 3}}
SIZED = ("height", "width")


def call_of(name, without=SIZED):
    left_out = {"generator", "output_type", *without}
    return {key: value for key, value in tiny_call(name).items() if key not in left_out}


def conditions_of(name):
    return [dict(zip(SIZED, size, strict=True)) for size in SIZES[name]]


def notes_of(pipe, schedule, **options):
    with l2c.enable_cache(pipe, schedule), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pipe(**options)
    return [str(warning.message) for warning in warned if "it works" in str(warning.message)]


@pytest.fixture(scope="module", params=[(name, kind) for name in SIZES for kind in LEARNING], ids="-".join)
def learned(request):
    """A pipeline, and what was learned on it over two sizes; nothing is warned of meanwhile."""
    name, kind = request.param
    pipe = tiny_pipeline(name)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        schedule = l2c.learn(
            pipe, conditions=conditions_of(name), settings=QUICK, **LEARNING[kind], **call_of(name)
        )
    assert not [warning for warning in warned if "it works" in str(warning.message)]
    return name, pipe, schedule


def test_one_schedule_learned_over_several_sizes_serves_them_all(learned):
    name, pipe, schedule = learned
    made = schedule.provenance
    by_size = made["held_out_error_by_size"]
    assert [size.split(", num")[0] for size in by_size] == [size_name(one) for one in conditions_of(name)]
    assert sum(by_size.values()) / 2 == pytest.approx(made["held_out_error"], abs=2e-5)
    assert made["held_out_error"] <= made["held_out_error_before"]
    assert made["held_out_error"] < min(made.get("fewer_steps", {"none": 1.0}).values())
    for condition in conditions_of(name):
        assert notes_of(pipe, schedule, **{**tiny_call(name), **condition}) == []


def test_held_out_errors_by_size_are_those_of_the_enabled_pipeline(learned):
    name, pipe, schedule = learned
    conditions, call = conditions_of(name), call_of(name)
    host = l2c.host_of(pipe, conditions=conditions, **call)
    examples = host.examples(QUICK.num_examples, QUICK.seed, "pictures", held_out=QUICK.num_held_out)
    for place, condition in enumerate(conditions):
        seeds = [examples.seeds[i] for i in range(QUICK.num_held_out) if examples.conditions[i] == condition]
        drift = l2c.check(pipe, schedule, seeds=seeds, **condition, **call)
        (error,) = drift.by_size.values()
        assert error == drift.error
        assert drift.recorded == list(schedule.provenance["held_out_error_by_size"].values())[place]
        stretched = name == "qwen"  # its solutions have their levels where the first size has them, shifted
        assert drift.error == pytest.approx(drift.recorded, rel=0.05 if stretched else 1e-3)


def test_a_run_of_another_size_is_told_the_error_to_expect_and_a_recorded_check_makes_it_exact(learned):
    name, pipe, schedule = learned
    height, width = SIZES[name][1]
    other = {"height": 2 * height, "width": width}
    (note,) = notes_of(pipe, schedule, **{**tiny_call(name), **other})
    nearest = list(schedule.provenance["held_out_error_by_size"].values())[1]
    assert f"and the run is of height {2 * height}, width {width}" in note
    assert f"expected to be off by about {nearest:.4f}" in note
    drift = l2c.check(pipe, schedule, seeds=[0], **other, **call_of(name))
    checked = drift.record(schedule)
    (note,) = notes_of(pipe, checked, **{**tiny_call(name), **other})
    assert f"l2c.check has measured an error of {drift.error:.4f} there" in note
    assert l2c.check(pipe, checked, seeds=[0], **other, **call_of(name)).ratio == pytest.approx(1, abs=1e-3)


def test_several_sizes_are_checked_at_once(learned):
    name, pipe, schedule = learned
    drift = l2c.check(pipe, schedule, seeds=[0, 1, 2, 3], conditions=conditions_of(name), **call_of(name))
    assert len(drift.by_size) == 2
    assert drift.error == pytest.approx(sum(drift.by_size.values()) / 2)
    assert drift.recorded == schedule.provenance["held_out_error"]


def test_a_solver_learned_over_several_sizes_is_shifted_in_log_snr():
    pipe, call = tiny_pipeline("flux"), call_of("flux")
    schedule = l2c.learn(
        pipe, conditions=conditions_of("flux"), settings=QUICK, solver="auto", evaluations=3, **call
    )
    levels, mus = [], []
    for condition in conditions_of("flux"):
        with l2c.enable_cache(pipe, schedule) as cache:
            pipe(**{**tiny_call("flux"), **condition})
            sigmas = pipe.scheduler.sigmas[1:-1].double()
            levels.append(((1 - sigmas) / sigmas).log())
            mus.append(cache.clock.mu)
    assert mus[1] - mus[0] > 1e-3
    shift = torch.full_like(levels[0], mus[0] - mus[1])
    torch.testing.assert_close(levels[1] - levels[0], shift, atol=1e-4, rtol=0)


def test_the_shift_of_qwen_image_whose_last_level_stays_is_recognised():
    pipe, call = tiny_pipeline("qwen"), call_of("qwen", without=())
    schedule = tiny_interval(pipe, "qwen")
    host = l2c.host_of(pipe, **{**call, "height": 1024, "width": 1024})
    moved = [b - a for a, b in zip(schedule.contract.run.log_snrs, host.run.log_snrs, strict=True)]
    assert moved[1] < -0.4
    assert abs(moved[-1]) < 1e-3  # not all of them alike
    assert schedule.contract.shift(host.run) == moved[1]
    told = notes_of(pipe, schedule, **{**tiny_call("qwen"), "height": 1024, "width": 1024})
    assert any(f"shifted by {moved[1]:.2f} in half log-SNR" in note for note in told)
    run = schedule.contract.run
    levels = list(run.log_snrs)
    levels[2] += 0.5  # another spacing, with the same last level
    other = replace(
        run, log_snrs=tuple(levels), timesteps=tuple(t + 30 * (i == 2) for i, t in enumerate(run.timesteps))
    )
    with pytest.raises(ContractError, match="evaluation 2 is at timestep"):
        schedule.contract.check_run(other)


def test_what_is_filled_up_with_zeros_is_as_far_off():
    draws = torch.Generator().manual_seed(0)
    made, target = torch.randn(2, 3, 4, 4, 4, generator=draws)
    plain = errors(made, target, "relative")
    torch.testing.assert_close(errors(filled_up(made, 80), filled_up(target, 80), "relative"), plain)
    torch.testing.assert_close(errors(made, filled_up(target, 80), "relative"), plain)
    with pytest.raises(ConfigError, match="64 elements was made where 60 were expected"):
        filled_up(made, 60)


def test_sizes_take_turns_and_held_out_prompts_are_unseen_at_every_size():
    conditions = [{"prompt": prompt, "height": size} for size in (16, 32, 64) for prompt in "abcd"]
    chosen = choose(conditions, 24, held_out=6)
    for part in (chosen[:6], chosen[6:]):
        counts = [sum(one["height"] == size for one in part) for size in (16, 32, 64)]
        assert len(set(counts)) == 1
    assert {one["prompt"] for one in chosen[:6]} == {"a", "b"}
    assert {one["prompt"] for one in chosen[6:]} == {"c", "d"}


def test_sizes_that_make_other_runs_are_refused():
    pipe = tiny_pipeline("pixart")
    conditions = [
        {**one, "num_inference_steps": steps}
        for one, steps in zip(conditions_of("pixart"), (6, 8), strict=True)
    ]
    call = call_of("pixart", without=(*SIZED, "num_inference_steps"))
    with pytest.raises(
        ConfigError, match=r"height 32, width 16 is another .* covers 6 evaluations .* makes 8"
    ):
        l2c.learn(pipe, conditions=conditions, budget=0.6, settings=QUICK, **call)


def test_pictures_whose_size_no_condition_tells_are_refused():
    with pytest.raises(
        ConfigError, match="of one size, got latents of 4x8x8 and of 4x16x16; give height and width"
    ):
        of_one_size([torch.zeros(1, 4, side, side) for side in (8, 16)])
    with pytest.raises(ConfigError, match="pictures of one size are compared"):
        PipelineChoice("tiny:pixart", conditions=tuple(conditions_of("pixart")))


def test_learning_over_several_sizes_goes_on_from_its_checkpoint(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(progress):
        if (progress.stage, progress.iteration) == ("fine-step solutions", 3):
            raise StoppedError

    pipe = tiny_pipeline("pixart")
    session = l2c.Session(checkpoint=tmp_path / "learning.pt", save_every_s=0)
    how = {"conditions": conditions_of("pixart"), "budget": 0.6, "settings": QUICK, **call_of("pixart")}
    with pytest.raises(StoppedError):
        l2c.learn(pipe, session=session, on_progress=stop, **how)
    resumed, whole = l2c.learn(pipe, session=session, **how), l2c.learn(pipe, **how)
    assert torch.equal(resumed.compute, whole.compute)
    torch.testing.assert_close(resumed.predictor.coefficients, whole.predictor.coefficients)


def test_learning_over_several_sizes_is_estimated():
    pipe, call = tiny_pipeline("sd3"), call_of("sd3")
    conditions = [{"height": side, "width": side} for side in (16, 32)]
    estimate = l2c.estimate_learning(pipe, conditions=conditions, evaluations=3, settings=QUICK, **call)
    assert math.isfinite(estimate.total_minutes)
    alone = l2c.estimate_learning(pipe, evaluations=3, settings=QUICK, **conditions[0], **call)
    assert list(estimate.minutes) == list(alone.minutes)  # with the fit of solvers


def test_a_pattern_whose_error_was_never_measured_tells_the_shape_alone():
    pipe = tiny_pipeline("sd3")
    schedule = tiny_interval(pipe, "sd3")
    (note,) = notes_of(pipe, schedule, **{**tiny_call("sd3"), "height": 8})
    assert "made for samples of 4x8x8 and the run has 4x4x8" in note
