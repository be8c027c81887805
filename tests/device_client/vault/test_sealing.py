"""Sealed pieces: they come back exactly, say little, and open nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.device_client.vault.sealing import KEY_BYTES, Sealer, new_key
from umbel.shared.errors import StoreError

KEY = bytes(range(KEY_BYTES))


@given(st.binary(max_size=300), st.text(max_size=20))
def test_a_piece_comes_back_and_its_length_is_rounded_up(piece: bytes, place: str) -> None:
    sealed = Sealer(KEY).seal(piece, place)
    assert Sealer(KEY).open(sealed, place) == piece
    assert (len(sealed) - 12 - 16) % 64 == 0
    assert len(piece) < 16 or piece not in sealed


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_piece_does_not_open(piece: bytes, data: st.DataObject) -> None:
    sealed = bytearray(Sealer(KEY).seal(piece, "here"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StoreError, match="does not open"):
        Sealer(KEY).open(bytes(sealed), "here")


@given(st.integers(0, 80))
def test_a_cut_piece_does_not_open(length: int) -> None:
    with pytest.raises(StoreError, match="does not open"):
        Sealer(KEY).open(Sealer(KEY).seal(b"a piece", "here")[:length], "here")


def test_a_piece_opens_in_its_place_and_under_its_key_alone() -> None:
    sealed = Sealer(KEY).seal(b"a piece", "profiles/one")
    for sealer, place in ((Sealer(KEY), "profiles/two"), (Sealer(new_key()), "profiles/one")):
        with pytest.raises(StoreError) as caught:
            sealer.open(sealed, place)
        assert "a piece" not in str(caught.value)
        assert "two" not in str(caught.value)


def test_equal_pieces_are_sealed_differently_and_marked_alike() -> None:
    sealer = Sealer(KEY)
    assert sealer.seal(b"a piece", "here") != sealer.seal(b"a piece", "here")
    assert sealer.mark(b"a piece") == Sealer(KEY).mark(b"a piece")
    assert sealer.mark(b"a piece") != sealer.mark(b"another")
    assert sealer.mark(b"a piece") != Sealer(new_key()).mark(b"a piece")


def test_a_sealer_does_not_show_its_key() -> None:
    assert KEY.hex() not in repr(Sealer(KEY))
    assert repr(Sealer(KEY)) == "Sealer()"
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(KEY[:-1])
