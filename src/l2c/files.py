"""Writing files so that an interrupted write leaves what was there before."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from l2c.errors import OutputError, Told, UndoneOnError

if sys.platform != "win32":
    import fcntl

_PARTIAL = ".l2c-partial"
_HEAD_BYTES = 2**16
_ADVICE = "choose another --out"
KINDS = {".safetensors": "schedule", ".json": "l2c.run-record", ".png": "PNG picture", ".html": "page"}
"""What commands write into a file of that name."""
_WEIGHTS = {
    b'"l2c.cache-schedule"': "schedule",
    b'"l2c.schedule-family"': "schedule",
    b'"l2c.model"': "model",
    b'"l2c.': "file of statistics",
    b'"seeds"': "file of latents",
}


def atomic_write(path: str | Path, data: bytes, advice: str = _ADVICE, *, replace: bool = False) -> None:
    """Writes a file whole or not at all, and never in the place of one of another kind.

    Args:
        path: Where to; folders on the way are made.
        data: Its content.
        advice: What to do if it cannot be written, for the message.
        replace: Whether it may take the place of a file of another kind, in a folder that is l2c's own.

    Raises:
        OutputError: If it cannot be written, or a file of another kind is there.
    """
    if not replace:
        check_kind(path, file_kind(data))
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
    lock: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        with os.fdopen(handle, "wb") as file:
            lock = _lock(handle)
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
    finally:
        if lock is not None:
            os.close(lock)


def _lock(handle: int) -> int | None:
    """Marks a file as being written until what is returned is closed, or the process has ended, however it ends."""
    if sys.platform == "win32":
        return None
    lock = os.dup(handle)
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _is_locked(path: Path) -> bool:
    """Whether a process is still writing a file, as far as can be told."""
    if sys.platform == "win32":
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def file_kind(head: bytes) -> str:
    """What a file is, by how it begins: weights, schedules, records, pictures and so on are told apart.

    >>> file_kind(b'{"format": "l2c.run-record"}'), file_kind(b"a line")
    ('l2c.run-record', 'text')
    """
    head = head[:_HEAD_BYTES]
    if head.startswith(b"\x89PNG"):
        return "PNG picture"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "archive"
    if head[8:9] == b"{" and b"\0" in head[:8]:  # safetensors: the length of a header, and the header
        for name, kind in _WEIGHTS.items():
            if name in head:
                return kind
        return "safetensors file"
    if head.lstrip()[:1] == b"{":
        return "l2c.run-record" if b'"l2c.run-record"' in head[:100] else "JSON document"
    return "page" if head[:9].lower() == b"<!doctype" else "text" if b"\0" not in head else "other"


def check_kind(path: str | Path, kind: str) -> None:
    """Refuses a place where a file of another kind is; an empty one is of any kind.

    Args:
        path: Where it is to be written.
        kind: Of what is to be written, see `file_kind`.

    Raises:
        OutputError: If it would replace something else.
    """
    path = Path(path)
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:
            there = file.read(_HEAD_BYTES)
    except OSError:
        return  # writing says what is wrong
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OutputError(f"{path} is a device or a named pipe; write to a file")
    if there and file_kind(there) != kind:
        raise OutputError(
            f"{path} is a {file_kind(there)}, which a {kind} must not replace; name another file, or move this one away"
        )


def same_file(first: str | Path, second: str | Path) -> bool:
    """Whether two paths, however they are spelled, are one file, be it there or not."""
    try:
        return os.path.realpath(first) == os.path.realpath(second) or Path(first).samefile(second)
    except (OSError, ValueError):
        return False


def remove_partial(path: str | Path) -> None:
    """Removes what killed writes of a file, or of any file in a folder, have left; what is being written stays."""
    path = Path(path)
    folder, name = (path, "*") if path.is_dir() else (path.parent, f"{glob.escape(path.name)}.*")
    for leftover in folder.glob(f".{name}{_PARTIAL}"):
        if not _is_locked(leftover):
            leftover.unlink(missing_ok=True)


def make_folder(path: str | Path) -> Path:
    """Creates a folder for results, checks that it can be written, and clears up after killed writes.

    Raises:
        OutputError: If it cannot be made or written.
    """
    path = Path(path)
    with Told(OutputError, f"cannot write to the folder {path}: {{said}}; {_ADVICE}", OSError):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        remove_partial(path)
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

    def undo() -> None:
        if not existed:
            with suppress(OSError):
                path.rmdir()  # only succeeds while it is empty

    with UndoneOnError(undo):
        yield path


def check_output_file(path: str | Path) -> None:
    """Checks that a file can be written, before any work is done, and leaves nothing behind, of killed writes either.

    Raises:
        OutputError: If it is a folder or a file of another kind, or if it or a folder on the way to it cannot be made.
    """
    path = Path(path)
    if path.suffix in KINDS:
        check_kind(path, KINDS[path.suffix])
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; choose a file name for --out")
    ancestor = path.parent
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    with Told(OutputError, f"cannot write {path}: {{said}}; {_ADVICE}", OSError):
        with tempfile.TemporaryFile(dir=ancestor):
            pass
        remove_partial(path)
