"""Secure sums end to end: the sum is that of those who sent it, and nobody else's; too few open nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import secure_sum as oracle
from tests.secure_devices import NOBODY, SecureDevice, devices, run, summing

from umbel.coordinator.federation.secure.plan import SecureSettings, plan
from umbel.coordinator.federation.secure.summing import SecureSum
from umbel.shared.errors import MessageError
from umbel.shared.messages import Wire
from umbel.shared.secure.grid import Grid
from umbel.shared.secure.messages import COLLECT, SETUP, SHARE, STAGES, UNMASK

SETTINGS = SecureSettings(least=3)


def lost_in(stages: Mapping[int, str], group: Mapping[int, SecureDevice]) -> dict[str, set[int]]:
    numbers = sorted(group)
    return {stage: {numbers[n] for n, where in stages.items() if where == stage} for stage in STAGES}


def assert_mean(
    found: SecureSum, group: Mapping[int, SecureDevice], senders: list[int], weighted: bool, grid: Grid
) -> None:
    """Every device's rounding moves a number by less than one step."""
    numbers = sorted(group)
    sent = [group[numbers[n]] for n in senders]
    weights = [device.examples if weighted else 1 for device in sent]
    expected = oracle.mean([device.change for device in sent], weights)
    assert (found.devices, found.weight) == (len(sent), sum(weights))
    most = len(sent) / grid.scale / sum(weights)
    for name, total in found.total.items():
        assert np.abs(total / found.weight - expected[name]).max() <= most * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(3, 8),
    stages=st.dictionaries(st.integers(0, 7), st.sampled_from(STAGES), max_size=4),
    weighted=st.booleans(),
)
def test_the_sum_is_that_of_those_who_remained(count: int, stages: dict[int, str], weighted: bool) -> None:
    group = devices(count)
    stages = {n: stage for n, stage in stages.items() if n < count}
    threshold = next(iter(plan(sorted(group), SETTINGS, 7, 3, weighted).values())).threshold
    by_place = {stage: {n for n, where in stages.items() if where == stage} for stage in STAGES}
    lost = lost_in(stages, group)
    if not oracle.opens(count, SETTINGS.least, threshold, by_place):
        with pytest.raises(MessageError, match="the sum is not opened"):
            run(summing(group, SETTINGS, weighted=weighted), group, lost)
        return
    found = run(summing(group, SETTINGS, weighted=weighted), group, lost)
    assert_mean(
        found, group, oracle.senders(count, by_place), weighted, Grid(count, 1.0, 32 if weighted else 1)
    )


def test_devices_on_a_circle_work_with_their_neighbours_only() -> None:
    group, sparse = devices(15), SecureSettings(least=3, peers=6)
    stages = {0: SETUP, 8: COLLECT}
    found = run(summing(group, sparse), group, lost_in(stages, group))
    senders = [n for n in range(15) if n not in (0, 8)]
    assert_mean(found, group, senders, False, Grid(15, 1.0))


def test_a_circle_has_as_many_peers_for_everyone_and_they_know_each_other() -> None:
    groups = plan(range(40), SecureSettings(peers=9), 0, 1, False)
    by_place = {group.place: group for group in groups.values()}
    assert sorted(by_place) == list(range(40))
    for place, group in by_place.items():
        assert group.problems() == []
        assert len(group.peers()) == group.shares - 1 == 10
        assert all(place in by_place[peer].peers() for peer in group.peers())


@given(
    devices_=st.integers(3, 300),
    least=st.integers(3, 40),
    threshold=st.floats(0.5, 1),
    peers=st.integers(2, 64),
)
def test_every_plan_is_one_that_devices_accept(
    devices_: int, least: int, threshold: float, peers: int
) -> None:
    least = min(least, devices_)
    groups = plan(range(devices_), SecureSettings(least, threshold, peers), 0, 1, False)
    assert [group.problems() for group in groups.values()] == [[]] * devices_
    assert 2 * next(iter(groups.values())).threshold > next(iter(groups.values())).shares


def test_a_change_that_comes_twice_counts_once() -> None:
    group = devices(4)
    secure = summing(group, SETTINGS)
    for stage in STAGES:
        for client, wire in secure.tasks(stage).items():
            answer = group[client].answer(stage, wire)
            secure.take(stage, client, answer)
            with pytest.raises(MessageError, match="has answered already"):
                secure.take(stage, client, answer)
    assert_mean(secure.opened(), group, [0, 1, 2, 3], False, Grid(4, 1.0))


Spoil = Callable[[Wire], Wire]


def without(name: str) -> Spoil:
    return lambda wire: Wire({key: array for key, array in wire.arrays.items() if key != name}, wire.config)


