"""Every claim on cells in which it holds, does not, and is not measured."""

import pytest
from tests.simulations.comparison.example_comparison import KINDS, cell, comparison, config, flat

from umbel.simulations.comparison import claims
from umbel.simulations.comparison.claims import Claim, Finding
from umbel.simulations.comparison.results import Cell
from umbel.simulations.comparison.summary import Difference, Summary


def summary_of(cells: list[Cell], **data: tuple[int, ...]) -> Summary:
    return Summary(comparison(cells, config(data or {"movielens": (4, 16, 32)}, seeds=(0,))), draws=40)


def only(claim: Claim) -> Finding:
    assert len(claim.findings) == 1
    return claim.findings[0]


def said(finding: Finding) -> str:
    return "; ".join(finding.measured).replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize("contestant", ["xpeft", "xpeft-random"])
@pytest.mark.parametrize(("mine", "verdict"), [(0.69, "holds"), (0.75, "holds"), (0.689, "does not hold")])
def test_xpeft_is_within_a_point_of_an_adapter(contestant: str, mine: float, verdict: str) -> None:
    found = only(claims.xpeft(summary_of(flat({"adapter": 0.7, contestant: mine})), contestant))
    assert found.verdict == verdict
    assert "150 B against 884.7 kB: 5,898 times less" in said(found)


def test_one_k_is_enough_to_fail_and_one_is_not_enough_to_hold() -> None:
    adapter = flat({"adapter": 0.7})
    dip = cell("xpeft", {4: [700] * 4, 16: [600] * 4, 32: [700] * 4})
    found = only(claims.xpeft(summary_of([*adapter, dip]), "xpeft"))
    assert found.verdict == "does not hold"
    assert "k = 16: -10.0 points [-10.0 to -10.0]" in said(found)
    partial = cell("xpeft", {4: [700] * 4})
    found = only(claims.xpeft(summary_of([*adapter, partial]), "xpeft"))
    assert found.verdict == "not measured"
    assert "k = 4: 0.0 points" in said(found)
    assert "k = 32: not measured" in said(found)


def test_bytes_at_bert_base_size_follow_from_the_formulas() -> None:
    words = claims.bert_bytes()
    for expected in ("= 312 B", "= 300 B", "3,538,944 B", "11,343 and 11,796"):
        assert expected in words


@pytest.mark.parametrize(("mine", "verdict"), [(0.7, "holds"), (0.699, "does not hold")])
def test_plora_is_at_least_lora(mine: float, verdict: str) -> None:
    found = only(claims.plora(summary_of(flat({"lora": 0.7, "plora": mine}))))
    assert found.verdict == verdict
    assert "32 private numbers against 36,864" in said(found)


def test_plora_needs_few_numbers_too_and_a_larger_k_is_not_its_matter() -> None:
    cells = flat({"lora": 0.7})
    heavy = [
        cell("plora", {k: [800] * 4 for k in (4, 16, 32)}, private_numbers=count) for count in (369, 368)
    ]
    assert [only(claims.plora(summary_of([*cells, row]))).verdict for row in heavy] == [
        "does not hold",
        "holds",
    ]
    late = [cell("lora", {4: [700], 100: [900]}), cell("plora", {4: [700], 100: [800]})]
    assert only(claims.plora(summary_of(late, movielens=(4, 100)))).verdict == "holds"


@pytest.mark.parametrize(("mine", "verdict"), [(0.701, "holds"), (0.7, "undecided"), (0.69, "does not hold")])
def test_lopa_is_above_prompts(mine: float, verdict: str) -> None:
    assert only(claims.lopa_prompt(summary_of(flat({"prompt": 0.7, "lopa": mine})))).verdict == verdict


@pytest.mark.parametrize(("mine", "verdict"), [(0.69, "holds"), (0.68, "does not hold")])
def test_lopa_is_near_lora_at_32(mine: float, verdict: str) -> None:
    cells = [cell("lora", {4: [900], 32: [700]}), cell("lopa", {4: [100], 32: [round(1000 * mine)]})]
    assert only(claims.lopa_lora(summary_of(cells))).verdict == verdict
    assert only(claims.lopa_lora(summary_of(cells[:1]))).verdict == "not measured"
    without = summary_of(flat({"lora": 0.7, "lopa": 0.7}, ks=(4,)), movielens=(4,))
    assert claims.lopa_lora(without).findings == ()


@pytest.mark.parametrize(("mine", "verdict"), [(0.54, "holds"), (0.46, "does not hold")])
def test_pha_is_above_adapters_on_clinc150(mine: float, verdict: str) -> None:
    cells = flat({"adapter": 0.5, "pha": mine}, data="clinc150", ks=(100,))
    cells += flat({"adapter": 0.5, "pha": 0.1}, ks=(4,))
    found = only(claims.pha(summary_of(cells, clinc150=(100,), movielens=(4,))))
    assert (found.data, found.verdict) == ("clinc150", verdict)
    relative = {"holds": "+8.0 %", "does not hold": "-8.0 %"}[verdict]
    assert f"accuracy: {relative} (the paper: +8 %)" in said(found)
    assert only(claims.pha(summary_of([], clinc150=(100,)))).verdict == "not measured"
    assert claims.pha(summary_of([])).findings == ()


