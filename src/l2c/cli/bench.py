"""`l2c bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from l2c.cli import options, targets
from l2c.cli.console import digits, print_record, progress_bar, results, say, table
from l2c.cli.options import check_outputs, flag, option, parse_numbers, takes
from l2c.errors import CheckpointError

if TYPE_CHECKING:
    from l2c.records import Record

_COLUMNS = ("MACs", "first s", "s", "pictures\nper s", "speed-up", "of MAC\nratio")
_MEMORY = ("peak\nGB", "of it\nstore")


@takes(options.AsMade, targets.TimedTargetOptions)
def bench(
    context: typer.Context,
    model: str = targets.TARGET,
    random_weights: bool = flag(
        "Take a model of a published size with random weights, which take the same time: MODEL names the size, "
        "such as dit-xl-2-256. Schedules learned on other weights of that size are timed, too.",
        options.MODEL,
    ),
    schedules: list[str] | None = option(
        "FILE|NAME",
        "What to time beside everything computed, as for `l2c sample`. Can be given several times.",
        options.SCHEDULE,
        "--schedule",
        "-s",
    ),
    batch_sizes: str = option(
        "LIST",
        "Pictures at a time, with commas: 1,8,64. One that does not fit into memory is left out.",
        options.MEASURING,
        default="1,8",
    ),
    engines: str = option(
        "LIST",
        f"One or several, with commas: eager,compile,graph. {options.ENGINE_HELP}",
        options.MEASURING,
        default="auto",
    ),
    repetitions: int = option("N", "Timed runs of each kind.", options.MEASURING, min=1, default=5),
    out: Path | None = options.RECORD_FILE,
    as_json: bool = options.AS_JSON,
) -> None:
    """Show how long sampling takes with schedules and without, on this device.

    Every schedule is timed beside a run of the same solver that computes everything, in turn in one process, with each
    engine and at each batch size. Speed-ups are medians of ratios within a round, so that a busy machine is busy for
    both; in brackets are the least and the most. The floor is the time that the multiply-accumulates alone take at the
    rate of a large matrix product on this device. The model and the solver are timed, decoding of latents is not. Which
    layers take the time is what `l2c profile` shows.

    For example:
    - `l2c bench -s dit-mini-cifar10-ddim-20 --budget 0.5 --batch-sizes 1,8`
    - `l2c bench DiT-XL-2-256x256.pt -s DDIM50_router.pt --dtype bfloat16 --engines graph,eager --out times.json`
    - `l2c bench ./pixart -s fast.safetensors --prompt "a photo of a cat" --dtype bfloat16`
    - `l2c bench uvit-h-2-256 --random-weights --dtype bfloat16 --batch-sizes 1,4,16,64`
    """
    from l2c.bench.schedules import EVERYTHING, measure_schedules
    from l2c.schedule.open import load_schedules

    given = context.params
    check_outputs(given, out=".json")
    sizes = parse_numbers(batch_sizes, "--batch-sizes")
    found = load_schedules(schedules or [], given["budget"], reserved=(EVERYTHING,))
    if random_weights:
        found = {name: one.with_any_weights() for name, one in found.items()}
    run = targets.read_run(given)
    target = _load(given)
    shown = ("model", "lora", "random_weights", "budget", "dtype")
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        record = measure_schedules(
            target,
            found,
            batch_sizes=sizes,
            engines=[name.strip() for name in engines.split(",")],
            repetitions=repetitions,
            any_weights=given["any_weights"],
            names={"schedules": schedules or [], **{name: given[name] for name in shown}},
            note=lambda text: say("warning", text),
            on_progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
            **run,
        )
    print_record(record, out, _report, as_json=as_json)


def _load(given: Mapping[str, Any]) -> Any:
    from l2c.devices import resolve_device, resolve_dtype
    from l2c.models import build_model, is_size

    name = given["model"]
    if given["random_weights"]:
        device = resolve_device(given["device"])
        return build_model(name, dtype=resolve_dtype(given["dtype"], device), device=device)
    try:
        return targets.load(given, tf32=True)
    except CheckpointError as error:
        if Path(name).exists() or not is_size(name):
            raise
        raise CheckpointError(
            f"{error}; or, since weights make no difference to time, add --random-weights"
        ) from error


def _report(record: Record) -> None:
    """A table for each run, batch size and engine."""
    from l2c.bench.schedules import pictures

    config, console = record.config, results()
    weights = ", random weights" if config["random_weights"] else ""
    console.print(
        f"{config['model']}{weights}, {config['dtype']}, on {record.device['device']} ({record.device['name']}); "
        f"medians of {config['repetitions']} and [least, most]\n",
        markup=False,
        soft_wrap=True,
    )
    parts: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in record.results["rows"]:
        parts.setdefault((row["run"], row["images"], row["engine"]), []).append(row)
    for (run, images, engine), rows in sorted(parts.items(), key=lambda part: part[0][0]):
        title = f"{run}; {pictures(images)} at a time, engine {engine}"
        memory = _MEMORY if any(row["peak_bytes"] for row in rows) else ()
        shown = table("schedule", *_COLUMNS, *memory, "floor s", title=title, fold=True)
        for row in rows:
            shown.add_row(Text(row["schedule"]), *_cells(row))
        console.print(shown, "")
    for left_out in record.results["out_of_memory"]:
        console.print(f"Out of memory: {pictures(left_out['images'])} at a time ({left_out['run']})")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table without its name."""
    from l2c.bench.schedules import EVERYTHING

    seconds, ratio, peak = row["seconds"], row["speed_up"], row["peak_bytes"]
    is_baseline = row["schedule"] == EVERYTHING
    cells = [
        f"{row['macs_fraction']:.1%}",
        digits(row["first_s"]),
        f"{digits(row['median_s'])}\n[{digits(min(seconds))}, {digits(max(seconds))}]",
        digits(row["pictures_per_s"]),
        "" if is_baseline else f"{ratio['median']:.2f}\n[{ratio['least']:.2f}, {ratio['most']:.2f}]",
        "" if is_baseline else f"{row['share_of_mac_ratio']:.0%}",
    ]
    if peak:  # there is none on CPUs
        cells += [digits(peak / 1e9), f"{row['store_bytes'] / peak:.1%}"]
    return [*cells, digits(row["floor_s"])]
