"""`l2c learn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from l2c.cli import options, session, targets
from l2c.cli.budgets import budget_of, check_budget, fractions_of, share_of
from l2c.cli.console import note, print_json, results
from l2c.cli.options import flag, option, takes
from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.hosts.base import Host
    from l2c.learning.estimate import LearningEstimate
    from l2c.learning.settings import LearnSettings
    from l2c.schedule.schedule import CacheSchedule

AUTO = "auto"


@takes(targets.TargetOptions, session.LearningOptions)
def learn(
    context: typer.Context,
    model: str = targets.TARGET,
    solver: str | None = option(
        "NAME",
        f"{options.SOLVER_HELP} auto learns one, with the noise levels of its evaluations, for --budget-evals. A "
        "pipeline keeps its scheduler, or takes auto. [default: of a model, ddim]",
        options.RUN,
    ),
    steps: int | None = option(
        "N", f"{options.STEPS_HELP} [default: 50, or what a pipeline takes by itself]", options.RUN
    ),
    spacing: str | None = options.SPACING,
    guidance: str | None = option(
        "SCALE|LOW-HIGH",
        f"{options.GUIDANCE_HELP} For a model also a range such as 1-5, within which the schedule is to serve any. "
        "[default: 1.5, or what a pipeline takes by itself]",
        options.RUN,
    ),
    budget: str | None = option(
        "SHARE",
        "What a run may cost, as a fraction of the multiply-accumulates (MACs) of computing everything: 0.5 if no "
        "budget is given. Several, such as 0.7,0.5,0.3, or curve for nine from 0.9 to 0.25, are learned in one run "
        "into one file, a family, from which any is taken.",
        options.BUDGET,
    ),
    macs: str | None = option(
        "N", "What a run may cost per picture without guidance, in MACs: 16.6G, 2.3T.", options.BUDGET
    ),
    latency_ms: float | None = option(
        "MS",
        "What a run may take in milliseconds on this machine, without decoding. What layers cost is measured "
        "first, as by l2c profile.",
        options.BUDGET,
    ),
    latency_batch: int | None = option(
        "N", "Pictures at a time that --latency-ms is for, 1 if not given.", options.BUDGET
    ),
    engine: str | None = option(
        "NAME",
        "What --latency-ms measures with: graph, compile, eager, or auto, as for l2c sample, if not given.",
        options.BUDGET,
    ),
    costs: Path | None = option(
        "FILE",
        "Take the costs for --latency-ms from this file, which l2c profile has written, here or on the machine to "
        "sample on.",
        options.BUDGET,
    ),
    budget_evals: float | None = option(
        "N", "With --solver auto: what a run may cost, in whole evaluations of the model.", options.BUDGET
    ),
    per_computed: int | None = option(
        "N",
        "With --solver auto: evaluations for each that is computed, 2 or 2.5 if not given, whichever is better. 1 "
        "learns the solver alone and reuses nothing.",
        options.BUDGET,
    ),
    pattern: str = option(
        "NAME",
        "Where layers may be reused. closed-loop: at any evaluation but the first, several times in a row too, "
        "wherever that harms the finished pictures least; and it is learned how their outputs follow from the last "
        "ones. alternate: at every second evaluation, as in the paper; they repeat their last output.",
        options.LEARNING,
        default="closed-loop",
    ),
    effort: str | None = option(
        "NAME",
        "How long to learn: quick, default or best, which set steps, examples and trials where these are not given. "
        "How many minutes that takes here is said beforehand.",
        options.CLOSED,
    ),
    dry_run: bool = flag(
        "Say what would be learned, with its memory and minutes by one step that is timed here, and stop.",
        options.CLOSED,
    ),
    data: Path | None = option(
        "PATH",
        "Learn on real images of the model's size, as the paper does: a folder of images, a folder of class "
        "folders, or a Parquet file. Without it, learn on what the model meets while it samples, so that no images "
        "are needed.",
        options.ALTERNATE,
    ),
    lambda_: float | None = option(
        "PRICE",
        "Price of computing a layer, against the squared error that reusing it makes, 1e-05 if not given: a larger "
        "one makes a faster, less exact schedule. This is what to try out for another model.",
        options.ALTERNATE,
        "--lambda",
    ),
    threshold: float | None = option(
        "SCORE",
        "Layers whose learned score, from 0 to 1, is above this are computed, 0.5 if not given. `l2c inspect "
        "--threshold` changes it afterwards.",
        options.ALTERNATE,
    ),
    reduction: str | None = option(
        "NAME",
        "Squared error as the mean over the elements of a picture (mean, as the paper does for DiT, and if not "
        "given) or as their sum (sum, for U-ViT); the price counts against it.",
        options.ALTERNATE,
    ),
    trials: int | None = option(
        "N", "Masks that are judged for each budget, at most, 32 if not given.", options.CLOSED
    ),
    branches: bool | None = flag(
        "Whether the unconditional pass of guidance may run at fewer evaluations than the conditional one; by default "
        "it may.",
        options.CLOSED,
        "--branches/--no-branches",
        default=None,
    ),
    out: Path = session.schedule_file("schedule.safetensors"),
    as_json: bool = options.AS_JSON,
) -> None:
    """Learn which layers to compute at which evaluation, for a model or a diffusers pipeline, its run and a budget.

    A model needs no data, a pipeline learns on prompts or labels; neither is changed. Where to compute is searched by
    the pictures that come out, within the budget; how the reused attention and MLP layers follow from their last
    outputs is learned by gradient descent through whole sampling runs, on the distance of what is made to fine-step
    solutions. `--solver auto` learns the solver with them. `--pattern alternate` is Learning-to-Cache (arXiv
    2406.01733) as published: a score per layer at every second evaluation, against a price for computing. The result is
    one file, which says what it holds for and how far off it is on pictures that it has not seen. `l2c sample` uses it
    on a model, and in Python `l2c.enable_cache` on either.

    Ctrl-C ends learning early and keeps what has been learned so far. A run that ended early or was killed goes on
    where it was when the same command is given again. `accelerate launch -m l2c learn ...` shares the work among GPUs
    or machines.

    For example:

    - `l2c learn dit-mini-cifar10 --steps 20 --budget 0.5 --out half.safetensors`
    - `l2c learn ./pixart --prompts prompts.txt --steps 20 --budget curve --recompute --out family.safetensors`
    - `l2c learn l2c:scenes-sd3 --budget 0.5 --dry-run`
    - `l2c learn l2c:scenes-sd3 --solver auto --budget-evals 8 --out eight.safetensors`
    - `l2c learn dit.safetensors --solver auto --budget-evals 8 --out eight.safetensors`
    - `l2c learn dit.safetensors --pattern alternate --data cifar10.parquet --iterations 5000 --lr 0.01`
    """
    auto, given = solver == AUTO, dict(context.params)
    if auto:
        for name in ("steps", "spacing"):
            if given[name] is not None:
                raise ConfigError(f"--solver auto chooses --{name} itself; leave it out")
        given["solver"] = None
    settings = session.settings_of(context, pattern)
    check_budget(given, auto=auto)

    import l2c
    from l2c.cli.learning import run_learning, session_of

    asked, run = len(fractions_of(given)), targets.read_run(given, learns=True)

    def estimate(host: Host) -> LearningEstimate:
        from l2c.learning.estimate import estimate_learning

        how = {"evaluations": given["budget_evals"], "per_computed": given["per_computed"]}
        chosen = cast("LearnSettings", settings)
        return estimate_learning(
            host, budget=share_of(given, host), num_budgets=asked, settings=chosen, **how
        )

    def work(target: Any, **how: Any) -> Any:
        host = l2c.host_of(target, **run)
        if pattern == "alternate":
            return l2c.learn(host, pattern=pattern, data=data, **how)
        if effort is not None:
            try:
                minutes = round(estimate(host).total_minutes)
                told = f"about {f'{minutes} minutes' if minutes > 1 else 'a minute'} on this machine"
            except ConfigError:
                told = "how long it takes is told as it goes on, since no short run can be made"
            note(f"--effort {effort}: {told}")
        return l2c.learn(host, **budget_of(given, host), **how)

    def tell(learned: list[CacheSchedule]) -> None:
        from l2c.cli.schedules import print_family, print_schedule
        from l2c.report.facts import error_sentences

        if len(learned) > 1:
            print_family(learned, str(out))
        else:
            print_schedule(learned[0].summary(), str(out), rows=False)
            for sentence in error_sentences(learned[0].provenance):
                results().print(f"\n{sentence}", soft_wrap=True)

    if not dry_run:
        run_learning(given, settings, work, tell, asked)
        return
    session_of(given)
    estimated = estimate(l2c.host_of(targets.load(given), **run))
    if as_json:
        print_json(estimated.to_json())
    else:
        results().print(str(estimated), soft_wrap=True)
