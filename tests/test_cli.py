"""The `umbel` command: a table of parts loaded by name, and errors that become messages."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import click
import pytest
import typer

import umbel
from umbel import cli
from umbel.shared.errors import ExampleError

pytestmark = pytest.mark.device

SECRET = "a private sentence"


def stub(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Makes `act` the only part: an app with the commands `run` (which calls `action`) and `other`."""
    app = typer.Typer()
    app.command("run")(action)
    app.command("other")(lambda: print("other ran"))
    module = ModuleType("stub_part")
    module.__dict__["app"] = app
    monkeypatch.setitem(sys.modules, "stub_part", module)
    part = cli.Part("stub_part:app", "", "simulation", "Panel", "Does an action.")
    monkeypatch.setattr(cli, "PARTS", {"act": part})


def stub_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Like `stub`, with a command that raises `error`."""

    def action() -> NoReturn:
        raise error

    stub(monkeypatch, action)


def test_help_names_every_part_and_what_to_run_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "umbel simulate demo" in shown
    assert all(f" {name} " in shown for name in cli.PARTS)


def test_no_words_at_all_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "Usage: umbel" in capsys.readouterr().out


def test_help_is_quick_and_loads_no_part() -> None:
    code = (
        "import sys; from umbel.cli import main; status = main(['--help']);"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'flwr'};"
        "heavy |= {'umbel.simulations', 'umbel.coordinator', 'umbel.device_client'};"
        "sys.exit(status or ', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    seconds = time.perf_counter() - start
    assert run.returncode == 0, run.stderr
    assert seconds < 5  # 0.1 to 0.2 s when the machine is idle; with torch it would be 4 s more


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"umbel {umbel.__version__}\n"


def test_a_part_is_a_whole_app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub(monkeypatch, lambda: print("it ran"))
    assert cli.main(["act", "run"]) == 0
    assert cli.main(["act", "other"]) == 0
    assert capsys.readouterr().out == "it ran\nother ran\n"


def test_a_part_can_be_one_command_of_an_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, lambda: print("it ran"))
    part = cli.Part("stub_part:app", "run", "simulation", "Panel", "Does an action.")
    monkeypatch.setattr(cli, "PARTS", {"go": part})
    assert cli.main(["go"]) == 0
    assert capsys.readouterr().out == "it ran\n"


@pytest.mark.parametrize("words", [["devise"], ["--devise"], ["act", "jump"], ["act", "run", "--jump"]])
def test_wrong_usage_is_said_on_stderr(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, lambda: None)
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: umbel" in shown.err
    assert words[-1] in shown.err


def test_a_slip_of_the_finger_gets_one_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulat"]) == 2
    assert capsys.readouterr().err.count("simulate") == 1


def test_expected_errors_show_all_problems_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ExampleError(
        "2 rows of mine.jsonl are wrong", ["line 3: no [bold]label[/bold]", "line 9: \x1b[2J"], "Mend them."
    )
    stub_raising(monkeypatch, error)
    assert cli.main(["act", "run"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "umbel: 2 rows of mine.jsonl are wrong\n"
        "  - line 3: no [bold]label[/bold]\n"
        "  - line 9: \ufffd[2J\n"
        "Mend them.\n"
    )


def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_raising(monkeypatch, ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert cli.main(["act", "run"]) == 2
    assert capsys.readouterr().err == (
        "umbel: umbel act needs the 'simulation' extra: pip install 'umbel[simulation]'\n"
        "  - torch is not installed\n"
    )


def test_a_library_missing_at_import_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = cli.Part("a_library_that_is_not_here:app", "", "device", "Panel", "Does an action.")
    monkeypatch.setattr(cli, "PARTS", {"act": part})
    assert cli.main(["act", "--help"]) == 2
    assert "pip install 'umbel[device]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_raising(monkeypatch, ModuleNotFoundError("No module named 'umbel.gone'", name="umbel.gone"))
    assert cli.main(["act", "run"]) == 1
    assert "this is a bug in umbel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            errno.EACCES,
            "Permission denied: /some/where\nCheck the permissions, or name another place.\n",
        ),
        (
            errno.ENOSPC,
            "No space left on device: /some/where\nFree some space and run the same command again.\n",
        ),
        (errno.ENOENT, "No such file or directory: /some/where\n"),
    ],
)
def test_trouble_with_files_names_the_path(
    number: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_raising(monkeypatch, OSError(number, os.strerror(number), "/some/where"))
    assert cli.main(["act", "run"]) == 2
    assert capsys.readouterr().err == f"umbel: {expected}"


@pytest.mark.parametrize("error", [ValueError(SECRET), OSError(SECRET), KeyError(SECRET)])
def test_a_bug_shows_its_place_and_never_its_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_raising(monkeypatch, error)
    assert cli.main(["act", "run"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"umbel: {type(error).__name__} in ")
    assert "--debug" in shown
    assert SECRET not in shown


def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub_raising(monkeypatch, ValueError("the whole story"))
    assert cli.main(["--debug", "act", "run"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "the whole story" in shown


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub_raising(monkeypatch, KeyboardInterrupt())
    assert cli.main(["act", "run"]) == 130
    assert capsys.readouterr().err == "umbel: interrupted; what was finished is kept\n"


def test_a_commands_own_exit_code_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_raising(monkeypatch, typer.Exit(7))
    assert cli.main(["act", "run"]) == 7


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from umbel.cli import main; sys.exit(main(['--help']))"
    command = f'"{sys.executable}" -c "{code}" | true'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""


def test_help_is_wrapped_by_the_terminal_alone() -> None:
    found = cli.load("device")
    assert isinstance(found, click.Group)
    helps = [found.help, *(command.help for command in found.commands.values())]
    assert not [text for text in helps if text is None or "\n" in text.replace("\n\n", "")]
    assert "opens it without you" in (found.commands["enroll"].help or "")  # two lines of its docstring


def arguments(command: click.Command, path: str) -> list[tuple[str, click.Argument]]:
    """Returns every argument of a command, or of a group's commands, each with its command's name."""
    if isinstance(command, click.Group):
        inner = command.commands.items()
        return [found for name, each in inner for found in arguments(each, f"{path} {name}")]
    return [(path, parameter) for parameter in command.params if isinstance(parameter, click.Argument)]


def test_help_says_what_every_argument_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = [each for part in cli.PARTS for each in arguments(cli.load(part), part)]
    assert len(found) > 15
    assert not [(path, argument.name) for path, argument in found if not argument.help]
    assert cli.main(["data", "show", "--help"]) == 0
    assert ".parquet file of examples" in " ".join(capsys.readouterr().out.split())
