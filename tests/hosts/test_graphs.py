"""Calls of pipelines' transformers as graphs: on a CPU by a capture that records and replays, on a GPU by CUDA's."""

from __future__ import annotations

import gc
import warnings

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import l2c
from l2c.errors import ConfigError
from l2c.hosts.pipeline import graphs
from l2c.testing import tiny_interval, tiny_mixed, tiny_pipeline, tiny_run

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

STEPS = 6
NAMES = ("dit", "pixart", "sd3", "flux", "wan", "wan2.2")


class Recorded:
    """A call that is made again over the tensors it was recorded with; one graph's results overwrite all others'."""

    every: list[Recorded] = []  # noqa: RUF012

    def __init__(self, call) -> None:
        self.call, self.result = call, call()
        Recorded.every.append(self)

    def replay(self) -> None:
        fresh = self.call()
        for recorded in Recorded.every:
            tree_map(
                lambda part: part.fill_(torch.nan) if isinstance(part, Tensor) else part, recorded.result
            )
        tree_map(lambda part, new: part.copy_(new) if isinstance(part, Tensor) else part, self.result, fresh)


@pytest.fixture
def recording(monkeypatch):
    """Lets a CPU capture."""

    def capture_call(call, pool):
        recorded = Recorded(call)
        return recorded, recorded.result

    Recorded.every.clear()
    monkeypatch.setattr(graphs, "DEVICE", "cpu")
    monkeypatch.setattr(graphs, "capture_call", capture_call)


def replays(cache, name="transformer"):
    return cache.transformers[name].replays


def num_rows(schedule) -> int:
    """How many different evaluations a schedule of copies has."""
    return len({tuple(row) for row in schedule.compute.tolist()})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [tiny_interval, tiny_mixed])
def test_replayed_calls_are_the_eager_ones_bit_for_bit(recording, name, make):
    pipe = tiny_pipeline(name)
    schedule = make(pipe, name)
    with l2c.enable_cache(pipe, schedule) as cache:
        eager = [tiny_run(pipe, name, seed=seed) for seed in (0, 3)]
        expected = cache.summary()
    with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
        graph = [tiny_run(pipe, name, seed=seed) for seed in (0, 3)]
        assert cache.summary() == expected
        made = [replays(cache, part).num_graphs for part in cache.transformers]
        calls = [len(model.calls) for model in expected.models.values()]
        tiny_run(pipe, name)
        assert [replays(cache, part).num_graphs for part in cache.transformers] == made
    assert all(map(torch.equal, graph, eager))
    if name != "wan2.2":
        assert made == [num_rows(schedule) * calls[0]]


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_evaluations_that_differ_in_weights_alone_share_a_graph(recording, name):
    pipe = tiny_pipeline(name)
    schedule = tiny_interval(pipe, name, predictor="taylor-2", num_inference_steps=12)
    with l2c.enable_cache(pipe, schedule):
        eager = tiny_run(pipe, name, steps=12)
    with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
        graph = tiny_run(pipe, name, steps=12)
        (seen,) = cache.summary().models.values()
        assert replays(cache).num_graphs <= 8 * len(seen.calls)
        assert torch.equal(tiny_run(pipe, name, steps=12), graph)
    torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-5)


