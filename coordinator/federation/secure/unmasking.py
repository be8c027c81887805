"""Taking the masks off a sum, with the shares that devices gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from umbel.shared.errors import MessageError
from umbel.shared.secure.masking import add_pair_mask
from umbel.shared.secure.messages import Unmasking
from umbel.shared.secure.primitives import Words, commitment, mask, public_key, secret_of


def take_off_own(
    total: Words,
    remaining: Sequence[int],
    shares: Mapping[int, Unmasking],
    bound: Mapping[int, bytes],
    threshold: int,
) -> None:
    """Takes each remaining device's own mask off the sum.

    Args:
        total: The sum, changed in place.
        remaining: Who sent a masked change.
        shares: Who answered -> the shares that they gave.
        bound: Place -> what binds that device to its seed.
        threshold: How many shares give a secret.

    Raises:
        MessageError: A seed cannot be found; the sum stays closed.
    """
    for place in remaining:
        held = {holder: given.seeds[place] for holder, given in shares.items() if place in given.seeds}
        seed = recovered(held, threshold, partial(_is_seed, bound[place]), place)
        total -= mask(seed, len(total))


def take_off_pairs(
    total: Words,
    gone: Mapping[int, Sequence[int]],
    shares: Mapping[int, Unmasking],
    keys: Mapping[int, bytes],
    threshold: int,
    terms: bytes,
) -> None:
    """Takes off the masks that remaining devices have with peers who sent no change.

    Args:
        total: The sum, changed in place.
        gone: Who is gone -> those of its peers that remain.
        shares: Who answered -> the shares that they gave.
        keys: Place -> that device's public mask key.
        threshold: How many shares give a secret.
        terms: What all were told.

    Raises:
        MessageError: A key cannot be found; the sum stays closed.
    """
    for place, peers in gone.items():
        held = {holder: given.keys[place] for holder, given in shares.items() if place in given.keys}
        private = recovered(held, threshold, partial(_is_private, keys[place]), place)
        for peer in peers:
            add_pair_mask(total, private, keys[peer], place, peer, terms)


def recovered(held: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool], place: int) -> bytes:
    """Returns a device's secret; one holder of a wrong share is left out where there are enough others.

    Args:
        held: Holder -> share.
        threshold: How many shares give it.
        right: Says whether a secret is the one that it must be.
        place: Whose it is, for the error.

    Raises:
        MessageError: There are too few shares, or too many wrong ones.
    """
    for holders in _choices(sorted(held), threshold):
        shares = [held[holder] for holder in holders]
        if len({share[:4] for share in shares}) < threshold:
            continue  # two are the same piece of the secret
        try:
            secret = secret_of(shares)
        except ValueError:
            continue
        if right(secret):
            return secret
    problem = f"{len(held)} of {threshold} shares of place {place}'s secret came, or some of them are wrong"
    raise MessageError("the sum is not opened", [problem])


def _choices(holders: Sequence[int], threshold: int) -> Iterator[Sequence[int]]:
    """Yields the first `threshold` holders, then, with one to spare, those without one of them each."""
    if len(holders) >= threshold:
        yield holders[:threshold]
    if len(holders) > threshold:
        for left_out in holders[:threshold]:
            yield [holder for holder in holders if holder != left_out][:threshold]


def _is_seed(bound: bytes, seed: bytes) -> bool:
    return commitment(seed) == bound


def _is_private(public: bytes, private: bytes) -> bool:
    try:
        return public_key(private) == public
    except ValueError:
        return False
