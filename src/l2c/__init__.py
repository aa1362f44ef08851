"""Make diffusion transformers fast by learning which layers to compute at which evaluation.

The names below are loaded on first use, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2c import layers, methods, models, sampling, scenes, testing
    from l2c.bench.cost import measure_costs
    from l2c.bench.schedules import measure_schedules
    from l2c.cache.cached_model import CachedModel
    from l2c.cache.summary import RunSummary
    from l2c.errors import (
        CacheStateError,
        CheckpointError,
        ConfigError,
        ContractError,
        DataError,
        L2CError,
        NumericsError,
        OutputError,
        ScheduleError,
    )
    from l2c.evaluation.registry import all_metrics, register_metric, score_pairs
    from l2c.hosts.check import Drift, check
    from l2c.hosts.enable import disable_cache, enable_cache, summary
    from l2c.hosts.loading import load_target
    from l2c.hosts.pipeline.handle import PipelineCache
    from l2c.hosts.pipeline.learned_scheduler import LearnedScheduler
    from l2c.hosts.pipeline.loading import load_pipeline
    from l2c.hosts.targets import host_of
    from l2c.layers import register_adapter, register_blocks
    from l2c.learning.estimate import LearningEstimate, estimate_learning
    from l2c.learning.learn import learn, repair
    from l2c.learning.paper import RouterSettings
    from l2c.learning.session import Session
    from l2c.learning.settings import LearnSettings
    from l2c.methods.published import import_router
    from l2c.methods.registry import register_method
    from l2c.models import build_model, load_model
    from l2c.sampling.guidance import Guidance
    from l2c.sampling.images import sample
    from l2c.sampling.noise_schedule import FlowSchedule, NoiseSchedule, data_prediction
    from l2c.sampling.sampler import Sampler
    from l2c.sampling.solvers import register_solver, solver_names
    from l2c.schedule.contract import Contract, Run
    from l2c.schedule.cost import CostTable
    from l2c.schedule.family import ScheduleFamily
    from l2c.schedule.forecast import Predictor, register_predictor
    from l2c.schedule.open import load_schedule
    from l2c.schedule.schedule import CacheSchedule
    from l2c.sets import sample_set

__version__ = "0.2.0"

_HOMES = {
    "CacheSchedule": "l2c.schedule.schedule",
    "CacheStateError": "l2c.errors",
    "CachedModel": "l2c.cache.cached_model",
    "CheckpointError": "l2c.errors",
    "ConfigError": "l2c.errors",
    "Contract": "l2c.schedule.contract",
    "ContractError": "l2c.errors",
    "CostTable": "l2c.schedule.cost",
    "DataError": "l2c.errors",
    "Drift": "l2c.hosts.check",
    "FlowSchedule": "l2c.sampling.noise_schedule",
    "Guidance": "l2c.sampling.guidance",
    "L2CError": "l2c.errors",
    "LearnSettings": "l2c.learning.settings",
    "LearnedScheduler": "l2c.hosts.pipeline.learned_scheduler",
    "LearningEstimate": "l2c.learning.estimate",
    "NoiseSchedule": "l2c.sampling.noise_schedule",
    "NumericsError": "l2c.errors",
    "OutputError": "l2c.errors",
    "PipelineCache": "l2c.hosts.pipeline.handle",
    "Predictor": "l2c.schedule.forecast",
    "RouterSettings": "l2c.learning.paper",
    "Run": "l2c.schedule.contract",
    "RunSummary": "l2c.cache.summary",
    "Sampler": "l2c.sampling.sampler",
    "ScheduleError": "l2c.errors",
    "ScheduleFamily": "l2c.schedule.family",
    "Session": "l2c.learning.session",
    "all_metrics": "l2c.evaluation.registry",
    "build_model": "l2c.models",
    "check": "l2c.hosts.check",
    "data_prediction": "l2c.sampling.noise_schedule",
    "disable_cache": "l2c.hosts.enable",
    "enable_cache": "l2c.hosts.enable",
    "estimate_learning": "l2c.learning.estimate",
    "host_of": "l2c.hosts.targets",
    "import_router": "l2c.methods.published",
    "layers": "l2c.layers",
    "learn": "l2c.learning.learn",
    "load_model": "l2c.models",
    "load_pipeline": "l2c.hosts.pipeline.loading",
    "load_schedule": "l2c.schedule.open",
    "load_target": "l2c.hosts.loading",
    "measure_costs": "l2c.bench.cost",
    "measure_schedules": "l2c.bench.schedules",
    "methods": "l2c.methods",
    "models": "l2c.models",
    "register_adapter": "l2c.layers",
    "register_blocks": "l2c.layers",
    "register_method": "l2c.methods.registry",
    "register_metric": "l2c.evaluation.registry",
    "register_predictor": "l2c.schedule.forecast",
    "register_solver": "l2c.sampling.solvers",
    "repair": "l2c.learning.learn",
    "sample": "l2c.sampling.images",
    "sample_set": "l2c.sets",
    "sampling": "l2c.sampling",
    "scenes": "l2c.scenes",
    "score_pairs": "l2c.evaluation.registry",
    "solver_names": "l2c.sampling.solvers",
    "summary": "l2c.hosts.enable",
    "testing": "l2c.testing",
}

__all__ = [
    "CacheSchedule",
    "CacheStateError",
    "CachedModel",
    "CheckpointError",
    "ConfigError",
    "Contract",
    "ContractError",
    "CostTable",
    "DataError",
    "Drift",
    "FlowSchedule",
    "Guidance",
    "L2CError",
    "LearnSettings",
    "LearnedScheduler",
    "LearningEstimate",
    "NoiseSchedule",
    "NumericsError",
    "OutputError",
    "PipelineCache",
    "Predictor",
    "RouterSettings",
    "Run",
    "RunSummary",
    "Sampler",
    "ScheduleError",
    "ScheduleFamily",
    "Session",
    "all_metrics",
    "build_model",
    "check",
    "data_prediction",
    "disable_cache",
    "enable_cache",
    "estimate_learning",
    "host_of",
    "import_router",
    "layers",
    "learn",
    "load_model",
    "load_pipeline",
    "load_schedule",
    "load_target",
    "measure_costs",
    "measure_schedules",
    "methods",
    "models",
    "register_adapter",
    "register_blocks",
    "register_method",
    "register_metric",
    "register_predictor",
    "register_solver",
    "repair",
    "sample",
    "sample_set",
    "sampling",
    "scenes",
    "score_pairs",
    "solver_names",
    "summary",
    "testing",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'l2c' has no attribute '{name}'")
    module = importlib.import_module(home)
    value = module if home == f"l2c.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
