"""What the layers of an evaluation cost in milliseconds: what whole runs save that reuse them.

Nothing is timed inside an evaluation. Runs that reuse one group of equal layers are timed against runs that compute
everything, each through the engine that will sample, so that what a layer costs is what reusing it saves there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from l2c.bench.runs import FULL, REST, SHALLOW, ProfileRuns, layer_groups, random_mask
from l2c.bench.timing import Timing, interleave
from l2c.errors import ConfigError, DataError
from l2c.layers import LayerTable, find_layers
from l2c.records import RunRecord, describe_device
from l2c.sampling.compiled import keep_all_runs, resolve_engine
from l2c.sampling.sampler import Sampler
from l2c.schedule.cost import CostTable
from l2c.schedule.forecast import Predictor

LEARNED = Predictor("taylor", 2)
"""Reads three values, as the forecasts that `l2c learn` makes."""
CHECKED = (0.7, 0.5, 0.3)
"""Shares of the MACs of the random masks that predictions are checked on."""

_SOLVER, _DECODER = "solver", "decoder"


@dataclass(frozen=True)
class Check:
    """A random mask whose time was predicted and measured.

    Attributes:
        fraction: Its share of the MACs.
        predicted_ms: Of the run, by the table of costs.
        measured_ms: Median, from the same rounds that the table is from.
    """

    fraction: float
    predicted_ms: float
    measured_ms: float

    @property
    def deviation(self) -> float:
        """How far the prediction is above the measurement, as a fraction of it."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Profile:
    """Where the time of a run goes.

    Attributes:
        costs: Milliseconds of every layer and of the rest of an evaluation.
        groups: Layers that cost the same, by the name of their group.
        checks: Predictions against measurements.
        timings: Of all runs, raw.
        engine: `graph`, `compile` or `eager`.
        evaluations: Of each run.
        history: How many stored values a forecast reads.
        solver_ms: What of the rest is the solver, per evaluation. With graphs it is less than this, which is launched
            step by step.
        decoder_ms: Of decoding the pictures of a batch, which is in no evaluation; None where there is no decoder.
    """

    costs: CostTable
    groups: Mapping[str, tuple[int, ...]]
    checks: tuple[Check, ...]
    timings: Mapping[str, Timing]
    engine: str
    evaluations: int
    history: int
    solver_ms: float
    decoder_ms: float | None

    def record(self, device: str, **config: Any) -> RunRecord:
        """All of it, with every repetition, as `read_costs` reads it.

        Args:
            device: Where it was measured.
            config: The settings; `guidance` belongs to them.
        """
        costs = self.costs
        made = {"steps": self.evaluations, "engine": self.engine, "history": self.history}
        return RunRecord(
            command="profile",
            config={**config, **made},
            timings={name: list(timing.seconds) for name, timing in self.timings.items()},
            results={
                "costs": costs.to_json(),
                "groups": {
                    name: {"layers": len(members), "ms_per_layer": costs.layers[members[0]]}
                    for name, members in self.groups.items()
                },
                "rest_ms": costs.rest,
                "full_ms": costs.full,
                "solver_ms": self.solver_ms,
                "decoder_ms": self.decoder_ms,
                "checks": [{**asdict(check), "deviation": check.deviation} for check in self.checks],
            },
            device=describe_device(device),
        )


def measure_costs(
    sampler: Sampler, batch_size: int = 1, repetitions: int = 9, *, engine: str = "auto"
) -> CostTable:
    """Milliseconds of every layer and of the rest of an evaluation; arguments and errors as of `measure_profile`.

    Example:
        >>> import l2c
        >>> model = l2c.testing.tiny_dit()
        >>> costs = l2c.measure_costs(l2c.Sampler(l2c.sampling.Denoiser.of(model)), repetitions=1)
        >>> costs.unit, len(costs.layers)
        ('ms', 6)
    """
    return measure_profile(sampler, batch_size, repetitions, engine=engine, checked=()).costs


