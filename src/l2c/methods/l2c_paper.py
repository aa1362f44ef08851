"""Learning-to-Cache as published: a learned router over the alternating pattern, outputs copied."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from l2c.errors import ConfigError, known
from l2c.hosts.targets import host_of
from l2c.learning import paper
from l2c.learning.paper import RouterSettings
from l2c.methods.base import Method
from l2c.methods.budget import threshold_for
from l2c.schedule.schedule import CacheSchedule

PUBLISHED: dict[str, dict[str, Any]] = {
    "dit-50": {"lambda_": 1e-6, "threshold": 0.1, "reduction": "mean"},
    "dit-20": {"lambda_": 5e-6, "threshold": 0.1, "reduction": "mean"},
    "dit-50-512": {"lambda_": 5e-6, "threshold": 0.9, "reduction": "mean"},
    "uvit": {"lambda_": 0.1, "threshold": 0.9, "reduction": "sum"},
}
"""Released settings by model, steps and resolution; `COMMON` are those of all of them."""

SETTINGS = tuple(f.name for f in fields(RouterSettings) if f.name != "threshold")
"""What can be set of its learning."""

COMMON: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64, "iterations": 50_000}


def learn_router(target: Any, *, release: str | None = None, **options: Any) -> CacheSchedule:
    """Learns the router that `l2c_paper` thresholds.

    Args:
        target: A model, a diffusers pipeline, or a host.
        release: Key of `PUBLISHED`, whose settings are taken; by default those of `RouterSettings`.
        options: Settings of `RouterSettings`, instead of or besides these; and how the target is sampled, see
            `l2c.learn`.

    Raises:
        ConfigError: If the release or a setting is unknown.
    """
    released = {} if release is None else {**COMMON, **find_release(release)}
    released.pop("threshold", None)
    learning = {name: options.pop(name) for name in SETTINGS if name in options}
    settings = RouterSettings(**{**released, **learning})
    host = host_of(target, RouterSettings, **options)
    with host.prepared():
        return paper.learn_router(host, settings)


def find_release(name: str) -> dict[str, Any]:
    """Released settings of that name.

    Raises:
        ConfigError: If there are none.

    >>> find_release("uvit")["lambda_"]
    0.1
    """
    return PUBLISHED[known("release of L2C", name, PUBLISHED)]


def l2c_paper(
    target: Any,
    *,
    threshold: float | None = None,
    budget: float | None = None,
    prepared: CacheSchedule | None = None,
    release: str | None = None,
    **options: Any,
) -> CacheSchedule:
    """Learns with the paper's objective which layers of every second evaluation to copy.

    What differs: noisy inputs are the model's own trajectories and not noised training images. Without `release`, a
    few iterations at a high learning rate replace thousands at 1e-3, and the price of a layer is set for that. With
    a budget, one router serves several thresholds, where the authors learn one per price; the alternating pattern
    cannot go much below half of the work.

    Args:
        target: A model, a diffusers pipeline, or a host.
        threshold: Scores above it compute; by default that of the release, or 0.1.
        budget: Instead of a threshold, the share of the run's MACs to come close to.
        prepared: A schedule with scores, from `learn_router`; by default one is learned.
        release: Key of `PUBLISHED`, whose settings are taken.
        options: Settings of `RouterSettings`, instead of or besides these; and how the target is sampled.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Ma et al., arXiv 2406.01733, section 3.3; released settings in `PUBLISHED`.
    """
    learned = prepared
    if learned is None:
        learned = learn_router(target, release=release, **options)
    else:  # what learning would refuse
        host_of(target, RouterSettings, **{k: v for k, v in options.items() if k not in SETTINGS})
    scores = learned.scores
    if scores is None:
        raise ConfigError(
            "a schedule without router scores cannot be thresholded anew; learn one with l2c.learn"
        )

    if budget is not None:
        return threshold_for(learned.at_threshold, [0.0, *scores[scores.isfinite()].tolist()], budget)
    if threshold is None:
        threshold = 0.1 if release is None else find_release(release)["threshold"]
    return learned.at_threshold(threshold)


METHOD = Method(
    "l2c",
    "Learning-to-Cache, as published",
    l2c_paper,
    "arXiv 2406.01733",
    prepare=learn_router,
    prepare_settings=("release", *SETTINGS),
)
