"""Caches on diffusers pipelines, with their schedulers as the clock."""

from l2c.pipelines.check import Drift, check
from l2c.pipelines.enable import disable_cache, enable_cache, summary
from l2c.pipelines.fit import fit_predictor
from l2c.pipelines.handle import PipelineCache
from l2c.pipelines.interval import interval
from l2c.pipelines.learn import learn
from l2c.pipelines.rehearsal import Rehearsal, rehearse
from l2c.pipelines.runs import describe_run
from l2c.pipelines.settings import FitSettings
from l2c.pipelines.summary import RunSummary

__all__ = [
    "Drift",
    "FitSettings",
    "PipelineCache",
    "Rehearsal",
    "RunSummary",
    "check",
    "describe_run",
    "disable_cache",
    "enable_cache",
    "fit_predictor",
    "interval",
    "learn",
    "rehearse",
    "summary",
]
