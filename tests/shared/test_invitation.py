"""Invitations: one line that holds all that a device needs to join, and nothing without TLS."""

import base64
import json

import pytest
from tests.invitations import AUTHORITY, CODE

from umbel.shared.errors import ConfigError
from umbel.shared.invitation import Invitation, url_problems

INVITATION = Invitation("https://rounds.example.org:8443", AUTHORITY, CODE)


def line(**changes: object) -> str:
    """Returns an invitation's line with other values inside."""
    packed = INVITATION.as_text().removeprefix("umbel1-")
    row = json.loads(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))) | changes
    return "umbel1-" + base64.urlsafe_b64encode(json.dumps(row).encode()).decode().rstrip("=")


def test_a_line_holds_it_all_also_where_it_was_wrapped() -> None:
    text = INVITATION.as_text()
    assert len(text) < 1200
    assert Invitation.from_text(text) == INVITATION
    assert Invitation.from_text(f" {text[:50]}\n  {text[50:]}\n") == INVITATION


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (INVITATION.as_text()[:-40], "one begins with umbel1-"),
        ("umbel1-", "one begins with umbel1-"),
        ("umbel1-\u00e4", "one begins with umbel1-"),
        ("hello", "one begins with umbel1-"),
        ("umbel1-" + "A" * 10_000, "one begins with umbel1-"),
        (line(schema="umbel.invitation/9"), "schema is umbel.invitation/9, expected umbel.invitation/1"),
        (line(url="http://rounds.example.org"), "is without TLS: it must begin with https://"),
        (line(url=7), "is without TLS"),
        (line(ca="AAAA"), "the authority's certificate is damaged, or none"),
        (line(ca="?"), "the authority's certificate is damaged, or none"),
        (line(code="short"), "the code is not one"),
    ],
)
def test_what_is_none_is_refused_with_what_to_do(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="invitation") as error:
        Invitation.from_text(text)
    assert any(problem in found for found in error.value.problems)
    assert "Paste the whole line" in error.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/path", "https://me@a.example", "https://a.example?x=1", "https://", "https://[::1",
        "https://a.example:99999", "ftp://a.example", "a.example:8443", "https://a\x9b31m.example", "https://a\x1bc:1",
    ],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port_and_nothing_else(url: str) -> None:
    assert len(url_problems(url)) == 1


@pytest.mark.parametrize("url", ["https://a.example", "https://a.example:1/", "https://[::1]:8443"])
def test_addresses(url: str) -> None:
    assert url_problems(url) == []


def test_a_code_is_not_shown_where_something_else_is_wrong() -> None:
    with pytest.raises(ConfigError) as error:
        Invitation.from_text(line(url="http://x"))
    assert CODE not in error.value.render()
