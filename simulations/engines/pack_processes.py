"""Processes that answer packs of devices: what Python works on would wait for one another in threads."""

from __future__ import annotations

import copyreg
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import IO, Self, final

from flwr.app import Array, Message, RecordDict

from umbel.shared.errors import TrainingError
from umbel.simulations.engines.packs import Asked

_COMMAND = (sys.executable, "-P", "-m", "umbel.simulations.engines.pack_worker")  # not what lies about here
_ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_ENDS_S = 10.0
_LOOK_S = 1.0  # between two looks at whether everybody still works


@final
class PackProcesses:
    """Some processes, each with the release open."""

    def __init__(self, count: int):
        """Starts them; until they are ready, their packs wait.

        Args:
            count: How many.
        """
        self._all = [_started() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends them; at an error at once."""
        for process in self._all:
            _end(process, at_once=kind is not None)

    def answers(self, packs: Sequence[Sequence[Asked]]) -> Iterator[Message]:
        """Yields what devices answer, in the order in which they were asked; contexts get their states.

        Raises:
            TrainingError: A process has ended.
        """
        shares = Shares(packs, len(self._all))
        with ThreadPoolExecutor(len(self._all), thread_name_prefix="pack") as threads:
            try:
                ended = [threads.submit(_work, shares, own, process) for own, process in enumerate(self._all)]
                for number in range(len(packs)):
                    answers = shares.answered(number, ended)
                    yield from answers
            finally:
                shares.clear()


@final
class Shares:
    """A round's packs, shared out to processes; whoever has none left takes the last of those with most.

    Devices stand in the order of their numbers, so that in every round most of them go where their texts are
    known. Who answers changes no number.
    """

    def __init__(self, packs: Sequence[Sequence[Asked]], count: int):
        """Shares packs out.

        Args:
            packs: What is asked.
            count: Of the processes.
        """
        self.packs = packs
        self._waiting: list[deque[int]] = [deque() for _ in range(count)]
        self._answers: dict[int, list[Message]] = {}
        self._changed = threading.Condition()
        start, devices = 0, sum(map(len, packs))
        for number, pack in enumerate(packs):
            self._waiting[start * count // devices].append(number)
            start += len(pack)

    def take(self, own: int) -> int | None:
        """Returns the number of the next pack for a process; None if there is none."""
        with self._changed:
            if self._waiting[own]:
                return self._waiting[own].popleft()
            most = max(self._waiting, key=len)
            return most.pop() if most else None

    def give(self, number: int, answers: list[Message]) -> None:
        """Takes a pack's answers."""
        with self._changed:
            self._answers[number] = answers
            self._changed.notify()

    def answered(self, number: int, working: Sequence[Future[None]]) -> list[Message]:
        """Waits for a pack's answers; what has ended who works on them is raised."""
        with self._changed:
            while number not in self._answers:
                for work in working:
                    if work.done():
                        work.result()
                self._changed.wait(_LOOK_S)
            return self._answers.pop(number)

    def clear(self) -> None:
        """Lets nobody begin another pack."""
        with self._changed:
            for waiting in self._waiting:
                waiting.clear()


def _work(shares: Shares, own: int, process: subprocess.Popen[bytes]) -> None:
    while (number := shares.take(own)) is not None:
        shares.give(number, _answered(process, shares.packs[number]))


def _answered(process: subprocess.Popen[bytes], asked: Sequence[Asked]) -> list[Message]:
    try:
        send(list(asked), _pipe(process.stdin))
        answers, states = pickle.load(_pipe(process.stdout))
    except (EOFError, OSError, pickle.UnpicklingError):
        code = _exit_code(process)
        raise TrainingError(
            "a process of the cohort has ended",
            [f"its exit code is {code}" + (" (killed)" if code < 0 else "")],
            "Out of memory? Fewer --workers need less. The same command goes on from the last round.",
        ) from None
    for (_, context), state in zip(asked, states, strict=True):
        context.state = RecordDict() if state is None else state
    return list(answers)


def send(what: object, pipe: IO[bytes]) -> None:
    """Writes messages to a pipe."""
    pickler = pickle.Pickler(pipe, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {**copyreg.dispatch_table, Array: _parts}
    pickler.dump(what)
    pipe.flush()


def _parts(array: Array) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
    """Returns what an array is made of, without what Flower remembers of it, which cannot be sent."""
    return Array, (array.dtype, tuple(array.shape), array.stype, array.data)


def _started() -> subprocess.Popen[bytes]:
    """Starts a process; Ctrl-C is for this one to answer, and it ends when its pipe does."""
    return subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_ALONE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    if at_once:
        process.kill()
    with suppress(OSError):
        _pipe(process.stdin).close()
    _exit_code(process)
    _pipe(process.stdout).close()


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Waits until a process has ended, and returns its exit code; one that stays is killed."""
    try:
        return process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
