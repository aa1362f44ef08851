"""`l2c compare`."""

from __future__ import annotations

from pathlib import Path

from l2c.cli.console import note, print_json, progress_bar, say
from l2c.cli.console import show as show_text
from l2c.cli.options import AS_JSON, DEVICE, OTHER, OUTPUT, argument, flag, option, takes
from l2c.devices import resolve_device
from l2c.errors import ConfigError


@takes()
def compare(
    file: Path | None = argument(
        "[FILE.toml]", "What to compare; docs/compare.md explains it.", default=None
    ),
    preset: str | None = option(
        "NAME",
        "A comparison that comes with l2c, instead of a file: embedded-dit, embedded-uvit, embedded-t2i (a "
        "text-to-image pipeline), smoke (a minute), dit-xl-2-256 and uvit-h-2-256 (to be copied, with your paths).",
        OTHER,
    ),
    show: bool = flag("Print what would be run, and stop.", OTHER),
    out: Path = option(
        "FOLDER",
        "Where the records go. What is there already is not run again.",
        OUTPUT,
        short="-o",
        default=Path("l2c-compare"),
    ),
    device: str = DEVICE,
    as_json: bool = AS_JSON,
) -> None:
    """Compare caches, schedules and fewer steps on equal terms.

    A TOML file names a model or a diffusers pipeline, runs to make faster, methods, budgets and metrics. Every variant
    samples the same noise; each is recorded in a file of its own, with every figure per picture; then all of them are
    timed in turn. What cannot be run is recorded with the reason, and does not stop the others. A comparison that was
    interrupted, or whose file has more methods now, goes on where it was. `l2c report` makes the page.

    For example:

    - `l2c compare --preset smoke --out tried`
    - `l2c compare my.toml --out mine && l2c report mine --out mine.html`
    """
    from l2c.compare.config import CompareConfig, to_plain
    from l2c.compare.plan import plan
    from l2c.compare.runner import Comparison
    from l2c.report.compare_table import comparison_text
    from l2c.report.comparison_folder import read_comparison

    if (file is None) == (preset is None):
        raise ConfigError("give either a TOML file or --preset NAME")
    config = CompareConfig.load(file) if file is not None else CompareConfig.preset(str(preset))
    if show:
        variants = [variant.id for variant in plan(config)]
        if as_json:
            print_json({"config": to_plain(config), "variants": variants})
        else:
            show_text("\n".join(variants))
        return
    comparison = Comparison(config, out, resolve_device(device), note=lambda text: say("note", text))
    with progress_bar("what") as bar:
        task = bar.add_task("comparing", total=len(comparison.variants), what="")

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, what=what)

        records = comparison.run(on_progress)
    if as_json:
        print_json({"folder": str(out), "records": [record.to_json() for record in records]})
    else:
        if "rmse" in config.metrics:
            show_text(comparison_text(read_comparison(out)))
        note(f"l2c report {out} --out {out}.html makes the page")
