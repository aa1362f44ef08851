"""Where the program writes: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from l2c.errors import plain_text
from l2c.processes import is_main

if TYPE_CHECKING:
    from l2c.records import Record


class Interrupted(Exception):  # noqa: N818 (an interrupt is no error)
    """The user ended a command early, which had something to say about it."""


class PlainConsole(Console):
    """A console that shows text as it is: no markup in it, and nothing that moves a terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console`."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else plain_text(segment.text)
            yield Segment(text, segment.style, segment.control)


def results() -> Console:
    """Console on stdout."""
    return PlainConsole(highlight=False, markup=False)


def show(text: str) -> None:
    """Writes text to stdout."""
    print(plain_text(text))


def note(message: str) -> None:
    """Writes a line to stderr."""
    print(plain_text(message), file=sys.stderr)


def say(kind: str, message: str) -> None:
    """Writes one sentence to stderr: `l2c: error: ...`."""
    sentence = plain_text(" ".join(message.split()))
    print(f"l2c: {kind}: {sentence}", file=sys.stderr)


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Warnings meant for users appear like errors, without the line of code that raised them."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            say("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_json(data: Mapping[str, Any]) -> None:
    """Writes strict JSON to stdout; what is no number there, as NaN, is null."""
    strict = json.loads(json.dumps(data), parse_constant=lambda name: None)
    print(json.dumps(strict, indent=2, allow_nan=False))


def print_record(record: Record, file: Path | None, show: Callable[[Record], None], *, as_json: bool) -> None:
    """Shows a record, as JSON or as `show` does, and writes it into a file; in a folder it has been written already."""
    in_folder = file is not None and file.is_dir()
    if file is not None and not in_folder:
        record.save(file)
    if as_json:
        place = "folder" if in_folder else "file"
        print_json({place: None if file is None else str(file), **record.to_json()})
        return
    show(record)
    if file is not None and not in_folder:
        note(f"wrote {file}")


def table(first: str, *others: str, title: str | None = None, fold: bool = False) -> Table:
    """A table of figures: names on the left, all else to the right.

    Args:
        first: Head of the first column.
        others: Heads of the others.
        title: Above it.
        fold: Break what is too long for the first column, instead of cutting it off.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    made.add_column(first, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
    for name in others:
        made.add_column(name, justify="right", no_wrap=not fold)
    return made


def facts(rows: Mapping[str, str]) -> Table:
    """What there is to know, a line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for name, fact in rows.items():
        grid.add_row(name, Text(fact))
    return grid


def progress_bar(*extra: str) -> Progress:
    """A progress bar on stderr, if that is a terminal: title, bar, count, extra fields, and the time left.

    Args:
        extra: Names of task fields that are shown as they are.
    """
    console = PlainConsole(stderr=True, highlight=False, markup=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in extra),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and is_main()),
    )


def digits(value: float) -> str:
    """A number as people read it: three digits, without an exponent.

    >>> digits(1234.5), digits(12.345), digits(0.012345)
    ('1234', '12.3', '0.0123')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1e-4 else f"{value:.2g}"


def seconds(value: float) -> str:
    """Seconds for people.

    >>> seconds(0.1234), seconds(12.345), seconds(123.4)
    ('0.123 s', '12.3 s', '123 s')
    """
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def macs(value: float) -> str:
    """Multiply-accumulates with a unit.

    >>> macs(5.7197e12), macs(1.9e9)
    ('5.72 T', '1.90 G')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= 0.995 * size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def bar(fraction: float, width: int, encoding: str) -> str:
    """A horizontal bar of at most `width` characters, finer than a character where the terminal can.

    >>> bar(0.5, 4, "utf-8"), bar(0.5, 4, "ascii")
    ('██', '##')
    """
    if not encoding.lower().startswith("utf"):
        return "#" * round(fraction * width)
    eighths = round(fraction * width * 8)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
