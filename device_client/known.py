"""What an owner has entrusted, as learning takes it: labelled examples, and texts without a label."""

from __future__ import annotations

from collections.abc import Iterable

from umbel.device_client.vault.store import Entry
from umbel.shared.examples import Example


def known(entries: Iterable[Entry]) -> tuple[list[Example], list[str]]:
    """Returns the examples and the texts among some entries, each in their order."""
    examples: list[Example] = []
    texts: list[str] = []
    for entry in entries:
        if entry.label is None:
            texts.append(entry.text)
        else:
            examples.append(Example("owner", entry.text, entry.label))
    return examples, texts
