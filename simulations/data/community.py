"""A generated community: many people with different tastes judge the same short reviews of stories.

Each review speaks of a few aspects of a story (`reviews.FEATURES`). Person u says "yes" with probability

    p = sigmoid(sharpness * (craft_weight * craft + taste_u . aspects) - threshold_u)

and so it is known how often the best of all predictors would be right. A taste has few dimensions: a basis of
three (thrill, comfort, depth) times the person's factor, plus small deviations of their own. Factors gather
around six types, whose mean is zero: on average people want good craft and nothing else, so that only knowing
the person helps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example
from umbel.shared.rng import generator
from umbel.simulations.data.reviews import Review, write_review

LABELS = ("no", "yes")
_MAX_EXAMPLES = 10_000_000  # they are made in memory

# Rows in the order of FEATURES without the craft; columns thrill, comfort, depth.
_BASIS = (
    (1.0, 0.0, -0.6),  # fast
    (0.6, -0.9, 0.0),  # dark
    (0.0, 0.7, -0.7),  # funny
    (-0.8, 0.6, 0.3),  # romantic
    (0.0, -0.3, 1.0),  # complex
    (0.3, -0.8, 0.6),  # strange
    (0.4, 0.5, 0.7),  # magical
    (1.0, -0.5, -0.2),  # violent
    (0.8, 0.3, 0.5),  # epic
    (-0.6, 0.0, 0.8),  # ornate
)
# Who seeks or shuns thrill, comfort, depth. Their sum is zero.
_TYPES = ((1.7, 0, 0), (-1.7, 0, 0), (0, 1.7, 0), (0, -1.7, 0), (0, 0, 1.7), (0, 0, -1.7))


@final
@dataclass(frozen=True, slots=True)
class CommunityConfig:
    """Size and nature of a community.

    Attributes:
        users: How many people.
        examples_per_user: How many reviews each of them judges, all different.
        texts: How many distinct reviews there are.
        seed: Which community; the same seed gives the same people and reviews on every machine.
        sharpness: How decided people are; 0 is a coin toss.
        craft_weight: Weight of good craft, which is the same for all; an aspect's is about 1.
        threshold_sd: Standard deviation of how readily people say yes, in logits.
        spread: Standard deviation of a person's factor around their type.
        deviation: Standard deviation of a person's own likings outside of the three dimensions, per aspect.
        craft_share: Share of reviews that speak of the craft.
        choosiness: How much people judge what they would like rather than anything: 0 is anything, and at 1
            the odds of choosing a text are those of saying yes to it. Then texts alone tell of a person.
    """

    users: int = 300
    examples_per_user: int = 100
    texts: int = 1500
    seed: int = 0
    sharpness: float = 2.6
    craft_weight: float = 1.5
    threshold_sd: float = 0.6
    spread: float = 0.35
    deviation: float = 0.1
    craft_share: float = 0.35
    choosiness: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range; all of them are listed.
        """
        problems = [
            f"{name} is {value}; it must be at least {least}"
            for name, value, least in (
                ("users", self.users, 1),
                ("examples_per_user", self.examples_per_user, 1),
                ("texts", self.texts, 1),
                *(
                    (name, getattr(self, name), 0)
                    for name in ("sharpness", "threshold_sd", "spread", "deviation", "choosiness")
                ),
            )
            if not value >= least
        ]
        if self.users * self.examples_per_user > _MAX_EXAMPLES:
            problems.append(
                f"users times examples_per_user is {self.users * self.examples_per_user:,}; "
                f"at most {_MAX_EXAMPLES:,} examples are generated"
            )
        if self.texts > _MAX_EXAMPLES:
            problems.append(f"texts is {self.texts:,}; it must be at most {_MAX_EXAMPLES:,}")
        if self.examples_per_user > self.texts:
            problems.append(
                f"examples_per_user is {self.examples_per_user}, but there are only {self.texts} texts"
            )
        if not 0 <= self.craft_share <= 1:
            problems.append(f"craft_share is {self.craft_share}; it must be from 0 to 1")
        if problems:
            raise ConfigError("The community cannot be generated:", problems)


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Community:
    """People, reviews and what each person thinks of each of them.

    Attributes:
        config: What it was generated from.
        examples: Everyone's examples, by user; labels are "yes" and "no".
        texts: The reviews' texts.
        features: (texts, len(FEATURES)) what each review says; see `reviews.Review`.
        users: The people's ids.
        tastes: (users, len(FEATURES)) each person's weights in logits per feature.
        thresholds: (users,) in logits.
        probabilities: (users, texts) chance that the person says yes.
    """

    config: CommunityConfig
    examples: list[Example]
    texts: tuple[str, ...]
    features: NDArray[np.float64]
    users: tuple[str, ...]
    tastes: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    _text_index: Mapping[str, int]
    _user_index: Mapping[str, int]

    def probability(self, user: str, text: str) -> float:
        """Returns the chance that `user` says yes to `text`.

        Raises:
            ExampleError: The user or the text is not of this community.
        """
        return float(self._of(user, [text])[0])

    def bayes_accuracy(self, user: str, texts: Sequence[str]) -> float:
        """Returns the accuracy on these texts of who knows `user` perfectly: the mean of max(p, 1 - p).

        Raises:
            ExampleError: The user or a text is not of this community, or there are no texts.
        """
        p = self._of(user, texts)
        return float(np.maximum(p, 1 - p).mean())

    def generic_bayes_accuracy(self, user: str, texts: Sequence[str]) -> float:
        """Returns the accuracy on these texts of who knows the mean chance over people, but not `user`.

        Raises:
            ExampleError: The user or a text is not of this community, or there are no texts.
        """
        p = self._of(user, texts)
        likely = self.probabilities.mean(axis=0)[[self._text_index[text] for text in texts]] > 0.5
        return float(np.where(likely, p, 1 - p).mean())

    def _of(self, user: str, texts: Sequence[str]) -> NDArray[np.float64]:
        problems = [] if user in self._user_index else [f"user {user} is not in it"]
        unknown = sum(text not in self._text_index for text in texts)
        if unknown:
            problems.append(f"{unknown} of {len(texts)} texts are not in it")
        if not texts:
            problems.append("no texts were given")
        if problems:
            raise ExampleError("The generated community cannot answer:", problems)
        row: NDArray[np.float64] = self.probabilities[self._user_index[user]]
        return row[[self._text_index[text] for text in texts]]


