"""The engine on a CUDA device: captured evaluations against eager ones, memory, and what the host does meanwhile."""

from __future__ import annotations

import time

import pytest
import torch

import l2c
from l2c.engine.graphs import held_elements
from l2c.models import load_model
from l2c.sampling.compiled import engine_of, release_engines
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # PyTorch's own, in its compiler
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest difference of a picture in [-1, 1] after a whole run, by the weights' element type."""


@pytest.fixture(scope="module", params=["dit-mini-cifar10", "uvit-mini-cifar10"])
def name(request):
    return request.param


def make(name: str, dtype=torch.float32, steps: int = 10, guidance: Guidance | None = None) -> Sampler:
    solver = "dpmsolver-singlestep" if name.startswith("uvit") else "dpmsolver++"
    model = load_model(name, dtype=dtype, device="cuda")
    return Sampler(Denoiser.of(model), solver, steps, guidance=guidance or Guidance(1.5))


def inputs(sampler: Sampler, count: int):
    return seeded_noise(range(count), sampler.denoiser.sample_shape).cuda(), torch.arange(count).cuda() % 10


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("predictor", [None, "copy", "taylor-2"])
def test_graphs_equal_eager_runs(name, dtype, predictor):
    sampler = make(name, dtype)
    schedule = None
    if predictor is not None:
        schedule = l2c.methods.interval(
            sampler.denoiser.model, solver=sampler.solver, steps=10, every=2, predictor=predictor
        )
    noise, labels = inputs(sampler, 4)
    eager = sampler.compile(schedule, "eager")(noise, labels)
    graph = sampler.compile(schedule, "graph")
    for _ in range(2):
        difference = (graph(noise, labels) - eager).abs()
        print(name, dtype, predictor, float(difference.max()), float(difference.square().mean().sqrt()))
        assert difference.max() < TOLERANCE[dtype]
        assert difference.square().mean().sqrt() < TOLERANCE[dtype] / 8


def test_float32_eager_is_the_bare_model_bit_for_bit(name):
    sampler = make(name)
    noise, labels = inputs(sampler, 2)
    everything = l2c.methods.interval(sampler.denoiser.model, solver=sampler.solver, steps=10, every=1)
    with torch.no_grad():
        assert torch.equal(sampler.compile(everything, "eager")(noise, labels), sampler(noise, labels))


def test_other_inputs_and_guidance_need_no_new_capture(name):
    sampler = make(name)
    noise, labels = inputs(sampler, 3)
    schedule = l2c.methods.interval(sampler.denoiser.model, solver=sampler.solver, steps=10, every=2)
    sampler.compile(schedule, "graph")(noise, labels)
    engine = engine_of(sampler.denoiser.model, "graph")
    pieces = len(engine.pieces)
    for scale in (1.2, 2.5):
        other = Sampler(sampler.denoiser, sampler.solver, 10, guidance=Guidance(scale))
        graph = other.compile(schedule, "graph")(noise + 1, labels.flip(0))
        eager = other.compile(schedule, "eager")(noise + 1, labels.flip(0))
        assert (graph - eager).abs().max() < 5 * TOLERANCE[torch.float32]
    assert len(engine.runs) == 1
    assert len(engine.pieces) == pieces


def test_split_guidance_and_interleaved_shapes(name):
    sampler = make(name, guidance=Guidance(1.5, "split"))
    schedule = l2c.methods.interval(
        sampler.denoiser.model, solver=sampler.solver, steps=10, every=2, predictor="taylor-1"
    )
    graph, eager = sampler.compile(schedule, "graph"), sampler.compile(schedule, "eager")
    for count in (2, 3, 2, 1, 3):
        noise, labels = inputs(sampler, count)
        assert (graph(noise, labels) - eager(noise, labels)).abs().max() < TOLERANCE[torch.float32]


def test_the_store_takes_what_the_formula_says(name):
    sampler = make(name, torch.bfloat16)
    schedule = l2c.methods.interval(
        sampler.denoiser.model, solver=sampler.solver, steps=10, every=2, predictor="taylor-2"
    )
    noise, labels = inputs(sampler, 4)
    sampler.compile(schedule, "graph")(noise, labels)
    (run,) = engine_of(sampler.denoiser.model, "graph").runs
    assert run.store_bytes == held_elements(run._sharing, schedule.layers) * 8 * 2


def test_nothing_grows_over_a_hundred_runs_of_changing_size(name):
    sampler = make(name, torch.bfloat16)
    schedule = l2c.methods.interval(sampler.denoiser.model, solver=sampler.solver, steps=10, every=2)
    graph = sampler.compile(schedule, "graph")
    sizes = [1, 2, 4, 3]
    for count in sizes * 2:
        graph(*inputs(sampler, count))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for index in range(100):
        graph(*inputs(sampler, sizes[index % 4]))
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_shapes_used_least_recently_are_dropped_at_the_limit(name):
    sampler = make(name, torch.bfloat16)
    graph = sampler.compile(None, "graph")
    engine = engine_of(sampler.denoiser.model, "graph")
    engine.memory_limit = 1
    for count in (1, 2, 3):
        graph(*inputs(sampler, count))
        assert len(engine.runs) == 1
    release_engines(sampler.denoiser.model)


def test_the_host_never_waits_within_a_run(name):
    sampler = make(name, torch.bfloat16, steps=20)
    schedule = l2c.methods.interval(sampler.denoiser.model, solver=sampler.solver, steps=20, every=2)
    graph = sampler.compile(schedule, "graph")
    noise, labels = inputs(sampler, 16)
    graph(noise, labels)
    torch.cuda.synchronize()
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            began = time.perf_counter()
            graph(noise, labels)
            host = time.perf_counter() - began
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    print(f"host {1e6 * host / 20:.0f} us per evaluation")
