"""Caches on diffusers pipelines, with their schedulers as the clock."""

from l2c.hosts.pipeline.check import Drift, check
from l2c.hosts.pipeline.dry_run import DryRun, dry_run
from l2c.hosts.pipeline.enable import disable_cache, enable_cache, summary
from l2c.hosts.pipeline.fit import fit_predictor
from l2c.hosts.pipeline.handle import PipelineCache
from l2c.hosts.pipeline.interval import interval
from l2c.hosts.pipeline.learn import learn
from l2c.hosts.pipeline.runs import describe_run
from l2c.hosts.pipeline.settings import FitSettings
from l2c.hosts.pipeline.summary import RunSummary

__all__ = [
    "Drift",
    "DryRun",
    "FitSettings",
    "PipelineCache",
    "RunSummary",
    "check",
    "describe_run",
    "disable_cache",
    "dry_run",
    "enable_cache",
    "fit_predictor",
    "interval",
    "learn",
    "summary",
]