@pytest.mark.parametrize(
    ("right", "numbers", "verdict"),
    [
        ([700, 700], 6_629, "holds"),
        ([700, 700], 6_630, "does not hold"),  # 33.70 % fewer
        ([760, 632], 6_629, "undecided"),  # -0.4 points between +6.0 and -6.8
        ([752, 638], 6_629, "does not hold"),  # -0.5 points
        ([696, 696], 6_629, "does not hold"),  # -0.4 points, but no doubt of it
    ],
)
def test_loratrf_saves_numbers_at_loras_accuracy(right: list[int], numbers: int, verdict: str) -> None:
    cells = [
        cell("shared-lora", {0: [700, 700]}),
        cell("shared-loratrf", {0: right}, shared_numbers=numbers),
    ]
    found = only(claims.loratrf(summary_of(cells)))
    assert found.verdict == verdict
    assert f"{numbers:,} shared numbers against 10,000: 33.7" in said(found)
    assert only(claims.loratrf(summary_of(cells[:1]))).verdict == "not measured"


@pytest.mark.parametrize(
    ("mine", "size", "verdict"),
    [
        (0.7, 4_095, "holds"),
        (0.7, 4_096, "does not hold"),
        (0.689, 100, "does not hold"),
        (0.69, 100, "holds"),
        (0.68, 100, "does not hold"),
    ],
)
def test_the_best_combination_beats_the_best_method(mine: float, size: int, verdict: str) -> None:
    single = [name for name, kind in KINDS.items() if kind[0] == "method"]
    cells = flat({"headbias": 0.6, **dict.fromkeys(single, 0.6), "plora": 0.68, "lora": 0.99})
    cells.append(cell("plora+lopa", {16: [round(1000 * mine)] * 4}, private_bytes=size))
    found = only(claims.combination(summary_of(cells)))
    assert found.verdict == verdict
    assert "against PLORA: " in said(found)
    assert only(claims.combination(summary_of(cells[:-1]))).verdict == "not measured"
    assert only(claims.combination(summary_of(cells[1:]))).verdict == "not measured"  # one k of the bias


def test_a_private_bias_is_a_single_method_too() -> None:
    single = [name for name, kind in KINDS.items() if kind[0] == "method"]
    cells = flat({**dict.fromkeys(single, 0.6), "plora+lopa": 0.71})
    cells = [row for row in cells if row.contestant != "headbias"]
    cells.append(cell("headbias", {16: [720] * 4}, group="rival"))
    found = only(claims.combination(summary_of(cells)))
    assert found.verdict == "does not hold"
    assert "against HEADBIAS: -1.0 points" in said(found)


def test_a_rival_that_is_worse_than_generic_is_told() -> None:
    cells = flat({"generic": 0.7, "lora": 0.6, "plora": 0.65})
    assert "k = 4: +5.0 points [+5.0 to +5.0] (LORA: -10.0 to generic)" in said(
        only(claims.plora(summary_of(cells)))
    )
    assert "to generic" not in said(
        only(claims.plora(summary_of(flat({"generic": 0.6, "lora": 0.6, "plora": 0.65}))))
    )


@pytest.mark.parametrize(("mine", "verdict"), [(0.697, "holds"), (0.696, "does not hold")])
def test_the_control_looks_at_the_largest_loss(mine: float, verdict: str) -> None:
    own = dict.fromkeys(("headbias", "plora", "xpeft", "xpeft-random", "lopa", "pha", "plora+lopa"), 0.7)
    cells = flat({"generic": 0.7, "lora": 0.1, **own, "pha": mine}, data="paradigms-g2")
    data = {"paradigms-g2": (4, 16, 32)}
    found = only(claims.control(summary_of(cells, **data)))
    assert found.verdict == verdict
    assert said(found).startswith("the largest loss: PHA at k = 4, -0.")
    lacking = [c for c in cells if c.contestant != "lopa"]
    found = only(claims.control(summary_of(lacking, **data)))
    assert found.verdict == ("not measured" if verdict == "holds" else "does not hold")
    assert "not measured at every k: lopa" in said(found)
    assert only(claims.control(summary_of([], **data))).verdict == "not measured"


def test_few_seeds_are_told_and_every_verdict_is_counted() -> None:
    cells = flat({"adapter": 0.7, "xpeft": 0.7})
    made = Summary(comparison(cells, config({"movielens": (4, 16, 32)})), draws=40)
    assert "[0.0 to 0.0], 1 of 3 seeds" in said(only(claims.xpeft(made, "xpeft")))
    found = claims.all_claims(made)
    counts = claims.verdicts(found)
    assert counts["holds"] == 0
    assert sum(counts.values()) == sum(len(claim.findings) for claim in found) == 7
    assert [claim.name for claim in found if not claim.findings] == ["PHA", "Control"]


def test_shared_adaptations_that_are_worse_than_generic_are_told() -> None:
    """LoRATRF is compared with a LoRA that may itself be no gain; the best single method likewise."""
    cells = flat({"generic": 0.7}) + [
        cell(n, {0: [600] * 4}, learned=False) for n in ("shared-lora", "shared-loratrf")
    ]
    assert "(SHARED-LORA: -10.0 to generic)" in said(only(claims.loratrf(summary_of(cells))))


def test_an_interval_that_reads_to_zero_holds_zero() -> None:
    """-0.4 points [-0.8 to 0.0], whose upper end is a little below 0, is undecided as it is printed."""
    summary = summary_of([])
    for high, verdict in ((-0.0004, "undecided"), (-0.0006, "does not hold")):
        found = Difference(-0.004, -0.008, high, (0,), 9)
        assert claims.verdict_of(summary, found, 0.0) == verdict


def test_what_is_not_in_a_comparison_is_not_claimed_there() -> None:
    made = Summary(comparison([], {"rivals": ["generic"], "data": {"own": {"k": [4]}}}), draws=40)
    assert [claim.findings for claim in claims.all_claims(made)] == [()] * 9
