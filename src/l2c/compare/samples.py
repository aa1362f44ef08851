"""The pictures of a comparison: sampled for all seeds, and kept as long as others are compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from l2c.bench.timing import synchronize
from l2c.compare.candidates import Maker, Sample
from l2c.compare.config import CompareConfig
from l2c.compare.hosts import Hosts
from l2c.compare.pictures import Pictures
from l2c.compare.plan import Variant
from l2c.errors import DataError, Told, check_finite
from l2c.files import atomic_write
from l2c.hosts.base import Examples

ADVICE = "free some space or choose another --out; finished runs are kept"


@dataclass(frozen=True)
class Drawn:
    """What was sampled for all seeds, on the CPU.

    Attributes:
        pictures: (B, C, H, W) in [-1, 1]; latents (B, ...) where nothing decodes them.
        latents: What the pictures were decoded from, if they were.
    """

    pictures: Tensor
    latents: Tensor | None = None


class Samples:
    """Samples for all seeds, and keeps what others are compared with in memory and in a folder.

    Args:
        config: Which seeds.
        hosts: What is sampled.
        maker: Makes the candidates of the bases.
        folder: Where they are kept.
    """

    def __init__(self, config: CompareConfig, hosts: Hosts, maker: Maker, folder: Path) -> None:
        self._config, self._hosts, self._maker, self._folder = config, hosts, maker, folder
        self.pictures = Pictures(config, hosts.root)
        self._kept: dict[str, Drawn] = {}

    @property
    def seeds(self) -> range:
        """Seeds of the pictures."""
        return range(self._config.seed, self._config.seed + self._config.images)

    @cached_property
    def examples(self) -> Examples:
        """Noise by the seeds; labels or prompts take turns."""
        return self._hosts.root.seeded(self.seeds)

    def full(self, variant: Variant, drawn: Drawn | None = None) -> Drawn:
        """Those of a variant's base with everything computed, sampled only if they are neither there nor just drawn.

        Raises:
            OutputError: If they cannot be kept.
        """

        def make() -> Drawn:
            if drawn is not None:
                return drawn
            with self._maker.make(Variant.full(variant.base)).ready() as (sample, _):
                made = self.draw(sample)[0]
            return self.decode(made)

        return self._keep(variant.base.name, make)

    def reference(self) -> Drawn:
        """Those of the fine run, sampled only if they are not there.

        Raises:
            OutputError: If they cannot be kept.
        """
        return self._keep("reference", lambda: self.decode(self.draw(self._hosts.reference.sample)[0]))

    def _keep(self, name: str, make: Callable[[], Drawn]) -> Drawn:
        path = self._folder / f"{name}.safetensors"
        if name not in self._kept:
            if path.is_file():
                wrong = f"{path} does not hold pictures ({{said}}); delete it"
                with Told(DataError, wrong, SafetensorError, OSError, KeyError):
                    there = safetensors.torch.load_file(path)
                    self._kept[name] = Drawn(there["images"], there.get("latents"))
            else:
                self._kept[name] = made = make()
                tensors = {"images": made.pictures.contiguous()}
                if made.latents is not None:
                    tensors["latents"] = made.latents.contiguous()
                atomic_write(path, safetensors.torch.save(tensors), ADVICE)
        return self._kept[name]

    def _batches(self) -> list[slice]:
        size = self._config.batch_size
        return [slice(begin, begin + size) for begin in range(0, len(self.seeds), size)]

    @torch.no_grad()
    def draw(self, sample: Sample) -> tuple[Tensor, float]:
        """Pictures or latents of all seeds (B, ...), sampled batch by batch, and the seconds it took.

        Raises:
            NumericsError: If there are values that are not finite.
        """
        parts, seconds = list[Tensor](), 0.0
        for rows in self._batches():
            examples = self.examples.rows(rows)
            synchronize()
            began = perf_counter()
            made = sample(examples)
            synchronize()
            seconds += perf_counter() - began
            check_finite("it makes", made)
            parts.append(made)
        return torch.cat(parts), seconds

    def decode(self, samples: Tensor) -> Drawn:
        """What was sampled, decoded while nothing is switched on."""
        parts = [self.pictures(samples[rows], self.examples.rows(rows)) for rows in self._batches()]
        return Drawn(torch.cat(parts), samples.cpu() if self.pictures.decodes else None)
