"""Asks a coordinator to take this device in."""

from __future__ import annotations

import json
import ssl

from umbel.device_client.joining.membership import Membership
from umbel.device_client.joining.reached import unreached
from umbel.shared.checks import parsed_json
from umbel.shared.errors import LinkError
from umbel.shared.invitation import ENROLL_PATH

_MOST_BYTES = 4096
_WAIT_S = 30.0
_AGAIN = "Ask the coordinator's operator for another invitation."
_REFUSALS = {
    "unknown": ("the coordinator knows no such code", _AGAIN),
    "expired": ("the code has expired", _AGAIN),
    "used": (
        "the code was used already, by another device",
        f"If that was not a device of yours, tell the operator: somebody else had it. {_AGAIN}",
    ),
    "barred": ("the coordinator has shut this device out", "Ask its operator why."),
    "too many": ("too many wrong codes came from this network lately", "Try again in a minute."),
}


def ask_in(membership: Membership) -> None:
    """Redeems the code; the same code and key may be shown again, should an answer be lost.

    Raises:
        LinkError: The coordinator cannot be reached, is another one, or refuses.
    """
    import urllib3

    context = ssl.create_default_context(cadata=membership.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=_WAIT_S)
    try:
        answer = pool.request(
            "POST",
            membership.url + ENROLL_PATH,
            body=json.dumps(membership.request()).encode(),
            headers={"Content-Type": "application/json"},
            redirect=False,
            preload_content=False,
        )
        data = answer.read(_MOST_BYTES)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise unreached(membership.url, error) from None
    finally:
        pool.clear()
    if answer.status != 200:
        raise _refusal(membership.url, answer.status, data)


def _refusal(url: str, status: int, data: bytes) -> LinkError:
    """Returns what a refusal means, in words of this device; the coordinator's own are not shown."""
    try:
        why = str(parsed_json(data)["why"])
    except (ValueError, KeyError, TypeError):
        why = ""
    problem, hint = _REFUSALS.get(why, (f"it answers with status {status}", "Is it an umbel coordinator?"))
    return LinkError(f"{url} does not take this device in", [problem], hint)
