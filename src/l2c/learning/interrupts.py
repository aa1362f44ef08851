"""Ctrl-C while something is being changed that must stay whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Interrupts:
    """Ctrl-C inside the `with` block: at once, or where it is held back, noted in `asked`.

    Without effect outside the main thread, and where the program has its own way with Ctrl-C.

    Args:
        hold: Hold it back everywhere.
    """

    def __init__(self, hold: bool = False) -> None:
        self.asked = False
        self._hold = hold
        self._installed = False

    def __enter__(self) -> Interrupts:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def _note(self, *_: Any) -> None:
        self.asked = True
        if not self._hold:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Holds Ctrl-C back from here on."""
        self._hold = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds Ctrl-C back until the end of the block.

        Raises:
            KeyboardInterrupt: At the end, if there was one and it is not held back outside, too.
        """
        held, self._hold = self._hold, True
        try:
            yield
        finally:
            self._hold = held
        if self.asked and not held:
            raise KeyboardInterrupt
