"""The pictures of a comparison: sampled for all seeds at once, and kept as long as others are compared with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch
from torch import Tensor

from l2c.bench.timing import synchronize
from l2c.compare.candidates import Maker, Sample
from l2c.compare.config import CompareConfig
from l2c.compare.model import ComparedModel
from l2c.compare.plan import Variant
from l2c.files import atomic_write

ADVICE = "free some space or choose another --out; finished runs are kept"


class Samples:
    """Samples pictures (B, C, H, W), and keeps those that others are compared with in memory and in a folder.

    Args:
        config: Which seeds.
        model: What is sampled.
        maker: Makes the candidates of the bases.
        folder: Where they are kept.
    """

    def __init__(self, config: CompareConfig, model: ComparedModel, maker: Maker, folder: Path) -> None:
        self._config, self._model, self._maker, self._folder = config, model, maker, folder
        self._kept: dict[str, Tensor] = {}

    @property
    def seeds(self) -> range:
        """Seeds of the pictures."""
        return range(self._config.seed, self._config.seed + self._config.images)

    def full(self, variant: Variant, drawn: Tensor | None = None) -> Tensor:
        """Those of a variant's base with everything computed, sampled only if they are neither there nor just drawn.

        Raises:
            OutputError: If they cannot be kept.
        """

        def make() -> Tensor:
            if drawn is not None:
                return drawn
            with self._maker.make(Variant.full(variant.base)).ready() as (sample, _):
                return self.draw(sample)[0]

        return self._keep(variant.base.name, make)

    def reference(self) -> Tensor:
        """Those of the fine run, sampled only if they are not there.

        Raises:
            OutputError: If they cannot be kept.
        """
        fine = self._config.reference
        sampler = self._model.sampler(fine.solver, fine.steps, fine.spacing)
        return self._keep("reference", lambda: self.draw(sampler)[0])

    def _keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        path = self._folder / f"{name}.safetensors"
        if name not in self._kept:
            if path.is_file():
                self._kept[name] = safetensors.torch.load_file(path)["images"]
            else:
                self._kept[name] = make()
                images = {"images": self._kept[name].contiguous()}
                atomic_write(path, safetensors.torch.save(images), ADVICE)
        return self._kept[name]

    @torch.no_grad()
    def draw(self, sample: Sample) -> tuple[Tensor, float]:
        """Pictures of all seeds, sampled batch by batch, and the seconds it took."""
        parts, seconds, size = list[Tensor](), 0.0, self._config.batch_size
        for begin in range(0, len(self.seeds), size):
            examples = self._model.examples(self.seeds[begin : begin + size])
            synchronize()
            began = perf_counter()
            made = sample(*examples)
            synchronize()
            seconds += perf_counter() - began
            parts.append(self._model.pictures(made))
        return torch.cat(parts), seconds
