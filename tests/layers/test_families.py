"""The contract that the adapter of every family in the table keeps, on diffusers' own classes with random weights."""

import warnings

import diffusers
import pytest
import torch
from torch import nn

from l2c.cache.cached_model import attach, disable_cache, enable_cache
from l2c.cache.policy import MixingPolicy, StaticPolicy
from l2c.errors import ConfigError
from l2c.layers import Residual, find_layers, fingerprint, measure_layers, register_blocks
from l2c.layers.diffusers import TRANSFORMERS
from l2c.schedule.contract import Contract, Run
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import TINY, count_calls

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi asks for one in float32

SOUND_AT_LAST = ("transformer_blocks.1.video_to_audio_attn", "transformer_blocks.1.audio_ff")
"""Of LTX-2, whose picture does not read the sound that the last block makes."""
STEPS = 5
RUN = Run("euler", STEPS, "none", (900.0, 700.0, 500.0, 300.0, 100.0), (-3.0, -1.5, 0.0, 1.0, 2.0))


@pytest.fixture(params=sorted(TINY), scope="module")
def tiny(request):
    if not hasattr(diffusers, request.param):
        pytest.skip(f"this release of diffusers has no {request.param}")
    return TINY[request.param]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.build()


@pytest.fixture(scope="module")
def table(tiny, model):
    return measured(tiny, model)


def measured(tiny, model, batch=2):
    return measure_layers(model, find_layers(model), (), tiny.arguments(noise(tiny, batch), 500.0))[0]


def noise(tiny, batch=2):
    return torch.randn((batch, *tiny.shape), generator=torch.Generator().manual_seed(0))


def calls_of(tiny, name):
    """How often a layer is called by a call of its model: CogView4 has one MLP for image and text."""
    return 2 if tiny.class_name == "CogView4Transformer2DModel" and name.endswith(".ff") else 1


def loop(tiny, model, cache=None, x=None):
    """A few steps of descent along the model's prediction: not a sampler, but as good for comparing."""
    x = noise(tiny) if x is None else x
    for i, timestep in enumerate(RUN.timesteps):
        if cache is not None:
            cache.clock.tick(i)
        x = x - 0.2 * tiny.call(model, x, timestep)[:, : x.shape[1]]
    return x


def cached_walk(tiny, model, schedule, **options):
    with enable_cache(model, schedule) as cache, cache.run():
        return loop(tiny, model, cache, **options)


def schedule_of(table, compute=None, predictor=None):
    if compute is None:
        compute = torch.rand(STEPS, len(table), generator=torch.Generator().manual_seed(1)) < 0.5
        compute[:2] = True
    return CacheSchedule(compute, table, Contract(RUN), predictor or Predictor())


def test_table_and_tiny_models_name_the_same_classes():
    assert set(TINY) == {*TRANSFORMERS, "DiTTransformer2DModel"}


def test_layers_are_named_in_execution_order(tiny, model):
    order, handles, table = [], [], find_layers(model)
    for layer in table.layers:
        module = model.get_submodule(layer.module_path)
        handles.append(module.register_forward_pre_hook(lambda *_, name=layer.name: order.append(name)))
    tiny.call(model, noise(tiny), 500.0)
    for handle in handles:
        handle.remove()
    assert tuple(dict.fromkeys(order)) == table.names
    assert all(order.count(name) == calls_of(tiny, name) for name in table.names)


def test_layers_cover_the_blocks(model, table):
    """What is left over is embeddings, modulations and the final layer: at these sizes still a fraction."""
    assert table.layer_macs / table.full_macs > 0.65
    assert all(layer.macs > 0 for layer in table.layers)
    assert all(layer.attention_macs > 0 for layer in table.layers if layer.kind in ("attention", "block"))


def test_cost_counts_one_image_whatever_the_batch(tiny, model, table):
    alone = measured(tiny, model, batch=1)
    assert alone.layers == table.layers
    assert alone.rest_macs == pytest.approx(
        table.rest_macs, rel=0.05
    )  # Mochi's positions are made once a call


def test_computing_everything_is_bit_equal_to_the_bare_model(tiny, model, table):
    everything = schedule_of(table, torch.ones(STEPS, len(table), dtype=torch.bool))
    assert torch.equal(cached_walk(tiny, model, everything), loop(tiny, model))


