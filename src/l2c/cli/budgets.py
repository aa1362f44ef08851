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
UNITS = ("--budget", "--macs", "--latency-ms", "--budget-evals")


def check_budget(given: Mapping[str, Any], *, auto: bool) -> None:
    """Refuses options that do not go together, or not with the solver.

    Raises:
        ConfigError: If there are some, or one is out of range.
    """
    from l2c.documents import Count, Positive, check_value

    said = [f"--{name.replace('_', '-')}" for name in BUDGETS if given[name] is not None]
    units = [name for name in said if name in UNITS]
    how = [name for name in said if name in ("--latency-batch", "--engine", "--costs")]
    one, timed, whole = "".join(how[:1]), "--latency-ms" in said, "--budget-evals" in said
    rules = {
        f"{' and '.join(units)} are budgets in different units; give one of them": units[1:],
        f"{one} is for --latency-ms; leave it out or give a budget in milliseconds": how and not timed,
        f"{one} is for measuring, and --costs reads what was measured; leave one of the two out": (
            "--costs" in how[1:]
        ),
        "--solver auto needs --budget-evals, what a run may cost in whole evaluations of the model": (
            auto and not whole
        ),
        "--budget-evals is for --solver auto; for a solver with a name give --budget": not auto and whole,
        "--per-computed is for --solver auto; leave it out": not auto and "--per-computed" in said,
    }
    for sentence, broken in rules.items():
        if broken:
            raise ConfigError(sentence)
    check_value("--latency-ms", given["latency_ms"], Positive | None)
    check_value("--latency-batch", given["latency_batch"], Count | None)
    if given["macs"] is not None:
        parse_macs(given["macs"])


def fractions_of(given: Mapping[str, Any]) -> tuple[float, ...]:
    """Shares of the MACs that schedules are learned for; where the budget has another unit, there is one."""
    return (DEFAULT,) if given["budget"] is None else parse_fractions(given["budget"])


def share_of(given: Mapping[str, Any], host: Host) -> float:
    """Share of the MACs that a run may cost; of several budgets the mean, and where the unit is another half."""
    if given["macs"] is not None:
        return parse_macs(given["macs"]) / (len(host.run.timesteps) * host.table.full_macs)
    fractions = fractions_of(given)
    return sum(fractions) / len(fractions)


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

    if given["costs"] is not None:
        return cost.read_costs(given["costs"], host)
    return cost.measure_costs(host, batch_size=given["latency_batch"] or 1, engine=given["engine"] or "auto")
