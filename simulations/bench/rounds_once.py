"""Runs rounds by one side in a process of its own, and prints the seconds of each.

    python -m umbel.simulations.bench.rounds_once ORDER.json

The order names side, release, devices, backbone, method, settings, people, threads and out; see
`simulation_bench`. With `forget`, what a round's people had as tokens is forgotten after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

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
    print(json.dumps({"seconds": seconds}))  # noqa: T201


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
        on_round=(lambda _: forget_encoded()) if order.get("forget") else None,
    )
    return [record.seconds for record in reached.rounds], reached.trainables


def _plain(order: dict[str, Any], settings: RoundSettings, out: Path) -> tuple[list[float], dict[str, Any]]:
    from umbel.simulations.bench.handed import encoded_people
    from umbel.simulations.bench.plain_loop import TorchEngine, run_plain

    del out
    release = read_release(Path(order["release"]))
    engine = TorchEngine(release, order["backbone"], order["method"], order["threads"])
    return run_plain(engine, encoded_people(release, Path(order["devices"]), order["people"]), settings)


if __name__ == "__main__":
    main()
