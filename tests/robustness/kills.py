"""Kills a device at its work, again and again, and looks each time at what it has left.

    python -m tests.robustness.kills --count 500 --out runs/kills

First every step of an owner is killed before each system call that changes a file, from the first to the
last. The rest of the kills meet a device that does one thing after another, at a random call or time, and
one in ten the real `umbel device` command. Stopped, it goes on where it was. Each finding is a line of
findings.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from tests.robustness.children import Ended, Say, can_trace, finished, killed_after, killed_before
from tests.robustness.owner_life import (
    EXPORT_WORDS,
    WORDS,
    Held,
    Place,
    Step,
    after,
    as_held,
    chosen,
    do,
    exports_open,
    leftovers,
    pieces,
    plain_words,
    seen,
    undead,
)

from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write
from umbel.shared.rng import generator

_LIFE = 25  # kills that one home lives through
_MOST_CALLS = 120
_LONGEST_SECONDS = 1.5
_COMMAND_SECONDS = 1.6
_OFTEN = 10  # one in so many kills meets the real command

ROWS = (("cnry1 good film", "yes"), ("cnry2 bad book", "no"), ("cnry3 we like", None))
STEPS = (
    Step("enroll", name="file"),
    Step("enroll", name="passphrase"),
    Step("add", rows=(("cnry4 slow film", "no"), ("cnry1 good film", "no"), ("cnry5 tender", None))),
    Step("learn"),
    Step("onboard"),
    Step("forget", rows=ROWS[:2]),
    Step("rekey", name=WORDS[0]),
    Step("rekey", name="file"),
    Step("rekey", name=WORDS[1]),
    Step("export", name="0.umbel"),
    Step("import", name="0.umbel"),
    Step("erase"),
)
"""Each is killed before each of its calls; what went before is in `_before`."""


@final
@dataclass(slots=True)
class Tally:
    """What was done so far; it is kept after each kill."""

    seed: int = 0
    kills: int = 0
    tries: int = 0
    enumerated: dict[str, int] = field(default_factory=dict)
    by_step: dict[str, int] = field(default_factory=dict)
    by_way: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    kept_in_flight: int = 0
    findings: int = 0
    seconds: float = 0.0


@final
@dataclass(slots=True)
class Life:
    """One home: what it must hold, and every sealed piece that was ever seen in it."""

    place: Place
    held: Held
    pieces: set[str] = field(default_factory=set)


def begun(folder: Path, release: Path) -> Life:
    """Returns a life before enrolment, in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Life(Place(folder, release), Held())


def lived(life: Life, steps: tuple[Step, ...]) -> None:
    """Does steps to their end."""

    def work(say: Say) -> None:
        held = life.held
        for step in steps:
            found = do(life.place, held, step)
            held = after(held, step, found)
            say({"done": found, "pieces": pieces(life.place.home)})

    ended = finished(work)
    assert not ended.error, ended.error
    for step, row in zip(steps, ended.said, strict=True):
        life.held = after(life.held, step, row["done"])
        life.pieces |= set(row["pieces"])


def verified(life: Life, step: Step | None) -> tuple[list[str], bool]:
    """Looks at a home after a kill.

    Args:
        life: What was acknowledged; brought up to what is found, and to the end of the step.
        step: What was being done.

    Returns:
        What does not hold, and whether the step was found done.
    """
    wanted = [life.held] + ([after(life.held, step)] if step is not None else [])
    other = step.name if step is not None and step.what == "rekey" else ""
    problems: list[str] = []
    there = step is None or step.what not in ("enroll", "erase")
    ended = finished(lambda say: say(_looked(life.place, life.held, other, there)))
    if ended.error:
        return [f"it does not open: {ended.error}"], False
    (found,) = ended.said
    now = as_held(life.held, found) if found.get("rows") is not None else replace(life.held, store=False)
    if not now.store:
        now = replace(now, entries=(), profile="")
    match = [own for own in wanted if _same(own, now)]
    if not match:
        problems.append(f"it holds what nobody acknowledged: {_difference(wanted, now)}")
    done = len(wanted) == 2 and (not match or match[-1] is wanted[1]) and wanted[0] != wanted[1]
    profile = found.get("profile", "")
    life.held = replace(now, profile=profile, exports=life.held.exports)
    problems += _erased(life, set(found.get("pieces", ())))
    if step is not None:
        problems += _again(life, step, done)
    problems += [f"left lying about: {name}" for name in leftovers(life.place, life.held)]
    problems += [f"in plain form: {name}" for name in plain_words(life.place)]
    return problems, done


