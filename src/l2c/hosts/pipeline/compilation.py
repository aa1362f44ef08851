"""What of a transformer has been compiled, where its calls begin, and how many graphs a schedule asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l2c.cache.patch import covered
from l2c.errors import ConfigError
from l2c.schedule.forecast import is_copy
from l2c.schedule.schedule import CacheSchedule

IN_PLACE = "_compiled_call_impl"
"""Attribute of a module where `module.compile()` puts what is called instead of it."""
OLDEST_TORCH = (2, 10)
"""The first release whose compiler follows bound methods on instances, as patches are."""
MANY_GRAPHS = 8
"""Graphs of a whole transformer from which on compiling them takes so long that it is told."""


@dataclass(frozen=True)
class Compilation:
    """What of a transformer is compiled.

    Attributes:
        entries: Object and attribute through which calls of the whole transformer go; none where only its blocks are
            compiled.
        blocks: Compiled submodules of it: path and class.
        replayed: Whether the compiler was asked for CUDA graphs.
    """

    entries: tuple[tuple[Any, str], ...] = ()
    blocks: tuple[tuple[str, str], ...] = ()
    replayed: bool = False

    def num_graphs(self, schedule: CacheSchedule) -> int:
        """How many different programs the schedule makes of what is compiled: one for each different row of layers."""
        whole = len(set(_rows(schedule, ""))) if self.entries else 0
        parts = {(kind, row) for path, kind in self.blocks for row in _rows(schedule, f"{path}.")}
        return whole + len(parts)

    def note(self, graphs: int) -> str | None:
        """What to tell whoever compiled the whole transformer for a schedule of so many graphs."""
        if not self.entries or graphs <= MANY_GRAPHS:
            return None
        return (
            f"the transformer is compiled as a whole, and the schedule has {graphs} different evaluations, each of "
            "which is compiled for itself; transformer.compile_repeated_blocks() compiles a block once for each of its "
            "variants"
        )

    def room(self, graphs: int) -> AbstractContextManager[Any]:
        """Lets the compiler make so many graphs, which are more than its usual limit allows."""
        if not (self.entries or self.blocks):
            return nullcontext()
        import torch._dynamo.config as settings

        needed = 2 * graphs + 8  # without the cache, or with other strides, there are more
        if settings.recompile_limit >= needed:
            return nullcontext()
        patched: AbstractContextManager[Any] = settings.patch(recompile_limit=needed)
        return patched


def find_compilation(model: nn.Module, component: Any) -> Compilation:
    """What of a transformer is compiled now.

    Args:
        model: The transformer.
        component: What the pipeline calls: the model, or what `torch.compile` has wrapped around it.

    Raises:
        ConfigError: If something is compiled, by a release of torch before `OLDEST_TORCH`.
    """
    if "torch._dynamo" not in sys.modules:
        return Compilation()
    entries = []
    if model._compiled_call_impl is not None:
        entries.append((model, IN_PLACE))
    if getattr(component, "_orig_mod", None) is model:
        entries.append((component, "forward"))
    if is_compiled(vars(model).get("forward")):
        entries.append((model, "forward"))
    blocks = [
        (path, module)
        for path, module in model.named_modules()
        if path and module._compiled_call_impl is not None
    ]
    if (entries or blocks) and tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise ConfigError(
            f"a cache on a compiled transformer needs torch {needed} or later, this is {torch.__version__}; "
            "leave the transformer as it is, or update torch"
        )
    calls = [vars(owner)[name] for owner, name in [*entries, *((block, IN_PLACE) for _, block in blocks)]]
    return Compilation(
        tuple(entries),
        tuple((path, type(block).__name__) for path, block in blocks),
        any(_replays(covered(call)) for call in calls),
    )


def is_compiled(method: Any) -> bool:
    """Whether it is what `torch.compile` made of a function."""
    return hasattr(method, "_torchdynamo_orig_callable")


def leave_to_python(method: Any, reason: str) -> None:
    """Keeps a compiler out of a function, but not out of what it calls; it tells the reason if it may not break."""
    if "torch._dynamo" in sys.modules:
        from torch._dynamo.decorators import skip

        skip(method)
        method._torchdynamo_disable_msg = reason


def eagerly() -> AbstractContextManager[Any]:
    """Lets what is compiled run as if it were not, and compiles nothing."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _replays(call: Any) -> bool:
    config = getattr(call, "get_compiler_config", None)
    options = config() if config is not None else None
    return bool(options and options.get("triton.cudagraphs"))


def _rows(schedule: CacheSchedule, prefix: str) -> Iterator[tuple[Any, ...]]:
    """For every evaluation, what the layers under a path do: nothing is forecast, or so many values, or a copy."""
    layers = [
        (index, layer.module_path.removeprefix(prefix))
        for index, layer in enumerate(schedule.layers.layers)
        if layer.module_path.startswith(prefix)
    ]
    for evaluation in range(schedule.num_evaluations):
        row = []
        for index, name in layers:
            weights = [weight for _, weight in schedule.plan.get((evaluation, index), ())]
            row.append((name, "copy" if is_copy(weights) else len(weights)))
        yield tuple(row)
