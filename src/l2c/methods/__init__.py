"""Caching methods: each a function that returns a `CacheSchedule`, one file per method."""

from l2c.methods.adaptive_guidance import adaptive_guidance
from l2c.methods.base import Method
from l2c.methods.bespoke import bespoke
from l2c.methods.budcache import budcache
from l2c.methods.deepcache import deepcache
from l2c.methods.delta_dit import delta_dit
from l2c.methods.dmd import dmd
from l2c.methods.dpcache import dpcache
from l2c.methods.faster_diffusion import faster_diffusion
from l2c.methods.fewer_steps import fewer_steps
from l2c.methods.foca import foca
from l2c.methods.fora import fora
from l2c.methods.interval import interval
from l2c.methods.l2c_paper import l2c_paper
from l2c.methods.learned import learned
from l2c.methods.neuralsolver import neuralsolver
from l2c.methods.published import import_router
from l2c.methods.registry import all_methods, find_method, register_method, schedule_for
from l2c.methods.smoothcache import smoothcache
from l2c.methods.spectrum import spectrum
from l2c.methods.taylorseer import taylorseer

__all__ = [
    "Method",
    "adaptive_guidance",
    "all_methods",
    "bespoke",
    "budcache",
    "deepcache",
    "delta_dit",
    "dmd",
    "dpcache",
    "faster_diffusion",
    "fewer_steps",
    "find_method",
    "foca",
    "fora",
    "import_router",
    "interval",
    "l2c_paper",
    "learned",
    "neuralsolver",
    "register_method",
    "schedule_for",
    "smoothcache",
    "spectrum",
    "taylorseer",
]
