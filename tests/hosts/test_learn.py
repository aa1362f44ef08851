"""Schedules for budgets, learned through a pipeline's own run."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import PixArtAlphaPipeline

import l2c
from l2c.errors import ConfigError, NumericsError
from l2c.hosts.pipeline.conditions import Draw
from l2c.hosts.pipeline.settings import FitSettings
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline, tiny_run

PROMPTS = ["a photo of a cat", "a painting of the green house", "a bird and a boat"]
SETTINGS = FitSettings(iterations=8, num_runs=2, num_held_out=1, trials=4, trial_runs=1, learning_rate=2e-2)


def call_of(name, **changes):
    return {
        key: value
        for key, value in tiny_call(name, **changes).items()
        if key not in ("generator", "prompt", "class_labels", "output_type")
    }


@pytest.fixture(scope="module")
def learned():
    """A schedule for the tiny PixArt at half of the MACs, and what was reported while it was learned."""
    pipe, reports = tiny_pipeline("pixart"), []
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    schedule = l2c.learn(
        pipe, prompts=PROMPTS, budget=0.5, settings=SETTINGS, on_progress=reports.append, **call_of("pixart")
    )
    assert all(torch.equal(value, before[key]) for key, value in pipe.transformer.state_dict().items())
    assert not [name for name in ("encode_prompt", "progress_bar", "_l2c_cache") if name in vars(pipe)]
    return schedule, reports


def test_a_learned_schedule_meets_its_budget_and_is_better_than_before(learned):
    schedule, reports = learned
    made = schedule.provenance
    assert schedule.cost.fraction == pytest.approx(made["budget_cost"])
    smallest = min(layer.macs for layer in schedule.layers.layers) / schedule.cost.full_macs
    assert 0.5 - smallest <= schedule.cost.fraction <= 0.5
    assert made["held_out_error"] < made["held_out_error_before"]
    assert [report.stage for report in reports] == (
        ["uncached runs"] * 3 + ["judging masks"] * (SETTINGS.trials - 1) + ["learning"] * SETTINGS.iterations
    )


def test_the_error_is_that_of_the_enabled_pipeline(learned, pixart):
    schedule, _ = learned
    drift = l2c.check(pixart, schedule, seeds=[0], prompt=PROMPTS[0], **call_of("pixart"))
    assert drift.reference == pytest.approx(drift.error, rel=1e-3)
    assert drift.fraction == pytest.approx(schedule.cost.fraction)


def test_disabling_restores_the_pipeline(learned, pixart):
    bare = tiny_run(pixart, "pixart")
    with l2c.enable_cache(pixart, learned[0]):
        assert not torch.equal(tiny_run(pixart, "pixart"), bare)
    assert torch.equal(tiny_run(pixart, "pixart"), bare)


SAMPLE = """
import sys, torch, l2c
from l2c.testing import tiny_pipeline, tiny_run
pipe = tiny_pipeline("pixart")
with l2c.enable_cache(pipe, l2c.CacheSchedule.load(sys.argv[1])):
    torch.save(tiny_run(pipe, "pixart"), sys.argv[2])
