"""The report: honest in words, whole in one file, readable on light and dark, equal for equal results."""

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from tests.simulations.example_result import example_result

from umbel.simulations.report import terminal_table, words, write_report
from umbel.simulations.report.svg import PALETTE, inline, style
from umbel.simulations.results import Result, Unseen
from umbel.simulations.summary import UserAccuracies, summarise_unseen

VOID = {"meta", "path", "use", "br"}


class Page(HTMLParser):
    """What a browser would see: tags, ids, references, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert value is not None or name == "open"
            if name == "id":
                self.ids[value or ""] += 1
            if name == "href":
                self.references.add((value or "").removeprefix("#"))
            if name == "aria-labelledby":
                self.references |= set((value or "").split())
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(result: Result, folder: Path) -> str:
    write_report(folder / "report.html", result)
    return (folder / "report.html").read_text("utf-8")


def unseen_of(generic: float, bias: float, personal: float, users: int = 20, k: int = 16) -> Unseen:
    rows = UserAccuracies(*(np.full(users, value) for value in (generic, bias, personal)))
    return summarise_unseen({k: rows}, seed=1, draws=20)


def plain(text: str) -> str:
    return text.replace(words.NBSP, " ").replace(words.MINUS, "-")


def test_the_headline_says_what_was_gained() -> None:
    assert plain(words.headline(unseen_of(0.631, 0.66, 0.782))) == (
        "After 16 examples, people the model had never met get 78.2 % right answers; "
        "the generic model 63.1 %, generic + private bias 66.0 %."
    )


def test_the_headline_is_honest_when_personal_is_worse() -> None:
    unseen = unseen_of(0.631, 0.66, 0.5)
    assert "get only 50.0 % right answers; the generic model 63.1 %" in plain(words.headline(unseen))
    assert plain(words.verdict(unseen, "16").sentence) == (
        "Worse than the generic model by 13.1 points (95 % interval -13.1 to -13.1)."
    )
    assert words.bias_verdict(unseen, "16").kind == "worse"
    assert words.harm(unseen, "16").startswith("20 of 20 people")


def test_what_20_people_cannot_show_is_left_open() -> None:
    personal = np.where(np.arange(20) % 2, 0.75, 0.5)
    rows = UserAccuracies(np.full(20, 0.625), np.full(20, 0.625), personal)
    unseen = summarise_unseen({16: rows}, seed=1, draws=200)
    found = words.verdict(unseen, "16")
    assert found.kind == "open"
    assert found.sentence.startswith("No clear difference from the generic model: 0.0 points")
    assert "only" not in words.headline(unseen)


def test_the_headline_of_one_person_and_of_few_examples() -> None:
    assert words.headline(unseen_of(0.5, 0.5, 1.0, users=1, k=1)).startswith(
        "After 1 example, a person the model had never met gets 100.0"
    )
    assert words.headline(unseen_of(0.5, 0.5, 0.5, k=0)).startswith("Without an example, people")
    assert "one person cannot show" in words.verdict(unseen_of(0.5, 0.5, 1.0, users=1), "16").sentence


def test_the_possible_gain_is_told_where_it_is_known() -> None:
    rows = UserAccuracies(np.array([0.5, 0.5]), np.array([0.5, 0.5]), np.array([0.75, 0.75]))
    known = summarise_unseen({16: rows}, seed=1, bayes=np.array([0.9, 0.9]))
    assert plain(words.possible_gain(known, "16") or "") == (
        "The best possible personal answers would be right 90.0 % of the time; "
        "62 % of the possible gain was won."  # (0.75 - 0.5) / (0.9 - 0.5) is 62.5 %
    )
    assert words.possible_gain(unseen_of(0.5, 0.5, 0.5), "16") is None


NAMES = (
    "whole",
    "worse, nothing known",
    "evaluation only",
    "one person",
    "k = 0 alone",
    "all right",
    "one round",
)


def variant(name: str) -> Result:
    whole = example_result()
    match name:
        case "worse, nothing known":
            return example_result(seed=3, lift=-0.1, bayes=False)
        case "evaluation only":
            return dataclasses.replace(whole, rounds=(), training=None, seen=None, seconds={})
        case "one person":
            return example_result(users=1)
        case "k = 0 alone":
            return dataclasses.replace(whole, unseen=unseen_of(0.5, 0.5, 0.5, k=0))
        case "all right":
            return dataclasses.replace(whole, unseen=unseen_of(1.0, 1.0, 1.0))
        case "one round":
            return dataclasses.replace(whole, rounds=whole.rounds[:1])
    return whole


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_whole_and_loads_nothing(name: str, tmp_path: Path) -> None:
    text = report_of(variant(name), tmp_path)
    page = Page(text)
    assert page.open == []
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert page.references <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "image", "object"} & set(page.tags)
    assert not re.search(r"https?:|//|@import|javascript:", text.replace("</", "<"))
    assert "nan" not in page.text.lower().split()


def test_what_rounds_have_cost_and_who_was_refused_are_told(tmp_path: Path) -> None:
    whole = example_result()
    rows = tuple(dataclasses.replace(row, epsilon=0.5 * row.round, refused=3) for row in whole.rounds)
    text = report_of(dataclasses.replace(whole, rounds=rows), tmp_path)
    assert "in all they cost epsilon 4." in text
    assert "refused" in text
    assert "epsilon" not in report_of(whole, tmp_path)


def test_every_figure_has_words_and_numbers(tmp_path: Path) -> None:
    text = report_of(example_result(), tmp_path)
    figures = re.findall(r"<figure>.*?</section>", text, flags=re.DOTALL)
    assert len(figures) == 5  # accuracy, gains, worst tenth, rounds, training
    for figure in figures:
        assert re.search(
            r'<svg role="img"[^>]*><title id="\w+-title">[^<]+</title><desc id="\w+-desc">[^<]+<', figure
        )
        assert re.search(r"<details[^>]*><summary>The numbers</summary><div[^>]*><table", figure)


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    result = example_result()
    seen = plain(Page(report_of(result, tmp_path)).text)
    assert plain(words.headline(result.unseen)) in seen
    # 24 clients sent 49,312 bytes each in every round; they fetched 1,912,044 once and 98,700 seven times.
    for expected in (
        "128 B",
        "49.3 kB",
        "325.4 kB",
        "3 min 51 s",
        "umbel simulate demo --seed 7 --engine flower",
    ):
        assert expected in seen


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    text = report_of(variant("evaluation only"), tmp_path)
    assert "Rounds with" not in text
    assert "Training on" not in text
    assert "Sent up" not in text


def test_strings_from_outside_are_escaped(tmp_path: Path) -> None:
    evil = '</pre></title><script>alert("1")</script>'
    example = example_result()
    result = dataclasses.replace(
        example,
        experiment=evil,
        engine=evil,
        methods=(evil,),
        config={evil: [evil]},
        seconds={evil: 1.0},
        data=dataclasses.replace(example.data, name=evil),
        backbone=dataclasses.replace(example.backbone, name=evil),
        machine=dataclasses.replace(example.machine, gpu=evil, python=evil, versions={evil: evil}),
    )
    text = report_of(result, tmp_path)
    assert "<script" not in text
    assert text.count("</title>") == Page(report_of(example, tmp_path)).tags["title"]


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    first = report_of(example_result(), tmp_path)
    # A person's own settings of matplotlib change nothing.
    with matplotlib.rc_context({"font.size": 30, "font.weight": "bold", "xtick.direction": "in"}):
        assert report_of(example_result(), tmp_path) == first
    assert report_of(example_result(seed=8), tmp_path) != first


def test_figures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    text = report_of(example_result(), tmp_path)
    for svg in re.findall(r'<svg role="img".*?</svg>', text, flags=re.DOTALL):
        assert not re.search(r"[:\"\s]#[0-9a-f]{6}\b", svg)
    dark = text[text.index("prefers-color-scheme:dark") :]
    assert all(f"--{role}:{colours[1]}" in dark for role, colours in PALETTE.items())
    assert set(re.findall(r"var\(--([a-z]+)\)", text)) <= set(re.findall(r"--([a-z]+):", text))


def test_a_colour_outside_the_palette_is_refused() -> None:
    with style():
        figure = Figure()
        figure.subplots().plot([0, 1], color="#123456")
    with pytest.raises(ValueError, match="outside the palette: #123456"):
        inline(figure, "x", "title", "description")


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("mode", "card"), [(0, "#ffffff"), (1, "#1c1a22")])
def test_colours_are_readable_on_their_card(mode: int, card: str, tmp_path: Path) -> None:
    assert f"--card: {card}" in report_of(example_result(), tmp_path)
    for role in ("ink", "personal", "bias", "generic", "best", "harm"):
        assert contrast(PALETTE[role][mode], card) >= 4.5  # WCAG 2.2, level AA, text


def printed(result: Result) -> str:
    console = Console(width=110, color_system=None)
    with console.capture() as capture:
        console.print(terminal_table(result))
    return capture.get()


def test_the_terminal_shows_every_k() -> None:
    result = example_result()
    text = printed(result)
    assert "demo: 60 people the model had never met" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("\u2502")] == list(
        result.unseen.ks
    )
    unseen = result.unseen
    row = next(line for line in text.splitlines() if line.startswith("\u2502 16"))
    low, high = (f"{100 * end:+.1f}" for end in unseen.intervals["16"])
    for expected in (f"{100 * unseen.personal_accuracy['16']:.1f} %", f"[{low} to {high}]"):
        assert expected in row
    assert "Bayes-optimal" in text


def test_the_terminal_leaves_out_what_is_not_known() -> None:
    result = dataclasses.replace(example_result(bayes=False), experiment="[red]brackets[/red]")
    text = printed(result)
    assert "Bayes-optimal" not in text
    assert "[red]brackets[/red]" in text
