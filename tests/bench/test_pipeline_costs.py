"""Costs, profiles and latencies of pipelines: what is measured, what is left out, and learning for milliseconds."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from types import SimpleNamespace

import l2c
from l2c.bench.cost import measure_profile
from l2c.bench.schedules import EVERYTHING
from l2c.errors import ConfigError
from l2c.hosts.targets import host_of
from l2c.schedule.forecast import Predictor
from l2c.testing import tiny_call, tiny_pipeline

CALL = {
    "prompt": "a cat",
    "height": 16,
    "width": 16,
    "use_resolution_binning": False,
    "clean_caption": False,
    "guidance_scale": 3.0,
}
LEARNED = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)


@pytest.fixture
def pixart():
    return tiny_pipeline("pixart")


@pytest.fixture
def slow(pixart, monkeypatch):
    """A pipeline of whose layers every self-attention takes 1 ms and every MLP 4 ms; nothing else takes time."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("l2c.bench.timing.time", SimpleNamespace(perf_counter=lambda: now.s))

    def slow_down(module, seconds):
        class Slow(type(module)):
            def forward(self, *args, **kwargs):
                now.s += seconds
                return super().forward(*args, **kwargs)

        module.__class__ = Slow

    for layer in host_of(pixart, **CALL).table.layers:
        module = pixart.transformer.get_submodule(layer.module_path)
        slow_down(module, 1e-3 if layer.kind == "attention" else 4e-3)
    slow_down(pixart.transformer.proj_out, 7e-3)
    return pixart


def test_costs_of_a_pipeline_tell_where_the_time_goes(slow):
    profile = measure_profile(slow, repetitions=1, **CALL)
    kinds = [layer.kind for layer in host_of(slow, **CALL).table.layers]
    assert profile.costs.layers == pytest.approx([1 if kind == "attention" else 4 for kind in kinds])
    assert profile.costs.rest == pytest.approx(7)
    assert [check.deviation for check in profile.checks] == pytest.approx([0, 0, 0])
    assert (profile.engine, profile.evaluations, profile.guidance) == ("eager", 8, 3.0)
    assert profile.solver_ms is None
    assert profile.decoder_ms is None
    assert "solver" not in profile.timings


def test_a_pipeline_learns_for_milliseconds(slow, monkeypatch):
    monkeypatch.setattr("l2c.bench.schedules.device_floor", lambda *_: {"matmul_flops": 1e12})
    costs = l2c.measure_costs(slow, repetitions=1, **CALL)
    budget = 0.6 * 6 * costs.full
    schedule = l2c.learn(slow, costs=costs, budget=budget, settings=LEARNED, num_inference_steps=6, **CALL)
    assert schedule.provenance["budget_unit"] == "ms"
    assert costs.of(schedule.compute) <= budget * 1.01 < 6 * costs.full
    record = l2c.measure_schedules(slow, {"fast": schedule}, batch_sizes=(1,), repetitions=1, prompt="a cat")
    everything, fast = record.results["rows"]
    assert fast["seconds"] == pytest.approx([costs.of(schedule.compute) / 1e3])
    assert everything["seconds"] == pytest.approx([6 * costs.full / 1e3])


def test_schedules_on_a_pipeline_are_timed_beside_everything_computed(pixart):
    call = {**CALL, "num_inference_steps": 4}
    schedules = {f"every {n}": l2c.methods.interval(pixart, every=n, **call) for n in (2, 3)}
    record = l2c.measure_schedules(pixart, schedules, batch_sizes=(1, 2), repetitions=1, **call)
    rows = record.results["rows"]
    assert [row["schedule"] for row in rows] == [EVERYTHING, *schedules] * 2
    assert [row["images"] for row in rows] == [1] * 3 + [2] * 3
    assert {row["engine"] for row in rows} == {"eager"}
    assert rows[3]["floor_s"] == pytest.approx(2 * rows[0]["floor_s"])
    assert rows[4]["store_bytes"] == 2 * rows[1]["store_bytes"] > 0
    assert rows[0]["run"].startswith("DPMSolverMultistepScheduler, 4 evaluations, ")
    host = host_of(pixart, **call)
    assert host.rows_and_calls == (2, 1)  # guidance in one batch


def test_evaluations_after_a_second_transformer_takes_over_are_whole():
    pipe, call = tiny_pipeline("wan2.2"), tiny_call("wan2.2")
    del call["generator"]
    texts = {name: call.pop(name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    host = host_of(pipe, conditions=[texts], **call).with_steps(12)
    assert len(host.segments) == 2
    profile = measure_profile(host, repetitions=1, evaluations=12, batch_size=2, predictor=Predictor())
    assert len(profile.costs.layers) == len(host.table)
    assert profile.costs.full > 0


def test_what_only_models_have_is_refused_in_a_sentence(pixart):
    with pytest.raises(
        ConfigError, match="the engine 'graph' runs l2c's own models; a pipeline runs as it is"
    ):
        l2c.measure_costs(pixart, engine="graph", **CALL)
    with pytest.raises(ConfigError, match="timing a decoder needs a model sampled by class labels, not a"):
        measure_profile(pixart, decoder=print, **CALL)
    without = {name: value for name, value in CALL.items() if name != "prompt"}
    with pytest.raises(ConfigError, match="a batch of 2 repeats a prompt or label, and none is given"):
        host_of(pixart, **without).ready(None, 2)
