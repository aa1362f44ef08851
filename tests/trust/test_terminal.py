"""What is printed cannot move a terminal, whatever a file says, and is printed on any terminal."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch

import l2c
from l2c.__main__ import main
from l2c.cli.console import facts, note, results, say, show, table
from l2c.cli.main import run
from l2c.errors import plain_text
from l2c.testing import tiny_dit

ESCAPE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202e"


@pytest.fixture
def schedule(tmp_path):
    """A file whose every text has an escape sequence in it."""
    tensors, header = l2c.methods.interval(tiny_dit(), steps=4, every=2).pack()
    header["contract"]["model"] = f"model {ESCAPE}"
    header["contract"]["run"]["spacing"] = f"spacing {ESCAPE}"
    header["layers"]["layers"][0]["kind"] = f"[/x]{ESCAPE}"
    header["provenance"] = {"method": f"method {ESCAPE}[bold]"}
    path = tmp_path / "s.safetensors"
    safetensors.torch.save_file(
        tensors, path, metadata={"l2c.cache-schedule": json.dumps({"version": 1, **header})}
    )
    return path


def is_plain(text):
    return text == plain_text(text) and "\x1b" not in text


def test_inspect_strips_what_moves_a_terminal(schedule, capsys):
    assert run(["inspect", str(schedule)]) == 0
    shown = capsys.readouterr()
    assert "?[31mred?2J?" in shown.out
    assert is_plain(shown.out + shown.err)
    assert run(["inspect", str(schedule), "--json"]) == 0
    assert is_plain(capsys.readouterr().out)


def test_errors_strip_what_moves_a_terminal(schedule, tmp_path, capsys):
    assert run(["sample", "--schedule", str(schedule), "--num", "1", "--out", str(tmp_path / "made")]) == 2
    assert run(["inspect", f"no{ESCAPE}.safetensors"]) == 1
    assert run(["learn", f"no{ESCAPE}.safetensors"]) == 1
    shown = capsys.readouterr()
    assert "?[31m" in shown.err
    assert is_plain(shown.err)


def test_everything_that_writes_strips(capsys):
    for write in (
        note,
        show,
        lambda text: say("error", text),
        lambda text: results().print(facts({text: text})),
    ):
        write(ESCAPE)
    listed = table(ESCAPE, ESCAPE)
    listed.add_row(ESCAPE, "[/markup]")
    results().print(listed)
    shown = capsys.readouterr()
    assert is_plain(shown.out + shown.err)
    assert "[/markup]" in shown.out


def test_names_in_other_scripts_are_printed_on_any_terminal(schedule, tmp_path):
    path = schedule.rename(tmp_path / "模型 é.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "l2c", "inspect", str(path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40", "NO_COLOR": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_an_interrupt_while_the_program_is_loaded_is_one_sentence(monkeypatch, capsys):
    class Loading:
        def find_spec(self, name, *_):
            if name == "l2c.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "l2c.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Loading(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "l2c: error: interrupted\n"
