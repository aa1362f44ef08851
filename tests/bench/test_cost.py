from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

import l2c
from l2c.bench.cost import fit_costs, measure_costs, measure_profile, read_costs
from l2c.bench.runs import layer_groups
from l2c.errors import CacheStateError, ConfigError, DataError
from l2c.hosts.native import ModelHost
from l2c.hosts.targets import host_for
from l2c.layers import Layer, LayerTable, find_layers
from l2c.records import Record
from l2c.sampling import Denoiser, Guidance
from l2c.sampling.compiled import engine_of
from l2c.sampling.sampler import Sampler
from l2c.schedule.forecast import Predictor
from l2c.testing import tiny_diffusers_dit, tiny_dit, tiny_uvit

TABLE = LayerTable("dit", tuple(Layer(f"{i}.{kind}", "", kind) for i in range(2) for kind in ("attn", "mlp")))
RUNS = ("everything computed", "everything reused", "everything reused, of one value", "attn", "mlp")


def host_with(model, guidance=1.5, mode="batch"):
    return ModelHost(Sampler(Denoiser.of(model), "ddim", 4, "linspace", Guidance(guidance, mode)))


def uncompiled(model):
    """The model, whose compiled engine runs its pieces as they are: the same work, at once and on any machine."""
    engine_of(model, "compile").pieces.compiled = False
    return model


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only where a module that was slowed down computes."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("l2c.bench.timing.time", SimpleNamespace(perf_counter=lambda: now.s))
    return now


def slow_down(module, take):
    """Lets a module call `take` whenever it computes."""

    class Slow(type(module)):
        def forward(self, *arguments, **options):
            take()
            return super().forward(*arguments, **options)

    module.__class__ = Slow


def slow_layers(model, clock, attention, mlp, rest):
    """Lets attentions, MLPs and the final layer take so many seconds of a clock, in any engine."""

    def taking(seconds):
        def take():
            clock.s += seconds

        return take

    for block in model.blocks:
        slow_down(block.attn.proj, taking(attention))
        slow_down(block.mlp.fc2, taking(mlp))
    slow_down(model.final_layer.linear, taking(rest))


def test_layers_of_one_kind_and_size_form_a_group():
    for model in (tiny_dit(), tiny_uvit(), tiny_diffusers_dit()):
        assert layer_groups(find_layers(model)) == {"attention": (0, 2, 4), "mlp": (1, 3, 5)}
    sizes = (("mlp", 5), ("attention", 7), ("mlp", 9), ("mlp", 5))
    table = LayerTable("x", tuple(Layer(str(i), "", kind, size) for i, (kind, size) in enumerate(sizes)))
    assert layer_groups(table) == {"mlp 1": (0, 3), "attention": (1,), "mlp 2": (2,)}


@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.parametrize(("mode", "calls"), [("batch", 1), ("split", 2)])
def test_costs_tell_where_the_time_goes(clock, engine, mode, calls):
    model = uncompiled(tiny_dit())
    slow_layers(model, clock, attention=1e-3, mlp=4e-3, rest=7e-3)
    measured = measure_profile(host_with(model, mode=mode), repetitions=2, engine=engine)
    costs = measured.costs
    assert (costs.unit, costs.architecture, costs.names) == ("ms", "dit", find_layers(model).names)
    assert costs.layers == pytest.approx([calls * 1, calls * 4] * 3)
    assert costs.rest == pytest.approx(7 * calls)
    assert (measured.engine, measured.history, costs.history, measured.evaluations) == (engine, 3, 3, 8)
    assert [check.deviation for check in measured.checks] == pytest.approx([0, 0, 0])
    assert [check.fraction for check in measured.checks] == pytest.approx([0.7, 0.5, 0.3], abs=0.1)
    assert all(len(timing.seconds) == 2 for timing in measured.timings.values())


def test_a_layer_that_is_slow_by_the_wall_clock_costs_more():
    model = tiny_dit()
    for block in model.blocks:
        slow_down(block.attn, lambda: time.sleep(2e-3))
    profile = measure_profile(host_with(model), repetitions=3, evaluations=6, checked=())
    attention, mlp = profile.costs.layers[0], profile.costs.layers[1]
    assert attention > max(1.0, mlp)
    assert 0 < profile.solver_ms < profile.costs.full
    assert profile.decoder_ms is None
    assert profile.checks == ()


def seconds_of(full, reused, shallow, attn, mlp):
    """Two repetitions, the second slower by the same for all, as on a busy machine."""
    times = dict(zip(RUNS, (full, reused, shallow, attn, mlp), strict=True))
    return {name: [taken, taken + 0.5] for name, taken in times.items() if taken is not None}


def test_the_full_evaluation_comes_out_exactly_though_groups_interact():
    # 5 evaluations, 2 of them whole: 3 that reuse save 0.3 s in all, but 0.1 s and 0.1 s by the groups
    costs = fit_costs(TABLE, seconds_of(1.0, 0.7, None, 0.9, 0.9), 5, 2)
    assert costs.layers == pytest.approx([25.0] * 4)
    assert costs.full == pytest.approx(1e3 * 1.25 / 5)  # the median of full runs
    assert costs.per_value == 0
    everything = torch.ones(5, 4, dtype=torch.bool)
    assert costs.of(everything) == pytest.approx(1250)
    everything[2:] = False
    assert costs.of(everything) == pytest.approx(950)


