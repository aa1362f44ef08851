"""Documents from outside: whole files of bounded size, read once by a declared schema into typed objects.

A schema is a type: a dataclass or a `TypedDict` whose annotations carry ranges and lengths, as `Count` and `Finite` do.
pydantic reads them, for it takes dataclasses as they are, checks lengths before it makes objects, and says of every
mistake where it is. What a schema has accepted needs no further checks.
"""

from __future__ import annotations

import os
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json, to_json

from l2c.errors import ConfigError, DataError, L2CError, Told, plain_text

MOST_BYTES = 2**26
"""Of a document, if nothing else is said."""
MOST_EVALUATIONS, MOST_LAYERS, MOST_CELLS = 4_000, 10_000, 500_000
"""Of a schedule, and of its mask: more than any run has, and little enough to be shown at once."""


def _whole(value: object) -> object:
    """Takes whole numbers of other libraries as such, and nothing that would have to be cut."""
    if hasattr(value, "__index__") and not isinstance(value, bool):
        with suppress(TypeError, ValueError):  # of a tensor of other numbers, or of several
            return value.__index__()
    return value


def _real(value: object) -> object:
    """Takes numbers of other libraries as such; text is none."""
    if hasattr(value, "__float__") and not isinstance(value, (bool, int)):
        with suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    return value


def _listed(value: object) -> object:
    """Takes ranges, tuples and arrays as lists; text is none."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def one_of(*names: str) -> AfterValidator:
    """Part of the annotation of a text that can only be one of a few names."""
    expected = f"one of {', '.join(names)}"

    def check(value: str) -> str:
        if value not in names:
            raise PydanticCustomError("one_of", "unknown", {"expected": expected})
        return value

    return AfterValidator(check)


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=2**31)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[list[str], BeforeValidator(_listed)]
Fraction = Annotated[Real, Field(gt=0, le=1)]
Share = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0)]
LearningRate = Annotated[Real, Field(gt=0, le=100)]
Macs = Annotated[int, Field(ge=0, le=2**62)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_Schema = TypeVar("_Schema")
_KIND = re.compile(r"[A-Z]\w*|str|int|float|bool|.*[\[(].*")  # which of several types was tried
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
_HINTS: dict[Any, dict[str, Any]] = {}
_STATES = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is unknown",
    "extra_forbidden": "is unknown",
}
_BOUNDS = {
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "multiple_of": "a multiple of",
    "expected": "",
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
    "none_required": "left out",
}


def read_file(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Everything in an ordinary file. Devices and named pipes, which may have no end, are none.

    Args:
        path: The file.
        most_bytes: How long it may be.

    Raises:
        OSError: If it cannot be read, is no ordinary file, or is longer.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "it is no ordinary file", str(path))
        if found.st_size > most_bytes:
            raise OSError(None, f"it has {found.st_size} bytes, more than {most_bytes}", str(path))
        content: bytes = file.read(most_bytes)
    return content


def existing(path: Path, what: str, advice: str, error: type[L2CError] = DataError) -> Path:
    """A path that is that of a file.

    Args:
        path: The path.
        what: What it is to be, for the sentence.
        advice: What to do about it.
        error: What to raise.

    Raises:
        L2CError: Of the class `error`, if there is no file.
    """
    if not path.is_file():
        raise error(f"there is no {what} {path}; {advice}")
    return path


def read_own_file(folder: Path, name: str, most_bytes: int = MOST_BYTES) -> bytes:
    """`read_file` of a file in a folder, or below it, that is really there: no link leads to it.

    Raises:
        OSError: See `read_file`; also if the name leads out of the folder, or over a link.
    """
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, name))  # noqa: PTH118
    if path != os.path.normpath(os.path.join(root, name)) or not path.startswith(root + os.sep):  # noqa: PTH118
        raise OSError(None, "it is not in the folder itself", name)
    return read_file(path, most_bytes)


def read_document(
    path: str | Path,
    schema: type[_Schema],
    error: type[L2CError] = DataError,
    advice: str = "",
    within: Path | None = None,
    what: str = "",
) -> _Schema:
    """Reads a JSON file.

    Args:
        path: The file.
        schema: What is in it.
        error: What to raise.
        advice: What to do about a mistake.
        within: Folder that it must really be in, see `read_own_file`.
        what: What is wrong with a file that does not fit, for the sentence: `is not a record`.

    Raises:
        L2CError: Of the class `error`, if it cannot be read, is too long, or is not of the schema.
    """
    with Told(error, _sentence(f"{path} cannot be read", "{said}", advice), OSError):
        content = read_file(path) if within is None else read_own_file(within, str(path))
    return parse(schema, content, f"{path} {what}".rstrip(), error, advice)


def parse(
    schema: type[_Schema], content: object, source: str, error: type[L2CError] = DataError, advice: str = ""
) -> _Schema:
    """Reads JSON, or plain data, into the objects of a schema.

    Args:
        schema: A class, dataclass or `TypedDict`.
        content: Bytes or text of JSON; anything else is plain data.
        source: Where it is from, for the sentence.
        error: What to raise.
        advice: What to do about a mistake.

    Raises:
        L2CError: Of the class `error`, with the field, what was got and what is wanted.
    """
    try:
        text = content if isinstance(content, (bytes, str)) else to_json(content, inf_nan_mode="constants")
        for place, value in _leaves(from_json(text, allow_inf_nan=True), ""):
            if isinstance(value, float) and not abs(value) < float("inf"):
                raise ValueError(f"{place} is {value}, expected a finite number")
        found: _Schema = _adapter_of(schema).validate_json(text, strict=True)
    except (
        ValueError,
        RecursionError,
    ) as problem:  # no JSON, nested too deeply, not finite, or not of the schema
        said = explain(problem) if isinstance(problem, ValidationError) else str(problem)
        raise error(_sentence(source, said, advice)) from problem
    return found


def check_fields(settings: Any, of: str = "") -> None:
    """Compares the values of a dataclass with its annotations, for its `__post_init__`.

    Args:
        settings: The dataclass.
        of: What its fields are of, to stand before their names.

    Raises:
        ConfigError: If one is of another type or out of its range.
    """
    hints = _hints_of(type(settings))
    for item in fields(settings):
        check_value(f"{of} {item.name}".strip(" _"), getattr(settings, item.name), hints[item.name])


def check_same(what: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares the settings of what a folder holds with those that are wanted.

    Raises:
        ConfigError: If some differ.
    """
    if differing := [name for name in wanted if there.get(name) != wanted[name]]:
        raise ConfigError(f"{what} with another {' and '.join(differing)}; choose another --out")


