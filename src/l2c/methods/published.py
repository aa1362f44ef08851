"""Import of the router files that the authors of Learning-to-Cache published.

A file holds one row of logits per solver step, in an order of its own, and says little about the run it belongs
to. Here it becomes a schedule over model evaluations, for the run that it was learned for.

Source: arXiv 2406.01733 and the files released with it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.documents import check_path, existing
from l2c.errors import CheckpointError, ScheduleError, Told, check_finite
from l2c.layers import find_layers
from l2c.models.checkpoints import read_pickle
from l2c.models.config import NUM_TRAIN_TIMESTEPS
from l2c.models.sizes import model_config, new_model, resolve_name
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import Contract
from l2c.schedule.schedule import CacheSchedule, mask_of_scores

_ROW_KEY = re.compile(r"(\d{1,4})\.prob")


@dataclass(frozen=True)
class _Release:
    """How one kind of released file is to be read."""

    model: str
    solver: str
    threshold: float


def import_router(
    path: str | Path, threshold: float | None = None, model: str | None = None
) -> CacheSchedule:
    """Reads a released router file as a schedule.

    DiT files (a dictionary with `routers` and `args`) hold a row per DDIM step, row i for the i-th smallest
    timestep; even rows were learned, and the evaluations of odd rows compute everything. U-ViT files (a flat
    dictionary) hold a row per outer step of DPM-Solver singlestep; rows 1 and up decide the first evaluation of
    their outer step, which reuses what the midpoint evaluation before it stored.

    Args:
        path: The file.
        threshold: Scores above it compute. By default the released setting: 0.1 for DiT at 256 pixels, 0.9 at
            512 and for U-ViT.
        model: Name of the model, such as `dit-xl-2-256`; by default what the file says, or U-ViT-H/2 at 256
            pixels for a flat file of its width.

    Raises:
        ScheduleError: If the file is missing, damaged or not a router, or does not fit the model.
        ConfigError: If the threshold or the name of the model is not valid.
    """
    path = check_path("a router", path)
    content = _load(path)
    args = content.get("args")
    rows = _rows(path, content.get("routers", content))
    release = _dit_release(path, args, model) if "routers" in content else _uvit_release(path, rows, model)
    threshold = release.threshold if threshold is None else threshold
    with torch.device("meta"):
        network = new_model(model_config(release.model))
    table = find_layers(network)
    if rows.shape[1] != len(table):
        raise ScheduleError(
            f"{path} has {rows.shape[1]} layers per row but {release.model} has {len(table)}; "
            "name the model that the router was learned for (--model)"
        )
    sampler = Sampler(Denoiser.of(network), release.solver, len(rows))
    scores = _evaluation_scores(rows.sigmoid(), release.solver)
    run = replace(sampler.run, guidance=None)
    return CacheSchedule(
        compute=mask_of_scores(scores, threshold),
        layers=table,
        contract=Contract(run, model=release.model),
        scores=scores,
        provenance={"method": "l2c", "source": path.name, "threshold": threshold, **_settings(args)},
    )


def _evaluation_scores(rows: Tensor, solver: str) -> Tensor:
    """Scores per evaluation, NaN where everything computes; `rows` as they are in the file."""
    scores = torch.full_like(rows, torch.nan)
    if solver == "ddim":
        learned = rows.clone()
        learned[1::2] = torch.nan
        return learned.flip(0)  # sampling goes from the largest timestep to the smallest
    outer = torch.arange(1, len(rows) // 2)
    scores[2 * outer] = rows[outer]
    return scores


def _load(path: Path) -> dict[str, Any]:
    existing(path, "router file", "give the path of one", ScheduleError)
    with Told(ScheduleError, "{said}", CheckpointError):
        content = read_pickle(path)
    return content if isinstance(content, dict) else {}


def _rows(path: Path, routers: Any) -> Tensor:
    """Logits (rows, layers) in the order of their numbers."""
    found: dict[int, Tensor] = {}
    for key, value in routers.items() if isinstance(routers, dict) else ():
        match = _ROW_KEY.fullmatch(str(key))
        if match and isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point():
            found[int(match[1])] = value.float()
    complete = 2 <= len(found) <= NUM_TRAIN_TIMESTEPS and sorted(found) == list(range(len(found)))
    if not complete or len({len(row) for row in found.values()}) != 1:
        raise ScheduleError(
            f"{path} is not a router: it has no complete rows '0.prob', '1.prob', ... of one length and of 2 steps or "
            f"more, up to {NUM_TRAIN_TIMESTEPS}"
        )
    rows = torch.stack([found[i] for i in range(len(found))])
    check_finite(f"{path} has logits with", rows, error=ScheduleError)
    return rows


def _dit_release(path: Path, args: Any, model: str | None) -> _Release:
    resolution = getattr(args, "image_size", 256)
    if model is None:
        name = getattr(args, "model", None)
        if not isinstance(name, str):
            raise ScheduleError(f"{path} does not say which DiT it is for; name it (--model dit-xl-2-256)")
        model = f"{name}-{resolution}"
    return _Release(resolve_name(model), "ddim", 0.9 if "512" in model else 0.1)


def _uvit_release(path: Path, rows: Tensor, model: str | None) -> _Release:
    if model is None and rows.shape[1] != 58:
        raise ScheduleError(
            f"{path} has {rows.shape[1]} layers per row and does not say which U-ViT it is for; name it (--model)"
        )
    return _Release(resolve_name(model or "uvit-h-2-256"), "dpmsolver-singlestep", 0.9)


def _settings(args: Any) -> dict[str, Any]:
    """Learning settings that the file carries, where it does."""
    names = {
        "l1": "lambda",
        "lr": "learning_rate",
        "max_steps": "iterations",
        "global_batch_size": "batch_size",
    }
    found = {ours: getattr(args, theirs, None) for theirs, ours in names.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
