"""The trained embedded weights in a class-conditional pipeline do what the native sampler does."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import l2c
from l2c import pipelines
from l2c.models.conversion import to_diffusers
from l2c.pipelines.fit import FitSettings
from l2c.sampling import seeded_noise

SHIPPED = "dit-mini-cifar10-ddim-20"
LABELS, STEPS = [3], 20


class ClassPipeline(diffusers.DiffusionPipeline):
    """Class labels to pictures in pixel space, guided in one batch."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, class_labels, timesteps, generator=None, latents=None, guidance_scale=1.5, output_type="latent",
        return_dict=True,
    ):  # fmt: skip
        assert output_type == "latent"
        config = self.transformer.config
        labels = torch.tensor([*class_labels, *[config.num_embeds_ada_norm] * len(class_labels)])
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        x = torch.randn(shape, generator=generator) if latents is None else latents
        self.scheduler.set_timesteps(timesteps=timesteps)
        self.scheduler.set_begin_index(0)
        for t in self.progress_bar(self.scheduler.timesteps):
            both = self.scheduler.scale_model_input(torch.cat([x, x]), t)
            noise = self.transformer(both, timestep=t.expand(len(both)), class_labels=labels).sample
            cond, uncond = noise[:, : x.shape[1]].chunk(2)
            x = self.scheduler.step(uncond + guidance_scale * (cond - uncond), t, x).prev_sample
        return (x,)


@pytest.fixture(scope="module")
def pipe(dit):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=1, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )
    pipe = ClassPipeline(to_diffusers(dit).eval().requires_grad_(False), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(steps=STEPS):
    return {"timesteps": [int(t) for t in np.linspace(0, 999, steps).round()[::-1]]}


@pytest.mark.slow
def test_a_shipped_schedule_makes_the_same_pictures_in_a_pipeline(pipe, dit):
    schedule = l2c.ScheduleFamily.load(SHIPPED).at(0.5)
    noise = seeded_noise([0], (3, 32, 32))
    with torch.no_grad():
        native = l2c.sample(dit, LABELS, noise=noise, steps=STEPS, schedule=schedule)
    with l2c.enable_cache(pipe, schedule, any_run=True) as cache:
        with pytest.warns(
            UserWarning, match="made for ddim .* but the pipeline has DPMSolverMultistepScheduler"
        ):
            made = pipe(LABELS, latents=noise, **call())[0]
        seen = cache.summary().models["transformer"]
    torch.testing.assert_close(made.clamp(-1, 1), native, atol=2e-3, rtol=0)
    assert seen.fraction == pytest.approx(schedule.cost.fraction, rel=1e-2)  # its blocks embed anew


@pytest.mark.slow
def test_learning_on_the_trained_weights_lowers_the_error(pipe):
    conditions = [{"class_labels": [label]} for label in (0, 3)]
    schedule = pipelines.interval(pipe, class_labels=[1], every=2, predictor="copy", **call(4))
    settings = FitSettings(iterations=3, num_runs=2, num_held_out=1, learning_rate=1e-2)
    learned = pipelines.fit_predictor(pipe, schedule, conditions, settings=settings, **call(4))
    copying = l2c.check(pipe, schedule, seeds=[0], class_labels=[0], **call(4)).error
    made = learned.provenance
    assert made["held_out_error"] < made["held_out_error_before"]
    assert made["held_out_error"] < copying


@pytest.mark.slow
def test_a_schedule_learned_for_a_budget_is_better_than_an_interval_of_that_cost(pipe):
    conditions = [{"class_labels": [label]} for label in (0, 3)]
    settings = FitSettings(
        iterations=3, num_runs=2, num_held_out=1, trials=4, trial_runs=1, learning_rate=1e-2
    )
    learned = l2c.learn(pipe, conditions, budget=0.5, settings=settings, **call(6))
    made = learned.provenance
    assert learned.cost.fraction <= 0.5
    assert made["held_out_error"] < made["held_out_error_before"]
    regular = pipelines.interval(pipe, class_labels=[1], every=2, predictor="taylor", **call(6))
    assert regular.cost.fraction >= learned.cost.fraction
    assert made["held_out_error"] < l2c.check(pipe, regular, seeds=[0], class_labels=[0], **call(6)).error