def measure_profile(
    sampler: Sampler,
    batch_size: int = 1,
    repetitions: int = 9,
    *,
    engine: str = "auto",
    predictor: Predictor = LEARNED,
    evaluations: int | None = None,
    checked: Sequence[float] = CHECKED,
    decoder: Callable[[Tensor], object] | None = None,
    on_run: Callable[[str, int], None] | None = None,
    time_limit_s: float | None = 180.0,
) -> Profile:
    """Finds out where the time of a run goes, by whole runs that reuse one group of layers or another.

    Args:
        sampler: The model, its solver and its guidance. The number of steps does not matter: runs have
            `evaluations`, unless the sampler brings a solver of its own.
        batch_size: Pictures at a time.
        repetitions: Runs of each kind, fewer if the time is up before.
        engine: How the model is run, see `Sampler.compile`.
        predictor: How many stored values the forecasts read; which weights they have costs nothing.
        evaluations: Of each run; 20 on CUDA devices and 8 elsewhere if not given.
        checked: Shares of the MACs of random masks to check predictions on.
        decoder: Decodes samples, if its time is wanted.
        on_run: Called as (kind of run, repetition) before each.
        time_limit_s: Seconds after which no further repetition is begun.

    Raises:
        CacheStateError: If a cache is enabled on the model.
        ConfigError: If batch size or repetitions are less than 1, there are too few evaluations, or the engine is
            unknown or does not fit the model or its device.
    """
    if batch_size < 1 or repetitions < 1:
        raise ConfigError(
            f"batch size and repetitions must be at least 1, got {batch_size} and {repetitions}"
        )
    mode = resolve_engine(engine, sampler.denoiser)
    runs = ProfileRuns(sampler, batch_size, mode, predictor.history, evaluations)
    table, masks = runs.table, runs.masks()
    random = {
        f"random, {share:.0%}": random_mask(table, runs.count, share, seed)
        for seed, share in enumerate(checked)
    }
    masks |= random
    variants = {name: runs.variant(mask) for name, mask in masks.items()}
    if runs.history > 1 and mode == "eager":  # compiled forecasts read as many values always
        variants[SHALLOW] = runs.variant(masks[REST], history=1)
    variants[_SOLVER] = runs.solver()
    if decoder is not None:
        variants[_DECODER] = lambda: decoder(runs.noise)
    with keep_all_runs(sampler.denoiser.model, [mode]):
        timings = interleave(variants, repetitions, time_limit_s=time_limit_s, on_run=on_run)
    seconds = {name: timing.seconds for name, timing in timings.items()}
    costs = fit_costs(table, seconds, runs.count, runs.history)
    checks = tuple(
        Check(runs.schedule(mask).cost.fraction, costs.of(mask), 1e3 * timings[name].median_s)
        for name, mask in random.items()
    )
    return Profile(
        costs,
        layer_groups(table),
        checks,
        timings,
        mode,
        runs.count,
        runs.history,
        1e3 * timings[_SOLVER].median_s / runs.count,
        None if decoder is None else 1e3 * timings[_DECODER].median_s,
    )


def fit_costs(
    table: LayerTable, seconds: Mapping[str, Sequence[float]], evaluations: int, history: int
) -> CostTable:
    """Milliseconds of layers and rest from the times of runs.

    The time of a group is how much faster runs are that reuse it. Groups are scaled to what runs save that reuse them
    all, so that an evaluation that computes everything and one that computes nothing come out exactly.

    Args:
        table: The layers.
        seconds: Of every repetition, for each kind of run: with everything computed, with everything reused, the same
            with forecasts that read one value, if that matters, and with each group reused, by its name.
        evaluations: Of each run.
        history: How many evaluations at its beginning computed everything.
    """
    full = seconds[FULL]

    def saved_ms(name: str) -> float:
        differences = [a - b for a, b in zip(full, seconds[name], strict=True)]
        return max(0.0, 1e3 * median(differences) / (evaluations - history))

    groups = layer_groups(table)
    full_ms = 1e3 * median(full) / evaluations
    together = min(saved_ms(REST), full_ms)
    apart = {name: saved_ms(name) for name in groups}
    scale = together / sum(apart.values()) if any(apart.values()) else 0.0
    layers = [0.0] * len(table)
    for name, members in groups.items():
        for layer in members:
            layers[layer] = scale * apart[name] / len(members)
    per_value = 0.0
    if SHALLOW in seconds:
        per_value = max(0.0, saved_ms(SHALLOW) - together) / (len(table) * (history - 1))
    return CostTable(
        "ms", tuple(layers), full_ms - sum(layers), table.architecture, table.names, history, per_value
    )


def read_costs(path: Path, sampler: Sampler) -> CostTable:
    """Reads the table of costs that `l2c profile` wrote.

    Args:
        path: The file.
        sampler: What it is to be used for.

    Raises:
        ConfigError: If it is of another model, or with guidance where this run is without, or the other way round.
        DataError: If it cannot be read or is something else.
    """
    record = RunRecord.load(path)
    if record.command != "profile" or "costs" not in record.results:
        raise DataError(f"{path} is a record of l2c {record.command}; give one that l2c profile has written")
    costs = CostTable.from_json(record.results["costs"])
    costs.check_layers(find_layers(sampler.denoiser.model))
    guided, here = (scale != 1 for scale in (record.config.get("guidance", 1), sampler.guidance.scale))
    if guided != here:
        raise ConfigError(
            f"{path} has the costs {'with' if guided else 'without'} guidance, and this run is "
            f"{'with' if here else 'without'}; measure it with l2c profile --guidance {sampler.guidance.scale:g}"
        )
    return costs
