"""`l2c demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2c.cli.console import macs, note, print_record, progress_bar, results, table
from l2c.cli.options import AS_JSON, DEVICE, OTHER, OUTPUT, flag, option, takes
from l2c.devices import resolve_device

if TYPE_CHECKING:
    from l2c.records import Record


@takes()
def demo(
    out: Path = option(
        "FOLDER", "Where the results go; open index.html in it.", OUTPUT, short="-o", default=Path("l2c-demo")
    ),
    quick: bool = flag("Four pictures, hardly any learning, every variant timed once: half a minute.", OTHER),
    pipeline: bool = flag(
        "Show it on the text-to-image pipeline that comes with l2c instead: learn for half of the work, and draw "
        "prompts with it and without. Needs pip install 'l2c[pipelines]'.",
        OTHER,
    ),
    device: str = replace(DEVICE, default="cpu"),
    as_json: bool = AS_JSON,
) -> None:
    """Show the whole way on a small model, in a few minutes and without a network.

    Takes the diffusion transformer for 32x32 pictures that comes with l2c; learns a schedule for 20
    evaluations with DDIM; samples ten pictures from the same noise with everything computed, with that
    schedule, and with one that was learned for longer; and prints time, work and closeness. The folder has
    the pictures, the schedule, and index.html, a page that shows all of it.

    For example:

    - `l2c demo`
    - `l2c demo --pipeline --out drawn`
    """
    from l2c.files import output_folder
    from l2c.learning.session import Progress

    kind: Any
    run: Any
    if pipeline:
        from l2c.pipeline_demo import SHEET, PipelineDemoSettings, run_pipeline_demo

        kind, run, page = PipelineDemoSettings, run_pipeline_demo, SHEET
    else:
        from l2c.demo import PAGE, DemoSettings, run_demo

        kind, run, page = DemoSettings, run_demo, PAGE
    settings = kind.quick() if quick else kind()
    with output_folder(out) as folder, progress_bar("note") as bar:
        learning = bar.add_task("learning", total=settings.learning.iterations, note="")
        sampling = bar.add_task("sampling", total=settings.num_runs, note="")

        def on_learning(progress: Progress) -> None:
            bar.update(learning, total=progress.iterations, completed=progress.iteration, note=progress.stage)

        def on_sampling(title: str, repetition: int) -> None:
            bar.update(sampling, advance=1, note=title)

        place = resolve_device(device)
        record = run(folder, settings, place, on_learning=on_learning, on_sampling=on_sampling)
    print_record(record, out, _report, as_json=as_json)
    note(f"open {out / page} to see the pictures")


def _report(record: Record) -> None:
    """A line for each way of sampling, and what the figures are."""
    variants, drawn = record.results["variants"], "prompts" in record.config
    judged = ("objects as told",) if drawn else ("MACs", "PSNR")
    shown = table("sampling", "seconds", "min-max", "speed-up", "left", *judged, "error")
    for one in variants:
        more = [f"{one['adherence']['objects']:.0%}"] if drawn else [macs(one["macs"]), _decibels(one)]
        times = f"{one['median_s']:.2f}", f"{one['min_s']:.1f}-{one['max_s']:.1f}", f"{one['speedup']:.2f}x"
        shown.add_row(one["title"], *times, f"{one['fraction']:.0%}", *more, f"{one['error']:.4f}")
    console = results()
    console.print(shown)
    console.print(
        f"{len(record.seeds)} pictures{' of prompts that nothing was learned on' if drawn else ''}; median of "
        f"{variants[0]['repetitions']} interleaved repetitions; left: share of the MACs, which are per picture without "
        f"guidance; learned in {record.results['learning']['seconds']:.0f} s; error: root mean square distance to a "
        f"solution in {record.results['fine_run']['steps']} finer steps, mean, where pictures go from -1 to 1."
    )


def _decibels(variant: dict[str, Any]) -> str:
    """How close the pictures are to those with everything computed."""
    if variant["key"] == "full":
        return ""
    return "identical" if variant["psnr_db"] is None else f"{variant['psnr_db']:.1f} dB"
