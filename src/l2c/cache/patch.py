"""Methods of objects covered by others for a while, and uncovered again exactly."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

from l2c.errors import CacheStateError

_MISSING = object()


def not_taken_along(how: str, owner: Any) -> CacheStateError:
    """The error where something with a cache on it is copied or pickled."""
    return CacheStateError(
        f"what a cache is enabled on is not {how} (here {type(owner).__name__}); call l2c.disable_cache first, or save "
        "weights with save_pretrained or state_dict"
    )


class MethodPatch:
    """A method of one object, covered by an instance attribute.

    If something else covered it in the meantime, as offloading hooks do, it stays where it is and only passes calls
    on. A deep copy of the owner does what its class's own method does.

    What is forecast the attribute is a bound method with the signature of what it covers. Compilers guard the code of
    such a method, which all patches share, but the identity of any other object: so what was compiled under one patch
    serves under all.

    Args:
        owner: The object.
        name: Name of the method.
        replacement: Called as `replacement(original, *args, **kwargs)`; None only passes calls on.
    """

    def __init__(self, owner: Any, name: str, replacement: Callable[..., Any] | None) -> None:
        self.owner, self.name = owner, name
        self._before = vars(owner).get(name, _MISSING)
        self._original: Callable[..., Any] = getattr(owner, name)
        self.replacement = replacement
        setattr(owner, name, self._method())

    def _method(self) -> MethodType:
        def call(patch: MethodPatch, *args: Any, **kwargs: Any) -> Any:
            original, replacement = patch._original, patch.replacement
            return (
                original(*args, **kwargs) if replacement is None else replacement(original, *args, **kwargs)
            )

        original = self._original
        if isinstance(original, MethodType):
            functools.update_wrapper(call, original.__func__, updated=())  # so that its signature is found
        else:
            signature = inspect.signature(original)
            first = inspect.Parameter("patch", inspect.Parameter.POSITIONAL_ONLY)
            call.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
        return MethodType(call, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodPatch:
        twin = object.__new__(MethodPatch)
        vars(twin).update(vars(self))
        twin.replacement = None
        owner = memo.get(id(self.owner))
        if owner is None:  # the method is copied without its owner
            return twin
        twin.owner = owner
        if self._before is _MISSING:
            twin._original = MethodType(getattr(type(self.owner), self.name), owner)
        else:
            twin._original = twin._before = copy.deepcopy(self._before, memo)
        return twin

    def __reduce__(self) -> NoReturn:
        raise not_taken_along("pickled", self.owner)

    @property
    def uppermost(self) -> bool:
        """Whether nothing else has covered it."""
        return patch_of(vars(self.owner).get(self.name)) is self

    def remove(self) -> None:
        """Uncovers what was there before; doing it twice does nothing."""
        self.replacement = None
        if not self.uppermost:
            return
        if self._before is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self._before)


def patch_of(method: Any) -> MethodPatch | None:
    """The patch behind a method, if it is covered."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, MethodPatch) else None


def covered(method: Any) -> Any:
    """What is under a method that is covered, and any other method itself."""
    while (patch := patch_of(method)) is not None:
        method = patch._original
    return method
