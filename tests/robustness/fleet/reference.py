"""The same rounds in one process, one device after another, with nobody crashing: what must have come out.

The devices' homes are copied, and the key of the noise. Who failed in the real run, in which stage of which
round, fails here, too, at once and for no other reason; who lied lies here. On the way everything that a
device keeps to itself is noted: what it changed, as numbers and as coded for a sum, and its profile.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Error, Message, RecordDict
from tests.federation import Federation
from tests.robustness.fleet.liar import Liar
from tests.robustness.fleet.needles import of_bits, of_numbers

from umbel.coordinator.federation.journal import RoundsResult
from umbel.coordinator.federation.privacy.sources import KEY
from umbel.coordinator.server_app import serve
from umbel.coordinator.service.settings import given_settings
from umbel.device_client import flower_app
from umbel.device_client.enrolled import EnrolledHome
from umbel.device_client.rounds import Steps, training
from umbel.device_client.secure import part
from umbel.device_client.secure.stages import grid_of, masked
from umbel.shared.messages import Contribution
from umbel.shared.profile import FloatArray, pack_profile
from umbel.shared.release import Release
from umbel.shared.secure.grid import flat
from umbel.simulations.engines.serial import SerialGrid

_FAILED = re.compile(r"round (\d+), (\S+), device (\d+): (.*)")
_NODES = 1000
_RAISED = 2
Failures = dict[tuple[int, str, int], str]


@final
@dataclass(slots=True)
class Secrets:
    """What devices kept to themselves, as pieces of bytes to search for.

    Attributes:
        changes: Each device's change in each round, in the widths of numbers.
        coded: The same as whole steps of a sum's grid, without masks.
        profiles: Each device's profile in each round.
        masks: Bits of those, and what packed profiles hold.
    """

    changes: set[bytes] = field(default_factory=set)
    coded: set[bytes] = field(default_factory=set)
    profiles: set[bytes] = field(default_factory=set)
    masks: set[bytes] = field(default_factory=set)


def failures(records: Sequence[Mapping[str, Any]]) -> Failures:
    """Returns (round, stage, device) -> why, of those that failed for another reason than a lie."""
    notes = [(set(record["refused"]), note) for record in records for note in record["notes"]]
    found = [(refused, _FAILED.fullmatch(note)) for refused, note in notes]
    return {
        (int(match[1]), match[2], int(match[3])): match[4]
        for refused, match in found
        if match is not None and int(match[3]) not in refused
    }


def run(
    own: Federation, changes: Sequence[str], failed: Failures, liars: Mapping[int, Liar], out: Path
) -> tuple[RoundsResult, Secrets]:
    """Runs the rounds.

    Args:
        own: The federation whose homes and key are copied; it need not run.
        changes: The rounds' settings.
        failed: What `failures` returned.
        liars: Who lies.
        out: A folder that is not there yet.
    """
    out.mkdir()
    config = given_settings(None, changes) | {
        "release": str(own.release.folder), "out": str(out), "population": own.devices,
    }  # fmt: skip
    key = own.folder.rounds(own.release.release_id) / KEY
    if key.is_file():
        shutil.copy(key, out)
    with noted() as secrets:
        others = {}
        for number in range(own.devices):
            home = shutil.copytree(own.home(number), out / f"home-{number}")
            node_config: Any = {"home": str(home), "release": str(own.release.folder)}
            others[_NODES + number] = Context(1, _NODES + number, node_config, RecordDict(), {})
        grid = SerialGrid(config, 0, _answering(failed, liars), others)
        return serve(grid, config), secrets


def _answering(failed: Failures, liars: Mapping[int, Liar]) -> Any:
    def respond(message: Message, context: Context) -> Message:
        number = context.node_id - _NODES
        answer = flower_app.reply(message, context)
        place = (int(message.metadata.group_id or 0), str(message.metadata.message_type), number)
        if place in failed:
            return Message(Error(_RAISED, failed[place]), reply_to=message)
        return liars[number].answer(message, answer) if number in liars else answer

    return respond


@contextmanager
def noted() -> Iterator[Secrets]:
    """Notes what the devices of this process keep to themselves; they work as they always do."""
    secrets, save = Secrets(), EnrolledHome.save_profile

    def trained(*words: Any) -> Steps[Contribution]:
        contribution = yield from training(*words)
        secrets.changes |= of_numbers(contribution.change)
        return contribution

    def coded(contribution: Any, held: Any, task: Any, shapes: Any, rng: np.random.Generator) -> Any:
        weight = contribution.examples if held.group.weighted else 1
        values = flat(contribution.change, shapes)
        steps = grid_of(held, task).coded(values, weight, copy.deepcopy(rng), contribution.within)
        secrets.coded |= of_numbers({"steps": _signed(steps)}, ("<i4", "<i8", ">i4", "<f8"))
        return masked(contribution, held, task, shapes, rng)

    def saved(home: EnrolledHome, release: Release, profile: Mapping[str, FloatArray]) -> None:
        kept = release.manifest.profile.rounded(profile)
        secrets.profiles |= of_numbers(kept)
        secrets.masks |= of_bits(kept, pack_profile(release.manifest.profile, profile, release.release_id))
        save(home, release, profile)

    with (
        patch.object(flower_app, "training", trained),
        patch.object(part, "training", trained),
        patch.object(part, "masked", coded),
        patch.object(EnrolledHome, "save_profile", saved),
    ):
        yield secrets


def _signed(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    return words.view(np.int32)
