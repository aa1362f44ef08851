"""`l2c report`."""

from __future__ import annotations

from pathlib import Path

from l2c.cli.console import note, print_json, say, show
from l2c.cli.options import AS_JSON, OUTPUT, argument, check_outputs, option, takes


@takes()
def report(
    folder: Path = argument("FOLDER", "What `l2c compare` wrote."),
    out: Path | None = option(
        "FILE.html", "Where the page goes. [default: report.html in the folder]", OUTPUT, short="-o"
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Make one page of a comparison, from its records alone.

    Error against measured time and against MACs, with the front; a table of all variants with confidence intervals,
    95th percentiles and the worst picture; the same pictures side by side; schedules; and what it takes to make it
    again. The page needs no network and no other file. No model is run. Printed is, of every method, the setting that
    trades best.

    For example:

    - `l2c report l2c-compare --out report.html`
    """
    from l2c.files import atomic_write
    from l2c.report.compare_page import compare_page
    from l2c.report.compare_table import comparison_text
    from l2c.report.comparison_folder import read_comparison

    path = folder / "report.html" if out is None else out
    check_outputs({"out": path}, out=".html")
    data = read_comparison(folder)
    for problem in data.problems:
        say("note", problem)
    atomic_write(path, compare_page(data).encode())
    if as_json:
        print_json({"page": str(path), "unit": data.unit, "variants": data.figures()})
    else:
        show(comparison_text(data))
        note(f"{path} shows {len(data.variants)} variants")
