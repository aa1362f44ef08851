"""One budget and one schedule for the two transformers of Wan 2.2, which take over from each other."""

import json
from dataclasses import replace

import pytest
import torch

import l2c
from l2c import LearnSettings
from l2c.errors import ConfigError, ContractError
from l2c.hosts.pipeline.dry_run import DryRun, dry_run
from l2c.learning.coefficients import Coefficients
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline, tiny_run

STEPS, BEGINS = 8, 2
SETTINGS = LearnSettings(
    iterations=6,
    batch_size=1,
    num_examples=4,
    trials=5,
    trial_examples=1,
    reference_steps=None,
    validate_every=0,
)
CALL = {k: v for k, v in tiny_call("wan2.2", STEPS).items() if k not in ("generator", "output_type")}


def sample(pipe):
    return tiny_run(pipe, "wan2.2", steps=STEPS)


@pytest.fixture(scope="module")
def learned():
    pipe = tiny_pipeline("wan2.2")
    weights = [p.clone() for m in (pipe.transformer, pipe.transformer_2) for p in m.parameters()]
    schedule = l2c.learn(pipe, budget=0.6, settings=SETTINGS, **CALL)
    after = [p for m in (pipe.transformer, pipe.transformer_2) for p in m.parameters()]
    assert all(torch.equal(*pair) for pair in zip(weights, after, strict=True))
    return schedule


def test_one_budget_is_met_by_both_together_and_each_begins_anew(learned, wan22):
    assert 0.5 < learned.cost.fraction <= 0.6
    assert learned.compute[[0, BEGINS]].all()
    assert learned.provenance["transformers_begin"] == {"transformer": 0, "transformer_2": BEGINS}
    assert all(
        (source < BEGINS) == (evaluation < BEGINS)
        for (evaluation, _), terms in learned.plan.items()
        for source, _ in terms
    )
    with l2c.enable_cache(wan22, learned) as cache:
        sample(wan22)
        models = cache.summary().models
    assert [model.unplanned for model in models.values()] == [0, 0]
    assert [model.evaluations for model in models.values()] == [BEGINS, STEPS - BEGINS]
    share = sum(m.fraction * m.evaluations for m in models.values()) / STEPS
    assert share == pytest.approx(learned.cost.fraction)


def test_learning_lowers_the_loss_and_moves_the_forecasts_of_both(learned, wan22):
    before = replace(learned, predictor=Predictor("taylor", 2))
    start = Coefficients(
        learned.compute, learned.contract.run.log_snrs, 3, torch.device("cpu"), begins=(0, BEGINS)
    )
    moved = (learned.predictor.coefficients - start.predictor().coefficients).abs() > 0
    assert moved[:BEGINS].any()
    assert moved[BEGINS:].any()
    losses = []
    l2c.repair(
        wan22, before, settings=SETTINGS, on_progress=lambda report: losses.append(report.loss), **CALL
    )
    first, last = losses[4:7], losses[7:]  # after four references: twice the same three examples
    assert sum(last) < sum(first)


def test_the_file_samples_the_same_elsewhere_and_disabling_restores(learned, wan22, tmp_path):
    path, bare = tmp_path / "schedule.safetensors", sample(wan22)
    learned.save(path)
    with l2c.enable_cache(wan22, CacheSchedule.load(path)):
        here = sample(wan22)
    other = tiny_pipeline("wan2.2")
    with l2c.enable_cache(other, CacheSchedule.load(path)):
        assert torch.equal(sample(other), here)
    assert not torch.equal(here, bare)
    assert torch.equal(sample(wan22), bare)
    held_out = l2c.host_of(wan22, **CALL).examples(SETTINGS.num_examples, SETTINGS.seed, "pictures").seeds[:1]
    drift = l2c.check(wan22, CacheSchedule.load(path), seeds=held_out, **CALL)
    assert drift.error == pytest.approx(drift.recorded, abs=1e-5)
    json.dumps(learned.summary())


def test_other_weights_of_either_are_refused(learned, wan22):
    with torch.no_grad():
        wan22.transformer_2.blocks[0].ffn.net[2].weight.normal_()
    with pytest.raises(ContractError, match="1 of 6 layers differ"):
        l2c.enable_cache(wan22, learned)


def test_forecasts_alone_are_learned_for_both(wan22):
    interval = tiny_interval(wan22, "wan2.2", every=3, num_inference_steps=STEPS)
    assert not interval.compute[BEGINS].any()
    schedule = l2c.repair(wan22, interval, settings=SETTINGS, **CALL)
    assert schedule.compute[BEGINS].all()
    with l2c.enable_cache(wan22, schedule) as cache:
        sample(wan22)
        assert cache.summary().models["transformer_2"].unplanned == 0
    again = l2c.repair(wan22, schedule, settings=SETTINGS, **CALL)
    assert torch.equal(again.compute, schedule.compute)
    assert again.provenance["held_out_error_before"] == pytest.approx(
        schedule.provenance["held_out_error"], abs=2e-5
    )


def test_transformers_that_differ_or_take_turns_are_refused(wan22):
    found = dry_run(wan22, **CALL)
    assert (found.order, found.begins) == (["transformer", "transformer_2"], (0, BEGINS))
    turns = DryRun(found.run, found.tables, {"a": [0, 2], "b": [1, 3]}, {}, {})
    with pytest.raises(ConfigError, match="are called in turns"):
        _ = turns.begins
    tables = {**found.tables, "transformer": dry_run(tiny_pipeline("flux"), **_flux()).table}
    with pytest.raises(ConfigError, match="have different layers"):
        _ = DryRun(found.run, tables, found.evaluations, {}, {}).table


def _flux():
    return {k: v for k, v in tiny_call("flux").items() if k != "generator"}
