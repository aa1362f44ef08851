"""The text-to-image pipeline that comes with l2c, by its name wherever a pipeline's folder may stand."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

import l2c
from l2c.compare.config import CompareConfig, to_plain
from l2c.errors import CheckpointError
from l2c.hosts.pipeline import loading, rivals
from l2c.hosts.pipeline.host import PipelineHost
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.references import solve
from l2c.learning.trainer import Trainer
from l2c.scenes import CALL, PIPELINE, adherence, parse_prompt, scene_prompts, summarise_adherence
from l2c.testing import tiny_pipeline

trained = pytest.mark.skipif(
    not (loading.ASSETS / "scenes-sd3" / loading.PIPELINE_FILE).is_file(),
    reason="the weights of l2c:scenes-sd3 are not in this checkout",
)


@trained
@pytest.mark.slow
def test_trained_pipeline_draws_what_prompts_say():
    pipe, prompts = l2c.load_pipeline(PIPELINE, quiet=True), scene_prompts(8, held_out=True)
    noise = [torch.Generator().manual_seed(index) for index in range(8)]
    pictures = pipe(prompts, generator=noise, output_type="pt", **CALL).images.float()
    right = summarise_adherence(adherence(pictures, prompts))
    assert right["background"] > 0.9
    assert right["colour"] > 0.7
    assert right["shape"] > 0.4


@trained
def test_folder_is_as_small_as_it_is_said_to_be():
    folder = loading.pipeline_folder(PIPELINE)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6


def test_name_loads_the_folder_and_its_call_fits(scenes_pipeline):
    pipe = l2c.load_target(PIPELINE, quiet=True)
    assert pipe.text_encoder_3 is None
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    (prompt,) = scene_prompts(1)
    picture = pipe(prompt, output_type="pt", **{**CALL, "num_inference_steps": 2}).images
    assert picture.shape == (1, 3, 64, 64)
    host = l2c.host_of(pipe, prompts=[prompt], **CALL)
    assert host.run.steps == 28
    assert host.run.guidance == 4.5


def test_pipeline_saved_without_text_encoders_loads(tmp_path):
    tiny_pipeline("sd3").save_pretrained(tmp_path / "pipe")
    assert l2c.load_pipeline(tmp_path / "pipe", quiet=True).text_encoder is None


def test_what_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(
        CheckpointError, match="unknown pipeline of l2c 'l2c:scene'; did you mean 'l2c:scenes-sd3'"
    ):
        l2c.load_target("l2c:scene")
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="no weights of l2c:scenes-sd3; install l2c again, or train"):
        l2c.load_pipeline(PIPELINE)


def test_prompts_to_judge_by_have_combinations_of_their_own():
    learned, judged = scene_prompts(64), scene_prompts(64, held_out=True)
    assert len(set(learned)) == len(set(judged)) == 64
    assert judged[:8] == scene_prompts(8, held_out=True)
    assert not any(parse_prompt(prompt).held_out for prompt in learned)
    assert all(parse_prompt(prompt).held_out for prompt in judged)


def test_comparison_takes_its_call_and_both_kinds_of_prompts():
    config = CompareConfig.from_plain(
        {"model": {"pipeline": PIPELINE, "call": {"guidance_scale": 3.0}}, "base": [{"steps": 28}]}
    )
    chosen = config.pipeline
    assert chosen.call == {"guidance_scale": 3.0, "height": 64, "width": 64, "max_sequence_length": 0}
    assert chosen.prompts == tuple(scene_prompts(64, held_out=True))
    assert chosen.learning_prompts == tuple(scene_prompts(64))
    assert CompareConfig.from_plain(to_plain(config)) == config


def test_learned_solver_begins_without_an_evaluation_next_to_the_picture(scenes_pipeline):
    host = l2c.host_of(l2c.load_pipeline(PIPELINE, quiet=True), prompts=scene_prompts(2), **CALL)
    plain, start = host.with_steps(8).run, host.solver_starts(8)[0].run
    assert plain.timesteps[-1] == pytest.approx(1)
    assert len(start.timesteps) == 8
    assert start.timesteps == pytest.approx([1000 - index * 999 / 8 for index in range(8)], rel=1e-3)
    half = host.solver_starts(8)[len(rivals.START_SHIFTS)].run  # every second one of 15 steps
    assert half.timesteps == pytest.approx([1000 - 2 * index * 999 / 15 for index in range(8)], rel=1e-3)


def test_learned_solver_begins_at_the_shift_that_makes_the_best_pictures(scenes_pipeline, monkeypatch):
    host = l2c.host_of(l2c.load_pipeline(PIPELINE, quiet=True), prompts=scene_prompts(2), **CALL)
    starts = host.solver_starts(4)
    levels = [torch.tensor(start.run.log_snrs, dtype=torch.float64) for start in starts]
    count = len(rivals.START_SHIFTS)
    for alike, shifts in ((levels[:count], rivals.START_SHIFTS), (levels[count:], rivals.HALF_SHIFTS)):
        for shift, found in zip(shifts, alike, strict=True):
            assert found[0] == levels[0][0]
            torch.testing.assert_close(found[1:], alike[0][1:] - math.log(shift), rtol=0, atol=1e-6)
    settings = l2c.LearnSettings(
        iterations=1,
        batch_size=1,
        num_examples=4,
        reference_steps=12,
        trials=1,
        trial_examples=2,
        learning_rate=1e-7,
        level_trials=0,
    )
    trainer = Trainer("schedule and solver", host, settings)
    own = ClosedLoop(trainer, host, solve(trainer, host, settings, fit_solver=True), settings, "")
    everything = torch.ones(4, len(host.table), dtype=torch.bool)
    loops = [own.on(start) for start in starts]
    found = [loop.trial_error(loop.student(everything, solver=True)) for loop in loops]
    best = starts[found.index(min(found))].run.log_snrs
    for order in (starts, starts[::-1]):
        monkeypatch.setattr(PipelineHost, "solver_starts", lambda *_, order=order: order)
        learned = l2c.learn(host, solver="auto", evaluations=4, per_computed=1, settings=settings)
        assert learned.contract.run.log_snrs == pytest.approx(best, abs=1e-4)


def test_family_of_learned_solvers_serves_the_pipeline(scenes_pipeline):
    pipe = l2c.load_pipeline(PIPELINE, quiet=True)
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1)
    family = l2c.learn(
        pipe, prompts=scene_prompts(4), solver="auto", budgets=(2, 3), per_computed=1, settings=quick, **CALL
    )
    own = pipe.scheduler
    for budget in (2, 3):
        with l2c.enable_cache(pipe, family, budget=budget):
            pipe(scene_prompts(1), output_type="latent", **CALL)
            assert len(pipe.scheduler.timesteps) == budget
    assert pipe.scheduler is own
