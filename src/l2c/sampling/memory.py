"""How much memory stored values take, known before anything runs."""

from __future__ import annotations

from l2c.cache.cached_model import CachedModel
from l2c.cache.store import peak_bytes
from l2c.engine.graphs import held_elements, share_graphs
from l2c.layers import find_layers
from l2c.sampling.sampler import Sampler
from l2c.schedule.schedule import CacheSchedule


def store_bytes(cache: CachedModel, sampler: Sampler, batch_size: int) -> int:
    """Peak memory of the feature store in bytes while `sampler` samples `batch_size` images at a time."""
    guidance = sampler.guidance
    return cache.peak_store_bytes(guidance.call_size(batch_size), guidance.calls, sampler.denoiser.dtype)


def planned_store_bytes(sampler: Sampler, schedule: CacheSchedule | None, mode: str, batch_size: int) -> int:
    """Peak memory in bytes of what a schedule stores with an engine, known before anything runs.

    Args:
        sampler: Model and guidance.
        schedule: What is reused; None for nothing.
        mode: The engine, from `resolve_engine`. Captured runs hold values in fixed places, a little longer.
        batch_size: Pictures at a time.
    """
    if schedule is None:
        return 0
    denoiser, guidance = sampler.denoiser, sampler.guidance
    table, rows = find_layers(denoiser.model), guidance.call_size(batch_size)
    if mode != "graph":
        return peak_bytes(schedule.plan, table, rows, guidance.calls, denoiser.dtype)
    held = held_elements(share_graphs(schedule.plan, schedule.num_evaluations), table)
    return held * rows * guidance.calls * denoiser.dtype.itemsize
