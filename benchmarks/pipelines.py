"""What a schedule saves in seconds on the real sizes of FLUX.1-dev and PixArt, with random weights.

    python benchmarks/pipelines.py --model flux-dev --steps 28 --compile blocks --out results/pipelines-flux-dev.json

The transformer and its scheduler's loop are timed, without text encoders and decoder: uncached, and with the whole
network at every second evaluation, in turn in one process. `--compile` compiles first: `blocks` each class of blocks
once for each of its variants, `whole` the transformer for each kind of evaluation, `overhead` the same with CUDA graphs
(`mode="reduce-overhead"`). `graph` replays the cached transformer's calls as CUDA graphs (`engine="graph"`); what is
captured lasts as long as the cache is enabled, so all uncached runs come first there. The record holds how many graphs
the compiler made and how long the first, compiling or capturing runs took, every raw time, the share of the
multiply-accumulates that is left, and the peak memory of the device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import l2c
from l2c.bench.timing import Timing, interleave
from l2c.errors import L2CError
from l2c.hosts.pipeline.runs import describe_run
from l2c.layers import find_layers, measure_layers
from l2c.records import Record, describe_device
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule


@dataclass(frozen=True)
class Size:
    """A transformer and what it is called with.

    Attributes:
        class_name: Its class in diffusers.
        config: Its configuration.
        shape: Shape of its input for one image.
        conditions: Shapes of everything else, for one image, by name.
        scheduler: Class of its scheduler in diffusers.
    """

    class_name: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    conditions: dict[str, tuple[int, ...]]
    scheduler: str = "FlowMatchEulerDiscreteScheduler"


FLUX = {"guidance_embeds": True}
SIZES = {
    "flux-dev": Size(
        "FluxTransformer2DModel",
        FLUX,
        (4096, 64),
        {"encoder_hidden_states": (512, 4096), "pooled_projections": (768,), "guidance": ()},
    ),
    "pixart": Size(
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "use_additional_conditions": False},
        (4, 128, 128),
        {"encoder_hidden_states": (120, 4096)},
        "DPMSolverMultistepScheduler",
    ),
    "flux-tiny": Size(
        "FluxTransformer2DModel",
        {
            **FLUX,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (2, 2, 4),
        },
        (16, 4),
        {"encoder_hidden_states": (5, 16), "pooled_projections": (16,), "guidance": ()},
    ),
}


def build(size: Size, device: str, dtype: torch.dtype) -> nn.Module:
    """The transformer with random weights, frozen."""
    import diffusers

    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model: nn.Module = getattr(diffusers, size.class_name)(**size.config)
        finally:
            torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def conditions(size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the model is called with besides samples and timestep, for one image."""
    given: dict[str, Any] = {
        name: torch.randn((1, *shape), device=device, dtype=dtype) for name, shape in size.conditions.items()
    }
    if "Flux" in size.class_name:
        words = size.conditions["encoder_hidden_states"][0]
        given["img_ids"] = torch.zeros(size.shape[0], 3, device=device)
        given["txt_ids"] = torch.zeros(words, 3, device=device)
    else:
        given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return given


