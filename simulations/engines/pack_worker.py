"""Answers packs of devices in a process of its own: python -m umbel.simulations.engines.pack_worker.

Packs come as pickles on stdin and are answered on stdout, until stdin ends (`pack_processes.py`).
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import IO

from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from umbel.simulations.engines.pack_processes import send
from umbel.simulations.engines.packs import Asked, answered_together


def main() -> None:
    """Answers until nobody asks any more."""
    answers = _stdout_alone()
    while True:
        try:
            asked: list[Asked] = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            send(_answered(asked), answers)
        except BrokenPipeError:  # whoever asked has ended
            return


def _answered(asked: list[Asked]) -> tuple[list[Message], list[RecordDict | None]]:
    """Returns the answers, and what each node keeps for its next message; mostly nothing."""
    for _, context in asked[:1]:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = context.run_id, context.node_id, 1
    answers = answered_together(asked)
    return answers, [context.state or None for _, context in asked]


def _stdout_alone() -> IO[bytes]:
    """Returns stdout, and lets whatever else is printed here go to stderr."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


if __name__ == "__main__":
    main()
