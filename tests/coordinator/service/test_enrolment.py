"""Who is taken in: whoever has an open code, and the private key that goes with the public one they show."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.invitations import AUTHORITY

from umbel.coordinator.service.enrolment import Enrolment
from umbel.coordinator.service.roster import Roster
from umbel.device_client.joining.membership import Membership
from umbel.shared.invitation import Invitation


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    return Roster.open(tmp_path / "devices.sqlite")


def codes(roster: Roster, count: int = 1) -> list[str]:
    from datetime import timedelta

    return roster.new_codes(count, timedelta(days=1))


def device(code: str) -> Membership:
    return Membership.begun(Invitation("https://rounds.example.org:8443", AUTHORITY, code))


def test_a_device_is_taken_in_and_may_ask_again(roster: Roster) -> None:
    (code,) = codes(roster)
    own, enrolment = device(code), Enrolment(roster)
    first = enrolment.take_in(own.request(), "1.2.3.4")
    again = enrolment.take_in(own.request(), "1.2.3.4")
    assert (first.status, first.why, again.why) == (200, "joined", "known")
    assert first.key == again.key == roster.devices()[0].key
    assert first.key == own.request()["key"].encode()
    other = enrolment.take_in(device(code).request(), "1.2.3.4")
    assert (other.status, other.why, other.key) == (403, "used", None)


def test_somebody_elses_public_key_is_not_taken_in(roster: Roster) -> None:
    one, two = codes(roster, 2)
    mine, theirs = device(one).request(), device(two).request()
    found = Enrolment(roster).take_in({**mine, "key": theirs["key"]}, "")
    assert (found.status, found.why) == (400, "malformed")
    found = Enrolment(roster).take_in({**mine, "code": two}, "")  # the proof is for the other code
    assert found.why == "malformed"
    assert roster.devices() == []


@pytest.mark.parametrize(
    "change",
    [
        {"key": "no key"}, {"key": ""}, {"proof": "?"}, {"proof": ""}, {"more": "x"}, {"code": 5},
        {"proof": base64.b64encode(b"x" * 100).decode()},
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(roster: Roster, change: dict[str, Any]) -> None:
    (code,) = codes(roster)
    assert Enrolment(roster).take_in({**device(code).request(), **change}, "").why == "malformed"


@pytest.mark.parametrize("row", [None, [], "text", {}, 7])
def test_what_is_no_request_is_refused(roster: Roster, row: object) -> None:
    assert Enrolment(roster).take_in(row, "").status == 400


def test_a_key_on_another_curve_is_refused(roster: Roster) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    small = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = small.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (code,) = codes(roster)
    assert Enrolment(roster).take_in({**device(code).request(), "key": pem}, "").why == "malformed"


def test_codes_cannot_be_tried_out(roster: Roster) -> None:
    now = [0.0]
    enrolment = Enrolment(roster, clock=lambda: now[0])
    (code,) = codes(roster)
    good, wrong = device(code).request(), device("a" * 26).request()
    assert [enrolment.take_in(wrong, "1.1.1.1").status for _ in range(12)] == [403] * 10 + [429] * 2
    assert enrolment.take_in(good, "1.1.1.1").why == "too many"
    assert enrolment.take_in(wrong, "2.2.2.2").why == "unknown"  # others are not held up
    now[0] = 61.0
    assert enrolment.take_in(good, "1.1.1.1").why == "joined"


def test_the_memory_of_wrong_codes_is_bounded(roster: Roster) -> None:
    enrolment = Enrolment(roster)
    for number in range(5000):
        enrolment.take_in(None, str(number))
    assert len(enrolment._wrong) == 4096


def test_a_code_is_shown_nowhere(roster: Roster) -> None:
    (code,) = codes(roster)
    invitation = Invitation("https://rounds.example.org:8443", AUTHORITY, code)
    assert code not in repr(invitation)
    assert code not in repr(Membership.begun(invitation))


class Slow(dict[str, str]):
    """A request that is read slowly, so that others are answered meanwhile."""

    def __iter__(self) -> Iterator[str]:
        time.sleep(1e-4)
        return super().__iter__()


def test_wrong_codes_may_come_at_once(roster: Roster) -> None:
    """Time runs so fast that what was counted is forgotten all the time, and others come as it is told."""
    ticks = count(step=61)

    def clock() -> float:
        time.sleep(1e-4)
        return float(next(ticks))

    enrolment = Enrolment(roster, clock)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: enrolment.take_in(Slow(), "1.2.3.4").why, range(500)))
    assert set(found) == {"malformed"}
