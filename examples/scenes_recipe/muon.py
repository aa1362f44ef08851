"""Muon: for the matrices of a transformer's blocks, momentum that is made orthogonal before it is applied."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from scenes_recipe.parallel import Workers
from scenes_recipe.state import fast_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Singular values of a stack of matrices, shape (N, rows, columns), to about 1.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): Newton-Schulz iteration.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(fast_dtype())
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """The optimiser for the matrices of transformer blocks; each process does its part of the matrices.

    Updates have the size of AdamW's, so its learning rates and weight decay fit.

    Args:
        parameters: Matrices.
        workers: The processes of the run.
        momentum: Of the running mean of gradients.
        weight_decay: Decoupled, times the learning rate.

    Source:
        Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982), for the size of updates.
    """

    def __init__(
        self, parameters: list[Tensor], workers: Workers, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self.parameters, self._workers = parameters, workers
        self._momentum, self._weight_decay = momentum, weight_decay
        self.buffers = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Takes one step with the gradients, which are the same in all processes."""
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for index, (parameter, buffer) in enumerate(zip(self.parameters, self.buffers, strict=True)):
            assert parameter.grad is not None
            buffer.lerp_(parameter.grad, 1 - self._momentum)
            groups[parameter.shape].append(index)
        for shape, indices in groups.items():
            share = -(-len(indices) // self._workers.number)
            mine = indices[self._workers.rank * share :][:share]
            updates = torch.zeros(share, *shape)
            if mine:
                momenta = [
                    self.parameters[i].grad.lerp(self.buffers[i], self._momentum) for i in mine
                ]  # Nesterov's
                updates[: len(mine)] = orthogonalise(torch.stack(momenta))
            scale = 0.2 * max(shape) ** 0.5 * lr
            for index, update in zip(indices, self._workers.gather(updates), strict=False):
                self.parameters[index].mul_(1 - lr * self._weight_decay).sub_(update, alpha=scale)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Momentum, for a checkpoint."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Takes up the momentum of a checkpoint."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
