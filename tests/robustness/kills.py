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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from tests.channels import Publisher
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
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.release import TOKENIZER, Blob, read_release, write_release
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
    Step("update", name="1"),
    Step("fetch", name="1"),
    Step("back"),
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


def begun(folder: Path, releases: tuple[Path, Path]) -> Life:
    """Returns a life before enrolment, in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Life(Place(folder, releases), Held())


def lived(life: Life, steps: tuple[Step, ...]) -> None:
    """Does steps to their end."""

    def work(say: Say) -> None:
        held = life.held
        for step in steps:
            found = do(life.place, held, step)
            held = replace(after(life.place, held, step), profiles=found)
            say({"done": found, "pieces": pieces(life.place.home)})

    ended = finished(work)
    assert not ended.error, ended.error
    for step, row in zip(steps, ended.said, strict=True):
        life.held = replace(after(life.place, life.held, step), profiles=row["done"])
        life.pieces |= set(row["pieces"])


@final
@dataclass(slots=True)
class Verdict:
    """What was found of a home: what does not hold, and whether the step seems undone, done, or either."""

    problems: list[str]
    undone: bool = False
    done: bool = False


def verified(life: Life, step: Step | None) -> Verdict:
    """Looks at a home after a kill, and brings the life up to the end of what was being done, if anything."""
    wanted = [life.held] + ([after(life.place, life.held, step)] if step is not None else [])
    other = step.name if step is not None and step.what == "rekey" else ""
    there = life.held.store and (step is None or step.what not in ("enroll", "erase"))
    ended = finished(lambda say: say(_looked(life.place, life.held, other, there)))
    if ended.error:
        return Verdict([f"it does not open: {ended.error}"])
    (found,) = ended.said
    now = after(life.place, life.held, Step("erase"))
    if found.get("rows") is not None:
        now = as_held(life.place, life.held, found)
    match = [_same(own, now) for own in wanted]
    problems = [] if any(match) else [f"it holds what nobody acknowledged: {_difference(wanted[-1], now)}"]
    if step is not None and step.what in ("learn", "onboard") and now.profiles and not found.get("learned"):
        problems.append("the profile is not what is learned from these entries")
    verdict = Verdict(problems, match[0], match[-1] and len(match) == 2)
    life.held = replace(now, exports=life.held.exports)
    problems += _erased(life, set(found.get("pieces", ())))
    if step is not None:
        problems += _again(life, step, verdict.done and not verdict.undone)
    problems += [f"left lying about: {name}" for name in leftovers(life.place, life.held)]
    problems += [f"in plain form: {name}" for name in plain_words(life.place)]
    return verdict


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
    names = ["entries", "key", "release", "previous"] + (["words"] if found.key == "passphrase" else [])
    same = all(getattr(wanted, name) == getattr(found, name) for name in names)
    return same and _fit(wanted.profiles, found.profiles)


def _fit(wanted: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Says whether profiles are those that were expected; of a new one it is not known before which."""
    return wanted.keys() == found.keys() and all(own in ("new", found[name]) for name, own in wanted.items())


def _difference(wanted: Held, found: Held) -> str:
    names = ("store", "entries", "profiles", "key", "release", "previous")
    other = [name for name in names if getattr(wanted, name) != getattr(found, name)]
    return f"{', '.join(other)}; {len(found.entries)} entries, expected {len(wanted.entries)}"


def _erased(life: Life, there: set[str]) -> list[str]:
    gone, life.pieces = life.pieces - there, life.pieces | there
    count = undead(life.place, gone)
    return [f"{count} erased pieces still lie in the store's files"] if count else []


def _again(life: Life, step: Step, done: bool) -> list[str]:
    """Does the step once more, to its end; it must succeed, and clear away what the kill has left."""
    if step.what == "erase" and not any(life.place.home.glob("store*")):
        return []
    if done and (step.what in ("enroll", "back") or step.name == "file"):
        return []
    ended = finished(lambda say: say({"profiles": do(life.place, life.held, step)}))
    if ended.error:
        return [f"the same again fails: {ended.error}"]
    life.held = replace(after(life.place, life.held, step), profiles=ended.said[0]["profiles"])
    life.pieces |= set(pieces(life.place.home))
    return []


