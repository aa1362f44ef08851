"""diffusers' modular pipelines, whose blocks are what one call with a loop in it is in the others."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError

_MODULE = "diffusers.modular_pipelines.modular_pipeline"
_COVERED = "_l2c_covered"
"""Attribute of blocks that cover others, which holds those."""
_ENCODER = "text_encoder"
"""How the names of components begin that encode prompts."""

Block = Callable[..., tuple[Any, Any]]
"""What a block is when it is called: `block(self, pipe, state)`, which returns both."""


def is_modular(pipe: Any) -> bool:
    """Whether it is a modular pipeline of diffusers."""
    module = sys.modules.get(_MODULE)  # where there is one, it has been imported
    return module is not None and isinstance(pipe, module.ModularPipeline)


def arguments_of(pipe: Any) -> dict[str, Any]:
    """Defaults of what a pipeline is called with, by name; `inspect.Parameter.empty` where there is none."""
    if is_modular(pipe):
        return {given.name: given.default for given in pipe._blocks.inputs if given.name}
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def refuse_unfit(pipe: Any) -> None:
    """Refuses a modular pipeline that is not loaded, or whose guidance changes the layers of its transformer.

    Raises:
        ConfigError: If it is one.
    """
    if not is_modular(pipe) or "transformer" not in pipe.component_names:
        return
    for name in ("transformer", "scheduler"):
        if getattr(pipe, name, None) is None:
            raise ConfigError(
                f"{type(pipe).__name__} has no {name} yet; call pipe.load_components(), or "
                f"pipe.update_components({name}=...)"
            )
    for name, guider in guiders_of(pipe).items():
        base: Any = next(kind for kind in type(guider).__mro__ if kind.__name__ == "BaseGuidance")
        if type(guider).prepare_models is not base.prepare_models:
            raise ConfigError(
                f"the {name} of {type(pipe).__name__}, {type(guider).__name__}, leaves out layers of the transformer "
                "by itself, which a cache would take for its own; take another, such as ClassifierFreeGuidance"
            )


def guiders_of(pipe: Any) -> dict[str, Any]:
    """The components of a modular pipeline that guide, by name."""
    parts = {name: part for name, part in pipe.components.items() if name.startswith("guider")}
    return {name: part for name, part in parts.items() if part is not None}


def given_now(pipe: Any, state: Any) -> dict[str, Any]:
    """What a modular pipeline is being called with, and what guides it, by name.

    Args:
        pipe: The pipeline.
        state: Of the call.
    """
    values = {name: state.get(name) for name in arguments_of(pipe)}
    for name, guider in guiders_of(pipe).items():
        settings = {key: value for key, value in guider.config.items() if not key.startswith("_")}
        values |= {f"{name}.{key}": value for key, value in settings.items()}
    if "guider.guidance_scale" in values:
        values["guidance_scale"] = values.pop("guider.guidance_scale")
    return values


class LeavingPatch:
    """Covers the blocks of a modular pipeline, so that it says when a call of it is left, in whatever way.

    Args:
        pipe: The pipeline.
        on_exit: Called then.
    """

    def __init__(self, pipe: Any, on_exit: Callable[[], None]) -> None:
        self._pipe, self._before = pipe, pipe._blocks
        inner: Block = type(self._before).__call__

        def call(block: Any, components: Any, state: Any) -> tuple[Any, Any]:
            try:
                return inner(block, components, state)
            finally:
                on_exit()

        self._cover = _twin(self._before, lambda block: call if block is self._before else None)
        vars(self._cover)[_COVERED] = self._before
        pipe._blocks = self._cover

    def remove(self) -> None:
        """Gives the pipeline its own blocks back; doing it twice does nothing."""
        if self._pipe._blocks is self._cover:
            self._pipe._blocks = self._before


class _Left(BaseException):  # no Exception, of which diffusers would write in its log
    """The loop over timesteps is over."""


class ModularRun:
    """Calls a modular pipeline up to the end of its loop, differentiable where gradients are enabled.

    Guidance, packing and solver steps are those of its blocks; only the `no_grad` around each of them is left out.
    Prompts are encoded once. The pipeline itself stays as it is, since copies of its blocks are run.

    Args:
        pipe: The pipeline.
        encoded: Prompts that have been encoded already.

    Raises:
        ConfigError: If none of its blocks is a loop.
    """

    def __init__(self, pipe: Any, encoded: dict[str, Any] | None = None) -> None:
        self._pipe, self._encoded = pipe, {} if encoded is None else encoded
        self._loops, self._learns = 0, False
        self._latents: Tensor | None = None
        self._own = vars(pipe._blocks).get(_COVERED, pipe._blocks)
        self._blocks = _twin(self._own, self._cover)
        if not self._loops:
            raise ConfigError(
                f"{type(pipe).__name__} has no block that is a loop over timesteps, of which the latents could be had"
            )

    def latents(self, call: Mapping[str, Any]) -> Tensor:
        """What is there after the loop.

        Args:
            call: What the pipeline is called with, by name.
        """
        found = self.state(call).get("latents")
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{type(self._pipe).__name__} has no latents after its loop, which learning compares"
            )
        return found

    def state(self, call: Mapping[str, Any]) -> Any:
        """The state after the loop; see `latents`."""
        self._learns = torch.is_grad_enabled()
        self._run(call)
        return self._state

    def decode(self, call: Mapping[str, Any], latents: Tensor) -> Tensor:
        """Lets the blocks after the loop make a picture of latents.

        Args:
            call: See `latents`.
            latents: As they would be after the loop.

        Returns:
            The picture in [0, 1].
        """
        self._learns, self._latents = False, latents
        try:
            state = self._run({**call, "output_type": "pt"})
        finally:
            self._latents = None
        names = (name for name in ("images", "videos", "image", "video") if state.get(name) is not None)
        name = next(names, None)
        if name is None:
            raise ConfigError(f"{type(self._pipe).__name__} puts out neither pictures nor videos")
        made = state.get(name)
        return made if isinstance(made, Tensor) else torch.stack(list(made))

    def _run(self, call: Mapping[str, Any]) -> Any:
        own, self._pipe._blocks = self._pipe._blocks, self._blocks
        try:
            return self._pipe(**call)
        except _Left:
            return None
        finally:
            self._pipe._blocks = own

    def _cover(self, block: Any) -> Block:
        kind = type(block)
        outer, inner = kind.__call__, inspect.unwrap(kind.__call__)
        loops = isinstance(block, sys.modules[_MODULE].LoopSequentialPipelineBlocks)
        self._loops += loops
        whole = block is self._own
        encodes = not getattr(block, "sub_blocks", None) and _encodes(block)

        def call(twin: Any, components: Any, state: Any, **more: Any) -> tuple[Any, Any]:
            if encodes:
                self._encode(block, state)
                return components, state
            if loops and self._latents is not None:
                state.set("latents", self._latents)
                return components, state
            if loops:
                twin.set_progress_bar_config(disable=True)
            with torch.enable_grad() if whole and self._learns else nullcontext():
                components, state = (inner if self._learns else outer)(twin, components, state, **more)
            if loops:
                self._state = state
                raise _Left
            return components, state

        return call

    def _encode(self, block: Any, state: Any) -> None:
        given = {name: state.get(name) for name in block.input_names}
        key = repr((type(block).__name__, sorted(given.items(), key=lambda item: str(item[0]))))
        reads_tensors = any(isinstance(value, Tensor) for value in given.values())
        if reads_tensors or key not in self._encoded:
            before, missing = dict(state.values), object()
            kind = self._pipe._execution_device.type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                block(self._pipe, state)
            if not reads_tensors:
                made = state.values.items()
                self._encoded[key] = {k: v for k, v in made if before.get(k, missing) is not v}
            return
        kinds = {output.name: output.kwargs_type for output in block.intermediate_outputs}
        for name, value in self._encoded[key].items():
            state.set(name, value, kinds.get(name))


def _encodes(block: Any) -> bool:
    names = [component.name for component in block.expected_components]
    draws = "generator" in block.input_names
    return not draws and any(name.startswith(_ENCODER) for name in names)


def _twin(block: Any, cover: Callable[[Any], Block | None]) -> Any:
    """A copy of a block and the blocks in it, whose calls are covered; components are those of the pipeline."""
    twin, kind, call = copy.copy(block), type(block), cover(block)
    if parts := getattr(block, "sub_blocks", None):
        twin.sub_blocks = type(parts)((name, _twin(part, cover)) for name, part in parts.items())
    if call is not None:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        twin.__class__ = type(kind.__name__, (kind,), {**names, "__call__": call})
    return twin
