"""Options that several commands share, each declared once, and how their values are read.

Nothing here imports torch, so that `--help` stays quick; a test compares the names with the library's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from l2c.errors import ConfigError, Told

SOLVER_NAMES = "ddim, dpmsolver++, dpmsolver++3, dpmsolver-singlestep, euler, unipc"
SPACING_NAMES = "linspace, trailing, karras, logsnr"

PANELS = (
    None, "Options", "Model", "Schedule", "Sampling run", "Pictures", "Budget, one of them", "Learning",
    "Only with --pattern closed-loop", "Only with --pattern alternate", "Measuring", "Long runs", "Output",
)  # fmt: skip
(
    _ARGUMENTS, OTHER, MODEL, SCHEDULE, RUN, PICTURES, BUDGET, LEARNING, CLOSED, ALTERNATE, MEASURING, SESSION, OUTPUT,
) = PANELS  # fmt: skip
"""Parts of the help, in its order; arguments are in none."""

SOLVER_HELP = f"How noise becomes a picture, by the names of diffusers' schedulers: {SOLVER_NAMES}."
STEPS_HELP = "How often the model is evaluated per picture (NFE)."
SPACING_HELP = f"How the evaluations are spread over the noise levels, as in diffusers: {SPACING_NAMES}."
GUIDANCE_HELP = "Classifier-free guidance scale; 1 is without, which halves the work."
ENGINE_HELP = (
    "How the model is run: graph captures the evaluations as CUDA graphs, compile launches compiled pieces, eager runs "
    "the model as it is; auto takes graph for l2c's own models on CUDA devices and eager elsewhere. All but eager take "
    "seconds to get going."
)
_DTYPE_HELP = "Number format of the weights: float32, bfloat16 or float16"
_MOST_NUMBERS = 100_000
MOST_PICTURES = 1_000_000
LARGEST_SEED = 2**62
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


@dataclass(frozen=True)
class Declared:
    """An option or an argument of commands.

    Attributes:
        metavar: What its value is called; None for a flag.
        text: Its help.
        panel: Where it stands in the help; None for an argument.
        names: How it is given, by default as its parameter is named.
        short: A letter for it, besides.
        default: If it is not given. None is not shown, so that the help says what it means.
        limits: What typer checks.
    """

    metavar: str | None
    text: str
    panel: str | None = None
    names: tuple[str, ...] = ()
    short: str = ""
    default: Any = None
    limits: Mapping[str, Any] = field(default_factory=dict)

    def parameter(self, name: str, kind: Any) -> Parameter:
        """For typer, the parameter with a name and a type."""
        names = self.names or (f"--{name.replace('_', '-')}", self.short)
        info = (
            typer.Argument(metavar=self.metavar, help=self.text)
            if self.panel is None
            else typer.Option(
                *filter(None, names),
                metavar=self.metavar,
                help=self.text,
                rich_help_panel=self.panel,
                **self.limits,
            )
        )
        annotation = Annotated[kind, info]
        return Parameter(name, Parameter.KEYWORD_ONLY, default=self.default, annotation=annotation)


def argument(metavar: str, text: str, default: Any = Parameter.empty) -> Any:
    """An argument, which has to be given if it has no default."""
    return Declared(metavar, text, default=default)


def option(
    metavar: str, text: str, panel: str, *names: str, short: str = "", default: Any = None, **limits: Any
) -> Any:
    """An option with a value; see `Declared`."""
    return Declared(metavar, text, panel, names, short, default, limits)


def flag(text: str, panel: str, *names: str, default: bool | None = False) -> Any:
    """An option without a value."""
    return Declared(None, text, panel, names, default=default)


def takes(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function whose defaults are declared: in order of the panels, with all options of groups.

    Args:
        groups: Classes whose attributes are declared options. Their values are found in the context.
    """

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command).parameters
        declared = {name: one.default for name, one in own.items()}
        kinds = get_type_hints(command)
        for group in groups:
            hints = get_type_hints(group)
            kinds |= hints
            declared |= {name: getattr(group, name) for name in hints}
        context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        options = {name: one for name, one in declared.items() if isinstance(one, Declared)}
        ordered = sorted(options, key=lambda name: PANELS.index(options[name].panel))

        @wraps(command)
        def called(**given: Any) -> None:
            command(**{name: given[name] for name in own})

        parameters = [context, *(options[name].parameter(name, kinds[name]) for name in ordered)]
        called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return extend


