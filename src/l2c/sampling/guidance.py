"""Classifier-free guidance, in one call of the model or in two."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from l2c.cache.branches import BOTH, BranchPolicy
from l2c.cache.clock import Clock
from l2c.documents import Count, Real, check_fields, one_of
from l2c.sampling.denoiser import Denoiser


@dataclass(frozen=True)
class Guidance:
    """How the conditional and the unconditional prediction are combined.

    Attributes:
        scale: 1 samples the condition alone, in one call of half the size.
        mode: `batch` makes one call with both halves, `split` one call for each. `split` needs half the memory
            and gives each its own branch of stored features.
        channels: Guide only the first channels and take the others from the conditional prediction, as DiT's
            published samples do with 3 of 4 latent channels. None guides all.

    Source: arXiv 2207.12598, equation 6, with scale = 1 + w.
    """

    scale: Annotated[Real, Field(ge=0)] = 1.5
    mode: Annotated[str, one_of("batch", "split")] = "batch"
    channels: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "guidance")

    @property
    def calls(self) -> int:
        """Calls of the model per evaluation."""
        return 2 if self.scale != 1 and self.mode == "split" else 1

    def call_size(self, batch_size: int) -> int:
        """Images in one call of the model for `batch_size` pictures."""
        return 2 * batch_size if self.scale != 1 and self.mode == "batch" else batch_size

    def predict(
        self,
        denoiser: Denoiser,
        x: Tensor,
        timestep: Tensor,
        labels: Tensor,
        clock: Clock | None = None,
        branches: BranchPolicy | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Guided prediction (B, C, H, W).

        Args:
            denoiser: The model.
            x: See `Denoiser`.
            timestep: See `Denoiser`.
            labels: See `Denoiser`.
            clock: Of the cache that is enabled.
            branches: Its policy, where each pass has rows of its own.
            scale: Scales (B, 1, 1, 1) of the pictures in place of the guidance's own; that must not be 1.
        """
        if branches is not None and clock is not None:
            return self._predict_apart(denoiser, x, timestep, labels, clock, branches, scale)
        if self.scale == 1:
            return denoiser(x, timestep, labels)
        null = torch.full_like(labels, denoiser.null_class)
        if self.mode == "batch":
            both = denoiser(torch.cat([x, x]), timestep, torch.cat([labels, null]))
            cond, uncond = both.chunk(2)
        else:
            with _branch(clock, "cond"):
                cond = denoiser(x, timestep, labels)
            with _branch(clock, "uncond"):
                uncond = denoiser(x, timestep, null)
        return self.combine(cond, uncond, scale)

    def _predict_apart(
        self,
        denoiser: Denoiser,
        x: Tensor,
        timestep: Tensor,
        labels: Tensor,
        clock: Clock,
        branches: BranchPolicy,
        scale: Tensor | None,
    ) -> Tensor:
        """The same where each pass has rows of its own: one call for both only where both compute the same."""
        if self.scale == 1:
            with clock.in_branch("cond"):
                return denoiser(x, timestep, labels)
        evaluation, null = clock.evaluation, torch.full_like(labels, denoiser.null_class)
        runs = branches.runs_unconditional(evaluation)
        uncond: Tensor | None = None
        if runs and self.mode == "batch" and branches.alike(evaluation):
            with clock.in_branch(BOTH):
                both = denoiser(torch.cat([x, x]), timestep, torch.cat([labels, null]))
            cond, uncond = both.chunk(2)
        else:
            with clock.in_branch("cond"):
                cond = denoiser(x, timestep, labels)
            if runs:
                with clock.in_branch("uncond"):
                    uncond = denoiser(x, timestep, null)
        difference = branches.difference(evaluation, None if uncond is None else cond - uncond)
        return self.combine(cond, cond - difference if uncond is None else uncond, scale)

    def combine(self, cond: Tensor, uncond: Tensor, scale: Tensor | None = None) -> Tensor:
        """Guided prediction from the conditional and the unconditional one, all (B, C, H, W).

        Args:
            cond: Conditional prediction.
            uncond: Unconditional prediction.
            scale: A tensor () or (B, 1, 1, 1) in place of the guidance's own scale.
        """
        guided = uncond + (self.scale if scale is None else scale) * (cond - uncond)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], cond[:, self.channels :]], dim=1)


def _branch(clock: Clock | None, name: str) -> AbstractContextManager[None]:
    return clock.in_branch(name) if clock is not None else nullcontext()
