"""What a comparison is run for: the claims that its page checks, and how the page is named and begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from umbel.simulations.comparison.claims import Claim, all_claims
from umbel.simulations.comparison.coldstart_claims import coldstart_claims
from umbel.simulations.comparison.results import Comparison
from umbel.simulations.comparison.summary import Summary

Name = Literal["methods", "onboarding"]


@final
@dataclass(frozen=True, slots=True)
class Study:
    """One kind of comparison.

    Attributes:
        name: Its name in configurations; the experiment, and the page's figures, are named so, too.
        title: The page's.
        what: What is compared, after the numbers of contestants.
        claims: Finds what they come to.
        prose: How it was measured, beside what holds for every comparison.
        people: Whether the page says who is helped and who is harmed.
    """

    name: Name
    title: str
    what: str
    claims: Callable[[Summary], tuple[Claim, ...]]
    prose: tuple[str, ...] = ()
    people: bool = False

    @property
    def page(self) -> str:
        """The page's file name."""
        return f"{self.name}.md"

    @property
    def command(self) -> str:
        """What runs what is missing, and writes the page."""
        return (
            f"umbel simulate {self.name} --data DATA --workers 2 --threads 1\n"
            f"umbel results runs/{self.name}/result.json --out docs/results"
        )


STUDIES: dict[Name, Study] = {
    "methods": Study(
        "methods",
        "Methods compared",
        "of umbel's methods and combinations",
        all_claims,
        (
            "umbel's methods train their shared part further on seen people, and so do the start of prompt "
            "tuning, retrieval and FedAvg; one LoRA or adapter per person begins with the generic model as "
            "it is. What the shared part alone brings is seen at k = 0. The two shared adaptations begin "
            "with the pretrained encoder, both alike.",
            "Where profiles are tasks (clinc150), the generic model is trained on examples of these tasks "
            "that nobody is asked about; rivals choose their options on such examples of some tasks, and "
            "umbel's methods, which choose none there, keep the better of two looks at such examples of all.",
        ),
    ),
    "onboarding": Study(
        "onboarding",
        "The first minute of a new person",
        "ways of umbel's to begin",
        coldstart_claims,
        (
            "All of umbel's ways that share methods and rates share the trained methods, too, and those that "
            "onboard share the network: they differ in what is done on the device. The seconds of a shared "
            "training stand with whoever was measured first.",
            "The paired test sees large harm only: with 30 questions of which 15 % are answered otherwise, "
            "it flags one person in 20 where everybody loses 5 points.",
            "Profiles are learned by torch's gradients; that the device's graphs give the same is what "
            "parity tests are for.",
        ),
        people=True,
    ),
}


def study_of(comparison: Comparison) -> Study:
    """Returns what a comparison was run for; the methods, where an older one does not say."""
    named = comparison.config.get("study")
    return next((study for name, study in STUDIES.items() if name == named), STUDIES["methods"])
