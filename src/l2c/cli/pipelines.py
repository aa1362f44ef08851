"""diffusers pipelines on the command line: which one, what it is called with, and what it says to that."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2c.cli.options import MODEL, RUN, parse_numbers
from l2c.errors import ConfigError, L2CError

if TYPE_CHECKING:
    from l2c.schedule.schedule import CacheSchedule

Pipeline = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        help="A diffusers pipeline: a folder that save_pretrained wrote, or the name of a repository on the hub.",
        show_default=False,
    ),
]
Schedule = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE",
        help="A schedule file (.safetensors), a folder with one, or the name of a repository on the hub.",
        show_default=False,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A prompt; may be given several times.", rich_help_panel=RUN),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text file with a prompt in each line.", rich_help_panel=RUN),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Class labels instead of prompts, for a class-conditional pipeline: 0,7,2-4.",
        rich_help_panel=RUN,
    ),
]
_SET = "Anything else that the pipeline is called with, such as height=512; may be given several times."
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET, rich_help_panel=RUN)
]
SettingsAsMade = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"{_SET} By default as when the schedule was made, where it says.",
        rich_help_panel=RUN,
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(metavar="NAME|PATH", help="A LoRA to load into the pipeline first.", rich_help_panel=MODEL),
]


def read_conditions(
    prompt: Sequence[str] | None, prompts: Path | None, labels: str | None
) -> list[dict[str, Any]]:
    """What tells runs apart, each as the pipeline is called with it.

    Raises:
        ConfigError: If there are no prompts and no labels, there are both, or the file cannot be read.
    """
    from l2c.hosts.pipeline.conditions import read_prompts

    given = [*(prompt or ()), *(read_prompts(prompts) if prompts is not None else ())]
    if bool(given) == (labels is not None):
        raise ConfigError("give either prompts, with --prompt or --prompts, or --labels")
    if labels is None:
        return [{"prompt": text} for text in given]
    return [{"class_labels": [label]} for label in parse_numbers(labels, "--labels")]


def read_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """What `--set` says, values as JSON where they are, and else as text.

    Raises:
        ConfigError: If one is no KEY=VALUE.

    >>> read_settings(["height=512", "negative_prompt=blurry"])
    {'height': 512, 'negative_prompt': 'blurry'}
    """
    call: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--set takes KEY=VALUE such as height=512, got '{setting}'")
        try:
            call[key] = json.loads(text)
        except json.JSONDecodeError:
            call[key] = text
    return call


def call_as_made(schedule: CacheSchedule) -> dict[str, Any]:
    """What the pipeline was called with when the schedule was made, as far as it says."""
    run = schedule.contract.run
    call: dict[str, Any] = {"num_inference_steps": run.steps}
    if run.guidance is not None:
        call["guidance_scale"] = run.guidance
    return {**call, **schedule.provenance.get("call", {})}


@contextmanager
def in_words_of(pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """Says what a pipeline does not take, beforehand by name, and else as it does when it is called.

    Raises:
        ConfigError: If it takes no such argument, or not that value.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in call:
        close = difflib.get_close_matches(name, parameters, n=1)
        if name not in parameters and (close or not takes_more):  # of more, pipelines only know old names
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{type(pipe).__name__} takes no {name}{hint}")
    try:
        yield
    except L2CError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{type(pipe).__name__} refuses the call: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")
