"""`umbel device policy`, `consent` and `egress`: what may leave, and what did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.device_client.home_commands import HOME, LAST, Home, opened, paged

if TYPE_CHECKING:
    from umbel.device_client.egress.policy import Consent, Policy

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
_SHOW = "show"


def add_to(app: typer.Typer) -> None:
    """Adds these commands to an app."""
    for command in (policy, consent, egress):
        app.command()(command)


def policy(
    rule: Annotated[str, typer.Argument(help="show, never, ask, plugged-in or always.")] = _SHOW,
    network: Annotated[
        str | None,
        typer.Option(help="What you say of the network: unmetered, metered, or system (as it tells)."),
    ] = None,
    norm: Annotated[
        float | None, typer.Option(help="Largest change that may leave, whatever a coordinator allows.")
    ] = None,
    sum_over: Annotated[
        int | None,
        typer.Option(
            min=1, help="A change leaves only in a secure sum over so many devices; 1: also by itself."
        ),
    ] = None,
    report_gain: Annotated[
        bool | None,
        typer.Option(
            "--report-gain/--no-report-gain",
            help="Also tell what your profile gains you, noised; off at first.",
        ),
    ] = None,
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Say what may leave your device when it takes part in rounds, or show it.

    never: nothing, as it is until you say otherwise.

    ask: only what you gave consent for before: umbel device consent.

    plugged-in: on wall power and a network that does not cost by volume.

    always: whenever it is asked.

    What leaves is a change of what everybody shares, never a text, a label or your profile. By itself it
    could tell what you judged, so it leaves only in a secure sum, of which a coordinator sees the sum alone:
    over 5 devices or more, unless you say otherwise by --sum-over. With 1 a coordinator may see yours.

    --report-gain: after learning, your device also tells one number for each release: how many more of your
    held-out examples are right with your profile, of all, with so much noise of its own (epsilon 1) that the
    number says next to nothing of you. It is drawn once; asked again, your device tells the same. Of many
    devices' numbers the coordinator sees whether a release helps people. With --no-report-gain, or with
    nothing to tell, it hears only that nothing is told.

    For instance: umbel device policy plugged-in --network unmetered
    """
    from dataclasses import replace

    with opened(home) as device:
        kept = device.policy()
        wanted: dict[str, Any] = {
            "rule": None if rule == _SHOW else rule,
            "network": network,
            "most_norm": norm,
            "report_gain": report_gain,
            "least_in_a_sum": sum_over,
        }
        new = replace(kept, **{name: value for name, value in wanted.items() if value is not None})
        if new.rule != kept.rule:
            new = replace(new, consent=None)  # who says never takes back what they had said yes to
        if new != kept:
            device.keep_policy(new)
        against = _against(new, device.release_id)
    _told({**new.as_json(), "against": against}, _policy_words(new, against), as_json)


def consent(
    rounds: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Give consent: how many changes may leave.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.01, max=366, help="With --rounds: for how long; 7 unless given.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Take consent back.")] = False,
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Consent to some rounds with the release that you have, or show what consent there is.

    It counts where your policy is 'ask'. A round has a deadline, and nobody may be there to answer: so
    consent is given before. It ends with the last of the rounds, with its time, or with another release,
    whichever comes first.

    For instance: umbel device consent --rounds 10 --days 7
    """
    from dataclasses import replace

    _check_consent(rounds, days, none)
    with opened(home) as device:
        new = device.policy()
        if none or rounds is not None:
            _check_asked(new)
            given = None if rounds is None else _consent(device.release_id, rounds, days)
            new = replace(new, consent=given)
            device.keep_policy(new)
        against = _against(new, device.release_id)
    _told({**new.as_json(), "against": against}, _policy_words(new, against), as_json)


def _check_consent(rounds: int | None, days: float | None, none: bool) -> None:
    from umbel.shared.checks import number_problems, refuse_odd
    from umbel.shared.errors import ConfigError

    if none and (rounds is not None or days is not None):
        raise ConfigError("--none takes consent back, so it stands alone")
    if days is not None and rounds is None:
        raise ConfigError("--days says for how long, but not how many rounds", hint="Give --rounds, too.")
    if days is not None:
        refuse_odd(number_problems("--days", days, 0.01, 366))


def _check_asked(policy: Policy) -> None:
    from umbel.device_client.egress.policy import ASK
    from umbel.shared.errors import ConfigError

    if policy.rule != ASK:
        raise ConfigError(
            f"consent says nothing under the policy '{policy.rule}'",
            hint="Be asked: umbel device policy ask.",
        )


def _consent(release: str, rounds: int, days: float | None) -> Consent:
    from datetime import UTC, datetime, timedelta

    from umbel.device_client.egress.policy import Consent

    until = datetime.now(UTC) + timedelta(days=7 if days is None else days)
    return Consent(release, until.isoformat(timespec="seconds"), rounds)


def egress(last: LAST = None, home: Home = HOME, as_json: _Json = False) -> None:
    """Show what left your device, when, to whom and how much, and what was refused and why.

    What a change holds is not kept. Bytes are those of the answer, without what a transport puts around it.
    """
    with opened(home) as device:
        rows, total = paged(device.egress, last, as_json), device.left()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(_row(row))
    count = total["messages"]
    typer.echo(f"{total['bytes']:,} bytes left in {count} message{'' if count == 1 else 's'}.")


def _row(row: Mapping[str, Any]) -> str:
    to = row["to"]
    words = [row["at"], row["outcome"], row["kind"], f"{row['bytes']:,} bytes"]
    words += [f"round {row['round']}"] if row["round"] is not None else []
    words += [f"norm {row['norm']:.3g}"] if row["norm"] is not None else []
    words += [f"to {to['coordinator'] or 'a coordinator'}, run {to['run']}"]
    return "  ".join(words) + "".join(f"\n    {line}" for line in row["why"])


def _against(policy: Policy, release: str) -> list[str]:
    """Returns what would speak against letting something leave just now."""
    from datetime import UTC, datetime

    return policy.refusals(release, datetime.now(UTC))


def _policy_words(policy: Policy, against: list[str]) -> str:
    given = policy.consent
    words = [
        f"Policy:  {policy.rule}",
        f"Network: {policy.network}",
        f"Norm:    at most {policy.most_norm:g}",
        "Sums:    "
        + (
            "a change may leave by itself, and is seen then. To hide it: umbel device policy --sum-over 5"
            if policy.least_in_a_sum == 1
            else f"a change leaves only in a secure sum over {policy.least_in_a_sum} devices or more"
        ),
        "Gain:    "
        + (
            "is told, noised, once for each release"
            if policy.report_gain
            else "is not told. To tell it, noised: umbel device policy --report-gain"
        ),
    ]
    if policy.rule == "ask" and given is None:
        words.append("Consent: none. Give it for some rounds: umbel device consent --rounds 10")
    elif policy.rule == "ask" and given is not None:
        rounds = f"{given.rounds} round{'' if given.rounds == 1 else 's'}"
        words.append(f"Consent: {rounds}, until {given.until}, release {given.release[:12]}")
    else:
        words.append("Consent: is not asked for under this policy. To be asked: umbel device policy ask")
    now = ["Now:     what is asked may leave."] if not against else ["Now:     nothing would leave."]
    return "\n".join([*words, *now, *(f"         {line}" for line in against)])


def _told(found: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else words)