_FIRST = (Step("enroll", name="file"), Step("add", rows=ROWS))
_BEFORE: dict[str, tuple[Step, ...]] = {
    "enroll": (),
    "learn": _FIRST,
    "onboard": _FIRST,
    "back": (*_FIRST, Step("learn"), Step("update", name="1")),
    "rekey": _FIRST,
    "import": (
        Step("enroll", name="file"),
        Step("add", rows=ROWS),
        Step("learn"),
        Step("export", name="0.umbel"),
        Step("forget", rows=ROWS[1:]),
    ),
}
_USUAL = (*_FIRST, Step("learn"))


def before(step: Step) -> tuple[Step, ...]:
    """Returns what is done before a step that is killed call by call."""
    own = _BEFORE.get(step.what, _USUAL)
    if step.what == "rekey" and step.name != WORDS[0]:
        own = (*own, Step("rekey", name=WORDS[0]))
    return own


def each_call(
    folder: Path, releases: tuple[Path, Path], step: Step, start: int = 1
) -> Iterator[tuple[int, Ended, list[str]]]:
    """Kills a step before each of its calls that change files; yields the call's number and what is wrong."""
    template = begun(folder / "template", releases)
    lived(template, before(step))
    number = start
    while True:
        life = Life(Place(folder / "life", releases), template.held, set(template.pieces))
        shutil.rmtree(life.place.folder, ignore_errors=True)
        shutil.copytree(template.place.folder, life.place.folder)
        ended = killed_before(lambda say, own=life: say({"done": do(own.place, own.held, step)}), number)  # type: ignore[misc]
        if not ended.killed:
            assert not ended.error, ended.error
            return
        yield number, ended, verified(life, step).problems
        number += 1


def random_kill(life: Life, seed: int, number: int) -> tuple[Ended, Step | None, Verdict]:
    """Lets a device do one thing after another until it is killed, and looks at what is left."""
    rng = generator(seed, number, "", "kill")

    def work(say: Say) -> None:
        own, held = generator(seed, number, "", "victim"), life.held
        while True:
            step = chosen(held, own)
            say({"begin": step.as_json(), "pieces": pieces(life.place.home)})
            found = do(life.place, held, step)
            held = replace(after(life.place, held, step), profiles=found)
            say({"done": found})

    if rng.random() < 0.7 and not can_trace():
        ended = killed_before(work, 1 + int(rng.integers(_MOST_CALLS)))
    else:
        ended = killed_after(work, float(rng.random()) * _LONGEST_SECONDS)
    step, wrong = _acknowledged(life, ended)
    if ended.error:
        return ended, step, Verdict([f"the device failed by itself: {ended.error}"])
    verdict = verified(life, step)
    verdict.problems += wrong
    return ended, step, verdict


def _acknowledged(life: Life, ended: Ended) -> tuple[Step | None, list[str]]:
    """Brings a life up to what a child acknowledged; returns what it was doing, and what was not as told."""
    step, wrong = None, []
    for row in ended.said:
        if "begin" in row:
            step = Step.from_json(row["begin"])
            life.pieces |= set(row["pieces"])
        elif step is not None:
            told = after(life.place, life.held, step)
            if not _fit(told.profiles, row["done"]):
                wrong.append(f"after {step.what} there are other profiles than there should be")
            life.held, step = replace(told, profiles=row["done"]), None
    return step, wrong


def command_kill(life: Life, seed: int, number: int) -> tuple[Ended, Step | None, Verdict]:
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
        return ended, step, Verdict([f"the command ended with {process.returncode}: {said.decode()[-300:]}"])
    if not ended.killed:
        life.held = after(life.place, life.held, step)
    return ended, step, verified(life, step if ended.killed else None)


