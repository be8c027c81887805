"""The result file: an exact round trip, all problems at once, honest intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import bootstrap as oracle
from tests.simulations.example_result import KS, example_accuracies, example_result

from umbel.shared.rng import generator
from umbel.simulations.results import ResultError, read_result, without_times, write_result
from umbel.simulations.summary import UserAccuracies, paired_bootstrap, summarise_unseen


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    result = example_result()
    write_result(tmp_path / "new" / "result.json", result)
    assert read_result(tmp_path / "new" / "result.json") == result


def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", example_result(bayes=False))
    write_result(tmp_path / "b.json", read_result(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_file_has_the_promised_keys_and_six_digits(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", example_result())
    text = (tmp_path / "a.json").read_text()
    loaded = json.loads(text)
    assert loaded["schema"] == "umbel.result/1"
    assert list(loaded["unseen"]["personal_accuracy"]) == [str(k) for k in KS]
    assert {"round", "clients", "seconds", "bytes_up", "bytes_down", "seen_accuracy"} <= set(
        loaded["rounds"][0]
    )
    assert loaded["config"]["method"]["plora"]["rate"] == 1e-7  # a configuration is not a measurement
    del loaded["config"]
    assert all(number == round(number, 6) for number in floats_of(loaded))


def floats_of(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in floats_of(item)]
    if isinstance(value, list):
        return [number for item in value for number in floats_of(item)]
    return [value] if isinstance(value, float) else []


def test_one_error_names_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, example_result())
    broken = json.loads(path.read_text())
    broken["schema"] = "umbel.result/9"
    broken["seed"] = "seven"
    broken["extra"] = 1
    broken["rounds"][2]["clients"] = -1
    broken["backbone"]["sha256"] = "53"
    del broken["data"]["labels"]
    broken["unseen"]["intervals"]["4"] = [0.2, 0.1]
    path.write_text(json.dumps(broken))
    with pytest.raises(ResultError) as caught:
        read_result(path)
    places = [problem.split(":")[0] for problem in caught.value.problems]
    assert places == [
        "schema",
        "seed",
        "data.labels",
        "backbone.sha256",
        "rounds.2.clients",
        "unseen.intervals.4",
        "extra",
    ]
    assert "found 'seven'" in str(caught.value)
    assert "the low end is above the high end: 0.2 > 0.1" in str(caught.value)


def test_sections_by_k_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, example_result())
    broken = json.loads(path.read_text())
    del broken["unseen"]["bias_accuracy"]["32"]
    broken["unseen"]["gains"]["16"].reverse()
    broken["unseen"]["gains"]["8"].pop()
    path.write_text(json.dumps(broken))
    with pytest.raises(ResultError) as caught:
        read_result(path)
    assert "bias_accuracy has k = 0, 1, 2, 4, 8, 16, personal_accuracy has 0, 1, 2, 4, 8, 16, 32" in str(
        caught.value
    )
    assert "gains at k = 16 are not sorted" in str(caught.value)
    assert "gains at k = 8 holds 59 users, not 60" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"seed": NaN}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ResultError, match="is not a result of umbel"):
        read_result(tmp_path / "result.json")


def test_a_missing_file_is_one_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_result(tmp_path / "result.json")


def test_without_times_holds_all_but_times(tmp_path: Path) -> None:
    kept = without_times(example_result())
    write_result(tmp_path / "a.json", example_result())
    whole = json.loads((tmp_path / "a.json").read_text())
    assert set(whole) - set(kept) == {"seconds", "machine"}
    assert set(whole["rounds"][0]) - set(kept["rounds"][0]) == {"seconds"}
    assert "seconds" not in json.dumps(kept)
    assert kept != without_times(example_result(seed=8))


differences = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)


@given(differences, st.integers(0, 2**32), st.sampled_from([1, 2, 41]))
def test_bootstrap_agrees_with_its_slow_twin(values: list[float], seed: int, draws: int) -> None:
    expected = oracle.paired_bootstrap(values, seed, draws)
    assert paired_bootstrap(np.array(values), seed, draws) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_in_pieces_agrees_with_its_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.simulations.summary._CHUNK_NUMBERS", 7)
    values = [0.5, -0.25, 0.125]
    assert paired_bootstrap(np.array(values), 3, 25) == pytest.approx(oracle.paired_bootstrap(values, 3, 25))


def test_bootstrap_of_nobody_and_of_one() -> None:
    assert np.isnan(paired_bootstrap(np.array([]), 1)).all()
    assert paired_bootstrap(np.array([0.25]), 1) == (0.25, 0.25)


def test_bootstrap_covers_the_standard_error() -> None:
    values = generator(1, 0, "", "test").normal(0.1, 0.2, 400)
    low, high = paired_bootstrap(values, 1)
    half = 1.96 * values.std() / 20  # the normal interval of a mean of 400
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.001)


def test_summary_of_two_users_by_hand() -> None:
    row = UserAccuracies(
        generic=np.array([0.5, 0.75]), bias=np.array([0.5, 0.5]), personal=np.array([1.0, 0.5])
    )
    unseen = summarise_unseen({16: row}, seed=1, bayes=np.array([1.0, 0.75]), draws=100)
    assert unseen.personal_accuracy == {"16": 0.75}
    assert unseen.gains == {"16": (-0.25, 0.5)}
    assert unseen.worst_decile == {"16": -0.25}  # a tenth of two users is rounded up to one
    assert unseen.harmed_share == {"16": 0.5}
    assert unseen.gain_quantiles["16"]["0.5"] == 0.125
    assert unseen.share_of_possible_gain == {"16": 0.5}  # (0.75 - 0.625) / (0.875 - 0.625)
    assert unseen.intervals["16"] == (-0.25, 0.5)  # only three means are possible: -0.25, 0.125, 0.5
    assert unseen.generic_bayes_accuracy is None


def test_nothing_to_gain_leaves_the_share_out() -> None:
    row = UserAccuracies(generic=np.array([1.0]), bias=np.array([1.0]), personal=np.array([1.0]))
    unseen = summarise_unseen({0: row}, seed=1, bayes=np.array([1.0]))
    assert unseen.share_of_possible_gain == {}


def test_float32_accuracies_do_not_disturb_the_sixth_digit() -> None:
    narrow = {
        k: UserAccuracies(*(a.astype(np.float32) for a in (r.generic, r.bias, r.personal)))
        for k, r in example_accuracies(3).items()
    }
    wide = summarise_unseen(example_accuracies(3), seed=3, draws=50)
    assert summarise_unseen(narrow, seed=3, draws=50).personal_accuracy == wide.personal_accuracy


def test_summary_refuses_what_is_not_aligned() -> None:
    row = UserAccuracies(generic=np.array([0.5]), bias=np.array([0.5, 0.5]), personal=np.array([1.5]))
    with pytest.raises(ResultError) as caught:
        summarise_unseen({-1: row}, seed=1, bayes=np.array([np.nan]))
    assert list(caught.value.problems) == [
        "k must be 0 or more, found -1",
        "bias accuracy at k = -1 has shape (2,), expected (1,)",
        "personal accuracy at k = -1 has values outside 0 and 1, or NaN",
        "Bayes-optimal accuracy has values outside 0 and 1, or NaN",
    ]
    with pytest.raises(ResultError, match="no k was evaluated"):
        summarise_unseen({}, seed=1)
    nobody = UserAccuracies(np.array([]), np.array([]), np.array([]))
    with pytest.raises(ResultError, match="there are no users"):
        summarise_unseen({0: nobody}, seed=1)
