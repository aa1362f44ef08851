from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import l2c
from l2c.cli import learn, options, repair
from l2c.cli.main import run
from l2c.hosts.native import ModelHost
from l2c.learning.paper import RouterSettings
from l2c.learning.session import Session
from l2c.learning.settings import LearnSettings
from l2c.sampling import SPACINGS, solver_names
from l2c.schedule.budget import DEFAULT

COMMANDS = (
    "bench", "check", "compare", "demo", "inspect", "learn", "profile", "repair", "report", "sample",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command(invoke, command, flag):
    finished = invoke(command, flag)
    assert finished.code == 0
    assert finished.err == ""
    assert f"Usage: l2c {command}" in finished.out
    assert "For example:" in finished.out
    assert "--json" in finished.out


def test_program_without_a_command_says_what_there_is(invoke):
    finished = invoke()
    assert finished.code == 0
    assert all(command in finished.out for command in COMMANDS)


def test_version(invoke):
    assert invoke("--version").out == f"l2c {l2c.__version__}\n"


def test_package_runs_as_a_program():
    command = [sys.executable, "-m", "l2c", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"l2c {l2c.__version__}\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_of_several_processes_says_what_all_meet(invoke, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    assert bool(invoke("learn", "--pattern", "stripes").err) == (rank == "0")
    assert "no.safetensors" in invoke("inspect", "no.safetensors").err


@pytest.mark.parametrize("arguments", [["--frames"], ["paint"], ["inspect"], ["sample", "one", "two"]])
def test_usage_errors_are_one_sentence(invoke, arguments):
    finished = invoke(*arguments)
    assert finished.code == 2
    assert finished.err.startswith("l2c: error: ")
    assert len(finished.err.splitlines()) == 1
    assert "--help" in finished.err


@pytest.mark.parametrize("code", ["import l2c", "from l2c.cli.main import run; run(['sample', '--help'])"])
def test_help_and_import_stay_light(code):
    heavy = ("torch", "diffusers", "numpy", "matplotlib", "safetensors")
    check = f"import sys; print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}"], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_names_in_help_are_the_names_there_are():
    assert ", ".join(solver_names()) == options.SOLVER_NAMES
    assert ", ".join(SPACINGS) == options.SPACING_NAMES


@pytest.mark.parametrize("command", [learn.learn, repair.repair])
def test_defaults_of_learning_are_the_librarys(command):
    """What is None is left to the library."""
    given = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    closed, router, session = LearnSettings(), RouterSettings(), Session()
    for name in {*vars(closed), *vars(router)} & set(given):
        wanted = {getattr(closed, name, None), getattr(router, name, None)}
        assert given[name] is None or {given[name]} | {None} >= wanted, name
    in_python_only = {
        "trial_examples",
        "fit_examples",
        "level_trials",
        "scales",
        "guidance_degree",
        "validate_every",
        "patience",
    }  # `--effort` decides most of them
    of_masks = {"trials", "branches", "tail"} if command is repair.repair else set()
    assert set(given) >= {*vars(closed)} - in_python_only - of_masks
    assert given["save_every"] == session.save_every_s


def test_help_of_learn_tells_the_defaults(invoke):
    text = " ".join(invoke("learn", "--help").out.replace("│", " ").split())
    closed, router = LearnSettings(), RouterSettings()
    for name, between in (("iterations", " for each budget"), ("learning_rate", "")):
        one, other = getattr(closed, name), getattr(router, name)
        assert f"{one}{between}, or {other} with --pattern alternate" in text
    for value in (
        closed.num_examples, closed.reference_steps, closed.history, closed.trials, router.lambda_, router.threshold,
    ):  # fmt: skip
        assert f"{value} if not given" in text
    assert f"({router.reduction}, as the paper does for DiT, and if not given)" in text
    assert f"{DEFAULT} if no budget is given" in text
    own = {name: p.default for name, p in inspect.signature(ModelHost.of).parameters.items()}
    for words in (
        f"of a model, {own['solver']}",
        f"{own['steps']}, or what",
        f"of a model, {own['spacing']}",
    ):
        assert f"[default: {words}" in text
    assert f"[default: {own['guidance']}, or what" in text


def test_interrupt(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("l2c.demo.run_demo", interrupt)
    assert run(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err.strip().endswith("l2c: error: interrupted")
    assert not (tmp_path / "demo").exists()


def test_full_disk_and_memory_are_sentences(monkeypatch, capsys, tmp_path):
    for error, code in ((OSError(28, "No space left on device"), 1), (MemoryError(), 1)):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("l2c.demo.run_demo", fail)
        assert run(["demo", "--out", str(tmp_path / "demo")]) == code
        assert "l2c: error: " in capsys.readouterr().err


def test_faults_of_the_program_keep_their_traceback(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("l2c.demo.run_demo", fail)
    with pytest.raises(ZeroDivisionError):
        run(["demo", "--out", str(tmp_path / "demo")])


def test_number_lists():
    assert options.parse_numbers("0, 7,2-4", "--labels") == [0, 7, 2, 3, 4]
