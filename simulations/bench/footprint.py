"""What a device's libraries take on its disk: umbel with the device extra, and all that they require.

Bytes are those of files, as `ls` shows them; pip, setuptools and Python itself are not counted. What packages
ship is told apart from the bytecode that is kept beside it: pip compiles everything unless told otherwise
(`--no-compile`), and Python then keeps that of what is really imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import final

LIMIT_BYTES = 200_000_000
"""What a device's libraries may take: 200 MB, bytecode of what is imported included."""


@final
@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of one distribution: what it ships, and the bytecode kept beside it."""

    name: str
    shipped: int
    bytecode: int

    @property
    def whole(self) -> int:
        """Both."""
        return self.shipped + self.bytecode


def sizes_of(name: str, extras: frozenset[str] = frozenset()) -> list[Size]:
    """Returns the size of a distribution and of everything that it requires, the largest first.

    Args:
        name: An installed distribution.
        extras: The extras of it that count.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    found = [_size(each) for each in _closure(name, extras).values()]
    return sorted(found, key=lambda size: -size.whole)


def device_sizes() -> list[Size]:
    """Returns the sizes of umbel with the device extra in this environment, the largest first."""
    return sizes_of("umbel", frozenset({"device"}))


def _closure(name: str, extras: frozenset[str]) -> dict[str, Distribution]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        place = waiting.pop()
        if place in done:
            continue
        done.add(place)
        own = distribution(place[0])
        found[canonicalize_name(place[0])] = own
        for line in own.requires or ():
            needed = Requirement(line)
            marks = [{"extra": extra} for extra in (place[1] or {""})]
            if needed.marker is None or any(needed.marker.evaluate(mark) for mark in marks):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found


def _size(own: Distribution) -> Size:
    shipped = bytecode = 0
    for path in set(_files(own)):
        if path.suffix == ".pyc":
            continue
        shipped += _bytes(path)
        if path.suffix == ".py":
            bytecode += _bytes(Path(importlib.util.cache_from_source(str(path))))
    return Size(own.metadata["Name"], shipped, bytecode)


def _files(own: Distribution) -> Iterator[Path]:
    """Yields the files of a distribution; those of umbel by its folder, for it may be installed by links."""
    if own.metadata["Name"] == "umbel":
        import umbel

        for folder, _, names in os.walk(Path(umbel.__file__).parent, followlinks=True):
            yield from (Path(folder, name) for name in names)
    yield from (Path(str(file.locate())) for file in own.files or ())


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def main() -> int:
    """Prints, as JSON, the sizes of a device's libraries, or of the distributions that are named."""
    names = sys.argv[1:]
    try:
        sizes = [size for name in names for size in sizes_of(name)] if names else device_sizes()
    except PackageNotFoundError as error:
        sys.stderr.write(f"not installed: {error.name}\n")
        return 1
    unique = {size.name: size for size in sizes}
    sys.stdout.write(json.dumps([[s.name, s.shipped, s.bytecode] for s in unique.values()]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
