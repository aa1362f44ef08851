"""What the C library does with memory that the process has freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SETTINGS = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 32 * 2**20}
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for the process, for programs that sample on a CPU.

    A run frees and takes the same megabytes thousands of times. By default glibc may give them back to the system each
    time, depending on what lies behind them, and the system has to find and clear every page anew: up to a
    quarter of a run, in one process and not in the next. Blocks up to 32 MB are kept, the most that glibc allows.

    Returns:
        Whether the C library took it: False where it is another one, or the environment says what it is to do.

    Source:
        mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    if any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.items())
