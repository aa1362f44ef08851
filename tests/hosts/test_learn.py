"""Schedules for budgets, learned through a pipeline's own run."""

import subprocess
import sys
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import PixArtAlphaPipeline

import l2c
from l2c import LearnSettings
from l2c.errors import ConfigError, NumericsError
from l2c.hosts.base import errors
from l2c.hosts.pipeline.conditions import choose
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.learning.mask_search import FINALISTS
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline, tiny_run

PROMPTS = ["a photo of a cat", "a painting of the green house", "a bird and a boat"]
SETTINGS = LearnSettings(
    iterations=8,
    batch_size=1,
    num_examples=4,
    trials=4,
    trial_examples=1,
    learning_rate=2e-2,
    reference_steps=None,
)


def call_of(name, **changes):
    return {
        key: value
        for key, value in tiny_call(name, **changes).items()
        if key not in ("generator", "prompt", "class_labels", "output_type")
    }


def held_out_seeds(pipe):
    """Of the examples that told `learned` how good it is."""
    host = l2c.host_of(pipe, prompts=PROMPTS, **call_of("pixart"))
    examples = host.examples(SETTINGS.num_examples, SETTINGS.seed, "pictures", held_out=SETTINGS.num_held_out)
    return examples.seeds[: SETTINGS.num_held_out]


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
        ["fine-step solutions"] * 4
        + ["fine-step solutions for validation"]
        + ["judging masks"] * (SETTINGS.trials - 1)
        + ["judging masks by more pictures"] * min(FINALISTS, SETTINGS.trials)
        + ["learning"] * SETTINGS.iterations
    )


def test_the_error_is_that_of_the_enabled_pipeline(learned, pixart):
    schedule, _ = learned
    drift = l2c.check(pixart, schedule, seeds=held_out_seeds(pixart), prompt=PROMPTS[0], **call_of("pixart"))
    assert drift.recorded == pytest.approx(drift.error, abs=1e-5)
    assert (drift.unit, drift.worst) == ("relative", drift.error)
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
    assert made["conditions"] == len(PROMPTS)
    assert made["error_unit"] == "relative"
    assert len(schedule.contract.fingerprint) == len(schedule.layers)


def test_held_out_runs_have_prompts_that_nothing_is_learned_on():
    for count, unseen in ((1, 0), (2, 1), (3, 1), (4, 2), (9, 2)):
        chosen = choose([{"prompt": str(index)} for index in range(count)], 8, held_out=2)
        prompts = [condition["prompt"] for condition in chosen]
        assert len(prompts) == 8
        if unseen:
            assert len(set(prompts[:2])) == unseen
            assert not set(prompts[:2]) & set(prompts[2:])


def test_every_example_has_noise_of_its_own(pixart):
    host = l2c.host_of(pixart, prompts=PROMPTS, **call_of("pixart"))
    examples, again = (host.examples(8, 3, "pictures", held_out=2) for _ in range(2))
    assert examples == again
    assert len(set(examples.seeds)) == 8
    assert host.examples(8, 4, "pictures", held_out=2).seeds != examples.seeds


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
    for stage, at in (("fine-step solutions", 2), ("judging masks", 2), ("learning", 5)):

        def stop(progress, stage=stage, at=at):
            done.append((progress.stage, progress.iteration))
            if done[-1] == (stage, at):
                raise StoppedError

        with pytest.raises(StoppedError):
            l2c.learn(pixart, on_progress=stop, **call)
    assert [at for stage, at in done if stage == "fine-step solutions"] == [1, 2, 3, 4]
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
    schedule = l2c.learn(pipe, conditions=conditions, budget=0.6, settings=SETTINGS, **call)
    made = schedule.provenance
    assert made["held_out_error"] < made["held_out_error_before"]
    assert l2c.check(pipe, schedule, class_labels=[1], **call).unit == made["error_unit"] == "relative"
    assert torch.equal(tiny_run(pipe, "dit"), bare)
    with l2c.enable_cache(pipe, schedule):
        assert not torch.equal(tiny_run(pipe, "dit"), bare)


