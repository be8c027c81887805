"""What a side of the simulation bench that is not umbel is handed: encoded texts, and what chance decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from umbel.coordinator.federation.sampling import sampled
from umbel.coordinator.federation.settings import RoundSettings
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples
from umbel.device_client.rounds import minibatches
from umbel.shared.messages import TRAIN, RoundTask
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.simulations.homes.home import home_of


def encoded_people(release: Release, devices: Path, people: int) -> list[Encoded]:
    """Returns everybody's examples, encoded."""
    engine = Engine(release)
    return [encode_examples(engine, home_of(devices, number).examples()) for number in range(people)]


def chosen_in(settings: RoundSettings, people: int, round_: int) -> list[int]:
    """Returns who takes part in a round."""
    return sampled(range(people), settings.clients, settings.seed, round_, "sample")


def handed(release: Release, supports: Sequence[Encoded], settings: RoundSettings) -> dict[str, Any]:
    """Returns everybody's examples and what chance decides in the rounds; all have as many texts of a length.

    Returns:
        ids, mask (people, texts, seq) and labels (people, texts); chosen (rounds, clients): who takes part;
        rows (rounds, clients, steps * batch): the examples of the shared steps, in their order; owner, of
        the same shape: 1 where an example is seen with the profile, else 0.
    """
    people = {
        "ids": np.stack([own.tokens.ids for own in supports]),
        "mask": np.stack([own.tokens.mask for own in supports]),
        "labels": np.stack([own.labels for own in supports]),
    }
    chosen = [chosen_in(settings, len(supports), round_) for round_ in range(1, settings.rounds + 1)]
    drawn = [
        [_drawn(release, settings, round_, client, len(supports[client])) for client in clients]
        for round_, clients in enumerate(chosen, 1)
    ]
    return people | {
        "chosen": np.array(chosen),
        "rows": np.array([[rows for rows, _ in round_] for round_ in drawn]),
        "owner": np.array([[owner for _, owner in round_] for round_ in drawn]),
    }


def _drawn(
    release: Release, settings: RoundSettings, round_: int, client: int, examples: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns the rows of a device's shared steps, one step after the other, and whose each row is."""
    local = settings.local()
    task = RoundTask(release.release_id, round_, settings.seed, TRAIN, local, {})
    steps = minibatches(examples, local.batch_size, local.local_steps, client, task)
    dropout = generator(task.seed, round_, str(client), "profile dropout")
    owner = [(dropout.random(len(rows)) >= local.profile_dropout).astype(np.int64) for rows in steps]
    return np.concatenate(steps), np.concatenate(owner)
