"""Who is who: people of the first release, people with devices, people to choose by, and new people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example
from umbel.shared.rng import generator
from umbel.simulations.against_central.config import AskedConfig, GroupsConfig
from umbel.simulations.data.splits import Population, UserExamples


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A person who is measured: a profile is learned from some examples, further ones are predicted."""

    user: str
    learned: tuple[Example, ...]
    asked: tuple[Example, ...]


@final
@dataclass(frozen=True, slots=True)
class Groups:
    """Four groups of people; nobody is in two of them.

    Attributes:
        public: What the coordinator trains its first release on.
        devices: People whose examples stay on their devices; central training has them, too.
        validation: By whom options are chosen and training is ended.
        unseen: Who is measured in the end, and nothing is chosen by.
    """

    public: tuple[UserExamples, ...]
    devices: tuple[UserExamples, ...]
    validation: tuple[Asked, ...]
    unseen: tuple[Asked, ...]

    def pooled(self) -> list[Example]:
        """Returns the examples of central training: the first release's, and those of every device."""
        return examples_of((*self.public, *self.devices))


def grouped(population: Population, groups: GroupsConfig, evaluation: AskedConfig, seed: int) -> Groups:
    """Divides the people who are not new into groups, by seed.

    Raises:
        ConfigError: Too few people are left for devices, or to be measured.
    """
    seen = list(population.seen.values())
    order = generator(seed, 0, "", "groups").permutation(len(seen))
    people = [seen[int(number)] for number in order]
    first, second = groups.public, groups.public + groups.validation
    found = Groups(
        _limited(people[:first], groups.public_examples),
        _limited(people[second:], groups.device_examples),
        _asked(people[first:second], evaluation),
        _asked(population.unseen.values(), evaluation),
    )
    empty = [name for name in ("devices", "validation", "unseen") if not getattr(found, name)]
    if empty:
        raise ConfigError(
            "there are too few people",
            [f"nobody is left for: {', '.join(empty)}"],
            "Make the groups smaller, or give more examples per person.",
        )
    return found


def examples_of(people: Iterable[UserExamples]) -> list[Example]:
    """Returns everybody's examples that may be learned from."""
    return [example for user in people for example in user.support]


def _limited(people: Iterable[UserExamples], most: int) -> tuple[UserExamples, ...]:
    return tuple(UserExamples(user.user, user.support[:most], user.query) for user in people)


def _asked(people: Iterable[UserExamples], evaluation: AskedConfig) -> tuple[Asked, ...]:
    """Returns the people who have enough examples; no text is both learned from and asked."""
    found = []
    for user in people:
        own: Sequence[Example] = (*user.support, *user.query)
        learned = own[: evaluation.k]
        texts = {_key(example) for example in learned}
        asked = [example for example in own[evaluation.k :] if _key(example) not in texts]
        if len(learned) == evaluation.k and asked:
            found.append(Asked(user.user, tuple(learned), tuple(asked[: evaluation.query])))
    return tuple(found)


def _key(example: Example) -> str:
    return " ".join(example.text.split()).casefold()