def test_reuse_changes_the_result_and_two_runs_agree(tiny, model, table):
    schedule = schedule_of(table, predictor=Predictor.parse("taylor-1"))
    first = cached_walk(tiny, model, schedule)
    assert not torch.equal(first, loop(tiny, model))
    assert torch.isfinite(first).all()
    assert torch.equal(first, cached_walk(tiny, model, schedule))


def test_every_layer_matters(tiny, model, table):
    """A submodule whose output went nowhere would be no layer."""
    bare = loop(tiny, model)
    for index, name in enumerate(table.names):
        if tiny.class_name == "LuminaNextDiT2DModel" and name.endswith("attn2"):
            continue  # its gate is zero until it is trained
        compute = torch.ones(STEPS, len(table), dtype=torch.bool)
        compute[1:, index] = False
        text_only = name.startswith("context_refiner")
        unread = name == "transformer_blocks.1.txt_mlp"  # Qwen-Image leaves the text of the last block unread
        unread |= tiny.class_name == "HunyuanVideo15Transformer3DModel" and name.endswith("3.ff_context")
        unread |= name in SOUND_AT_LAST
        same = torch.equal(cached_walk(tiny, model, schedule_of(table, compute)), bare)
        assert same == (text_only or unread), name  # what sees only the text is the same at every evaluation


def test_a_reused_layer_is_not_called(tiny, model, table):
    schedule = schedule_of(table)
    with count_calls(model) as calls:
        cached_walk(tiny, model, schedule)
    expected = dict(zip(table.names, schedule.compute.sum(0).tolist(), strict=True))
    expected = {name: calls_of(tiny, name) * count for name, count in expected.items()}
    assert {name: calls[name] for name in expected} == expected


def test_what_feeds_a_reused_layer_is_not_called(tiny, model, table):
    schedule, calls, handles = schedule_of(table), {}, []
    for column, layer in enumerate(table.layers):
        for path in layer.feeders:
            calls[path] = [0, int(schedule.compute[:, column].sum())]

            def counted(*_, path=path):
                calls[path][0] += 1

            first = next(iter(model.get_submodule(path).children()), None)
            if first is not None:  # a hook on the submodule itself runs for a placeholder too
                handles.append(first.register_forward_pre_hook(counted))
            else:
                del calls[path]
    cached_walk(tiny, model, schedule)
    for handle in handles:
        handle.remove()
    assert all(got <= expected for got, expected in calls.values())


def test_stored_values_are_not_changed_by_the_model(tiny, model, table):
    """A model that wrote into a layer's output would write into the store."""
    compute = torch.zeros(STEPS, len(table), dtype=torch.bool)
    compute[0] = True
    with enable_cache(model, schedule_of(table, compute)) as cache, cache.run():
        cache.clock.tick(0)
        tiny.call(model, noise(tiny), 900.0)
        stored = cache.policy.store._values
        kept = {key: [part.clone() for part in parts(value)] for key, value in stored.items()}
        for i in range(1, STEPS - 1):
            cache.clock.tick(i)
            tiny.call(model, noise(tiny), 500.0)
        assert len(kept) == sum(calls_of(tiny, name) for name in table.names)
        for key, copies in kept.items():
            assert all(torch.equal(a, b) for a, b in zip(copies, parts(stored[key]), strict=True))


def parts(value):
    return [value] if isinstance(value, torch.Tensor) else [part for part in value if part is not None]


def test_the_store_peaks_at_what_was_announced(tiny, model, table):
    schedule, peak = schedule_of(table, predictor=Predictor.parse("taylor-1")), 0
    with enable_cache(model, schedule) as cache, cache.run():
        store, put = cache.policy.store, cache.policy.store.put

        def watched(*args):
            nonlocal peak
            put(*args)
            peak = max(peak, store.nbytes)

        store.put = watched
        loop(tiny, model, cache)
        text_rows = tiny.class_name in ("Lumina2Transformer2DModel",)
        assert peak == cache.peak_store_bytes(2) or text_rows
        assert store.nbytes == 0


