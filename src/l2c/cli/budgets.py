"""Budgets as `l2c learn` takes them, in one of several units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from l2c.errors import ConfigError
from l2c.schedule.budget import DEFAULT, parse_fractions, parse_macs

if TYPE_CHECKING:
    from l2c.hosts.base import Host

BUDGETS = (
    "budget", "macs", "latency_ms", "budget_evals", "latency_batch", "engine", "costs", "per_computed",
)  # fmt: skip
"""Names of the options that say what a run may cost."""


def check_budget(given: Mapping[str, Any], *, auto: bool) -> None:
    """Refuses options that do not go together, or not with the solver.

    Raises:
        ConfigError: If there are some, or one is out of range.
    """
    said = [f"--{name.replace('_', '-')}" for name in BUDGETS if given[name] is not None]
    units = [name for name in said if name in ("--budget", "--macs", "--latency-ms", "--budget-evals")]
    if len(units) > 1:
        raise ConfigError(f"{' and '.join(units)} are budgets in different units; give one of them")
    how = [name for name in said if name in ("--latency-batch", "--engine", "--costs")]
    if how and "--latency-ms" not in said:
        raise ConfigError(f"{how[0]} is for --latency-ms; leave it out or give a budget in milliseconds")
    if "--costs" in how and len(how) > 1:
        raise ConfigError(
            f"{how[0]} is for measuring, and --costs reads what was measured; leave one of the two out"
        )
    if auto and "--budget-evals" not in said:
        raise ConfigError(
            "--solver auto needs --budget-evals, what a run may cost in whole evaluations of the model"
        )
    if not auto and "--budget-evals" in said:
        raise ConfigError("--budget-evals is for --solver auto; for a solver with a name give --budget")
    if not auto and "--per-computed" in said:
        raise ConfigError("--per-computed is for --solver auto; leave it out")
    if "--latency-ms" in said and not given["latency_ms"] > 0:
        raise ConfigError(f"--latency-ms must be more than 0, got {given['latency_ms']:g}")
    if "--latency-batch" in said and given["latency_batch"] < 1:
        raise ConfigError(f"--latency-batch must be at least 1, got {given['latency_batch']}")
    if "--macs" in said:
        parse_macs(given["macs"])


def fractions_of(given: Mapping[str, Any]) -> tuple[float, ...]:
    """Shares of the MACs that schedules are learned for; where the budget has another unit, there is one."""
    return (DEFAULT,) if given["budget"] is None else parse_fractions(given["budget"])


def wholes_of(given: Mapping[str, Any], host: Host) -> float:
    """What a run may cost, in whole evaluations; of several budgets the mean, and of milliseconds half of the run."""
    if given["budget_evals"] is not None:
        return float(given["budget_evals"])
    evaluations = len(host.run.timesteps)
    if given["macs"] is not None:
        return parse_macs(given["macs"]) / host.table.full_macs
    fractions = fractions_of(given)
    return evaluations * sum(fractions) / len(fractions)


def budget_of(given: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """What `l2c.learn` is called with for the budget.

    Raises:
        ConfigError: If a file of costs is of another model, or the engine does not fit.
        DataError: If a file of costs cannot be read.
    """
    from l2c.schedule.cost import CostTable

    if given["budget_evals"] is not None:
        how = {"evaluations": given["budget_evals"], "per_computed": given["per_computed"]}
        return {"solver": "auto", **how}
    if given["macs"] is not None:
        return {"budget": parse_macs(given["macs"]), "costs": CostTable.macs(host.table)}
    if given["latency_ms"] is not None:
        return {"budget": given["latency_ms"], "costs": _milliseconds(given, host)}
    fractions = fractions_of(given)
    return {"budget": fractions[0]} if len(fractions) == 1 else {"budgets": fractions}


def _milliseconds(given: Mapping[str, Any], host: Host) -> Any:
    from l2c.bench import cost
    from l2c.sampling.compiled import release_engines

    if given["costs"] is not None:
        return cost.read_costs(given["costs"], host)
    batch_size, engine = given["latency_batch"] or 1, given["engine"] or "auto"
    costs = cost.measure_costs(host, batch_size=batch_size, engine=engine)
    for model in host.models.values():
        release_engines(model)  # learning needs the memory
    return costs
