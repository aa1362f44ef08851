"""Ctrl-C, and the signals that end a program like it, while something is being changed that must stay whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a program to end."""


class Interrupts:
    """Ctrl-C inside the `with` block: at once, or where it is held back, noted in `asked`.

    Without effect outside the main thread, and where the program has its own way with Ctrl-C. Other signals that the
    program treats as Ctrl-C, by `signal.default_int_handler`, are treated so here, too.

    Args:
        hold: Hold it back everywhere.
    """

    def __init__(self, hold: bool = False) -> None:
        self.asked = False
        self._hold = hold
        self._installed: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._installed = [s for s in ENDING if signal.getsignal(s) is signal.default_int_handler]
            for number in self._installed:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._installed:
            signal.signal(number, signal.default_int_handler)
        self._installed = []

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