def test_disabling_restores_the_model_also_after_an_exception(tiny, model, table):
    bare, keys = loop(tiny, model), list(model.state_dict())
    before = {path: dict(module.__dict__) for path, module in model.named_modules()}
    cache = enable_cache(model, schedule_of(table))
    assert list(model.state_dict()) == keys

    def interrupted():
        with cache.run():
            cache.clock.tick(0)
            tiny.call(model, noise(tiny), 900.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cache.policy.store.nbytes == 0
    disable_cache(model)
    assert {path: dict(module.__dict__) for path, module in model.named_modules()} == before
    assert torch.equal(loop(tiny, model), bare)


@pytest.mark.parametrize("predictor", ["copy", "taylor-1"])
def test_soft_gates_at_0_and_1_equal_hard_ones(tiny, model, table, predictor):
    schedule = schedule_of(table, predictor=Predictor.parse(predictor))

    def gate(evaluation, layer):
        return True if evaluation < 2 else schedule.compute[evaluation, layer].float()

    hard = cached_walk(tiny, model, schedule)
    policy = MixingPolicy(gate, schedule.predictor, RUN.log_snrs)
    with attach(model, find_layers(model), policy) as cache, cache.run():
        soft = loop(tiny, model, cache)
    torch.testing.assert_close(soft, hard, atol=1e-4, rtol=1e-3)


def test_soft_gates_pass_gradients(tiny, model, table):
    logits = torch.zeros(STEPS, len(table), requires_grad=True)

    def gate(evaluation, layer):
        return True if evaluation % 2 == 0 else logits[evaluation, layer].sigmoid()

    with (
        attach(model, find_layers(model), MixingPolicy(gate, Predictor(), RUN.log_snrs)) as cache,
        cache.run(),
    ):
        loop(tiny, model, cache).square().mean().backward()
    blind = sum("context_refiner" in name for name in table.names)
    blind += 2 * (tiny.class_name == "LuminaNextDiT2DModel")  # zero gates, see above
    unread = ("QwenImageTransformer2DModel", "HunyuanVideo15Transformer3DModel")
    blind += tiny.class_name in unread  # the last text, see above
    blind += sum(name in SOUND_AT_LAST for name in table.names)
    assert (logits.grad[1::2] != 0).all(0).sum() >= len(table) - blind
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fingerprint_tells_weights_apart(tiny, model, table):
    mine = fingerprint(model, table)
    assert len(mine) == len(table)
    other = fingerprint(tiny.build(seed=1), table)
    assert sum(abs(a - b) > 0.05 for a, b in zip(mine, other, strict=True)) > len(table) / 2
    assert fingerprint(tiny.build(), table) == mine


def test_hard_gates_of_a_full_schedule_store_nothing(table):
    schedule = schedule_of(table, torch.ones(STEPS, len(table), dtype=torch.bool))
    assert not StaticPolicy(schedule.plan, STEPS).store.reads


def test_a_table_with_sizes_survives_a_schedule_file(table, tmp_path):
    schedule_of(table).save(tmp_path / "schedule.safetensors")
    assert CacheSchedule.load(tmp_path / "schedule.safetensors").layers == table


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, hidden_states):
        for block in self.layers:
            hidden_states = block(hidden_states)
        return hidden_states


def test_an_unknown_transformer_is_taken_by_the_names_of_its_parts_with_a_warning():
    with pytest.warns(UserWarning, match=r"taking 4 submodules .* \(layers.0.attn, .*\); .*register_blocks"):
        table = find_layers(Unknown())
    assert table.names == ("layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp")


def test_one_registration_adds_a_model():
    class Known(Unknown):
        pass

    name = f"{__name__.partition('.')[0]}.Known"
    register_blocks(name, "known", {"layers": {"mlp": Residual("mlp", ("attn",))}})
    model = Known()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = find_layers(model)
    assert [(layer.name, layer.feeders) for layer in table.layers] == [
        ("layers.0.mlp", ("layers.0.attn",)),
        ("layers.1.mlp", ("layers.1.attn",)),
    ]
    sized, _ = measure_layers(model, table, (), {"hidden_states": torch.zeros(3, 2, 4)})
    assert [layer.linear_macs for layer in sized.layers] == [64, 64]


def test_a_registration_that_finds_nothing_says_so():
    class Misspelt(Unknown):
        pass

    register_blocks(
        f"{__name__.partition('.')[0]}.Misspelt", "misspelt", {"layers": {"attention": "attention"}}
    )
    with pytest.raises(ConfigError, match="no block in layers of .* has a submodule attention"):
        find_layers(Misspelt())
