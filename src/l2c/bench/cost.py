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

from l2c.bench.runs import FULL, REST, SHALLOW, ProfileRuns, layer_groups, random_mask
from l2c.bench.timing import Timing, interleave
from l2c.documents import Count, check_value
from l2c.errors import ConfigError, DataError
from l2c.hosts.base import Host
from l2c.hosts.native import ModelHost, check_class_host
from l2c.hosts.targets import host_of
from l2c.layers import LayerTable
from l2c.records import Record, describe_device
from l2c.sampling.compiled import keep_all_runs, release_engines
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
        guidance: Scale, None where the run has none.
        solver_ms: What of the rest is the solver, per evaluation; None for a pipeline, whose scheduler is not timed
            apart. With graphs it is less than this, which is launched step by step.
        decoder_ms: Of decoding the pictures of a batch, which is in no evaluation; None where there is no decoder.
    """

    costs: CostTable
    groups: Mapping[str, tuple[int, ...]]
    checks: tuple[Check, ...]
    timings: Mapping[str, Timing]
    engine: str
    evaluations: int
    history: int
    guidance: float | None
    solver_ms: float | None
    decoder_ms: float | None

    def record(self, device: str, **config: Any) -> Record:
        """All of it, with every repetition, as `read_costs` reads it.

        Args:
            device: Where it was measured.
            config: The settings.
        """
        costs = self.costs
        made = {"steps": self.evaluations, "engine": self.engine, "history": self.history}
        return Record(
            command="profile",
            config={**config, **made, "guidance": self.guidance},
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
    target: Any, *, batch_size: int = 1, repetitions: int = 9, engine: str = "auto", **run: Any
) -> CostTable:
    """Milliseconds of every layer and of the rest of an evaluation; arguments and errors as of `measure_profile`.

    What was compiled and captured to measure them is freed.

    Example:
        >>> import l2c
        >>> costs = l2c.measure_costs(l2c.testing.tiny_dit(), repetitions=1)
        >>> costs.unit, len(costs.layers)
        ('ms', 6)
    """
    host = host_of(target, measure_costs, **run)
    profile = measure_profile(host, batch_size=batch_size, repetitions=repetitions, engine=engine, checked=())
    for model in host.models.values():
        release_engines(model)
    return profile.costs


def measure_profile(
    target: Any,
    *,
    batch_size: int = 1,
    repetitions: int = 9,
    engine: str = "auto",
    predictor: Predictor = LEARNED,
    evaluations: int | None = None,
    checked: Sequence[float] = CHECKED,
    decoder: Callable[[Any], object] | None = None,
    on_run: Callable[[str, int], None] | None = None,
    time_limit_s: float | None = 180.0,
    **run: Any,
) -> Profile:
    """Finds out where the time of a run goes, by whole runs that reuse one group of layers or another.

    Args:
        target: A model, a diffusers pipeline or a host. The number of steps does not matter: runs have `evaluations`,
            unless they are of a learned solver.
        batch_size: Pictures at a time.
        repetitions: Runs of each kind, fewer if the time is up before.
        engine: How a model is run, see `Sampler.compile`; a pipeline runs as it is, compiled if its transformer is.
        predictor: How many stored values the forecasts read; which weights they have costs nothing.
        evaluations: Of each run, in steps of its solver; 20 on CUDA devices and 8 elsewhere if not given.
        checked: Shares of the MACs of random masks to check predictions on.
        decoder: Decodes a model's samples, if its time is wanted.
        on_run: Called as (kind of run, repetition) before each.
        time_limit_s: Seconds after which no further repetition is begun.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        CacheStateError: If a cache is enabled on the model.
        ConfigError: If batch size or repetitions are less than 1, there are too few evaluations, the engine is unknown
            or does not fit the model or its device, a pipeline is given a decoder, or an argument is unknown.
    """
    check_value("batch_size", batch_size, Count)
    check_value("repetitions", repetitions, Count)
    host = host_of(target, measure_profile, **run)
    mode = host.resolve_engine(engine)
    runs = ProfileRuns(host, batch_size, mode, predictor.history, evaluations)
    table, masks = runs.table, runs.masks()
    whole = (0,) if len(runs.host.segments) == 1 else (~runs.reused).nonzero().flatten().tolist()
    random = {
        f"random, {share:.0%}": random_mask(table, runs.count, share, seed, whole)
        for seed, share in enumerate(checked)
    }
    masks |= random
    variants = {name: runs.variant(mask) for name, mask in masks.items()}
    if runs.history > 1 and mode == "eager":  # compiled forecasts read as many values always
        variants[SHALLOW] = runs.variant(masks[REST], history=1)
    if isinstance(runs.host, ModelHost):
        variants[_SOLVER] = runs.solver(runs.host)
    if decoder is not None:
        noise = check_class_host(host, "timing a decoder").seeded(range(batch_size)).noise
        variants[_DECODER] = lambda: decoder(noise)
    with keep_all_runs(next(iter(host.models.values())), [mode]):
        timings = interleave(variants, repetitions, time_limit_s=time_limit_s, on_run=on_run)
    seconds = {name: timing.seconds for name, timing in timings.items()}
    costs = fit_costs(table, seconds, runs.count, runs.history, int(runs.reused.sum()))
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
        host.run.guidance,
        1e3 * timings[_SOLVER].median_s / runs.count if _SOLVER in timings else None,
        None if decoder is None else 1e3 * timings[_DECODER].median_s,
    )


def fit_costs(
    table: LayerTable,
    seconds: Mapping[str, Sequence[float]],
    evaluations: int,
    history: int,
    reused: int | None = None,
) -> CostTable:
    """Milliseconds of layers and rest from the times of runs.

    The time of a group is how much faster runs are that reuse it. Groups are scaled to what runs save that reuse them
    all, so that an evaluation that computes everything and one that computes nothing come out exactly.

    Args:
        table: The layers.
        seconds: Of every repetition, for each kind of run: with everything computed, with everything reused, the same
            with forecasts that read one value, if that matters, and with each group reused, by its name.
        evaluations: Of each run.
        history: How many values forecasts read.
        reused: In how many evaluations runs reused layers; in all after the first `history` if not given.
    """
    full = seconds[FULL]

    def saved_ms(name: str) -> float:
        differences = [a - b for a, b in zip(full, seconds[name], strict=True)]
        return max(0.0, 1e3 * median(differences) / (reused or evaluations - history))

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


def read_costs(path: Path, host: Host) -> CostTable:
    """Reads the table of costs that `l2c profile` wrote.

    Args:
        path: The file.
        host: What it is to be used for.

    Raises:
        ConfigError: If it is of another model, or with guidance where this run is without, or the other way round.
        DataError: If it cannot be read or is something else.
    """
    record = Record.load(path)
    if record.command != "profile" or "costs" not in record.results:
        raise DataError(f"{path} is a record of l2c {record.command}; give one that l2c profile has written")
    costs = CostTable.from_json(record.results["costs"])
    costs.check_layers(host.table)
    guided, here = (scale not in (None, 1) for scale in (record.config.get("guidance"), host.run.guidance))
    if guided != here:
        raise ConfigError(
            f"{path} has the costs {'with' if guided else 'without'} guidance, and this run is "
            f"{'with' if here else 'without'}; measure it with l2c profile and the guidance of this run"
        )
    return costs
