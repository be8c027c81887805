"""A device in a secure sum gives nothing to a coordinator that does not keep to the protocol."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from tests.secure_devices import MANIFEST, SecureDevice, devices, round_task, run, summing, travelled

from umbel.coordinator.federation.secure.plan import SecureSettings
from umbel.coordinator.federation.secure.summing import Summing
from umbel.device_client.secure.held import unpacked
from umbel.device_client.secure.stages import set_up
from umbel.shared.errors import MessageError
from umbel.shared.messages import Wire
from umbel.shared.recipe import LearningRecipe
from umbel.shared.secure.grid import flat
from umbel.shared.secure.group import Group
from umbel.shared.secure.messages import (
    COLLECT,
    SETUP,
    SHARE,
    STAGES,
    UNMASK,
    Session,
    SetupTask,
    read_unmask,
)
from umbel.shared.secure.primitives import key_pair
from umbel.shared.secure.terms import terms_of

pytestmark = pytest.mark.full
SETTINGS = SecureSettings(least=3)
Spoil = Callable[[Wire], Wire]


def until(stage: str, group: dict[int, SecureDevice], secure: Summing) -> dict[int, Wire]:
    """Runs the stages before one, and returns what it asks."""
    for before in STAGES[: STAGES.index(stage)]:
        for client, wire in secure.tasks(before).items():
            secure.take(before, client, group[client].answer(before, travelled(wire)))
    return secure.tasks(stage)


def config(**changes: Any) -> Spoil:
    return lambda wire: Wire(wire.arrays, {**wire.config, **changes})


def arrays(**changes: Callable[[Any], Any]) -> Spoil:
    def spoil(wire: Wire) -> Wire:
        found = dict(wire.arrays)
        for name, change in changes.items():
            key = name.replace("__", ".")
            found[key] = change(found[key])
        return Wire(found, wire.config)

    return spoil


def one_key_of_all(wire: Wire) -> Wire:
    keys = wire.arrays["keys"].copy()
    keys[1] = keys[0]
    return Wire({**wire.arrays, "keys": keys}, wire.config)


def fewer(count: int, *names: str) -> Spoil:
    return lambda wire: Wire({**wire.arrays, **{n: wire.arrays[n][:count] for n in names}}, wire.config)


def damaged(wire: Wire) -> Wire:
    packets = wire.arrays["sealed"].copy()
    packets[0, 100] ^= 1
    return Wire({**wire.arrays, "sealed": packets}, wire.config)


def swapped(wire: Wire) -> Wire:
    return Wire({**wire.arrays, "sealed": wire.arrays["sealed"][::-1].copy()}, wire.config)


@pytest.mark.parametrize(
    ("stage", "spoil", "problem"),
    [
        (SETUP, config(release_id="f" * 64), "it is for release ffff"),
        (SETUP, config(round=0), "round is 0"),
        (SETUP, config(session="short"), "session is not 32 hex digits"),
        (SETUP, config(least=2), "least is 2, expected an integer from 3"),
        (SETUP, config(threshold=2), "threshold is 2, expected 4 to 5"),
        (SETUP, config(devices=2), "devices is 2, expected an integer from 3"),
        (SETUP, config(weighted=1), "weighted is of type int"),
        (SETUP, config(note="x"), "unknown key 'note'"),
        (SHARE, config(round=4), "round is 4, expected 3"),
        (SHARE, config(session="0" * 32), "another try of a round"),
        (SHARE, fewer(2, "keys", "keys.places"), "3 devices take part, 4 are needed"),
        (SHARE, one_key_of_all, "two keys are the same"),
        (SHARE, arrays(keys=lambda k: k[:, :-1]), "keys is not 4 rows of 430 bytes"),
        (SHARE, arrays(keys__places=lambda p: p * 0), "keys.places has a place twice"),
        (SHARE, arrays(keys=lambda k: k * 0), "two keys are the same"),
        (SHARE, arrays(keys=lambda k: k ^ 1), "one is no key of the curve"),
        (COLLECT, fewer(2, "sealed", "sealed.places"), "3 devices take part, 4 are needed"),
        (COLLECT, damaged, "is not sealed by it for this device"),
        (COLLECT, swapped, "is not sealed by it for this device"),
        (COLLECT, config(**{"task/clip": float("nan")}), "clip is nan"),
        (COLLECT, config(**{"task/round": 4}), "its task is of round 4, not 3"),
        (COLLECT, config(**{"task/release_id": "a" * 64}), "it is for release aaaa"),
        (UNMASK, arrays(remaining=lambda r: r[:3]), "others than those that this device has shares of"),
        (UNMASK, arrays(gone=lambda g: np.array([0])), "or one twice"),
        (UNMASK, arrays(remaining=lambda r: np.array([0, 1, 2, 3, 9])), "others than those that this"),
        (UNMASK, arrays(remaining=lambda r: r.astype(np.int32)), "remaining is no row"),
        (UNMASK, config(round=2), "round is 2, expected 3"),
    ],
)  # fmt: skip
def test_a_message_that_is_not_as_it_must_be_gets_nothing(stage: str, spoil: Spoil, problem: str) -> None:
    group = devices(5)
    client, wire = next(iter(until(stage, group, summing(group, SETTINGS)).items()))
    kept = group[client].kept
    with pytest.raises(MessageError) as error:
        group[client].answer(stage, spoil(wire))
    assert any(problem in line for line in error.value.problems), error.value.problems
    assert group[client].kept == kept


def told(wire: Wire, remaining: list[int], gone: list[int]) -> Wire:
    return Wire({"remaining": np.array(remaining, np.int64), "gone": np.array(gone, np.int64)}, wire.config)


def test_a_coordinator_that_says_all_others_are_gone_gets_nothing() -> None:
    group = devices(6)
    for client, wire in until(UNMASK, group, summing(group, SETTINGS)).items():
        own = unpacked(group[client].kept).group.place
        others = [place for place in range(6) if place != own]
        for kept in range(3):
            with pytest.raises(MessageError, match="a sum over fewer than 4 is not opened"):
                group[client].answer(UNMASK, told(wire, [own, *others[:kept]], others[kept:]))
        with pytest.raises(MessageError, match="not among those that remain"):
            group[client].answer(UNMASK, told(wire, others, [own]))


def test_no_device_gives_both_kinds_of_share_of_one_peer() -> None:
    group = devices(6)
    for client, wire in until(UNMASK, group, summing(group, SETTINGS)).items():
        own = unpacked(group[client].kept).group.place
        victim = (own + 1) % 6
        rest = [place for place in range(6) if place != victim]
        with pytest.raises(MessageError, match="or one twice"):
            group[client].answer(UNMASK, told(wire, list(range(6)), [victim]))
        given = group[client].answer(UNMASK, told(wire, rest, [victim]))
        assert victim not in given.arrays["seeds.places"]
        with pytest.raises(MessageError, match="it has no keys of one"):
            group[client].answer(UNMASK, wire)


def test_a_coordinator_that_tells_every_device_another_tale_does_not_get_one_devices_secrets() -> None:
    """Half of the devices hear that the victim is gone, half that it remains: neither secret comes out."""
    group = devices(6)
    tasks = until(UNMASK, group, summing(group, SETTINGS))
    places = {client: unpacked(group[client].kept).group for client in tasks}
    victim, threshold = 0, next(iter(places.values())).threshold
    seeds = keys = 0
    for client, wire in tasks.items():
        if places[client].place != victim and keys < 3:
            rest = [place for place in range(6) if place != victim]
            keys += len(group[client].answer(UNMASK, told(wire, rest, [victim])).arrays["keys"])
        else:
            seeds += len(group[client].answer(UNMASK, told(wire, list(range(6)), [])).arrays["seeds"][:1])
    assert (seeds, keys) == (3, 3)
    assert seeds < threshold > keys


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_is_answered_once_and_only_after_the_one_before(stage: str) -> None:
    group = devices(4)
    client, wire = next(iter(until(stage, group, summing(group, SETTINGS)).items()))
    first = group[client].answer(stage, wire)
    assert first.arrays
    with pytest.raises(MessageError, match=r"has come before or too early|it has no keys of one"):
        group[client].answer(stage, wire)
    early = devices(4)
    begun = summing(early, SETTINGS).tasks(SETUP)[client]
    early[client].answer(SETUP, begun)
    if stage != SHARE:
        with pytest.raises(MessageError, match="has come before or too early"):
            early[client].answer(stage, wire)


def test_messages_of_an_earlier_try_of_the_round_are_worth_nothing_in_a_new_one() -> None:
    group = devices(4)
    client = next(iter(group))
    old = until(COLLECT, group, summing(group, SETTINGS))[client]
    again = summing(group, SETTINGS)
    until(COLLECT, group, again)
    with pytest.raises(MessageError, match="another try of a round"):
        group[client].answer(COLLECT, old)
    assert run(summing(group, SETTINGS), group).devices == 4


def test_a_peer_that_has_this_devices_own_key_is_none() -> None:
    group = devices(4)
    client, wire = next(iter(until(SHARE, group, summing(group, SETTINGS)).items()))
    own = np.frombuffer(b"".join(unpacked(group[client].kept).public), np.uint8)
    mirrored = wire.arrays["keys"].copy()
    mirrored[0] = own
    with pytest.raises(MessageError, match="a peer has this device's own key"):
        group[client].answer(SHARE, Wire({**wire.arrays, "keys": mirrored}, wire.config))


def test_what_is_kept_after_the_change_was_sent_makes_no_mask_any_more() -> None:
    group = devices(4)
    until(UNMASK, group, summing(group, SETTINGS))
    held = unpacked(group[next(iter(group))].kept)
    assert (held.seed, held.mask_key, held.share_key, held.peers) == (b"", b"", b"", {})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"session": 3}', "nonsense"])
def test_a_device_that_lost_what_it_kept_has_dropped_out(text: str) -> None:
    with pytest.raises(MessageError, match="it has no keys of one"):
        unpacked(text)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"shares": 4}, "shares is even"),
        ({"least": 8, "shares": 7}, "but a device sees only 7"),
        ({"threshold": 6, "shares": 11}, "threshold is 6, expected"),
        ({"place": 12}, "place is 12"),
    ],
)
def test_a_group_that_would_protect_nobody_is_refused(change: dict[str, Any], problem: str) -> None:
    group = replace(Group(0, 12, 12, 8, 5), **change)
    wire = SetupTask(Session(MANIFEST.release_id, 1, "0" * 32), group).wire()
    with pytest.raises(MessageError, match=problem):
        set_up(wire, MANIFEST.release_id)


def test_below_the_coordinators_own_minimum_the_device_refuses_by_its_own_count() -> None:
    session, group = Session(MANIFEST.release_id, 1, "0" * 32), Group(0, 12, 12, 8, 6)
    wire = Wire({"remaining": np.arange(7), "gone": np.arange(7, 12)}, session.config(UNMASK))
    with pytest.raises(MessageError, match="7 devices remain, a sum over fewer than 8 is not opened"):
        read_unmask(wire, session, group, list(range(12)))


def test_private_keys_are_new_every_time() -> None:
    assert len({key_pair()[0] for _ in range(20)}) == 20


def test_what_is_kept_is_shown_nowhere() -> None:
    group = devices(4)
    until(COLLECT, group, summing(group, SETTINGS))
    held = unpacked(group[next(iter(group))].kept)
    secrets = (held.mask_key, held.share_key, held.seed, *held.seeds.values(), *held.keys.values())
    assert all(secrets)
    assert not any(repr(secret) in repr(held) for secret in secrets)


# What only the others are told, so that nothing of them is in the sum: the victim hears the honest tale.
TALES = {
    "a clip so large that their steps are coarse": (COLLECT, config(**{"task/clip": 1e9})),
    "a rate of nothing": (COLLECT, config(**{"task/local_rate": 0.0})),
    "other values": (COLLECT, arrays(**{next(f"task/{n}" for n in MANIFEST.trainables): lambda a: a + 1})),
    "examples that count otherwise": (SETUP, config(weighted=True)),
    "a smaller sum": (SETUP, config(least=4)),
}


@pytest.mark.parametrize("tale", TALES)
def test_devices_that_were_told_other_things_do_not_add_up(tale: str) -> None:
    stage_told, spoil = TALES[tale]
    group = devices(8)
    secure, victim = summing(group, SecureSettings(least=5)), next(iter(group))
    for stage in STAGES:
        for client, wire in secure.tasks(stage).items():
            lie = stage == stage_told and client != victim
            secure.take(stage, client, group[client].answer(stage, travelled(spoil(wire) if lie else wire)))
    with pytest.raises(MessageError, match="the sum cannot be used"):
        secure.opened()
    seen = secure._grid.decoded(secure._total)[0]  # whatever the check says: a rogue would not check
    own = flat(group[victim].change, MANIFEST.trainables)
    assert np.linalg.norm(seen - own) > 3 * np.linalg.norm(own)  # noise over the whole range of 32 bits


def test_the_terms_of_a_sum_are_all_that_its_devices_were_told_but_their_place() -> None:
    session, group, task = Session("r", 3, "0" * 32), Group(0, 6, 6, 4, 3), round_task()
    terms = terms_of(session, group, task)
    assert terms == terms_of(session, replace(group, place=5), task)
    name = next(iter(task.arrays))
    moved = {**task.arrays, name: np.nextafter(task.arrays[name], np.float32(1))}
    others = [
        (replace(session, key="1" * 32), group, task),
        (session, replace(group, devices=7), task),
        (session, replace(group, threshold=5), task),
        (session, replace(group, shares=5), task),
        (session, replace(group, least=4), task),
        (session, replace(group, weighted=True), task),
        (session, group, replace(task, seed=8)),
        (session, group, replace(task, arrays=moved)),
        (session, group, replace(task, settings=replace(task.settings, tell_within=True))),
        (session, group, replace(task, settings=replace(task.settings, recipe=LearningRecipe()))),
    ]
    assert len({terms, *(terms_of(*other) for other in others)}) == 1 + len(others)
