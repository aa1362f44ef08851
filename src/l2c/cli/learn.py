"""`l2c learn`: its options and their help. What it does is in `learn_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
)
from l2c.errors import ConfigError

LEARNING = "Learning"
ALTERNATE = "Only with --pattern alternate"
INTERVAL = "Only with --pattern interval"
SESSION = "Long runs"

PATTERNS = ("alternate", "interval")
_ONLY = {
    "alternate": ("data", "price", "threshold", "reduction"),
    "interval": ("every", "pictures", "reference_steps", "recompute"),
}


def learn(
    context: typer.Context,
    model: Model = "dit-mini-cifar10",
    solver: Annotated[str, typer.Option(metavar="NAME", help=SOLVER_HELP, rich_help_panel=RUN)] = "ddim",
    steps: Annotated[int, typer.Option(metavar="N", help=STEPS_HELP, rich_help_panel=RUN)] = 50,
    spacing: Annotated[
        str, typer.Option(metavar="NAME", help=SPACING_HELP, rich_help_panel=RUN)
    ] = "linspace",
    guidance: Annotated[float, typer.Option(metavar="SCALE", help=GUIDANCE_HELP, rich_help_panel=RUN)] = 1.5,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where layers may be reused. alternate: at every second evaluation, and it is learned which "
            "ones, as in the paper; they repeat their last output. interval: everything is computed at every "
            "n-th evaluation and nothing in between, and it is learned how the outputs in between follow from "
            "the last three.",
            rich_help_panel=LEARNING,
        ),
    ] = "alternate",
    iterations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimizer steps: 60, or 150 with --pattern interval, if not given. One goes through a whole "
            "sampling run, or, with --data, through one evaluation drawn at random, so take some thousands then.",
            rich_help_panel=LEARNING,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Pictures per optimizer step. Several processes share them.",
            rich_help_panel=LEARNING,
        ),
    ] = 4,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="RATE",
            help="Of the optimizer: 0.2, or 0.004 with --pattern interval, if not given. The paper takes 0.001 "
            "over many thousand steps.",
            rich_help_panel=LEARNING,
            show_default=False,
        ),
    ] = None,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help="Run the network in bfloat16, faster on a GPU. What is learned stays in float32.",
            rich_help_panel=LEARNING,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of noise and labels.", rich_help_panel=LEARNING)
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Learn on real images of the model's size, as the paper does: a folder of images, a folder "
            "of class folders, or a Parquet file. Without it, learn on what the model meets while it "
            "samples, so that no images are needed.",
            rich_help_panel=ALTERNATE,
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
            rich_help_panel=ALTERNATE,
        ),
    ] = 1e-5,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SCORE",
            help="Layers whose learned score, from 0 to 1, is above this are computed. `l2c inspect "
            "--threshold` changes it afterwards.",
            rich_help_panel=ALTERNATE,
        ),
    ] = 0.5,
    reduction: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Squared error as the mean over the elements of a picture (mean, as the paper does for "
            "DiT) or as their sum (sum, for U-ViT); the price counts against it.",
            rich_help_panel=ALTERNATE,
        ),
    ] = "mean",
    every: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Compute at every n-th evaluation, which is 1/n of the work.",
            rich_help_panel=INTERVAL,
        ),
    ] = 2,
    pictures: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="How many different pictures to learn on. Each is first sampled in fine steps, as what to come "
            "close to; a quarter of them is not learned on and tells how good the result is.",
            rich_help_panel=INTERVAL,
        ),
    ] = 32,
    reference_steps: Annotated[
        int,
        typer.Option(
            metavar="N", help="Evaluations of that sampling in fine steps.", rich_help_panel=INTERVAL
        ),
    ] = 60,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Need far less memory for a third more time: compute layers again for the gradient instead of "
            "keeping what they worked out.",
            rich_help_panel=INTERVAL,
        ),
    ] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="End before this time is over, with what has been learned by then.",
            rich_help_panel=SESSION,
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to save, now and then, what is needed to go on: by default beside --out, with "
            ".checkpoint after its name. It is removed when learning is done.",
            rich_help_panel=SESSION,
            show_default=False,
        ),
    ] = None,
    save_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Least time between two saves of the checkpoint.", rich_help_panel=SESSION
        ),
    ] = 30.0,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew, whatever checkpoint there is.", rich_help_panel=SESSION),
    ] = False,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a log of loss, error and work for TensorBoard.",
            rich_help_panel=SESSION,
            show_default=False,
        ),
    ] = None,
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
    2406.01733). With `--pattern interval` it is fixed when to compute, and learned how to stand in for what is
    not computed, by what that does to the finished picture. The result holds for this model, solver, number of
    steps and spacing, and `l2c sample --schedule` uses it.

    Ctrl-C ends learning early and keeps what has been learned so far. A run that ended early or was killed goes
    on where it was when the same command is given again. `accelerate launch -m l2c learn ...` shares the work
    among GPUs or machines.

    For example:

    - `l2c learn --steps 20 --out router.safetensors`
    - `l2c learn --solver dpmsolver++ --steps 20 --spacing logsnr --pattern interval --every 2`
    - `l2c learn --model DiT-XL-2-256x256.pt --steps 50 --lambda 1e-6 --bf16 --max-minutes 30`
    - `l2c learn --data cifar10.parquet --iterations 5000 --lr 0.01 --batch-size 16`
    """
    check_suffix(out, ".safetensors", "--out")
    if pattern not in PATTERNS:
        raise ConfigError(f"unknown pattern '{pattern}'; choose {' or '.join(PATTERNS)}")
    _check_pattern(context, pattern)

    from l2c.cli.learn_run import LearnRequest, run_learn
    from l2c.learning.end_to_end import PredictorSettings
    from l2c.learning.learn import LearnSettings
    from l2c.learning.session import Session

    settings: LearnSettings | PredictorSettings
    if pattern == "interval":
        settings = PredictorSettings(
            iterations=PredictorSettings.iterations if iterations is None else iterations,
            batch_size=batch_size,
            bf16=bf16,
            seed=seed,
            num_pictures=pictures,
            learning_rate=PredictorSettings.learning_rate if learning_rate is None else learning_rate,
            reference_steps=reference_steps,
            recompute=recompute,
        )
    else:
        settings = LearnSettings(
            iterations=LearnSettings.iterations if iterations is None else iterations,
            batch_size=batch_size,
            bf16=bf16,
            seed=seed,
            lambda_=price,
            reduction=reduction,
            threshold=threshold,
            learning_rate=LearnSettings.learning_rate if learning_rate is None else learning_rate,
        )
    session = Session(
        checkpoint=out.with_name(f"{out.name}.checkpoint") if checkpoint is None else checkpoint,
        save_every_s=save_every,
        restart=restart,
        time_limit_s=None if max_minutes is None else 60 * max_minutes,
        log_dir=log_dir,
    )
    request = LearnRequest(model, solver, steps, spacing, guidance, every, data, device, dtype)
    run_learn(request, settings, session, out, as_json)


def _check_pattern(context: typer.Context, pattern: str) -> None:
    """Refuses options that belong to another pattern.

    Raises:
        ConfigError: If one was given.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for other, names in _ONLY.items():
        for name in names:
            source = context.get_parameter_source(name)
            if other != pattern and source is not None and source.name == "COMMANDLINE":
                raise ConfigError(
                    f"{options[name]} belongs to --pattern {other}, not {pattern}; leave one of the two out"
                )
