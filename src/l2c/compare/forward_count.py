"""What ran under a cache that decides while it samples: counted below it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from l2c.layers import LayerTable
from l2c.models.conversion import DIFFUSERS_CLASS


class ForwardCount:
    """Counts how often each layer runs, and what that costs; whoever makes one restores the models.

    Of a call with a part of the batch, as without the unconditional half, that part is counted. What is outside the
    layers counts as computed, but for the modulation of diffusers' DiT, which is in its blocks' first norm.

    Args:
        models: Transformers with the layers, before a cache is enabled on them.
        table: Their layers.
    """

    def __init__(self, models: Iterable[nn.Module], table: LayerTable) -> None:
        self._macs = {layer.module_path: layer.macs for layer in table.layers}
        self._rest, self._rows = float(table.rest_macs), 1
        self._calls, self._evaluations = dict.fromkeys(self._macs, 0.0), 0
        for model in models:
            if type(model).__name__ == DIFFUSERS_CLASS:
                self._count_norms(model)
            model.register_forward_pre_hook(self._evaluate, with_kwargs=True)
            for path in self._macs:
                self._count(path, model.get_submodule(path))

    def _count_norms(self, model: Any) -> None:
        width = model.config.num_attention_heads * model.config.attention_head_dim
        blocks = dict.fromkeys(path.rpartition(".")[0] for path in self._macs)
        norms = {f"{block}.norm1": 7 * width**2 + 256 * width for block in blocks}
        self._rest -= sum(norms.values())
        self._macs |= norms
        self._calls |= dict.fromkeys(norms, 0.0)

    def _evaluate(self, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._evaluations += 1
        self._rows = _rows(arguments, options)

    def _count(self, path: str, module: nn.Module) -> None:
        forward = module.forward

        def counted(*arguments: Any, **options: Any) -> Any:
            self._calls[path] += min(1.0, _rows(arguments, options) / self._rows)
            return forward(*arguments, **options)

        module.forward = counted

    @property
    def macs(self) -> float:
        """Multiply-accumulates of an evaluation for one image, without guidance: the mean over all that ran."""
        spent = sum(self._macs[path] * calls for path, calls in self._calls.items())
        return spent / max(1, self._evaluations) + self._rest


def _rows(arguments: tuple[Any, ...], options: dict[str, Any]) -> int:
    """Size of the batch of a call."""
    for value in (options.get("hidden_states"), *arguments, *options.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return max(1, len(value))
    return 1