def test_shapes_and_guidance_have_graphs_of_their_own_up_to_a_number(recording, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SHAPES", 2)
    pipe = tiny_pipeline("pixart")
    schedule = tiny_interval(pipe, "pixart")
    runs = [{"images": 1}, {"images": 2}, {"images": 1, "guidance_scale": 5.0}, {"images": 2, "seed": 9}]
    with l2c.enable_cache(pipe, schedule):
        eager = [tiny_run(pipe, "pixart", **run) for run in (*runs, {"images": 3})]
    with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
        graph = [tiny_run(pipe, "pixart", **run) for run in runs]
        assert replays(cache).num_graphs == 2 * 2
        with pytest.warns(UserWarning, match="run as they are: calls after 2 kinds of them"):
            graph.append(tiny_run(pipe, "pixart", images=3))
    assert all(map(torch.equal, graph, eager))


def test_weights_that_change_in_place_count_and_moved_ones_are_captured_anew(recording):
    pipe = tiny_pipeline("dit")
    weight = next(module for module in pipe.transformer.modules() if isinstance(module, torch.nn.Linear))
    with l2c.enable_cache(pipe, tiny_interval(pipe, "dit"), any_weights=True, engine="graph") as cache:
        before = tiny_run(pipe, "dit")
        old = replays(cache)._shapes
        weight.weight.mul_(1.5)
        changed = tiny_run(pipe, "dit")
        assert replays(cache)._shapes is old
        weight.weight.data = weight.weight.data.clone() / 1.5
        assert torch.allclose(tiny_run(pipe, "dit"), before, atol=1e-6)
        assert replays(cache)._shapes is not old
    assert not torch.equal(before, changed)


def test_runs_that_begin_or_end_in_their_middle_are_replayed_too(recording):
    base = tiny_pipeline("sd3")
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    schedule = tiny_interval(base, "sd3", predictor="taylor")
    whole, half = ({"image": torch.zeros(1, 3, 16, 16), "strength": strength} for strength in (1.0, 0.5))

    def stop(*_):
        raise RuntimeError("stop")

    with l2c.enable_cache(pipe, schedule):
        eager = [tiny_run(pipe, "sd3", **image) for image in (whole, half)]
    with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
        for _ in range(2):
            for image, expected in zip((whole, half), eager, strict=True):
                torch.testing.assert_close(tiny_run(pipe, "sd3", **image), expected, atol=1e-5, rtol=1e-5)
                assert replays(cache).num_graphs > 0
                with pytest.raises(RuntimeError, match="stop"):
                    tiny_run(pipe, "sd3", **image, callback_on_step_end=stop)


def test_what_is_returned_outside_of_tensors_is_not_captured(recording):
    pipe = tiny_pipeline("sd3")
    forward, schedule = type(pipe.transformer).forward, tiny_interval(pipe, "sd3")

    class Other(type(pipe.transformer)):
        def forward(self, *args, **kwargs):
            return (*forward(self, *args, **kwargs), object())

    pipe.transformer.__class__ = Other
    with l2c.enable_cache(pipe, schedule):
        eager = tiny_run(pipe, "sd3")
    with (
        l2c.enable_cache(pipe, schedule, engine="graph"),
        pytest.warns(UserWarning, match="it returns something that is neither a tensor nor a plain value"),
    ):
        assert torch.equal(tiny_run(pipe, "sd3"), eager)


def _add_lora(pipe):
    layer = next(module for module in pipe.transformer.modules() if isinstance(module, torch.nn.Linear))
    layer.add_module("a", torch.nn.Module())
    layer.a.lora_A = torch.nn.Linear(1, 1).requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pipe: None, "they need a CUDA device, and it is on cpu; move the pipeline with"),
        (lambda pipe: setattr(pipe.transformer, "_hf_hook", object()), "offloading moves its weights"),
        (_add_lora, "it has a LoRA, whose scale may change; call pipe.fuse_lora"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is_with_a_sentence(monkeypatch, change, words):
    pipe = tiny_pipeline("dit")
    schedule = tiny_interval(pipe, "dit")
    with l2c.enable_cache(pipe, schedule):
        eager = tiny_run(pipe, "dit")
    change(pipe)
    if "CUDA" not in words:
        monkeypatch.setattr(graphs, "DEVICE", "cpu")
    with l2c.enable_cache(pipe, schedule, engine="graph"):
        with pytest.warns(UserWarning, match=words) as told:
            first = tiny_run(pipe, "dit")
        assert len(told) == 1
        assert torch.equal(first, eager)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(tiny_run(pipe, "dit"), eager)  # said once


def test_a_model_that_cannot_be_captured_runs_as_it_is_with_a_sentence(recording, monkeypatch):
    attempts = []

    def fail(call, pool):
        attempts.append(call())
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture_call", fail)
    pipe = tiny_pipeline("sd3")
    schedule = tiny_interval(pipe, "sd3")
    with l2c.enable_cache(pipe, schedule):
        eager = tiny_run(pipe, "sd3")
    with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
        with pytest.warns(
            UserWarning, match=r"capturing one failed \(operation not permitted .* capturing\)$"
        ):
            assert torch.equal(tiny_run(pipe, "sd3"), eager)
        assert torch.equal(tiny_run(pipe, "sd3"), eager)
        assert replays(cache).num_graphs == 0
    assert len(attempts) == 1


def test_gradients_go_through_calls_that_run_as_they_are(recording):
    pipe = tiny_pipeline("dit")
    model, scheduler = pipe.transformer, pipe.scheduler
    schedule = tiny_interval(pipe, "dit")
    x = torch.randn(1, *schedule.layers.sample_shape, requires_grad=True)
    with l2c.enable_cache(model, schedule, scheduler=scheduler, engine="graph") as cache:
        scheduler.set_timesteps(STEPS)
        model(x, timestep=scheduler.timesteps[:1], class_labels=torch.tensor([1])).sample.sum().backward()
        assert replays(cache).num_graphs == 0
    assert x.grad is not None


def test_nothing_grows_over_runs(recording):
    pipe = tiny_pipeline("dit")

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    with l2c.enable_cache(pipe, tiny_mixed(pipe, "dit"), engine="graph"):
        for images in (1, 2):
            tiny_run(pipe, "dit", images=images)
        before = count()
        for images in (1, 2) * 5:
            tiny_run(pipe, "dit", images=images)
        assert count() == before


def test_engines_that_there_are_not_are_refused():
    pipe = tiny_pipeline("dit")
    schedule = tiny_interval(pipe, "dit")
    with pytest.raises(
        ConfigError, match="unknown engine for a pipeline 'steam'; .*choose one of eager, graph"
    ):
        l2c.enable_cache(pipe, schedule, engine="steam")
    with pytest.raises(
        ConfigError, match=r"sample with l2c.sample\(engine='graph'\), or name the scheduler="
    ):
        l2c.enable_cache(pipe.transformer, schedule, engine="graph")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_equal_eager_calls(name):
    pipe = tiny_pipeline(name).to("cuda")
    for make, options in ((tiny_mixed, {}), (tiny_interval, {"predictor": "taylor-2"})):
        schedule = make(pipe, name, **options)
        with l2c.enable_cache(pipe, schedule):
            eager = tiny_run(pipe, name)
        with l2c.enable_cache(pipe, schedule, engine="graph") as cache:
            for _ in range(2):
                torch.testing.assert_close(tiny_run(pipe, name), eager, atol=1e-4, rtol=1e-4)
            assert all(replays(cache, part).num_graphs > 0 for part in cache.transformers)
