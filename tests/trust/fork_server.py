"""Runs `l2c` in forks of a process that has imported everything, and harms each at one of its file operations.

It reads an order of JSON from every line of stdin. One with `arguments` starts a run and answers with its process; one
with `wait` answers with the exit code of a process, negative for a signal.

What a run leaves on the disk changes by file operations alone: so a fault at every one of them is a fault at every
moment, and the same number always meets the same one. `fault` says which kind, `at` at which operation in `folder`.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PRELOADED = (
    "l2c.cli.learning", "l2c.sets", "l2c.compare.runner", "l2c.compare.rounds", "l2c.hosts.check",
    "l2c.cli.main", "l2c.report.compare_table", "l2c.sampling.schedulers", "l2c.learning.learn", "l2c.learning.effort",
    "accelerate", "diffusers", "PIL.PngImagePlugin", "numpy.ma",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LONGEST_S = 120


class Fault:
    """An audit hook that counts the operations that change a folder, and harms the process at one of them."""

    def __init__(self, kind: str, folder: str, at: int, number: int) -> None:
        self.kind, self.folder, self.at, self.number, self.count = kind, folder, at, number, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod"):
            return
        if event == "open" and not args[2] & WRITES:
            return
        if not isinstance(args[0], (str, os.PathLike)) or not str(args[0]).startswith(self.folder):
            return
        self.count += 1
        if self.kind == "full" and self.count >= self.at > 0 and event != "os.remove":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
        if self.count == self.at and self.kind == "signal":
            os.kill(os.getpid(), self.number)
        elif self.count == self.at and self.kind == "vanish":
            shutil.rmtree(self.folder, ignore_errors=True)


def run(order: dict[str, Any]) -> None:
    """One run of `l2c`, in a process of its own that it ends."""
    signal.alarm(LONGEST_S)
    os.environ.update(order.get("environment", {}))
    for handle, name in ((0, os.devnull), (1, order.get("stdout", os.devnull)), (2, order["stderr"])):
        if name == "closed":
            reader, target = os.pipe()
            os.close(reader)
        else:
            target = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
        os.dup2(target, handle)
        os.close(target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    if ignored := order.get("ignored"):
        signal.signal(ignored, signal.SIG_IGN)
    if limit := order.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    fault = Fault(order.get("fault", ""), order["folder"], order.get("at", 0), order.get("number", 0))
    sys.addaudithook(fault)
    sys.argv = ["l2c", *order["arguments"]]
    from l2c.__main__ import main

    try:
        main()
    except SystemExit as ended:
        if "stdout" in order:
            raise  # Python has things to say where it cannot be written
        if "counted" in order:
            Path(order["counted"]).write_text(str(fault.count))
        sys.stderr.flush()
        os._exit(int(ended.code or 0))  # at once: taking everything down takes longer than most runs


def serve() -> None:
    """Serves orders until stdin ends."""
    for name in PRELOADED:
        import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        elif process := os.fork():
            print(process, flush=True)
        else:
            run(order)


if __name__ == "__main__":
    serve()
