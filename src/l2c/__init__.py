"""Make diffusion transformers fast by learning which layers to compute at which evaluation.

The names below are loaded on first use, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2c import layers, methods, models, sampling, testing
    from l2c.bench.cost import measure_costs
    from l2c.cache.cached_model import CachedModel
    from l2c.hosts.pipeline.anything import learn
    from l2c.hosts.pipeline.check import check
    from l2c.hosts.enable import disable_cache, enable_cache, summary
    from l2c.hosts.pipeline.handle import PipelineCache
    from l2c.hosts.pipeline.loading import load_pipeline
    from l2c.learning.end_to_end import LearnSettings, fit_predictor
    from l2c.learning.learn import learn_family
    from l2c.learning.paper import RouterSettings, learn_router
    from l2c.learning.session import Session
    from l2c.learning.solver import learn_solver
    from l2c.methods.published import import_router
    from l2c.models import build_model, load_model
    from l2c.sampling.images import sample
    from l2c.sampling.sampler import Sampler
    from l2c.schedule.cost import CostTable
    from l2c.schedule.family import ScheduleFamily
    from l2c.schedule.forecast import Predictor
    from l2c.schedule.open import load_schedule
    from l2c.schedule.schedule import CacheSchedule

__version__ = "0.1.0"

_HOMES = {
    "CacheSchedule": "l2c.schedule.schedule",
    "CachedModel": "l2c.cache.cached_model",
    "CostTable": "l2c.schedule.cost",
    "LearnSettings": "l2c.learning.end_to_end",
    "PipelineCache": "l2c.hosts.pipeline.handle",
    "Predictor": "l2c.schedule.forecast",
    "RouterSettings": "l2c.learning.paper",
    "Sampler": "l2c.sampling.sampler",
    "ScheduleFamily": "l2c.schedule.family",
    "Session": "l2c.learning.session",
    "build_model": "l2c.models",
    "check": "l2c.hosts.pipeline.check",
    "disable_cache": "l2c.hosts.enable",
    "enable_cache": "l2c.hosts.enable",
    "fit_predictor": "l2c.learning.end_to_end",
    "import_router": "l2c.methods.published",
    "layers": "l2c.layers",
    "learn": "l2c.hosts.pipeline.anything",
    "learn_family": "l2c.learning.learn",
    "learn_router": "l2c.learning.paper",
    "learn_solver": "l2c.learning.solver",
    "load_model": "l2c.models",
    "load_pipeline": "l2c.hosts.pipeline.loading",
    "load_schedule": "l2c.schedule.open",
    "measure_costs": "l2c.bench.cost",
    "methods": "l2c.methods",
    "models": "l2c.models",
    "sample": "l2c.sampling.images",
    "sampling": "l2c.sampling",
    "summary": "l2c.hosts.enable",
    "testing": "l2c.testing",
}

__all__ = [
    "CacheSchedule",
    "CachedModel",
    "CostTable",
    "LearnSettings",
    "PipelineCache",
    "Predictor",
    "RouterSettings",
    "Sampler",
    "ScheduleFamily",
    "Session",
    "build_model",
    "check",
    "disable_cache",
    "enable_cache",
    "fit_predictor",
    "import_router",
    "layers",
    "learn",
    "learn_family",
    "learn_router",
    "learn_solver",
    "load_model",
    "load_pipeline",
    "load_schedule",
    "measure_costs",
    "methods",
    "models",
    "sample",
    "sampling",
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
