"""Runs one command and tells what it took: python -I -S launch.py RESULT COMMAND...

A process of its own and a small one: the peak memory that Linux tells of a process begins with that
of the one that started it, and a benchmark has loaded much.
"""

import json
import os
import sys
import time


def main() -> int:
    """Returns the command's exit code; writes its seconds, start to end, and its peak memory as JSON."""
    result, *command = sys.argv[1:]
    begun = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)  # the usage of this very process, and of nothing else
    seconds = time.perf_counter() - begun
    with open(result, "w", encoding="utf-8") as stream:
        json.dump({"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}, stream)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
