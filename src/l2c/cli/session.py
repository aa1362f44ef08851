"""Options of commands that learn for long, and what they share while they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2c.cli.options import OUTPUT

if TYPE_CHECKING:
    from l2c.learning.session import Session

LEARNING = "Learning"
SESSION = "Long runs"

BF16 = Annotated[
    bool,
    typer.Option(
        "--bf16",
        help="Run the network in bfloat16, faster on a GPU. What is learned stays in float32.",
        rich_help_panel=LEARNING,
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of noise and labels.", rich_help_panel=LEARNING)]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        help="End before this time is over, with what has been learned by then.",
        rich_help_panel=SESSION,
        show_default=False,
    ),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Where to save, now and then, what is needed to go on: by default beside --out, with "
        ".checkpoint after its name. It is removed when learning is done.",
        rich_help_panel=SESSION,
        show_default=False,
    ),
]
SaveEvery = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", help="Least time between two saves of the checkpoint.", rich_help_panel=SESSION
    ),
]
Restart = Annotated[
    bool,
    typer.Option("--restart", help="Begin anew, whatever checkpoint there is.", rich_help_panel=SESSION),
]
LogDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write a log of loss, error and work for TensorBoard.",
        rich_help_panel=SESSION,
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="The schedule file to write (.safetensors).",
        rich_help_panel=OUTPUT,
    ),
]


def session_of(
    out: Path,
    checkpoint: Path | None,
    save_every: float,
    restart: bool,
    max_minutes: float | None,
    log_dir: Path | None,
) -> Session:
    """The session that the options ask for.

    Raises:
        ConfigError: If one is out of range.
    """
    from l2c.learning.session import Session

    return Session(
        checkpoint=out.with_name(f"{out.name}.checkpoint") if checkpoint is None else checkpoint,
        save_every_s=save_every,
        restart=restart,
        time_limit_s=None if max_minutes is None else 60 * max_minutes,
        log_dir=log_dir,
    )
