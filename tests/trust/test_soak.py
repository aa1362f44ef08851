"""A thousand runs of cached models with changing shapes: no tensor more than there was."""

from __future__ import annotations

import gc
from contextlib import suppress

import torch

import l2c
from l2c.sampling import Denoiser, Sampler
from l2c.sampling.sampler import seeded_noise
from l2c.testing import tiny_dit, tiny_interval, tiny_pipeline, tiny_run

SIZES = (1, 3, 2, 5)


def tensor_bytes() -> int:
    """Memory of all tensors that there are, of each storage once.

    What compilers have left behind from other tests has shapes and no memory.
    """
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor):  # some objects warn when they are asked for their class
            with suppress(RuntimeError, UserWarning):
                storage = one.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def grown(run, runs: int) -> int:
    """Bytes of tensors that so many runs of changing size leave, after all sizes have been there."""
    for size in SIZES:
        run(size)
    before = tensor_bytes()
    for number in range(runs):
        run(SIZES[number % len(SIZES)])
    return tensor_bytes() - before


@torch.no_grad()
def test_nothing_grows_over_runs_of_a_model():
    model = tiny_dit()
    sampler = Sampler(Denoiser.of(model), "ddim", 3)
    schedule = l2c.methods.interval(model, solver="ddim", steps=3, every=2)
    labels = torch.arange(max(SIZES))
    noise = seeded_noise(range(max(SIZES)), sampler.denoiser.sample_shape)
    with l2c.enable_cache(model, schedule):
        assert grown(lambda size: sampler(noise[:size], labels[:size]), 900) == 0


def test_nothing_grows_over_runs_of_a_pipeline():
    pipe = tiny_pipeline("dit")
    schedule = tiny_interval(pipe, "dit", num_inference_steps=2)
    with l2c.enable_cache(pipe, schedule):
        assert grown(lambda size: tiny_run(pipe, "dit", steps=2, images=size), 100) == 0
