"""The pictures of a comparison: sampled for all seeds at once, and kept as long as others are compared with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch
from torch import Tensor

from l2c.bench.timing import synchronize
from l2c.compare.candidates import Candidate, Maker, Sample
from l2c.compare.config import CompareConfig
from l2c.compare.model import ComparedModel
from l2c.compare.plan import Variant
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write

ADVICE = "free some space or choose another --out; finished runs are kept"


@dataclass
class Pictures:
    """Pictures of all seeds, and how the first of them came about.

    Attributes:
        images: (B, C, H, W), on the CPU, decoded where they were latents.
        trajectory: Network inputs (evaluations, shown, C, H, W) of the first ones.
        seconds: Of sampling.
    """

    images: Tensor
    trajectory: Tensor
    seconds: float


class Samples:
    """Samples pictures, and keeps those that others are compared with in memory and in a folder.

    Args:
        config: Which seeds.
        model: What is sampled.
        maker: Makes the candidates of the bases.
        folder: Where they are kept.
    """

    def __init__(self, config: CompareConfig, model: ComparedModel, maker: Maker, folder: Path) -> None:
        self._config, self._model, self._maker, self._folder = config, model, maker, folder
        self._kept: dict[str, Pictures] = {}

    @property
    def seeds(self) -> range:
        """Seeds of the pictures."""
        return range(self._config.seed, self._config.seed + self._config.images)

    def full(self, variant: Variant) -> Pictures:
        """Pictures of a variant's base with everything computed, sampled only if the folder does not have them."""
        found = self._recall(variant.base.name)
        if found is None:
            with self._maker.make(Variant.full(variant.base)).ready() as (sample, _):
                found = self.draw(sample)
            self.keep(variant.base.name, found)
        return found

    def reference(self) -> Tensor:
        """Pictures (B, C, H, W) of the fine run."""
        found = self._recall("reference")
        if found is None:
            fine = self._config.reference
            found = self.draw(self._model.sampler(fine.solver, fine.steps, fine.spacing))
            found.trajectory = found.trajectory[:0]
            self.keep("reference", found)
        return found.images

    def keep(self, name: str, pictures: Pictures) -> None:
        """Keeps pictures for this run and for one that goes on after it.

        Raises:
            OutputError: If they cannot be written.
        """
        self._kept[name] = pictures
        tensors = {
            "images": pictures.images.contiguous(),
            "trajectory": pictures.trajectory.contiguous(),
            "seconds": torch.tensor(pictures.seconds),
        }
        atomic_write(self._folder / f"{name}.safetensors", safetensors.torch.save(tensors), ADVICE)

    def _recall(self, name: str) -> Pictures | None:
        path = self._folder / f"{name}.safetensors"
        if name not in self._kept and path.is_file():
            tensors = safetensors.torch.load_file(path)
            seconds = float(tensors["seconds"])
            self._kept[name] = Pictures(tensors["images"], tensors["trajectory"], seconds)
        return self._kept.get(name)

    @torch.no_grad()
    def draw(self, sample: Sample) -> Pictures:
        """Samples all seeds batch by batch, keeping the network inputs of the first pictures."""
        inputs: list[Tensor] = []
        parts: list[Tensor] = []
        size = self._config.batch_size

        def observe(evaluation: int, x: Tensor, predicted: Tensor) -> None:
            if not parts:
                inputs.append(x[: self._config.shown_images].float().cpu())

        seconds = 0.0
        for begin in range(0, len(self.seeds), size):
            examples = self._model.examples(self.seeds[begin : begin + size])
            synchronize()
            began = perf_counter()
            made = sample(*examples, observe)
            synchronize()
            seconds += perf_counter() - began
            parts.append(self._model.pictures(made))
        return Pictures(torch.cat(parts), torch.stack(inputs), seconds)


def step_errors(candidate: Candidate, made: Pictures, full: Pictures) -> list[float] | None:
    """Distance of the network's inputs to those of the base, per evaluation; None for another run."""
    run, base = candidate.run, candidate.variant.base
    if (run.solver, run.steps, run.spacing) != (base.solver, base.steps, base.spacing):
        return None
    pairs = zip(made.trajectory, full.trajectory, strict=True)
    return [float(rmse(mine, theirs).mean()) for mine, theirs in pairs]