def test_forecasts_of_one_value_tell_what_the_others_cost():
    costs = fit_costs(TABLE, seconds_of(1.0, 0.7, 0.64, 0.9, 0.8), 5, 3)
    assert costs.history == 3
    assert costs.per_value == pytest.approx(60 / 2 / 4 / 2)


def test_reusing_that_saves_nothing_has_no_cost_below_zero():
    costs = fit_costs(TABLE, seconds_of(1.0, 1.1, 1.2, 1.05, 1.05), 5, 2)
    assert costs.layers == (0.0,) * 4
    assert costs.rest == costs.full == pytest.approx(250)
    assert costs.per_value == 0


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit, tiny_diffusers_dit])
def test_measuring_leaves_the_model_as_it_was(make):
    model = make()
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    before = l2c.sample(model, [1, 2], steps=3)
    costs = l2c.measure_costs(model, guidance=1.0, batch_size=2, repetitions=1)
    assert len(costs.layers) == len(find_layers(model))
    assert forwards == [module.__dict__.get("forward") for module in model.modules()]
    assert torch.equal(l2c.sample(model, [1, 2], steps=3), before)


def test_copies_and_a_solver_of_its_own_and_a_decoder():
    schedule = l2c.CacheSchedule.load("dit-mini-cifar10-auto-6")
    model = tiny_dit()
    host = host_for(model, schedule, guidance=1.0)
    decoded = []
    profile = measure_profile(
        host,
        batch_size=2,
        repetitions=1,
        predictor=Predictor(),
        checked=(0.5,),
        decoder=lambda x: decoded.append(x.shape),
    )
    assert profile.history == profile.costs.history == 1
    assert profile.costs.per_value == 0
    assert "everything reused, of one value" not in profile.timings
    assert profile.evaluations == len(schedule.contract.run.timesteps)
    assert decoded == [(2, 3, 8, 8)] * 2
    assert profile.decoder_ms is not None


def test_captured_runs_are_all_kept_while_they_are_timed():
    model = uncompiled(tiny_dit())
    engine = engine_of(model, "compile")
    engine.memory_limit = 1
    limits = set()
    measure_profile(
        host_with(model), repetitions=1, engine="compile", on_run=lambda *_: limits.add(engine.memory_limit)
    )
    assert limits == {None}
    assert engine.memory_limit == 1


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # PyTorch's own, in its compiler
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["dit-mini-cifar10", "uvit-mini-cifar10"])
def test_graphs_are_profiled_as_they_are_sampled(name):
    model = l2c.load_model(name, dtype=torch.bfloat16, device="cuda")
    profile = measure_profile(host_with(model), batch_size=16)
    assert (profile.engine, profile.evaluations) == ("graph", 20)
    assert len(engine_of(model, "graph")._runs) == len(profile.timings) - 1  # all but the solver by itself
    assert profile.costs.per_value == 0
    assert all(cost > 0 for cost in profile.costs.layers)
    for check in profile.checks:
        print(
            f"{check.fraction:.1%} of the MACs: {check.measured_ms:.2f} ms, predicted {check.deviation:+.1%}"
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "must be at least 1"),
        ({"repetitions": 0}, "must be at least 1"),
        ({"evaluations": 3}, "the forecasts read 3 values, so a run needs at least 4 evaluations, got 3"),
        ({"engine": "steam"}, "unknown engine 'steam'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        measure_profile(host_with(tiny_dit()), **options)


def test_bare_models_need_the_eager_engine_and_no_cache():
    with pytest.raises(ConfigError, match="or use the engine 'eager'"):
        measure_costs(host_with(tiny_diffusers_dit()), engine="compile")
    model = tiny_dit()
    with (
        l2c.enable_cache(model, l2c.methods.interval(model, solver="ddim", steps=4)),
        pytest.raises(CacheStateError, match="already enabled"),
    ):
        measure_costs(host_with(model))


def test_costs_are_read_for_what_they_were_measured_for(tmp_path):
    host = host_with(tiny_dit())
    costs = measure_costs(host, repetitions=1)
    path = tmp_path / "costs.json"
    Record("profile", {"guidance": 1.5}, results={"costs": costs.to_json()}).save(path)
    assert read_costs(path, host) == costs
    assert read_costs(path, host_with(tiny_dit(1), guidance=3.0)) == costs
    with pytest.raises(
        ConfigError, match="the costs are those of 6 layers of a dit, but the model is a uvit"
    ):
        read_costs(path, host_with(tiny_uvit()))
    with pytest.raises(ConfigError, match="has the costs with guidance, and this run is without; measure it"):
        read_costs(path, host_with(tiny_dit(), guidance=1.0))
    Record("sample", {}).save(path)
    with pytest.raises(DataError, match="is a record of l2c sample; give one that l2c profile has written"):
        read_costs(path, host)
    with pytest.raises(DataError, match="cannot be read"):
        read_costs(tmp_path / "missing.json", host)
