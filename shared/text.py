"""Texts become token ids. Both sides must encode alike, so there is one encoder (it needs `tokenizers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import ExampleError, MissingExtraError, ReleaseError

IntArray = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Encoded texts, padded to the longest.

    Attributes:
        ids: (batch, seq) int64.
        mask: (batch, seq) int64, 1 for tokens, 0 for padding.
    """

    ids: IntArray
    mask: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: npt.NDArray[np.intp] | Sequence[int]) -> TokenBatch:
        """Returns some rows, cut to the longest of them."""
        mask = self.mask[index]
        longest = max(int(mask.sum(1).max(initial=0)), 2)
        return TokenBatch(self.ids[index][:, :longest], mask[:, :longest])

    def like_length(self, size: int, texts: IntArray | None = None) -> list[npt.NDArray[np.intp]]:
        """Cuts texts into pieces of like length, which saves padding.

        Args:
            size: Texts in a piece, at most.
            texts: (n,) row numbers of this batch; all of its rows if None.

        Returns:
            Places in `texts`, each once, the shortest texts first; texts of one length stay in their order.
        """
        lengths = self.mask.sum(1)
        order = np.argsort(lengths if texts is None else lengths[texts], kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]


def no_tokens(count: int) -> TokenBatch:
    """Returns so many texts of no tokens: (count, 0)."""
    nothing = np.zeros((count, 0), np.int64)
    return TokenBatch(nothing, nothing)


@final
class TextEncoder:
    """A release's tokenizer: text -> token ids, cut to `max_tokens`."""

    def __init__(self, tokenizer_json: bytes, max_tokens: int):
        """Reads a serialized fast tokenizer.

        Raises:
            ReleaseError: The bytes are not a tokenizer.
            MissingExtraError: The tokenizers package is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(
                "encoding texts needs the tokenizers package", hint="pip install 'umbel[device]'"
            ) from error
        try:
            tokenizer: Any = Tokenizer.from_str(tokenizer_json.decode())
        except Exception as error:
            raise ReleaseError("the tokenizer cannot be read", [f"{type(error).__name__}"]) from error
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Returns the token ids of texts: (batch, seq), seq the longest of them and at least 2.

        Raises:
            ReleaseError: The tokenizer is not whole.
            ExampleError: A text holds characters that no encoder can read; texts are told by number only.
        """
        broken = [number for number, text in enumerate(texts, 1) if not _is_unicode(text)]
        if broken:
            raise ExampleError(
                "texts cannot be encoded", [f"text {number}: half of a surrogate pair" for number in broken]
            )
        try:
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        except Exception as error:  # its words could quote a text
            raise ReleaseError("the tokenizer cannot read texts", [type(error).__name__]) from None
        longest = max([2, *(len(row) for row in rows)])
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return TokenBatch(ids, mask)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def join(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Stacks batches, padded to the longest of all."""
    longest = max([2, *(batch.ids.shape[1] for batch in batches)])
    ids = np.zeros((sum(len(batch) for batch in batches), longest), np.int64)
    mask = np.zeros_like(ids)
    start = 0
    for batch in batches:
        end, width = start + len(batch), batch.ids.shape[1]
        ids[start:end, :width] = batch.ids
        mask[start:end, :width] = batch.mask
        start = end
    return TokenBatch(ids, mask)
