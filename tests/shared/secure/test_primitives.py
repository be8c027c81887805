"""The primitives of a secure sum: sizes that never change, and a mask that no two seeds share."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flwr")

from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from umbel.shared.secure.primitives import (
    KEY_SHARE_BYTES,
    PRIVATE_BYTES,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SEED_SHARE_BYTES,
    agreed_key,
    commitment,
    key_pair,
    mask,
    new_seed,
    public_key,
    sealed,
    secret_of,
    shares_of,
    unsealed,
)

pytestmark = pytest.mark.full


def test_two_sides_agree_and_every_size_is_the_same() -> None:
    for _ in range(3):
        (a, a_public), (b, b_public) = key_pair(), key_pair()
        assert (len(a), len(a_public)) == (PRIVATE_BYTES, PUBLIC_BYTES)
        assert public_key(a) == a_public
        key = agreed_key(a, b_public)
        assert key == agreed_key(b, a_public)
        seed_share, key_share = shares_of(new_seed(), 2, 3)[0], shares_of(a, 2, 3)[0]
        assert (len(seed_share), len(key_share)) == (SEED_SHARE_BYTES, KEY_SHARE_BYTES)
        packet = sealed(key, 4, 9, seed_share, key_share)
        assert len(packet) == SEALED_BYTES
        assert unsealed(key, packet) == (4, 9, seed_share, key_share)
        with pytest.raises(ValueError, match="not sealed with this key"):
            unsealed(agreed_key(a, a_public), packet)


@settings(max_examples=30, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=48),
    threshold=st.integers(2, 6),
    more=st.integers(0, 4),
    shift=st.integers(0, 9),
)
def test_as_many_shares_as_the_threshold_give_the_secret_and_fewer_do_not(
    secret: bytes, threshold: int, more: int, shift: int
) -> None:
    shares = shares_of(secret, threshold, threshold + more)
    turned = shares[shift % len(shares) :] + shares[: shift % len(shares)]
    assert secret_of(turned[:threshold]) == secret
    with suppress(ValueError):
        assert secret_of(turned[: threshold - 1]) != secret


def test_a_mask_is_a_function_of_its_key_and_looks_like_chance() -> None:
    seed = new_seed()
    first = mask(seed, 50_000)
    np.testing.assert_array_equal(first[:100], mask(seed, 100))
    assert (first == mask(new_seed(), 50_000)).sum() < 5
    # 1.6 million fair bits: half of them ones, within 5 standard deviations.
    ones = int(np.unpackbits(first.view(np.uint8)).sum())
    assert abs(ones - 800_000) < 5 * np.sqrt(1_600_000) / 2


def test_flowers_own_mask_generator_is_not_used_for_a_reason() -> None:
    """It folds a seed to 32 bits: seeds that are not the same give the same mask. Ours does not."""
    seed = new_seed()
    other = seed[4:8] + seed[:4] + seed[8:]
    assert seed != other
    (flowers,), (same) = pseudo_rand_gen(seed, 2**32, [(9,)]), pseudo_rand_gen(other, 2**32, [(9,)])[0]
    np.testing.assert_array_equal(flowers, same)
    assert (mask(seed, 9) != mask(other, 9)).any()


def test_what_is_no_key_is_told_so() -> None:
    private, public = key_pair()
    with pytest.raises(ValueError, match="no key of the curve"):
        agreed_key(private, b"x" * len(public))
    with pytest.raises(ValueError, match="no key of the curve"):
        agreed_key(bytes(PRIVATE_BYTES), public)
    with pytest.raises(ValueError, match="shares of one secret"):
        secret_of([bytes(SEED_SHARE_BYTES)] * 2)


def test_a_commitment_tells_seeds_apart() -> None:
    seed = new_seed()
    assert commitment(seed) == commitment(seed) != commitment(new_seed())
