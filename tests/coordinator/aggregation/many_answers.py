"""A round over many devices in a process of its own, and the memory that it took.

    python -m tests.coordinator.aggregation.many_answers COUNT VALUES RULE

prints one line of JSON: answers, model_bytes, before_bytes and peak_bytes (resident), seconds.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from tests.linear_engine import linear_engine

from umbel.coordinator.federation.journal import RoundsResult
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.strategy import PersonalRounds
from umbel.shared.messages import Contribution, Hello, Wire
from umbel.shared.rng import generator
from umbel.simulations.engines.serial import SerialGrid


def peak_of(count: int, values: int, rule: str) -> dict[str, float]:
    """Runs one round over `count` devices whose changes have `values` values, and returns what it took."""
    manifest = replace(linear_engine().release.manifest, trainables={"weights": (values,)})
    base = generator(0, 0, "", "change").normal(0, values**-0.5 / 2, values).astype(np.float32)

    def respond(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if message.metadata.message_type == "query":
            return answered(message, Hello(client).wire())
        change = {"weights": base * np.float32(client / count)}
        return answered(message, Contribution(manifest.release_id, 1, change, 1, 0.1).wire())

    settings = RoundSettings(rounds=1, clients=count, rule=rule, secure=False)
    start = RoundsResult([], {"weights": np.zeros(values, np.float32)})
    rounds = PersonalRounds(manifest, settings, reached=start, population=count)
    grid = SerialGrid({}, count, respond)
    before, begun = resident_bytes("VmRSS"), time.perf_counter()
    rounds.start(grid)
    seconds = time.perf_counter() - begun
    assert rounds.reached.rounds[0].clients == count
    # The mean of client / count over all clients is (count - 1) / (2 count); the extremes cancel otherwise.
    expected = base.astype(np.float64) * (count - 1) / (2 * count)
    if rule == "mean":
        np.testing.assert_allclose(rounds.reached.trainables["weights"], expected, rtol=1e-6, atol=1e-12)
    return {
        "answers": count, "model_bytes": 4 * values, "before_bytes": before,
        "peak_bytes": resident_bytes("VmHWM"),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def answered(message: Message, wire: Wire) -> Message:
    arrays = ArrayRecord({name: Array(array) for name, array in wire.arrays.items()})
    return Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord(dict(wire.config))}), reply_to=message
    )


def resident_bytes(field: str) -> int:
    """Returns VmRSS, what is resident now, or VmHWM, the most there was (getrusage tells of parents)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(json.dumps(peak_of(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