def generate_community(config: CommunityConfig) -> Community:
    """Generates the community of a config. A person does not depend on how many others there are."""
    reviews = _reviews(config)
    texts = tuple(review.text for review in reviews)
    features = np.array([review.features for review in reviews])
    width = len(str(config.users))
    users = tuple(f"person-{number:0{max(width, 3)}}" for number in range(1, config.users + 1))
    people = [_person(config, user) for user in users]
    tastes = np.stack([taste for taste, _ in people])
    thresholds = np.array([threshold for _, threshold in people])
    logits = np.einsum("uf,tf->ut", tastes, features) - thresholds[:, None]
    # Rounded, so that the last bit of another machine's exp never decides a label.
    probabilities = np.round(1 / (1 + np.exp(-logits)), 9)
    examples = [
        example
        for user, row in zip(users, probabilities, strict=True)
        for example in _judged(config, user, texts, row)
    ]
    return Community(
        config=config,
        examples=examples,
        texts=texts,
        features=features,
        users=users,
        tastes=tastes,
        thresholds=thresholds,
        probabilities=probabilities,
        _text_index={text: i for i, text in enumerate(texts)},
        _user_index={user: i for i, user in enumerate(users)},
    )


def _reviews(config: CommunityConfig) -> list[Review]:
    """Writes the config's number of distinct reviews."""
    rng = generator(config.seed, 0, "", "reviews")
    reviews: dict[str, Review] = {}
    while len(reviews) < config.texts:
        review = write_review(rng, config.craft_share)
        reviews.setdefault(review.text, review)
    return list(reviews.values())


def _person(config: CommunityConfig, user: str) -> tuple[NDArray[np.float64], float]:
    """Returns a person's weights (len(FEATURES),) in logits, and their threshold."""
    rng = generator(config.seed, 0, user, "taste")
    basis = np.array(_BASIS)
    basis *= np.sqrt(len(_BASIS) / basis.shape[1]) / np.linalg.norm(
        basis, axis=0
    )  # an aspect's weight is about 1
    factor = np.array(_TYPES)[rng.integers(len(_TYPES))] + config.spread * rng.normal(size=basis.shape[1])
    taste = basis @ factor + config.deviation * rng.normal(size=len(_BASIS))
    threshold = config.threshold_sd * float(rng.normal())
    return config.sharpness * np.append(taste, config.craft_weight), threshold


def _appeal(config: CommunityConfig, user: str, row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how much a person wants each text: the highest are a sample with odds (p / (1 - p))^c."""
    bounded = np.clip(row, 1e-6, 1 - 1e-6)
    noise = generator(config.seed, 0, user, "choices").gumbel(size=len(row))
    return np.round(config.choosiness * np.log(bounded / (1 - bounded)) + noise, 9)


def _judged(
    config: CommunityConfig, user: str, texts: Sequence[str], row: NDArray[np.float64]
) -> list[Example]:
    rng = generator(config.seed, 0, user, "judgements")
    chosen = rng.permutation(len(texts))
    if config.choosiness:
        chosen = chosen[np.argsort(-_appeal(config, user, row)[chosen], kind="stable")]
        chosen[: config.examples_per_user] = rng.permutation(chosen[: config.examples_per_user])
    chosen = chosen[: config.examples_per_user]
    draws = rng.random(config.examples_per_user)
    return [
        Example(user, texts[i], LABELS[int(draw < row[i])])
        for i, draw in zip(chosen.tolist(), draws, strict=True)
    ]
