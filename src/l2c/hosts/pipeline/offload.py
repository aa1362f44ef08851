"""A pipeline while it is learned through: no weight requires gradients, and the device is left to the transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.hosts.pipeline.components import transformers_of

_ENCODERS = ("text_encoder", "image_encoder", "vae", "safety_checker")
"""How the names of components begin that work before or after the scheduler's run."""


def execution_device(pipe: Any) -> torch.device:
    """Where a pipeline computes, wherever offloading keeps its weights."""
    device = getattr(pipe, "_execution_device", None)
    if device is None:
        device = next(next(iter(transformers_of(pipe).values())).parameters()).device
    return torch.device(device)


@contextmanager
def encoders_offloaded(pipe: Any) -> Iterator[None]:
    """Prepares a pipeline for learning through it, until it ends; then it is what it was.

    Encoders and decoders keep their weights off the device, and have them there while they are at work: from a call
    of one until the next call of a transformer. Where the pipeline offloads its models by turns, the transformers stay
    on the device meanwhile, since the backward pass needs them. Where a device map has spread it over several
    devices, all stay where they are.

    Raises:
        ConfigError: If the weights of a transformer come and go in groups, which the backward pass would miss.
    """
    models = transformers_of(pipe)
    for name, model in models.items():
        if any(moves_in_groups(module) for module in model.modules()):
            raise ConfigError(
                f"the {name} has group offloading, and the backward pass would not find its weights; load the pipeline "
                "without it to learn, and take recompute=True (--recompute) for less memory"
            )
    encoders = {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and name.startswith(_ENCODERS)
    }
    with ExitStack() as stack:
        stack.enter_context(_frozen(pipe))
        device = execution_device(pipe)
        offloads = bool(getattr(pipe, "_all_hooks", None))
        if offloads:
            stack.enter_context(_not_by_turns(pipe, device))
            for model in models.values():
                model.to(device)
        if isinstance(getattr(pipe, "hf_device_map", None), dict):
            encoders = {}
        resting = [_Resting(part, device, back=not offloads) for part in encoders.values()]
        for rest in resting:
            stack.callback(rest.end)
        for name in models:
            handle = getattr(pipe, name).register_forward_pre_hook(lambda *_: _sleep(resting, device))
            stack.callback(handle.remove)
        _sleep(resting, device)
        yield


def moves_in_groups(module: nn.Module) -> bool:
    """Whether the weights of a module come and go with others, by diffusers' group offloading."""
    registry = getattr(module, "_diffusers_hook", None)
    return any("group_offloading" in name for name in getattr(registry, "hooks", {}))


@contextmanager
def _frozen(pipe: Any) -> Iterator[None]:
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    weights = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def _not_by_turns(pipe: Any, device: torch.device) -> Iterator[None]:
    """Takes diffusers' offloading of whole models away, which moves every model off the device after a call."""
    pipe.remove_all_hooks()
    try:
        yield
    finally:
        pipe.enable_model_cpu_offload(device=device)


class _Resting:
    """A model whose weights are off the device unless it is at work; where it seems to be stays as it is.

    Args:
        module: The model.
        device: Where it works.
        back: Whether its weights are there in the end.
    """

    def __init__(self, module: nn.Module, device: torch.device, back: bool) -> None:
        weights = [weight for weight in module.parameters() if not weight.is_meta]
        # data of subclasses, as quantised weights are, is theirs to move
        self._weights = [weight for weight in weights if type(weight.data) is Tensor]
        self._kept = [weight.data.to("cpu") for weight in self._weights]
        self._device, self._back = device, back
        self._awake = True
        self._hooks = [part.register_forward_pre_hook(self._wake) for part in module.modules()]

    def _wake(self, *_: Any) -> None:
        if not self._awake:
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.data = kept.to(self._device)
            self._awake = True

    def sleep(self) -> bool:
        """Takes the weights off the device; returns whether they were there."""
        was_awake, self._awake = self._awake, False
        if was_awake:
            for weight in self._weights:
                weight.data = torch.empty(0, dtype=weight.dtype, device=self._device)
        return was_awake

    def end(self) -> None:
        """Gives the weights back."""
        for hook in self._hooks:
            hook.remove()
        if self._back:
            self._wake()
            return
        for weight, kept in zip(self._weights, self._kept, strict=True):
            weight.data = kept


def _sleep(resting: list[_Resting], device: torch.device) -> None:
    slept = [rest.sleep() for rest in resting]
    if any(slept) and device.type == "cuda":
        torch.cuda.empty_cache()
