"""Runs rounds by one side in a process of its own, and prints the seconds of each.

    python -m umbel.simulations.bench.rounds_once ORDER.json

The order names side, release, devices, backbone, method, settings, people, threads and out; see
`simulation_bench`. With `forget`, which is true or false, a round's seconds are printed after it, and the
next one begins when a line comes; where it is true, what texts were as tokens is forgotten meanwhile.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umbel.coordinator.federation.journal import RoundRecord
from umbel.coordinator.federation.settings import RoundSettings
from umbel.device_client.simulated import forget_encoded
from umbel.shared.release import read_release


def main() -> None:
    """Runs what the order says."""
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    out = Path(order["out"])
    out.mkdir(parents=True, exist_ok=True)
    settings = RoundSettings.from_run_config(order["settings"])
    seconds, tensors = (_plain if order["side"] == "plain" else _engine)(order, settings, out)
    np.savez(out / "tensors.npz", **tensors)
    others = _of_others(order["threads"]) if order["side"] == "cohort" else 0  # it may have processes
    print(json.dumps({"seconds": seconds, "others_bytes": others}))  # noqa: T201


def _of_others(processes: int) -> int:
    """Returns what the processes that this one has started held at most, all together; 0 if there were none.

    Linux tells that of the largest alone; the others are alike.
    """
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 * processes


def _engine(order: dict[str, Any], settings: RoundSettings, out: Path) -> tuple[list[float], dict[str, Any]]:
    from umbel.simulations.engines import run_rounds

    reached = run_rounds(
        order["side"],
        release_folder=Path(order["release"]),
        devices_folder=Path(order["devices"]),
        clients_total=order["people"],
        settings=settings,
        out=out / "rounds",
        workers=order["threads"],
        compute=order.get("compute"),
        on_round=partial(_between, order["forget"]) if "forget" in order else None,
    )
    return [record.seconds for record in reached.rounds], reached.trainables


def _between(forget: bool, record: RoundRecord) -> None:
    """Does what is to be done after a round, in no round's time; see `processes.Stepwise`."""
    if forget:
        forget_encoded()
    print(json.dumps(record.seconds), flush=True)  # noqa: T201
    if not sys.stdin.readline():
        raise SystemExit(1)  # who started this has ended


def _plain(order: dict[str, Any], settings: RoundSettings, out: Path) -> tuple[list[float], dict[str, Any]]:
    from umbel.simulations.bench.handed import encoded_people
    from umbel.simulations.bench.plain_loop import TorchEngine, run_plain

    del out
    release = read_release(Path(order["release"]))
    engine = TorchEngine(release, order["backbone"], order["method"], order["threads"])
    return run_plain(engine, encoded_people(release, Path(order["devices"]), order["people"]), settings)


if __name__ == "__main__":
    main()
