"""How layers' outputs at the evaluations of a run resemble each other: what calibrations of forecasts need to know."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, ReusePolicy
from l2c.cache.values import Value
from l2c.documents import Count, check_value
from l2c.hosts.base import Host

ELEMENTS = 4096
"""Of a layer's output, drawn once, by which forecasts are judged in the calibration."""


def inner_products(host: Host, num_images: int, seed: int) -> Tensor:
    """Samples pictures with everything computed and multiplies the outputs of each layer at all evaluations.

    Args:
        host: What is sampled.
        num_images: Pictures of the calibration.
        seed: Of the first picture.

    Returns:
        (layers, evaluations, evaluations), float64: sums over pictures, passes of guidance and some elements.

    Raises:
        ConfigError: If there are no pictures.
    """
    check_value("num_images", num_images, Count)
    recorder = Recorder(len(host.run.timesteps))
    with torch.no_grad(), host.attach(recorder):
        host.sample(host.seeded(range(seed, seed + num_images)))
    return recorder.products()


class Recorder(ReusePolicy):
    """Computes everything and sums up inner products of what a layer puts out at the evaluations of a run."""

    def __init__(self, num_evaluations: int) -> None:
        self.num_evaluations = num_evaluations
        self._values: dict[tuple[str, int], list[Tensor]] = {}
        self._sums: dict[int, Tensor] = {}

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer, some elements of which are kept until the end of the run."""
        value: Value = compute()
        parts = (value,) if isinstance(value, Tensor) else value
        flat = torch.cat([part.float().flatten() for part in parts if part is not None])
        if flat.numel() > ELEMENTS:
            generator = torch.Generator().manual_seed(layer)
            flat = flat[torch.randint(flat.numel(), (ELEMENTS,), generator=generator).to(flat.device)]
        self._values.setdefault((clock.branch, layer), []).append(flat.cpu())
        return value

    def products(self) -> Tensor:
        """Inner products (layers, evaluations, evaluations), the sum over branches and runs, float64."""
        self.clear()
        return torch.stack([self._sums[layer] for layer in sorted(self._sums)])

    def clear(self) -> None:
        """See `ReusePolicy.clear`; the products of the run are kept."""
        for (_, layer), values in self._values.items():
            if len(values) == self.num_evaluations and len({len(value) for value in values}) == 1:
                rows = torch.stack(values).double()
                self._sums[layer] = self._sums.get(layer, torch.zeros(())) + rows @ rows.T
        self._values.clear()
