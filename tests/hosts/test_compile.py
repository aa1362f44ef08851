"""`torch.compile` under a cache: how many graphs it makes, counted by itself, and what they compute."""

import copy
import inspect

import diffusers
import pytest
import torch
import torch._dynamo as dynamo
from torch import nn

import l2c
from l2c.cache.patch import MethodPatch, covered, patch_of
from l2c.errors import ConfigError
from l2c.hosts.pipeline import compilation
from l2c.hosts.pipeline.compilation import find_compilation
from l2c.hosts.pipeline.runs import describe_run
from l2c.layers import find_layers
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import TINY, tiny_interval, tiny_mixed, tiny_pipeline, tiny_run

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script_method. is deprecated"
    ),  # the compiler, when it is loaded
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < compilation.OLDEST_TORCH,
        reason="compilers of older releases of torch cannot follow patches, and are refused",
    ),
]

STEPS = 5
KINDS = 3  # everything computed, one value copied, two values weighed: what alternates, with its warm-up


@pytest.fixture(autouse=True)
def fresh_compiler():
    def forget():
        dynamo.reset()
        dynamo.utils.counters.clear()

    forget()
    yield
    forget()


def graphs():
    assert not dynamo.utils.counters["graph_break"]
    return dynamo.utils.counters["stats"]["unique_graphs"]


def short(name):
    """A pipeline whose transformer has one block of each kind."""
    pipe = tiny_pipeline(name)
    for blocks in pipe.transformer.children():
        if isinstance(blocks, nn.ModuleList) and name not in (
            "dit",
            "sd3",
        ):  # whose blocks are counted or differ
            del blocks[1:]
    return pipe


def taylor(pipe, name, **changes):
    return tiny_interval(pipe, name, predictor="taylor", **{"num_inference_steps": STEPS, **changes})


def compile_whole(pipe, wrap=False, **options):
    options = {"backend": "eager", "fullgraph": True, **options}
    if wrap:
        pipe.transformer = torch.compile(pipe.transformer, **options)
    else:
        pipe.transformer.compile(**options)


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3", "flux", "wan"])
def test_whole_transformer_compiles_once_for_each_kind_of_evaluation(name):
    """Not for each evaluation, branch, seed or schedule; the graph has no break, or the compiler would raise."""
    pipe = short(name)
    bare = tiny_run(pipe, name, steps=STEPS)
    schedule = taylor(pipe, name)
    with l2c.enable_cache(pipe, schedule):
        expected = tiny_run(pipe, name, steps=STEPS)
    compile_whole(pipe)
    with l2c.enable_cache(pipe, schedule) as cache:
        got = tiny_run(pipe, name, steps=STEPS)
        assert graphs() == KINDS
        tiny_run(pipe, name, steps=STEPS, seed=3)
        counts = cache.summary().models["transformer"]
        assert counts.unplanned == 0
        assert counts.reused == 2 * sum(counts.calls.values()) // STEPS * len(schedule.layers)
        assert cache.transformers["transformer"].policy.store.nbytes == 0
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    other = taylor(pipe, name, num_inference_steps=7)
    with l2c.enable_cache(pipe, other):
        tiny_run(pipe, name, steps=7)
    assert graphs() == KINDS
    assert torch.equal(tiny_run(pipe, name, steps=STEPS), bare)
    assert graphs() == KINDS + 1


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_repeated_blocks_share_what_is_compiled(name):
    pipe = tiny_pipeline(name)
    model, schedule = pipe.transformer, taylor(pipe, name)
    with l2c.enable_cache(pipe, schedule):
        expected = tiny_run(pipe, name, steps=STEPS)
    kinds = {type(module).__name__ for module in model.modules()} & set(model._repeated_blocks)
    assert sum(type(module).__name__ in kinds for module in model.modules()) > len(kinds)
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert find_compilation(model, model).num_graphs(schedule) == KINDS * len(kinds)
    with l2c.enable_cache(pipe, schedule):
        torch.testing.assert_close(tiny_run(pipe, name, steps=STEPS), expected, atol=2e-5, rtol=2e-5)
        made = graphs()
        strides = 1 if name == "flux" else 0  # its second double block gets a view of a larger tensor
        assert made <= KINDS * len(kinds) + strides
        tiny_run(pipe, name, steps=STEPS, seed=3)
    with l2c.enable_cache(pipe, taylor(pipe, name, num_inference_steps=7)):
        tiny_run(pipe, name, steps=7)
    assert graphs() == made


