"""Every capability on every kind of host, one small test for each: the table of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.methods import all_methods
from l2c.schedule.branches import join_branches
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline, tiny_run, tiny_uvit

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

STEPS = 6
PROMPTS = ["a photo of a cat", "a painting of the green house"]
QUICK = l2c.LearnSettings(
    iterations=1, batch_size=1, num_examples=4, trials=2, trial_examples=1, reference_steps=10
)


@dataclass
class Subject:
    """A model or a pipeline, how it is sampled, and a run of it.

    Attributes:
        target: What l2c is given.
        run: How it is sampled.
        solver: The part of that which names the solver, where that can be named.
        sample: Samples it as it is, with the cache that is enabled on it.
    """

    target: Any
    run: dict[str, Any]
    solver: dict[str, Any]
    sample: Callable[[], torch.Tensor]

    @property
    def every(self) -> l2c.CacheSchedule:
        """Everything at every second evaluation, copied in between."""
        return l2c.methods.interval(self.target, every=2, **self.solver, **self.run)


def _model(model: Any) -> Subject:
    solver = {"solver": "dpmsolver++"}

    def sample() -> torch.Tensor:
        return l2c.sample(model, [1], [0], steps=STEPS, **solver)

    return Subject(model, {"steps": STEPS}, solver, sample)


def _pipeline(name: str) -> Subject:
    pipe = tiny_pipeline(name)
    call = {
        k: v for k, v in tiny_call(name, STEPS).items() if k not in ("generator", "prompt", "output_type")
    }
    run = {**call, "prompts": PROMPTS} if name == "pixart" else call
    return Subject(pipe, run, {}, lambda: tiny_run(pipe, name, steps=STEPS))


HOSTS: dict[str, Callable[[], Subject]] = {
    "dit": lambda: _model(tiny_dit()),
    "uvit": lambda: _model(tiny_uvit()),
    "pixart": lambda: _pipeline("pixart"),
    "sd3": lambda: _pipeline("sd3"),
}


@pytest.fixture(params=HOSTS, scope="module")
def host(request):
    """A model of each kind and a pipeline of each kind; no test may change it."""
    subject = HOSTS[request.param]()
    bare = subject.sample()
    yield subject
    assert torch.equal(subject.sample(), bare)


def used(host, schedule, **how):
    """What is sampled with a schedule, and without it again."""
    with l2c.enable_cache(host.target, schedule, **how):
        made = host.sample()
        assert torch.equal(host.sample(), made)
    return made


def test_a_schedule_is_searched_and_fitted_for_a_budget(host):
    schedule = l2c.learn(host.target, budget=0.6, settings=QUICK, **host.solver, **host.run)
    assert schedule.cost.fraction <= 0.6
    assert schedule.predictor.coefficients is not None
    assert schedule.provenance["error_unit"] in ("absolute", "relative")
    with l2c.enable_cache(host.target, schedule):
        host.sample()
        (seen,) = l2c.summary(host.target).models.values()
    assert seen.reused > 0
    assert seen.fraction == pytest.approx(schedule.cost.fraction)


def test_a_family_is_learned_for_several_budgets(host):
    family = l2c.learn(host.target, budgets=(0.8, 0.5), settings=QUICK, **host.solver, **host.run)
    costs = [schedule.cost.fraction for schedule in family]
    assert len(costs) == 2
    assert min(costs) <= 0.5 < max(costs) <= 0.8
    assert torch.equal(used(host, family, budget=0.6), used(host, family.at(0.5)))


def test_a_solver_is_learned_with_the_schedule(host):
    how = {key: value for key, value in host.run.items() if key != "steps"}
    schedule = l2c.learn(host.target, solver="auto", evaluations=3, settings=QUICK, **how)
    run = schedule.contract.run
    assert run.weights is not None
    assert schedule.cost.fraction * len(run.timesteps) <= 3 * (1 + 1e-6)
    assert schedule.provenance["fewer_steps"]
    error = l2c.check(host.target, schedule, seeds=[0], **how).error
    assert 0 < error < float("inf")


def test_a_budget_may_be_milliseconds(host):
    table = l2c.host_of(host.target, **host.solver, **host.run).table
    costs = CostTable("ms", tuple(2.0 if i % 2 else 1.0 for i in range(len(table))), 0.5)
    budget = 0.6 * STEPS * costs.full
    schedule = l2c.learn(host.target, budget=budget, costs=costs, settings=QUICK, **host.solver, **host.run)
    assert costs.of(schedule.compute) <= budget * 1.01
    assert schedule.provenance["budget_unit"] == "ms"


def test_the_papers_router_is_learned(host):
    settings = l2c.RouterSettings(iterations=1, batch_size=1)
    schedule = l2c.learn(host.target, pattern="alternate", settings=settings, **host.solver, **host.run)
    assert schedule.scores is not None
    assert schedule.scores[::2].isnan().all()
    assert schedule.compute[::2].all()
    assert used(host, schedule).isfinite().all()


def test_a_schedule_is_checked(host):
    drift = l2c.check(host.target, host.every, seeds=[0, 1], **host.run, **host.solver)
    assert 0 < drift.error <= drift.worst
    assert drift.runs == 2
    assert drift.fraction == pytest.approx(host.every.cost.fraction)
    again = l2c.check(host.target, drift.record(host.every), seeds=[0, 1], **host.run, **host.solver)
    assert again.ratio == pytest.approx(1, abs=1e-3)
    assert again.accepted


def test_a_schedule_is_repaired(host):
    repaired = l2c.repair(host.target, host.every, settings=QUICK, **host.solver, **host.run)
    assert torch.equal(repaired.compute, host.every.compute)
    assert repaired.predictor.coefficients is not None
    assert used(host, repaired).isfinite().all()


def test_a_run_is_summed_up(host):
    schedule = host.every
    with l2c.enable_cache(host.target, schedule):
        host.sample()
        (seen,) = l2c.summary(host.target).models.values()
    layers = len(schedule.layers)
    calls = sum(seen.calls.values()) // STEPS
    assert seen.evaluations == STEPS
    assert (seen.computed, seen.reused) == (3 * layers * calls, 3 * layers * calls)
    assert seen.fraction == pytest.approx(schedule.cost.fraction)


def test_a_schedule_is_enabled_by_its_path(host, tmp_path):
    path = tmp_path / "schedule.safetensors"
    host.every.save(path)
    assert torch.equal(used(host, path), used(host, host.every))
    assert torch.equal(used(host, str(path)), used(host, host.every))


LEARNED = {"iterations": 1, "batch_size": 1, "num_examples": 4, "reference_steps": 10}
SMALL = {
    "l2c": {"iterations": 1, "batch_size": 1},
    "smoothcache": {"num_images": 2},
    "dmd": {"num_images": 2},
    "budcache": {"annealing": 2, "climbing": 1},
    "bespoke": LEARNED,
    "neuralsolver": LEARNED,
}


@pytest.mark.parametrize("name", all_methods())
def test_a_method_makes_a_schedule(host, name, tmp_path):
    method, settings = all_methods()[name], dict(SMALL.get(name, {}))
    architecture = l2c.host_of(host.target, **host.solver, **host.run).table.architecture
    if name == "learned":
        host.every.save(tmp_path / "schedule.safetensors")
        settings["path"] = tmp_path / "schedule.safetensors"
    make = {**method.published, **settings, **host.solver, **host.run}
    if method.architectures and not method.suits(architecture):
        with pytest.raises(ConfigError, match="U-ViT"):
            method.make(host.target, **make)
        return
    schedule = method.make(host.target, **make)
    assert schedule.layers.names
    if name in ("fewer-steps", "bespoke", "neuralsolver"):
        assert len(schedule.compute) == 3
        assert schedule.compute.all()
        return
    assert schedule.num_evaluations == STEPS
    assert used(host, schedule).isfinite().all()


def test_passes_of_guidance_go_apart(host):
    schedule, runs = host.every, torch.zeros(STEPS, dtype=torch.bool)
    runs[[0, 4]] = True
    compute = join_branches(schedule.compute, schedule.compute & runs[:, None], runs)
    apart = replace(schedule, compute=compute)
    assert l2c.host_of(host.target, **host.solver, **host.run).has_branches
    with l2c.enable_cache(host.target, apart):
        assert host.sample().isfinite().all()
        (seen,) = l2c.summary(host.target).models.values()
    assert seen.derived == STEPS - 2
    assert seen.fraction == pytest.approx(apart.cost.fraction)


def test_graphs_need_a_device_and_say_so(host):
    """What they compute is tested by a stand-in for it: in `test_graphs.py`, and for models in `tests/engine`."""
    schedule = host.every
    if isinstance(host.target, torch.nn.Module):
        with pytest.raises(ConfigError, match="CUDA graphs need a CUDA device"):
            l2c.sample(host.target, [1], [0], steps=STEPS, schedule=schedule, engine="graph", **host.solver)
        return
    with pytest.warns(UserWarning, match="run as they are: they need a CUDA device"):
        made = used(host, schedule, engine="graph")
    assert torch.equal(made, used(host, schedule))