def check_value(name: str, value: object, wanted: Any) -> Any:
    """A value as its type says, with numbers of other libraries as Python's.

    Args:
        name: Of the argument.
        value: What was given.
        wanted: The type.

    Raises:
        ConfigError: If it is of another type or out of its range.
    """
    try:
        return _adapter_of(wanted).validate_python(value, strict=True)
    except ValidationError as problem:
        raise ConfigError(explain(problem, name)) from problem


def check_path(name: str, value: object) -> Path:
    """A name or a path, as a path.

    Args:
        name: Of the argument.
        value: What was given.

    Raises:
        ConfigError: If it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} must be a name or a path, got {reprlib.repr(value)}")
    return Path(value)


def explain(problem: ValidationError, name: str = "") -> str:
    """The deepest mistake that pydantic found, as part of a sentence: the field, what is wanted, and what was got.

    Of several types that were tried at one place, it is the mistake that a schema's own code has a sentence for.
    """
    mistake = max(
        problem.errors(include_url=False), key=lambda one: (len(one["loc"]), one["type"] == "value_error")
    )
    kind, bounds = mistake["type"], mistake.get("ctx", {})
    parts = [str(part) for part in mistake["loc"] if not _KIND.fullmatch(str(part))]
    place = ".".join([name, *parts] if name else parts)
    if isinstance(raised := bounds.get("error"), Exception):
        return f"{place}: {raised}" if place else str(raised)
    if kind in _STATES:
        return f"{place} {_STATES[kind]}"
    wanted = next(
        (f"{text} {bounds[bound]}".lstrip() for bound, text in _BOUNDS.items() if bound in bounds), None
    )
    wanted = wanted or _TYPES.get(kind)
    if wanted is None:
        return f"{place}: {mistake['msg']}" if place else str(mistake["msg"])
    return f"{place or 'it'} must be {wanted}, got {plain_text(reprlib.repr(mistake['input']))}"


def _sentence(source: str, problem: str, advice: str) -> str:
    return f"{source}: {problem}; {advice}" if advice else f"{source}: {problem}"


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for a writer, as named pipes would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value in plain data that holds no others, with where it is."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(part, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _adapter_of(schema: Any) -> TypeAdapter[Any]:
    if schema not in _ADAPTERS:
        _ADAPTERS[schema] = TypeAdapter(schema)
    return _ADAPTERS[schema]


def _hints_of(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind, include_extras=True)
    return _HINTS[kind]
