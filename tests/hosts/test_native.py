"""The trained embedded weights in a class-conditional pipeline do what the native sampler does."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import l2c
from l2c import LearnSettings
from l2c.models.conversion import to_diffusers
from l2c.sampling import seeded_noise
from l2c.testing.class_pipeline import ClassPipeline

SHIPPED = "dit-mini-cifar10-ddim-20"
LABELS, STEPS = [3], 20
SETTINGS = LearnSettings(
    iterations=3,
    batch_size=1,
    num_examples=4,
    trials=4,
    trial_examples=1,
    learning_rate=1e-2,
    reference_steps=None,
)


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
        with pytest.warns(UserWarning, match="made for ddim .* but the run uses DPMSolverMultistepScheduler"):
            made = pipe(LABELS, latents=noise, **call())[0]
        seen = cache.summary().models["transformer"]
    torch.testing.assert_close(made.clamp(-1, 1), native, atol=2e-3, rtol=0)
    assert seen.fraction == pytest.approx(schedule.cost.fraction, rel=1e-2)  # its blocks embed anew


def test_a_finely_solved_pipeline_makes_what_native_learning_comes_close_to(pipe, dit):
    noise, own = seeded_noise(LABELS, (3, 32, 32)), pipe.scheduler
    host = l2c.host_of(pipe, num_inference_steps=4, class_labels=LABELS, latents=noise)
    with torch.no_grad():
        made = host.reference(5).sample(host.seeded([0]))
    native = l2c.sample(dit, LABELS, noise=noise, solver="dpmsolver++3", spacing="logsnr", steps=5)
    torch.testing.assert_close(made.clamp(-1, 1), native, atol=2e-3, rtol=0)
    assert pipe.scheduler is own


@pytest.mark.slow
def test_learning_on_the_trained_weights_lowers_the_error(pipe):
    conditions = [{"class_labels": [label]} for label in (0, 3)]
    schedule = l2c.methods.interval(pipe, class_labels=[1], every=2, predictor="copy", **call(4))
    learned = l2c.repair(pipe, schedule, conditions=conditions, settings=SETTINGS, **call(4))
    copying = l2c.check(pipe, schedule, seeds=[0], class_labels=[0], **call(4)).error
    made = learned.provenance
    assert made["held_out_error"] < made["held_out_error_before"]
    assert made["held_out_error"] < copying


@pytest.mark.slow
def test_a_schedule_learned_for_a_budget_is_better_than_an_interval_of_that_cost(pipe):
    conditions = [{"class_labels": [label]} for label in (0, 3)]
    learned = l2c.learn(pipe, conditions=conditions, budget=0.5, settings=SETTINGS, **call(6))
    made = learned.provenance
    assert learned.cost.fraction <= 0.5
    assert made["held_out_error"] < made["held_out_error_before"]
    regular = l2c.methods.interval(pipe, class_labels=[1], every=2, predictor="taylor", **call(6))
    assert regular.cost.fraction >= learned.cost.fraction
    assert made["held_out_error"] < l2c.check(pipe, regular, seeds=[0], class_labels=[0], **call(6)).error
