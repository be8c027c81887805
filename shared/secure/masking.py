"""The mask of two devices, as the devices put it on and a coordinator takes it off."""

from __future__ import annotations

from umbel.shared.secure.primitives import Words, agreed_key, key_for, mask


def add_pair_mask(vector: Words, private: bytes, public: bytes, own: int, other: int, terms: bytes) -> None:
    """Adds a device's half of the mask that it has with a peer: what the one adds, the other takes away.

    Args:
        vector: (1 + d,), changed in place.
        private: The device's private key.
        public: The peer's public key.
        own: The device's place.
        other: The peer's.
        terms: What the devices of this sum were told (`terms.py`): another mask for other terms.

    Raises:
        ValueError: One of them is no key.
    """
    pair = mask(key_for(agreed_key(private, public), terms), len(vector))
    if own > other:
        vector += pair
    else:
        vector -= pair
