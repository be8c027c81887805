"""Splits people into seen and unseen, and each one's examples into support (to learn from) and query."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example, labels_of
from umbel.shared.rng import generator


@final
@dataclass(frozen=True, slots=True)
class UserExamples:
    """One user's examples, in random order, so that `support[:k]` is a few-shot sample and nested in k.

    Attributes:
        user: The user's id.
        support: What may be learned from.
        query: What is predicted; no text of it occurs in `support`.
    """

    user: str
    support: tuple[Example, ...]
    query: tuple[Example, ...]


@final
@dataclass(frozen=True, slots=True)
class Population:
    """Everyone in an experiment.

    Attributes:
        labels: All labels, in the model's order.
        seen: Users whose support the coordinator may train on, by id, sorted.
        unseen: New users, by id, sorted; nothing of theirs is trained on.
        skipped: Why a user was left out, by id.
    """

    labels: tuple[str, ...]
    seen: Mapping[str, UserExamples]
    unseen: Mapping[str, UserExamples]
    skipped: Mapping[str, str] = field(default_factory=dict)


def by_user(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Groups examples by user, sorted; each one's by time if all have a time, else in the order given."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.user, []).append(example)
    return {user: _by_time(groups[user]) for user in sorted(groups)}


def split_population(
    examples: Iterable[Example],
    *,
    seed: int,
    unseen_share: float = 0.3,
    query_share: float = 0.5,
    min_examples: int = 4,
    max_query: int | None = None,
    labels: Sequence[str] | None = None,
) -> Population:
    """Splits users into seen and unseen, and each one's examples into support and query.

    The split depends on the seed and on what the file holds, never on the order of its rows. A user's split
    depends on that user alone, so that adding people changes nobody's support. Examples of one user with the
    same text (apart from case and spacing) go to the same side.

    Args:
        examples: Everyone's examples.
        seed: Which split.
        unseen_share: Share of users that are new, in [0, 1].
        query_share: Share of a user's distinct texts that go to query, in (0, 1); each side gets one or more.
        min_examples: Users with fewer are left out, and so is anyone with only one distinct text.
        max_query: Most query examples per user; what is over it goes to the end of support.
        labels: The labels in the model's order; None takes those that occur, sorted.

    Raises:
        ConfigError: An argument is out of range.
        ExampleError: A label is not in `labels`, or nobody has enough examples.
    """
    _check_arguments(unseen_share, query_share, min_examples, max_query)
    groups = by_user(examples)
    known = labels_of(e for own in groups.values() for e in own) if labels is None else tuple(labels)
    _check_labels(groups, known)
    split: dict[str, UserExamples] = {}
    skipped: dict[str, str] = {}
    for user, own in groups.items():
        texts = _same_texts(own)
        if len(own) < min_examples:
            skipped[user] = f"{len(own)} example{'s' * (len(own) > 1)}, fewer than {min_examples}"
        elif len(texts) < 2:
            skipped[user] = "only one distinct text"
        else:
            split[user] = _split_user(user, texts, seed, query_share, max_query)
    if not split:
        hint = "Give more examples per user, or lower min_examples."
        raise ExampleError("Nobody has enough examples.", _counted(skipped.values()), hint)
    unseen = _unseen(split, seed, unseen_share)
    return Population(
        labels=known,
        seen={user: own for user, own in split.items() if user not in unseen},
        unseen={user: own for user, own in split.items() if user in unseen},
        skipped=skipped,
    )


def held_out(user: str, examples: Sequence[Example], *, seed: int, share: float) -> UserExamples:
    """Splits one user's examples as `split_population` does; who has but one distinct text keeps it to learn.

    Args:
        user: The user's id.
        examples: Theirs.
        seed: Which split.
        share: Share of the distinct texts that are held out; 0 for none, and the order that was given.
    """
    texts = _same_texts(examples)
    if not share or len(texts) < 2:
        return UserExamples(user, tuple(examples), ())
    return _split_user(user, texts, seed, share, None)


def _by_time(examples: list[Example]) -> list[Example]:
    times = [example.time for example in examples if example.time is not None]
    if len(times) < len(examples):
        return examples
    order = sorted(range(len(examples)), key=times.__getitem__)
    return [examples[i] for i in order]


def _same_texts(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups examples by text apart from case and spacing, in an order that does not depend on theirs."""
    groups: dict[str, list[Example]] = {}
    # Labels and times break ties, so that the rows' order in the file never matters.
    for example in sorted(examples, key=lambda e: (e.text, e.label, e.time is not None, e.time or 0.0)):
        groups.setdefault(" ".join(example.text.split()).casefold(), []).append(example)
    return [groups[key] for key in sorted(groups)]


def _split_user(
    user: str, texts: list[list[Example]], seed: int, query_share: float, max_query: int | None
) -> UserExamples:
    order = generator(seed, 0, user, "split").permutation(len(texts))
    shuffled = [texts[i] for i in order]
    wanted = min(max(round(query_share * len(texts)), 1), len(texts) - 1)
    support, query = shuffled[wanted:], shuffled[:wanted]
    if max_query is not None:
        while len(query) > 1 and sum(map(len, query)) > max_query:
            support.append(query.pop())
    kept = [example for group in query for example in group]
    return UserExamples(user, tuple(e for group in support for e in group), tuple(kept[:max_query]))


def _unseen(users: Iterable[str], seed: int, share: float) -> frozenset[str]:
    ranked = sorted(users, key=lambda user: (generator(seed, 0, user, "unseen").random(), user))
    count = round(share * len(ranked))
    if 0 < share < 1 and len(ranked) > 1:  # both kinds are wanted, however few people there are
        count = min(max(count, 1), len(ranked) - 1)
    return frozenset(ranked[:count])


def _check_arguments(
    unseen_share: float, query_share: float, min_examples: int, max_query: int | None
) -> None:
    problems = []
    if not 0 <= unseen_share <= 1:
        problems.append(f"unseen_share is {unseen_share}; it must be from 0 to 1")
    if not 0 < query_share < 1:
        problems.append(f"query_share is {query_share}; it must be between 0 and 1")
    if min_examples < 2:
        problems.append(
            f"min_examples is {min_examples}; it must be at least 2, one to learn from and one to predict"
        )
    if max_query is not None and max_query < 1:
        problems.append(f"max_query is {max_query}; it must be at least 1")
    if problems:
        raise ConfigError("The split cannot be made:", problems)


def _check_labels(groups: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> None:
    known = set(labels)
    problems = []
    for user, own in groups.items():
        unknown = sum(example.label not in known for example in own)
        if unknown:
            problems.append(f"user {user}: {unknown} of {len(own)} examples have a label that is not known")
    if problems:
        raise ExampleError("Labels do not fit:", problems, f"The known labels are {', '.join(labels)}.")


def _counted(reasons: Iterable[str]) -> list[str]:
    return [f"{count} users: {reason}" for reason, count in sorted(Counter(reasons).items())]
