"""A device's part in training the onboarding network: its owner plays somebody new.

Some of the owner's examples are what is known of the new person, others are what they are asked. The network
writes a profile from the first, and learns from the loss of the second under it: the loss of an episode as
the coordinator plays them (`coordinator/onboarding/training.py`), for one person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, learn_exactly, read_once
from umbel.device_client.onboarding import Known, onboarded, read_known
from umbel.shared.episodes import Part, drawn_part
from umbel.shared.messages import RoundTask
from umbel.shared.onboarding import PREFIX, UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.shared.text import IntArray

_MOST_KNOWN = 64


def taught_change(engine: Engine, support: Encoded, client: int, task: RoundTask) -> dict[str, FloatArray]:
    """Runs SGD on the onboarding network, the model as it is, and returns what changed, not yet clipped.

    Every other step takes the loss after `onboarding_learning_steps` few-shot steps from the profile that was
    written (first order), so that learning goes well from there.

    Args:
        engine: The release.
        support: The owner's examples.
        client: The device's number; randomness is a function of it.
        task: Steps, rate and the round's values.

    Returns:
        name -> new value - the round's value, for every trainable of the network; zeros if the owner has
        fewer than two examples, for one of them is to be known and one to be asked.
    """
    settings = task.settings
    first = {name: value for name, value in task.arrays.items() if name.startswith(PREFIX)}
    if not first:
        return {}
    values = dict(first)
    if len(support) > 1:
        (support,) = read_once(engine, [support], task.arrays)
        known = read_known(engine, support, engine.encode([]), task.arrays)
        rng = generator(task.seed, task.round, str(client), "onboarding episode")
        for step in range(settings.onboarding_steps):
            part = drawn_part(rng, len(support), settings.batch_size, _MOST_KNOWN, _MOST_KNOWN)
            learns = step % 2 == 1 and settings.onboarding_learning_steps
            own = task.recipe(engine.release.manifest, part.labelled)
            recipe = replace(own, steps=settings.onboarding_learning_steps) if learns else None
            gradients = _episode(engine, support, known, part, {**task.arrays, **values}, recipe)
            rate = np.float32(settings.onboarding_rate / len(part.query))
            values = {name: value - rate * gradients[name] for name, value in values.items()}
    return {name: value - first[name] for name, value in values.items()}


def _episode(
    engine: Engine,
    support: Encoded,
    known: Known,
    part: Part,
    shared: Mapping[str, FloatArray],
    recipe: LearningRecipe | None,
) -> dict[str, FloatArray]:
    """Returns the gradient of one episode's loss, summed over what is asked, by the network's trainables."""
    labels = known.labels[part.known].copy()
    labels[part.labelled :] = UNKNOWN
    told = replace(known.rows(part.known), labels=labels)
    asked = known.rows(part.query)
    profile, _ = onboarded(engine, [told], shared)
    if recipe is not None and part.labelled:
        own = support.rows(part.known[: part.labelled])
        profile = learn_exactly(engine, [own], recipe, start=profile, shared=shared)
    rows = support.rows(part.query)
    nobody_else = np.zeros(len(rows), np.int64)
    _, wanted = engine.learn(rows.tokens, rows.labels, nobody_else, profile, shared)
    return engine.teach(_given(told), _given(asked), wanted, shared)


def _given(known: Known) -> tuple[FloatArray, FloatArray, IntArray, IntArray]:
    return known.logits, known.embedding, known.labels, np.zeros(len(known), np.int64)
