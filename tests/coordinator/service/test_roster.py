"""Codes are good once, for one device, for a while; devices are known by their keys, and own their number."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from umbel.coordinator.service.roster import CodeError, Roster, fresh_codes
from umbel.shared.errors import ConfigError

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
WEEK = timedelta(days=7)


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    return Roster.open(tmp_path / "devices.sqlite")


def refused(roster: Roster, code: str, key: bytes, now: datetime = NOW) -> str:
    with pytest.raises(CodeError) as error:
        roster.redeem(code, key, now)
    return error.value.why


def test_a_code_takes_in_one_device_and_answers_it_again(roster: Roster) -> None:
    code, _ = roster.new_codes(2, WEEK, NOW)
    assert roster.redeem(code, b"a", NOW)
    assert not roster.redeem(code, b"a", NOW + 9 * WEEK)  # its first answer may have been lost
    assert refused(roster, code, b"b") == "used"
    assert [device.key for device in roster.devices()] == [b"a"]
    assert roster.codes(NOW) == {"open": 1, "used": 1, "expired": 0}


def test_a_code_expires(roster: Roster) -> None:
    code, other = roster.new_codes(2, WEEK, NOW)
    assert refused(roster, code, b"a", NOW + WEEK) == "expired"
    roster.new_codes(1, WEEK, NOW + WEEK)
    assert refused(roster, code, b"a", NOW + WEEK) == "expired"
    assert roster.redeem(other, b"a", NOW + WEEK - timedelta(seconds=1))
    assert refused(roster, "no such code", b"a") == "unknown"


def test_a_code_is_not_kept(roster: Roster, tmp_path: Path) -> None:
    (code,) = roster.new_codes(1, WEEK, NOW)
    roster.close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert code.encode() not in held
    assert len(code) == 26


def test_of_many_that_show_one_code_at_once_one_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "devices.sqlite"
    with Roster.open(path) as roster:
        (code,) = roster.new_codes(1, WEEK, NOW)

    def redeem(number: int) -> bool:
        with Roster.open(path) as own:
            try:
                return own.redeem(code, b"%d" % number, NOW)
            except CodeError:
                return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(redeem, range(16))) == 1


def test_a_device_that_is_shut_out_stays_out(roster: Roster) -> None:
    first, second = roster.new_codes(2, WEEK, NOW)
    roster.redeem(first, b"a", NOW)
    assert roster.bar(b"a", NOW)
    assert not roster.bar(b"a", NOW)
    assert not roster.bar(b"b", NOW)
    assert refused(roster, first, b"a") == "barred"
    assert refused(roster, second, b"a") == "barred"
    assert roster.redeem(second, b"b", NOW)  # nor has it used up a code


def test_the_first_device_that_tells_a_number_owns_it(roster: Roster) -> None:
    for code, key in zip(roster.new_codes(2, WEEK, NOW), (b"a", b"b"), strict=True):
        roster.redeem(code, key, NOW)
    assert roster.claim(b"a", 7)
    assert roster.claim(b"a", 7)
    assert not roster.claim(b"b", 7)
    assert not roster.claim(b"a", 8)
    assert roster.claim(b"b", 2**63 - 1)
    assert not roster.claim(b"nobody", 9)


def test_who_was_heard_of_is_written_down(roster: Roster) -> None:
    (code,) = roster.new_codes(1, WEEK, NOW)
    roster.redeem(code, b"a", NOW)
    assert roster.devices()[0].seen is None
    roster.heard([b"a", b"nobody"], NOW)
    assert roster.devices()[0].seen == "2026-11-01T12:00:00+00:00"


def test_a_file_that_is_none_or_newer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        Roster.open(tmp_path / "junk")
    Roster.open(tmp_path / "new").close()
    connection = sqlite3.connect(tmp_path / "new")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ConfigError, match="newer umbel"):
        Roster.open(tmp_path / "new")


def test_who_is_known_can_be_read_while_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "devices.sqlite"
    with Roster.open(path) as roster:
        code, _ = roster.new_codes(2, WEEK, NOW)
        roster.redeem(code, b"a", NOW)
    writing = sqlite3.connect(path, isolation_level=None)
    writing.execute("BEGIN IMMEDIATE")
    with Roster.open(path) as roster:
        assert [device.key for device in roster.devices()] == [b"a"]
        assert roster.codes(NOW) == {"open": 1, "used": 1, "expired": 0}
    writing.execute("ROLLBACK")
    writing.close()


def test_codes_that_were_not_opened_take_nobody_in(roster: Roster) -> None:
    (code,) = fresh_codes(1)
    assert refused(roster, code, b"a") == "unknown"
    roster.open_codes([code], WEEK, NOW)
    assert roster.redeem(code, b"a", NOW)
