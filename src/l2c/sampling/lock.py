"""Calls on one model from several threads take turns: while it samples, a model holds the state of one run."""

from __future__ import annotations

import threading
import weakref
from contextlib import AbstractContextManager

from torch import nn

_locks: weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = weakref.WeakKeyDictionary()


def model_lock(model: nn.Module) -> AbstractContextManager[bool]:
    """A context that one thread at a time is in, for each model; a thread may enter it again."""
    return _locks.setdefault(model, threading.RLock())
