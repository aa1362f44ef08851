"""How much work learning takes, in three sizes, and how long that is on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from l2c.errors import known
from l2c.hosts.base import Host
from l2c.learning.settings import LearnSettings

EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"iterations": 12, "num_examples": 16, "trials": 12},
    "default": {},
    "best": {"iterations": 160, "num_examples": 96, "trials": 64, "patience": 8},
}
"""What each changes of `LearnSettings`."""


def effort_settings(effort: str) -> Mapping[str, Any]:
    """What an effort changes of `LearnSettings`.

    >>> effort_settings("quick")["iterations"]
    12

    Raises:
        ConfigError: If there is no such effort.
    """
    return EFFORTS[known("effort", effort, EFFORTS)]


def stage_evaluations(
    settings: LearnSettings, wholes: float, step_factor: float, budgets: int = 1, searches: int = 1
) -> dict[str, float]:
    """Work of each stage of learning, in evaluations of one picture.

    Args:
        settings: What decides it.
        wholes: What a run costs, in whole evaluations; the mean over the budgets.
        step_factor: What a step takes for each picture, in forward runs.
        budgets: How many.
        searches: Searches for a mask, for each budget.
    """
    pictures = settings.num_examples + settings.num_validation
    fine = pictures * (settings.reference_steps or wholes)
    judged = searches * settings.trials * settings.trial_examples
    steps = settings.iterations * settings.batch_size * step_factor
    rounds = settings.iterations // settings.validate_every + 1 if settings.validate_every else 0
    made = rounds * settings.num_validation + 2 * settings.num_held_out
    return {
        "fine-step solutions": fine,
        "searching masks": budgets * wholes * judged,
        "learning": budgets * wholes * (steps + made),
    }


@torch.no_grad()
def seconds_per_evaluation(host: Host, size: int) -> float:
    """Seconds of an evaluation of one picture, from one short run that computes everything.

    Args:
        host: What learning is for.
        size: Pictures at a time.

    Raises:
        ConfigError: If its number of steps cannot be set.
    """
    short = host.with_steps(2)
    examples = host.examples(size if host.batched else 1, 0, "timing")
    begun = time.monotonic()
    made = short.sample(examples)
    if made.is_cuda:
        torch.cuda.synchronize()
    return (time.monotonic() - begun) / (len(short.run.timesteps) * len(examples))