@pytest.mark.parametrize(
    ("stage", "spoil", "problem"),
    [
        (SETUP, lambda w: Wire({"keys": w.arrays["keys"][:1]}, w.config), "keys is uint8 of shape"),
        (SETUP, lambda w: Wire({"keys": w.arrays["keys"] ^ 1}, w.config), "one is no key of the curve"),
        (SETUP, lambda w: Wire({"keys": w.arrays["keys"][[0, 0]]}, w.config), "one is given twice"),
        (SHARE, lambda w: Wire(w.arrays, {**w.config, "round": 4}), "round is 4, expected 3"),
        (SHARE, without("commitment"), "missing array 'commitment'"),
        (COLLECT, lambda w: Wire({"masked": w.arrays["masked"][:-1]}, w.config), "masked is uint32 of shape"),
        (COLLECT, lambda w: Wire({"masked": w.arrays["masked"] / 2}, w.config), "masked is float64"),
        (COLLECT, lambda w: Wire({**w.arrays, "profile": np.ones(2)}, w.config), "unknown array 'profile'"),
        (COLLECT, lambda w: Wire(w.arrays, {**w.config, "session": "0" * 32}), "another try of a round"),
        (COLLECT, lambda w: Wire(w.arrays, {**w.config, "examples": 3}), "unknown key 'examples'"),
        (UNMASK, lambda w: Wire(w.arrays, {**w.config, "stage": COLLECT}), "stage is train.collect"),
        (UNMASK, lambda w: Wire(w.arrays, {**w.config, "schema": "v0"}), "schema is v0"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_the_contract_is_left_out_and_the_rest_are_summed(
    stage: str, spoil: Spoil, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = devices(6)
    secure, rogue, told = summing(group, SETTINGS), sorted(group)[2], []
    take = secure.take

    def keeping(where: str, client: int, wire: Wire) -> None:
        try:
            take(where, client, wire)
        except MessageError as error:
            told.append((client, error.problems))
            raise

    monkeypatch.setattr(secure, "take", keeping)

    def tap(where: str, client: int, wire: Wire) -> Wire:
        return spoil(wire) if (where, client) == (stage, rogue) else wire

    found = run(secure, group, tap=tap)
    assert [client for client, _ in told] == [rogue]
    assert any(problem in line for line in told[0][1])
    assert_mean(found, group, [0, 1, 2, 3, 4, 5] if stage == UNMASK else [0, 1, 3, 4, 5], False, Grid(6, 1.0))


def test_all_that_is_wrong_with_an_answer_is_told_at_once() -> None:
    group = devices(4)
    secure = summing(group, SETTINGS)
    client, wire = next(iter(secure.tasks(SETUP).items()))
    answer = group[client].answer(SETUP, wire)
    spoiled = Wire({"key": answer.arrays["keys"]}, {"round": 9, "stage": SETUP, "schema": "x", "session": 4})
    with pytest.raises(MessageError) as error:
        secure.take(SETUP, client, spoiled)
    assert len(error.value.problems) == 6


@pytest.mark.parametrize("name", ["seeds", "keys"])
def test_one_device_that_gives_wrong_shares_does_no_harm(name: str) -> None:
    group = devices(7)
    liar, gone = sorted(group)[0], {**NOBODY, COLLECT: {sorted(group)[3]}}

    def tap(stage: str, client: int, wire: Wire) -> Wire:
        if (stage, client) != (UNMASK, liar):
            return wire
        wrong = wire.arrays[name].copy()
        wrong[:, 20] ^= 1
        return Wire({**wire.arrays, name: wrong}, wire.config)

    found = run(summing(group, SETTINGS), group, gone, tap)
    assert_mean(found, group, [0, 1, 2, 4, 5, 6], False, Grid(7, 1.0))


def test_a_sum_that_two_devices_give_wrong_shares_for_stays_closed() -> None:
    group = devices(4)

    def tap(stage: str, client: int, wire: Wire) -> Wire:
        if stage != UNMASK or client not in sorted(group)[:2]:
            return wire
        wrong = wire.arrays["seeds"].copy()
        wrong[:, 9] ^= 1
        return Wire({**wire.arrays, "seeds": wrong}, wire.config)

    with pytest.raises(MessageError, match="the sum is not opened"):
        run(summing(group, SETTINGS), group, tap=tap)


def test_a_mean_that_no_honest_devices_have_is_thrown_away() -> None:
    group = devices(4)

    def tap(stage: str, client: int, wire: Wire) -> Wire:
        if (stage, client) != (COLLECT, sorted(group)[1]):
            return wire
        huge = wire.arrays["masked"].copy()
        huge[1:] += np.uint32(2**30)
        return Wire({"masked": huge}, wire.config)

    with pytest.raises(MessageError, match="a device did not keep to it"):
        run(summing(group, SETTINGS), group, tap=tap)


def test_a_sum_that_some_but_too_few_are_left_of_says_how_many_it_wants() -> None:
    """Of 6 devices, where 5 are the minimum, nobody may drop out."""
    group = devices(6)
    led = summing(group, SecureSettings(least=5))
    said = "5 of 6 devices are left before train.share, and they give their shares only if 6 are"
    with pytest.raises(MessageError, match=said):
        run(led, group, {SETUP: {sorted(group)[0]}})


def test_fewer_devices_than_the_minimum_are_not_even_asked() -> None:
    with pytest.raises(MessageError, match="a sum over fewer than 5 is not opened"):
        summing(devices(4), SecureSettings(least=5))


def test_the_same_sum_whatever_the_masks() -> None:
    totals = []
    for _ in range(2):
        group = devices(5)
        totals.append(run(summing(group, SETTINGS), group).total)
    for name in totals[0]:
        np.testing.assert_array_equal(totals[0][name], totals[1][name])


def test_no_two_tries_of_a_round_have_the_same_masks() -> None:
    seen: list[bytes] = []

    def keep(stage: str, client: int, wire: Wire) -> Wire:
        seen.extend([wire.arrays["masked"].tobytes()] if stage == COLLECT else [])
        return wire

    for _ in range(2):
        group = devices(4)
        run(summing(group, SETTINGS), group, tap=keep)
    assert len(set(seen)) == 8


def test_settings_out_of_range_are_all_told() -> None:
    assert len(SecureSettings(least=2, threshold=0.4, peers=1).problems()) == 3
    assert SecureSettings().problems() == []
    assert replace(SETTINGS, least=3).problems() == []
