"""How much memory stored values take, known before anything runs."""

from __future__ import annotations

import torch

from l2c.cache.cached_model import CachedModel
from l2c.cache.store import peak_bytes
from l2c.engine.graphs import held_elements, share_graphs
from l2c.layers import LayerTable
from l2c.sampling.sampler import Sampler
from l2c.schedule.branches import of_layers, passes_of
from l2c.schedule.schedule import CacheSchedule


def store_bytes(cache: CachedModel, sampler: Sampler, batch_size: int) -> int:
    """Peak memory of the feature store in bytes while `sampler` samples `batch_size` images at a time."""
    guidance = sampler.guidance
    return cache.peak_store_bytes(guidance.call_size(batch_size), guidance.calls, sampler.denoiser.dtype)


def planned_store_bytes(
    schedule: CacheSchedule | None, table: LayerTable, rows: int, calls: int, dtype: torch.dtype, mode: str
) -> int:
    """Peak memory in bytes of what a schedule stores with an engine, known before anything runs.

    Args:
        schedule: What is reused; None for nothing.
        table: The layers, with their sizes.
        rows: Of the batch in a call of the network.
        calls: In an evaluation.
        dtype: Of stored values.
        mode: The engine: `graph`, `compile` or `eager`. Captured runs hold values in fixed places, a little longer.
    """
    if schedule is None:
        return 0
    plan, passes = schedule.plan, passes_of(schedule.compute, len(table))
    if passes is not None:
        rows, calls = max(1, rows * calls // 2), 1  # a column is of one pass
    if mode == "eager":
        return peak_bytes(plan, table, rows, calls, dtype)
    plan = of_layers(plan, len(table))  # differences are not among what the engine stores
    if mode != "graph":
        return peak_bytes(plan, table, rows, calls, dtype)
    held = held_elements(share_graphs(plan, schedule.num_evaluations, passes), table)
    return held * rows * calls * dtype.itemsize
