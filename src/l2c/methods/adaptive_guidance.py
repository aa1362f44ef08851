"""Adaptive Guidance: both passes of guidance at first, the conditional one alone from then on."""

from __future__ import annotations

from typing import Any

import torch

from l2c.documents import Fraction, check_value
from l2c.errors import ConfigError
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, pattern
from l2c.schedule.branches import join_branches
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


def adaptive_guidance(target: Any, *, share: float = 0.5, **run: Any) -> CacheSchedule:
    """Guides the first share of the evaluations, and makes the conditional pass alone after it.

    In the second part the prediction is the conditional one: as a schedule, the difference of the passes is continued
    with the weight 0.

    What differs: the publication ends guidance for each picture where its passes are nearly parallel, which saves 25 %
    of the passes on average. As a schedule is the same for all pictures, it ends after a given share here; half of the
    evaluations save as much.

    Args:
        target: A model with guidance, a diffusers pipeline with it, or a host; its weights are not looked at.
        share: Of the evaluations, that are guided; the first one always is.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range, or the passes of guidance cannot be run apart.

    Source: Castillo et al., arXiv 2312.12487.
    """
    check_value("share", share, Fraction)
    host = host_of(target, adaptive_guidance, **run)
    if not host.has_branches:
        raise ConfigError(
            "adaptive guidance leaves out unconditional passes, and this run has no passes of guidance that can be run "
            "apart; sample with guidance, or take another method"
        )
    everything = all_computed(host)
    runs = torch.arange(len(everything)) < max(1, round(share * len(everything)))
    compute = join_branches(everything, everything & runs[:, None], runs)
    predictor = Predictor("linear", coefficients=torch.zeros(*compute.shape, 1))
    return pattern(host, compute, {"method": "adaptive-guidance", "share": share}, predictor)


METHOD = Method(
    "adaptive-guidance",
    "Adaptive Guidance",
    adaptive_guidance,
    "arXiv 2312.12487",
    published={"share": 0.5},
    choices=tuple({"share": tenths / 10} for tenths in range(1, 11)),
)
