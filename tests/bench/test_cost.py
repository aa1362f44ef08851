from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2c.bench.cost import measure_costs
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling import Denoiser, Guidance
from l2c.sampling.sampler import Sampler
from l2c.testing import tiny_diffusers_dit, tiny_dit, tiny_uvit


def sampler_of(model, guidance=1.5, mode="batch"):
    return Sampler(Denoiser.of(model), "ddim", 4, "linspace", Guidance(guidance, mode))


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only where a module that was slowed down computes."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("l2c.bench.cost.time", SimpleNamespace(perf_counter=lambda: now.s))
    return now


def slow_down(module, clock, seconds):
    """Lets a module take some seconds of a clock whenever it computes."""

    class Slow(type(module)):
        def forward(self, *arguments, **options):
            clock.s += seconds
            return super().forward(*arguments, **options)

    module.__class__ = Slow


def modules_of(model):
    return [model.get_submodule(layer.module_path) for layer in find_layers(model).layers]


@pytest.mark.parametrize(("mode", "calls"), [("batch", 1), ("split", 2)])
def test_costs_tell_where_the_time_goes(clock, mode, calls):
    model = tiny_dit()
    for index, module in enumerate(modules_of(model), start=1):
        slow_down(module, clock, 1e-3 * index)
    slow_down(model.final_layer, clock, 7e-3)
    costs = measure_costs(sampler_of(model, mode=mode), repetitions=3)
    assert costs.unit == "ms"
    assert costs.layers == pytest.approx([calls * index for index in range(1, 7)])
    assert costs.rest == pytest.approx(7 * calls)


def test_costs_sum_to_the_time_of_an_evaluation_without_timing(clock, monkeypatch):
    """Looking at the clock between layers costs time, too, and is no part of the result."""
    model = tiny_dit()
    for module in modules_of(model):
        slow_down(module, clock, 1e-3)
    slow_down(model.final_layer, clock, 2e-3)

    def look():
        clock.s += 1e-3

    monkeypatch.setattr("l2c.bench.cost.synchronize", look)
    costs = measure_costs(sampler_of(model), repetitions=3)
    assert costs.rest == pytest.approx(2 + 1)  # an evaluation looks once before it ends
    assert costs.full == pytest.approx(6 * 1 + 2 + 1)
    assert costs.layers == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit, tiny_diffusers_dit])
def test_measuring_leaves_the_model_as_it_was(make):
    model = make()
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    sampler = sampler_of(model)

    def predict():
        with torch.no_grad():
            return sampler.guidance.predict(sampler.denoiser, x, torch.tensor(300.0), labels)

    before = predict()
    costs = measure_costs(sampler, batch_size=2, repetitions=2)
    assert len(costs.layers) == len(find_layers(model))
    assert all("forward" not in module.__dict__ for module in modules_of(model))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in modules_of(model))
    assert torch.equal(predict(), before)


def test_a_forward_that_someone_else_has_replaced_stays_replaced():
    """As the hooks of accelerate do."""
    model, calls = tiny_dit(), []
    module = modules_of(model)[2]
    original = module.forward
    module.forward = lambda *arguments: calls.append(1) or original(*arguments)
    replaced = module.forward
    measure_costs(sampler_of(model), repetitions=1)
    assert module.__dict__.get("forward") is replaced
    assert calls


def test_an_error_in_the_middle_leaves_the_model_as_it_was():
    model = tiny_dit()
    rest, count = model.final_layer.forward, 0

    def fail_in_the_last(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise RuntimeError("no")
        return rest(*arguments)

    model.final_layer.forward = fail_in_the_last
    with pytest.raises(RuntimeError, match="no"):
        measure_costs(sampler_of(model), repetitions=1)
    assert count == 4
    assert all("forward" not in module.__dict__ for module in modules_of(model))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in modules_of(model))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"repetitions": 0}])
def test_nothing_to_measure_is_refused(options):
    with pytest.raises(ConfigError, match="must be at least 1"):
        measure_costs(sampler_of(tiny_dit()), **options)
