"""FreqCa: one forecast of the last block's tokens, low frequencies repeated, high ones continued.

A frequency is a sum over tokens, so that low and high ones need weights of their own on the same stored values; a
schedule has one weight for a value, and knows layers and not what they add up to. So this is no schedule, but a cache
that is enabled on the transformers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from l2c.cache.values import Blank, Value, copy_value
from l2c.compare.diffusers_caches import SampleBatch
from l2c.documents import Count, Whole, check_fields
from l2c.errors import ConfigError, Told
from l2c.hosts.base import Host
from l2c.methods.base import blocks_of
from l2c.methods.taylorseer import derivatives

CUTOFF = 0.1
"""Of the largest frequency, up to which frequencies are low."""
SCALE = 0.71
"""Of distances, in the Hermite polynomials."""


@dataclass(frozen=True)
class FreqCaSettings:
    """Settings of FreqCa.

    Attributes:
        interval: Evaluations from one that computes to the next.
        first: Evaluations at the beginning that compute.
        order: Of the forecast of high frequencies, lower while fewer values have been computed.
        transform: `dct`, over the rows and columns of a square of tokens, or `fft`, over their sequence.
    """

    interval: Count = 6
    first: Count = 3
    order: Annotated[Whole, Field(ge=0, le=6)] = 2
    transform: Literal["dct", "fft"] = "dct"

    def __post_init__(self) -> None:
        check_fields(self)

    def computes(self, evaluation: int) -> bool:
        """Whether everything is computed at an evaluation."""
        return evaluation < self.first or (evaluation - self.first + 1) % self.interval == 0


@contextmanager
def freqca(host: Host, settings: Mapping[str, Any]) -> Iterator[SampleBatch]:
    """FreqCa on the transformers of a host; who enables it restores the models.

    Args:
        host: A pipeline, or a model that is diffusers' DiT.
        settings: See `FreqCaSettings`.

    Raises:
        ConfigError: If a setting is unknown or out of range.

    Source: Liu et al., arXiv 2510.08669, and the released code for FLUX.1.
    """
    with Told(ConfigError, "FreqCa does not take these settings ({said})", TypeError):
        chosen = FreqCaSettings(**settings)
    paths = [host.table.layers[block[0]].module_path.rpartition(".")[0] for block in blocks_of(host.table)]
    calls = host.rows_and_calls[1]
    stacks = [
        _Stack(model, [model.get_submodule(path) for path in dict.fromkeys(paths)], calls, chosen)
        for model in host.models.values()
    ]

    def run(sample: Callable[[], Tensor]) -> Tensor:
        for stack in stacks:
            stack.begin()
        return sample()

    yield run


class _Stack:
    """The blocks of a transformer: all computed, or none, and the last one's tokens forecast.

    Args:
        model: The transformer.
        blocks: Its blocks, in the order in which they run.
        calls: Calls of the model in an evaluation, each with stored values of its own.
        settings: What is computed, and how the rest is forecast.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], calls: int, settings: FreqCaSettings
    ) -> None:
        self._calls, self._settings = calls, settings
        self.begin()
        model.register_forward_pre_hook(self._enter)
        for block in blocks:
            block.forward = self._around(block.forward, is_last=block is blocks[-1])

    def begin(self) -> None:
        """Begins a run, from nothing."""
        self._count = -1
        self._values: dict[int, list[tuple[int, Value]]] = {}

    def _enter(self, *_: object) -> None:
        self._count += 1

    def _around(self, forward: Callable[..., Any], *, is_last: bool) -> Callable[..., Any]:
        blanks: dict[int, Blank] = {}

        def call(*arguments: Any, **options: Any) -> Any:
            evaluation, branch = divmod(self._count, self._calls)
            if not self._settings.computes(evaluation):
                return self._forecast(evaluation, branch) if is_last else blanks[branch].zeros()
            value = forward(*arguments, **options)
            if is_last:
                past = self._values.setdefault(branch, [])
                past.append((evaluation, copy_value(value)))
                del past[: -(self._settings.order + 1)]
            else:
                blanks.setdefault(branch, Blank()).note(value)
            return value

        return call

    def _forecast(self, evaluation: int, branch: int) -> Value:
        """What the last block would put out; of several tensors, the last are the tokens of the picture."""
        settings = self._settings
        past = [one for one in self._values[branch] if one[0] >= settings.first - 2]
        weights = hermite_weights(evaluation, [at for at, _ in past], settings.order)
        latest = past[-1][1]
        if isinstance(latest, Tensor):
            return blend(
                [value for _, value in past if isinstance(value, Tensor)], weights, settings.transform
            )
        tokens = [value[-1] for _, value in past if not isinstance(value, Tensor)]
        made = blend([one for one in tokens if one is not None], weights, settings.transform)
        return (*latest[:-1], made)


