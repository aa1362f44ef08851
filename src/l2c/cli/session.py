"""Options of commands that learn: how, for how long, and where the result goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from l2c.cli.budgets import BUDGETS
from l2c.cli.options import LEARNING, OUTPUT, SESSION, option
from l2c.errors import ConfigError

if TYPE_CHECKING:
    from l2c.learning.paper import RouterSettings
    from l2c.learning.settings import LearnSettings

CLOSED = "Only with --pattern closed-loop"

Iterations = Annotated[
    int | None,
    option(
        "N",
        "Optimizer steps: 30 for each budget, or 60 with --pattern alternate, if not given. One goes through a whole "
        "sampling run, or, with --data, through one evaluation drawn at random, so take some thousands then.",
        LEARNING,
    ),
]
BatchSize = Annotated[
    int, option("N", "Pictures per optimizer step. Several processes share them.", LEARNING)
]
LearningRate = Annotated[
    float | None,
    option(
        "RATE",
        "Of the optimizer: 0.004, or 0.2 with --pattern alternate, if not given. The paper takes 0.001 over many "
        "thousand steps.",
        LEARNING,
        "--learning-rate",
        "--lr",
    ),
]
BF16 = Annotated[
    bool,
    option(
        None,
        "Run the network in bfloat16, faster on a GPU. What is learned stays in float32.",
        LEARNING,
        "--bf16",
    ),
]
Seed = Annotated[int, option("N", "Seed of noise, labels and prompts.", LEARNING)]
NumExamples = Annotated[
    int | None,
    option(
        "N",
        "How many different pictures to learn on, 32 if not given; prompts take turns. Each is first sampled in fine "
        "steps, as what to come close to; a quarter of them is not learned on and tells how good the result is.",
        CLOSED,
        "--examples",
    ),
]
ReferenceSteps = Annotated[
    int | None, option("N", "Evaluations of that sampling in fine steps, 40 if not given.", CLOSED)
]
Effort = Annotated[
    str | None,
    option(
        "NAME",
        "How long to learn: quick, default or best, which set steps, examples and trials where these are not given. "
        "How many minutes that takes here is said beforehand.",
        CLOSED,
    ),
]
Branches = Annotated[
    bool | None,
    option(
        None,
        "Whether the unconditional pass of guidance may run at fewer evaluations than the conditional one; by default "
        "it may.",
        CLOSED,
        "--branches/--no-branches",
    ),
]
Tail = Annotated[
    float | None,
    option(
        "POWER",
        "Power of the errors that is made small, 1 if not given: the mean over pictures. With 4, say, the worst "
        "pictures count for more.",
        CLOSED,
    ),
]
History = Annotated[
    int | None, option("N", "How many computed values a forecast reads at most, 3 if not given.", CLOSED)
]
Recompute = Annotated[
    bool,
    option(
        None,
        "Need far less memory for a third more time: compute layers again for the gradient instead of keeping what "
        "they worked out.",
        CLOSED,
        "--recompute",
    ),
]
RecomputeEvaluations = Annotated[
    bool,
    option(
        None,
        "On a pipeline: keep only the latents of the run and the values that are reused, and compute whole evaluations "
        "again for the gradient.",
        CLOSED,
        "--recompute-evaluations",
    ),
]
Offload = Annotated[
    bool,
    option(None, "Likewise, and let the values that are reused wait in CPU memory.", CLOSED, "--offload"),
]
DryRun = Annotated[
    bool,
    option(
        None,
        "Say what would be learned, with its memory and minutes by one step that is timed here, and stop.",
        CLOSED,
        "--dry-run",
    ),
]
MaxMinutes = Annotated[
    float | None,
    option("MINUTES", "End before this time is over, with what has been learned by then.", SESSION),
]
CheckpointFile = Annotated[
    Path | None,
    option(
        "FILE",
        "Where to save, now and then, what is needed to go on: by default beside --out, with .checkpoint after its "
        "name. It is removed when learning is done.",
        SESSION,
        "--checkpoint",
    ),
]
SaveEvery = Annotated[float, option("SECONDS", "Least time between two saves of the checkpoint.", SESSION)]
Restart = Annotated[bool, option(None, "Begin anew, whatever checkpoint there is.", SESSION, "--restart")]
LogDir = Annotated[
    Path | None, option("FOLDER", "Write a log of loss, error and work for TensorBoard.", SESSION)
]
Out = Annotated[Path, option("FILE", "The schedule file to write (.safetensors).", OUTPUT, "--out", "-o")]


def settings_of(given: Mapping[str, Any], pattern: str = "closed-loop") -> LearnSettings | RouterSettings:
    """The settings that a command was given, by the names of their fields; None leaves them as they are.

    Raises:
        ConfigError: If the pattern is unknown, or one is out of range or belongs to the other pattern.
    """
    from l2c.learning.effort import effort_settings
    from l2c.learning.paper import RouterSettings
    from l2c.learning.settings import LearnSettings

    kinds = {"closed-loop": LearnSettings, "alternate": RouterSettings}
    if pattern not in kinds:
        raise ConfigError(f"unknown pattern '{pattern}'; choose {' or '.join(kinds)}")
    own = {name: {field.name for field in fields(kind)} for name, kind in kinds.items()}
    belong = {
        "closed-loop": own["closed-loop"].union(BUDGETS, ["effort", "dry_run"]),
        "alternate": own["alternate"] | {"data"},
    }
    (other,) = set(kinds) - {pattern}
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    if given.get("branches") is False:  # unlike other flags, it is on by default
        said["branches"] = False
    if said.pop("recompute_evaluations", False):
        said["recompute"] = "evaluations"
    if said.pop("offload", False):
        said["recompute"] = "offload"
    for name in said:
        if name in belong[other] - belong[pattern]:
            shown = name.removeprefix("num_").rstrip("_").replace("_", "-")
            raise ConfigError(
                f"--{shown} belongs to --pattern {other}, not {pattern}; leave one of the two out"
            )
    effort = effort_settings(said["effort"]) if "effort" in said else {}
    chosen: LearnSettings | RouterSettings = kinds[pattern](
        **{**effort, **{name: value for name, value in said.items() if name in own[pattern]}}
    )
    return chosen
