"""`umbel`, with a copy of all that leaves its process, as it is before TLS seals it.

    python -m tests.robustness.fleet.tap FILE device join ...

Python's sockets are what everything leaves by here: httpx and urllib3 send through `ssl`, and what would
leave without TLS goes through `socket`, which is kept in the same file.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umbel.cli import main as umbel

_WAYS: tuple[tuple[type, str], ...] = (
    (ssl.SSLSocket, "send"),
    (ssl.SSLSocket, "write"),
    (ssl.SSLObject, "write"),
    (socket.socket, "send"),
    (socket.socket, "sendall"),
    (socket.socket, "sendto"),
)


def keep(file: Path) -> None:
    """Copies what this process sends from now on to a file, at once: the process may be killed."""
    kept = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for kind, name in _WAYS:
        setattr(kind, name, _telling(getattr(kind, name), kept))


def _telling(send: Callable[..., Any], kept: int) -> Callable[..., Any]:
    def told(self: Any, data: Any, *rest: Any) -> Any:
        os.write(kept, bytes(data))
        return send(self, data, *rest)

    return told


def main(words: Sequence[str]) -> int:
    """Runs a command of umbel's."""
    keep(Path(words[0]))
    return umbel(list(words[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
