"""Importers: public data sets in their own formats, from a folder to examples. One function per format."""

import csv
import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.shared.checks import parsed_json
from umbel.shared.errors import DataError
from umbel.shared.examples import Example

_INVISIBLE = dict.fromkeys(map(ord, "\0\u200b\u200e\u200f\u2060\ufeff"))
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of such bytes
_MOST_TAGS = 5
_MOST_TOKENS = 26  # words and punctuation marks of a film's text: nearly always at most 32 word pieces


def import_data(format: str, folder: Path) -> list[Example]:
    """Imports a public data set from the folder that holds its files, or from the one above.

    Args:
        format: One of `FORMATS`.
        folder: Where the data set was unpacked.

    Returns:
        Examples in the files' order; runs of white space in their texts become single spaces.

    Raises:
        DataError: The format is not known, or files are missing or malformed; all problems are listed.
    """
    read = FORMATS.get(format)
    if read is None:
        raise DataError(f"There is no format {format!r}.", hint=f"Known formats: {', '.join(FORMATS)}.")
    problems: list[str] = []
    examples = read(folder, problems) if folder.is_dir() else []
    if not folder.is_dir():
        problems.append(f"{folder} is not a folder")
    if not examples and not problems:
        problems.append("no examples were found")
    if problems:
        what = (read.__doc__ or "").split("\n")[0]
        raise DataError(f"{folder} cannot be imported as {format}:", problems, f"Expected: {what}")
    return examples


def _movielens(folder: Path, problems: list[str]) -> list[Example]:
    """MovieLens' movies.csv, ratings.csv and, if there is one, tags.csv.

    The text is the film's title, genres and most frequent tags; the label says if the rating is 4 or more.
    """
    tags = _film_tags(folder, problems)
    texts: dict[str, str] = {}
    for _, row in _csv_rows(folder, "movies.csv", ("movieId", "title", "genres"), problems):
        texts[row["movieId"]] = _film_text(row["title"], row["genres"], tags.get(row["movieId"], []))
    examples = []
    columns = ("userId", "movieId", "rating", "timestamp")
    for place, row in _csv_rows(folder, "ratings.csv", columns, problems):
        text, rating, time = texts.get(row["movieId"]), _number(row["rating"]), _number(row["timestamp"])
        if not text:
            problems.append(f"{place}: no title for movieId {row['movieId']}")
        elif not row["userId"]:
            problems.append(f"{place}: userId is empty")
        elif rating is None or time is None:
            problems.append(f"{place}: the rating or the timestamp is not a number")
        else:
            examples.append(Example(row["userId"], text, "yes" if rating >= 4 else "no", time))
    return examples


