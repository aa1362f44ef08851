"""A method from elsewhere, on a model, on a pipeline and in a comparison."""

from __future__ import annotations

import pytest

import l2c
from l2c.compare.config import Base, CompareConfig, MethodChoice, Reference
from l2c.compare.runner import Comparison
from l2c.errors import ConfigError
from l2c.hosts.targets import host_of
from l2c.methods import Method, find_method, register_method, registry, schedule_for
from l2c.methods.base import all_computed, pattern
from l2c.models import save_model
from l2c.testing import count_calls, tiny_call, tiny_dit, tiny_pipeline


def warm_up(target, *, share=0.5, **run):
    """Computes everything in the first share of the evaluations and copies from then on."""
    host = host_of(target, **run)
    compute = all_computed(host)
    compute[round(share * len(compute)) :] = False
    return pattern(host, compute, {"method": "warm-up", "share": share})


@pytest.fixture
def method(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    choices = tuple({"share": share / 10} for share in range(1, 11))
    register_method(Method("warm-up", "warm-up", warm_up, "this test", choices=choices))
    return find_method("warm-up")


def test_a_registered_method_meets_a_budget_on_a_model(method):
    model = tiny_dit()
    schedule = schedule_for(method, host_of(model, steps=10), budget=0.6)
    assert schedule.cost.fraction == pytest.approx(0.6, abs=0.06)
    with count_calls(model) as calls:
        l2c.sample(model, [1], guidance=1.0, schedule=schedule)
    assert set(calls.values()) == {round(10 * schedule.provenance["share"])}


def test_a_registered_method_makes_a_pipeline_faster(method):
    pipe = tiny_pipeline("dit")
    schedule = method.make(pipe, share=0.5, **tiny_call("dit"))
    with l2c.enable_cache(pipe, schedule):
        pipe(**tiny_call("dit"))


def test_a_comparison_runs_a_registered_method(method, tmp_path):
    save_model(tiny_dit(), tmp_path / "tiny.safetensors")
    config = CompareConfig(
        model=str(tmp_path / "tiny.safetensors"),
        bases=(Base("ddim", 6, budgets=(0.5,)),),
        methods=(MethodChoice("warm-up"),),
        images=2,
        timing_images=1,
        repetitions=1,
        metrics=("rmse",),
        reference=Reference("ddim", 8, "linspace"),
    )
    records = {
        record.results["method"]: record for record in Comparison(config, tmp_path / "made", "cpu").run()
    }
    assert set(records) == {"full", "warm-up"}
    assert records["warm-up"].results["macs"] < records["full"].results["macs"]
    assert len(records["warm-up"].results["metrics"]["rmse"]) == 2


def test_a_name_is_given_once(method):
    for name in ("warm-up", "fora"):
        with pytest.raises(
            ConfigError, match=f"there is a method '{name}' already; give the new one another"
        ):
            register_method(Method(name, name, warm_up, "this test"))