class Loop:
    """A transformer in its scheduler's loop."""

    def __init__(
        self, size: Size, steps: int, device: str, dtype: torch.dtype, engine: str = "eager"
    ) -> None:
        import diffusers

        self.steps, self.device, self.dtype = steps, device, dtype
        self.model, self.given = build(size, device, dtype), conditions(size, device, dtype)
        self.noise = torch.randn((1, *size.shape), device=device, dtype=dtype)
        self.scheduler = getattr(diffusers, size.scheduler)()
        self.schedule = self._schedule()
        self.engine, self.cache = engine, None

    @torch.no_grad()
    def _schedule(self) -> CacheSchedule:
        self.scheduler.set_timesteps(self.steps)
        now = torch.ones(1, device=self.device, dtype=self.dtype)
        call = {"hidden_states": self.noise, "timestep": now, **self.given}
        table, _ = measure_layers(self.model, find_layers(self.model), (), call)
        compute = torch.zeros(self.steps, len(table), dtype=torch.bool)
        compute[::2] = True
        return CacheSchedule(compute, table, Contract(describe_run(self.scheduler)), Predictor("taylor", 1))

    @torch.no_grad()
    def sample(self) -> Tensor:
        """One picture's latents."""
        self.scheduler.set_timesteps(self.steps, device=self.device)
        x = self.noise
        for t in self.scheduler.timesteps:
            now = t.expand(1).to(self.dtype)
            predicted = self.model(hidden_states=x, timestep=now, return_dict=False, **self.given)[0]
            x = self.scheduler.step(predicted[:, : x.shape[1]], t, x, return_dict=False)[0]
        return x

    def cached(self) -> Tensor:
        """The same with the schedule; enabling and disabling counts too, but for graphs, which stay enabled."""
        how = {"scheduler": self.scheduler, "engine": self.engine}
        if self.engine == "graph":
            self.cache = self.cache or l2c.enable_cache(self.model, self.schedule, **how)
            return self.sample()
        with l2c.enable_cache(self.model, self.schedule, **how):
            return self.sample()


def measure(
    name: str, steps: int, repetitions: int, device: str, dtype: torch.dtype, compiled: str | None
) -> Record:
    """Times both ways of sampling against each other; `compiled` is `blocks`, `whole`, `overhead`, `graph` or None."""
    loop = Loop(SIZES[name], steps, device, dtype, "graph" if compiled == "graph" else "eager")
    if compiled == "blocks":
        for block in repeated_blocks(loop.model):
            block.compile(fullgraph=True)
    elif compiled in ("whole", "overhead"):
        loop.model.compile(fullgraph=True, mode="reduce-overhead" if compiled == "overhead" else None)
    variants: dict[str, Callable[[], object]] = {"uncached": loop.sample, "cached": loop.cached}
    firsts: dict[str, dict[str, float]] = {}
    peaks: dict[str, int | None] = {}
    timings: dict[str, Timing] = {}
    for turn in [{name: run} for name, run in variants.items()] if compiled == "graph" else [variants]:
        firsts |= {variant: first_run(run) for variant, run in turn.items()} if compiled else {}
        peaks |= {variant: peak_bytes(run, device) for variant, run in turn.items()}
        timings |= interleave(turn, repetitions)
    ratios = [a / b for a, b in zip(timings["uncached"].seconds, timings["cached"].seconds, strict=True)]
    return Record(
        command="benchmarks/pipelines.py",
        config={"model": name, "steps": steps, "dtype": str(dtype), "compiled": compiled},
        timings={variant: list(timing.seconds) for variant, timing in timings.items()},
        results={
            "macs_fraction": loop.schedule.cost.fraction,
            "peak_bytes": peaks,
            "first_runs": firsts,
            "speedup": statistics.median(ratios),
            "speedup_min": min(ratios),
            "speedup_max": max(ratios),
        },
        device=describe_device(device),
    )


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer; diffusers' `compile_repeated_blocks` knows them for some classes only."""
    return [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]


def first_run(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of a first run and the number of graphs that the compiler made in it."""
    from torch._dynamo.utils import counters

    before, start = counters["stats"]["unique_graphs"], time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "graphs": counters["stats"]["unique_graphs"] - before}


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """Peak memory of the device in a run; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return int(torch.cuda.max_memory_allocated(device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=sorted(SIZES), default="flux-dev")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compile", choices=("blocks", "whole", "overhead", "graph"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        record = measure(
            options.model,
            options.steps,
            options.repetitions,
            options.device,
            getattr(torch, options.dtype),
            options.compile,
        )
        record.save(options.out)
    except L2CError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    made = record.results
    print(f"{made['speedup']:.2f} times as fast at {made['macs_fraction']:.0%} of the multiply-accumulates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
