"""What all devices of a secure sum must have been told alike, as a hash that goes into their masks.

A coordinator could tell one device to train, and all others to change nothing (a rate of 0), or to count in
steps so coarse that nothing of them is left (another clip, another number of devices): the sum would then be
the one device's change (Pasquini et al., 2022). So two devices' mask is a function of what each of them was
told. Where that differs their halves do not cancel, and the sum is noise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from umbel.shared.messages import RoundTask
from umbel.shared.secure.group import Group
from umbel.shared.secure.messages import COLLECT, Session


def terms_of(session: Session, group: Group, task: RoundTask) -> bytes:
    """Returns the hash of what a device was told, but for its place: 32 bytes.

    Args:
        session: Of the sum.
        group: The device's.
        task: The round's.
    """
    told = {
        "session": session.config(COLLECT),
        "group": {name: value for name, value in asdict(group).items() if name != "place"},
        "task": dict(task.wire().config),
        "arrays": {name: [array.dtype.str, *array.shape] for name, array in task.arrays.items()},
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(task.arrays):
        digest.update(task.arrays[name].tobytes())
    return digest.digest()
