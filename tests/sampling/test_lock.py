"""Several threads sample with one model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import l2c
from l2c.sampling.compiled import engine_of

SEEDS = range(8)


def in_threads(call):
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(call, SEEDS))


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_threads_that_share_a_model_get_the_pictures_of_their_seeds(tiny_dit, engine):
    if engine == "compile":
        engine_of(tiny_dit, engine).pieces.compiled = False  # the same state, without waiting for a compiler
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=8, every=2)

    def one(seed, schedule=schedule):
        return l2c.sample(tiny_dit, [seed], seeds=[seed], steps=8, schedule=schedule, engine=engine)

    def either(seed):
        return one(seed, schedule if seed % 2 else None)

    for call in (one, either):
        alone = [call(seed) for seed in SEEDS]
        for made, expected in zip(in_threads(call), alone, strict=True):
            assert torch.equal(made, expected)


def test_threads_that_share_a_compiled_sampler(tiny_dit):
    schedule = l2c.methods.interval(tiny_dit, solver="ddim", steps=8, every=2)
    sampler = l2c.Sampler(l2c.sampling.Denoiser.of(tiny_dit), "ddim", 8).compile(schedule, "eager")

    def call(seed):
        noise = l2c.sampling.seeded_noise(
            [seed], (tiny_dit.config.in_channels, *[tiny_dit.config.image_size] * 2)
        )
        return sampler(noise, torch.tensor([seed]))

    alone = [call(seed) for seed in SEEDS]
    for made, expected in zip(in_threads(call), alone, strict=True):
        assert torch.equal(made, expected)


def test_an_observer_that_samples_with_the_same_model_is_not_locked_out(tiny_dit):
    inner = []

    def observer(evaluation, x, predicted):
        inner.append(l2c.sample(tiny_dit, [1], steps=2))

    l2c.sample(tiny_dit, [1], steps=2, observer=observer)
    assert len(inner) == 2
