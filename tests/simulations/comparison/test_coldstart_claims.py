"""Every claim about the first minute on cells in which it holds, does not, and is not measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.simulations.comparison.example_comparison import ASKED, cell, comparison
from tests.simulations.comparison.test_harm import measured

from umbel.simulations.comparison import coldstart_claims as claims
from umbel.simulations.comparison.claims import Claim, Finding
from umbel.simulations.comparison.page import page
from umbel.simulations.comparison.results import Cell, Seen
from umbel.simulations.comparison.summary import Summary

PEOPLE = 5
MIXED = [[True, False] * 6] * PEOPLE


def own(name: str, shares: Mapping[int, float], data: str, **changes: Any) -> Cell:
    right = {k: [round(share * ASKED)] * PEOPLE for k, share in shares.items()}
    kind = "generic" if name == "generic" else "plora"
    named = {"contestant": name, "title": name}
    return cell(kind, right, data=data).model_copy(update=named | changes)


def config(data: Sequence[str]) -> dict[str, Any]:
    methods: dict[str, Any] = {"methods": {"plora": {}}}
    return {
        "study": "onboarding",
        "seeds": [0],
        "rivals": ["generic"],
        "contestants": {"zeros": methods, "device": methods, "texts": methods},
        "data": {name: {"k": [4, 16, 32]} for name in data},
    }


def summary(cells: Sequence[Cell], *data: str) -> Summary:
    return Summary(comparison(cells, config(data)), draws=40)


def only(claim: Claim) -> Finding:
    assert len(claim.findings) == 1
    return claim.findings[0]


@pytest.mark.parametrize(("share", "verdict"), [(0.7, "holds"), (0.69, "does not hold")])
def test_four_are_as_good_as_sixteen(share: float, verdict: str) -> None:
    cells = [
        own("device", {4: share, 16: 0.9}, "movielens"),
        own("zeros", {4: 0.1, 16: 0.7}, "movielens"),
    ]
    assert only(claims.four_for_sixteen(summary(cells, "movielens"))).verdict == verdict
    assert only(claims.four_for_sixteen(summary(cells[:1], "movielens"))).verdict == "not measured"


def test_films_must_reach_every_k() -> None:
    reached = {0: 0.64, 4: 0.68, 16: 0.70, 32: 0.71}

    def found(shares: Mapping[int, float]) -> Finding:
        return only(claims.films(summary([own("device", shares, "movielens")], "movielens")))

    assert found(reached).verdict == "holds"
    for k, share in reached.items():
        assert found(reached | {k: share - 0.001}).verdict == "does not hold"
    assert found({k: share for k, share in reached.items() if k}).verdict == "not measured"
    both = [own("device", reached, "movielens"), own("whole", {0: 0.66}, "movielens")]
    told = only(claims.films(summary(both, "movielens")))
    assert (told.verdict, told.measured[-1]) == (
        "holds",
        "with up to 16 more texts without labels: k = 0: 66.0\u00a0%",
    )
    assert claims.films(summary([own("device", reached, "crehate")], "crehate")).findings == ()


def crehate(own_hits: Sequence[Sequence[bool]], at_32: float) -> Finding:
    generic, device = measured(MIXED), measured(own_hits)
    later = device.model_copy(update={"right": tuple(round(12 * at_32) for _ in MIXED), "hits": None})
    asked = {"asked": (12,) * PEOPLE}
    cells = [
        own("generic", {0: 0.0}, "crehate", k={"0": generic.model_copy(update=asked)}),
        own("device", {0: 0.0}, "crehate", k={"0": generic, "4": device, "16": generic, "32": later}),
    ]
    return only(claims.harmless(summary(cells, "crehate")))


def test_harm_is_looked_for_person_by_person() -> None:
    assert crehate(MIXED, 7 / 12).verdict == "holds"
    assert crehate(MIXED, 6 / 12).verdict == "does not hold"  # no gain at 32
    found = crehate([[False] * 12, *MIXED[1:]], 7 / 12)
    assert found.verdict == "does not hold"
    assert "flags 20.0\u00a0% of 5 (a person" in found.measured[-1]


@pytest.mark.parametrize(
    ("shares", "verdict"), [({16: 0.78, 32: 0.84}, "holds"), ({16: 0.78, 32: 0.83}, "does not hold")]
)
def test_gain_is_a_share_of_what_is_possible(shares: Mapping[int, float], verdict: str) -> None:
    known = {"best": (0.9,) * PEOPLE, "best_generic": (0.6,) * PEOPLE}
    cells = [own("device", shares, "community", **known)]
    assert only(claims.gain(summary(cells, "community"))).verdict == verdict
    assert only(claims.gain(summary([own("device", shares, "community")], "community"))).verdict == (
        "not measured"
    )


def test_texts_alone_must_beat_generic() -> None:
    for share, verdict in ((0.61, "holds"), (0.6, "does not hold"), (0.55, "does not hold")):
        cells = [own("generic", {0: 0.6}, "community"), own("texts", {0: share}, "community")]
        found = only(claims.texts(summary(cells, "community")))
        assert found.verdict in (verdict, "undecided") if share == 0.6 else found.verdict == verdict


def test_the_page_says_who_is_helped_and_what_seen_people_get() -> None:
    better = [[True] * 12] * PEOPLE
    cells = [
        own("generic", {0: 0.0}, "community", k={"0": measured(MIXED)}),
        own(
            "device",
            {0: 0.0},
            "community",
            k={str(k): measured(better) for k in (0, 4, 16, 32)},
            seen=Seen(right=3, asked=4),
        ),
    ]
    text = page(comparison(cells, config(["community"])), draws=40)
    assert text.startswith("# The first minute of a new person\n")
    assert "umbel simulate onboarding --data DATA" in text
    assert "| **device** | 0.0 % / 1.6 % / 100.0 % |" in text
    assert "75.0 %: device." in " ".join(text.split())
    assert "onboarding-community-people.svg" in text
