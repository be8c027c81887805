"""The `umbel` command: one table of parts, each loaded only when it is asked for.

`PARTS` says, for every first word after `umbel`, which module holds it. Importing torch to print a help
page would take seconds, and on a device it could not work at all, so this module imports none of them: the
help page is written from the table, and a part's module is imported when its name is on the command line.
To add a part, write a Typer app called `app` in its module and add one row to `PARTS`.

`main` is also the one place where errors become messages. What umbel expects (`UmbelError`, wrong usage, a
file that cannot be written, a missing extra) is printed to stderr as plain text, so that `--json` output on
stdout stays clean, and ends with exit code 2. Anything else is a bug: its kind and place are shown and,
because an exception's text could quote a private example, its words only with `umbel --debug`. Ctrl-C ends
with 130.
"""

import errno
import importlib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import click
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.utils import get_params_from_function

from umbel import __version__
from umbel.shared.errors import MissingExtraError, UmbelError

_HELP: Final = "\n\n".join(
    (
        "A language model that fits each person. Their texts and their profile never leave their device.",
        "A coordinator trains what everyone shares and publishes it as a release. A device takes it, "
        "learns a small private profile from a few examples of its own, and predicts with it.",
        "To see the whole loop on this machine, with made-up people and a report at the end:",
        "umbel simulate demo",
        "Every command explains itself, for instance: umbel simulate --help",
    )
)

_OS_HINTS: Final = {
    errno.EACCES: "Check the permissions, or name another place.",
    errno.EPERM: "Check the permissions, or name another place.",
    errno.EROFS: "That disk is read-only: name another place.",
    errno.ENOSPC: "Free some space and run the same command again.",
    errno.EDQUOT: "Free some space and run the same command again.",
}


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One row of the table: where a first word of the command line lives.

    Attributes:
        target: `module:attribute` of a Typer app.
        command: Which command of that app this word means; empty for the app as a whole.
        extra: The extra of the umbel package that the part needs.
        panel: The heading under which the help page lists it.
        help: One line for the help page.
    """

    target: str
    command: str
    extra: str
    panel: str
    help: str


_TRY, _DEVICE, _COORDINATOR = "See it work", "On a device", "On the coordinator"

PARTS: Mapping[str, Part] = {
    "simulate": Part(
        "umbel.simulations.commands:app", "simulate", "simulation", _TRY,
        "Run an experiment from data to report: train, publish, federated rounds, people never met.",
    ),
    "evaluate": Part(
        "umbel.simulations.commands:app", "evaluate", "simulation", _TRY,
        "Measure a release on a file of your own people.",
    ),
    "rounds": Part(
        "umbel.simulations.rounds.commands:app", "rounds", "simulation", _TRY,
        "Run federated rounds with a release of your own, among people of your own.",
    ),
    "results": Part(
        "umbel.simulations.commands:app", "results", "simulation", _TRY,
        "Write the results page of a comparison of methods from its JSON.",
    ),
    "data": Part(
        "umbel.simulations.data.commands:app", "", "simulation", _TRY,
        "Turn public data sets into umbel's example files, or generate people.",
    ),
    "bench": Part(
        "umbel.simulations.bench.commands:app", "", "simulation", _TRY,
        "Measure what a device, serving, simulated rounds and training cost, beside others.",
    ),
    "device": Part(
        "umbel.device_client.commands:app", "", "device", _DEVICE,
        "Learn a private profile from a few examples, and predict with it. Needs no torch.",
    ),
    "coordinator": Part(
        "umbel.coordinator.commands:app", "", "coordinator", _COORDINATOR,
        "Train what everyone shares, and publish it as a release.",
    ),
    "methods": Part(
        "umbel.coordinator.catalogue_commands:app", "", "coordinator", _COORDINATOR,
        "List the methods with what they cost, or explain one of them.",
    ),
}  # fmt: skip


@dataclass(slots=True)
class _Run:
    """What `main` must know about a command line when it ends in an error."""

    debug: bool = False
    part: str = ""


def load(name: str) -> click.Command:
    """Imports the part called `name` and returns its command.

    Args:
        name: A key of `PARTS`.

    Raises:
        ModuleNotFoundError: The part's extra is not installed.
    """
    part = PARTS[name]
    module, _, attribute = part.target.partition(":")
    group = typer.main.get_group(getattr(importlib.import_module(module), attribute))
    group.suggest_commands = False
    _join_lines(group)
    _give_back_help(group)
    return group.commands[part.command] if part.command else group


def _join_lines(command: click.Command) -> None:
    """Makes each paragraph of the help one line: docstrings are wrapped for editors, terminals wrap anew."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _join_lines(inner)


