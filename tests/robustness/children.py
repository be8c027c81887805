"""Work done in a process of its own, which is killed: after a time, or before an exact system call.

A forked child has everything imported already, so that hundreds of them take seconds. Under `ptrace` it stops
at each system call; it is killed before the n-th of those that change files, and n counts up until the work
ends by itself. So no moment between two changes is left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

Say = Callable[[dict[str, Any]], None]
"""Tells the parent something, at once."""

Work = Callable[[Say], None]

_TRACEME, _SYSCALL, _SETOPTIONS, _INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _EXITKILL = 1, 0x100000
_ENTRY = 1
_CREATE = 0x40
_OPEN, _OPENAT = 2, 257
_WRITES = {1: "write", 18: "pwrite", 20: "writev", 296: "pwritev"}
_CHANGES = {
    74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 82: "rename", 264: "renameat",
    316: "renameat2", 87: "unlink", 263: "unlinkat", 86: "link", 265: "linkat", 83: "mkdir", 258: "mkdirat",
    84: "rmdir", 90: "chmod", 91: "fchmod", 268: "fchmodat", 285: "fallocate", 326: "copy_file_range",
    40: "sendfile", 88: "symlink", 266: "symlinkat",
}  # fmt: skip


@final
@dataclass(slots=True)
class Ended:
    """How a child ended.

    Attributes:
        killed: Whether it was killed, and not already at its end.
        said: What it told, in order.
        calls: The system calls that changed files, by name, up to there.
        error: Where and as what it failed, if it did so by itself; no words of an exception.
    """

    killed: bool = False
    said: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    error: str = ""


class _Info(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("more", ctypes.c_uint64 * 4),
    ]


def can_trace() -> str:
    """Returns why system calls cannot be counted here; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "system calls are counted on Linux on x86-64 only"
    try:
        found = killed_before(lambda say: say({}), 10**9)
    except OSError as error:
        return f"ptrace is not allowed here ({error.strerror})"
    return "" if found.said == [{}] else "ptrace is not allowed here"


def finished(work: Work) -> Ended:
    """Does the work in a child that nobody kills."""
    return killed_after(work, float("inf"))


def killed_after(work: Work, seconds: float) -> Ended:
    """Does the work in a child, and kills it after a time."""
    pid, stream = _started(work, traced=False)
    told = b""
    until = time.monotonic() + seconds
    ended = Ended()
    try:
        while True:
            left = until - time.monotonic()
            if not ended.killed and left <= 0:
                os.kill(pid, signal.SIGKILL)
                ended.killed = True
            wait = None if ended.killed or left == float("inf") else max(left, 0.0)
            if select.select([stream], [], [], wait)[0]:
                piece = os.read(stream, 1 << 16)
                if not piece:
                    break
                told += piece
    finally:
        os.close(stream)
        _, status = os.waitpid(pid, 0)
    return _ended(ended, told, status)


def killed_before(work: Work, number: int) -> Ended:
    """Does the work in a child, and kills it before its n-th system call that changes files, from 1."""
    pid, stream = _started(work, traced=True)
    ended = Ended()
    libc = _libc()
    try:
        os.waitpid(pid, 0)
        if libc.ptrace(_SETOPTIONS, pid, None, ctypes.c_void_p(_SYSGOOD | _EXITKILL)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        status = _run_until(libc, pid, number, ended.calls)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    told = b""
    while piece := os.read(stream, 1 << 16):
        told += piece
    os.close(stream)
    return _ended(ended, told, status)


def _run_until(libc: Any, pid: int, number: int, calls: list[str]) -> int:
    """Lets a traced child go on from call to call; returns how it ended."""
    info = _Info()
    passed = 0
    while True:
        libc.ptrace(_SYSCALL, pid, None, ctypes.c_void_p(passed))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return status
        stop = os.WSTOPSIG(status)
        passed = 0 if stop in (signal.SIGTRAP | 0x80, signal.SIGTRAP) else stop
        if passed:
            continue
        libc.ptrace(_INFO, pid, ctypes.c_void_p(ctypes.sizeof(info)), ctypes.byref(info))
        name = _changing(info) if info.op == _ENTRY else ""
        if name:
            calls.append(name)
            if len(calls) == number:
                os.kill(pid, signal.SIGKILL)
                return os.waitpid(pid, 0)[1]


def _changing(info: _Info) -> str:
    number, args = int(info.nr), info.args
    if number in _WRITES:
        return "" if args[0] == _Pipe.end else _WRITES[number]
    if (number == _OPEN and args[1] & _CREATE) or (number == _OPENAT and args[2] & _CREATE):
        return "create"
    return _CHANGES.get(number, "")


class _Pipe:
    """The pipe's end in the child: what is written there changes no file."""

    end = -1


def _started(work: Work, *, traced: bool) -> tuple[int, int]:
    """Forks a child that does the work; returns its id and the pipe that it tells through."""
    stream, _Pipe.end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(_Pipe.end)
        return pid, stream
    try:
        os.close(stream)
        if traced:
            _libc().ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
        work(lambda row: _write(_Pipe.end, row))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{os.path.basename(step.filename)}:{step.lineno}" for step in reversed(last))
        _write(_Pipe.end, {"error": f"{type(error).__name__} at {where}", "words": str(error)[:300]})
    finally:
        os._exit(0)


def _write(end: int, row: dict[str, Any]) -> None:
    data = json.dumps(row).encode() + b"\n"
    while data:
        data = data[os.write(end, data) :]


def _ended(ended: Ended, told: bytes, status: int) -> Ended:
    ended.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    rows = [json.loads(line) for line in told.split(b"\n")[:-1]]
    ended.error = "; ".join(f"{row['error']}: {row['words']}" for row in rows if "error" in row)
    if os.WIFSIGNALED(status) and not ended.killed:
        ended.error = f"ended by signal {os.WTERMSIG(status)}"
    ended.said = [row for row in rows if "error" not in row]
    return ended


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc
