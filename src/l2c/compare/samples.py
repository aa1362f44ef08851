"""The pictures of a comparison: sampled for all seeds at once, and kept as long as others are compared with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch
from torch import Tensor, nn

from l2c.bench.timing import synchronize
from l2c.compare.candidates import Candidate, Maker, Sample
from l2c.compare.config import CompareConfig
from l2c.compare.plan import FULL, Way
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

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


class Gallery:
    """Samples pictures, and keeps those that others are compared with in memory and in a folder.

    Args:
        config: Which seeds.
        model: The model.
        maker: Makes the candidates of the bases.
        decoder: Of a latent model.
        folder: Where they are kept.
    """

    def __init__(
        self,
        config: CompareConfig,
        model: nn.Module,
        maker: Maker,
        decoder: LatentDecoder | None,
        folder: Path,
    ) -> None:
        self._config, self._model, self._maker = config, model, maker
        self._decoder, self._folder = decoder, folder
        self._kept: dict[str, Pictures] = {}

    @property
    def seeds(self) -> range:
        """Seeds of the pictures."""
        return range(self._config.seed, self._config.seed + self._config.images)

    def full(self, way: Way) -> Pictures:
        """Pictures of a way's base with everything computed, sampled only if the folder does not have them."""
        found = self._recall(way.base.name)
        if found is None:
            candidate = self._maker.make(Way(f"{way.base.name}--{FULL}", way.base, FULL))
            with candidate.ready() as (sample, _):
                found = self.sample(sample, len(candidate.run.timesteps))
            self.keep(way.base.name, found)
        return found

    def solution(self) -> Tensor:
        """Pictures (B, C, H, W) of the fine run."""
        found = self._recall("solution")
        if found is None:
            fine = self._config.reference
            denoiser, guidance = Denoiser.of(self._model), Guidance(self._config.guidance)
            sampler = Sampler(denoiser, fine.solver, fine.steps, fine.spacing, guidance)
            found = self.sample(sampler, len(sampler.run.timesteps))
            found.trajectory = found.trajectory[:0]
            self.keep("solution", found)
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
    def sample(self, sample: Sample, evaluations: int) -> Pictures:
        """Samples all seeds batch by batch, keeping the network inputs of the first pictures."""
        inputs: list[Tensor] = []
        parts: list[Tensor] = []
        shown = min(self._config.shown_images, self._config.batch_size)

        def observe(evaluation: int, x: Tensor, predicted: Tensor) -> None:
            if len(inputs) < evaluations:
                inputs.append(x[:shown].float().cpu())

        seconds, seeds = 0.0, self.seeds
        for begin in range(0, len(seeds), self._config.batch_size):
            noise, labels = self._maker.batch(seeds[begin : begin + self._config.batch_size])
            synchronize()
            began = perf_counter()
            made = sample(noise, labels, observe)
            synchronize()
            seconds += perf_counter() - began
            parts.append(self._decoder(made) if self._decoder is not None else made)
        images = torch.cat(parts).cpu()
        if not Denoiser.of(self._model).latent:
            images = images.clamp(-1, 1)
        return Pictures(images, torch.stack(inputs), seconds)


def step_errors(candidate: Candidate, made: Pictures, full: Pictures) -> list[float] | None:
    """Distance of the network's inputs to those of the base, per evaluation; None for another run."""
    run, base = candidate.run, candidate.way.base
    if (run.solver, run.steps, run.spacing) != (base.solver, base.steps, base.spacing):
        return None
    pairs = zip(made.trajectory, full.trajectory, strict=True)
    return [float(rmse(mine, theirs).mean()) for mine, theirs in pairs]