def _film_tags(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """Returns each film's tags, those of most users first."""
    users: dict[str, set[tuple[str, str]]] = {}
    if not _candidates(folder, "tags.csv"):
        return {}
    for _, row in _csv_rows(folder, "tags.csv", ("userId", "movieId", "tag"), problems):
        users.setdefault(row["movieId"], set()).add((row["userId"], _clean(row["tag"]).lower()))
    counts = {film: Counter(tag for _, tag in pairs if tag) for film, pairs in users.items()}
    return {film: sorted(count, key=lambda tag: (-count[tag], tag)) for film, count in counts.items()}


def _film_text(title: str, genres: str, tags: Sequence[str]) -> str:
    """Returns a film's text.

    >>> _film_text("Matrix, The (1999)", "Action|Sci-Fi", ["sci-fi", "dystopia"])
    'The Matrix (1999): action, sci-fi. Dystopia.'
    """
    # Articles stand behind the title, for sorting; other languages' as well.
    title = re.sub(r"^(.*), (The|A|An|Les?|La|Il|Der|Die|Das|El|Los)( \(.*)?$", r"\2 \1\3", _clean(title))
    kinds = [genre.lower() for genre in genres.split("|") if genre and not genre.startswith("(")]
    text = f"{title}: {', '.join(kinds)}." if kinds else f"{title}."
    chosen: list[str] = []
    for tag in tags:
        longer = ", ".join([*chosen, tag])
        if tag not in kinds and len(chosen) < _MOST_TAGS and _tokens(f"{text} {longer}.") <= _MOST_TOKENS:
            chosen.append(tag)
    words = ", ".join(chosen)
    return f"{text} {words[0].upper()}{words[1:]}." if words else text


def _crehate(folder: Path, problems: list[str]) -> list[Example]:
    """CREHate's annotations.csv (ID, annotator_id, annotation of 0 or 1) and texts.csv (ID, Text)."""
    texts = {}
    for place, row in _csv_rows(folder, "texts.csv", ("ID", "Text"), problems):
        texts[row["ID"]] = _clean(html.unescape(row["Text"]))
        if not texts[row["ID"]]:
            problems.append(f"{place}: Text is empty")
    examples = []
    columns = ("ID", "annotator_id", "annotation")
    for place, row in _csv_rows(folder, "annotations.csv", columns, problems):
        label = {"0": "fine", "1": "hateful"}.get(row["annotation"])
        if row["ID"] not in texts:
            problems.append(f"{place}: no text for ID {row['ID']}")
        elif label is None or not row["annotator_id"]:
            problems.append(f"{place}: the annotation is not 0 or 1, or annotator_id is empty")
        else:
            examples.append(Example(row["annotator_id"], texts[row["ID"]], label))
    return examples


def _paradigms(folder: Path, problems: list[str]) -> list[Example]:
    """annotations_g1.csv, annotations_g2.csv and annotations_g3.csv: id, text, and a column per annotator."""
    examples = []
    for group in ("g1", "g2", "g3"):
        for place, row in _csv_rows(folder, f"annotations_{group}.csv", ("text",), problems):
            text = _clean(html.unescape(row["text"]))
            if not text:
                problems.append(f"{place}: text is empty")
                continue
            for column in (name for name in row if name.startswith("label_")):
                label = {"Hateful": "hateful", "Non-hateful": "fine"}.get(row[column])
                if label is None:
                    problems.append(f"{place}: {column} is neither Hateful nor Non-hateful")
                else:  # the column also tells the annotator's gender, which is left out
                    examples.append(Example(f"{group}-{re.sub('[^0-9]', '', column)}", text, label))
    return examples


def _clinc150(folder: Path, problems: list[str]) -> list[Example]:
    """CLINC150's data_full.json and domains.json; a domain is a user, and an intent a label."""
    domains = _json(folder, "domains.json", dict, problems)
    domain_of = {}
    for domain, intents in domains.items():
        if not isinstance(intents, list):
            problems.append(f"domains.json: {domain} is not a list of intents")
            continue
        domain_of.update({str(intent): domain for intent in intents})
    data = _json(folder, "data_full.json", dict, problems)
    examples = []
    for split in ("train", "val", "test") if data else ():
        rows = data.get(split)
        if not isinstance(rows, list):
            problems.append(f"data_full.json, {split}: missing or not a list")
            continue
        for number, row in enumerate(rows, 1):
            match row:
                case [str(text), str(intent)] if intent in domain_of and _clean(text):
                    examples.append(Example(domain_of[intent], _clean(text), intent))
                case _:
                    place = f"data_full.json, {split} {number}"
                    problems.append(f"{place}: not a text and an intent that has a domain")
    return examples


# How LaMP's tasks name a profile item's text and label, and what stands before a question's text.
_LAMP_ITEMS = (("description", "tag", "description: "), ("text", "score", "review: "))


def _lamp(folder: Path, problems: list[str]) -> list[Example]:
    """LaMP-2 or LaMP-3: SPLIT_questions.json and, where there are any, SPLIT_outputs.json.

    Each question is a user: its profile's items are examples, and then itself, where its output is known.
    """
    files = sorted({*folder.glob("*questions.json"), *folder.glob("*/*questions.json")})
    if not files:
        problems.append(f"no file *questions.json in {folder}")
    examples: list[Example] = []
    for path in files:
        golds = _lamp_golds(path.with_name(path.name.replace("questions", "outputs")), problems)
        questions = _load_json(path, list, problems)
        for number, question in enumerate(questions, 1):
            place = f"{path.name}, question {number}"
            if not isinstance(question, dict) or not isinstance(question.get("profile"), list):
                problems.append(f"{place}: no object with a profile")
                continue
            name = question.get("user_id", f"{path.name.split('_')[0]}-{question.get('id')}")
            examples += _lamp_user(place, str(name), question, golds.get(str(question.get("id"))), problems)
    return examples


def _lamp_golds(path: Path, problems: list[str]) -> dict[str, str]:
    if not path.exists():  # a test split comes without
        return {}
    outputs = _load_json(path, dict, problems)
    golds = outputs.get("golds")
    if not isinstance(golds, list) or not all(isinstance(g, dict) and "output" in g for g in golds):
        problems.append(f"{path.name}: golds is missing or not a list of objects with id and output")
        return {}
    return {str(gold.get("id")): str(gold["output"]) for gold in golds}


def _lamp_user(
    place: str, user: str, question: Mapping[str, Any], gold: str | None, problems: list[str]
) -> Iterator[Example]:
    marker = None
    for number, item in enumerate(question["profile"], 1):
        names = next((n for n in _LAMP_ITEMS if isinstance(item, dict) and {n[0], n[1]} <= item.keys()), None)
        if names is None:
            problems.append(f"{place}, profile item {number}: neither description and tag nor text and score")
            continue
        marker = names[2]
        text, label = _clean(str(item[names[0]])), _clean(str(item[names[1]]))
        if text and label:  # some reviews are empty
            yield Example(user, text, label)
    asked = str(question.get("input", ""))
    if gold and marker and marker in asked and (text := _clean(asked.split(marker, 1)[1])):
        yield Example(user, text, gold.strip())


FORMATS: Mapping[str, Callable[[Path, list[str]], list[Example]]] = {
    "movielens": _movielens,
    "crehate": _crehate,
    "paradigms": _paradigms,
    "clinc150": _clinc150,
    "lamp": _lamp,
}


# What the formats share.


def _clean(text: str) -> str:
    """Returns the text without invisible characters, and with single spaces for all white space."""
    return " ".join(text.translate(_INVISIBLE).split())


def _tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _candidates(folder: Path, name: str) -> list[Path]:
    return sorted({*folder.glob(name), *folder.glob(f"*/{name}")})


def _find(folder: Path, name: str, problems: list[str]) -> Path | None:
    found = _candidates(folder, name)
    if len(found) == 1:
        return found[0]
    problems.append(f"{name} is missing" if not found else f"{name} is there {len(found)} times")
    return None


def _csv_rows(
    folder: Path, name: str, columns: Sequence[str], problems: list[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields each row's place and cells; a row of another width is a problem and left out."""
    path = _find(folder, name, problems)
    if path is None:
        return
    place = name
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                problems.append(f"{name} line 1: missing columns {', '.join(missing)}")
                return
            place = f"{name} line {reader.line_num + 1}"
            for cells in reader:
                if any(_NOT_UTF8.search(cell) for cell in cells):
                    problems.append(f"{place}: not UTF-8")
                elif len(cells) == len(header):
                    yield place, dict(zip(header, cells, strict=True))
                elif cells:
                    problems.append(f"{place}: {len(cells)} cells, but the header has {len(header)}")
                place = f"{name} line {reader.line_num + 1}"
    except (csv.Error, OSError) as error:
        problems.append(f"{place}: {_reason(error)}; not read further")


def _json(folder: Path, name: str, kind: type, problems: list[str]) -> Any:
    path = _find(folder, name, problems)
    return kind() if path is None else _load_json(path, kind, problems)


def _load_json(path: Path, kind: type, problems: list[str]) -> Any:
    """Returns what a JSON file holds, or an empty `kind` after adding a problem."""
    try:
        data = parsed_json(path.read_bytes())
    except (ValueError, OSError) as error:
        problems.append(f"{path.name}: {_reason(error)}")
        return kind()
    if not isinstance(data, kind):
        problems.append(f"{path.name}: holds no {kind.__name__} but a {type(data).__name__}")
        return kind()
    return data


def _reason(error: Exception) -> str:
    """Says what was wrong without the file's words."""
    match error:
        case UnicodeDecodeError():
            return "not UTF-8"
        case json.JSONDecodeError():
            return f"malformed JSON at line {error.lineno}, column {error.colno}"
        case csv.Error():
            return "malformed CSV"
        case OSError():
            return f"cannot be read ({error.strerror})"
    return "malformed JSON"
