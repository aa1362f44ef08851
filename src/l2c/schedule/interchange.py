"""A schedule as plain data, for servers and programs that do not have this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from l2c.layers import LayerTable
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import ReusePlan

INTERCHANGE = "l2c.interchange"
INTERCHANGE_VERSION = 1


class _Interchanged(Protocol):
    """What is told of a schedule; see `CacheSchedule`."""

    @property
    def compute(self) -> Tensor: ...

    @property
    def layers(self) -> LayerTable: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def plan(self) -> ReusePlan: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...


def interchange(schedule: _Interchanged) -> dict[str, Any]:
    """The schedule as JSON types; every field is described in docs/interchange.md."""
    run, contract, compute = schedule.contract.run, schedule.contract, schedule.compute
    reused = [
        {
            "evaluation": evaluation,
            "layer": layer,
            "sources": [source for source, _ in terms],
            "weights": [float(weight) for _, weight in terms],
        }
        for (evaluation, layer), terms in sorted(schedule.plan.items())
    ]
    return {
        "format": INTERCHANGE,
        "version": INTERCHANGE_VERSION,
        "architecture": schedule.layers.architecture,
        "layers": [{"name": layer.name, "kind": layer.kind} for layer in schedule.layers.layers],
        "run": {
            "solver": run.solver,
            "steps": run.steps,
            "options": run.spacing,
            "timesteps": list(run.timesteps),
            "log_snrs": list(run.log_snrs),
            "guidance": run.guidance,
            "guidance_range": None if run.guidance_range is None else list(run.guidance_range),
            "guidance_degree": run.guidance_degree,
            "call": {name: list(v) if isinstance(v, tuple) else v for name, v in run.call},
            "solver_weights": None if run.weights is None else [list(row) for row in run.weights],
        },
        "contract": {
            "model": contract.model,
            "prediction_type": contract.prediction_type,
            "fingerprint": list(contract.fingerprint),
        },
        "full_evaluations": [index for index, row in enumerate(compute.tolist()) if all(row)],
        "compute": ["".join("01"[cell] for cell in row) for row in compute.tolist()],
        "reused": reused,
        "provenance": dict(schedule.provenance),
    }