def hermite_weights(target: int, computed: Sequence[int], order: int) -> list[float]:
    """Weights of computed values in the forecast of high frequencies at an evaluation.

    Args:
        target: The evaluation.
        computed: Evaluations of the values, rising.
        order: Of the highest difference.

    Returns:
        One for each value, the earliest first.

    >>> [round(weight, 4) for weight in hermite_weights(8, [5, 7], order=1)]
    [-0.5041, 1.5041]
    """
    used = list(computed[-(order + 1) :])
    ahead = SCALE * (target - used[-1])
    polynomials = [1.0, 2 * ahead]
    for k in range(2, order + 1):
        polynomials.append(2 * ahead * polynomials[-1] - 2 * (k - 1) * polynomials[-2])
    terms = [
        factor * polynomials[k] * SCALE**k / math.factorial(k) for k, factor in enumerate(derivatives(used))
    ]
    weights: list[float] = torch.stack(terms).sum(dim=0).tolist()
    return [0.0] * (len(computed) - len(used)) + weights


def blend(values: Sequence[Tensor], weights: Sequence[float], transform: str) -> Tensor:
    """Low frequencies of the last value, and high ones of the weighted sum.

    Args:
        values: Tokens (B, T, D) at computed evaluations, the latest last.
        weights: Of the values.
        transform: See `FreqCaSettings`.
    """
    latest = values[-1].float()
    total = sum((weight * value.float() for weight, value in zip(weights, values, strict=True)), latest * 0)
    made: Tensor = total + low_frequencies(latest - total, transform)
    return made.to(values[-1].dtype)


def low_frequencies(tokens: Tensor, transform: str) -> Tensor:
    """What is left of tokens (B, T, D) without their high frequencies, float32.

    Raises:
        ConfigError: If a square of tokens is needed and there is none.
    """
    batch, count, width = tokens.shape
    if transform == "fft":
        frequencies = torch.fft.fftfreq(count, device=tokens.device).abs()
        low = frequencies <= CUTOFF * frequencies.max()
        kept = torch.fft.fft(tokens.float(), dim=1) * low[:, None]
        slow: Tensor = torch.fft.ifft(kept, dim=1).real
        return slow
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(f"the transform dct needs a square of tokens, got {count} of them; take fft")
    basis = _cosines(side, tokens.device)
    places = torch.arange(side, device=tokens.device)
    radius = (places[:, None] ** 2 + places**2).sqrt()
    square = tokens.float().reshape(batch, side, side, width)
    spectrum = torch.einsum("ui,vj,bijd->buvd", basis, basis, square)
    kept = spectrum * (radius <= CUTOFF * radius.max())[..., None]
    low_only: Tensor = torch.einsum("ui,vj,buvd->bijd", basis, basis, kept).reshape(batch, count, width)
    return low_only


def _cosines(size: int, device: torch.device) -> Tensor:
    """The orthonormal matrix (size, size) of the discrete cosine transform."""
    places = torch.arange(size, device=device)
    table = torch.cos(math.pi / size * (places + 0.5) * places[:, None]) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table
