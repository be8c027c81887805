"""A secure sum in one process: a coordinator's half and devices', with nothing between them but messages."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tests.linear_engine import SHAPES, linear_engine

from umbel.coordinator.federation.secure.plan import SecureSettings
from umbel.coordinator.federation.secure.summing import SecureSum, Summing
from umbel.device_client.secure.held import Held, unpacked
from umbel.device_client.secure.stages import masked, open_task, set_up, share, unmask
from umbel.shared.errors import MessageError
from umbel.shared.messages import Contribution, LocalSettings, RoundTask, Wire, clipped
from umbel.shared.rng import generator
from umbel.shared.secure.messages import COLLECT, SETUP, SHARE, STAGES

MANIFEST = linear_engine().release.manifest
Values = dict[str, npt.NDArray[np.float32]]


def round_task(clip: float = 1.0, round_: int = 3, cap: int = 32) -> RoundTask:
    values = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    settings = LocalSettings(clip=clip, example_cap=cap)
    return RoundTask(MANIFEST.release_id, round_, 7, "train", settings, values)


def change_of(client: int, clip: float = 1.0) -> Values:
    rng = generator(5, 0, str(client), "change")
    return clipped({name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}, clip)


@dataclass
class SecureDevice:
    """One device; what it keeps goes through text after every stage, as through a node's memory."""

    client: int
    examples: int = 1
    kept: str = ""
    change: Values = field(default_factory=dict)

    def answer(self, stage: str, wire: Wire) -> Wire:
        if stage == SETUP:
            keys, held = set_up(wire, MANIFEST.release_id)
            return self._keep(held, keys.wire())
        held = unpacked(self.kept)
        if stage == SHARE:
            shares, held = share(wire, held)
            return self._keep(held, shares.wire())
        if stage == COLLECT:
            task, held = open_task(wire, held, MANIFEST)
            contribution = Contribution(MANIFEST.release_id, task.round, self.change, self.examples, 0.5)
            rng = generator(task.seed, task.round, str(self.client), "rounding")
            sent, held = masked(contribution, held, task, MANIFEST.trainables, rng)
            return self._keep(held, sent.wire())
        shares_of_peers = unmask(wire, held)
        self.kept = ""
        return shares_of_peers.wire()

    def _keep(self, held: Held, wire: Wire) -> Wire:
        self.kept = held.packed()
        assert unpacked(self.kept) == held
        return wire


def devices(count: int, clip: float = 1.0) -> dict[int, SecureDevice]:
    """Returns number -> device; the numbers are not places."""
    return {
        100 + 7 * n: SecureDevice(100 + 7 * n, n % 4 + 1, change=change_of(n, clip)) for n in range(count)
    }


def summing(
    group: Mapping[int, SecureDevice], settings: SecureSettings, *, weighted: bool = False, **task: float
) -> Summing:
    return Summing(MANIFEST, round_task(**task), sorted(group), settings, weighted=weighted)  # type: ignore[arg-type]


NOBODY: Mapping[str, Set[int]] = {stage: set() for stage in STAGES}
Tap = Callable[[str, int, Wire], Wire]


def run(
    secure: Summing,
    group: Mapping[int, SecureDevice],
    lost: Mapping[str, Set[int]] = NOBODY,
    tap: Tap = lambda stage, client, wire: wire,
) -> SecureSum:
    """Runs all stages; a device that is lost in a stage does not answer it nor any later one.

    Args:
        secure: The coordinator's half.
        group: number -> device.
        lost: stage -> the numbers of those that are lost in it.
        tap: Sees every answer and may change it.
    """
    gone: set[int] = set()
    for stage in STAGES:
        tasks = secure.tasks(stage)
        gone |= lost[stage]
        for client, wire in tasks.items():
            if client in gone:
                continue
            try:
                answer = group[client].answer(stage, travelled(wire))
            except MessageError:
                gone.add(client)
                continue
            try:
                secure.take(stage, client, travelled(tap(stage, client, answer)))
            except MessageError:
                gone.add(client)
    return secure.opened()


def travelled(wire: Wire) -> Wire:
    """Returns a message as it comes out of numpy's bytes, as Flower sends arrays."""
    arrays = {}
    for name, array in wire.arrays.items():
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        file.seek(0)
        arrays[name] = np.load(file, allow_pickle=False)
    return Wire(arrays, dict(wire.config))
