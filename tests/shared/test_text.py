"""Texts become ids and masks: padded, cut, joined, and nothing private in an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from umbel.shared.errors import ExampleError, ReleaseError
from umbel.shared.text import TextEncoder, TokenBatch, join

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film")
PAD, UNK, CLS, SEP, GOOD, BAD, FILM = range(7)


def encoder(max_tokens: int = 6) -> TextEncoder:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return TextEncoder(tokenizer.to_str().encode(), max_tokens)


def test_texts_are_framed_padded_and_cut() -> None:
    batch = encoder().encode(["good film", "", "bad bad bad bad bad bad", "odd"])
    assert batch.ids.tolist() == [
        [CLS, GOOD, FILM, SEP, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
        [CLS, BAD, BAD, BAD, BAD, SEP],
        [CLS, UNK, SEP, PAD, PAD, PAD],
    ]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.ids.dtype == batch.mask.dtype == np.int64


def test_no_texts_are_a_batch_of_none() -> None:
    batch = encoder().encode([])
    assert (batch.ids.shape, batch.mask.shape, len(batch)) == ((0, 2), (0, 2), 0)


@given(texts=st.lists(st.text(max_size=12), max_size=5))
def test_a_text_is_encoded_alike_alone_and_among_others(texts: list[str]) -> None:
    codec = encoder()
    together = codec.encode(texts)
    for row, text in enumerate(texts):
        alone = codec.encode([text])
        cut = together.rows([row])
        assert np.array_equal(cut.ids, alone.ids)
        assert np.array_equal(cut.mask, alone.mask)


@given(lengths=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4))
def test_joined_batches_hold_every_row_in_order(lengths: list[list[int]]) -> None:
    codec = encoder()
    parts = [codec.encode(["good " * (n - 1) for n in row]) for row in lengths]
    joined = join(parts)
    rows = [ids[mask == 1].tolist() for part in parts for ids, mask in zip(part.ids, part.mask, strict=True)]
    assert [ids[mask == 1].tolist() for ids, mask in zip(joined.ids, joined.mask, strict=True)] == rows
    assert joined.ids.shape == joined.mask.shape
    assert (joined.ids[joined.mask == 0] == 0).all()


def test_rows_are_cut_to_the_longest_of_them() -> None:
    batch = encoder().encode(["good", "good bad film", ""])
    assert batch.rows([2, 0]).ids.tolist() == [[CLS, SEP, PAD], [CLS, GOOD, SEP]]
    assert batch.rows(np.array([], np.int64)).ids.shape == (0, 2)
    assert isinstance(batch.rows([1]), TokenBatch)


def test_half_a_surrogate_pair_is_told_by_number_only() -> None:
    with pytest.raises(ExampleError) as caught:
        encoder().encode(["good", "bad \ud83d", "\udc00 film"])
    assert list(caught.value.problems) == [
        "text 2: half of a surrogate pair",
        "text 3: half of a surrogate pair",
    ]
    assert "film" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]", b'{"version": "1.0"}'])
def test_bytes_that_are_no_tokenizer(data: bytes) -> None:
    with pytest.raises(ReleaseError, match=r"^the tokenizer cannot be read"):
        TextEncoder(data, 8)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 4), st.data())
def test_pieces_of_like_length_hold_every_text_once(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    mask = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int64)
    batch = TokenBatch(mask, mask)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9)), np.int64)
    for texts in (None, chosen):
        own = np.arange(len(lengths)) if texts is None else texts
        pieces = batch.like_length(size, texts)
        assert all(1 <= len(piece) <= size for piece in pieces)
        places = [int(place) for piece in pieces for place in piece]
        assert sorted(places) == list(range(len(own)))
        found = [lengths[own[place]] for place in places]
        assert found == sorted(found)


def test_a_tokenizer_that_lacks_its_word_for_unknown_ones_is_a_release_error() -> None:
    tokenizer = Tokenizer(models.WordPiece({"good": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    codec = TextEncoder(tokenizer.to_str().encode(), 6)
    assert codec.encode(["good"]).ids.tolist() == [[0, 0]]
    with pytest.raises(ReleaseError, match="cannot read texts") as caught:
        codec.encode(["a secret"])
    assert "secret" not in str(caught.value)
