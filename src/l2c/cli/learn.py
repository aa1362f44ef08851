"""`l2c learn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2c.cli.console import Interrupted, note, print_json, progress_bar
from l2c.cli.options import (
    GUIDANCE_HELP,
    OUTPUT,
    RUN,
    SOLVER_HELP,
    SPACING_HELP,
    STEPS_HELP,
    Device,
    DType,
    JsonOutput,
    Model,
    check_suffix,
    resolve_device,
    resolve_dtype,
)

if TYPE_CHECKING:
    from l2c.learning.data import ImageData
    from l2c.sampling.denoiser import Denoiser

LEARNING = "Learning"


def learn(
    model: Model = "dit-mini-cifar10",
    solver: Annotated[str, typer.Option(metavar="NAME", help=SOLVER_HELP, rich_help_panel=RUN)] = "ddim",
    steps: Annotated[int, typer.Option(metavar="N", help=STEPS_HELP, rich_help_panel=RUN)] = 50,
    spacing: Annotated[
        str, typer.Option(metavar="NAME", help=SPACING_HELP, rich_help_panel=RUN)
    ] = "linspace",
    guidance: Annotated[float, typer.Option(metavar="SCALE", help=GUIDANCE_HELP, rich_help_panel=RUN)] = 1.5,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Learn on real images of the model's size, as the paper does: a folder of images, a folder "
            "of class folders, or a Parquet file. Without it, learn on what the model meets while it "
            "samples, so that no images are needed.",
            rich_help_panel=LEARNING,
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float,
        typer.Option(
            "--lambda",
            metavar="PRICE",
            help="Price of computing a layer, against the squared error that reusing it makes: a larger one "
            "makes a faster, less exact schedule. This is what to try out for another model.",
            rich_help_panel=LEARNING,
        ),
    ] = 1e-5,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SCORE",
            help="Layers whose learned score, from 0 to 1, is above this are computed. `l2c inspect "
            "--threshold` changes it afterwards.",
            rich_help_panel=LEARNING,
        ),
    ] = 0.5,
    iterations: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Optimizer steps. One goes through a whole sampling run, or, with --data, through one "
            "evaluation drawn at random, so take some thousands then.",
            rich_help_panel=LEARNING,
        ),
    ] = 60,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Pictures per optimizer step.", rich_help_panel=LEARNING)
    ] = 4,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="RATE",
            help="Of the AdamW optimizer. The paper takes 0.001 over many thousand steps.",
            rich_help_panel=LEARNING,
        ),
    ] = 0.2,
    reduction: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Squared error as the mean over the elements of a picture (mean, as the paper does for "
            "DiT) or as their sum (sum, for U-ViT); the price counts against it.",
            rich_help_panel=LEARNING,
        ),
    ] = "mean",
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of noise and labels.", rich_help_panel=LEARNING)
    ] = 0,
    device: Device = "auto",
    dtype: DType = "float32",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The schedule file to write (.safetensors).",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("router.safetensors"),
    as_json: JsonOutput = False,
) -> None:
    """Learn which layers to compute at which evaluation, for one model and one sampling run.

    At every second evaluation each attention and MLP layer may reuse the output that it had at the evaluation
    before. A score per layer and evaluation is learned by gradient descent, with the model itself frozen: how
    much the reuse would change the prediction, against a price for computing (Learning-to-Cache, arXiv
    2406.01733). The result holds for this model, solver, number of steps and spacing, and `l2c sample
    --schedule` uses it.

    Ctrl-C ends learning early and keeps what has been learned so far.

    For example:

    - `l2c learn --steps 20 --out router.safetensors`
    - `l2c learn --model DiT-XL-2-256x256.pt --steps 50 --lambda 1e-6 --device cuda`
    - `l2c learn --data cifar10.parquet --iterations 5000 --lr 0.01 --batch-size 16`
    """
    check_suffix(out, ".safetensors", "--out")

    from l2c.cli.schedules import print_schedule
    from l2c.files import check_output_file
    from l2c.learning.learn import LearnSettings, Progress
    from l2c.learning.learn import learn as learn_schedule
    from l2c.models import load_model
    from l2c.sampling.denoiser import Denoiser

    settings = LearnSettings(
        iterations=iterations,
        batch_size=batch_size,
        lambda_=price,
        reduction=reduction,
        threshold=threshold,
        learning_rate=learning_rate,
        seed=seed,
    )
    check_output_file(out)
    network = load_model(model, dtype=resolve_dtype(dtype), device=resolve_device(device))
    images = None if data is None else _load_images(data, Denoiser.of(network))
    with progress_bar("loss", "computed") as bar:
        task = bar.add_task("learning", total=iterations, loss="", computed="")

        def show(progress: Progress) -> None:
            done, loss = progress.iteration, f"loss {progress.loss:.3g}"
            computed = f"{progress.fraction:.0%} of MACs"
            bar.update(task, completed=done, loss=loss, computed=computed)
            if bar.disable and (done % max(1, iterations // 10) == 0 or done == iterations):
                note(f"learning {done}/{iterations} {loss} {computed}")  # for log files

        schedule = learn_schedule(
            network,
            solver,
            steps,
            spacing=spacing,
            guidance=guidance,
            data=images,
            settings=settings,
            model_name=Path(model).name if Path(model).exists() else model,
            on_progress=show,
        )
    done = schedule.provenance["iterations"]
    interrupted = bool(schedule.provenance["interrupted"])
    if interrupted and not done:
        raise Interrupted("interrupted before anything was learned")
    schedule.save(out)
    if as_json:
        print_json({"file": str(out), **schedule.summary()})
    else:
        print_schedule(schedule.summary(), str(out), rows=False)
    if interrupted:
        raise Interrupted(f"interrupted after {done} of {iterations} iterations; {out} has what was learned")


def _load_images(path: Path, denoiser: Denoiser) -> ImageData:
    from l2c.errors import ConfigError
    from l2c.learning.data import load_images

    if denoiser.latent:
        raise ConfigError("--data takes pictures but the model works on latents; leave it out")
    channels, height, _ = denoiser.sample_shape
    return load_images(path, height, channels, num_classes=denoiser.num_classes)
