"""`l2c repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from l2c.cli import options, session, targets
from l2c.cli.console import results
from l2c.cli.options import takes


@takes(targets.TargetOptions, session.LearningOptions)
def repair(
    context: typer.Context,
    model: str = targets.NAMED_TARGET,
    schedule: str = targets.SCHEDULE,
    budget: float | None = options.FAMILY_BUDGET,
    out: Path = session.schedule_file("repaired.safetensors"),
    as_json: bool = options.AS_JSON,
) -> None:
    """Repair a schedule for a model or pipeline that has changed: a LoRA, a fine-tuned or quantised variant.

    Where to compute stays, and learning goes on from the forecasts that the schedule has, in a fraction of the time
    that it took. The target is run as when the schedule was made, where nothing else is said. Tells how far off the
    schedule was with this target before, and is afterwards, on pictures that nothing was learned on. Whether a schedule
    needs it, `l2c check` tells.

    For example:

    - `l2c repair tuned.safetensors half.safetensors --out repaired.safetensors`
    - `l2c repair ./pixart schedule.safetensors --lora ./style --prompts prompts.txt -o style.safetensors`
    """
    import l2c
    from l2c.cli.learning import run_learning
    from l2c.hosts.check import recorded_error

    given = context.params
    run, settings = targets.read_run(given, learns=True), session.settings_of(context)
    loaded = l2c.load_schedule(schedule, budget)
    recorded = recorded_error(loaded)

    def tell(repaired: list[l2c.CacheSchedule]) -> None:
        made = repaired[0].provenance
        before = "" if recorded is None else f"; it was {recorded:.4f} when the schedule was made"
        results().print(
            f"{out}: error of pictures that were not learned on {made['held_out_error_before']:.4f} before and "
            f"{made['held_out_error']:.4f} after the repair ({made['error_unit']}){before}",
            soft_wrap=True,
        )

    def work(target: Any, **how: Any) -> l2c.CacheSchedule:
        return l2c.repair(target, loaded, **how, **run)

    run_learning(given, settings, work, tell, error_when_made=recorded)