def test_a_fine_step_solution_can_be_what_to_come_close_to(learned, pixart):
    own, settings = pixart.scheduler, replace(SETTINGS, reference_steps=12)
    schedule = l2c.learn(pixart, prompts=PROMPTS, settings=settings, **call_of("pixart"))
    made = schedule.provenance
    assert pixart.scheduler is own
    drift = l2c.check(pixart, schedule, seeds=held_out_seeds(pixart), prompt=PROMPTS[0], **call_of("pixart"))
    assert drift.error == pytest.approx(made["held_out_error"], abs=1e-5)  # `check` makes it again
    assert made["held_out_error"] < made["held_out_error_before"]
    assert len(schedule.compute) == 6
    refined = l2c.repair(pixart, learned[0], prompts=PROMPTS, settings=settings, **call_of("pixart"))
    assert refined.provenance["held_out_error"] != learned[0].provenance["held_out_error"]
    assert made["held_out_error"] > learned[0].provenance["held_out_error"]


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "qwen", "sana"])
def test_the_fine_step_solution_converges_to_what_more_steps_of_the_own_scheduler_make(name):
    pipe = tiny_pipeline(name)
    host = l2c.host_of(pipe, **call_of(name))
    examples = host.seeded([0])
    with torch.no_grad():
        target = host.with_steps(200).sample(examples)
        far, near = (
            errors(host.reference(steps).sample(examples), target, host.unit).item() for steps in (6, 40)
        )
        own = errors(host.sample(examples), target, host.unit).item()
    assert near < 0.5 * own
    assert near < far


def test_a_scheduler_that_draws_noise_is_its_own_reference(pixart):
    pixart.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    host = l2c.host_of(pixart, prompt=PROMPTS[0], **call_of("pixart"))
    assert host.reference(40) is host
    with pytest.raises(ConfigError, match="EulerAncestralDiscreteScheduler draws noise in its steps"):
        host.solver_starts(6)
    pixart.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ConfigError, match="clips nothing, not of DDIMScheduler with clip_sample"):
        l2c.host_of(pixart, prompt=PROMPTS[0], **call_of("pixart")).solver_starts(6)


class FixedPipeline(PixArtAlphaPipeline):
    """One that is not told a number of steps."""

    def __call__(self, prompt, output_type="latent", generator=None, return_dict=True):
        call = {**call_of("pixart"), "output_type": output_type, "return_dict": return_dict}
        return super().__call__(prompt, generator=generator, **call)


def test_another_number_of_steps_needs_an_argument_for_it(pixart):
    host = l2c.host_of(FixedPipeline(**pixart.components), prompt=PROMPTS[0])
    with pytest.raises(ConfigError, match="FixedPipeline is called without num_inference_steps"):
        host.with_steps(3)
    with pytest.raises(ConfigError, match="FixedPipeline is called without num_inference_steps"):
        host.solver_starts(3)
    assert host.reference(40) is host


def test_a_model_is_learned_for_as_before():
    settings = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)
    schedule = l2c.learn(tiny_dit(), solver="dpmsolver++", steps=8, budget=0.5, settings=settings)
    assert isinstance(schedule, CacheSchedule)
    assert schedule.cost.fraction <= 0.5


def test_learning_for_a_budget_refuses_what_it_cannot_do(pixart, wan22, tmp_path):
    call = call_of("pixart")
    with pytest.raises(ConfigError, match="either prompts or conditions"):
        l2c.learn(pixart, prompts=PROMPTS, conditions=[{}], **call)
    with pytest.raises(ConfigError, match="PixArtAlphaPipeline refuses the call"):
        l2c.learn(pixart, **call)
    with pytest.raises(ConfigError, match="takes no argument 'promt'; did you mean prompt"):
        l2c.learn(pixart, promt="a cat", **call)
    with pytest.raises(ConfigError, match="steps has no meaning with solver='auto'"):
        l2c.learn(pixart, steps=6, solver="auto", evaluations=3, prompts=PROMPTS)
    with pytest.raises(ConfigError, match="takes no argument 'steps'"):
        l2c.learn(pixart, steps=6, prompts=PROMPTS)
    with pytest.raises(ConfigError, match="at least one prompt or label"):
        l2c.learn(pixart, prompts=[], **call)
    with pytest.raises(ConfigError, match="is no text file with prompts"):
        l2c.learn(pixart, prompts=str(tmp_path / "none.txt"), **call)
    with pytest.raises(ConfigError, match="budgets are fractions of the MACs"):
        l2c.learn(pixart, prompts=PROMPTS, budget=7, **call)
    with pytest.raises(ConfigError, match="cannot be met"):
        l2c.learn(pixart, prompts=PROMPTS, budget=0.01, **call)
    with pytest.raises(ConfigError, match="computes everything"):
        l2c.learn(pixart, prompts=PROMPTS, budget=1, **call)
    with pytest.raises(
        ConfigError, match="each of the 2 models that share the run has to compute every layer"
    ):
        l2c.learn(wan22, budget=0.45, **call_of("wan2.2"))
    with pytest.raises(ConfigError, match="time is up after 1 of 4 fine-step solutions"):
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

    few = replace(SETTINGS, iterations=1, trials=2)
    call = {"prompts": PROMPTS, "settings": few, **call_of("pixart")}
    kept = [l2c.learn(pixart, **call)]
    before = tensors()
    kept[0] = l2c.learn(pixart, **call)
    assert tensors() == before
