"""A device that lies: umbel's own link and app, with other answers in some rounds.

    python -m tests.robustness.fleet.liar FILE LIES device join ...

LIES says what it does in which round, as JSON, such as {"1": "nan"}; in all others it is honest. With every
answer it also brings its earlier ones once more.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from tests.robustness.fleet import tap

from umbel.shared.secure.messages import COLLECT

NAN, HUGE, REPLAY = LIES = ("nan", "huge", "replay")
"""NaN in place of the masked words; words far beyond the clip; an answer of an earlier round, cut short."""
_KEPT = 4  # earlier answers that are brought again

Vector = npt.NDArray[Any]


@final
class Liar:
    """Makes a device's answers other ones."""

    def __init__(self, lies: Mapping[int, str]):
        """Prepares it.

        Args:
            lies: Round -> which of `LIES`.
        """
        self._lies = dict(lies)
        self._sent: dict[int, RecordDict] = {}  # round -> its answer to collect

    def answer(self, message: Message, honest: Message) -> Message:
        """Returns what is answered instead of an honest answer."""
        if message.metadata.message_type != COLLECT or honest.has_error():
            return honest
        round_ = int(message.metadata.group_id)
        content, lie = honest.content, self._lies.get(round_)
        if lie is not None:
            last = max((earlier for earlier in self._sent if earlier < round_), default=round_)
            content = _bent(lie, self._sent.get(last, content) if lie == REPLAY else content)
        self._sent[round_] = content
        return Message(content, reply_to=message)


def _bent(lie: str, content: RecordDict) -> RecordDict:
    arrays, config = content["arrays"], content["config"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    (array,) = arrays.values()
    row = ArrayRecord({"masked": Array(_other(lie, array.numpy()))})
    return RecordDict({"arrays": row, "config": ConfigRecord(dict(config))})


def _other(lie: str, vector: Vector) -> Vector:
    if lie == NAN:
        return np.full(len(vector), np.nan, np.float32)
    if lie == REPLAY:
        return vector[:3]
    far = np.full(len(vector), 1 << 30, np.uint32)
    far[0] = 0  # its weight stays what it is
    return vector + far


@contextmanager
def lying(liar: Liar) -> Iterator[None]:
    """Lets this process's device answer by a liar, and bring what it answered before once more."""
    from umbel.device_client import flower_app, flower_link

    honest: Callable[[Message, Context], Message] = flower_app.app
    push, brought = flower_link.FleetLink._push, deque[Message](maxlen=_KEPT)

    def answered(message: Message, context: Context) -> Message:
        return liar.answer(message, honest(message, context))

    def pushed(link: flower_link.FleetLink, answer: Message) -> None:
        push(link, answer)
        for old in brought:
            with suppress(Exception):  # it is refused
                push(link, old)
        brought.append(answer)

    with patch.object(flower_app, "app", answered), patch.object(flower_link.FleetLink, "_push", pushed):
        yield


def main(words: Sequence[str]) -> int:
    """Runs a command of umbel's."""
    lies = {int(round_): kind for round_, kind in json.loads(words[1]).items()}
    with lying(Liar(lies)):
        return tap.main([words[0], *words[2:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
