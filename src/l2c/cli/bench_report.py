"""How `l2c bench` shows what it has timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from l2c.cli.console import note, print_json, results
from l2c.records import RunRecord

EVERYTHING = "everything computed"
_COLUMNS = (
    "MACs",
    "first s",
    "s",
    "pictures\nper s",
    "speed-up",
    "of MAC\nratio",
    "peak\nGB",
    "of it\nstore",
    "floor s",
)


def report(record: RunRecord, out: Path | None, *, as_json: bool) -> None:
    """Prints what was found, a table for each run, batch size and engine."""
    if as_json:
        print_json({"file": None if out is None else str(out), **record.to_json()})
        return
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
        console.print(_table(rows, f"{run}; {pictures(images)} at a time, engine {engine}"))
    for left_out in record.results["out_of_memory"]:
        console.print(f"Out of memory: {pictures(left_out['images'])} at a time ({left_out['run']})")
    if out is not None:
        note(f"wrote {out}")


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("schedule", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(Text(row["schedule"]), *_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table without its name."""
    seconds, ratio, peak = row["seconds"], row["speed_up"], row["peak_bytes"]
    is_baseline = row["schedule"] == EVERYTHING
    return [
        f"{row['macs_fraction']:.1%}",
        _short(row["first_s"]),
        f"{_short(row['median_s'])}\n[{_short(min(seconds))}, {_short(max(seconds))}]",
        _short(row["pictures_per_s"]),
        "" if is_baseline else f"{ratio['median']:.2f}\n[{ratio['least']:.2f}, {ratio['most']:.2f}]",
        "" if is_baseline else f"{row['share_of_mac_ratio']:.0%}",
        _short(peak / 1e9) if peak else "-",
        f"{row['store_bytes'] / peak:.1%}" if peak else "-",
        _short(row["floor_s"]),
    ]


def _short(value: float) -> str:
    """A number as people read it: three digits, without an exponent.

    >>> _short(1234.5), _short(12.345), _short(0.012345)
    ('1234', '12.3', '0.0123')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1e-4 else f"{value:.2g}"


def pictures(count: int) -> str:
    """How many, in words.

    >>> pictures(1), pictures(8)
    ('1 picture', '8 pictures')
    """
    return "1 picture" if count == 1 else f"{count} pictures"