def _looked(place: Place, held: Held, other: str, there: bool) -> dict[str, Any]:
    """Returns what a home holds; where a store may be missing or half erased, also that it is."""
    exports_open(place, [path.name for path in place.export("").glob("[01].umbel")])
    try:
        return seen(place, held, other)
    except UmbelError as error:
        if there:
            raise
        return {"pieces": pieces(place.home), "refused": error.headline}


def _same(wanted: Held, found: Held) -> bool:
    if not wanted.store or not found.store:
        return wanted.store == found.store
    names = ["entries", "profile", "key"] + (["words"] if found.key == "passphrase" else [])
    return all(getattr(wanted, name) == getattr(found, name) for name in names)


def _difference(wanted: list[Held], found: Held) -> str:
    names = [
        name
        for name in ("store", "entries", "profile", "key")
        if getattr(wanted[0], name) != getattr(found, name)
    ]
    return (
        f"{', '.join(names)}; {len(found.entries)} entries, expected {[len(own.entries) for own in wanted]}"
    )


def _erased(life: Life, there: set[str]) -> list[str]:
    gone, life.pieces = life.pieces - there, life.pieces | there
    count = undead(life.place, gone)
    return [f"{count} erased pieces still lie in the store's files"] if count else []


def _again(life: Life, step: Step, done: bool) -> list[str]:
    """Does the step once more, to its end; it must succeed, and clear away what the kill has left."""
    if done and (step.what in ("enroll", "erase") or step.name == "file"):
        return []
    if not life.held.store and step.what == "erase" and not any(life.place.home.glob("store*")):
        return []
    ended = finished(lambda say: say({"profile": do(life.place, life.held, step)}))
    if ended.error:
        return [f"the same again fails: {ended.error}"]
    life.held = after(life.held, step, ended.said[0]["profile"])
    life.pieces |= set(pieces(life.place.home))
    return []


_BEFORE: dict[str, tuple[Step, ...]] = {
    "enroll": (),
    "rekey": (Step("enroll", name="file"), Step("add", rows=ROWS)),
    "import": (
        Step("enroll", name="file"),
        Step("add", rows=ROWS),
        Step("learn"),
        Step("export", name="0.umbel"),
        Step("forget", rows=ROWS[1:]),
    ),
}
_USUAL = (Step("enroll", name="file"), Step("add", rows=ROWS), Step("learn"))


def before(step: Step) -> tuple[Step, ...]:
    """Returns what is done before a step that is killed call by call."""
    own = _BEFORE.get(step.what, _USUAL)
    if step.what == "rekey" and step.name != WORDS[0]:
        own = (*own, Step("rekey", name=WORDS[0]))
    return own


def each_call(
    folder: Path, release: Path, step: Step, start: int = 1
) -> Iterator[tuple[int, Ended, list[str]]]:
    """Kills a step before each of its calls that change files; yields the call's number and what is wrong."""
    template = begun(folder / "template", release)
    lived(template, before(step))
    number = start
    while True:
        life = Life(Place(folder / "life", release), template.held, set(template.pieces))
        shutil.rmtree(life.place.folder, ignore_errors=True)
        shutil.copytree(template.place.folder, life.place.folder)
        ended = killed_before(lambda say, own=life: say({"done": do(own.place, own.held, step)}), number)  # type: ignore[misc]
        if not ended.killed:
            assert not ended.error, ended.error
            return
        yield number, ended, verified(life, step)[0]
        number += 1


def random_kill(life: Life, seed: int, number: int) -> tuple[Ended, Step | None, list[str], bool]:
    """Lets a device do one thing after another until it is killed, and looks at what is left."""
    rng = generator(seed, number, "", "kill")

    def work(say: Say) -> None:
        own, held = generator(seed, number, "", "victim"), life.held
        while True:
            step = chosen(held, own)
            say({"begin": step.as_json(), "pieces": pieces(life.place.home)})
            found = do(life.place, held, step)
            held = after(held, step, found)
            say({"done": found})

    if rng.random() < 0.7 and not can_trace():
        ended = killed_before(work, 1 + int(rng.integers(_MOST_CALLS)))
    else:
        ended = killed_after(work, float(rng.random()) * _LONGEST_SECONDS)
    step = _acknowledged(life, ended)
    if ended.error:
        return ended, step, [f"the device failed by itself: {ended.error}"], False
    problems, done = verified(life, step)
    return ended, step, problems, done


