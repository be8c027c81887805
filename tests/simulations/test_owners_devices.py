"""Rounds of owners' devices in one process, each with a sealed home and a policy: what a coordinator gets."""

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from tests.builders import random_examples

from umbel.coordinator.federation.journal import RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client.egress.policy import Policy
from umbel.device_client.owner import Device
from umbel.shared.examples import write_examples
from umbel.shared.release import Release
from umbel.simulations.engines import RoundSettings
from umbel.simulations.engines.serial import SerialGrid

Node = dict[str, bool | float | int | str]
SETTINGS = RoundSettings(rounds=2, clients=3, seed=5, local_rate=0.5, clip=0.5, secure=False)


def rounds(release: Release, nodes: list[Node], out: Path, **run: str) -> RoundsResult:
    """Runs rounds with devices of these node configs; the last one need not take part."""
    config: dict[str, Any] = {**SETTINGS.as_run_config(), "population": 2, **run}
    config |= {"release": str(release.folder), "out": str(out)}
    out.mkdir()
    others = {
        1000 + number: Context(
            run_id=1, node_id=1000 + number, node_config=node, state=RecordDict(), run_config=config
        )
        for number, node in enumerate(nodes)
    }
    return serve(SerialGrid(config, 0, others=others), config)


def test_owners_devices_take_part_as_their_policy_says(tiny_release: Release, tmp_path: Path) -> None:
    for number, rule in enumerate(["always", "always", "never"]):
        with Device.enroll(tmp_path / f"home{number}", tiny_release.folder) as device:
            device.add(random_examples(0, str(number), 5))
            device.keep_policy(Policy(rule, least_in_a_sum=1))
            device.client_number(number)  # that of its simulated twin
    owned: list[Node] = [{"home": str(tmp_path / f"home{number}")} for number in range(3)]
    found = rounds(tiny_release, owned, tmp_path / "out")
    assert [(record.clients, record.failures) for record in found.rounds] == [(2, 0)] * 2

    for number in range(2):
        examples = random_examples(0, str(number), 5)
        write_examples(tmp_path / "devices" / f"{number:06d}" / "examples.jsonl", examples)
    simulated: list[Node] = [{"partition-id": number} for number in range(2)]
    wanted = rounds(tiny_release, simulated, tmp_path / "simulated", devices=str(tmp_path / "devices"))
    for name, values in wanted.trainables.items():
        np.testing.assert_array_equal(found.trainables[name], values)

    for number in range(3):
        with Device.open(tmp_path / f"home{number}") as device:
            rows = [(row["kind"], row["outcome"], row["round"]) for row in device.egress()]
            kept = device.profile()
        if number < 2:
            assert rows == [("query", "sent", None), ("train", "sent", 1), ("train", "sent", 2)]
            assert kept is not None
        else:
            assert set(rows) == {("query", "refused", None), ("error", "sent", None)}
            assert kept is None