def typed(life: Life, step: Step) -> list[str]:
    """Returns a step as it is typed."""
    home = ["--home", str(life.place.home)]
    if step.what == "enroll":
        return ["enroll", "--release", str(life.place.releases[0]), "--key", step.name, *home]
    if step.what == "erase":
        return ["forget", "--everything", "--yes", *home]
    if step.what == "add":
        return ["add", *home, *_files(life, step)]
    if step.what == "forget":
        ended = finished(lambda say: say({"numbers": _numbers(life, step)}))
        return ["forget", "--yes", "--no-learn", *home, *(f"--number={n}" for n in ended.said[0]["numbers"])]
    if step.what == "rekey":
        return ["rekey", "--key", "file" if step.name == "file" else "passphrase", *home]
    if step.what == "fetch":
        source = ["--source", str(life.place.channel), "--trust-on-first-use"]
        return ["update", "--force", *source, *home]
    if step.what in ("update", "back"):
        way = ["--back"] if step.what == "back" else ["--force", "--release", _release(life, step)]
        return ["update", *way, *home]
    if step.what in ("export", "import"):
        return [step.what, str(life.place.export(step.name)), *home]
    return [step.what, *home, *(["a good film"] if step.what == "predict" else [])]


def _release(life: Life, step: Step) -> str:
    return str(life.place.releases[int(step.name)])


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
        self.out, self.releases, self._told = out, two_releases(release, out), told
        self._file = out / "state.json"
        out.mkdir(parents=True, exist_ok=True)
        self.tally = Tally(**json.loads(self._file.read_text())) if self._file.exists() else Tally(seed)
        self._began = time.monotonic() - self.tally.seconds

    def each(self, only: str) -> None:
        """Kills steps before each of their calls; all steps, or those of one name."""
        for position, step in enumerate(STEPS):
            name = f"{position} {step.what}"
            done = self.tally.enumerated.get(name, 0)
            if done < 0 or only not in ("", step.what):
                continue
            for number, ended, problems in each_call(self.out / "work", self.releases, step, done + 1):
                self.tally.enumerated[name] = number
                self._note("each call", step, problems, f"before call {number}, {ended.calls[-1]}")
            self.tally.enumerated[name] = -max(1, self.tally.enumerated.get(name, 0))

    def random(self, count: int) -> None:
        """Kills at random until there were `count` such kills."""
        life = None
        while self.tally.kills - self.tally.by_way.get("each call", 0) < count:
            if life is None or self.tally.tries % _LIFE == 0:
                life = begun(self.out / "work" / "random", self.releases)
            self.tally.tries += 1
            command = self.tally.tries % _OFTEN == 0
            ended, step, verdict = (command_kill if command else random_kill)(
                life, self.tally.seed, self.tally.tries
            )
            problems = verdict.problems
            self.tally.acknowledged += sum("done" in row for row in ended.said)
            self.tally.kept_in_flight += verdict.done and not verdict.undone
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
    parser.add_argument("--count", type=int, default=500, help="Kills at random moments.")
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
        run.each(given.each)
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


def two_releases(first: Path, folder: Path) -> tuple[Path, Path]:
    """Returns the folders of a release and of one with another recipe and tokenizer; makes its channel."""
    release, second = read_release(first), folder / "release-next"
    manifest = release.manifest
    blobs = {name: release.blob_path(name).read_bytes() for name in manifest.blobs}
    blobs[TOKENIZER] += b"\n"
    following = replace(
        manifest,
        parent=release.release_id,
        recipe=replace(manifest.recipe, steps=manifest.recipe.steps + 1),
        blobs={name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()},
    )
    shutil.rmtree(folder / "channel", ignore_errors=True)
    shutil.rmtree(folder / "keys", ignore_errors=True)
    publisher = Publisher(folder / "channel", folder / "keys")
    publisher.channel.create()
    publisher.channel.add(write_release(second, following, blobs))
    return first.resolve(), second.resolve()


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
