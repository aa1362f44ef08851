"""Memory of sampling and learning on large transformers at their real sizes, without weights and without a device.

    python benchmarks/large_memory.py [--out results/large-memory.json]

The transformers are on PyTorch's meta device, where tensors have sizes and no numbers, and run the code of diffusers
and of the cache as they do elsewhere: two evaluations with gradients, of which the second reuses every layer, with one
value for each forecast. What is then alive is what each pair of evaluations keeps, in bfloat16; attention counts as its
fused kernels keep it. A test holds this to what is measured on small models with numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from l2c.cache.policy import compute_once
from l2c.errors import L2CError
from l2c.hosts.pipeline.handle import PipelineCache
from l2c.hosts.pipeline.runs import describe_run
from l2c.layers import find_layers, measure_layers
from l2c.learning.memory import AliveBytes
from l2c.learning.recompute import again_in_backward
from l2c.records import Record, describe_device
from l2c.schedule.contract import Contract
from l2c.schedule.schedule import CacheSchedule

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9


@dataclass(frozen=True)
class Size:
    """A transformer and what it is called with.

    Attributes:
        class_name: Its class in diffusers.
        config: Its configuration.
        shape: Shape of its input for one picture.
        given: Everything else that it is called with, for so many rows.
        rows: Of a call.
        calls: Per evaluation.
        evaluations: Of a run.
        transformers: How many a pipeline has.
    """

    class_name: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    given: Callable[[int], dict[str, Any]]
    rows: int
    calls: int
    evaluations: int
    transformers: int = 1


def flux(rows: int) -> dict[str, Any]:
    """What FLUX.1-dev is called with for 1024 pixels."""
    return {
        "encoder_hidden_states": torch.empty(rows, 512, 4096),
        "pooled_projections": torch.empty(rows, 768),
        "guidance": torch.empty(rows),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
    }


def sd3(rows: int) -> dict[str, Any]:
    """What Stable Diffusion 3.5 large is called with."""
    return {
        "encoder_hidden_states": torch.empty(rows, 333, 4096),
        "pooled_projections": torch.empty(rows, 2048),
    }


def qwen(rows: int) -> dict[str, Any]:
    """What Qwen-Image is called with for 1024 pixels."""
    return {"encoder_hidden_states": torch.empty(rows, 512, 3584), "img_shapes": [[(1, 64, 64)]] * rows}


def wan(rows: int) -> dict[str, Any]:
    """What Wan 2.2 is called with."""
    return {"encoder_hidden_states": torch.empty(rows, 512, 4096)}


LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "sample_size": 128}
SIZES = {
    "FLUX.1-dev, 1024 pixels": Size(
        "FluxTransformer2DModel", {"guidance_embeds": True}, (4096, 64), flux, 1, 1, 28
    ),
    "Stable Diffusion 3.5 large, 1024 pixels": Size(
        "SD3Transformer2DModel",
        {**LARGE, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
        (16, 128, 128),
        sd3,
        2,
        1,
        28,
    ),
    "Qwen-Image, 1024 pixels": Size("QwenImageTransformer2DModel", {}, (4096, 64), qwen, 1, 2, 50),
    "Wan 2.2 14B, 81 frames of 832x480": Size(
        "WanTransformer3DModel", {}, (16, 21, 60, 104), wan, 1, 2, 40, 2
    ),
}


class FusedAttention(torch.autograd.Function):
    """Keeps what fused kernels do: queries, keys, values, the result, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The shape of the result."""
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(
            query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return result


@contextmanager
def on_meta() -> Iterator[None]:
    """Makes tensors without numbers, in bfloat16."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return FusedAttention.apply(query, key, value)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with (
            torch.device("meta"),
            mock.patch("torch.nn.functional.scaled_dot_product_attention", attention),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def kept_by_a_pair(model: nn.Module, call: dict[str, Any], recompute: bool | str) -> int:
    """Bytes that two evaluations keep for the backward pass, of which the second reuses every layer.

    Args:
        model: A transformer of diffusers, frozen.
        call: What it is called with, but for the timestep.
        recompute: See `LearnSettings`.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2, device="cpu")
    noise = call["hidden_states"]

    def predict(x: Tensor, time: Tensor) -> Tensor:
        now = torch.full((len(x),), float(time), device=x.device)
        predicted: Tensor = model(**{**call, "hidden_states": x}, timestep=now, return_dict=False)[0]
        return predicted[:, : x.shape[1]]

    with torch.no_grad():
        now = torch.ones(len(noise), device=noise.device)
        table, _ = measure_layers(model, find_layers(model), (), {**call, "timestep": now})
    compute = torch.ones(2, len(table), dtype=torch.bool, device="cpu")
    compute[1] = False
    schedule = CacheSchedule(compute, table, Contract(describe_run(scheduler)))
    around = again_in_backward if recompute is True else compute_once
    models, whole = {"transformer": model}, recompute == "evaluations"
    weights = torch.ones(len(table), device=noise.device, requires_grad=True)
    with PipelineCache(
        model, scheduler, models, {"transformer": schedule}, quiet=True, around=around, recompute=whole
    ) as cache:
        cache.use({(1, layer): ((0, weights[layer]),) for layer in range(len(table))})
        scheduler.set_timesteps(2, device="cpu")
        with AliveBytes() as alive:
            x = noise.detach().requires_grad_()  # as after evaluations with forecasts
            for time in scheduler.timesteps:
                x = scheduler.step(predict(x, time), time, x, return_dict=False)[0]
        return alive.nbytes


def kept_by_one(model: nn.Module, call: dict[str, Any]) -> int:
    """Bytes that one call keeps for its backward pass, with everything computed and nothing computed again."""
    noise = call["hidden_states"].detach().requires_grad_()
    now = torch.ones(len(noise), device=noise.device)
    with AliveBytes() as alive:
        made = model(**{**call, "hidden_states": noise}, timestep=now, return_dict=False)[0]
    return alive.nbytes - made.nbytes


def work_out(size: Size) -> dict[str, float]:
    """Gigabytes of weights, of sampling and of learning with each option; every second evaluation is computed."""
    import diffusers

    with on_meta():
        model = getattr(diffusers, size.class_name)(**size.config).eval().requires_grad_(False).to("meta")
        call = {"hidden_states": torch.empty(size.rows, *size.shape), **size.given(size.rows)}
        pairs = {how: kept_by_a_pair(model, call, how) for how in (False, True, "evaluations")}
        one = kept_by_one(model, call)
    weights = size.transformers * sum(parameter.nbytes for parameter in model.parameters())
    values = size.calls * (pairs["evaluations"] - 2 * call["hidden_states"].nbytes)
    nothing, layers, evaluations = (size.evaluations // 2 * size.calls * kept for kept in pairs.values())
    found = {
        "weights": weights,
        "values": values,
        "one call": one,
        "sampling": weights + values,
        "nothing": weights + nothing,
        "layers": weights + layers,
        "evaluations": weights + evaluations + one,
        "offload": weights + values + one,
        "offload, on the CPU": evaluations,
    }
    return {name: round(count / GB, 1) for name, count in found.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """The figures for docs/large-models.md."""
    heads = ("weights", "values", "one call", "sampling", "`False`", "`True`", '`"evaluations"`')
    lines = [f'| GB | {" | ".join(heads)} | `"offload"`, and on the CPU |', "|---" * (len(heads) + 2) + "|"]
    for name, found in results.items():
        *figures, resting = (f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in found.values())
        lines.append(f"| {name} | {' | '.join(figures)}, {resting} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Works the figures out, prints them and writes the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results/large-memory.json")
    options = parser.parse_args(arguments)
    results = {name: work_out(size) for name, size in SIZES.items()}
    print(table(results))
    config = {"dtype": "bfloat16", "evaluations": {name: size.evaluations for name, size in SIZES.items()}}
    try:
        Record("benchmarks/large_memory.py", config, results=results, device=describe_device("cpu")).save(
            options.out
        )
    except L2CError as error:
        print(f"large_memory: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
