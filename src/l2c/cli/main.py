"""The program `l2c`: finds the command, runs it, and turns what goes wrong into one sentence."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NoReturn

import typer

import l2c
from l2c.allocator import keep_freed_memory
from l2c.cli.bench import bench
from l2c.cli.check import check
from l2c.cli.compare import compare
from l2c.cli.console import Interrupted, say, warnings_as_sentences
from l2c.cli.demo import demo
from l2c.cli.inspect import inspect
from l2c.cli.learn import learn
from l2c.cli.profile import profile
from l2c.cli.repair import repair
from l2c.cli.report import report
from l2c.cli.sample import sample
from l2c.errors import ConfigError, L2CError
from l2c.processes import is_main, num_processes

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

logging.getLogger("l2c").addHandler(logging.NullHandler())  # the commands say themselves what matters

app = typer.Typer(
    name="l2c",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    demo, learn, sample, check, repair, inspect, profile, bench, compare, report,
):  # fmt: skip
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"l2c {l2c.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make diffusion transformers sample faster by learning which layers to compute, and when.

    A diffusion transformer is evaluated some 20 to 50 times per picture, and from one evaluation to the
    next many of its attention and MLP layers hardly change. **l2c** learns, for your model and your solver,
    which of them to compute at which evaluation; the others reuse their last output. What it learns is one
    small file, a *schedule*.

    Start with `l2c demo`, which shows the whole way on a small model in a few minutes. Then, for a model of
    yours or a diffusers pipeline: `l2c learn` makes a schedule, `l2c inspect` shows what is in it, and `l2c check`
    and `l2c repair` are for when the model has changed since. `l2c sample --schedule` uses it on a model.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code.

    0 is success, 1 a failure, 2 wrong usage, 130 an interrupt by Ctrl-C, SIGTERM or SIGHUP; in the last three, stderr
    has one sentence, except where stdout was closed by who reads it. Of several processes only the first says what
    they all meet: wrong usage and interrupts.

    Args:
        arguments: What follows `l2c`; the process's own arguments by default.
    """
    program = _program()
    given = None if arguments is None else list(arguments)
    try:
        with warnings_as_sentences():
            code = program.main(args=given, prog_name="l2c", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has seen enough
        return FAILURE
    except L2CError as error:
        if is_main() or not isinstance(error, ConfigError):
            say("error", str(error))
        return USAGE if isinstance(error, ConfigError) else FAILURE
    except Interrupted as interruption:
        if is_main():
            say("error", str(interruption))
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        sentence = _explain(error)
        if sentence is None:
            raise  # a fault of the program: its traceback is what helps
        say("error", sentence)
        return USAGE if _is_usage_error(error) else FAILURE
    if code == INTERRUPTED and is_main():
        say("error", "interrupted")
    return code if isinstance(code, int) else 0


@cache
def _program() -> Any:
    """The program, which takes longer to put together than most commands to end; programs may call `run` often."""
    return typer.main.get_command(app)


def _is_usage_error(error: Exception) -> bool:
    return hasattr(error, "format_message")  # typer carries click's classes in different places


def _explain(error: Exception) -> str | None:
    """A sentence for errors that are not ours but the user's to deal with."""
    if _is_usage_error(error):
        path = getattr(getattr(error, "ctx", None), "command_path", None) or "l2c"
        message = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
        return f"{message[:1].lower()}{message[1:]}; see {path} --help"
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "out of memory; use a smaller --batch-size or --dtype bfloat16"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return None


def _end_as_by_ctrl_c() -> None:
    """Lets SIGTERM and SIGHUP end the program as Ctrl-C does; one that is ignored, as by nohup, stays so.

    Of processes that were started together each ends at once, since the others would wait for it.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL and num_processes() == 1:
            signal.signal(number, signal.default_int_handler)


def main() -> NoReturn:
    """Entry point of the program."""
    _end_as_by_ctrl_c()
    keep_freed_memory()
    code = run()
    try:
        sys.stdout.flush()
    except OSError:  # which has been said; Python would say it again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
