"""Options that several commands share, with their help, and how their values are read.

Nothing here imports torch, so that `--help` stays quick; a test compares the names with the library's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.errors import ConfigError

SOLVER_NAMES = "ddim, dpmsolver++, dpmsolver++3, dpmsolver-singlestep, euler, unipc"
SPACING_NAMES = "linspace, trailing, karras, logsnr"

MODEL = "Model"
RUN = "Sampling run"
OUTPUT = "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A trained class-conditional diffusion transformer: the name of one that comes with l2c "
        "(dit-mini-cifar10, uvit-mini-cifar10), a .pt or .safetensors checkpoint in the public DiT or U-ViT "
        "layout, or a folder saved by diffusers. Its size is read from the file.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA if there is one.",
        rich_help_panel=MODEL,
    ),
]
DType = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Number format of the weights: float32, bfloat16 or float16.",
        rich_help_panel=MODEL,
    ),
]
DTypeOrTF32 = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Number format of the weights: float32, bfloat16 or float16; tf32 is float32 whose matrix products "
        "NVIDIA devices round to TF32, which is faster. float32 itself never does that.",
        rich_help_panel=MODEL,
    ),
]
JsonOutput = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON instead of a table.", rich_help_panel=OUTPUT),
]

SOLVER_HELP = f"How noise becomes a picture, by the names of diffusers' schedulers: {SOLVER_NAMES}."
STEPS_HELP = "How often the model is evaluated per picture (NFE)."
SPACING_HELP = f"How the evaluations are spread over the noise levels, as in diffusers: {SPACING_NAMES}."
GUIDANCE_HELP = "Classifier-free guidance scale; 1 is without, which halves the work."
ENGINE_HELP = (
    "How the model is run: graph captures the evaluations as CUDA graphs, compile launches compiled pieces, eager runs "
    "the model as it is; auto takes graph for l2c's own models on CUDA devices and eager elsewhere."
)

_MOST_IMAGES = 100_000


def parse_numbers(text: str, option: str) -> list[int]:
    """Whole numbers from a list with commas and ranges.

    Raises:
        ConfigError: If it is anything else.

    >>> parse_numbers("0,7,2-4", "--labels")
    [0, 7, 2, 3, 4]
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{option} takes whole numbers and ranges such as 0,7,2-4, got '{text}'")
        span = range(int(first), int(last or first) + 1)
        if not span or len(numbers) + len(span) > _MOST_IMAGES:
            raise ConfigError(f"{option} has a range that is empty or too long: '{part.strip()}'")
        numbers += span
    return numbers


def check_suffix(path: Path, suffix: str, option: str) -> None:
    """Checks how the name of a file to be written ends.

    Raises:
        ConfigError: If it ends otherwise.
    """
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} writes a {suffix} file, got '{path}'; end its name in {suffix}")
