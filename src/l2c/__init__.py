"""Make diffusion transformers fast by learning which layers to compute at which evaluation.

The names below are loaded on first use, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2c import methods
    from l2c.cache.predictors import Predictor
    from l2c.cache.runtime import CachedModel, disable_cache, enable_cache
    from l2c.cache.schedule import CacheSchedule
    from l2c.learning.end_to_end import PredictorSettings, fit_predictor
    from l2c.learning.learn import LearnSettings, learn
    from l2c.learning.session import Session
    from l2c.methods.published import import_router
    from l2c.models import build_model, load_model
    from l2c.sampling.sampler import Sampler, sample

__version__ = "0.1.0"

_HOMES = {
    "CacheSchedule": "l2c.cache.schedule",
    "CachedModel": "l2c.cache.runtime",
    "LearnSettings": "l2c.learning.learn",
    "Predictor": "l2c.cache.predictors",
    "PredictorSettings": "l2c.learning.end_to_end",
    "Sampler": "l2c.sampling.sampler",
    "Session": "l2c.learning.session",
    "build_model": "l2c.models",
    "disable_cache": "l2c.cache.runtime",
    "enable_cache": "l2c.cache.runtime",
    "fit_predictor": "l2c.learning.end_to_end",
    "import_router": "l2c.methods.published",
    "learn": "l2c.learning.learn",
    "load_model": "l2c.models",
    "methods": "l2c.methods",
    "sample": "l2c.sampling.sampler",
}

__all__ = [
    "CacheSchedule",
    "CachedModel",
    "LearnSettings",
    "Predictor",
    "PredictorSettings",
    "Sampler",
    "Session",
    "build_model",
    "disable_cache",
    "enable_cache",
    "fit_predictor",
    "import_router",
    "learn",
    "load_model",
    "methods",
    "sample",
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
