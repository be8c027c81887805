"""Fills a small disk under a device, leaving a page more each time, and looks what every step makes of it.

    python -m tests.robustness.full_disk --out runs/full-disk

A step that finds no room must end with 2 and one clear error, lose nothing and leave nothing half there; once
there is room, the same step must work. The disk is a tmpfs, mounted here or, without the rights, in a
namespace of its own. A second way needs no mount: the system's limit on the size of a file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.robustness.children import Say, finished
from tests.robustness.kills import (
    STEPS,
    Life,
    before,
    begun,
    lived,
    made_release,
    two_releases,
    typed,
    verified,
)
from tests.robustness.owner_life import EXPORT_WORDS, Place, Step

_DISK = "4m"
_PAGE = 4096
_IN_NAMESPACE = "UMBEL_TEST_IN_NAMESPACE"
_LIMITS = (0, 1, 511, 2048, *range(_PAGE, 26 * _PAGE, 2 * _PAGE), 1 << 17, 1 << 18)


def run_step(
    life: Life, step: Step, words: list[str], squeezed: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs the command of a step in a child; returns its exit code and what it said."""

    def work(say: Say) -> None:
        from umbel import cli

        os.environ |= {"UMBEL_PASSPHRASE": life.held.words, "UMBEL_NEW_PASSPHRASE": step.name}
        os.environ["UMBEL_EXPORT_PASSPHRASE"] = EXPORT_WORDS
        squeezed()
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = cli.main(["device", *words])
        say({"code": code, "words": errors.getvalue()})

    ended = finished(work)
    return ended.said[0] if ended.said else {"code": -1, "words": ended.error}


def judged(life: Life, step: Step, found: dict[str, Any]) -> list[str]:
    """Returns what is wrong with how a step ended, and with what it has left; there is room again by now."""
    problems = []
    if found["code"] not in (0, 2):
        problems.append(f"ended with {found['code']}: {found['words'][-300:]}")
    if found["code"] == 2 and not found["words"].strip():
        problems.append("ended with 2 and said nothing")
    verdict = verified(life, step)
    if found["code"] == 0 and not verdict.done:
        problems.append("ended with 0, and it is not done")
    if found["code"] == 2 and not verdict.undone and "it is done" not in found["words"]:
        problems.append("ended with 2, and it is done")
    return problems + verdict.problems


@contextlib.contextmanager
def filled(disk: Path, free_pages: int) -> Iterator[None]:
    """Fills a disk up to some pages."""
    filler = disk / "filler"
    with filler.open("wb") as stream:
        with contextlib.suppress(OSError):
            while True:
                os.write(stream.fileno(), bytes(_PAGE))
        size = os.fstat(stream.fileno()).st_size // _PAGE * _PAGE
        os.ftruncate(stream.fileno(), max(size - free_pages * _PAGE, 0))
    try:
        yield
    finally:
        filler.unlink()


def levels() -> Iterator[int]:
    """Returns how many pages are free: each of the first, then fewer and fewer of them."""
    yield from range(24)
    yield from range(24, 64, 4)
    yield from range(64, 400, 24)


def _copy(template: Life, folder: Path) -> Life:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template.place.folder, folder)
    return Life(Place(folder, template.place.releases), template.held, set(template.pieces))


def by_disk(template: Life, step: Step, disk: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Does a step with more and more room, until it succeeds; yields the level, the exit code, problems."""
    for pages in levels():
        life = _copy(template, disk / "life")
        words = typed(life, step)
        with filled(disk, pages):
            found = run_step(life, step, words)
        yield f"{pages} pages free", found["code"], judged(life, step, found)
        if found["code"] == 0:
            return


def by_limit(template: Life, step: Step, folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """The same under the system's limit on the size of a file."""
    for limit in _LIMITS:
        life = _copy(template, folder / "life")

        def squeezed(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        found = run_step(life, step, typed(life, step), squeezed)
        yield f"files of at most {limit} bytes", found["code"], judged(life, step, found)
        if found["code"] == 0:
            return


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Mounts a small disk; gives why that was not possible, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        yield ended.stderr.strip() or "mount failed"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _again_in_namespace() -> int:
    """Starts this again where everybody may mount."""
    words = [sys.executable, "-m", "tests.robustness.full_disk", *sys.argv[1:]]
    if shutil.which("unshare") is None or _IN_NAMESPACE in os.environ:
        return 1
    env = os.environ | {_IN_NAMESPACE: "1"}
    return subprocess.run(["unshare", "-Urm", *words], env=env, check=False).returncode


def main() -> int:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/full-disk"))
    parser.add_argument("--release", type=Path, help="A release with onboarding; else a tiny one is made.")
    parser.add_argument("--step", default="", help="The one step to do; else all.")
    given = parser.parse_args()
    releases = two_releases(given.release or made_release(given.out), given.out)
    found: dict[str, Any] = {"tries": 0, "refused": 0, "findings": [], "mounted": False}
    with small_disk(given.out / "disk") as why:
        if why and _IN_NAMESPACE not in os.environ and _again_in_namespace() == 0:
            return 0
        found |= {"mounted": not why, "why_not": why}
        for step in (*STEPS, Step("predict")):
            # Fetching wants far more room than such a disk has.
            if given.step in ("", step.what) and step.what != "fetch":
                template = begun(given.out / "template", releases)
                lived(template, before(step))
                ways = [by_limit(template, step, given.out / "work")]
                ways += [] if why else [by_disk(template, step, given.out / "disk")]
                for way in ways:
                    _tell(found, step, way)
    for name in ("work", "template"):
        shutil.rmtree(given.out / name, ignore_errors=True)
    print(json.dumps(found, indent=2))
    return 1 if found["findings"] else 0


def _tell(found: dict[str, Any], step: Step, way: Iterator[tuple[str, int, list[str]]]) -> None:
    for where, code, problems in way:
        found["tries"] += 1
        found["refused"] += code == 2
        if problems:
            row = {"step": step.what, "name": step.name, "where": where, "code": code, "problems": problems}
            found["findings"].append(row)
            print(json.dumps(row)[:600], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
