"""What the parts of an evaluation cost in milliseconds, measured on a device at a shape."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from l2c.bench.timing import synchronize
from l2c.cache.cost import CostTable
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.sampler import Sampler, seeded_noise


@torch.no_grad()
def measure_costs(sampler: Sampler, batch_size: int = 1, repetitions: int = 15) -> CostTable:
    """Milliseconds of every layer and of the rest of one guided evaluation, medians.

    Layers are timed one by one inside whole evaluations, then scaled so that together with the rest, which is timed
    in evaluations that call no layer, they make up the time of an evaluation without any timing in it.

    Args:
        sampler: The model and its guidance.
        batch_size: Pictures at a time.
        repetitions: Evaluations of each kind.

    Raises:
        ConfigError: If batch size or repetitions are less than 1.
    """
    if batch_size < 1 or repetitions < 1:
        raise ConfigError(
            f"batch size and repetitions must be at least 1, got {batch_size} and {repetitions}"
        )
    denoiser = sampler.denoiser
    table = find_layers(denoiser.model)
    modules = [denoiser.model.get_submodule(layer.module_path) for layer in table.layers]
    x = seeded_noise(range(batch_size), denoiser.sample_shape).to(denoiser.device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=denoiser.device)
    timestep = torch.tensor(500.0, device=denoiser.device)

    def evaluate() -> float:
        synchronize()
        began = time.perf_counter()
        sampler.guidance.predict(denoiser, x, timestep, labels)
        synchronize()
        return 1e3 * (time.perf_counter() - began)

    evaluate()
    whole, rest, layers = [], [], defaultdict(list)
    for _ in range(repetitions):
        whole.append(evaluate())
        with _Stopwatch(modules) as stopwatch:
            evaluate()
        for index, taken in stopwatch.taken.items():
            layers[index].append(taken)
        with _Replay(modules, stopwatch.outputs):
            rest.append(evaluate())
    medians = [statistics.median(layers[index]) for index in range(len(modules))]
    rest_ms = statistics.median(rest)
    scale = (statistics.median(whole) - rest_ms) / sum(medians)
    return CostTable("ms", tuple(scale * taken for taken in medians), rest_ms)


class _Stopwatch:
    """Times every call of some modules, and keeps what they put out."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._handles: list[Any] = []
        self._began = 0.0
        self.taken: dict[int, float] = defaultdict(float)
        self.outputs: dict[int, list[Any]] = defaultdict(list)

    def __enter__(self) -> _Stopwatch:
        for index, module in enumerate(self._modules):
            self._handles.append(module.register_forward_pre_hook(self._start))
            self._handles.append(module.register_forward_hook(self._stop(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: object) -> None:
        synchronize()
        self._began = time.perf_counter()

    def _stop(self, index: int) -> Any:
        def stop(_module: nn.Module, _inputs: object, output: Any) -> None:
            synchronize()
            self.taken[index] += 1e3 * (time.perf_counter() - self._began)
            self.outputs[index].append(output)

        return stop


class _Replay:
    """Modules that put out what they put out before, without computing."""

    def __init__(self, modules: list[nn.Module], outputs: dict[int, list[Any]]) -> None:
        self._modules, self._outputs = modules, outputs
        self._replaced: list[Any] = []

    def __enter__(self) -> None:
        for index, module in enumerate(self._modules):
            replay = iter(self._outputs[index])
            self._replaced.append(module.__dict__.get("forward"))
            module.forward = lambda *_, replay=replay, **__: next(replay)

    def __exit__(self, *_: object) -> None:
        for module, replaced in zip(self._modules, self._replaced, strict=True):
            del module.__dict__["forward"]
            if replaced is not None:
                module.forward = replaced
