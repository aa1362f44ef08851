"""Methods of objects covered by others for a while, and uncovered again exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

_MISSING = object()


class Shadow:
    """A method of one object, covered by an instance attribute.

    If something else covered it in the meantime, as offloading hooks do, it stays where it is and only passes calls
    on. A deep copy of the owner gets its class's own method back.

    Args:
        owner: The object.
        name: Name of the method.
        replacement: Called as `replacement(original, *args, **kwargs)`.
    """

    def __init__(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        self.owner, self.name = owner, name
        self._before = vars(owner).get(name, _MISSING)
        self._replacement: Callable[..., Any] | None = replacement
        functools.update_wrapper(self, getattr(owner, name), updated=())  # so that its signature is found
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the replacement, or after `remove` the original."""
        original: Callable[..., Any] = self.__dict__["__wrapped__"]
        if self._replacement is None:
            return original(*args, **kwargs)
        return self._replacement(original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo.get(id(self.owner))
        if twin is None:  # the method is copied without its owner
            return self.__dict__["__wrapped__"]
        if self._before is not _MISSING:
            return copy.deepcopy(self._before, memo)
        return MethodType(getattr(type(self.owner), self.name), twin)

    @property
    def uppermost(self) -> bool:
        """Whether nothing else has covered it."""
        return vars(self.owner).get(self.name) is self

    def remove(self) -> None:
        """Uncovers what was there before; doing it twice does nothing."""
        self._replacement = None
        if not self.uppermost:
            return
        if self._before is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self._before)
