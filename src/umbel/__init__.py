"""umbel: a language model that fits each person; their texts and profile never leave the device."""

__version__ = "0.1.0"
