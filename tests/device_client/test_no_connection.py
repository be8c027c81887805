"""Nothing on a device opens a connection but its part in rounds, joining them, and fetching releases."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.shared.release import Release

NETWORK = {
    "aiohttp", "asyncio", "flwr", "ftplib", "grpc", "http", "httpx", "imaplib", "multiprocessing", "poplib",
    "requests", "smtplib", "socket", "socketserver", "ssl", "tuf", "urllib", "urllib3", "webbrowser",
    "websockets", "xmlrpc",
}  # fmt: skip
STARTS_PROGRAMS = {"ctypes", "subprocess"}
# Rounds, behind the gate, and joining them; and what fetches releases, which sends nothing of its owner's.
# trust.py lets TUF fetch through sources.py alone; invitation.py and reached.py read addresses and errors.
MAY = {
    "flower_app.py": {"flwr"},
    "releases/sources.py": {"ssl", "urllib", "urllib3"},
    "releases/trust.py": {"tuf"},
    "egress/network.py": {"subprocess"},
    "secure/primitives.py": {"flwr"},  # its cryptography, for rounds
    "flower_link.py": {"flwr", "httpx", "urllib"},
    "joining/asking.py": {"ssl", "urllib3"},
    "joining/reached.py": {"ssl"},
    "invitation.py": {"ssl", "urllib"},
}

# Runs commands of `umbel device` in a process that notes what reaches out, by a socket or another program. A
# socket alone does not: urllib3, which `enroll` loads, binds one of its own to see whether there is IPv6.
WATCH = """
import json, sys
OUT = ("socket.connect", "socket.get", "socket.send", "urllib.", "http.", "ftplib.", "smtplib.")
OUT += ("subprocess.", "os.system")
seen = []

def watch(event, words):
    if event.startswith(OUT):
        seen.append(event)

sys.addaudithook(watch)
from umbel import cli
for words in json.loads(sys.argv[1]):
    status = cli.main(["device", *words])
    if status:
        sys.exit(f"{words[0]} ended with {status}")
print("seen:", json.dumps(seen))
"""
GIVEN = ("_message", "Message", "Error")
CALLS = "trace=connect,sendto,sendmsg,sendmmsg"


def imported(source: Path) -> set[str]:
    """Returns the top-level names that a file imports, anywhere in it, by a statement or by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            begun = [word.values[0] if isinstance(word, ast.JoinedStr) else word for word in node.args]
            words = [word.value for word in begun if isinstance(word, ast.Constant)]
            found |= {str(word).partition(".")[0] for word in words} or {"something by a name made up"}
    return found


def reaching(folder: Path) -> list[str]:
    """Returns "file: name" for every import by which a file reaches further than it may."""
    names = NETWORK | STARTS_PROGRAMS | {"something by a name made up"}
    return [
        f"{place}: {name}"
        for source in sorted(folder.rglob("*.py"))
        for place in [source.relative_to(folder).as_posix()]
        for name in sorted(imported(source) & names - MAY.get(place, set()))
    ]


def test_only_rounds_and_the_fetching_of_releases_reach_the_network(repository: Path) -> None:
    assert reaching(repository / "device_client") + reaching(repository / "shared") == []


def test_an_import_is_found_wherever_it_hides(tmp_path: Path) -> None:
    hidden = (
        "import urllib.request as x",
        "def f():\n    from http import client",
        "import importlib\nimportlib.import_module('socket')",
        "__import__('ss' + 'l')",
    )
    for number, text in enumerate(hidden):
        (tmp_path / f"m{number}.py").write_text(text)
    (tmp_path / "flower_app.py").write_text("import grpc")
    assert reaching(tmp_path) == [
        "flower_app.py: grpc",
        "m0.py: urllib",
        "m1.py: http",
        "m2.py: socket",
        "m3.py: something by a name made up",
    ]


def test_whatever_flower_is_given_comes_out_of_the_gate(repository: Path) -> None:
    tree = ast.parse((repository / "device_client" / "flower_app.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    words = {name: [ast.unparse(c.args[0]) for c in calls if ast.unparse(c.func) == name] for name in GIVEN}
    assert all(word.startswith("leave(") for word in words["_message"])
    assert [len(found) for found in words.values()] == [1, 2, 1]  # an answer, or an error
    (error,) = [c for c in calls if ast.unparse(c.func) == "Error"]
    assert ast.unparse(error.args[1]).startswith("_leaving(")


@pytest.mark.full
@pytest.mark.parametrize("traced", [False, True])
def test_an_owners_commands_reach_nobody(traced: bool, onboarding_release: Release, tmp_path: Path) -> None:
    """Python's own sockets are seen by an audit hook; those of libraries in C by strace, where it may."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"text": "a slow film", "label": "yes"}\n{"text": "a bad book", "label": "no"}\n')
    export = str(tmp_path / "me.export")
    commands = [
        ["enroll", "--release", str(onboarding_release.folder)],
        ["add", "--examples", str(mine)],
        ["onboard", "--explain"],
        ["learn"],
        ["predict", "a slow film"],
        ["list"],
        ["status"],
        ["policy", "always"],
        ["egress"],
        ["log"],
        ["export", export],
        ["import", export],
        ["rekey", "--key", "passphrase"],
        ["forget", "--number", "1", "--yes"],
        ["forget", "--everything", "--yes"],
    ]
    trace = tmp_path / "trace"
    out = watched(commands, tmp_path, strace(trace) if traced else [])
    assert out.splitlines()[-1] == "seen: []"
    assert not traced or sockets(trace) == []


@pytest.mark.parametrize("traced", [False, True])
def test_the_watch_sees_a_socket(traced: bool, tmp_path: Path) -> None:
    code = WATCH + "import socket; socket.socket().connect_ex(('127.0.0.1', 9)); print(seen)"
    trace = tmp_path / "trace"
    out = watched([], tmp_path, strace(trace) if traced else [], code)
    assert "socket.connect" in out.splitlines()[-1]
    assert not traced or any("connect(" in line for line in sockets(trace))


def watched(commands: list[list[str]], home: Path, before: list[str], code: str = WATCH) -> str:
    """Runs commands in a process that is watched, and returns what it prints."""
    secrets = ("UMBEL_PASSPHRASE", "UMBEL_NEW_PASSPHRASE", "UMBEL_EXPORT_PASSPHRASE")
    run = subprocess.run(
        [*before, sys.executable, "-c", code, json.dumps(commands)],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "UMBEL_HOME": str(home / "home"),
            "PYTHONPATH": ":".join(sys.path),
            **dict.fromkeys(secrets, "correct horse battery"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def sockets(trace: Path) -> list[str]:
    """Returns the calls that are about sockets which reach beyond the machine's own programs."""
    calls = [line for line in trace.read_text().splitlines() if "(" in line]
    return [line for line in calls if "AF_UNIX" not in line]


def strace(trace: Path) -> list[str]:
    """Returns what runs a program under strace; skips the test where that is not allowed."""
    found = shutil.which("strace")
    command = [
        found or "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-e",
        "signal=none",
    ]
    tried = [*command, "-o", str(trace), "true"]
    if found is None or subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("strace is not here, or may not trace")
    return [*command, "-o", str(trace)]
