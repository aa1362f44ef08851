"""The caches of diffusers on the transformers of a host, as context managers; who enables them restores the models."""

from __future__ import annotations

import ast
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from l2c.hosts.base import Host

SampleBatch = Callable[[Callable[[], Tensor]], Tensor]
"""Runs the sampling of one batch, a function without arguments, in whatever the library wants around it."""


@contextmanager
def bare(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """Everything computed."""
    yield lambda sample: sample()


@contextmanager
def first_block(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """First Block Cache."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    for model in host.models.values():
        apply_first_block_cache(model, FirstBlockCacheConfig(**settings))
    yield _in_context(host)


@contextmanager
def taylorseer(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """TaylorSeer, on the layers that l2c knows: its own patterns expect modules called `attn`."""
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    paths = [re.escape(layer.module_path) for layer in host.table.layers]
    for model in host.models.values():
        config = TaylorSeerCacheConfig(
            cache_identifiers=paths, taylor_factors_dtype=torch.float32, **settings
        )
        apply_taylorseer_cache(model, config)
    yield _in_context(host)


@contextmanager
def mag(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """MagCache."""
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    for model in host.models.values():
        apply_mag_cache(model, MagCacheConfig(num_inference_steps=len(host.run.timesteps), **settings))
    yield _in_context(host)


def calibrate_mag(host: Host, sample: Callable[[], Tensor]) -> dict[str, Any]:
    """The ratios that MagCache wants to be given; its calibration only prints them."""
    printed = io.StringIO()
    with mag(host, {"calibrate": True}) as batch, redirect_stdout(printed):
        batch(sample)
    listed = re.findall(r"\):\s*(\[[^\]]*\])", printed.getvalue())
    return {"mag_ratios": ast.literal_eval(listed[0])}  # of guidance in two calls, the first one's


@contextmanager
def pyramid(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """Pyramid Attention Broadcast."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    with _timestep(host) as timestep:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        for model in host.models.values():
            config = PyramidAttentionBroadcastConfig(current_timestep_callback=timestep, **options)
            apply_pyramid_attention_broadcast(model, config)
        yield _in_context(host)


@contextmanager
def faster(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """FasterCache."""
    from diffusers.hooks import FasterCacheConfig, apply_faster_cache

    with _timestep(host) as timestep, _quiet("diffusers.hooks.faster_cache"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        for model in host.models.values():
            config = FasterCacheConfig(
                tensor_format="BCHW",
                attention_weight_callback=lambda _: 0.5,
                current_timestep_callback=timestep,
                **options,
            )
            apply_faster_cache(model, config)
        yield _in_context(host)


@contextmanager
def _timestep(host: Host) -> Iterator[Callable[[], float]]:
    """Tells the timestep of the current evaluation, from what the transformers are called with."""
    now = [0.0]

    def note(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = options.get("timestep", arguments[1] if len(arguments) > 1 else None)
        if isinstance(given, Tensor):
            now[0] = float(given.flatten()[0])

    with ExitStack() as stack:
        for model in host.models.values():
            stack.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield lambda: now[0]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _in_context(host: Host) -> SampleBatch:
    """A pipeline of diffusers resets its hooks before a run and names the calls in it, if it knows caches."""
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    models: list[Any] = list(host.models.values())
    for model in models:  # a list of hooks from before there were these
        HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()

    def run(sample: Callable[[], Tensor]) -> Tensor:
        with ExitStack() as stack:
            for model in models:
                HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks(recurse=True)
                stack.enter_context(CacheMixin.cache_context(model, "all"))
            return sample()

    return run
