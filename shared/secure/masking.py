"""The mask of two devices, as the devices put it on and a coordinator takes it off."""

from __future__ import annotations

from umbel.shared.secure.primitives import Words, agreed_key, mask


def add_pair_mask(vector: Words, private: bytes, public: bytes, own: int, other: int) -> None:
    """Adds a device's half of the mask that it has with a peer: what the one adds, the other takes away.

    Args:
        vector: (1 + d,), changed in place.
        private: The device's private key.
        public: The peer's public key.
        own: The device's place.
        other: The peer's.

    Raises:
        ValueError: One of them is no key.
    """
    pair = mask(agreed_key(private, public), len(vector))
    if own > other:
        vector += pair
    else:
        vector -= pair
