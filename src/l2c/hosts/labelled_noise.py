"""`LabelledNoise`: what a model sampled by class labels is run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l2c.digest import digest


@dataclass(frozen=True)
class LabelledNoise:
    """Unit normal noise (B, C, H, W), class labels (B,) and, where guidance is a range, scales (B,); on one device."""

    noise: Tensor
    labels: Tensor
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, rows: Sequence[int] | slice) -> LabelledNoise:
        """See `Examples.rows`."""
        chosen = rows if isinstance(rows, slice) else list(rows)
        scales = None if self.scales is None else self.scales[chosen]
        return LabelledNoise(self.noise[chosen], self.labels[chosen], scales)

    @property
    def identity(self) -> str:
        """See `Examples.identity`."""
        parts = (self.noise, self.labels, self.scales)
        return digest(*(part.cpu() for part in parts if part is not None))

    def describe(self, row: int) -> str:
        """See `Examples.describe`."""
        scale = "" if self.scales is None else f", guidance {float(self.scales[row]):.3g}"
        return f"label {int(self.labels[row])}, example {row}{scale}"

    @property
    def sizes(self) -> Sequence[str]:
        """See `Examples.sizes`."""
        return [""] * len(self)

    def at_scale(self, scale: float) -> LabelledNoise:
        """The same with one guidance scale."""
        return replace(self, scales=torch.full(self.labels.shape, scale, device=self.labels.device))
