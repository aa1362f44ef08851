"""Writing files so that an interrupted write leaves what was there before."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from l2c.errors import OutputError

_PARTIAL = ".partial"
_ADVICE = "choose another --out"


def atomic_write(path: str | Path, data: bytes, advice: str = _ADVICE) -> None:
    """Writes a file whole or not at all.

    Args:
        path: Where to; folders on the way are made.
        data: Its content.
        advice: What to do if it cannot be written, for the message.

    Raises:
        OutputError: If it cannot be written.
    """
    with atomic_open(path, advice) as file:
        file.write(data)


@contextmanager
def atomic_open(path: str | Path, advice: str = _ADVICE) -> Iterator[BinaryIO]:
    """A file to write to bit by bit, which is there at the end of the block, or not at all if that fails.

    Args:
        path: Where to; folders on the way are made.
        advice: What to do if it cannot be written, for the message.

    Raises:
        OutputError: If it cannot be written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
        raise


def remove_partial(path: str | Path) -> None:
    """Removes what writes of a file left beside it that were killed in the middle."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        leftover.unlink(missing_ok=True)


def make_folder(path: str | Path) -> Path:
    """Creates a folder for results and checks that it can be written, before any work is done.

    Raises:
        OutputError: If it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another --out"
        ) from error
    return path


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """`make_folder` for the time of some work: if the work fails before it writes, a new folder goes again.

    Raises:
        OutputError: If it cannot be made or written.
    """
    path = Path(path)
    existed = path.exists()
    make_folder(path)
    try:
        yield path
    except BaseException:
        if not existed:
            with suppress(OSError):
                path.rmdir()  # only succeeds while it is empty
        raise


def check_output_file(path: str | Path) -> None:
    """Checks that a file can be written, before any work is done, and leaves nothing behind.

    Raises:
        OutputError: If it is a folder, or if it or a folder on the way to it cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; choose a file name for --out")
    ancestor = path.parent
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