DEVICE = option(
    "NAME", "Where to compute: cpu, cuda, cuda:1, mps; auto is CUDA if there is any.", MODEL, default="auto"
)
DTYPE = option("NAME", f"{_DTYPE_HELP}.", MODEL, default="float32")
DTYPE_OR_TF32 = option(
    "NAME",
    f"{_DTYPE_HELP}; tf32 is float32 whose matrix products NVIDIA devices round to TF32, which is faster. float32 "
    "itself never does that.",
    MODEL,
    default="float32",
)
VAE = option(
    "FOLDER",
    "For latent models such as DiT-XL/2: the autoencoder that decodes their latents, a folder saved by diffusers. "
    "Without it, latents stay latents.",
    MODEL,
)
FAMILY_BUDGET = option(
    "SHARE", "Of a family, take the best schedule for at most this share of the MACs.", SCHEDULE
)
SPACING = option("NAME", f"{SPACING_HELP} [default: of a model, linspace]", RUN)
GUIDANCE_MODE = option(
    "NAME",
    "Of a model with guidance: evaluate with and without the label in one call of twice the size (batch, if not "
    "given) or in two calls (split), which needs less memory.",
    RUN,
)
ENGINE = option("NAME", ENGINE_HELP, RUN, default="auto")
RECORD_FILE = option(
    "FILE", "Write all that was timed into this file (.json), every repetition.", OUTPUT, short="-o"
)
AS_JSON = flag("Print the result as JSON instead of a table.", OUTPUT, "--json")


class AsMade:
    """How schedules are used: by default as they were made for."""

    budget: float | None = FAMILY_BUDGET
    any_weights: bool = flag(
        "Take schedules that were learned on other weights of the same architecture, too, with a warning instead "
        "of an error.",
        SCHEDULE,
    )
    solver: str | None = option("NAME", f"{SOLVER_HELP} [default: the schedule's, or ddim]", RUN)
    steps: int | None = option("N", f"{STEPS_HELP} [default: the schedule's, or 50]", RUN)
    spacing: str | None = option("NAME", f"{SPACING_HELP} [default: the schedule's, or linspace]", RUN)
    guidance: float | None = option("SCALE", f"{GUIDANCE_HELP} [default: the schedule's, or 1.5]", RUN)
    guidance_mode: str | None = GUIDANCE_MODE


def parse_numbers(text: str, option: str) -> list[int]:
    """Whole numbers from a list with commas and ranges.

    Raises:
        ConfigError: If it is anything else.

    >>> parse_numbers("0,7,2-4", "--labels")
    [0, 7, 2, 3, 4]
    """
    numbers: list[int] = []
    for part in text.split(","):
        if not (found := _RANGE.fullmatch(part.strip())):
            raise ConfigError(f"{option} takes whole numbers and ranges such as 0,7,2-4, got '{text[:80]}'")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + _MOST_NUMBERS - len(numbers):
            raise ConfigError(f"{option} has a range that is empty or too long: '{part.strip()}'")
        numbers += range(first, last + 1)
    return numbers


def check_outputs(given: Mapping[str, Any], **suffixes: str) -> None:
    """Checks the files that a command is to write, before any work is done.

    Args:
        given: All that the command was given, by the names of its parameters.
        suffixes: How the names of the files end, by the parameters that name them.

    Raises:
        ConfigError: If a name ends otherwise, or writing would replace, by whatever spelling, another file given.
        OutputError: If one cannot be written.
    """
    from l2c.files import check_output_file, same_file

    for name, suffix in suffixes.items():
        path = given[name]
        if path is None:
            continue
        if not path.name.lower().endswith(suffix):
            raise ConfigError(f"--{name} writes a {suffix} file, got '{path}'; end its name in {suffix}")
        for other, value in given.items():
            listed = value if isinstance(value, (list, tuple)) else (value,)
            paths = [one for one in listed if one and isinstance(one, (str, Path))]
            if name != other and any(same_file(one, path) for one in paths):
                raise ConfigError(
                    f"{path} is named twice, as {name} and as {other}, and would be overwritten; name another file "
                    "for one of the two"
                )
        check_output_file(path)


def parse_guidance(text: str) -> float | tuple[float, float]:
    """A guidance scale, or a range of them.

    Raises:
        ConfigError: If it is neither.

    >>> parse_guidance("1-5"), parse_guidance("1.5")
    ((1.0, 5.0), 1.5)
    """
    low, dash, high = text.partition("-")
    wrong = f"--guidance takes a scale such as 1.5 or a range such as 1-5, got '{text}'"
    with Told(ConfigError, wrong, ValueError):
        return (float(low), float(high)) if low and dash else float(text)
