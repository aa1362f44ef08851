"""Train one of the two small models that come with l2c, from scratch.

    python examples/pretrain_cifar10.py --model dit --data cifar10-train.parquet --out dit.safetensors

The data is a folder of 32x32 images (one subfolder per class) or a Parquet file. Half an hour on one GPU
gives a model like the embedded one; on a CPU, a few steps are for trying it out. An interrupted run goes on
with `--resume`, to the same weights as if it had never stopped.

Recipe: noise prediction over 1000 timesteps with linear betas, min-SNR weighting with gamma 5
(arXiv 2303.09556), AdamW, labels dropped with probability 0.1, exponential moving average of the weights,
which is what is saved.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from l2c.errors import CheckpointError, ConfigError, L2CError
from l2c.files import atomic_write
from l2c.learning.data import ImageData, load_images
from l2c.models import DiT, ModelConfig, UViT, model_config, new_model, save_model

logger = logging.getLogger("pretrain_cifar10")

LEARNING_RATES = {"dit": 1e-3, "uvit": 5e-4}
STEPS = {"dit": 14_860, "uvit": 13_480}
WARMUP_STEPS = 500
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.9995
MIN_SNR_GAMMA = 5.0


def draw_batch(
    data: ImageData, config: ModelConfig, seed: int, step: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw everything random in one step; `seed` and `step` alone decide it, so a resumed run repeats it.

    Returns:
        Images (B, 3, H, W), labels (B,) some of which are the null class, timestep indices (B,), noise
        (B, 3, H, W).
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    images, labels = data.batch(generator, size)
    dropped = torch.rand(size, generator=generator) < LABEL_DROPOUT
    if labels is None:
        labels = torch.full((size,), config.num_classes)
    labels = labels.masked_fill(dropped, config.num_classes)
    timesteps = torch.randint(1000, (size,), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return images, labels, timesteps, noise


def weighted_loss(prediction: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the predicted noise, each image weighted by min(SNR, gamma) / SNR.

    Args:
        prediction: Shape (B, C, H, W).
        noise: Shape (B, C, H, W).
        signal: Cumulative product of 1 - beta at each image's timestep, shape (B,).

    Source:
        Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv 2303.09556).
    """
    snr = signal / (1 - signal)
    errors = (prediction.float() - noise).square().mean(dim=(1, 2, 3))
    return (errors * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Save what a resumed run needs; the file appears whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write(path, buffer.getvalue())


def read_state(path: Path, options: dict[str, object]) -> dict[str, Any]:
    """Read what `write_state` saved, refusing a run with other options."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = [state["options"][name] for name in options]
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be resumed from ({type(error).__name__}); start anew, without --resume"
        ) from error
    told = [
        f"{name} {then} then, {now} now"
        for (name, now), then in zip(options.items(), before, strict=True)
        if then != now
    ]
    if told:
        raise ConfigError(f"{path} is of a run with other options: {', '.join(told)}")
    return state


def train(arguments: argparse.Namespace) -> DiT | UViT:
    """Run the recipe and save the averaged model.

    Returns:
        The averaged model.

    Raises:
        L2CError: The data cannot be used, or a file cannot be read or written.
    """
    config = model_config(f"{arguments.model}-mini-cifar10")
    data = load_images(arguments.data, config.image_size, config.in_channels, num_classes=config.num_classes)
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    model = new_model(config).to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    signal = (1 - config.betas()).cumprod(0).float()  # (1000,)
    options = {name: getattr(arguments, name) for name in ("model", "batch_size", "lr", "seed")}
    state_path = arguments.out.with_suffix(".state.pt")
    step = 0
    if arguments.resume:
        state = read_state(state_path, options)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        logger.info("going on after step %d", step)

    while step < arguments.steps:
        images, labels, timesteps, noise = draw_batch(
            data, config, arguments.seed, step, arguments.batch_size
        )
        level = signal[timesteps][:, None, None, None]
        noisy = level.sqrt() * images + (1 - level).sqrt() * noise
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * min(1.0, (step + 1) / WARMUP_STEPS)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prediction = model(
                noisy.to(device), timesteps.to(device) + config.first_timestep, labels.to(device)
            )
        loss = weighted_loss(prediction, noise.to(device), signal[timesteps].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        step += 1
        if step % arguments.log_every == 0 or step == arguments.steps:
            logger.info("step %d of %d: loss %.4f", step, arguments.steps, loss.item())
        if step % arguments.save_every == 0 or step == arguments.steps:
            write_state(
                state_path,
                {
                    "options": options,
                    "step": step,
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )
            save_model(average.module, arguments.out, dtype=torch.float16)
    return average.module


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("dit", "uvit"), default="dit")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or Parquet file")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, help=f"iterations in all (default {STEPS})")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, help=f"learning rate (default {LEARNING_RATES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the state beside --out")
    parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=100, metavar="STEPS")
    arguments = parser.parse_args(argv)
    arguments.steps = STEPS[arguments.model] if arguments.steps is None else arguments.steps
    arguments.lr = LEARNING_RATES[arguments.model] if arguments.lr is None else arguments.lr
    for name in ("steps", "batch_size", "lr", "save_every", "log_every"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(arguments, name)}")
    if arguments.out.suffix != ".safetensors":
        parser.error(f"--out must end in .safetensors, got {arguments.out}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        train(arguments)
    except L2CError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
