"""What the layers of a model cost at the shapes of an actual call: counted while the model runs, not by formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2c.layers.base import Layer, LayerTable

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a layer's output, which is a tensor, or a tuple of tensors and None."""
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, (tuple, list)) else []


def rows_and_shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, tuple[int, ...]] | None:
    """Rows of a call of a transformer, and the shape of one: of a batch, or of a list of samples, as Z-Image takes it.

    None where the sample is not found.
    """
    sample = kwargs.get("hidden_states", kwargs.get("x", args[0] if args else None))
    if isinstance(sample, Tensor):
        return sample.shape[0], tuple(sample.shape[1:])
    if isinstance(sample, (list, tuple)) and sample and isinstance(sample[0], Tensor):
        return len(sample), tuple(sample[0].shape)
    return None


@torch.no_grad()
def measure_layers(
    model: nn.Module, table: LayerTable, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[LayerTable, Any]:
    """Calls a model once and counts the multiply-accumulates of its layers and of the rest.

    What linear and convolution modules do counts as linear, all other products of matrices as attention. What is
    not a product of matrices counts nothing.

    Args:
        model: The model; its weights are not changed.
        table: Its layers.
        args: Positional arguments of the call.
        kwargs: Its keyword arguments.

    Returns:
        The table with sizes, for one row of the batch; and what the model returned.
    """
    batch, shape = rows_and_shape(args, kwargs) or (1, (1,))
    elements: dict[str, int] = {}

    def record(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found = sum(tensor.numel() for tensor in tensors_in(output))
            elements[path] = elements.get(path, 0) + found

        return hook

    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    with ExitStack() as stack:
        for layer in table.layers:
            handle = model.get_submodule(layer.module_path).register_forward_hook(record(layer.module_path))
            stack.callback(handle.remove)
        stack.enter_context(counter)
        output = model(*args, **kwargs)
    counts = counter.get_flop_counts()
    root = type(model).__name__

    def macs(path: str) -> int:
        return round(sum(counts.get(f"{root}.{path}", {}).values()) / 2 / batch)

    def sized(layer: Layer) -> Layer:
        paths = (layer.module_path, *layer.feeders)
        maps = [
            f"{path}.{name}" if name else path
            for path in paths
            for name, module in model.get_submodule(path).named_modules()
            if isinstance(module, _LINEAR)
        ]
        linear = sum(macs(path) for path in maps)
        products = sum(macs(path) for path in paths) - linear
        size = elements.get(layer.module_path, 0) // batch
        return replace(layer, linear_macs=linear, attention_macs=products, out_elements=size)

    layers = tuple(sized(layer) for layer in table.layers)
    total = round(counter.get_total_flops() / 2 / batch)
    return LayerTable(table.architecture, layers, total - sum(layer.macs for layer in layers), shape), output


def _cpu_attention() -> dict[Any, Any]:
    """The fused attention of the CPU, which PyTorch's counter leaves out."""

    def flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, length, width = query
        return int(2 * batch * heads * length * key[-2] * (width + value[-1]))

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops}
