"""`l2c demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from l2c.cli.console import macs, note, print_json, progress_bar, results, table
from l2c.cli.options import AS_JSON, DEVICE, OTHER, OUTPUT, flag, option, takes
from l2c.devices import resolve_device

if TYPE_CHECKING:
    from l2c.records import Record

_NAMES = {"full": "everything", "cached": "just learned", "shipped": "shipped"}


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
    if pipeline:
        _demo_of_pipeline(out, quick=quick, device=device, as_json=as_json)
        return

    from l2c.demo import TITLES, DemoSettings, run_demo
    from l2c.files import output_folder
    from l2c.learning.session import Progress

    settings = DemoSettings.quick() if quick else DemoSettings()
    device = resolve_device(device)
    with output_folder(out) as folder, progress_bar("note") as bar:
        learning = bar.add_task("learning", total=settings.learning.iterations, note="")
        runs = 1 + settings.repetitions * (2 if settings.shipped is None else len(TITLES))
        sampling = bar.add_task("sampling", total=runs, note="")
        begun = 0

        def on_learning(progress: Progress) -> None:
            note = f"{progress.fraction:.0%} of MACs"
            bar.update(learning, completed=progress.iteration, note=note)

        def on_sampling(title: str, repetition: int) -> None:
            nonlocal begun
            bar.update(sampling, completed=begun, note=title)
            begun += 1

        record = run_demo(folder, settings, device, on_learning=on_learning, on_sampling=on_sampling)
    if as_json:
        print_json({"folder": str(out), **record.to_json()})
    else:
        _report(record)
        note(f"open {out / 'index.html'} to see the pictures")


def _demo_of_pipeline(out: Path, *, quick: bool, device: str, as_json: bool) -> None:
    from l2c.files import output_folder
    from l2c.learning.session import Progress
    from l2c.pipeline_demo import SHEET, PipelineDemoSettings, run_pipeline_demo

    settings = PipelineDemoSettings.quick() if quick else PipelineDemoSettings()
    with output_folder(out) as folder, progress_bar("note") as bar:
        learning = bar.add_task("learning", total=settings.learning.iterations, note="")
        sampling = bar.add_task("drawing", total=1 + 2 * settings.repetitions, note="")

        def on_learning(progress: Progress) -> None:
            bar.update(learning, total=progress.iterations, completed=progress.iteration, note=progress.stage)

        def on_sampling(title: str, repetition: int) -> None:
            bar.update(sampling, advance=1, note=title)

        record = run_pipeline_demo(
            folder, settings, resolve_device(device), on_learning=on_learning, on_sampling=on_sampling
        )
    if as_json:
        print_json({"folder": str(out), **record.to_json()})
        return
    shown = table("drawing", "seconds", "min-max", "speed-up", "left", "objects as told", "error")
    for variant in record.results["variants"]:
        shown.add_row(
            variant["title"],
            f"{variant['median_s']:.2f}",
            f"{variant['min_s']:.1f}-{variant['max_s']:.1f}",
            f"{variant['speedup']:.2f}x",
            f"{variant['fraction']:.0%}",
            f"{variant['adherence']['objects']:.0%}",
            f"{variant['error']:.4f}",
        )
    console = results()
    console.print(shown)
    console.print(
        f"{len(record.seeds)} pictures of prompts that nothing was learned on; median of "
        f"{record.results['variants'][0]['repetitions']} interleaved repetitions; learned in "
        f"{record.results['learning']['seconds']:.0f} s; error: root mean square distance to a solution in "
        f"{record.config['fine_steps']} finer steps, mean, where pictures go from -1 to 1."
    )
    note(f"open {out / SHEET} to see the pictures")


def _report(record: Record) -> None:
    shown = table("sampling", "seconds", "min-max", "speed-up", "MACs", "left", "PSNR", "error")
    for variant in record.results["variants"]:
        reference = variant["key"] == "full"
        decibels = variant["psnr_db"]
        shown.add_row(
            _NAMES[variant["key"]],
            f"{variant['median_s']:.2f}",
            f"{variant['min_s']:.1f}-{variant['max_s']:.1f}",
            f"{variant['speedup']:.2f}x",
            macs(variant["macs"]),
            f"{variant['fraction']:.0%}",
            "" if reference else "identical" if decibels is None else f"{decibels:.1f} dB",
            f"{variant['error']:.4f}",
        )
    console = results()
    console.print(shown)
    count = record.results["variants"][0]["repetitions"]
    pictures = len(record.seeds)
    console.print(
        f"{pictures} pictures; median of {count} interleaved repetitions; MACs per picture, guidance not counted, "
        "and the share that is left; PSNR to the pictures with everything computed, mean; error: root mean square "
        f"distance to a solution in {record.results['fine_run']['steps']} finer steps, mean, where pictures go "
        "from -1 to 1."
    )