def test_wrapped_transformer_compiles_as_one_in_place():
    """`torch.compile` returns a wrapper; the cache finds it where the pipeline calls it, even if it came later."""
    pipe = short("wan")
    bare, schedule = tiny_run(pipe, "wan", steps=STEPS), taylor(pipe, "wan")
    with l2c.enable_cache(pipe, schedule) as cache:
        expected = tiny_run(pipe, "wan", steps=STEPS)
        compile_whole(pipe, wrap=True)
        torch.testing.assert_close(tiny_run(pipe, "wan", steps=STEPS), expected, atol=2e-5, rtol=2e-5)
        assert cache.summary().models["transformer"].unplanned == 0
    assert graphs() == KINDS
    with l2c.enable_cache(pipe, schedule):
        tiny_run(pipe, "wan", steps=STEPS)
    assert graphs() == KINDS
    assert patch_of(vars(pipe.transformer)["forward"]) is None
    assert torch.equal(tiny_run(pipe, "wan", steps=STEPS), bare)


def own_loop():
    tiny, scheduler = TINY["WanTransformer3DModel"], diffusers.FlowMatchEulerDiscreteScheduler()
    model, noise = tiny.build(), torch.randn((1, *tiny.shape), generator=torch.Generator().manual_seed(0))
    conditions = tiny.conditions(1)
    del model.blocks[1:]

    @torch.no_grad()
    def loop(called):
        scheduler.set_timesteps(STEPS)
        x = noise
        for t in scheduler.timesteps:
            predicted = called(hidden_states=x, timestep=t.expand(1), return_dict=False, **conditions)[0]
            x = scheduler.step(predicted, t, x).prev_sample
        return x

    scheduler.set_timesteps(STEPS)
    table = find_layers(model)
    compute = torch.ones(STEPS, len(table), dtype=torch.bool)
    compute[1::2] = False
    contract = Contract(describe_run(scheduler))
    return model, scheduler, CacheSchedule(compute, table, contract, Predictor("taylor", 1)), loop


def test_wrapper_in_a_loop_of_ones_own_is_what_the_cache_is_enabled_on():
    model, scheduler, schedule, loop = own_loop()
    with l2c.enable_cache(model, schedule, scheduler=scheduler):
        expected = loop(model)
    wrapped = torch.compile(model, backend="eager", fullgraph=True)
    cache = l2c.enable_cache(wrapped, schedule, scheduler=scheduler)
    torch.testing.assert_close(loop(wrapped), expected, atol=2e-5, rtol=2e-5)
    assert graphs() == KINDS
    assert l2c.summary(wrapped) == cache.summary()
    l2c.disable_cache(wrapped)
    assert not [name for name in ("forward", "_l2c_cache") if name in vars(model)]


def test_wrapper_that_the_cache_does_not_know_breaks_once_at_its_beginning():
    model, scheduler, schedule, loop = own_loop()
    with l2c.enable_cache(model, schedule, scheduler=scheduler):
        expected = loop(model)
        torch.testing.assert_close(
            loop(torch.compile(model, backend="eager")), expected, atol=2e-5, rtol=2e-5
        )
        made = dynamo.utils.counters["stats"]["unique_graphs"]
        assert made <= KINDS + 1
        dynamo.reset()
        with pytest.raises(
            dynamo.exc.Unsupported, match="enable the cache on what torch.compile has returned"
        ):
            loop(torch.compile(model, backend="eager", fullgraph=True))
        assert torch.equal(loop(model), expected)


def test_learned_mask_on_blocks_compiles_their_variants_only():
    """Different layers at different evaluations: more rows than the compiler's usual limit lets a frame have."""
    pipe = tiny_pipeline("wan")
    schedule = tiny_mixed(pipe, "wan", num_inference_steps=16)
    with l2c.enable_cache(pipe, schedule):
        expected = tiny_run(pipe, "wan", steps=16)
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    foreseen = find_compilation(pipe.transformer, pipe.transformer).num_graphs(schedule)
    assert foreseen <= 2**3
    limit = 2
    with dynamo.config.patch(recompile_limit=limit), l2c.enable_cache(pipe, schedule):
        torch.testing.assert_close(tiny_run(pipe, "wan", steps=16), expected, atol=2e-5, rtol=2e-5)
        assert dynamo.config.recompile_limit == limit
    assert limit < graphs() == foreseen


