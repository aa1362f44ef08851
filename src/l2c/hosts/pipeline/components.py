"""The parts of a pipeline that a schedule is for."""

from __future__ import annotations

from typing import Any

from torch import nn

from l2c.errors import ConfigError
from l2c.hosts.pipeline.modular import refuse_unfit

TRANSFORMERS = ("transformer", "transformer_2")
"""Names of the components that a schedule may be for."""


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by name of the component, without the wrapper of `torch.compile`.

    Raises:
        ConfigError: If it has none, or it is a modular pipeline that no schedule is for.
    """
    refuse_unfit(pipe)
    found = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    models = {name: unwrapped(model) for name, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        raise ConfigError(
            f"{type(pipe).__name__} has no component called {' or '.join(TRANSFORMERS)}; enable the cache on the model "
            "itself, with enable_cache(model, schedule, scheduler=...)"
        )
    return models


def unwrapped(target: Any) -> Any:
    """A model without the wrapper of `torch.compile`."""
    return getattr(target, "_orig_mod", target) if isinstance(target, nn.Module) else target
