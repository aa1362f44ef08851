"""Caches of other libraries, run as they are: on a pipeline itself, or on a model's weights in diffusers' layout.

FreqCa is among them, since no schedule can say what it does, but its code is here. All others decide while they sample,
by what they see, so their cost is only known afterwards: it is counted from the forwards that ran. A pipeline has every
attribute back afterwards; of a model a copy is used and thrown away. A run whose guidance is one batch, as those of
l2c's models, is one run for them, with one decision for the whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from l2c.compare import diffusers_caches as caches
from l2c.compare.cache_dit import cache_dit
from l2c.compare.diffusers_caches import SampleBatch
from l2c.compare.freqca import freqca
from l2c.compare.restoring import restored
from l2c.errors import ConfigError, check_installed
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost
from l2c.models.conversion import DIFFUSERS_CLASS, to_diffusers
from l2c.models.dit import DiT
from l2c.sampling.denoiser import Denoiser


@dataclass(frozen=True)
class Baseline:
    """A cache of another library.

    Attributes:
        name: In configurations.
        title: For people.
        source: Where it was published.
        package: What has to be installed.
        enable: Context manager over (host, settings) that yields a `SampleBatch`.
        settings: Three that span from careful to fast on small models.
        prepare: What it has to find out beforehand, as plain data that is added to its settings; arguments
            (host, a function that samples with it).
    """

    name: str
    title: str
    source: str
    package: str
    enable: Callable[[Host, Mapping[str, Any]], AbstractContextManager[SampleBatch]]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    prepare: Callable[[Host, Callable[[], Tensor]], dict[str, Any]] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return find_spec(self.package) is not None

    def check_installed(self) -> None:
        """Refuses what cannot be run here.

        Raises:
            ConfigError: If the library is not installed.
        """
        check_installed(self.title, self.package, f"'l2c[baselines]', or leave '{self.name}' out")


def _diffusers(
    name: str,
    title: str,
    config: str,
    enable: Callable[[Host, Mapping[str, Any]], AbstractContextManager[SampleBatch]],
    settings: tuple[Mapping[str, Any], ...],
    prepare: Callable[[Host, Callable[[], Tensor]], dict[str, Any]] | None = None,
) -> Baseline:
    return Baseline(
        f"diffusers-{name}", f"{title} (diffusers)", f"diffusers.hooks.{config}", "diffusers", enable, settings, prepare
    )  # fmt: skip


_CAREFUL_TO_FAST = (0.05, 0.1, 0.2)

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("diffusers", "diffusers, everything computed", "diffusers", "diffusers", caches.bare),
        _diffusers(
            "first-block",
            "First Block Cache",
            "FirstBlockCacheConfig",
            caches.first_block,
            tuple({"threshold": threshold} for threshold in _CAREFUL_TO_FAST),
        ),
        _diffusers(
            "taylorseer",
            "TaylorSeer",
            "TaylorSeerCacheConfig",
            caches.taylorseer,
            tuple(
                {"cache_interval": every, "max_order": 1, "disable_cache_before_step": 2}
                for every in (2, 3, 4)
            ),
        ),
        _diffusers(
            "mag",
            "MagCache",
            "MagCacheConfig",
            caches.mag,
            tuple({"threshold": t, "max_skip_steps": s} for t, s in ((0.03, 2), (0.06, 3), (0.24, 5))),
            caches.calibrate_mag,
        ),
        _diffusers(
            "pyramid",
            "PAB",
            "PyramidAttentionBroadcastConfig",
            caches.pyramid,
            tuple(
                {
                    "spatial_attention_block_skip_range": every,
                    "cross_attention_block_skip_range": 2 * every,
                    "spatial_attention_timestep_skip_range": (100, 900),
                    "cross_attention_timestep_skip_range": (100, 900),
                }
                for every in (2, 3, 4)
            ),
        ),
        _diffusers(
            "faster",
            "FasterCache",
            "FasterCacheConfig",
            caches.faster,
            tuple(
                {"spatial_attention_block_skip_range": every, "unconditional_batch_skip_range": 2 * every}
                for every in (2, 3, 4)
            ),
        ),
        Baseline(
            "freqca",
            "FreqCa",
            "arXiv 2510.08669",
            "torch",
            freqca,
            tuple({"interval": interval} for interval in (2, 3, 6)),
        ),
        Baseline(
            "cache-dit",
            "cache-dit, DBCache and TaylorSeer",
            "cache-dit on PyPI",
            "cache_dit",
            cache_dit,
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


@contextmanager
def running(host: Host) -> Iterator[Host]:
    """What a cache of another library may be enabled on until the context ends: a pipeline is as before then."""
    if isinstance(host, ModelHost):
        yield in_diffusers(host)
        return
    with restored(host.target):
        yield host


def in_diffusers(host: ModelHost) -> ModelHost:
    """The same run on a copy of a DiT as diffusers' class.

    Raises:
        ConfigError: If the model is no DiT.
    """
    model = host.target
    if isinstance(model, DiT):
        copied = to_diffusers(model)
    elif type(model).__name__ == DIFFUSERS_CLASS:
        copied = copy.deepcopy(model)
    else:
        raise ConfigError(
            f"the caches of diffusers and cache-dit run on a {DIFFUSERS_CLASS} only, got a {type(model).__name__}; "
            "leave them out"
        )
    return ModelHost(replace(host.sampler, denoiser=Denoiser.of(copied)))