def test_learned_mask_on_the_whole_transformer_is_told_to_compile_blocks():
    pipe = tiny_pipeline("wan")
    schedule = tiny_mixed(pipe, "wan", num_inference_steps=16)
    pipe.transformer.compile(backend="eager")
    different = find_compilation(pipe.transformer, pipe.transformer).num_graphs(schedule)
    assert 8 < different <= len({tuple(row) for row in schedule.compute.tolist()})
    told = pytest.warns(
        UserWarning, match=f"has {different} different evaluations, .*compile_repeated_blocks"
    )
    with l2c.enable_cache(pipe, schedule), torch.compiler.set_stance("force_eager"), told:
        tiny_run(pipe, "wan", steps=16)


def test_values_of_cuda_graphs_are_copied_before_they_are_stored():
    """On a CPU there are no CUDA graphs; what is checked is that the request for them is seen, and heeded."""
    model, scheduler, schedule, _ = own_loop()
    for options, replayed in (
        ({"mode": "reduce-overhead"}, True),
        ({}, False),
        ({"backend": "eager"}, False),
    ):
        wrapped = torch.compile(model, **options)
        assert find_compilation(model, wrapped).replayed is replayed
    with l2c.enable_cache(model, schedule, scheduler=scheduler) as cache:
        policy = cache.transformers["transformer"].policy
        scheduler.set_timesteps(STEPS)
        for replayed in (False, True):
            policy.replayed, output = replayed, torch.ones(3)
            policy.begin_call(0, "all")
            policy.cells[0].output(lambda output=output: output)
            policy.end_call()
            stored = policy.store.read("all", 0, 0, evaluation=1)
            output.zero_()  # as the next replay does
            assert stored.sum() == (3 if replayed else 0)


def test_dry_run_compiles_nothing():
    pipe = short("wan")
    compile_whole(pipe)
    schedule = taylor(pipe, "wan")
    assert schedule.layers.sized
    assert graphs() == 0


def test_shadow_keeps_signature_and_lets_copies_go():
    layer = nn.Linear(2, 2)
    signature = inspect.signature(layer.forward)
    patch = MethodPatch(layer, "forward", lambda original, x: original(x) + 1)
    assert inspect.signature(layer.forward) == signature
    x = torch.randn(1, 2)
    assert torch.equal(copy.deepcopy(layer)(x) + 1, layer(x))
    again = MethodPatch(layer, "forward", lambda original, x: original(x) + 1)
    assert inspect.signature(layer.forward) == signature
    assert covered(vars(layer)["forward"]).__func__ is nn.Linear.forward
    again.remove()
    patch.remove()
    assert "forward" not in vars(layer)


@pytest.mark.slow
def test_inductor_computes_what_eager_does():
    pipe = short("wan")
    schedule = taylor(pipe, "wan")
    with l2c.enable_cache(pipe, schedule):
        expected = tiny_run(pipe, "wan", steps=STEPS)
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    with l2c.enable_cache(pipe, schedule):
        torch.testing.assert_close(tiny_run(pipe, "wan", steps=STEPS), expected, atol=1e-4, rtol=1e-4)
    assert graphs() == KINDS


def test_a_compiler_that_cannot_follow_patches_is_refused(monkeypatch):
    monkeypatch.setattr(compilation, "OLDEST_TORCH", (99, 1))
    pipe = short("dit")
    schedule = taylor(pipe, "dit")
    bare = tiny_run(pipe, "dit", steps=STEPS)
    compile_whole(pipe)
    refused = pytest.raises(ConfigError, match=r"compiled transformer needs torch 99\.1 or later, this is \d")
    with refused, l2c.enable_cache(pipe, schedule):
        tiny_run(pipe, "dit", steps=STEPS)
    assert torch.equal(tiny_run(pipe, "dit", steps=STEPS), bare)
