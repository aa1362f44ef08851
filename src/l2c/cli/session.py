"""Options of commands that learn: how, for how long, and where the result goes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2c.cli.options import ALTERNATE, BUDGET, CLOSED, LEARNING, OUTPUT, SESSION, flag, option
from l2c.errors import ConfigError, known

if TYPE_CHECKING:
    from l2c.learning.paper import RouterSettings
    from l2c.learning.settings import LearnSettings


def schedule_file(default: str) -> Any:
    """The option that says where a schedule goes."""
    return option(
        "FILE", "The schedule file to write (.safetensors).", OUTPUT, short="-o", default=Path(default)
    )


class LearningOptions:
    """How, on what and for how long is learned."""

    iterations: int | None = option(
        "N",
        "Optimizer steps: 20 for each budget, or 60 with --pattern alternate, if not given. One goes through a whole "
        "sampling run, or, with --data, through one evaluation drawn at random, so take some thousands then.",
        LEARNING,
    )
    batch_size: int = option(
        "N", "Pictures per optimizer step. Several processes share them.", LEARNING, default=4
    )
    learning_rate: float | None = option(
        "RATE",
        "Of the optimizer: 0.004, or 0.2 with --pattern alternate, if not given. The paper takes 0.001 over many "
        "thousand steps.",
        LEARNING,
        "--learning-rate",
        "--lr",
    )
    bf16: bool = flag(
        "Run the network in bfloat16, faster on a GPU. What is learned stays in float32.", LEARNING
    )
    seed: int = option("N", "Seed of noise, labels and prompts.", LEARNING, default=0)
    num_examples: int | None = option(
        "N",
        "How many different pictures to learn on, 32 if not given; prompts take turns. Each is first sampled in fine "
        "steps, as what to come close to; a quarter of them is not learned on and tells how good the result is.",
        CLOSED,
        "--examples",
    )
    reference_steps: int | None = option(
        "N", "Evaluations of that sampling in fine steps, 60 if not given.", CLOSED
    )
    tail: float | None = option(
        "POWER",
        "Power of the errors that is made small, 1 if not given: the mean over pictures. With 4, say, the worst "
        "pictures count for more.",
        CLOSED,
    )
    history: int | None = option(
        "N", "How many computed values a forecast reads at most, 3 if not given.", CLOSED
    )
    recompute: bool = flag(
        "Need far less memory for a third more time: compute layers again for the gradient instead of keeping what "
        "they worked out.",
        CLOSED,
    )
    recompute_evaluations: bool = flag(
        "On a pipeline: keep only the latents of the run and the values that are reused, and compute whole evaluations "
        "again for the gradient.",
        CLOSED,
    )
    offload: bool = flag("Likewise, and let the values that are reused wait in CPU memory.", CLOSED)
    max_minutes: float | None = option(
        "MINUTES", "End before this time is over, with what has been learned by then.", SESSION
    )
    checkpoint: Path | None = option(
        "FILE",
        "Where to save, now and then, what is needed to go on: by default beside --out, with .checkpoint after its "
        "name. It is removed when learning is done.",
        SESSION,
        "--checkpoint",
    )
    save_every: float = option(
        "SECONDS", "Least time between two saves of the checkpoint.", SESSION, default=30.0
    )
    restart: bool = flag("Begin anew, whatever checkpoint there is.", SESSION)
    log_dir: Path | None = option("FOLDER", "Write a log of loss, error and work for TensorBoard.", SESSION)


def settings_of(context: Any, pattern: str = "closed-loop") -> LearnSettings | RouterSettings:
    """The settings that a command was given, by the names of their fields; None leaves them as they are.

    Raises:
        ConfigError: If the pattern is unknown, or one is out of range or belongs to the other pattern.
    """
    from l2c.learning.effort import effort_settings
    from l2c.learning.paper import RouterSettings
    from l2c.learning.settings import LearnSettings

    kinds = {"closed-loop": LearnSettings, "alternate": RouterSettings}
    known("pattern", pattern, kinds)
    (other,) = set(kinds) - {pattern}
    others = (ALTERNATE,) if pattern == "closed-loop" else (CLOSED, BUDGET)
    for one in context.command.params:
        said = context.get_parameter_source(one.name).name == "COMMANDLINE"
        if said and getattr(one, "rich_help_panel", None) in others:
            raise ConfigError(
                f"{one.opts[0]} belongs to --pattern {other}, not {pattern}; leave one of the two out"
            )
    given = context.params
    chosen = dict(effort_settings(given["effort"])) if given.get("effort") is not None else {}
    names = [one.name for one in fields(kinds[pattern])]
    chosen |= {name: given[name] for name in names if given.get(name) is not None}
    for flag_name, how in (("recompute_evaluations", "evaluations"), ("offload", "offload")):
        if given[flag_name]:
            chosen["recompute"] = how
    settings: LearnSettings | RouterSettings = kinds[pattern](**chosen)
    return settings
