"""The plain form of a schedule, read by a program that knows nothing but docs/interchange.md."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import l2c
from l2c.cache.cached_model import enable_cache
from l2c.errors import ScheduleError
from l2c.layers import find_layers
from l2c.schedule.contract import Contract, Run
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import TINY

STEPS = 5
RUN = Run("euler", STEPS, "none", (900.0, 700.0, 500.0, 300.0, 100.0), (-3.0, -1.5, 0.0, 1.0, 2.0))
DOCUMENT = Path(__file__).parents[2] / "docs" / "interchange.md"


def walk(tiny, model, enter):
    x = torch.randn((1, *tiny.shape), generator=torch.Generator().manual_seed(0))
    for evaluation, timestep in enumerate(RUN.timesteps):
        enter(evaluation)
        x = x - 0.2 * tiny.call(model, x, timestep)[:, : x.shape[1]]
    return x


class Server:
    """Applies the plain form with one rule, through forwards that it puts in place of those of the layers."""

    def __init__(self, model, text):
        plain = json.loads(text)
        assert (plain["format"], plain["version"]) == ("l2c.interchange", 1)
        self.rows, self.now, self.kept = plain["compute"], 0, {}
        self.terms = {
            (entry["evaluation"], entry["layer"]): list(zip(entry["sources"], entry["weights"], strict=True))
            for entry in plain["reused"]
        }
        for index, layer in enumerate(plain["layers"]):
            module = model.get_submodule(layer["name"])
            module.forward = self.forward(index, module.forward)

    def forward(self, layer, original):
        def forward(*args, **kwargs):
            if self.rows[self.now][layer] == "1":
                self.kept[self.now, layer] = original(*args, **kwargs)
                return self.kept[self.now, layer]
            terms = [(self.kept[source, layer], weight) for source, weight in self.terms[self.now, layer]]
            if isinstance(terms[0][0], tuple):
                return tuple(
                    None if part is None else sum(weight * value[place] for value, weight in terms)
                    for place, part in enumerate(terms[0][0])
                )
            return sum(weight * value for value, weight in terms)

        return forward

    def enter(self, evaluation):
        self.now = evaluation


def test_a_program_without_this_package_makes_the_same_from_the_plain_form():
    tiny = TINY["SD3Transformer2DModel"]
    model = tiny.build()
    table = find_layers(model)
    compute = torch.rand(STEPS, len(table), generator=torch.Generator().manual_seed(1)) < 0.5
    compute[:2] = True
    schedule = CacheSchedule(compute, table, Contract(RUN), Predictor.parse("taylor-1"))
    with enable_cache(model, schedule) as cache, cache.run():
        expected = walk(tiny, model, cache.clock.tick)
    server = Server(model, json.dumps(schedule.to_json()))
    torch.testing.assert_close(walk(tiny, model, server.enter), expected, atol=1e-5, rtol=1e-5)


def test_the_plain_form_tells_the_whole_run_and_contract():
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=1)
    model = l2c.testing.tiny_dit()
    schedule = l2c.learn(model, solver="auto", evaluations=3, per_computed=2, settings=quick)
    plain = json.loads(json.dumps(schedule.to_json()))
    run = schedule.contract.run
    assert plain["run"]["log_snrs"] == list(run.log_snrs)
    assert plain["run"]["solver_weights"] == [list(row) for row in run.weights]
    assert plain["contract"]["fingerprint"] == list(schedule.contract.fingerprint)
    assert plain["full_evaluations"] == schedule.compute.all(1).nonzero().flatten().tolist()
    entries = {(one["evaluation"], one["layer"]): one["sources"] for one in plain["reused"]}
    assert entries == {place: [source for source, _ in terms] for place, terms in schedule.plan.items()}


def test_every_field_of_the_plain_form_is_documented():
    schedule = l2c.methods.interval(l2c.testing.tiny_dit(), every=2, steps=4)
    text, plain = DOCUMENT.read_text(encoding="utf-8"), schedule.to_json()
    for name, value in plain.items():
        inner = [f"{name}.{key}" for key in value] if name in ("run", "contract") else [name]
        assert all(f"`{field}`" in text for field in inner), inner


def test_cache_dit_computes_at_the_evaluations_of_the_schedule():
    cache_dit = pytest.importorskip("cache_dit", reason="cache-dit is not installed")
    from l2c.testing import tiny_call, tiny_pipeline

    pipe = tiny_pipeline("flux")
    call = {**tiny_call("flux"), "true_cfg_scale": 1.0}
    schedule = l2c.methods.interval(pipe, every=3, **call)
    settings = schedule.to_cache_dit()
    assert settings["steps_computation_mask"] == [1, 0, 0, 1, 0, 0]
    config = cache_dit.DBCacheConfig(**settings)
    assert config.strify().endswith("SCM100100_static_N6")
    calls = []
    handle = pipe.transformer.single_transformer_blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    cache_dit.enable_cache(pipe, cache_config=config)
    try:
        pipe(**call)
    finally:
        cache_dit.disable_cache(pipe)
        handle.remove()
    assert len(calls) == 2


def learned_alike(schedule, differs=0.0):
    """The schedule with weights that no predictor has: alike for all layers, or nearly."""
    draws = torch.Generator().manual_seed(0)
    evaluations, layers = schedule.compute.shape
    weights = 0.5 + torch.rand(evaluations, 1, 2, generator=draws) - torch.tensor([0.0, 1.0])
    weights = weights + differs * torch.rand(evaluations, layers, 2, generator=draws)
    return replace(schedule, predictor=Predictor("linear", coefficients=weights))


@pytest.mark.parametrize("forecast", ["copy", "taylor", "learned"])
def test_cache_dit_makes_the_pictures_of_our_own_cache_where_it_can_hold_the_schedule(forecast):
    """It keeps what blocks add after their gates, so that these stay; and it computes the first block always."""
    cache_dit = pytest.importorskip("cache_dit", reason="cache-dit is not installed")
    from l2c.testing import tiny_call, tiny_pipeline

    pipe = tiny_pipeline("sd3")
    with torch.no_grad():
        for block in pipe.transformer.transformer_blocks:
            for norm in (block.norm1, block.norm1_context):
                norm.linear.weight.zero_()
    schedule = l2c.methods.interval(pipe, every=3, **tiny_call("sd3"))
    compute = schedule.compute.clone()
    compute[:2] = True
    for place, layer in enumerate(schedule.layers.layers):
        if ".0." in layer.name:
            compute[:, place] = True
    schedule = replace(schedule, compute=compute)
    if forecast == "taylor":
        schedule = replace(schedule, predictor=Predictor("taylor", 1))
    if forecast == "learned":
        schedule = learned_alike(schedule)
    bare = pipe(**tiny_call("sd3"))[0]
    with l2c.enable_cache(pipe, schedule):
        ours = pipe(**tiny_call("sd3"))[0]
    config = cache_dit.DBCacheConfig(**schedule.to_cache_dit())
    assert config.Fn_compute_blocks == 1
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=schedule.to_cache_dit_calibrator())
    try:
        theirs = pipe(**tiny_call("sd3"))[0]
    finally:
        cache_dit.disable_cache(pipe)
    scale = (ours - bare).abs().max()
    assert scale > 1e-3  # reuse is seen
    assert (theirs - ours).abs().max() < 1e-3 * scale


def test_what_cache_dit_loses_of_learned_forecasts_is_told():
    pytest.importorskip("cache_dit", reason="cache-dit is not installed")
    model = l2c.testing.tiny_dit()
    schedule = learned_alike(l2c.methods.interval(model, every=2, steps=4, solver="ddim"), differs=0.1)
    with pytest.warns(UserWarning, match=r"differ by up to 0\.\d+ in their weights, .* given their mean"):
        config = schedule.to_cache_dit_calibrator()
    sums = config.to_kwargs()["sums"]
    means = schedule.predictor.coefficients.mean(1)
    assert dict(sums[3]) == pytest.approx({2: float(means[3, 0]), 0: float(means[3, 1])}, abs=1e-6)


def test_what_cache_dit_cannot_do_is_a_sentence():
    model = l2c.testing.tiny_dit()
    schedule = l2c.methods.interval(model, every=2, steps=4, solver="ddim")
    mixed = schedule.compute.clone()
    mixed[1, 2] = True
    with pytest.raises(
        ScheduleError, match="evaluation 1 computes 1 of 6 layers, and cache-dit's steps mask"
    ):
        replace(schedule, compute=mixed).to_cache_dit()
    table = tuple(tuple(float(j <= i) for j in range(5)) for i in range(5))
    contract = replace(schedule.contract, run=replace(schedule.contract.run, weights=table))
    with pytest.raises(ScheduleError, match="brings its own solver, which cache-dit has no place for"):
        replace(schedule, contract=contract).to_cache_dit()
