"""`l2c sample`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from l2c.cli import options
from l2c.cli.console import facts, macs, note, print_record, progress_bar, results, seconds
from l2c.cli.options import argument, flag, option, parse_numbers, takes
from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.records import Record

DEFAULT_COUNT = 8
_RUN = ("solver", "steps", "spacing", "guidance", "guidance_mode", "guidance_channels")


@takes(options.AsMade)
def sample(
    context: typer.Context,
    model: str = argument(
        "MODEL",
        "A trained class-conditional diffusion transformer: the name of one that comes with l2c (dit-mini-cifar10, "
        "uvit-mini-cifar10), a .pt or .safetensors checkpoint in the public DiT or U-ViT layout, or a folder saved by "
        "diffusers. Its size is read from the file.",
        default="dit-mini-cifar10",
    ),
    schedule: str | None = option(
        "FILE|NAME",
        "Which layers to compute at which evaluation: a file from `l2c learn`, the name of a schedule that comes "
        "with l2c, a repository on the hub, or a router file published with the Learning-to-Cache paper (.pt, "
        ".pth). Without it, everything is computed.",
        options.SCHEDULE,
        short="-s",
    ),
    labels: str | None = option(
        "LIST",
        "Class numbers, in turn, with commas and ranges: 207,360 or 0-9. By default 0, 1, 2, ...",
        options.PICTURES,
    ),
    num: int | None = option(
        "N",
        f"How many pictures. By default one per label or seed that is listed, or else {DEFAULT_COUNT}.",
        options.PICTURES,
        min=1,
        max=options.MOST_PICTURES,
        short="-n",
    ),
    seed: int = option(
        "N",
        "Seed of the first picture; the next ones count up. A seed always gives the same noise, whatever else is "
        "sampled with it.",
        options.PICTURES,
        min=0,
        max=options.LARGEST_SEED,
        default=0,
    ),
    seeds: str | None = option(
        "LIST", "Seed of each picture, instead of --seed: 3,17,40-43.", options.PICTURES
    ),
    guidance_channels: int | None = option(
        "N",
        "Guide only the first N channels; the samples published for DiT guide 3 of 4. By default all.",
        options.RUN,
    ),
    batch_size: int = option("N", "Pictures at a time.", options.RUN, min=1, default=8),
    engine: str = options.ENGINE,
    vae: Path | None = options.VAE,
    device: str = options.DEVICE,
    dtype: str = options.DTYPE_OR_TF32,
    out: Path = option(
        "FOLDER",
        "Where the pictures go: one PNG for each, named by seed and label; grid.png with all of them; record.json "
        "with every setting, version and timing.",
        options.OUTPUT,
        short="-o",
        default=Path("l2c-samples"),
    ),
    npz: bool = flag(
        "Also write samples.npz with all pictures as `arr_0` (uint8, N x H x W x 3), as the evaluation script of "
        "ADM reads it.",
        options.OUTPUT,
    ),
    resume: bool = flag(
        "Go on where a run with the same settings was interrupted: pictures that are in the folder are not made "
        "again.",
        options.OUTPUT,
    ),
    as_json: bool = options.AS_JSON,
) -> None:
    """Sample pictures, with or without a schedule.

    With `--schedule`, layers that the schedule does not compute are skipped and their stored outputs reused.
    That is faster and changes the pictures slightly; to see how slightly, sample the same seeds without it.
    How much memory the stored outputs take at most is said before sampling begins. Solver, steps, spacing and
    guidance default to those that the schedule was made for. Large sets are shared by the processes that
    `accelerate launch` starts, each picture by its own seed, and can be resumed.

    For example:
    - `l2c sample --labels 3,5 --num 8`
    - `l2c sample --schedule router.safetensors --labels 0-9 --out faster`
    - `accelerate launch -m l2c sample --num 50000 --batch-size 64 --npz --resume --out large`
    - `l2c sample DiT-XL-2-256x256.pt -s DDIM50_router.pt --labels 207,360 --vae sd-vae-ft-mse`
    """
    from l2c.devices import resolve_dtype
    from l2c.files import output_folder
    from l2c.models import load_model
    from l2c.processes import own_device, part
    from l2c.sampling.decoding import LatentDecoder
    from l2c.schedule.open import load_schedule
    from l2c.sets import sample_set

    given, decoded_by = context.params, None if vae is None else str(vae)
    budget = given["budget"]
    if budget is not None and schedule is None:
        raise ConfigError("--budget chooses from a family of schedules; name its file with --schedule")
    classes = None if labels is None else parse_numbers(labels, "--labels")
    numbers = _seeds(seeds, seed, num, classes)
    device = own_device(device)
    weights = resolve_dtype(dtype, device)
    with output_folder(out), progress_bar() as bar:
        task = bar.add_task("sampling", total=None)
        record = sample_set(
            schedule=None if schedule is None else load_schedule(schedule, budget),
            decoder=None if vae is None else LatentDecoder(vae, device),
            model=load_model(model, dtype=weights, device=device),
            folder=out,
            seeds=numbers,
            labels=classes,
            any_weights=given["any_weights"],
            batch_size=batch_size,
            engine=engine,
            npz=npz,
            resume=resume,
            names={"model": model, "schedule": schedule, "budget": budget, "dtype": dtype, "vae": decoded_by},
            note=note,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            **{name: given[name] for name in _RUN if given[name] is not None},
        )
    part()
    if record is not None:  # as it is in the first process
        print_record(record, out, partial(_report, folder=out), as_json=as_json)


def _seeds(listed: str | None, first: int, count: int | None, labels: list[int] | None) -> list[int]:
    """Seed of every picture; their number decides how many there are."""
    if listed is None:
        count = count or (DEFAULT_COUNT if labels is None else len(labels))
        return list(range(first, first + count))
    seeds = parse_numbers(listed, "--seeds")
    if count is not None and count != len(seeds):
        raise ConfigError(
            f"--seeds lists {len(seeds)} pictures but --num asks for {count}; leave one of them out"
        )
    return seeds


def _report(record: Record, folder: Path) -> None:
    config, costs, taken = record.config, record.results, record.timings["sample_s"][0]
    full, left, count = costs["full_macs_per_picture"], costs["macs_per_picture"], len(record.seeds)
    guided = ", twice that with guidance" if costs["guidance_factor"] == 2 else ""
    share = f"all of {macs(full)}" if left == full else f"{macs(left)} of {macs(full)} ({left / full:.1%})"
    rows = {
        "pictures" if "grid.png" in costs["files"] else "latents": f"{count} in {folder}",
        "run": f"{config['solver']}, {len(config['timesteps'])} evaluations, {config['spacing']} spacing, "
        f"guidance {config['guidance']:g}, engine {config['engine']}",
        "time": f"{seconds(taken)}, {seconds(taken / count)} per picture",
        "MACs": f"{share} per picture{guided}",
    }
    results().print(facts(rows))
