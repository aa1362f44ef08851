"""Gradients for timesteps that a pipeline rounds or copies on their way to its transformer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from l2c.hosts.pipeline.components import transformers_of
from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler

_COPIED = "Converting a tensor with requires_grad=True to a scalar"


@contextmanager
def timesteps_with_gradients(pipe: Any) -> Iterator[None]:
    """Lets the noise levels of a learned scheduler be learned by gradient, whatever the pipeline does to timesteps.

    AuraFlow and HunyuanDiT make a new tensor of each timestep, others may round it: what the transformer is called with
    then has no graph. Its value stays, and it is given the gradient of the scheduler's own timestep, times the slope of
    the one over the other between evaluations. Where it is rounded, that is the straight-through estimate. The first
    evaluation needs none, since its level is not learned.

    Args:
        pipe: A pipeline that is driven by its scheduler; any but a `LearnedScheduler` is left alone.
    """
    scheduler = pipe.scheduler
    if not (isinstance(scheduler, LearnedScheduler) and torch.is_grad_enabled()):
        yield
        return
    slopes = _Slopes(scheduler)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", _COPIED)
        for model in transformers_of(pipe).values():
            stack.callback(model.register_forward_pre_hook(slopes.add_gradient, with_kwargs=True).remove)
        yield


class _Slopes:
    """What transformers are called with over the scheduler's timesteps, from one evaluation to the next."""

    def __init__(self, scheduler: LearnedScheduler) -> None:
        self._scheduler = scheduler
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # by evaluation: what was given, and the timestep

    def add_gradient(
        self, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A forward hook that gives the timestep its gradient."""
        named = "timestep" in options
        given = options["timestep"] if named else arguments[1] if len(arguments) > 1 else None
        evaluation = self._scheduler.step_index or 0
        now = self._scheduler.timesteps[evaluation]
        if not isinstance(given, Tensor) or given.requires_grad or not now.requires_grad:
            return None
        first = given.detach().double().flatten()[0]
        self._seen.setdefault(evaluation, (first, now.detach().double()))
        if evaluation - 1 not in self._seen:
            return None
        before, time_before = self._seen[evaluation - 1]
        slope = (first - before) / (now.detach() - time_before)
        value = given if given.is_floating_point() else given.float()
        value = value + (slope * (now - now.detach())).to(value)
        if named:
            return arguments, {**options, "timestep": value}
        return (arguments[0], value, *arguments[2:]), options
