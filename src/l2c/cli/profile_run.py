"""What `l2c profile` does: loads, times runs under a progress bar, and shows what they say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from l2c.bench.cost import Profile, measure_profile
from l2c.cli.console import note, print_json, progress_bar, results
from l2c.devices import resolve_device, resolve_dtype
from l2c.errors import ConfigError
from l2c.models import load_model
from l2c.records import RunRecord, describe_device
from l2c.sampling.decoding import LatentDecoder
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.forecast import Predictor


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure, as on the command line."""

    model: str
    solver: str
    steps: int | None
    spacing: str
    guidance: float
    guidance_mode: str
    batch_size: int
    engine: str
    predictor: str
    repetitions: int
    vae: Path | None
    device: str
    dtype: str


def run_profile(request: ProfileRequest) -> RunRecord:
    """Measures.

    Raises:
        L2CError: Whatever is wrong.
    """
    predictor = Predictor.parse(request.predictor)
    guidance = Guidance(request.guidance, request.guidance_mode)
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    decoder = None if request.vae is None else LatentDecoder(request.vae, device)
    model = load_model(request.model, dtype=dtype, device=device)
    denoiser = Denoiser.of(model)
    if decoder is not None and not denoiser.latent:
        raise ConfigError(f"{request.model} makes pictures, not latents, so --vae has nothing to decode")
    sampler = Sampler(denoiser, request.solver, spacing=request.spacing, guidance=guidance)
    with progress_bar() as bar:
        task = bar.add_task("warming up", total=None)
        measured = measure_profile(
            sampler,
            request.batch_size,
            request.repetitions,
            engine=request.engine,
            predictor=predictor,
            evaluations=request.steps,
            decoder=decoder,
            on_run=lambda name, repetition: bar.update(
                task, description=name, completed=repetition, total=request.repetitions
            ),
        )
    return _record(request, measured, device)


def _record(request: ProfileRequest, measured: Profile, device: str) -> RunRecord:
    config = {
        **asdict(request),
        "vae": None if request.vae is None else str(request.vae),
        "steps": measured.evaluations,
        "engine": measured.engine,
        "history": measured.history,
    }
    costs = measured.costs
    return RunRecord(
        command="profile",
        config=config,
        timings={name: list(timing.seconds) for name, timing in measured.timings.items()},
        results={
            "costs": costs.to_json(),
            "groups": {
                name: {"layers": len(members), "ms_per_layer": costs.layers[members[0]]}
                for name, members in measured.groups.items()
            },
            "rest_ms": costs.rest,
            "full_ms": costs.full,
            "solver_ms": measured.solver_ms,
            "decoder_ms": measured.decoder_ms,
            "checks": [{**asdict(check), "deviation": check.deviation} for check in measured.checks],
        },
        device=describe_device(device),
    )


def report(record: RunRecord, out: Path | None, *, as_json: bool) -> None:
    """Prints what was found."""
    if as_json:
        print_json({"file": None if out is None else str(out), **record.to_json()})
        return
    config, found, console = record.config, record.results, results()
    pictures = "1 picture" if config["batch_size"] == 1 else f"{config['batch_size']} pictures"
    guided = "without guidance" if config["guidance"] == 1 else f"guidance {config['guidance']:g}"
    console.print(
        f"{config['model']}, {config['dtype']}, {pictures} at a time, {guided}, engine {config['engine']}, on "
        f"{record.device['device']} ({record.device['name']})\n",
        markup=False,
        soft_wrap=True,
    )
    console.print(_cost_table(found))
    if found["decoder_ms"] is not None:
        console.print(f"Decoding {pictures}: {found['decoder_ms']:.4g} ms, once per run")
    console.print()
    console.print(_check_table(found["checks"], config["steps"]))
    if out is not None:
        note(f"wrote {out}")


def _cost_table(found: dict[str, Any] | Any) -> Table:
    """One evaluation, part by part."""
    table = Table(box=box.SIMPLE_HEAD, title="One evaluation", title_justify="left")
    table.add_column("part")
    for name in ("layers", "ms per layer", "ms", "share"):
        table.add_column(name, justify="right")
    full = found["full_ms"]
    for name, group in found["groups"].items():
        count, each = group["layers"], group["ms_per_layer"]
        table.add_row(name, str(count), f"{each:.4g}", f"{count * each:.4g}", f"{count * each / full:.1%}")
    rest, solver = found["rest_ms"], found["solver_ms"]
    table.add_row("rest, with forecasts", "", "", f"{rest:.4g}", f"{rest / full:.1%}")
    table.add_row("  of it solver", "", "", f"{solver:.4g}", f"{solver / full:.1%}", style="dim")
    table.add_section()
    table.add_row("everything computed", "", "", f"{full:.4g}", "100.0%")
    return table


def _check_table(checks: list[dict[str, float]], evaluations: int) -> Table:
    """Predictions against measurements."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Random schedules of {evaluations} evaluations", title_justify="left"
    )
    for name in ("of the MACs", "predicted ms", "measured ms", "difference"):
        table.add_column(name, justify="right")
    for check in checks:
        table.add_row(
            f"{check['fraction']:.1%}",
            f"{check['predicted_ms']:.4g}",
            f"{check['measured_ms']:.4g}",
            f"{check['deviation']:+.1%}",
        )
    return table
