"""`l2c learn`: its options and their help. What it does is in `learn_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli.options import (
    GUIDANCE_HELP,
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
from l2c.cli.session import (
    BF16,
    LEARNING,
    CheckpointFile,
    LogDir,
    MaxMinutes,
    Out,
    Restart,
    SaveEvery,
    Seed,
    session_of,
)
from l2c.errors import ConfigError

BUDGET = "Budget, one of them"
CLOSED = "Only with --pattern any"
ALTERNATE = "Only with --pattern alternate"

AUTO = "auto"
PATTERNS = ("any", "alternate")
_BUDGETS = ("budget", "macs", "latency_ms", "budget_evals")
_ONLY = {
    "any": (
        *_BUDGETS,
        "latency_batch",
        "engine",
        "costs",
        "per_computed",
        "pictures",
        "reference_steps",
        "trials",
        "recompute",
    ),
    "alternate": ("data", "price", "threshold", "reduction"),
}


def learn(
    context: typer.Context,
    model: Model = "dit-mini-cifar10",
    solver: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{SOLVER_HELP} auto learns one, with the noise levels of its evaluations, for --budget-evals.",
            rich_help_panel=RUN,
        ),
    ] = "ddim",
    steps: Annotated[int, typer.Option(metavar="N", help=STEPS_HELP, rich_help_panel=RUN)] = 50,
    spacing: Annotated[
        str, typer.Option(metavar="NAME", help=SPACING_HELP, rich_help_panel=RUN)
    ] = "linspace",
    guidance: Annotated[float, typer.Option(metavar="SCALE", help=GUIDANCE_HELP, rich_help_panel=RUN)] = 1.5,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="What a run may cost, as a fraction of the multiply-accumulates (MACs) of computing everything: 0.5 "
            "if no budget is given. Several, such as 0.7,0.5,0.3, or curve for nine from 0.9 to 0.25, are learned in "
            "one run into one file, a family, from which l2c sample takes any.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="What a run may cost per picture without guidance, in MACs: 16.6G, 2.3T.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="What a run may take in milliseconds on this machine, without decoding. What layers cost is measured "
            "first, as by l2c profile.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    latency_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Pictures at a time that --latency-ms is for, 1 if not given.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What --latency-ms measures with: graph, compile, eager, or auto, as for l2c sample, if not given.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the costs for --latency-ms from this file, which l2c profile has written, here or on the "
            "machine to sample on.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    budget_evals: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="With --solver auto: what a run may cost, in whole evaluations of the model.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    per_computed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --solver auto: evaluations for each that is computed, 2 or 2.5 if not given, whichever is "
            "better. 1 learns the solver alone and reuses nothing.",
            rich_help_panel=BUDGET,
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where layers may be reused. any: at any evaluation but the first, several times in a row too, "
            "wherever that harms the finished pictures least; and it is learned how their outputs follow from the "
            "last ones. alternate: at every second evaluation, as in the paper; they repeat their last output.",
            rich_help_panel=LEARNING,
        ),
    ] = "any",
    iterations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimizer steps: 30 for each budget, or 60 with --pattern alternate, if not given. One goes through "
            "a whole sampling run, or, with --data, through one evaluation drawn at random, so take some thousands "
            "then.",
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
            help="Of the optimizer: 0.004, or 0.2 with --pattern alternate, if not given. The paper takes 0.001 "
            "over many thousand steps.",
            rich_help_panel=LEARNING,
            show_default=False,
        ),
    ] = None,
    bf16: BF16 = False,
    seed: Seed = 0,
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
    pictures: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="How many different pictures to learn on. Each is first sampled in fine steps, as what to come "
            "close to; a quarter of them is not learned on and tells how good the result is.",
            rich_help_panel=CLOSED,
        ),
    ] = 32,
    reference_steps: Annotated[
        int,
        typer.Option(metavar="N", help="Evaluations of that sampling in fine steps.", rich_help_panel=CLOSED),
    ] = 40,
    trials: Annotated[
        int,
        typer.Option(
            metavar="N", help="Masks that are judged for each budget, at most.", rich_help_panel=CLOSED
        ),
    ] = 32,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Need far less memory for a third more time: compute layers again for the gradient instead of "
            "keeping what they worked out.",
            rich_help_panel=CLOSED,
        ),
    ] = False,
    max_minutes: MaxMinutes = None,
    checkpoint: CheckpointFile = None,
    save_every: SaveEvery = 30.0,
    restart: Restart = False,
    log_dir: LogDir = None,
    device: Device = "auto",
    dtype: DType = "float32",
    out: Out = Path("router.safetensors"),
    as_json: JsonOutput = False,
) -> None:
    """Learn which layers to compute at which evaluation, for one model, one sampling run and a budget.

    Needs no data and leaves the model as it is. Where to compute is searched by the pictures that come out, within
    the budget; how the reused attention and MLP layers follow from their last outputs is learned by gradient descent
    through whole sampling runs, on the distance of the finished pictures to fine-step solutions. `--solver auto`
    learns the solver with them. `--pattern alternate` is Learning-to-Cache (arXiv 2406.01733) as published: a score
    per layer at every second evaluation, against a price for computing. The result is one file, which holds for this
    model, solver, number of steps and spacing, and which `l2c sample --schedule` uses.

    Ctrl-C ends learning early and keeps what has been learned so far. A run that ended early or was killed goes
    on where it was when the same command is given again. `accelerate launch -m l2c learn ...` shares the work
    among GPUs or machines. For a diffusers pipeline, see `l2c learn-pipeline`.

    For example:

    - `l2c learn --steps 20 --budget 0.5 --out half.safetensors`
    - `l2c learn --solver dpmsolver++ --steps 20 --budget curve --out family.safetensors`
    - `l2c learn --solver auto --budget-evals 8 --bf16 --out eight.safetensors`
    - `l2c learn --pattern alternate --data cifar10.parquet --iterations 5000 --lr 0.01 --batch-size 16`
    """
    check_suffix(out, ".safetensors", "--out")
    if pattern not in PATTERNS:
        raise ConfigError(f"unknown pattern '{pattern}'; choose {' or '.join(PATTERNS)}")
    _check_options(context, pattern, solver)

    from l2c.cli.budgets import Budget
    from l2c.cli.learn_run import LearnRequest, run_learn
    from l2c.learning.end_to_end import LearnSettings
    from l2c.learning.paper import RouterSettings

    settings: LearnSettings | RouterSettings
    if pattern == "any":
        settings = LearnSettings(
            iterations=LearnSettings.iterations if iterations is None else iterations,
            batch_size=batch_size,
            bf16=bf16,
            seed=seed,
            num_pictures=pictures,
            learning_rate=LearnSettings.learning_rate if learning_rate is None else learning_rate,
            reference_steps=reference_steps,
            trials=trials,
            recompute=recompute,
        )
    else:
        settings = RouterSettings(
            iterations=RouterSettings.iterations if iterations is None else iterations,
            batch_size=batch_size,
            bf16=bf16,
            seed=seed,
            lambda_=price,
            reduction=reduction,
            threshold=threshold,
            learning_rate=RouterSettings.learning_rate if learning_rate is None else learning_rate,
        )
    allowed = Budget.parse(
        budget, macs, latency_ms, latency_batch, budget_evals, engine, costs, auto=solver == AUTO
    )
    session = session_of(out, checkpoint, save_every, restart, max_minutes, log_dir)
    request = LearnRequest(
        model, solver, steps, spacing, guidance, allowed, per_computed, data, device, dtype
    )
    run_learn(request, settings, session, out, as_json)


def _check_options(context: typer.Context, pattern: str, solver: str) -> None:
    """Refuses options that belong to another pattern, or that a solver which is learned decides itself.

    Raises:
        ConfigError: If one was given.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    for other, names in _ONLY.items():
        for name in filter(given, names):
            if other != pattern:
                raise ConfigError(
                    f"{options[name]} belongs to --pattern {other}, not {pattern}; leave one of the two out"
                )
    for name in filter(given, ("steps", "spacing")):
        if solver == AUTO:
            raise ConfigError(f"--solver auto chooses {options[name]} itself; leave it out")
    if given("per_computed") and solver != AUTO:
        raise ConfigError("--per-computed is for --solver auto; leave it out")
