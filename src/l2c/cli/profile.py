"""`l2c profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from l2c.cli import options, targets
from l2c.cli.console import print_record, progress_bar, results, table
from l2c.cli.options import check_outputs, option, takes
from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.records import Record


@takes(targets.TimedTargetOptions)
def profile(
    context: typer.Context,
    model: str = targets.TARGET,
    solver: str | None = option(
        "NAME",
        f"{options.SOLVER_HELP} A pipeline keeps its scheduler. [default: of a model, ddim]",
        options.RUN,
    ),
    steps: int | None = option(
        "N",
        "Evaluations of each run that is timed: 20 on CUDA devices and 8 elsewhere if not given. What is measured "
        "holds for any number.",
        options.RUN,
        min=1,
    ),
    spacing: str | None = options.SPACING,
    guidance: float | None = option(
        "SCALE", f"{options.GUIDANCE_HELP} [default: 1.5, or what a pipeline takes by itself]", options.RUN
    ),
    guidance_mode: str | None = options.GUIDANCE_MODE,
    batch_size: int = option("N", "Pictures at a time.", options.RUN, min=1, default=1),
    engine: str = options.ENGINE,
    predictor: str = option(
        "NAME",
        "Forecasts of the layers that are reused: copy, or taylor-N, which reads N + 1 values. What l2c learn "
        "makes takes the time of taylor-2.",
        options.MEASURING,
        default="taylor-2",
    ),
    repetitions: int = option(
        "N",
        "Runs of each kind, fewer if that takes more than three minutes.",
        options.MEASURING,
        min=1,
        default=9,
    ),
    vae: Path | None = options.VAE,
    out: Path | None = options.RECORD_FILE,
    as_json: bool = options.AS_JSON,
) -> None:
    """Show where the time of sampling goes, layer by layer, on this device at this shape.

    What a layer costs is what runs save that reuse it: whole runs that reuse all attention or all MLP layers are timed
    against runs that compute everything, in turn. The rest of an evaluation is what no schedule can save: embeddings,
    final layer, solver, and the forecasts. To see how far the costs can be trusted, the time of three random schedules
    is predicted from them and measured in the same rounds. `l2c learn --costs` reads the file that `--out` writes. How
    long whole runs take, with schedules and without, shows `l2c bench`.

    For example:
    - `l2c profile`
    - `l2c profile DiT-XL-2-256x256.pt --dtype bfloat16 --batch-size 8 --out costs.json`
    - `l2c profile ./pixart --prompt "a photo of a cat" --dtype bfloat16 --out costs.json`
    - `l2c learn DiT-XL-2-256x256.pt --latency-ms 400 --costs costs.json`
    """
    import l2c
    from l2c.bench.cost import measure_profile
    from l2c.devices import resolve_device
    from l2c.sampling.decoding import LatentDecoder

    check_outputs(context.params, out=".json")
    forecasts, device = l2c.Predictor.parse(predictor), resolve_device(context.params["device"])
    run = targets.read_run({**context.params, "steps": None})  # of a run that is timed, not of the target's
    decoder = None if vae is None else LatentDecoder(vae, device)
    target = targets.load(context.params, tf32=True)
    host = l2c.host_of(target, **run)
    if decoder is not None and host.unit == "absolute":
        raise ConfigError(f"{model} makes pictures, not latents, so --vae has nothing to decode")
    with progress_bar() as bar:
        task = bar.add_task("warming up", total=None)
        measured = measure_profile(
            host,
            batch_size=batch_size,
            repetitions=repetitions,
            engine=engine,
            predictor=forecasts,
            evaluations=steps,
            decoder=decoder,
            on_run=lambda name, done: bar.update(task, description=name, completed=done, total=repetitions),
        )
    names = ("model", "lora", "dtype", "guidance_mode", "batch_size", "predictor", "repetitions")
    kept = {name: context.params[name] for name in names}
    kept |= {"solver": host.run.solver, "spacing": host.run.spacing, "vae": None if vae is None else str(vae)}
    record = measured.record(device, **kept)
    print_record(record, out, _report, as_json=as_json)


def _report(record: Record) -> None:
    """One evaluation, part by part, and predictions against measurements."""
    config, found, console = record.config, record.results, results()
    pictures = "1 picture" if config["batch_size"] == 1 else f"{config['batch_size']} pictures"
    scale = config["guidance"]
    guided = "without guidance" if scale in (None, 1) else f"guidance {scale:g}"
    console.print(
        f"{config['model']}, {config['dtype']}, {pictures} at a time, {guided}, engine {config['engine']}, on "
        f"{record.device['device']} ({record.device['name']})\n",
        markup=False,
        soft_wrap=True,
    )
    full, rest, solver = found["full_ms"], found["rest_ms"], found["solver_ms"]
    parts = table("part", "layers", "ms per layer", "ms", "share", title="One evaluation")
    for name, group in found["groups"].items():
        count, each = group["layers"], group["ms_per_layer"]
        parts.add_row(name, str(count), f"{each:.4g}", f"{count * each:.4g}", f"{count * each / full:.1%}")
    parts.add_row("rest, with forecasts", "", "", f"{rest:.4g}", f"{rest / full:.1%}")
    if solver is not None:
        parts.add_row("  of it solver", "", "", f"{solver:.4g}", f"{solver / full:.1%}", style="dim")
    parts.add_section()
    parts.add_row("everything computed", "", "", f"{full:.4g}", "100.0%")
    console.print(parts)
    if found["decoder_ms"] is not None:
        console.print(f"Decoding {pictures}: {found['decoder_ms']:.4g} ms, once per run")
    title = f"Random schedules of {config['steps']} evaluations"
    checks = table("of the MACs", "predicted ms", "measured ms", "difference", title=title)
    for check in found["checks"]:
        predicted, measured = check["predicted_ms"], check["measured_ms"]
        checks.add_row(
            f"{check['fraction']:.1%}", f"{predicted:.4g}", f"{measured:.4g}", f"{check['deviation']:+.1%}"
        )
    console.print()
    console.print(checks)
