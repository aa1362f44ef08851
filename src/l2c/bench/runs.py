"""The runs that are timed to find out what layers cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost
from l2c.layers import Layer, LayerTable
from l2c.sampling.compiled import CompiledSampler
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule

FULL, REST, SHALLOW = "everything computed", "everything reused", "everything reused, of one value"


class ProfileRuns:
    """Whole runs of a host with one mask or another.

    Args:
        host: The model or pipeline and its run.
        batch_size: Pictures at a time.
        mode: The engine, from `Host.resolve_engine`.
        history: How many values the forecasts read.
        evaluations: Of each run; None for a usual number, or the host's own where it cannot be set. A host with a
            learned solver has its own.

    Attributes:
        reused: Evaluations that reuse layers, bool (evaluations,): all but the first of each transformer, as many as
            the forecasts read values.

    Raises:
        ConfigError: If there are too few evaluations for the history.
    """

    def __init__(self, host: Host, batch_size: int, mode: str, history: int, evaluations: int | None) -> None:
        try:
            host = host.with_steps(evaluations or max(history + 2, 20 if host.device.type == "cuda" else 8))
        except ConfigError:
            if evaluations is not None:
                raise
        self.host, self.batch_size, self.mode, self.history = host, batch_size, mode, history
        self.table, self.count = host.table, len(host.run.timesteps)
        self.reused = torch.ones(self.count, dtype=torch.bool)
        for begin in host.segments:
            self.reused[begin : begin + history] = False
        if not self.reused.any():
            raise ConfigError(
                f"the forecasts read {history} values, so a run needs at least {history + 1} evaluations, got "
                f"{self.count}"
            )

    def masks(self) -> dict[str, Tensor]:
        """What `fit_costs` needs: all begin with as many whole evaluations as the forecasts read."""
        everything = torch.ones(self.count, len(self.table), dtype=torch.bool)
        masks = {FULL: everything}
        for name, members in {REST: range(len(self.table)), **layer_groups(self.table)}.items():
            masks[name] = everything.clone()
            masks[name][:, list(members)] = ~self.reused[:, None]
        return masks

    def schedule(self, mask: Tensor, history: int | None = None) -> CacheSchedule:
        """The schedule of a mask, whose forecasts weigh as many values as the predictor reads."""
        history = history or self.history
        predictor = Predictor()
        if self.history > 1:
            coefficients = torch.full((*mask.shape, history), 0.1 / history)
            coefficients[..., 0] = 0.9
            predictor = Predictor("linear", coefficients=coefficients)
        return CacheSchedule(mask, self.table, Contract(self.host.run), predictor)

    def variant(self, mask: Tensor, history: int | None = None) -> Callable[[], object]:
        """One run with a mask."""
        return self.host.ready(self.schedule(mask, history), self.batch_size, self.mode)

    def solver(self, host: ModelHost) -> Callable[[], object]:
        """What a run of a model does besides evaluating the network."""
        sampler, noise = host.sampler, host.seeded(range(self.batch_size)).noise
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


def random_mask(
    table: LayerTable, evaluations: int, share: float, seed: int, whole: Sequence[int] = (0,)
) -> Tensor:
    """A mask of about so many of the MACs that is random everywhere after the first evaluation.

    Args:
        table: The layers.
        evaluations: Of the run.
        share: Of the MACs of a run that computes everything; one that cannot be had gives the nearest that can.
        seed: Of the mask.
        whole: Evaluations that compute everything.

    Returns:
        Bool (evaluations, layers).
    """
    later = evaluations - len(whole)
    left = (share * evaluations - len(whole)) * table.full_macs - later * table.rest_macs
    chance = left / max(later * table.layer_macs, 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(evaluations, len(table), generator=generator) < chance
    mask[list(whole)] = True
    return mask
