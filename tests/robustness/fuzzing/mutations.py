"""Hostile inputs made from valid ones: bytes that were changed, and JSON whose values were exchanged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

_DRAWN = 1 << 13
_SIZES = (1, 2, 4, 8)
_TOKENS = (
    b"\x00", b"\xff", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe",
    b'"', b'""', b",", b"\\u0000", b"\\ud800",
    b"[", b"{", b"]", b"}", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"true", b"null", b"\xe2\x80\xae",
    b"\xe2\x80\xa8", b"UMBP", b"UMBX", b"PAR1", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"=",
    b"'", b"[[",
)  # fmt: skip
_BLOCKS = (1 << 6, 1 << 10, 1 << 14, 1 << 16)
_MOST_REPEATED = 1 << 20  # characters
_DEEP = (10, 900, 1100, 20_000, 200_000)


@final
class Dice:
    """Whole numbers from a generator, drawn in stock: one by one they would take most of the time."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._stock = rng, list[int]()

    def word(self) -> int:
        """Returns 32 random bits."""
        if not self._stock:
            self._stock = self._rng.integers(1 << 32, size=_DRAWN).tolist()
        return self._stock.pop()

    def below(self, count: int) -> int:
        """Returns a whole number from 0 to below `count`."""
        return (self.word() << 32 | self.word()) % count if count > 1 << 20 else self.word() % count

    def one_in(self, count: int) -> bool:
        """Says yes once in so many times."""
        return self.below(count) == 0

    def pick(self, choices: Sequence[Any]) -> Any:
        """Returns one of some choices."""
        return choices[self.below(len(choices))]

    def bytes(self, count: int) -> bytes:
        """Returns random bytes."""
        return self._rng.bytes(count)


def mutated(data: bytes, seeds: Sequence[bytes], dice: Dice) -> bytes:
    """Returns bytes with one to six changes."""
    changed = bytearray(data)
    for _ in range(1 + min(dice.below(8), dice.below(8))):
        dice.pick(_CHANGES)(changed, seeds, dice)
    return bytes(changed)


