"""Caching methods: each a function that returns a `CacheSchedule`, one file per method."""

from l2c.methods.interval import interval
from l2c.methods.published import import_router

__all__ = ["import_router", "interval"]
