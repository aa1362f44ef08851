"""Freed memory stays with a process that asks for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from l2c.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(50):
    blocks = [bytearray(b"x") * 2**22 for _ in range(4)]
    del blocks
print(kept, faults() - before)
"""


def faults(word, **environment):
    command = [sys.executable, "-c", PROGRAM, word]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_is_not_fetched_again():
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept == "True"
    assert many > 5 * few


def test_what_the_environment_says_stays():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"
