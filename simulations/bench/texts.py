"""Texts of an exact length in tokens, made of whole words of the tokenizer's vocabulary."""

from __future__ import annotations

import json

from umbel.shared.release import TOKENIZER, Release
from umbel.shared.rng import generator

_ENDS = 2  # [CLS] and [SEP]
_SHORTEST = 3  # letters: shorter entries are not words


def texts_of(release: Release, count: int, tokens: int) -> list[str]:
    """Returns texts that the release's tokenizer turns into exactly so many tokens each.

    Args:
        release: Its tokenizer has a vocabulary of words.
        count: How many texts.
        tokens: How long each is, the marks of its ends included.
    """
    words = words_of(release)
    rng = generator(0, 0, "", f"texts {tokens}")
    chosen = rng.integers(len(words), size=(count, words_in(tokens)))
    return [" ".join(words[number] for number in row) for row in chosen]


def labels_of(count: int, labels: int) -> list[int]:
    """Returns label numbers, every label as often as another."""
    numbers = [number % labels for number in range(count)]
    return [int(number) for number in generator(0, 0, "", "labels").permutation(numbers)]


def words_in(tokens: int) -> int:
    """Returns of how many words a text of so many tokens is."""
    return tokens - _ENDS


def words_of(release: Release) -> list[str]:
    """Returns the words of a release's tokenizer, each of which is one token."""
    vocabulary = json.loads(release.blob_path(TOKENIZER).read_bytes())["model"]["vocab"]
    return sorted(
        word
        for word in vocabulary
        if word.isascii() and word.isalpha() and word.islower() and len(word) >= _SHORTEST
    )
