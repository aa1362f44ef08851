"""The autoencoder: 64x64 pictures to latents of shape (4, 16, 16)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from l2c.scenes import draw_pictures, random_scenes
from scenes_recipe.parallel import Workers
from scenes_recipe.state import Clock, fast_dtype, log_to_stderr, logger, lr_factor, read_state, write_state

FILE = "autoencoder.pt"
LATENTS_FOLDER = "latents"
BATCH_SIZE = 4
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
EDGE_WEIGHT = 0.5
KL_WEIGHT = 6e-4
COLOUR_WEIGHT = 5.0
DECODER_NOISE = 0.25
"""Largest noise on latents, by their own deviation, while the decoder alone learns: it gets used to latents that are
not quite an encoder's."""


def new_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder: three resolutions of 16, 32 and 64 channels, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def new_optimizer(model: AutoencoderKL) -> torch.optim.AdamW:
    """The optimiser before its first step."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3)


def load_autoencoder(work: Path) -> AutoencoderKL:
    """The autoencoder that the stage left in the work folder, with the scale and shift of its latents."""
    state = read_state(work / FILE, "autoencoder")
    model = new_autoencoder()
    model.load_state_dict(state["model"])
    model.register_to_config(**measure_latents(model))
    return model.eval()


def edge_loss(error: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels of an error, shape (B, 3, H, W): blur costs."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def colour_weights(pictures: Tensor) -> Tensor:
    """Weights of pixels, shape (B, 1, H, W): coloured objects are small, and their colour is what counts."""
    chroma = pictures.amax(1, keepdim=True) - pictures.amin(1, keepdim=True)  # 0 to 2
    return 1 + COLOUR_WEIGHT * chroma / 2


@torch.no_grad()
def measure_latents(model: AutoencoderKL) -> dict[str, float]:
    """The `scaling_factor` and `shift_factor` with which latents have mean 0 and deviation 1."""
    pictures = 2 * draw_pictures(random_scenes(1, 128), seed=1) - 1
    means = model.encode(pictures).latent_dist.mean
    return {"scaling_factor": round(1 / means.std().item(), 4), "shift_factor": round(means.mean().item(), 4)}


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, num_pictures: int = 128) -> float:
    """Peak signal-to-noise ratio in dB of pictures that training does not draw."""
    pictures = 2 * draw_pictures(random_scenes(2, num_pictures, held_out=True), seed=2) - 1
    decoded = model.decode(model.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    return float(-10 * ((decoded - pictures) / 2).square().mean().log10())


def train_autoencoder(workers: Workers, work: Path, minutes: float, finish: bool) -> None:
    """Train for some minutes, going on from the work folder's state.

    Absolute error and its edges, and a KL term that keeps latents smooth. Once latents are written, the encoder stays
    as it is and only the decoder learns, from latents with noise on them.
    """
    log_to_stderr()
    path = work / FILE
    torch.manual_seed(workers.rank)
    model = new_autoencoder()
    decoder_only = (work / LATENTS_FOLDER).exists()
    model.encoder.requires_grad_(not decoder_only)
    noise = DECODER_NOISE if decoder_only else 0.0
    optimizer = new_optimizer(model)
    step = 0
    if path.exists():
        state = read_state(path, "autoencoder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    clock, losses = Clock(minutes), []
    while True:
        progress, over = workers.agree(clock.progress, clock.over)
        if over:
            break
        seed = 1_000_000 + step * workers.number + workers.rank
        pictures = 2 * draw_pictures(random_scenes(seed, BATCH_SIZE), seed) - 1
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * lr_factor(step, progress, WARMUP_STEPS, finish, decay_from=0.5)
        with torch.autocast("cpu", enabled=fast_dtype() == torch.bfloat16):
            posterior = model.encode(pictures).latent_dist
            latents = posterior.sample()
            strength = noise * torch.rand(len(latents), 1, 1, 1) * posterior.mean.std()
            decoded = model.decode(latents + strength * torch.randn_like(latents)).sample
        error = decoded.float() - pictures
        distance = error.abs().mean()
        weighted = error * colour_weights(pictures)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = weighted.abs().mean() + EDGE_WEIGHT * edge_loss(weighted) + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        workers.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append((distance.item(), kl.item()))
        if not workers.leads:
            continue
        if clock.log_due():
            mean = torch.tensor(losses).mean(0)
            logger.info(
                "autoencoder: step %d, absolute error %.4f, KL %.2f nats per value, %.0f s",
                step, *mean.tolist(), clock.elapsed_s,
            )  # fmt: skip
            losses.clear()
        if clock.save_due():
            write_state(
                path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            )
    if workers.leads:
        logger.info("autoencoder: %.1f dB after %d steps", reconstruction_psnr(model.eval()), step)
