"""A world of a tiny random encoder and made-up people, for the tests of contestants."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tests.builders import WORDS

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training.data import Rows, prepare
from umbel.shared.examples import Example
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder
from umbel.simulations.comparison.cohort import Cohort, Person
from umbel.simulations.comparison.config import DataSetConfig
from umbel.simulations.comparison.contestant import World

LABELS = ("bad", "fair", "good", "great")
K = (2, 6)
NEW = ("ann", "bob", "eve")
QUERY = 5


def small_world(
    backbone: Backbone, folder: Path, *, tasks: bool = False, bfloat16: bool = False, steps: int = 20
) -> World:
    """Returns a world of 12 seen and 3 new people; as tasks, two labels can occur for each new one."""
    seen = [example for user in range(12) for example in _examples(f"seen {user}", 12)]
    later = {user: _examples(user, K[-1] + QUERY, tasks) for user in NEW}
    encoder = TextEncoder(backbone.tokenizer_json, 16)
    data = prepare(seen, LABELS, encoder, TrainingConfig.model_validate({}), 0)
    texts = tuple(dict.fromkeys(e.text for e in (*seen, *(e for own in later.values() for e in own))))
    data = replace(data, tokens=encoder.encode(list(texts)))
    people = tuple(_person(user, examples, texts, tasks) for user, examples in later.items())
    cohort = Cohort("small", texts, data, data, people, (), (), tasks=tasks)
    config = DataSetConfig.model_validate(
        {
            "source": "community",
            "k": K,
            "max_tokens": 16,
            "generic_steps": steps,
            "rival_steps": steps,
            "steps": steps,
            "learning_steps": 6,
        }
    )
    return World(cohort, config, backbone, _generic(backbone), 3, 16, folder, bfloat16, None)


def _generic(backbone: Backbone) -> PersonalModel:
    """Returns a model whose head is large enough to have opinions."""
    model = build_model(backbone, "classification", LABELS, {}, 0)
    with torch.no_grad():
        for name, parameter in model.task.named_parameters():
            noise = generator(0, 0, "", f"small world {name}").normal(0.0, 0.3, tuple(parameter.shape))
            parameter.copy_(torch.tensor(noise, dtype=parameter.dtype))
    return model.eval()


def _examples(user: str, count: int, tasks: bool = False) -> list[Example]:
    """Returns texts of 3 words; the label is the first word's place among the words, shifted by the user."""
    rng = generator(0, 0, user, "small world")
    shift = int(rng.integers(4))
    found = []
    for _ in range(count):
        places = rng.integers(len(WORDS), size=3)
        label = (int(places[0]) + shift) % (2 if tasks else 4) + (2 if tasks and user == "bob" else 0)
        found.append(Example(user, " ".join(WORDS[place] for place in places), LABELS[label]))
    return found


def _person(user: str, examples: list[Example], texts: tuple[str, ...], tasks: bool) -> Person:
    text = np.array([texts.index(e.text) for e in examples], np.int64)
    label = np.array([LABELS.index(e.label) for e in examples], np.int64)
    rows = Rows(text, np.zeros(len(examples), np.int64), label)
    able = np.array([2, 3] if user == "bob" else [0, 1], np.int64) if tasks else None
    index = np.arange(len(rows))
    return Person(user, rows.take(index[: K[-1]]), rows.take(index[K[-1] :]), able)
