"""The report: one HTML file that loads nothing, for phones, large screens, light and dark."""

import html
from importlib.resources import files
from pathlib import Path

from umbel.shared.files import atomic_write
from umbel.simulations.report import sections, words
from umbel.simulations.report.markup import card
from umbel.simulations.report.svg import PALETTE
from umbel.simulations.results import Result

# The browser itself is told to load nothing, whatever a name in the result may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(path: Path, result: Result) -> None:
    """Writes the report as a single HTML file, whole or not at all; equal results give equal bytes.

    Raises:
        OSError: The folder cannot be written; an old file is then untouched.
    """
    atomic_write(path, _page(result).encode())


def _page(result: Result) -> str:
    title = html.escape(f"{result.experiment} \u00b7 umbel")
    panels = "\n".join(sections.all_panels(result))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_style()}</style>
</head>
<body>
<main>
{_opening(result)}
<dl class="cards">{_cards(result)}</dl>
<div class="panels">
{panels}
</div>
</main>
<footer>{_footer(result)}</footer>
</body>
</html>
"""


def _style() -> str:
    light = "".join(f"--{role}:{colours[0]};" for role, colours in PALETTE.items())
    dark = "".join(f"--{role}:{colours[1]};" for role, colours in PALETTE.items())
    sheet = files("umbel.simulations.report").joinpath("style.css").read_text("utf-8")
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{sheet}"


def _opening(result: Result) -> str:
    unseen, k = result.unseen, words.headline_k(result.unseen)
    rows = [words.verdict(unseen, k), words.bias_verdict(unseen, k)]
    rows += [
        words.Verdict("open", text)
        for text in (words.possible_gain(unseen, k), words.harm(unseen, k))
        if text
    ]
    verdicts = "".join(f'<li class="{row.kind}">{html.escape(row.sentence)}</li>' for row in rows)
    methods = ", ".join(result.methods) or "no method"
    over = f"<b>{html.escape(result.experiment)}</b> \u00b7 " + html.escape(
        f"{methods} on {result.backbone.name} \u00b7 {result.data.name} \u00b7 seed {result.seed}"
    )
    return (
        f'<header><p class="over">{over}</p><h1>{html.escape(words.headline(unseen))}</h1>'
        f'<ul class="verdicts">{verdicts}</ul></header>'
    )


def _cards(result: Result) -> str:
    clients = sum(row.clients for row in result.rounds)
    failures = sum(row.failures for row in result.rounds)
    up = sum(row.bytes_up for row in result.rounds)
    down = sum(row.bytes_down for row in result.rounds)
    each = "mean per client and round"
    failed = words.counted(failures, "failure", "failures")
    cards = [
        card("Profile", words.size(result.profile_bytes), "stays on the device"),
        card("People", f"{result.data.users_seen:,} + {result.unseen.users:,}", "seen in training + new"),
    ]
    if clients:
        cards += [
            card("Sent up", words.size(up / clients), each),
            card("Sent down", words.size(down / clients), each),
            card(
                "Rounds",
                f"{len(result.rounds):,}",
                f"{clients / len(result.rounds):.0f} clients each, {failed}",
            ),
        ]
    cards.append(card("Time", words.duration(sum(result.seconds.values())), "all phases together"))
    return "".join(cards)


def _footer(result: Result) -> str:
    text = (
        f"Release {result.release[:16]} \u00b7 backbone {result.backbone.sha256[:16]} \u00b7 {result.schema}"
    )
    return html.escape(text)