def _flip(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    if data:
        data[dice.below(len(data))] ^= 1 << dice.below(8)


def _set(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    if data:
        data[dice.below(len(data))] = dice.pick((0, 1, 0x7F, 0x80, 0xFF, dice.below(256)))


def _number(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    """Writes a number of 1 to 8 bytes, as a length might be: small, huge, or one off from what is there."""
    size = dice.pick(_SIZES)
    if len(data) < size:
        return
    at = dice.below(min(len(data) - size + 1, 64) if dice.one_in(2) else len(data) - size + 1)
    order = dice.pick(("little", "big"))
    there = int.from_bytes(data[at : at + size], order)
    most = 256**size
    value = dice.pick(
        (0, 1, most - 1, most // 2, most // 2 - 1, len(data), there + 1, there - 1, dice.below(most))
    )
    data[at : at + size] = (value % most).to_bytes(size, order)


def _cut(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    at = dice.below(len(data) + 1)
    if dice.one_in(2):
        del data[at:]
    else:
        del data[at : at + 1 + dice.below(16)]


def _insert(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    at = dice.below(len(data) + 1)
    data[at:at] = dice.pick(_TOKENS)


def _repeat(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    at = dice.below(len(data) + 1)
    piece = bytes(data[at : at + 1 + dice.below(40)])
    times = 1 + dice.below(4)
    if dice.one_in(40):
        times = dice.pick(_BLOCKS) // max(len(piece), 1) + 1
    data[at:at] = piece * times


def _splice(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    other = dice.pick(seeds)
    data[dice.below(len(data) + 1) :] = other[dice.below(len(other) + 1) :]


def _swap(data: bytearray, seeds: Sequence[bytes], dice: Dice) -> None:
    size = 1 + dice.below(16)
    if len(data) > 2 * size:
        a, b = dice.below(len(data) - size), dice.below(len(data) - size)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


_CHANGES: tuple[Callable[[bytearray, Sequence[bytes], Dice], None], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _insert, _insert, _repeat, _splice, _swap,
)  # fmt: skip


def odd_value(dice: Dice) -> Any:
    """Returns a value that a reader of JSON may not expect."""
    kind = dice.below(100)
    if kind == 0:
        return _nested(dice.pick(_DEEP), dice)
    if kind == 1:
        return dice.pick(("x", "\u202e", "\ud800", "0", "€")) * dice.pick((201, 2001, 70_000))
    if kind == 2:
        return [copy.deepcopy(dice.pick(_VALUES)) for _ in range(dice.pick((1, 101, 5000)))]
    if kind == 3:
        return {f"k{n}": None for n in range(dice.pick((1, 30, 5000)))}
    value = dice.pick(_VALUES)
    return copy.deepcopy(value) if isinstance(value, list | dict) else value  # it may be changed further


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e-9, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
    2**31, 2**53 + 1,
    2**63, -(2**63) - 1, 2**64, 10**30, 10**400, "", " ", "0", "nan", "\ud800", "\udfff\ud800", "\x00",
    "\r", "\n", "\u2028",
    "\u202eabc", "\ufeff", "../../etc/passwd", "a" * 64, "A" * 64, "0" * 64, "float16", "int8", "top:1",
    "top:3@0.25",
    "top:999999@0.999999", "top:01", [], {}, [[]], [None], [0], [-1], [1 << 24], [1 << 13, 1 << 12],
    [2] * 9, [1.0], [True],
    {"": ""}, {"\ud800": 1}, {"steps": 1}, [{}], "umbel.release/1", "umbel.release/2", "umbel.bank/1",
    "yes", "no",
)  # fmt: skip


def _nested(depth: int, dice: Dice) -> Any:
    """Returns something nested; beyond what can be written as a value, a mark that `as_text` replaces."""
    if depth > 900:
        return f"\ue000deep {depth} {dice.below(2)}\ue000"
    value: Any = 1
    for _ in range(depth):
        value = [value] if dice.one_in(2) else {"a": value}
    return value


def mutated_json(value: Any, dice: Dice) -> Any:
    """Returns a copy of a JSON value in which one to four places are something else."""
    changed = json.loads(json.dumps(value))
    for _ in range(1 + min(dice.below(4), dice.below(4))):
        changed = _changed_once(changed, dice)
    return changed


def _changed_once(value: Any, dice: Dice) -> Any:
    if isinstance(value, dict) and value and not dice.one_in(8):
        key = dice.pick(list(value))
        action = dice.below(12)
        if action == 0:
            del value[key]
        elif action == 1:
            value[dice.pick(("", "x", "\ud800", key + " ", "__proto__", "x" * 300))] = value.pop(key)
        elif action == 2:
            value[dice.pick(("extra", "format", "name", "rebuilt", "storage", "onboarding"))] = odd_value(
                dice
            )
        elif action == 3:
            other = dice.pick(list(value))
            value[key], value[other] = value[other], value[key]
        else:
            value[key] = _changed_once(value[key], dice)
        return value
    if isinstance(value, list) and value and not dice.one_in(5):
        at = dice.below(len(value))
        action = dice.below(8)
        if action == 0:
            del value[at]
        elif action == 1:
            value.insert(at, value[at])
        elif action == 2:
            value.append(odd_value(dice))
        elif action == 3 and dice.one_in(10):
            times = min(dice.pick((2, 50, 2000)), 1 + _MOST_REPEATED // _size(value))
            value += [own for _ in range(times - 1) for own in _copied(value)]
        else:
            value[at] = _changed_once(value[at], dice)
        return value
    if type(value) in (int, float) and abs(value) < 1 << 62 and dice.one_in(2):
        return dice.pick(
            (value + 1, value - 1, -value, value * 1000, float(value), str(value), value == value)
        )
    return odd_value(dice)


def _copied(value: Any) -> Any:
    """Returns a copy that shares nothing; `copy` would not get to the bottom of what is nested deeply."""
    return json.loads(json.dumps(value))


def _size(value: Any) -> int:
    """Returns about how long a value is as text."""
    if isinstance(value, list):
        return 2 + sum(map(_size, value[:5000]))
    if isinstance(value, dict):
        return 2 + sum(len(key) + _size(own) for key, own in value.items())
    return len(value) if isinstance(value, str) else 8


def as_text(value: Any, dice: Dice | None = None) -> bytes:
    """Returns a value as umbel writes manifests; with dice, now and then otherwise."""
    canonical = dice is None or not dice.one_in(6)
    text = (
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if canonical
        else json.dumps(value, ensure_ascii=dice is not None and dice.one_in(2))
    )
    data = text.encode("utf-8", "surrogatepass")
    return _with_depth(data) if b"\xee\x80\x80deep" in data else data


def _with_depth(data: bytes) -> bytes:
    mark = "\ue000".encode()
    parts = data.split(b'"' + mark + b"deep ")
    for number, part in enumerate(parts[1:], 1):
        told, _, rest = part.partition(mark + b'"')
        words = told.split()
        if len(words) != 2 or not words[0].isdigit():
            continue
        depth = min(int(words[0]), 200_000)
        opening, closing = (b"[", b"]") if words[1] == b"0" else (b'{"a":', b"}")
        parts[number] = opening * depth + b"1" + closing * depth + rest
    return b"".join(parts)


def text_mutated(data: bytes, seeds: Sequence[bytes], dice: Dice) -> bytes:
    """Returns a text with what only a text can have: another coding, other ends of lines, a doubled line."""
    kind = dice.below(12)
    if kind == 0:
        return b"\xef\xbb\xbf" + data
    if kind == 1:
        return data.decode("utf-8", "replace").encode(
            dice.pick(("utf-16", "utf-32", "latin-1", "cp037")), "replace"
        )
    if kind == 2:
        return data.replace(b"\n", dice.pick((b"\r", b"\r\n", b"\n\n", b"\x0b", b"\x85")))
    if kind == 3:
        lines = data.split(b"\n")
        at = dice.below(len(lines))
        return b"\n".join([*lines[:at], lines[at], *lines[at:]])
    return mutated(data, seeds, dice)