def _give_back_help(command: click.Command) -> None:
    """Gives each argument its help again: click 8.5 empties what typer 0.20 has set before."""
    for inner in getattr(command, "commands", {}).values():
        _give_back_help(inner)
    empty = [each for each in command.params if isinstance(each, TyperArgument) and not each.help]
    if empty and command.callback is not None:
        written = get_params_from_function(command.callback)
        for argument in empty:
            argument.help = getattr(written[argument.name].default, "help", None)


@final
class _LazyGroup(TyperGroup):
    """Lists stand-ins made from the table, and swaps in the real command when one is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or name not in PARTS:
            return name, stand_in, rest
        if isinstance(ctx.obj, _Run):
            ctx.obj.part = name
        return name, load(name), rest


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print(f"umbel {__version__}")
        ctx.exit()


def _set_debug(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if isinstance(ctx.obj, _Run):
        ctx.obj.debug = wanted


def _build() -> _LazyGroup:
    """Returns the top-level command, with a light stand-in for every part."""
    return _LazyGroup(
        name="umbel",
        help=_HELP,
        suggest_commands=False,  # click does, and once is enough
        commands={
            name: TyperCommand(name, help=part.help, rich_help_panel=part.panel)
            for name, part in PARTS.items()
        },
        params=[
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, is_eager=True, callback=_set_debug,
                help="Show the full trace of any error. It may quote your own texts.",
            ),
            click.Option(
                ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
                help="Show the version and stop.",
            ),
        ],
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    Args:
        argv: The words after `umbel`; those of this process if None.

    Returns:
        0 when all went well, 2 for a mistake that the message explains, 130 after Ctrl-C, and 1 for a bug.
    """
    # Read when torch is first imported. Threads that wait by spinning made a training step three times
    # slower whenever another process wanted a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_streams()
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    run = _Run()
    try:
        status = _build().main(words, prog_name="umbel", standalone_mode=False, obj=run)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # the last line of defence: everything below turns it into a message
        return _report(error, run)
    if status == 130:  # typer's own answer to Ctrl-C
        _say("interrupted; what was finished is kept")
    return status if isinstance(status, int) else 0


def _open_streams() -> None:
    """Makes stdout and stderr take everything: a closed one swallows, letters that it has not are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _report(error: Exception, run: _Run) -> int:
    """Prints `error` to stderr in a way that its reader can act on, and returns the exit code."""
    if run.debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, ModuleNotFoundError):
        error = _missing_extra(error, run.part) or error
    if isinstance(error, UmbelError):
        _say(error.render())
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        _say(_describe_os_error(error))
        return 2
    if isinstance(error, click.Abort):
        _say("stopped at a question that was not answered; nothing was changed")
        return 1
    _say(f"{type(error).__name__} in {_place(error)}: this is a bug in umbel, not a mistake of yours.")
    if not run.debug:
        _say(
            "To see all of it (it may quote your texts), run again with --debug: umbel --debug ...",
            title="",
        )
    return 1


def _missing_extra(error: ModuleNotFoundError, name: str) -> MissingExtraError | None:
    """Returns the message for a missing library, or None if a module of umbel itself is missing."""
    library = (error.name or "").partition(".")[0]
    if library in ("", "umbel") or name not in PARTS:
        return None
    extra = PARTS[name].extra
    return MissingExtraError(
        f"umbel {name} needs the '{extra}' extra: pip install 'umbel[{extra}]'",
        [f"{library} is not installed"],
    )


def _describe_os_error(error: OSError) -> str:
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    what = error.strerror or type(error).__name__
    hint = _OS_HINTS.get(error.errno or 0, "")
    return ": ".join([what, *paths]) + (f"\n{hint}" if hint else "")


def _place(error: BaseException) -> str:
    """Returns the innermost line of umbel that `error` passed through; no words of the error itself."""
    place = "an unknown place"
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", "?"))
        if place == "an unknown place" or module.startswith("umbel."):
            place = f"{module}, line {line}"
    return place


def _say(message: str, title: str = "umbel: ") -> None:
    """Prints to stderr as it is: no markup, and no control characters that a file's name could smuggle in."""
    safe = "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in message)
    click.echo(click.style(title, fg="red", bold=True) + safe, err=True)
