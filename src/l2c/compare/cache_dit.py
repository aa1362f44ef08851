"""cache-dit on a host: through its pipeline where there is one, with an adapter for a model alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from l2c.compare.diffusers_caches import SampleBatch
from l2c.errors import ConfigError, known
from l2c.hosts.base import Host
from l2c.hosts.pipeline.host import PipelineHost


@contextmanager
def cache_dit(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """DBCache, with a calibrator where the settings name one.

    Args:
        host: A pipeline that cache-dit knows, or a model that is diffusers' DiT.
        settings: Of its `DBCacheConfig`; and `taylorseer_order`, or `calibrator`, which is `foca` or `dmd`.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # it logs every decision otherwise
    import cache_dit

    options = dict(settings)
    calibrator = _calibrator(int(options.pop("taylorseer_order", 0)), options.pop("calibrator", None))
    steps = len(host.run.timesteps)
    if isinstance(host, PipelineHost):
        config = cache_dit.DBCacheConfig(**options, num_inference_steps=steps)
        if calibrator is not None and any(_drops_text(model) for model in host.models.values()):
            calibrator.enable_encoder_calibrator = False  # there is nothing to extrapolate in the end
        cache_dit.enable_cache(host.target, cache_config=config, calibrator_config=calibrator)
        try:
            yield lambda sample: sample()
        finally:
            cache_dit.disable_cache(host.target)
        return
    config = cache_dit.DBCacheConfig(**options, enable_separate_cfg=False, num_inference_steps=steps)
    adapter = _adapter(host.target)
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    def batch(sample: Callable[[], Tensor]) -> Tensor:
        fresh = {"cache_config": copy.deepcopy(config), "calibrator_config": copy.deepcopy(calibrator)}
        known = {key: value for key, value in fresh.items() if value is not None}
        cache_dit.refresh_context(host.target, **known)
        return sample()

    try:
        yield batch
    finally:
        cache_dit.disable_cache(adapter)


def _calibrator(order: int, name: str | None) -> Any:
    import cache_dit

    if order and name:
        raise ConfigError("cache-dit has one calibrator; give either taylorseer_order or calibrator")
    if name is None:
        return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    calibrators = {"foca": cache_dit.FoCaCalibratorConfig, "dmd": cache_dit.DMDCalibratorConfig}
    return calibrators[known("calibrator of cache-dit", name, calibrators)]()


def _drops_text(transformer: Any) -> bool:
    """Whether the last block gives back pictures only, as that of SD3."""
    blocks: Any = getattr(transformer, "transformer_blocks", ())
    return len(blocks) > 0 and bool(getattr(blocks[-1], "context_pre_only", False))


def _adapter(transformer: Any) -> Any:
    import cache_dit
    from cache_dit.caching.patch_functors import DiTPatchFunctor

    return cache_dit.BlockAdapter(
        transformer=transformer,
        blocks=transformer.transformer_blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
        patch_functor=DiTPatchFunctor(),
        has_separate_cfg=False,
    )
