"""Context parallelism of diffusers: several processes that make one run together, each with a part of the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from l2c.errors import ConfigError


@dataclass(frozen=True)
class ContextGroup:
    """The processes of one run.

    Every process has the same latents and the same output, and computes its part of the tokens in between. So it also
    has only its part of the gradient of whatever all tokens read.

    Attributes:
        group: The process group.
        ranks: Its processes, in order.
    """

    group: Any
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self.ranks)

    def shared(self, values: Any) -> Any:
        """Values that all parts read, with gradients that are those of all parts together.

        Args:
            values: A tensor, or anything that holds tensors; those without a graph stay as they are.
        """

        def share(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            result: Tensor = _Shared.apply(tensor, self.group)  # type: ignore[no-untyped-call]
            return result

        return tree_map_only(Tensor, share, values) if torch.is_grad_enabled() else values


class _Shared(torch.autograd.Function):
    """The same forward; backward, the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


def context_of(models: Mapping[str, nn.Module]) -> ContextGroup | None:
    """The processes that make one run together; None if every process makes its own.

    Raises:
        ConfigError: If models are split in other ways than by context, or not all alike.
    """
    found: dict[str, ContextGroup | None] = {}
    for name, model in models.items():
        config = getattr(model, "_parallel_config", None)
        if getattr(config, "tensor_parallel_config", None) is not None:
            raise ConfigError(
                f"the {name} is split by tensor parallelism, through which no gradients go; split it by context with "
                "enable_parallelism(config=ContextParallelConfig(...)), or its weights with fully_shard"
            )
        context = getattr(config, "context_parallel_config", None)
        found[name] = None if context is None else _group_of(context)
    first, *others = found.values()
    if any(other != first for other in others):
        raise ConfigError(
            f"the transformers of this pipeline ({', '.join(found)}) are not split by context alike; call "
            "enable_parallelism with the same configuration and mesh on each of them"
        )
    return first


def _group_of(context: Any) -> ContextGroup:
    group = context._flattened_mesh.get_group()
    return ContextGroup(group, tuple(torch.distributed.get_process_group_ranks(group)))
