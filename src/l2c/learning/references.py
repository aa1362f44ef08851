"""What closed-loop learning comes close to: fine-step solutions of drawn examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.hosts.base import Examples, Host
from l2c.learning.settings import LearnSettings
from l2c.learning.trainer import Trainer


@dataclass(frozen=True)
class References:
    """Examples, and the solutions (B, ...) that runs of them come close to."""

    examples: Examples
    target: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, rows: Sequence[int] | slice) -> References:
        """Some of them."""
        chosen = rows if isinstance(rows, slice) else list(rows)
        return References(self.examples.rows(rows), self.target[chosen])


@torch.no_grad()
def solve(trainer: Trainer, host: Host, settings: LearnSettings) -> References:
    """References of so many examples as the settings say, held-out ones first.

    They are shared by the processes and kept in the checkpoint.

    Raises:
        NumericsError: If one of them is not finite.
        ConfigError: If the time is up before they are done.
    """
    key = (settings.seed, "pictures")
    examples = host.examples(settings.num_examples, *key, held_out=settings.num_held_out)
    size = round_size(trainer, host)
    target = trainer.compute(
        "fine-step solutions", host.reference(settings.reference_steps).sample, examples, size
    )
    return References(examples, target.to(host.device))


def round_size(trainer: Trainer, host: Host) -> int:
    """Examples that all processes together run at a time where no gradients are taken."""
    return 2 * trainer.settings.batch_size if host.batched else trainer.processes.count
