"""Train the small text-to-image pipeline that comes with l2c, from scratch, on a CPU.

    python examples/pretrain_scenes.py autoencoder --work work --minutes 20 --finish
    python examples/pretrain_scenes.py latents     --work work --pictures 200000
    python examples/pretrain_scenes.py transformer --work work --minutes 120
    python examples/pretrain_scenes.py transformer --work work --minutes 30 --finish
    python examples/pretrain_scenes.py export      --work work --out scenes-sd3
    python examples/pretrain_scenes.py evaluate    --folder scenes-sd3 --out adherence.json

The result is a folder that `StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None,
tokenizer_3=None)` loads: nothing in it but classes of diffusers and transformers. The pictures are drawn by
`l2c.scenes`, so no data is needed.

Every stage goes on from what the work folder holds, so a run may be as short as one likes; `--finish` lets the
learning rate fall to 0 over the run, which makes the model as good as it gets for what it has seen. A finished
transformer is kept beside the state that training at the full rate goes on from. Latents may be added at any time;
once there are any, `autoencoder` trains the decoder alone. `import` makes an exported folder, the one that comes with
l2c among them, the state of a new work folder.

Recipe: a tokenizer with one token a word; an autoencoder (absolute error and its edges, KL term); flow matching
in its latents with times drawn from a logit-normal distribution (arXiv 2403.03206), prompts dropped with
probability 0.1, text encoders learned along; a linear probe that must read shape and colour of what lies at each
patch off the hidden states; Muon for the matrices of the blocks and AdamW for the rest; bfloat16 where the CPU has
instructions for it; exponential moving average of the weights, which is what is exported.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes_recipe.autoencoder import train_autoencoder
from scenes_recipe.evaluate import evaluate_pipeline
from scenes_recipe.export import export_pipeline, import_pipeline, load_pipeline
from scenes_recipe.latents import write_latents
from scenes_recipe.parallel import run_workers
from scenes_recipe.state import log_to_stderr
from scenes_recipe.transformer import train_transformer

from l2c.errors import ConfigError, L2CError
from l2c.files import atomic_write


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)

    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--work", type=Path, required=True, help="folder that the state is kept in")
    training.add_argument("--minutes", type=float, default=60.0, help="time of this run (default 60)")
    training.add_argument("--threads", type=int, default=2, help="processes of one thread each (default 2)")
    for name in ("autoencoder", "transformer"):
        stage = stages.add_parser(name, parents=[training], help=f"train the {name}")
        stage.add_argument("--finish", action="store_true", help="let the learning rate fall to 0")
        if name == "transformer":
            stage.add_argument(
                "--rate", type=float, default=1.0, help="share of the full learning rate (default 1)"
            )
    stage = stages.add_parser("latents", parents=[training], help="draw and encode training pictures")
    stage.add_argument("--pictures", type=int, default=131_072, help="how many in all (default 131072)")

    stage = stages.add_parser("export", help="write the pipeline as a folder, in float16")
    stage.add_argument("--work", type=Path, required=True)
    stage.add_argument("--out", type=Path, required=True, help="folder to write")

    stage = stages.add_parser("import", help="make an exported folder the state that training goes on from")
    stage.add_argument("--folder", type=Path, required=True, help="folder of the pipeline")
    stage.add_argument("--work", type=Path, required=True)

    stage = stages.add_parser("evaluate", help="adherence to held-out prompts")
    stage.add_argument("--folder", type=Path, required=True, help="folder of the pipeline")
    stage.add_argument("--out", type=Path, required=True, help="JSON file to write")
    stage.add_argument("--sheet", type=Path, help="PNG file for a sheet of the pictures")
    stage.add_argument("--prompts", type=int, default=256, help="how many held-out prompts (default 256)")
    stage.add_argument("--steps", type=int, default=28)
    stage.add_argument("--guidance", type=float, default=4.5)
    stage.add_argument("--empty-tokens", type=int, default=0, help="max_sequence_length of the pipeline")
    stage.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    for name in ("threads", "pictures", "prompts", "steps"):
        if getattr(arguments, name, 1) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(arguments, name)}")
    if getattr(arguments, "minutes", 0) < 0:
        parser.error(f"--minutes must not be negative, got {arguments.minutes}")
    return arguments


def run(arguments: argparse.Namespace) -> Path:
    """Run one stage.

    Returns:
        The file or folder that holds its result.

    Raises:
        L2CError: What the stage needs is missing, or a file cannot be read or written.
    """
    if arguments.stage == "autoencoder":
        run_workers(arguments.threads, train_autoencoder, arguments.work, arguments.minutes, arguments.finish)
        return Path(arguments.work)
    if arguments.stage == "latents":
        run_workers(arguments.threads, write_latents, arguments.work, arguments.minutes, arguments.pictures)
        return Path(arguments.work)
    if arguments.stage == "transformer":
        run_workers(
            arguments.threads,
            train_transformer,
            arguments.work,
            arguments.minutes,
            arguments.finish,
            arguments.rate,
        )
        return Path(arguments.work)
    if arguments.stage == "export":
        export_pipeline(arguments.work, arguments.out)
        return Path(arguments.out)
    if arguments.stage == "import":
        import_pipeline(arguments.folder, arguments.work)
        return Path(arguments.work)
    torch.set_num_threads(arguments.threads)
    pipeline = load_pipeline(arguments.folder)
    record = evaluate_pipeline(
        pipeline,
        arguments.prompts,
        arguments.steps,
        arguments.guidance,
        arguments.empty_tokens,
        arguments.sheet,
    )
    atomic_write(arguments.out, (json.dumps(record, indent=2) + "\n").encode())
    return Path(arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    arguments = parse_arguments(argv)
    log_to_stderr()
    logging.getLogger("pretrain_scenes").setLevel(logging.INFO)
    try:
        print(run(arguments))
    except L2CError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
