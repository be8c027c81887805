"""What both sides know of onboarding: the names in its graphs, and what a release says of its prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from umbel.shared.errors import ReleaseError

GRAPH = "onboard"
"""The graph that a release with onboarding has beside the others."""

TEACH = "teach"
"""The graph that it has besides if devices train the network in rounds, too."""

INPUTS = ("text_embedding", "logits", "labels", "owner", "owners")
"""Of each text its embedding, logits, label and owner; and the users."""

QUERY = ("query_embedding", "query_logits", "query_labels", "query_owner")
"""Of `teach`: the same of texts that users are asked, all of them labelled."""

WANTED = "wanted."
"""Of the input of `teach` that holds the loss's gradient by what a private tensor starts from."""

PREFIX = "onboarding."
"""Of the network's parameters, among a release's shared tensors."""

START = "start."
"""Of the output that holds what a private tensor starts from."""

WEIGHTS = "prototypes"
"""The output that holds the weight of each prototype: (users, prototypes)."""

TOTAL = "total"
"""The output of `teach` whose gradient its others are, a scalar."""

UNKNOWN = -1
"""The label of a text of which only the text is known."""

_MOST_PROTOTYPES = 4096
_MOST_EXAMPLES = 100
MOST_CHARACTERS = 2000
"""Of a text that is shown for a prototype."""


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """A public example that shows what a prototype stands for.

    Attributes:
        text: The text.
        label: What somebody of that prototype would say of it, unlike others.
    """

    text: str
    label: str


@final
@dataclass(frozen=True, slots=True)
class Onboarding:
    """What a release says of its onboarding, beside the graphs.

    Attributes:
        prototypes: For each prototype, public examples that show what it stands for; there may be none.
    """

    prototypes: tuple[tuple[Shown, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Returns it as the manifest holds it."""
        return {
            "prototypes": [
                [{"text": example.text, "label": example.label} for example in row] for row in self.prototypes
            ]
        }

    @classmethod
    def from_json(cls, row: object) -> Onboarding:
        """Reads it back; nothing about `row` is taken on trust.

        Raises:
            ReleaseError: It is malformed: all problems are told.
        """
        if not isinstance(row, dict) or set(row) != {"prototypes"} or not isinstance(row["prototypes"], list):
            raise ReleaseError("the onboarding is malformed", ["expected an object with prototypes, a list"])
        rows = row["prototypes"]
        problems = []
        if not 1 <= len(rows) <= _MOST_PROTOTYPES:
            problems.append(f"found {len(rows)} prototypes, expected 1 to {_MOST_PROTOTYPES}")
        problems += [
            f"prototype {number}: expected a list of at most {_MOST_EXAMPLES} examples, each text and label"
            for number, examples in enumerate(rows[:_MOST_PROTOTYPES], 1)
            if not _are_examples(examples)
        ]
        if problems:
            raise ReleaseError("the onboarding is malformed", problems)
        return cls(
            tuple(tuple(Shown(e["text"], e["label"]) for e in examples) for examples in row["prototypes"])
        )


def _are_examples(rows: object) -> bool:
    return isinstance(rows, list) and len(rows) <= _MOST_EXAMPLES and all(map(_is_example, rows))


def _is_example(row: object) -> bool:
    if not isinstance(row, dict) or set(row) != {"text", "label"}:
        return False
    return all(isinstance(value, str) and 0 < len(value) <= MOST_CHARACTERS for value in row.values())
