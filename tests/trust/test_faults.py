"""Runs that are killed, interrupted, or lose their disk: what is there is whole, and the same command ends as ever.

Faults come at file operations that are drawn at random, always the same (`fork_server.py`), and everything is in a
folder with spaces and other scripts in its name. `L2C_KILLS` says how many runs are killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals and forks")

KILLS = int(os.environ.get("L2C_KILLS", "16"))
COMMANDS = 4


def test_killed_runs_leave_whole_files_and_go_on(runs, undisturbed, folder):
    for at in undisturbed.moments("kill", -(-KILLS // COMMANDS)):
        arguments, fault = undisturbed.arguments(folder), {"fault": "signal", "number": signal.SIGKILL}
        if (
            runs(arguments, folder, **fault, at=at).code == 0
        ):  # one that goes on does less, and may be done before
            assert undisturbed.is_done(folder)
            shutil.rmtree(folder)
            assert runs(arguments, folder, **fault, at=at).code == -signal.SIGKILL
        undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_signals_end_with_a_sentence_and_keep_what_was_done(runs, undisturbed, folder, number):
    (at,) = undisturbed.moments(number.name, 1)
    ended = runs(undisturbed.arguments(folder), folder, fault="signal", number=number, at=at).check()
    assert (ended.code == 130 and "interrupted" in ended.err) or undisturbed.is_done(folder), ended
    undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


def test_a_signal_that_is_ignored_does_nothing(runs, undisturbed, folder):
    """As by `nohup`."""
    (at,) = undisturbed.moments("nohup", 1)
    fault = {"fault": "signal", "number": signal.SIGHUP, "ignored": signal.SIGHUP}
    assert runs(undisturbed.arguments(folder), folder, **fault, at=at).check().code == 0
    assert undisturbed.is_done(folder)


def test_a_disk_that_fills_up_is_a_sentence(runs, undisturbed, folder):
    for at in undisturbed.moments("full", 2):
        ended = runs(undisturbed.arguments(folder), folder, fault="full", at=at).check()
        assert "No space left on device" in ended.err or ended.code == 0
        undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


def test_files_that_the_system_cuts_off_are_a_sentence(runs, undisturbed, folder):
    """A real limit, where the others are made up."""
    ended = runs(undisturbed.arguments(folder), folder, limit=1200).check()
    assert "File too large" in ended.err
    undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


def test_a_folder_that_vanishes_is_a_sentence_or_made_again(runs, undisturbed, folder):
    for at in undisturbed.moments("vanish", 2):
        runs(undisturbed.arguments(folder), folder, fault="vanish", at=at).check()
        undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


def test_two_processes_on_one_output_leave_what_one_does(runs, undisturbed, folder):
    started = [runs.start(undisturbed.arguments(folder), folder) for _ in range(2)]
    ended = [runs.end(one).check() for one in started]
    assert min(one.code for one in ended) == 0, ended
    undisturbed.is_done(folder)
    undisturbed.finish(runs, folder)


@pytest.mark.parametrize("stdout", ["closed", "/dev/full"])
@pytest.mark.parametrize("command", ["inspect", "inspect --json", "sample"])
def test_a_closed_or_full_stdout_is_no_traceback(runs, inputs, folder, stdout, command):
    """As with `| head`."""
    arguments = ["inspect", str(inputs / "schedule.safetensors"), *command.split()[1:]]
    if command == "sample":
        arguments = [
            "sample",
            str(inputs / "tiny.safetensors"),
            "-n",
            "1",
            "--steps",
            "2",
            "--out",
            str(folder),
        ]
    ended = runs(arguments, folder, stdout=stdout)
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    assert ended.code == 1
    assert ended.err.count("l2c: error: ") == (1 if stdout == "/dev/full" else 0)


def test_a_narrow_terminal_without_colour(runs, undisturbed, folder):
    environment = {"COLUMNS": "40", "NO_COLOR": "1", "TERM": "xterm"}
    ours, theirs = os.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # at its end
            while part := os.read(ours, 2**16):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    terminal = {"stderr": os.ttyname(theirs), "environment": environment}
    code = runs(undisturbed.arguments(folder), folder, **terminal).code
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert code == 0, shown
    assert b"Traceback" not in shown
    assert b"\x1b[3" not in shown  # a colour
    assert undisturbed.is_done(folder)


def test_paths_in_other_scripts_without_a_locale(inputs, folder):
    """With `LANG=C`, and Python kept from taking another one."""
    arguments = [
        "sample",
        inputs / "tiny.safetensors",
        "-n",
        "1",
        "--steps",
        "2",
        "--out",
        folder,
        "--resume",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "l2c", *arguments],
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (folder / "seed000000-label000.png").is_file()
