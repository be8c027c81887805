"""A small grammar: what a review has to say goes in, aspects with intensities; natural English comes out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np

from umbel.simulations.data.lexicon import ASPECTS, CRAFT, KINDS, Pole

_T = TypeVar("_T")

FEATURES = (*(aspect.name for aspect in ASPECTS), CRAFT.name)
_FEWEST_WORDS = 5
_MOST_TOKENS = (
    19  # words and punctuation marks; MiniLM's tokenizer then gives 24 pieces or fewer, nearly always
)

_MILD, _PLAIN, _STRONG = 0.6, 1.0, 1.4
_DEGREES: Mapping[float, tuple[str, ...]] = {
    _MILD: ("slightly", "somewhat", "mildly", "moderately", "a bit", "a little"),
    _PLAIN: ("",),
    _STRONG: ("very", "extremely", "incredibly", "remarkably", "thoroughly", "really"),
}
_NEGATIONS: Mapping[float, tuple[str, ...]] = {
    _MILD: ("not very", "not exactly", "hardly"),
    _PLAIN: ("not at all", "anything but", "far from"),
}
_NEGATED_SHARE = 0.12
_OPENERS = (
    "",
    "",
    "",
    "",
    "",
    "Honestly, ",
    "For me, ",
    "Be warned: ",
    "In short, ",
    "I must say, ",
    "Well, ",
)
_MENTIONS = (1, 2, 3)
_MENTION_SHARES = (0.3, 0.5, 0.2)

# One sentence each, by how many things it says. A: adjective, C: clause, N: noun phrase, P: predicate, Q: the
# same, perhaps negated (only the last one: "hardly grim and long" could mean either).
_TEMPLATES: Mapping[int, tuple[str, ...]] = {
    1: (
        "A {A} {kind}.",
        "This {kind} is {Q}.",
        "It is {Q}.",
        "I found it {Q}.",
        "{C}.",
        "{C}.",
        "It has {N}.",
        "Expect {N}.",
    ),
    2: (
        "A {A}, {A} {kind}.",
        "A {A} {kind} with {N}.",
        "{C}, and {C}.",
        "{C}, but {C}.",
        "{C}, and it is {Q}.",
        "It is {P} and {Q}.",
        "This {kind} is {Q}, and {C}.",
        "This {kind} is {Q}, with {N}.",
        "A {A} {kind}: {C}.",
        "It has {N}, and {C}.",
        "What a {A} {kind}: {C}.",
        "The {kind} has {N} and {N}.",
        "If you want {N}, here is a {A} {kind}.",
    ),
    3: (
        "A {A}, {A} {kind} with {N}.",
        "A {A} {kind} with {N} and {N}.",
        "It is {P} and {Q}, and {C}.",
        "{P}, {P} and {Q}.",
        "This {A} {kind} is {Q}, and {C}.",
        "A {A}, {A} {kind}: {C}.",
        "{C}, {C}, and it is {Q}.",
        "It is {Q}, has {N}, and {C}.",
    ),
}
_SENTENCES: Mapping[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,),),
    2: ((2,), (1, 1)),
    3: ((3,), (2, 1), (1, 2)),
    4: ((2, 2), (3, 1), (1, 3)),
}


@final
@dataclass(frozen=True, slots=True)
class Review:
    """A review and what it says.

    Attributes:
        text: Natural English, one or two sentences.
        features: (len(FEATURES),) what it says of each aspect: 0 nothing, else 0.6, 1 or 1.4 times the sign
            of the pole; the last is the craft.
    """

    text: str
    features: tuple[float, ...]


def write_review(rng: np.random.Generator, craft_share: float) -> Review:
    """Writes one review about one to three aspects and, with probability `craft_share`, the craft."""
    while True:
        mentioned = int(rng.choice(_MENTIONS, p=_MENTION_SHARES))
        about = [int(i) for i in rng.permutation(len(ASPECTS))[:mentioned]]
        if rng.random() < craft_share:
            about.insert(int(rng.integers(len(about) + 1)), len(ASPECTS))
        features = [0.0] * len(FEATURES)
        kind = _pick(rng, KINDS)
        plan = _pick(rng, _SENTENCES[len(about)])
        sentences = []
        for length in plan:
            sentences.append(_sentence(rng, about[:length], kind, features))
            about = about[length:]
        text = _opened(rng, " ".join(sentences))
        if len(text.split()) >= _FEWEST_WORDS and len(re.findall(r"\w+|[^\w\s]", text)) <= _MOST_TOKENS:
            return Review(text, tuple(features))


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _pick_common(rng: np.random.Generator, phrases: Sequence[str]) -> str:
    """Picks early ones more often than late ones, as people do: some words are common and some are rare."""
    return phrases[int(len(phrases) * rng.random() ** 3)]


def _sentence(rng: np.random.Generator, about: Sequence[int], kind: str, features: list[float]) -> str:
    """Fills one template with phrases about the aspects, and notes in `features` what they say."""
    parts = _pick(rng, _TEMPLATES[len(about)]).replace("{kind}", kind).split("{")
    text = parts[0]
    for part, aspect in zip(parts[1:], about, strict=True):
        slot, rest = part.split("}", 1)
        phrase, features[aspect] = _PHRASES[slot](rng, aspect)
        text += phrase + rest
    return _with_articles(text[0].upper() + text[1:])


def _poles(rng: np.random.Generator, aspect: int) -> tuple[Pole, Pole, float]:
    """Returns the pole to say, its opposite, and the sign of the first."""
    both = (*ASPECTS, CRAFT)[aspect]
    return (both.high, both.low, 1.0) if rng.integers(2) else (both.low, both.high, -1.0)


def _attributive(rng: np.random.Generator, aspect: int) -> tuple[str, float]:
    pole, _, sign = _poles(rng, aspect)
    size = _pick(rng, (_MILD, _PLAIN, _PLAIN, _STRONG))
    degrees = [degree for degree in _DEGREES[size] if not degree.startswith("a ")]
    return f"{_pick(rng, degrees)} {_pick_common(rng, pole.adjectives)}".strip(), sign * size


def _predicate(rng: np.random.Generator, aspect: int) -> tuple[str, float]:
    pole, _, sign = _poles(rng, aspect)
    size = _pick(rng, (_MILD, _PLAIN, _PLAIN, _STRONG))
    return f"{_pick(rng, _DEGREES[size])} {_pick_common(rng, pole.adjectives)}".strip(), sign * size


def _perhaps_negated(rng: np.random.Generator, aspect: int) -> tuple[str, float]:
    if rng.random() >= _NEGATED_SHARE:
        return _predicate(rng, aspect)
    _, opposite, sign = _poles(rng, aspect)
    size = _pick(rng, tuple(_NEGATIONS))
    return f"{_pick(rng, _NEGATIONS[size])} {_pick_common(rng, opposite.adjectives)}", sign * size


def _clause(rng: np.random.Generator, aspect: int) -> tuple[str, float]:
    pole, _, sign = _poles(rng, aspect)
    return _pick_common(rng, pole.clauses), sign


def _noun(rng: np.random.Generator, aspect: int) -> tuple[str, float]:
    pole, _, sign = _poles(rng, aspect)
    return _pick_common(rng, pole.nouns), sign


_PHRASES: Mapping[str, Callable[[np.random.Generator, int], tuple[str, float]]] = {
    "A": _attributive,
    "P": _predicate,
    "Q": _perhaps_negated,
    "C": _clause,
    "N": _noun,
}


def _with_articles(text: str) -> str:
    """Writes "an" for "a" before a vowel."""
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word in ("a", "A") and words[i + 1][0] in "aeiou":
            words[i] += "n"
    return " ".join(words)


def _opened(rng: np.random.Generator, text: str) -> str:
    opener = _pick(rng, _OPENERS)
    if not opener or text.startswith("I "):
        return opener + text
    return opener + text[0].lower() + text[1:]
