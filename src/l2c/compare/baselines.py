"""Caches of other libraries, run as they are on the same weights in diffusers' layout.

They decide while they sample, by what they see, so their cost is only known afterwards: it is counted from the forwards
that ran. They are enabled on a copy of the model that is thrown away afterwards, so nothing of them can stay behind.

All of them see guidance as one batch, as l2c samples by default, and take one decision for the whole batch.
"""

from __future__ import annotations

import ast
import copy
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.models.conversion import DIFFUSERS_CLASS, to_diffusers
from l2c.models.dit import DiT
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler

SampleBatch = Callable[[Callable[[], Tensor]], Tensor]
"""Runs the sampling of one batch, a function without arguments, in whatever the library wants around it."""


@dataclass(frozen=True)
class Baseline:
    """A cache of another library.

    Attributes:
        name: In configurations.
        title: For people.
        source: Where it was published.
        package: What has to be installed.
        enable: Context manager over (transformer, steps, settings) that yields a `SampleBatch`.
        settings: Three that span from careful to fast on small models.
        prepare: What it has to find out beforehand, as plain data that is added to its settings; arguments
            (transformer, steps, a function that samples with it).
    """

    name: str
    title: str
    source: str
    package: str
    enable: Callable[[Any, int, Mapping[str, Any]], AbstractContextManager[SampleBatch]]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    prepare: Callable[[Any, int, Callable[[], Tensor]], dict[str, Any]] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return find_spec(self.package) is not None

    def check_installed(self) -> None:
        """Refuses what cannot be run here.

        Raises:
            ConfigError: If the library is not installed.
        """
        if not self.installed:
            raise ConfigError(
                f"{self.title} is not installed; pip install 'l2c[baselines]', or leave '{self.name}' out"
            )


