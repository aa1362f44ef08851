"""The runs that are timed to find out what layers cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.layers import Layer, LayerTable, find_layers
from l2c.sampling.compiled import CompiledSampler
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule

FULL, REST, SHALLOW = "everything computed", "everything reused", "everything reused, of one value"


class ProfileRuns:
    """Whole runs of a sampler with one mask or another.

    Args:
        sampler: Model, solver and guidance.
        batch_size: Pictures at a time.
        mode: The engine, from `resolve_engine`.
        history: How many values the forecasts read.
        evaluations: Of each run; None for a usual number. A sampler that brings its own solver has its own.

    Raises:
        ConfigError: If there are too few evaluations for the history.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, mode: str, history: int, evaluations: int | None
    ) -> None:
        denoiser = sampler.denoiser
        if sampler.learned is None:
            wanted = evaluations or max(history + 2, 20 if denoiser.device.type == "cuda" else 8)
            sampler = replace(sampler, steps=wanted)
        self.sampler, self.mode, self.history = sampler, mode, history
        self.run = sampler.run
        self.count = len(self.run.timesteps)
        if self.count <= history:
            raise ConfigError(
                f"the forecasts read {history} values, so a run needs at least {history + 1} evaluations, got "
                f"{self.count}"
            )
        self.table = find_layers(denoiser.model)
        self.noise = seeded_noise(range(batch_size), denoiser.sample_shape).to(denoiser.device)
        self.labels = torch.arange(batch_size, device=denoiser.device) % denoiser.num_classes

    def masks(self) -> dict[str, Tensor]:
        """What `fit_costs` needs: all begin with as many whole evaluations as the forecasts read."""
        everything = torch.ones(self.count, len(self.table), dtype=torch.bool)
        masks = {FULL: everything, REST: everything.clone()}
        masks[REST][self.history :] = False
        for name, members in layer_groups(self.table).items():
            masks[name] = everything.clone()
            masks[name][self.history :, list(members)] = False
        return masks

    def schedule(self, mask: Tensor, history: int | None = None) -> CacheSchedule:
        """The schedule of a mask, whose forecasts weigh as many values as the predictor reads."""
        history = history or self.history
        predictor = Predictor()
        if self.history > 1:
            coefficients = torch.full((*mask.shape, history), 0.1 / history)
            coefficients[..., 0] = 0.9
            predictor = Predictor("linear", coefficients=coefficients)
        return CacheSchedule(mask, self.table, Contract(self.run), predictor)

    def variant(self, mask: Tensor, history: int | None = None) -> Callable[[], object]:
        """One run with a mask."""
        sample = self.sampler.compile(self.schedule(mask, history), self.mode)
        return lambda: sample(self.noise, self.labels)

    def solver(self) -> Callable[[], object]:
        """What a run does besides evaluating the network."""
        sampler, noise = self.sampler, self.noise
        compiled = sampler.compile(None, self.mode)
        if not isinstance(compiled, CompiledSampler):
            return lambda: run_loop(
                sampling_loop(sampler.make_solver(), noise), lambda _evaluation, _x: noise
            )
        weights = compiled.job.solver.to(noise.device, torch.float32)
        terms = noise.flatten().expand(len(weights), -1).contiguous()
        return lambda: [row @ terms for row in weights]


def layer_groups(table: LayerTable) -> dict[str, tuple[int, ...]]:
    """Layers that cost the same, since they are of one kind and size, by a name for the group."""

    def alike(layer: Layer) -> tuple[str, int, int]:
        return layer.kind, layer.macs, layer.out_elements

    kinds = dict.fromkeys(map(alike, table.layers))
    groups: dict[str, tuple[int, ...]] = {}
    for kind in kinds:
        same_kind = [other for other in kinds if other[0] == kind[0]]
        name = kind[0] if len(same_kind) == 1 else f"{kind[0]} {same_kind.index(kind) + 1}"
        groups[name] = tuple(i for i, layer in enumerate(table.layers) if alike(layer) == kind)
    return groups


def random_mask(table: LayerTable, evaluations: int, share: float, seed: int) -> Tensor:
    """A mask of about so many of the MACs that is random everywhere after the first evaluation.

    Args:
        table: The layers.
        evaluations: Of the run.
        share: Of the MACs of a run that computes everything; one that cannot be had gives the nearest that can.
        seed: Of the mask.

    Returns:
        Bool (evaluations, layers).
    """
    later = evaluations - 1
    left = share * evaluations * table.full_macs - table.full_macs - later * table.rest_macs
    chance = left / max(later * table.layer_macs, 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(evaluations, len(table), generator=generator) < chance
    mask[0] = True
    return mask
