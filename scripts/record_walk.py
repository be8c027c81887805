"""Runs the commands of a page's console blocks and writes what they print under them.

    python scripts/record_walk.py docs/walkthrough.md --releases runs/demo

A line that begins with "$ " is a command; what stands below it, up to the next one, is what it printed when
the page was last recorded. All commands of a page run one after the other in one shell, in an empty folder
that stands for the owner's own, /home/ann; `release` and `release-after-rounds` of a demo lie there.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT, MORE = "$ ", "> "
ANN = "/home/ann"
RELEASES = ("release", "release-after-rounds")
_END = "\x1e"
_QUIET = {"UMBEL_EXPORT_PASSPHRASE": "four quiet words here", "COLUMNS": "100", "NO_COLOR": "1"}


class WalkError(Exception):
    """A command of the page failed, or the shell ended."""


def recorded(page: str, folder: Path, releases: Path) -> str:
    """Returns a page with what its commands print today.

    Args:
        page: Markdown.
        folder: An empty folder to run them in.
        releases: A folder that holds `RELEASES`; they are copied.

    Raises:
        WalkError: A command failed.
    """
    for name in RELEASES:
        shutil.copytree(releases / name, folder / name)
    with _shell(folder) as shell:
        return BLOCK.sub(lambda block: f"```console\n{_rerun(shell, block[1], folder)}```", page)


def commands(block: str) -> list[str]:
    """Returns the commands of a block, each with the lines that continue it, which begin with "> "."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith(PROMPT):
            found.append(line.removeprefix(PROMPT))
        elif line.startswith(MORE) and found:
            found[-1] += "\n" + line.removeprefix(MORE)
    return found


def _rerun(shell: "subprocess.Popen[str]", block: str, folder: Path) -> str:
    lines = []
    for command in commands(block):
        lines.append(PROMPT + command.replace("\n", "\n" + MORE))
        status, printed = _run(shell, command)
        if status:
            raise WalkError(f"{command}\nended with {status}:\n{printed}")
        lines += [line.rstrip() for line in printed.replace(str(folder), ANN).splitlines()]
    return "".join(line + "\n" for line in lines)


def _run(shell: "subprocess.Popen[str]", command: str) -> tuple[int, str]:
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}\nprintf '\\n{_END}%s\\n' $?\n")
    shell.stdin.flush()
    printed = ""
    for line in shell.stdout:
        if line.startswith(_END):
            return int(line[1:]), printed.removesuffix("\n")
        printed += line
    raise WalkError(f"the shell ended with: {command}\n{printed}")


def _shell(folder: Path) -> "subprocess.Popen[str]":
    tools = folder / ".tools"
    tools.mkdir()
    (tools / "umbel").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m umbel "$@"\n')
    (tools / "umbel").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("UMBEL_")}
    own |= _QUIET | {"HOME": str(folder), "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "--noprofile", "--norc"],
        cwd=folder,
        env=own,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main() -> int:
    """Records a page anew; it stays as it is if a command fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--releases", type=Path, default=Path("runs/demo"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            page = recorded(chosen.page.read_text(encoding="utf-8"), Path(folder), chosen.releases)
        except WalkError as error:
            print(f"record_walk: {error}", file=sys.stderr)
            return 1
    chosen.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
