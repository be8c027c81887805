"""A process that prepares a piece of work and times it as often as it is told. Both sides use it.

Orders come as lines of JSON on stdin, answers go as lines of JSON to stdout. While one side works, the other
waits for a line and takes no time.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Work = Callable[[], object]
Prepare = Callable[..., tuple[Work, Any]]


def serve(tasks: Mapping[str, Prepare]) -> None:
    """Answers orders until stdin ends.

    An order is {"task": name, "options": {...}}, answered by {"answer": what the work gives}, or
    {"repeat": n}, answered by {"seconds": [one for each time]}, or {"memory": true}, answered by bytes.

    Args:
        tasks: Name -> what prepares it: it returns the work and what the work gives, for comparison.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not be taken for an answer
    work: Work = int
    for line in sys.stdin:
        order = json.loads(line)
        if "task" in order:
            work, answer = tasks[order["task"]](**order["options"])
            told: dict[str, Any] = {"answer": answer}
        elif "repeat" in order:
            told = {"seconds": [_timed(work) for _ in range(order["repeat"])]}
        else:
            told = {"now": now_bytes(), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        out.write(json.dumps(told) + "\n")
        out.flush()


def _timed(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def now_bytes() -> int:
    """Returns what this process holds of the memory now, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