@contextmanager
def _bare(transformer: Any, steps: int, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    yield lambda sample: sample()


@contextmanager
def _first_block(transformer: Any, steps: int, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(transformer, FirstBlockCacheConfig(**settings))
    yield lambda sample: _in_context(transformer, sample)


@contextmanager
def _taylorseer(transformer: Any, steps: int, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    # Its own patterns expect modules called `attn`; here they are `attn1` and `ff`.
    config = TaylorSeerCacheConfig(
        cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"],
        taylor_factors_dtype=torch.float32,
        **settings,
    )
    apply_taylorseer_cache(transformer, config)
    yield lambda sample: _in_context(transformer, sample)


@contextmanager
def _mag(transformer: Any, steps: int, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    apply_mag_cache(transformer, MagCacheConfig(num_inference_steps=steps, **settings))
    yield lambda sample: _in_context(transformer, sample)


def _calibrate_mag(transformer: Any, steps: int, sample: Callable[[], Tensor]) -> dict[str, Any]:
    """The ratios that MagCache wants to be given; its calibration only prints them."""
    printed = io.StringIO()
    with _mag(transformer, steps, {"calibrate": True}) as batch, redirect_stdout(printed):
        batch(sample)
    listed = printed.getvalue()
    return {
        "mag_ratios": ast.literal_eval(listed[listed.index("[", listed.index("):")) : listed.rindex("]") + 1])
    }


def _in_context(transformer: Any, sample: Callable[[], Tensor]) -> Tensor:
    """A pipeline of diffusers resets its hooks before a run and names the calls in it."""
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks(recurse=True)
    with CacheMixin.cache_context(transformer, "all"):
        return sample()


@contextmanager
def _cache_dit(transformer: Any, steps: int, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # it logs every decision otherwise
    import cache_dit
    from cache_dit.caching.patch_functors import DiTPatchFunctor

    options = dict(settings)
    order = int(options.pop("taylorseer_order", 0))
    config = cache_dit.DBCacheConfig(**options, enable_separate_cfg=False, num_inference_steps=steps)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    adapter = cache_dit.BlockAdapter(
        transformer=transformer,
        blocks=transformer.transformer_blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
        patch_functor=DiTPatchFunctor(),
        has_separate_cfg=False,
    )
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    def batch(sample: Callable[[], Tensor]) -> Tensor:
        fresh = {"cache_config": copy.deepcopy(config), "calibrator_config": copy.deepcopy(calibrator)}
        cache_dit.refresh_context(
            transformer, **{key: value for key, value in fresh.items() if value is not None}
        )
        return sample()

    try:
        yield batch
    finally:
        cache_dit.disable_cache(adapter)


_CAREFUL_TO_FAST = (0.05, 0.1, 0.2)

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("diffusers", "diffusers, everything computed", "diffusers", "diffusers", _bare),
        Baseline(
            "diffusers-first-block",
            "First Block Cache (diffusers)",
            "diffusers.hooks.FirstBlockCacheConfig",
            "diffusers",
            _first_block,
            tuple({"threshold": threshold} for threshold in _CAREFUL_TO_FAST),
        ),
        Baseline(
            "diffusers-taylorseer",
            "TaylorSeer (diffusers)",
            "diffusers.hooks.TaylorSeerCacheConfig",
            "diffusers",
            _taylorseer,
            tuple(
                {"cache_interval": every, "max_order": 1, "disable_cache_before_step": 2}
                for every in (2, 3, 4)
            ),
        ),
        Baseline(
            "diffusers-mag",
            "MagCache (diffusers)",
            "diffusers.hooks.MagCacheConfig",
            "diffusers",
            _mag,
            tuple({"threshold": t, "max_skip_steps": s} for t, s in ((0.03, 2), (0.06, 3), (0.24, 5))),
            _calibrate_mag,
        ),
        Baseline(
            "cache-dit",
            "cache-dit, DBCache and TaylorSeer",
            "cache-dit on PyPI",
            "cache_dit",
            _cache_dit,
            tuple(
                {
                    "Fn_compute_blocks": 1,
                    "Bn_compute_blocks": 0,
                    "residual_diff_threshold": threshold,
                    "max_warmup_steps": 3,
                    "max_continuous_cached_steps": 3,
                    "taylorseer_order": 1,
                }
                for threshold in _CAREFUL_TO_FAST
            ),
        ),
    )
}


class ForwardCount:
    """Counts how often each module of interest runs in full, and what that costs.

    Args:
        transformer: diffusers' `DiTTransformer2DModel`, before a cache is enabled on it.
    """

    def __init__(self, transformer: Any) -> None:
        table = find_layers(transformer)
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self._macs = {layer.module_path: layer.macs for layer in table.layers}
        blocks = dict.fromkeys(path.rpartition(".")[0] for path in self._macs)
        norms = {f"{block}.norm1": 7 * width**2 + 256 * width for block in blocks}
        self._other_macs: int = table.rest_macs - sum(norms.values())
        self._macs |= norms
        self._calls, self._evaluations = dict.fromkeys(self._macs, 0), 0
        transformer.register_forward_pre_hook(self._evaluate)
        for path in self._macs:
            self._count(path, transformer.get_submodule(path))

    def _evaluate(self, *_: object) -> None:
        self._evaluations += 1

    def _count(self, path: str, module: nn.Module) -> None:
        forward = module.forward

        def counted(*arguments: Any, **options: Any) -> Any:
            self._calls[path] += 1
            return forward(*arguments, **options)

        module.forward = counted

    @property
    def macs(self) -> float:
        """Multiply-accumulates of an evaluation for one image, without guidance: the mean over all that ran."""
        spent = sum(self._macs[path] * calls for path, calls in self._calls.items())
        return spent / max(1, self._evaluations) + self._other_macs


def in_diffusers(sampler: Sampler) -> Sampler:
    """The same run on a copy of a DiT as diffusers' class.

    Raises:
        ConfigError: If the model is no DiT.
    """
    model = sampler.denoiser.model
    if isinstance(model, DiT):
        copied = to_diffusers(model)
    elif type(model).__name__ == DIFFUSERS_CLASS:
        copied = copy.deepcopy(model)
    else:
        raise ConfigError(
            f"the caches of diffusers and cache-dit run on a {DIFFUSERS_CLASS} only, got a {type(model).__name__}; "
            "leave them out"
        )
    return replace(sampler, denoiser=Denoiser.of(copied))