"""


def test_a_saved_schedule_samples_the_same_in_another_process(learned, pixart, tmp_path):
    path, out = tmp_path / "schedule.safetensors", tmp_path / "latents.pt"
    learned[0].save(path)
    with l2c.enable_cache(pixart, learned[0]):
        here = tiny_run(pixart, "pixart")
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAMPLE, path, out], check=True)
    assert torch.equal(torch.load(out), here)


def test_a_schedule_says_what_it_holds_for(learned):
    schedule, _ = learned
    run, made = schedule.contract.run, schedule.provenance
    assert (run.solver, run.steps, run.guidance) == ("DPMSolverMultistepScheduler", 6, 3.0)
    assert made["pipeline"] == "PixArtAlphaPipeline"
    assert made["resolution"] == {"height": 16, "width": 16}
    assert schedule.layers.sample_shape == (4, 8, 8)
    assert made["held_out_conditions"] == 1
    assert len(schedule.contract.fingerprint) == len(schedule.layers)


def test_held_out_runs_have_prompts_that_nothing_is_learned_on():
    settings = FitSettings(num_runs=6, num_held_out=2, seed=3)
    for count, unseen in ((1, 0), (2, 1), (3, 1), (4, 2), (9, 2)):
        draw = Draw.of([{"prompt": str(index)} for index in range(count)], settings)
        assert draw.unseen == unseen
        prompts, seeds = [run[0]["prompt"] for run in draw.runs], [run[1] for run in draw.runs]
        assert seeds == list(range(3, 11))
        if unseen:
            assert not set(prompts[:2]) & set(prompts[2:])


def test_prompts_may_be_a_file(learned, pixart, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    again = l2c.learn(pixart, prompts=path, settings=SETTINGS, **call_of("pixart"))
    assert torch.equal(again.compute, learned[0].compute)
    assert torch.equal(again.predictor.coefficients, learned[0].predictor.coefficients)


class StoppedError(Exception):
    pass


def test_learning_that_was_killed_goes_on_from_its_checkpoint(learned, pixart, tmp_path):
    session = l2c.Session(checkpoint=tmp_path / "learning.pt", save_every_s=0)
    call = {"prompts": PROMPTS, "settings": SETTINGS, "session": session, **call_of("pixart")}
    done = []
    for stage, at in (("uncached runs", 2), ("judging masks", 2), ("learning", 5)):

        def stop(progress, stage=stage, at=at):
            done.append((progress.stage, progress.iteration))
            if done[-1] == (stage, at):
                raise StoppedError

        with pytest.raises(StoppedError):
            l2c.learn(pixart, on_progress=stop, **call)
    assert [at for stage, at in done if stage == "uncached runs"] == [1, 2, 3]
    assert [at for stage, at in done if stage == "learning"] == [1, 2, 3, 4, 5]
    resumed = l2c.learn(pixart, **call)
    assert torch.equal(resumed.compute, learned[0].compute)
    assert torch.equal(resumed.predictor.coefficients, learned[0].predictor.coefficients)
    assert resumed.provenance == learned[0].provenance
    with pytest.raises(ConfigError, match="conditions was"):
        l2c.learn(pixart, **{**call, "prompts": PROMPTS[:1]})


def test_ctrl_c_ends_learning_with_what_there_is(pixart):
    def interrupt(progress):
        if progress.stage == "learning" and progress.iteration == 2:
            raise KeyboardInterrupt

    schedule = l2c.learn(
        pixart, prompts=PROMPTS, settings=SETTINGS, on_progress=interrupt, **call_of("pixart")
    )
    assert schedule.provenance["interrupted"]
    assert schedule.provenance["iterations"] == 2
    assert schedule.cost.fraction <= 0.5


def test_class_labels_are_conditions_and_a_pipeline_without_latent_output_is_stopped_at_its_decoder():
    pipe, call = tiny_pipeline("dit"), call_of("dit")
    conditions = [{"class_labels": [label]} for label in (1, 7)]
    bare = tiny_run(pipe, "dit")
    latents = PipelineTrajectory(pipe, call).sample({"class_labels": [1]}, seed=0)
    decoded = pipe.vae.decode(latents).sample.detach()
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), bare)
    schedule = l2c.learn(pipe, conditions, budget=0.6, settings=SETTINGS, **call)
    made = schedule.provenance
    assert made["held_out_error"] < made["held_out_error_before"]
    assert "drift" not in made  # `check` will compare pictures
    assert torch.equal(tiny_run(pipe, "dit"), bare)
    with l2c.enable_cache(pipe, schedule):
        assert not torch.equal(tiny_run(pipe, "dit"), bare)


def test_a_finer_run_can_be_what_to_come_close_to(learned, pixart):
    settings = replace(SETTINGS, reference_steps=12)
    schedule = l2c.learn(pixart, prompts=PROMPTS, settings=settings, **call_of("pixart"))
    made = schedule.provenance
    drift = l2c.check(
        pixart, schedule, seeds=[0], prompt=PROMPTS[0], **call_of("pixart")
    )  # with as many steps
    assert drift.error == pytest.approx(made["drift"]["error"], rel=1e-3)
    assert drift.error != pytest.approx(made["held_out_error"], rel=1e-2)
    assert made["held_out_error"] < made["held_out_error_before"]
    assert len(schedule.compute) == 6
    conditions = [{"prompt": prompt} for prompt in PROMPTS]
    refined = l2c.hosts.pipeline.fit_predictor(
        pixart, learned[0], conditions, settings=settings, **call_of("pixart")
    )
    assert refined.provenance["held_out_error"] != learned[0].provenance["held_out_error"]
    assert made["held_out_error"] > learned[0].provenance["held_out_error"]


def test_the_finer_run_can_be_made_by_another_solver(pixart, flux):
    own = pixart.scheduler
    settings = replace(SETTINGS, reference_steps=20, reference_solver="dpmsolver++3", iterations=2)
    learned = l2c.learn(pixart, prompts=PROMPTS, settings=settings, **call_of("pixart"))
    assert learned.provenance["settings"]["reference_solver"] == "dpmsolver++3"
    assert pixart.scheduler is own
    other = PipelineTrajectory(flux, call_of("flux"))
    with pytest.raises(ConfigError, match="not FlowMatchEulerDiscreteScheduler"), other.finely_solved():
        pass
    with pytest.raises(ConfigError, match="needs reference_steps"):
        FitSettings(reference_solver="dpmsolver++3")
    with pytest.raises(ConfigError, match=r"'dpmsolver\+\+3' or None, got 'euler'"):
        FitSettings(reference_solver="euler", reference_steps=20)


class FixedPipeline(PixArtAlphaPipeline):
    """One that is not told a number of steps."""

    def __call__(self, prompt, output_type="latent"):
        return super().__call__(prompt, output_type=output_type)


def test_a_finer_run_needs_a_number_of_steps(pixart):
    with pytest.raises(ConfigError, match="FixedPipeline takes no num_inference_steps"):
        PipelineTrajectory(FixedPipeline(**pixart.components), {}).with_steps(3)


def test_a_model_is_learned_for_as_before():
    settings = l2c.LearnSettings(iterations=1, batch_size=1, num_pictures=4, reference_steps=8, trials=2)
    schedule = l2c.learn(tiny_dit(), "dpmsolver++", 8, budget=0.5, settings=settings)
    assert isinstance(schedule, CacheSchedule)
    assert schedule.cost.fraction <= 0.5


def test_learning_for_a_budget_refuses_what_it_cannot_do(pixart, wan22, tmp_path):
    call = call_of("pixart")
    for wrong in ({}, {"prompts": PROMPTS, "conditions": [{}]}):
        with pytest.raises(ConfigError, match="either prompts or conditions"):
            l2c.learn(pixart, **wrong, **call)
    with pytest.raises(ConfigError, match="at least one prompt or label"):
        l2c.learn(pixart, prompts=[], **call)
    with pytest.raises(ConfigError, match="is no text file with prompts"):
        l2c.learn(pixart, prompts=str(tmp_path / "none.txt"), **call)
    with pytest.raises(ConfigError, match="a fraction of the MACs"):
        l2c.learn(pixart, prompts=PROMPTS, budget=7, **call)
    with pytest.raises(ConfigError, match="cannot be met"):
        l2c.learn(pixart, prompts=PROMPTS, budget=0.01, **call)
    with pytest.raises(ConfigError, match="computes everything"):
        l2c.learn(pixart, prompts=PROMPTS, budget=1, **call)
    with pytest.raises(
        ConfigError, match="each of the 2 models that share the run has to compute every layer"
    ):
        l2c.learn(wan22, [{}], budget=0.45, **call_of("wan2.2"))
    with pytest.raises(ConfigError, match="time is up after 1 of 3 uncached runs"):
        l2c.learn(pixart, prompts=PROMPTS, settings=SETTINGS, session=l2c.Session(time_limit_s=1e-9), **call)
    with torch.no_grad():
        pixart.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        l2c.learn(pixart, prompts=PROMPTS, settings=SETTINGS, **call)
    assert "_l2c_cache" not in vars(pixart)


def test_learning_leaves_nothing_in_memory(pixart):
    import gc

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    few = replace(SETTINGS, iterations=1, num_runs=1, trials=2)
    call = {"prompts": PROMPTS, "settings": few, **call_of("pixart")}
    kept = [l2c.learn(pixart, **call)]
    before = tensors()
    kept[0] = l2c.learn(pixart, **call)
    assert tensors() == before
