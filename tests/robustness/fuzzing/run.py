"""Feeds hostile inputs to everything that reads what somebody else wrote.

    python -m tests.robustness.fuzzing.run --count 1000000 --jobs 2 --out runs/fuzz
    python -m tests.robustness.fuzzing.run --replay runs/fuzz/findings/FILE

An input may be read or refused with an UmbelError, within a second of the processor and within a bound of
memory. Everything else is a finding: it is kept in a file that --replay reads. Inputs depend on the seed,
the target and the batch alone. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from tests.robustness.fuzzing.mutations import Dice
from tests.robustness.fuzzing.targets import Target, targets

from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.rng import generator

BATCH = 1000
SECONDS = 1.0
"""Of the processor, so that it does not matter what else a machine does."""
HEAVY_SECONDS = 5.0
"""Where native code works, which a timer does not end in between, and scrypt."""
WAITED_SECONDS = 20.0
"""On the clock: nothing may be waited for."""
MORE_BYTES = 512 << 20
"""How much more memory than at its beginning a process may have."""
_MOST_KINDS = 40


class _TooSlow(BaseException):
    """An input took too long; no reader's `except Exception` may swallow it."""


@final
@dataclass(slots=True)
class Done:
    """What came of some inputs of a target."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    findings: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest: str = ""
    peak_bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, other: Done) -> None:
        """Adds what came of other inputs."""
        for name in ("inputs", "read", "refused", "findings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = round(self.seconds + other.seconds, 3)
        if other.slowest_seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = other.slowest_seconds, other.slowest
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        counts = Counter(self.kinds)
        counts.update(other.kinds)
        self.kinds = dict(counts.most_common(_MOST_KINDS))


def fed(target: Target, data: bytes) -> str:
    """Reads one input; returns what came of it: "read", an UmbelError's kind, or, after "!", a finding."""
    try:
        signal.setitimer(signal.ITIMER_PROF, HEAVY_SECONDS if target.heavy else SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITED_SECONDS)
        try:
            target.read(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except UmbelError as error:
        return f"{type(error).__name__}: {error.headline.split('/')[0][:60]}"
    except _TooSlow:
        return "!too slow"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        steps = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{os.path.basename(step.filename)}:{step.lineno}" for step in reversed(steps))
        return f"!{type(error).__name__} at {where}"
    return "read"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bounds what an input may take of time and memory, while it lasts."""

    def stop(*_: object) -> None:
        raise _TooSlow

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGALRM, signal.SIGPROF)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + MORE_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def inputs(name: str, target: Target, seed: int, batch: int, count: int) -> Iterator[bytes]:
    """Returns the inputs of a batch; the same ones each time."""
    dice = Dice(generator(seed, batch, name, "fuzz"))
    return (_made(target, dice) for _ in range(count))


def _made(target: Target, dice: Dice) -> bytes:
    try:
        return target.make(dice)
    except RecursionError:  # two deep values in one another: more than Python can write
        return b"[" * 2000


def one_batch(
    name: str, target: Target, seed: int, batch: int, count: int, keep: Callable[[bytes, str], None],
    start: int = 0, at: Callable[[int], None] = lambda index: None,
) -> Done:  # fmt: skip
    """Feeds a batch to a target; what is found is kept. Inputs before `start` are made and not fed."""
    done, kinds = Done(), Counter[str]()
    began = time.perf_counter()
    for index, data in enumerate(inputs(name, target, seed, batch, count)):
        if index < start:
            continue
        at(index)
        before = time.process_time()
        found = fed(target, data)
        took = time.process_time() - before
        if took > done.slowest_seconds:
            done.slowest_seconds, done.slowest = (
                took,
                f"batch {batch}, input {index}, {len(data)} bytes: {found[:80]}",
            )
        kinds[found] += 1
        if found.startswith("!"):
            keep(data, found)
    done.kinds = dict(kinds)
    done.inputs, done.read = kinds.total(), kinds["read"]
    done.findings = sum(times for kind, times in kinds.items() if kind.startswith("!"))
    done.refused = done.inputs - done.read - done.findings
    done.seconds = time.perf_counter() - began
    done.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return done


def plan(shares: dict[str, float], count: int) -> list[tuple[str, int, int]]:
    """Returns (target, batch, inputs) for a number of inputs in all, the targets in turns."""
    total = sum(shares.values())
    wanted = {name: math.ceil(count * share / total) for name, share in shares.items()}
    batches = [
        (name, batch, min(BATCH, own - batch * BATCH))
        for name, own in wanted.items()
        for batch in range(math.ceil(own / BATCH))
    ]
    return sorted(batches, key=lambda row: (row[1] * BATCH / wanted[row[0]], row[0]))


@final
class Fuzz:
    """Works through a plan with several processes, and keeps after each batch what came of it."""

    def __init__(self, out: Path, seed: int, tell: Callable[[str], None]):
        self.out, self.seed, self._tell = out, seed, tell
        (out / "findings").mkdir(parents=True, exist_ok=True)
        self._file = out / "state.json"
        kept: dict[str, Any] = (
            json.loads(self._file.read_text())
            if self._file.exists()
            else {"done": {}, "batches": [], "seconds": 0}
        )
        self.done = {name: Done(**row) for name, row in kept["done"].items()}
        self._batches = {(name, batch, count) for name, batch, count in kept["batches"]}
        self.seconds = float(kept["seconds"])

    @property
    def inputs(self) -> int:
        """How many inputs were fed."""
        return sum(own.inputs for own in self.done.values())

    def run(self, shares: dict[str, float], count: int, jobs: int) -> None:
        """Feeds what of a plan was not fed yet."""
        todo = [row for row in plan(shares, count) if row not in self._batches]
        workers = [_Worker(self.out, self.seed, todo[number::jobs]) for number in range(jobs)]
        began, before = time.monotonic(), self.seconds
        try:
            while any(worker.alive for worker in workers):
                for worker in workers:
                    for row, done in worker.news():
                        self.done.setdefault(row[0], Done()).add(done)
                        self._batches.add(row)
                        self.seconds = round(before + time.monotonic() - began, 1)
                        self._keep()
                time.sleep(0.05)
        finally:
            for worker in workers:
                worker.stop()

    def _keep(self) -> None:
        row = {
            "done": {name: asdict(own) for name, own in self.done.items()},
            "batches": sorted(self._batches),
            "seconds": self.seconds,
        }
        atomic_write(self._file, json.dumps(row).encode())
        if len(self._batches) % 50 == 0:
            found = sum(own.findings for own in self.done.values())
            self._tell(f"{self.inputs:,} inputs, {found} findings, {self.seconds:.0f} s")

    def summary(self) -> dict[str, Any]:
        """Returns what came of it all, for people and scripts."""
        rows = {}
        for name, own in sorted(self.done.items()):
            refusals = {kind: times for kind, times in own.kinds.items() if kind != "read"}
            rows[name] = {
                "inputs": own.inputs, "read": own.read, "refused": own.refused, "findings": own.findings,
                "per_second": round(own.inputs / own.seconds) if own.seconds else 0,
                "kinds_of_errors": len(refusals), "slowest_ms": round(own.slowest_seconds * 1000, 1),
                "slowest": own.slowest, "peak_mib": own.peak_bytes >> 20,
            }  # fmt: skip
        findings = sum(own.findings for own in self.done.values())
        return {"inputs": self.inputs, "findings": findings, "seconds": self.seconds, "targets": rows}


@final
class _Worker:
    """A process that feeds batches; where an input ends it, that is a finding, and another one goes on."""

    def __init__(self, out: Path, seed: int, todo: list[tuple[str, int, int]]):
        self._out, self._seed, self._todo = out, seed, todo
        self._place = mmap.mmap(-1, 8)
        self._lost: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._text = b""
        self._pid = 0
        self._start(0)

    @property
    def alive(self) -> bool:
        """Whether there is something left to do or to tell."""
        return self._pid != 0

    def _start(self, first: int) -> None:
        if not self._todo:
            return
        self._stream, end = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid:
            os.close(end)
            os.set_blocking(self._stream, False)
            return
        try:
            os.close(self._stream)
            with _quiet():
                self._work(end, first)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)

    def _work(self, end: int, first: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        folder = Path(
            tempfile.mkdtemp(prefix="umbel-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        )
        try:
            known = targets(folder)
            with bounded():
                for row in self._todo:
                    name, batch, count = row

                    def keep(data: bytes, found: str, name: str = name) -> None:
                        kept_finding(self._out, name, data, found)

                    done = one_batch(
                        name, known[name], self._seed, batch, count, keep, first,
                        lambda index: self._place.__setitem__(slice(0, 8), index.to_bytes(8, "little")),
                    )  # fmt: skip
                    first = 0
                    gc.collect()
                    line = json.dumps([row, asdict(done)]).encode() + b"\n"
                    while line:
                        line = line[os.write(end, line) :]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def news(self) -> Iterator[tuple[tuple[str, int, int], Done]]:
        """Returns the batches that were done since."""
        if not self._pid:
            return
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._stream, 1 << 16):
                self._text += piece
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            row, done = json.loads(line)
            fed_before, deaths = self._lost.pop(tuple(row), (0, 0))
            own = Done(**done)
            own.inputs, own.findings = own.inputs + fed_before, own.findings + deaths
            self._todo.pop(0)
            yield tuple(row), own
        if ended:
            os.close(self._stream)
            self._pid = 0
            if status and self._todo:
                self._go_on(status)

    def _go_on(self, status: int) -> None:
        """Keeps the input that has ended the process, and starts another one behind it."""
        index = int.from_bytes(self._place[:8], "little")
        row = self._todo[0]
        name, batch, _ = row
        folder = Path(tempfile.mkdtemp(prefix="umbel-fuzz-"))
        try:
            made = list(inputs(name, targets(folder)[name], self._seed, batch, index + 1))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        kept_finding(self._out, name, made[-1], f"!the process ended with {status}")
        # What was counted of this batch went with the process.
        self._lost[row] = (index + 1, self._lost.get(row, (0, 0))[1] + 1)
        self._start(index + 1)

    def stop(self) -> None:
        """Ends the process, if it runs."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what native libraries print of hostile inputs off the terminal."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def kept_finding(out: Path, name: str, data: bytes, found: str) -> Path:
    """Keeps an input that something came of that must not; few of one kind."""
    kind = sha256_bytes(f"{name} {found}".encode())[:8]
    folder = out / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_').replace(':', '')}-{kind}-{sha256_bytes(data)[:8]}"
    if len(list(folder.glob(f"*-{kind}-*"))) < 6:
        atomic_write(path, json.dumps({"target": name, "found": found}).encode() + b"\n" + data)
    return path


def replayed(path: Path) -> str:
    """Feeds a kept input again; returns what came of it."""
    head, _, data = path.read_bytes().partition(b"\n")
    folder = Path(tempfile.mkdtemp(prefix="umbel-fuzz-"))
    try:
        known = targets(folder)
        with bounded():
            return fed(known[json.loads(head)["target"]], data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000, help="Inputs in all.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Processes.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="Targets whose name begins so.", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="It goes on with what is there.")
    parser.add_argument("--replay", type=Path, help="Feed one kept input again.")
    parser.add_argument("--json", action="store_true", help="Print what came of it as JSON.")
    given = parser.parse_args()
    if given.replay is not None:
        print(replayed(given.replay))
        return 0
    fuzz = Fuzz(given.out, given.seed, lambda words: print(words, file=sys.stderr, flush=True))
    folder = Path(tempfile.mkdtemp(prefix="umbel-fuzz-"))
    shares = {name: own.share for name, own in targets(folder).items() if name.startswith(given.only)}
    shutil.rmtree(folder, ignore_errors=True)
    fuzz.run(shares, given.count, given.jobs)
    found = fuzz.summary()
    print(json.dumps(found, indent=2) if given.json else _table(found))
    return 1 if found["findings"] else 0


_COLUMNS = (
    "inputs",
    "read",
    "refused",
    "findings",
    "per_second",
    "kinds_of_errors",
    "slowest_ms",
    "peak_mib",
)


def _table(found: dict[str, Any]) -> str:
    rows = [["target", *_COLUMNS]]
    rows += [[name, *(f"{own[column]:,}" for column in _COLUMNS)] for name, own in found["targets"].items()]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    told = f"{found['inputs']:,} inputs, {found['findings']} findings, {found['seconds']:.0f} s."
    return "\n".join([*lines, told])


if __name__ == "__main__":
    sys.exit(main())
