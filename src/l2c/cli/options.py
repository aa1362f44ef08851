"""Options that several commands share, each declared once, and how their values are read.

Nothing here imports torch, so that `--help` stays quick; a test compares the names with the library's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from l2c.errors import ConfigError

SOLVER_NAMES = "ddim, dpmsolver++, dpmsolver++3, dpmsolver-singlestep, euler, unipc"
SPACING_NAMES = "linspace, trailing, karras, logsnr"

MODEL = "Model"
SCHEDULE = "Schedule"
RUN = "Sampling run"
PICTURES = "Pictures"
MEASURING = "Measuring"
LEARNING = "Learning"
SESSION = "Long runs"
OUTPUT = "Output"

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


def option(metavar: str | None, text: str, panel: str | None, *names: str, **more: Any) -> Any:
    """An option with its help; a default of None is not shown, so that the help says what it means."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A trained class-conditional diffusion transformer: the name of one that comes with l2c "
        "(dit-mini-cifar10, uvit-mini-cifar10), a .pt or .safetensors checkpoint in the public DiT or U-ViT layout, or "
        "a folder saved by diffusers. Its size is read from the file.",
    ),
]
Device = Annotated[
    str, option("NAME", "Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA if there is one.", MODEL)
]
DType = Annotated[str, option("NAME", f"{_DTYPE_HELP}.", MODEL)]
DTypeOrTF32 = Annotated[
    str,
    option(
        "NAME",
        f"{_DTYPE_HELP}; tf32 is float32 whose matrix products NVIDIA devices round to TF32, which is faster. float32 "
        "itself never does that.",
        MODEL,
    ),
]
Vae = Annotated[
    Path | None,
    option(
        "FOLDER",
        "For latent models such as DiT-XL/2: the autoencoder that decodes their latents, a folder saved by diffusers. "
        "Without it, latents stay latents.",
        MODEL,
    ),
]
AnyWeights = Annotated[
    bool,
    option(
        None,
        "Take schedules that were learned on other weights of the same architecture, too, with a warning instead of an "
        "error.",
        SCHEDULE,
        "--any-weights",
    ),
]
FamilyBudget = Annotated[
    float | None,
    option(
        "SHARE",
        "Of a family of schedules, take the best one that costs at most this share of the MACs.",
        SCHEDULE,
    ),
]

Solver = Annotated[
    str | None,
    option("NAME", f"{SOLVER_HELP} A pipeline keeps its scheduler. [default: of a model, ddim]", RUN),
]
Spacing = Annotated[str | None, option("NAME", f"{SPACING_HELP} [default: of a model, linspace]", RUN)]
Guidance = Annotated[
    float | None,
    option("SCALE", f"{GUIDANCE_HELP} [default: 1.5, or what a pipeline takes by itself]", RUN),
]
Scheduler = Annotated[
    str | None,
    option(
        "CLASS,NAME=VALUE",
        "Of a pipeline: one of diffusers' schedulers instead of its own, with its settings but for those named, such "
        "as UniPCMultistepScheduler,flow_shift=3.0; without a class, its own with other settings.",
        MODEL,
    ),
]
Quantization = Annotated[
    str | None,
    option(
        "NAME",
        "Of a pipeline: quantise the transformers' weights; int8 with torchao, bnb-8bit or bnb-4bit with bitsandbytes.",
        MODEL,
    ),
]

SolverAsMade = Annotated[str | None, option("NAME", f"{SOLVER_HELP} [default: the schedule's, or ddim]", RUN)]
StepsAsMade = Annotated[int | None, option("N", f"{STEPS_HELP} [default: the schedule's, or 50]", RUN)]
SpacingAsMade = Annotated[
    str | None, option("NAME", f"{SPACING_HELP} [default: the schedule's, or linspace]", RUN)
]
GuidanceOrRange = Annotated[
    str | None,
    option(
        "SCALE|LOW-HIGH",
        f"{GUIDANCE_HELP} For a model also a range such as 1-5, within which the schedule is to serve any. [default: "
        "1.5, or what a pipeline takes by itself]",
        RUN,
    ),
]
GuidanceAsMade = Annotated[
    float | None, option("SCALE", f"{GUIDANCE_HELP} [default: the schedule's, or 1.5]", RUN)
]
GuidanceMode = Annotated[
    str | None,
    option(
        "NAME",
        "Of a model with guidance: evaluate with and without the label in one call of twice the size (batch, if not "
        "given) or in two calls (split), which needs less memory.",
        RUN,
    ),
]
BatchSize = Annotated[int, option("N", "Pictures at a time.", RUN, min=1)]
Engine = Annotated[str, option("NAME", ENGINE_HELP, RUN)]

RecordFile = Annotated[
    Path | None,
    option(
        "FILE", "Write all that was timed into this file (.json), every repetition.", OUTPUT, "--out", "-o"
    ),
]
JsonOutput = Annotated[bool, option(None, "Print the result as JSON instead of a table.", OUTPUT, "--json")]


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


def check_suffix(path: Path, suffix: str, option: str) -> None:
    """Checks how the name of a file to be written ends.

    Raises:
        ConfigError: If it ends otherwise.
    """
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} writes a {suffix} file, got '{path}'; end its name in {suffix}")


def check_inputs(given: Mapping[str, Any], *outputs: str) -> None:
    """Refuses outputs of a command that are the same file, by whatever spelling, as another that it was given.

    Args:
        given: All that the command was given, by the names of its parameters.
        outputs: Names of those that it writes.

    Raises:
        ConfigError: If writing one would replace another.
    """
    from l2c.files import same_file

    for name, (other, value) in product(outputs, given.items()):
        for path in value if isinstance(value, (list, tuple)) else (value,):
            if name == other or not given[name] or not (path and isinstance(path, (str, Path))):
                continue
            if same_file(path, given[name]):
                raise ConfigError(
                    f"{given[name]} is named twice, as {name} and as {other}, and would be overwritten; name another "
                    f"file for one of the two"
                )


def check_output(path: Path | None, suffix: str, option: str = "--out") -> None:
    """Checks the name of a file, if there is to be one, and that it can be written, before any work is done.

    Raises:
        ConfigError: If the name ends otherwise.
        OutputError: If it cannot be written.
    """
    if path is not None:
        from l2c.files import check_output_file

        check_suffix(path, suffix, option)
        check_output_file(path)


def parse_guidance(text: str) -> float | tuple[float, float]:
    """A guidance scale, or a range of them.

    Raises:
        ConfigError: If it is neither.

    >>> parse_guidance("1-5"), parse_guidance("1.5")
    ((1.0, 5.0), 1.5)
    """
    low, dash, high = text.partition("-")
    try:
        return (float(low), float(high)) if low and dash else float(text)
    except ValueError:
        raise ConfigError(
            f"--guidance takes a scale such as 1.5 or a range such as 1-5, got '{text}'"
        ) from None
