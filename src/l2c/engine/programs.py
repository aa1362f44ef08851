"""How a model is computed in pieces and matrix products, layer by layer.

A program takes over the loop over blocks from the model, and nothing else: weights, embeddings and the insides of
layers are the model's own. What depends on timestep and label alone is computed ahead, for many evaluations at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c.engine.pending import Pending, settle, settle_join, settle_modulate, settle_norm
from l2c.engine.pieces import Pieces
from l2c.errors import ConfigError
from l2c.models.dit import DiT
from l2c.models.uvit import UViT

Constants = tuple[Tensor, ...]
"""What depends on timestep and label alone: tensors (R, ...) for R images, at one evaluation."""


class EvaluationPolicy(Protocol):
    """Says at one evaluation, for each layer, what is forecast, and takes what was computed."""

    def forecast(self, layer: int) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
        """Stored values and their weights; None where the layer is computed."""
        ...

    def place(self, layer: int) -> Tensor | None:
        """Memory that the output of a computed layer is to be written to; None for any."""
        ...

    def keep(self, layer: int, value: Tensor) -> None:
        """Takes the output of a computed layer."""
        ...


class Program(Protocol):
    """A model in pieces.

    Attributes:
        token_shape: (T, D) of the residual stream.
    """

    token_shape: tuple[int, int]

    def constants(self, timesteps: Tensor, labels: Tensor) -> Constants:
        """For evaluations at `timesteps` (n,) and images of `labels` (R,): tensors (n, R, ...)."""
        ...

    def evaluate(self, x: Tensor, constants: Constants, policy: EvaluationPolicy) -> Tensor:
        """Prediction (R, C', H, W) for network inputs (R, C, H, W), with the constants of one evaluation."""
        ...


class _Stream:
    """The residual stream of one evaluation, and what waits to be added to it."""

    def __init__(self, pieces: Pieces, x: Tensor, policy: EvaluationPolicy) -> None:
        self.pieces, self.x, self.policy = pieces, x, policy
        self._pending: list[Pending] = []
        self._layer = -1

    def add(self, compute: Callable[[Tensor | None], Tensor], factor: Tensor | None = None) -> None:
        """Adds the next layer, by its forecast or, if `compute` must run, by its output.

        `compute` begins with `settled`, and writes to the place that it is given.
        """
        self._layer += 1
        forecast = self.policy.forecast(self._layer)
        if forecast is not None:
            if len(self._pending) == self.pieces.max_pending:
                self.x = self.pieces(settle, self.x, self._pending)
            self._pending.append(Pending(*forecast, factor))
            return
        value = compute(self.policy.place(self._layer))
        self.policy.keep(self._layer, value)
        self._pending.append(Pending((value,), None, factor))

    def settled(self, piece: Callable[..., Any], *rest: Any) -> Any:
        """Runs a piece that adds what is pending."""
        return self.pieces(piece, self.x, self._pending, *rest)

    def current(self) -> Tensor:
        """The stream with nothing pending."""
        if self._pending:
            self.x = self.pieces(settle, self.x, self._pending)
        return self.x


class DiTProgram:
    """`DiT` in pieces. All modulations are computed ahead."""

    def __init__(self, model: DiT, pieces: Pieces) -> None:
        self._model, self._pieces = weakref.ref(model), pieces
        self.token_shape = (model.config.num_tokens, model.config.hidden_size)

    def constants(self, timesteps: Tensor, labels: Tensor) -> Constants:
        """Modulations of all blocks (n, R, blocks, 6 * D), and of the final layer (n, R, 2 * D)."""
        n, rows = len(timesteps), len(labels)
        model: Any = _alive(self._model)
        c = model.condition(timesteps.repeat_interleave(rows), labels.repeat(n))
        blocks = torch.stack([block.modulation(c).view(n, rows, -1) for block in model.blocks], dim=2)
        return blocks, model.final_layer.adaLN_modulation(c).view(n, rows, -1)

    def evaluate(self, x: Tensor, constants: Constants, policy: EvaluationPolicy) -> Tensor:
        """See `Program.evaluate`."""
        model = _alive(self._model)
        modulations, final = constants
        tokens = _patch_tokens(model.x_embedder.proj, x.to(model.pos_embed.dtype)) + model.pos_embed
        stream = _Stream(self._pieces, tokens, policy)
        for block, modulation in zip(model.blocks, modulations.unbind(1), strict=True):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unsqueeze(1).chunk(6, dim=-1)

            def attend(
                place: Tensor | None, attn: Any = block.attn, shift: Tensor = shift_a, scale: Tensor = scale_a
            ) -> Tensor:
                stream.x, h = stream.settled(settle_modulate, shift, scale)
                return _into(place, attn.proj, attn.mix(h))

            def expand(
                place: Tensor | None, mlp: Any = block.mlp, shift: Tensor = shift_m, scale: Tensor = scale_m
            ) -> Tensor:
                stream.x, h = stream.settled(settle_modulate, shift, scale)
                return _into(place, mlp.fc2, _tanh_widen(mlp, h))

            stream.add(attend, gate_a)
            stream.add(expand, gate_m)
        shift, scale = final.unsqueeze(1).chunk(2, dim=-1)
        _, h = stream.settled(settle_modulate, shift, scale)
        return model.unpatchify(model.final_layer.linear(h))


class UViTProgram:
    """`UViT` in pieces. Timestep tokens are computed ahead."""

    def __init__(self, model: UViT, pieces: Pieces) -> None:
        self._model, self._pieces = weakref.ref(model), pieces
        self.token_shape = (model.config.num_tokens, model.config.hidden_size)

    def constants(self, timesteps: Tensor, labels: Tensor) -> Constants:
        """Label and timestep tokens (n, R, 2, D)."""
        n, rows = len(timesteps), len(labels)
        model = _alive(self._model)
        time = model.embed_time(timesteps)[:, None].expand(n, rows, -1)
        label = model.label_emb(labels)[None].expand(n, rows, -1)
        return (torch.stack([label, time], dim=2),)

    def evaluate(self, x: Tensor, constants: Constants, policy: EvaluationPolicy) -> Tensor:
        """See `Program.evaluate`."""
        model: Any = _alive(self._model)
        stream = _Stream(self._pieces, model.embed_patches(x, constants[0]), policy)

        def run(block: Any) -> None:
            def attend(place: Tensor | None) -> Tensor:
                norm, attn = block.norm1, block.attn
                stream.x, h = stream.settled(settle_norm, norm.weight, norm.bias, norm.eps)
                return _into(place, attn.proj, attn.mix(h))

            def expand(place: Tensor | None) -> Tensor:
                norm, mlp = block.norm2, block.mlp
                stream.x, h = stream.settled(settle_norm, norm.weight, norm.bias, norm.eps)
                return _into(place, mlp.fc2, mlp.widen(h))

            stream.add(attend)
            stream.add(expand)

        skips = []
        for block in model.in_blocks:
            run(block)
            skips.append(stream.current())
        run(model.mid_block)
        for block in model.out_blocks:
            stream.x = block.skip_linear(stream.settled(settle_join, skips.pop()))
            run(block)
        norm = model.norm
        _, h = stream.settled(settle_norm, norm.weight, norm.bias, norm.eps)
        return model.unpatchify(model.decoder_pred(h))  # type: ignore[no-any-return]


def _patch_tokens(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Tokens (B, T, D) of patches: the strided convolution as one matrix product, without changes of layout."""
    batch, channels, height, width = x.shape
    p = conv.kernel_size[0]
    patches = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
    return F.linear(patches.reshape(batch, -1, channels * p * p), conv.weight.flatten(1), conv.bias)


_Model = TypeVar("_Model", bound=nn.Module)


def _alive(model: weakref.ref[_Model]) -> _Model:
    found = model()
    assert found is not None, "whoever samples holds the model"
    return found


def _plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear map with bias that nothing has been put into or around, as LoRA does."""
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return False
    return linear.bias is not None and "forward" not in vars(linear)


def _into(place: Tensor | None, linear: nn.Module, h: Tensor) -> Tensor:
    """Output of a layer's last map, written to its place."""
    if place is None:
        return linear(h)  # type: ignore[no-any-return]
    if _plain(linear):
        torch.addmm(linear.bias, h.flatten(0, 1), linear.weight.t(), out=place.flatten(0, 1))
    else:
        place.copy_(linear(h))
    return place


def _tanh_widen(mlp: Any, h: Tensor) -> Tensor:
    """`Mlp.widen` of a DiT; on CUDA with bias and activation inside the matrix product."""
    if not (h.is_cuda and _plain(mlp.fc1)):
        return mlp.widen(h)  # type: ignore[no-any-return]
    inner = torch._addmm_activation(mlp.fc1.bias, h.flatten(0, 1), mlp.fc1.weight.t(), use_gelu=True)
    return inner.view(*h.shape[:2], -1)


_PROGRAMS: dict[type[nn.Module], Callable[[Any, Pieces], Program]] = {DiT: DiTProgram, UViT: UViTProgram}


def has_program(model: nn.Module) -> bool:
    """Whether there is a program for a model's class."""
    return type(model) in _PROGRAMS


def make_program(model: nn.Module, pieces: Pieces) -> Program:
    """The program of a model.

    Raises:
        ConfigError: If there is none for its class.
    """
    if not has_program(model):
        raise ConfigError(
            f"compiled engines run l2c's own DiT and UViT, not {type(model).__name__}; load the weights with "
            "l2c.load_model, or use the engine 'eager'"
        )
    return _PROGRAMS[type(model)](model, pieces)
