"""Policies: what each lets out, and what a machine knows of its power and network."""

import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from umbel.device_client.egress.network import metered
from umbel.device_client.egress.policy import Consent, Policy, Surroundings
from umbel.device_client.egress.power import wall_power
from umbel.shared.errors import ConfigError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = (NOW + timedelta(days=1)).isoformat()
GOOD = Surroundings(wall_power=True, metered=False)


def unasked() -> Surroundings:
    raise AssertionError("power and network play no part in this policy")


def refused(policy: Policy, found: Surroundings = GOOD, release: str = "r") -> list[str]:
    return policy.refusals(release, NOW, lambda: found)


def test_nothing_leaves_until_its_owner_says_otherwise() -> None:
    for policy in (Policy(), Policy.from_json(None)):
        assert policy.refusals("r", NOW, unasked) == ["policy never: nothing may leave"]


def test_always_is_always() -> None:
    assert Policy("always").refusals("r", NOW, unasked) == []


@pytest.mark.parametrize(
    ("power", "metered", "network", "lines"),
    [
        (True, False, "system", 0),
        (False, False, "system", 1),
        (None, False, "system", 1),
        (True, True, "system", 1),
        (True, None, "system", 1),
        (None, None, "system", 2),
        (True, None, "unmetered", 0),
        (True, True, "unmetered", 0),
        (True, False, "metered", 1),
    ],
)
def test_plugged_in_is_on_wall_power_and_unmetered_as_far_as_it_is_known(
    power: bool | None, metered: bool | None, network: str, lines: int
) -> None:
    policy = Policy("plugged-in", network)
    assert len(refused(policy, Surroundings(power, metered))) == lines


def test_asking_is_no_without_consent_and_consent_ends() -> None:
    assert Policy("ask").refusals("r", NOW, unasked) == ["policy ask: no consent was given"]
    given = Policy("ask", consent=Consent("r", LATER, 2))
    assert refused(given) == []
    assert refused(given, release="s") == ["policy ask: consent was given for another release"]
    assert refused(given.after_change()) == []
    assert refused(given.after_change().after_change()) != []
    over = Policy("ask", consent=Consent("r", NOW.isoformat(), 0))
    assert len(refused(over, release="s")) == 3


def test_consent_is_used_up_under_its_own_policy_only() -> None:
    always = Policy("always", consent=Consent("r", LATER, 2))
    assert always.after_change() == always


def test_a_policy_is_kept_whole() -> None:
    for policy in (Policy(), Policy("ask", "metered", 0.5, Consent("r", LATER, 3), True, 9)):
        assert Policy.from_json(policy.as_json()) == policy


def test_a_change_leaves_in_a_sum_over_five_or_more_unless_its_owner_says_otherwise() -> None:
    kept = {name: value for name, value in Policy("always").as_json().items() if name != "least_in_a_sum"}
    for policy in (Policy("always"), Policy.from_json(kept)):  # one that was kept before there was this bound
        assert policy.sum_refusals(5) == []
        assert "only in a secure sum over 5 devices or more" in policy.sum_refusals(4)[0]
        assert "by itself" in policy.sum_refusals(1)[0]
    assert Policy("always", least_in_a_sum=1).sum_refusals(1) == []


def test_what_is_wrong_with_a_policy_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Policy("sometimes", "fast", float("nan"), least_in_a_sum=0)
    assert len(caught.value.problems) == 4
    assert "never, ask, plugged-in, always" in str(caught.value)


def supply(folder: Path, name: str, **said: str) -> None:
    (folder / name).mkdir(parents=True)
    for what, value in said.items():
        (folder / name / what).write_text(value + "\n")


BATTERY = {"type": "Battery", "status": "Discharging"}


@pytest.mark.parametrize(
    ("supplies", "wanted"),
    [
        ({}, True),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": BATTERY}, True),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": BATTERY}, False),
        ({"BAT0": BATTERY}, False),
        ({"usb": {"type": "USB", "online": "2"}, "BAT0": BATTERY}, True),
        ({"AC": {"type": "Mains", "online": "0"}, "usb": {"type": "USB", "online": "1"}, "B": BATTERY}, True),
        ({"mouse": {**BATTERY, "scope": "Device"}}, True),
        ({"pad": {"type": "USB", "online": "1", "scope": "Device"}, "BAT0": BATTERY}, False),
        ({"ups": {"type": "UPS"}}, False),
        ({"strange": {}}, None),
        ({"strange": {}, "AC": {"type": "Mains", "online": "1"}}, True),
    ],
)
def test_wall_power_is_what_linux_says(
    supplies: dict[str, dict[str, str]], wanted: bool | None, tmp_path: Path
) -> None:
    for name, said in supplies.items():
        supply(tmp_path, name, **said)
    assert wall_power(tmp_path) is wanted


def test_without_such_a_folder_power_is_not_known(tmp_path: Path) -> None:
    assert wall_power(tmp_path / "none") is None
    (tmp_path / "file").write_text("")
    assert wall_power(tmp_path) is None


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("echo u 1", True),
        ("echo u 2", False),
        ("echo u 3", True),
        ("echo u 4", False),
        ("echo u 0", None),
        ("echo nonsense", None),
        ("echo u 2; exit 1", None),
    ],
)
def test_metered_is_what_networkmanager_says(script: str, wanted: bool | None) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert metered([shell, "-c", script]) is wanted


def test_who_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("umbel.device_client.egress.network._SECONDS", 0.2)
    assert metered([sys.executable, "-c", "import time; time.sleep(60)"]) is None
    assert metered([str(tmp_path / "no-such-program")]) is None
