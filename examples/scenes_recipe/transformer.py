"""Flow matching: the transformer and the text encoders learn from latents and tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scenes_recipe.latents import LatentData
from scenes_recipe.muon import Muon
from scenes_recipe.networks import TextToLatents
from scenes_recipe.parallel import Workers
from scenes_recipe.state import Clock, fast_dtype, log_to_stderr, logger, lr_factor, read_state, write_state
from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

FILE, FINISHED_FILE = "transformer.pt", "transformer-finished.pt"
BATCH_SIZE = 32
"""Pictures in a step of one process."""

LEARNING_RATE = 1e-3
MUON_LEARNING_RATE = 4e-3
WARMUP_STEPS = 100
LABEL_DROPOUT = 0.1
TIME_MEAN, TIME_DEVIATION = 0.7, 1.3
"""Of the normal distribution whose sigmoid is the time. Objects are large beside latents, so that where they lie and
what colour they have is decided at high noise."""

OBJECT_WEIGHT = 3.0
PROBE_WEIGHT = 0.2
EMA_DECAY = 0.999
EMPTY_TOKENS = {0: 0.92, 32: 0.05, 256: 0.03}
"""How often how many empty vectors follow the prompt in the run that finishes: the pipeline adds 256 of them unless
told otherwise. They are slow, so that the runs before do without."""


class Training:
    """Weights in float32 with their average and optimisers, and a copy in the fastest type that computes.

    Args:
        workers: The processes of the run.
    """

    def __init__(self, workers: Workers) -> None:
        torch.manual_seed(0)
        self.workers = workers
        self.weights = TextToLatents()
        self.average = copy.deepcopy(self.weights).requires_grad_(False)
        self.model = copy.deepcopy(self.weights).to(fast_dtype()).train()
        matrices, others = split_parameters(self.weights)
        self.muon = Muon(matrices, workers)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        parts = {name: getattr(self, name).state_dict() for name in ("weights", "average", "muon", "adam")}
        return {**parts, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint."""
        for name in ("weights", "average", "muon", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        self.copy_to_model()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Brings the copy that computes up to date."""
        for copied, weight in zip(self.model.parameters(), self.weights.parameters(), strict=True):
            copied.copy_(weight)

    def update(
        self,
        latents: Tensor,
        tokens: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        num_empty: int,
        lr: float,
    ) -> tuple[float, float]:
        """Takes one step.

        Args:
            latents: Shape (B, 4, 16, 16).
            tokens: Shape (B, 20), some of them already those of no prompt.
            labels: Shape and colour at each patch, (B, 2, 8, 8).
            generator: For noise and times.
            num_empty: As for `TextToLatents`.
            lr: Factor on the learning rates.

        Returns:
            The weighted squared error of the velocity and the probe's cross entropy.
        """
        times = (TIME_MEAN + TIME_DEVIATION * torch.randn(len(latents), generator=generator)).sigmoid()
        noise = torch.randn(latents.shape, generator=generator)
        noisy = torch.lerp(latents, noise, times[:, None, None, None])
        self.model.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):  # at these lengths faster on a CPU than the fused one
            velocity, *logits = self.model(noisy.to(fast_dtype()), times, tokens, num_empty)
        errors = (velocity.float() - (noise - latents)).square()
        loss = (errors * object_weights(labels, times)).mean()
        probed = probe_loss(logits, labels, times)
        (loss + PROBE_WEIGHT * probed).backward()
        for weight, copied in zip(self.weights.parameters(), self.model.parameters(), strict=True):
            weight.grad = None if copied.grad is None else copied.grad.float()
        self.workers.average_gradients(self.weights.parameters())
        nn.utils.clip_grad_norm_([p for group in self.adam.param_groups for p in group["params"]], 1.0)
        for group in self.adam.param_groups:
            group["lr"] = LEARNING_RATE * lr
        self.adam.step()
        self.muon.step(MUON_LEARNING_RATE * lr)
        self.step += 1
        self.copy_to_model()
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.weights.parameters()), 1 - decay)
        return loss.item(), probed.item()


def object_weights(labels: Tensor, times: Tensor) -> Tensor:
    """Weights of errors, shape (B, 1, 16, 16): more on and beside objects, which are a small part of a picture.

    Only as far as there is little noise: where much is open, weights by what the picture turns out to be would make
    objects too likely.

    Args:
        labels: Shape (B, 2, 8, 8).
        times: Noise levels, shape (B,).
    """
    objects = nn.functional.max_pool2d((labels[:, :1] > 0).float(), 3, stride=1, padding=1)
    near = objects.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return 1 + OBJECT_WEIGHT * (1 - times)[:, None, None, None].square() * near


def probe_loss(logits: Sequence[Tensor], labels: Tensor, times: Tensor) -> Tensor:
    """Cross entropy of the probe, less where there is much noise: where objects will lie is open there.

    Args:
        logits: Of shapes and colours, (B, 64, classes).
        labels: Shape (B, 2, 8, 8).
        times: Noise levels, shape (B,).
    """
    return sum(
        (
            (1 - times)
            * nn.functional.cross_entropy(part.float().mT, target.flatten(1), reduction="none").mean(1)
        ).mean()
        for part, target in zip(logits, labels.unbind(1), strict=True)
    )


def split_parameters(model: TextToLatents) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices of the blocks' attention and MLPs, which Muon learns, and all other parameters that are used."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        hidden = ".attn." in name or ".ff" in name
        (matrices if hidden and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def train_transformer(workers: Workers, work: Path, minutes: float, finish: bool, rate: float = 1.0) -> None:
    """Train for some minutes, going on from the work folder's state.

    Args:
        workers: The processes of the run.
        work: The work folder.
        minutes: How long.
        finish: Let the learning rate fall to 0 over this run and save to a file of its own, so that training at the
            full rate can still go on from where this run began.
        rate: Share of the full rate to train at.
    """
    log_to_stderr()
    training, data = Training(workers), LatentData(work)
    target = work / (FINISHED_FILE if finish else FILE)
    source = work / FILE
    if source.exists():
        training.load_state_dict(read_state(source, "transformer"))
    no_prompt = new_tokenizer()(
        "", padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids
    clock, losses = Clock(minutes), []
    while True:
        progress, over, num_pictures = workers.agree(clock.progress, clock.over, len(data))
        if over:
            break
        shared = torch.Generator().manual_seed(training.step)
        empty = torch.multinomial(torch.tensor(list(EMPTY_TOKENS.values())), 1, generator=shared).item()
        num_empty = list(EMPTY_TOKENS)[int(empty)] if finish else 0
        generator = torch.Generator().manual_seed(1_000_003 * (1 + workers.rank) + training.step)
        latents, tokens, labels = data.batch(generator, BATCH_SIZE)
        tokens[torch.rand(BATCH_SIZE, generator=generator) < LABEL_DROPOUT] = no_prompt
        lr = rate * lr_factor(training.step, progress, WARMUP_STEPS, finish)
        losses.append(training.update(latents, tokens, labels, generator, num_empty, lr))
        if workers.leads and clock.log_due():
            logger.info(
                "transformer: step %d, %d pictures of %d, loss %.4f, probe %.4f, %.0f s",
                training.step, training.step * BATCH_SIZE * workers.number, num_pictures,
                *torch.tensor(losses).mean(0).tolist(), clock.elapsed_s,
            )  # fmt: skip
            losses.clear()
        if clock.save_due():
            data.refresh()
            if workers.leads:
                write_state(target, training.state_dict())
    if workers.leads:
        write_state(target, training.state_dict())