def _acknowledged(life: Life, ended: Ended) -> Step | None:
    """Brings a life up to what a child acknowledged; returns what it was doing."""
    step = None
    for row in ended.said:
        if "begin" in row:
            step = Step.from_json(row["begin"])
            life.pieces |= set(row["pieces"])
        elif step is not None:
            life.held, step = after(life.held, step, row["done"]), None
    return step


def command_kill(life: Life, seed: int, number: int) -> tuple[Ended, Step | None, list[str], bool]:
    """Kills the real command at a random time; that it ended with 0 is its acknowledgement."""
    rng = generator(seed, number, "", "kill")
    step = chosen(life.held, generator(seed, number, "", "victim"))
    life.pieces |= set(pieces(life.place.home))
    process = subprocess.Popen(
        [sys.executable, "-m", "umbel", "device", *typed(life, step)],
        env=os.environ
        | {
            "UMBEL_PASSPHRASE": life.held.words,
            "UMBEL_NEW_PASSPHRASE": step.name,
            "UMBEL_EXPORT_PASSPHRASE": EXPORT_WORDS,
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = process.communicate(timeout=float(rng.random()) * _COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    ended = Ended(killed=process.returncode == -signal.SIGKILL)
    if process.returncode not in (0, -signal.SIGKILL):
        return ended, step, [f"the command ended with {process.returncode}: {said.decode()[-300:]}"], False
    if not ended.killed:
        found = finished(lambda say: say({"profile": _profile_of(life, after(life.held, step))}))
        life.held = after(life.held, step, found.said[0]["profile"] if found.said else "")
    problems, done = verified(life, step if ended.killed else None)
    return ended, step, problems, done


def _profile_of(life: Life, held: Held) -> str:
    return str(seen(life.place, held)["profile"]) if held.store else ""


def typed(life: Life, step: Step) -> list[str]:
    """Returns a step as it is typed."""
    home = ["--home", str(life.place.home)]
    if step.what == "enroll":
        return ["enroll", "--release", str(life.place.release), "--key", step.name, *home]
    if step.what == "erase":
        return ["forget", "--everything", "--yes", *home]
    if step.what == "add":
        return ["add", *home, *_files(life, step)]
    if step.what == "forget":
        ended = finished(lambda say: say({"numbers": _numbers(life, step)}))
        return ["forget", "--yes", *home, *(f"--number={n}" for n in ended.said[0]["numbers"])]
    if step.what == "rekey":
        return ["rekey", "--key", "file" if step.name == "file" else "passphrase", *home]
    if step.what in ("export", "import"):
        return [step.what, str(life.place.export(step.name)), *home]
    return [step.what, *home, *(["a good film"] if step.what == "predict" else [])]


def _files(life: Life, step: Step) -> list[str]:
    words = []
    examples = [{"text": text, "label": label} for text, label in step.rows if label is not None]
    texts = [text for text, label in step.rows if label is None]
    if examples:
        path = life.place.folder / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in examples))
        words += ["--examples", str(path)]
    if texts:
        path = life.place.folder / "mine.txt"
        path.write_text("".join(text + "\n" for text in texts))
        words += ["--texts", str(path)]
    return words


def _numbers(life: Life, step: Step) -> list[int]:
    from tests.robustness.owner_life import opened

    gone = {text for text, _ in step.rows}
    with opened(life.place, life.held) as device:
        return [own.number for own in device.entries() if own.text in gone]


@final
class Run:
    """Kills until a count is reached, and keeps what it knows after each."""

    def __init__(self, out: Path, release: Path, seed: int, told: Callable[[str], None]):
        self.out, self.release, self._told = out, release, told
        self._file = out / "state.json"
        out.mkdir(parents=True, exist_ok=True)
        self.tally = Tally(**json.loads(self._file.read_text())) if self._file.exists() else Tally(seed)
        self._began = time.monotonic() - self.tally.seconds

    def each(self, count: int, only: str) -> None:
        """Kills steps before each of their calls; all steps, or those of one name."""
        for position, step in enumerate(STEPS):
            name = f"{position} {step.what}"
            done = self.tally.enumerated.get(name, 0)
            if done < 0 or self.tally.kills >= count or only not in ("", step.what):
                continue
            for number, ended, problems in each_call(self.out / "work", self.release, step, done + 1):
                self.tally.enumerated[name] = number
                self._note("each call", step, problems, f"before call {number}, {ended.calls[-1]}")
                if self.tally.kills >= count:
                    return
            self.tally.enumerated[name] = -max(1, self.tally.enumerated.get(name, 0))

    def random(self, count: int) -> None:
        """Kills at random until there were `count` in all."""
        life = None
        while self.tally.kills < count:
            if life is None or self.tally.tries % _LIFE == 0:
                life = begun(self.out / "work" / "random", self.release)
            self.tally.tries += 1
            command = self.tally.tries % _OFTEN == 0
            ended, step, problems, done = (command_kill if command else random_kill)(
                life, self.tally.seed, self.tally.tries
            )
            self.tally.acknowledged += sum("done" in row for row in ended.said)
            self.tally.kept_in_flight += done
            if ended.killed or problems:
                place = f"try {self.tally.tries}, {len(ended.calls)} calls"
                self._note("command" if command else "random", step, problems, place)
            if problems:
                self._keep_evidence()
                life = None

    def _note(self, way: str, step: Step | None, problems: list[str], where: str) -> None:
        what = "between steps" if step is None else step.what
        self.tally.kills += 1
        self.tally.by_step[what] = self.tally.by_step.get(what, 0) + 1
        self.tally.by_way[way] = self.tally.by_way.get(way, 0) + 1
        if problems:
            self.tally.findings += 1
            row = {"way": way, "step": what, "where": where, "problems": problems}
            with (self.out / "findings.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            self._told(json.dumps(row))
        self.tally.seconds = round(time.monotonic() - self._began, 1)
        atomic_write(self._file, json.dumps(asdict(self.tally), indent=2).encode())
        if self.tally.kills % 50 == 0:
            self._told(
                f"{self.tally.kills} kills, {self.tally.findings} findings, {self.tally.seconds:.0f} s"
            )

    def _keep_evidence(self) -> None:
        target = self.out / f"finding-{self.tally.findings}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.out / "work" / "random", target, dirs_exist_ok=True)


def main() -> int:
    """Runs the kills that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="Kills in all.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"), help="It goes on with what is there.")
    parser.add_argument("--release", type=Path, help="A release with onboarding; else a tiny one is made.")
    parser.add_argument("--each", default="", help="The one step that is killed call by call; else all are.")
    parser.add_argument("--json", action="store_true", help="Print what was done as JSON.")
    given = parser.parse_args()
    run = Run(
        given.out,
        given.release or made_release(given.out),
        given.seed,
        lambda words: print(words, file=sys.stderr),
    )
    if not can_trace():
        run.each(given.count, given.each)
    run.random(given.count)
    shutil.rmtree(given.out / "work", ignore_errors=True)
    print(json.dumps(asdict(run.tally), indent=2) if given.json else _summary(run.tally))
    return 1 if run.tally.findings else 0


def _summary(tally: Tally) -> str:
    steps = ", ".join(f"{name} {count}" for name, count in sorted(tally.by_step.items()))
    ways = ", ".join(f"{name} {count}" for name, count in sorted(tally.by_way.items()))
    return (
        f"{tally.kills} kills ({ways}) in {tally.seconds:.0f} s, {tally.findings} findings.\nDuring: {steps}."
    )


def made_release(folder: Path) -> Path:
    """Returns the folder of a tiny release, made in a process of its own, for torch starts threads."""
    if not (folder / "release" / "manifest.json").is_file():
        code = (
            "import sys; from pathlib import Path; from tests.builders import EMBEDDED, tiny_release; "
            "from umbel.shared.recipe import LearningRecipe as R; "
            "tiny_release(Path(sys.argv[1]), onboarding=True, methods=EMBEDDED, "
            "recipe=R(steps=6, folds=3, start=1.0))"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return folder / "release"


if __name__ == "__main__":
    sys.exit(main())
