"""Whatever other libraries change on a pipeline or model while they are enabled, undone exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_REGISTRY = "_diffusers_hook"
"""Attribute of a module that holds diffusers' hooks."""


@contextmanager
def restored(*targets: Any) -> Iterator[None]:
    """Gives back to pipelines and models, all their modules and their classes, the attributes that they have now.

    Weights are not copied: what changes values in place is not undone.

    Args:
        targets: Pipelines or models.
    """
    owners = {id(owner): owner for target in targets for owner in _owners(target)}
    classes = {cls: dict(vars(cls)) for cls in {type(owner) for owner in owners.values()}}
    saved = [(owner, _copied(vars(owner))) for owner in owners.values()]
    try:
        yield
    finally:
        for owner, attributes in saved:
            _restore(vars(owner), attributes)
        for cls, before in classes.items():
            now = dict(vars(cls))
            for name in now.keys() - before.keys():
                delattr(cls, name)
            for name, value in before.items():
                if name not in now or now[name] is not value:
                    setattr(cls, name, value)


def _owners(target: Any) -> Iterator[Any]:
    """A pipeline or model, its modules, and the registries of their hooks."""
    yield target
    for part in (target, *getattr(target, "components", {}).values()):
        for module in part.modules() if isinstance(part, nn.Module) else ():
            yield module
            if _REGISTRY in vars(module):
                yield vars(module)[_REGISTRY]


def _copied(attributes: MutableMapping[str, Any]) -> dict[str, tuple[Any, list[Any] | None]]:
    """Attributes, with the contents of those that are plain dictionaries or lists: hooks, submodules."""
    return {name: (value, _contents(value)) for name, value in attributes.items()}


def _contents(value: Any) -> list[Any] | None:
    if type(value) in (dict, OrderedDict):
        return [part for item in value.items() for part in item]
    return list(value) if type(value) is list else None


def _restore(now: MutableMapping[str, Any], before: dict[str, tuple[Any, list[Any] | None]]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, (value, contents) in before.items():
        if name not in now or now[name] is not value:
            now[name] = value
        if contents is None or list(map(id, _contents(value) or ())) == list(map(id, contents)):
            continue
        if isinstance(value, list):
            value[:] = contents
        else:
            value.clear()
            value.update(zip(contents[::2], contents[1::2], strict=True))
