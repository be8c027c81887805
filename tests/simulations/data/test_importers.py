"""Importers, on tiny files in the formats, and on the real ones where a checkout lies beside them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from umbel.shared.errors import DataError
from umbel.shared.examples import Example, read_examples, write_examples
from umbel.simulations.data.importers import FORMATS, import_data

REAL = Path(__file__).parents[4] / "shared" / "data"


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = folder / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def problems_of(format_: str, folder: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        import_data(format_, folder)
    return list(caught.value.problems)


MOVIES = """movieId,title,genres
1,"Matrix, The (1999)",Action|Sci-Fi
2,"Casse-tête\u200b  chinois,  Le (2013)",(no genres listed)
3,"I, Robot (2004)",Action
"""
TAGS = """userId,movieId,tag,timestamp
7,1,Dystopia,1
8,1,dystopia,1
9,1,bullet time,1
9,1,sci-fi,1
7,1,awesome,1
7,1,"Awesome ",2
"""


def test_movielens(tmp_path: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n7,1,4.0,100\n7,2,3.5,90\n8,3,0.5,80\n"
    write(tmp_path / "ml", movies_csv=MOVIES, ratings_csv=ratings, tags_csv=TAGS)
    assert import_data("movielens", tmp_path) == [
        Example("7", "The Matrix (1999): action, sci-fi. Dystopia, awesome, bullet time.", "yes", 100.0),
        Example("7", "Le Casse-tête chinois (2013).", "no", 90.0),
        Example("8", "I, Robot (2004): action.", "no", 80.0),
    ]
    (tmp_path / "ml" / "tags.csv").unlink()
    assert import_data("movielens", tmp_path / "ml")[0].text == "The Matrix (1999): action, sci-fi."


def test_movielens_with_problems(tmp_path: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n7,99,4.0,100\n,1,4.0,1\n7,1,good,1\n7,1,nan,1\n7,1\n"
    write(tmp_path, movies_csv=MOVIES, ratings_csv=ratings, tags_csv="userId,movieId\n7,1\n")
    assert problems_of("movielens", tmp_path) == [
        "tags.csv line 1: missing columns tag",
        "ratings.csv line 2: no title for movieId 99",
        "ratings.csv line 3: userId is empty",
        "ratings.csv line 4: the rating or the timestamp is not a number",
        "ratings.csv line 5: the rating or the timestamp is not a number",
        "ratings.csv line 6: 2 cells, but the header has 4",
    ]


def test_crehate(tmp_path: Path) -> None:
    texts = 'ID,Text\nA-1,"a\n &amp;\u200f b"\nA-2,c\n'
    write(tmp_path, texts_csv=texts, annotations_csv="ID,annotator_id,annotation\nA-2,18,0\nA-1,18,1\n")
    assert import_data("crehate", tmp_path) == [Example("18", "c", "fine"), Example("18", "a & b", "hateful")]


def test_crehate_with_problems(tmp_path: Path) -> None:
    bad = "ID,annotator_id,annotation\nA-9,18,0\nA-1,18,2\nA-1,,1\n"
    write(tmp_path, texts_csv='ID,Text\nA-1,private\nA-2," "\nA-3,"private', annotations_csv=bad)
    assert problems_of("crehate", tmp_path) == [
        "texts.csv line 3: Text is empty",
        "texts.csv line 4: malformed CSV; not read further",
        "annotations.csv line 2: no text for ID A-9",
        "annotations.csv line 3: the annotation is not 0 or 1, or annotator_id is empty",
        "annotations.csv line 4: the annotation is not 0 or 1, or annotator_id is empty",
    ]


def test_paradigms(tmp_path: Path) -> None:
    rows = "id,text,label_1_M,label_F_2\n1,a  text,Hateful,Non-hateful\n"
    for group in ("g1", "g2", "g3"):
        (tmp_path / f"annotations_{group}.csv").write_text(rows)
    examples = import_data("paradigms", tmp_path)
    assert [(e.user, e.label) for e in examples[:3]] == [
        ("g1-1", "hateful"),
        ("g1-2", "fine"),
        ("g2-1", "hateful"),
    ]
    (tmp_path / "annotations_g2.csv").write_text("id,text,label_1_M\n1,private,private\n2,,Hateful\n")
    (tmp_path / "annotations_g3.csv").unlink()
    assert problems_of("paradigms", tmp_path) == [
        "annotations_g2.csv line 2: label_1_M is neither Hateful nor Non-hateful",
        "annotations_g2.csv line 3: text is empty",
        "annotations_g3.csv is missing",
    ]


def test_clinc150(tmp_path: Path) -> None:
    data = {
        "train": [["freeze my  account", "freeze_account"]],
        "val": [["book a flight", "book_flight"]],
        "test": [],
        "oos_train": [["what is love", "oos"]],
    }
    domains = {"banking": ["freeze_account"], "travel": ["book_flight"]}
    write(tmp_path, data_full_json=data, domains_json=domains)
    assert import_data("clinc150", tmp_path) == [
        Example("banking", "freeze my account", "freeze_account"),
        Example("travel", "book a flight", "book_flight"),
    ]


def test_clinc150_with_problems(tmp_path: Path) -> None:
    data = {"train": [["private", "freeze_account"], ["private", "unknown"], ["private"], 3], "val": 0}
    write(tmp_path, data_full_json=data, domains_json={"banking": ["freeze_account"], "travel": 1})
    where = "data_full.json, "
    assert problems_of("clinc150", tmp_path) == [
        "domains.json: travel is not a list of intents",
        *(f"{where}train {i}: not a text and an intent that has a domain" for i in (2, 3, 4)),
        f"{where}val: missing or not a list",
        f"{where}test: missing or not a list",
    ]
    write(tmp_path, data_full_json="{", domains_json="[]")
    assert problems_of("clinc150", tmp_path) == [
        "domains.json: holds no dict but a list",
        "data_full.json: malformed JSON at line 1, column 2",
    ]


def test_lamp(tmp_path: Path) -> None:
    films = [{"id": "5", "tag": "comedy", "description": "Two\n friends."}]
    question = {"id": "10", "input": "Which tag? tags: [comedy] description: A robot.", "profile": films}
    reviews = [{"id": "6", "text": "Good.", "score": 5}, {"id": "7", "text": "", "score": "1"}]
    write(
        tmp_path,
        dev_questions_json=[question],
        dev_outputs_json={"task": "LaMP_2", "golds": [{"id": "10", "output": "sci-fi"}]},
        test_questions_json=[{"id": "11", "user_id": "ann", "input": "review: Bad.", "profile": reviews}],
    )
    assert import_data("lamp", tmp_path) == [
        Example("dev-10", "Two friends.", "comedy"),
        Example("dev-10", "A robot.", "sci-fi"),
        Example("ann", "Good.", "5"),
    ]


def test_lamp_with_problems(tmp_path: Path) -> None:
    assert problems_of("lamp", tmp_path) == [f"no file *questions.json in {tmp_path}"]
    questions = [{"id": "1", "profile": [{"title": "private"}]}, 3]
    write(tmp_path, dev_questions_json=questions, dev_outputs_json={"golds": [1]})
    assert problems_of("lamp", tmp_path) == [
        "dev_outputs.json: golds is missing or not a list of objects with id and output",
        "dev_questions.json, question 1, profile item 1: neither description and tag nor text and score",
        "dev_questions.json, question 2: no object with a profile",
    ]


def test_files_that_cannot_be_found(tmp_path: Path) -> None:
    assert problems_of("crehate", tmp_path) == ["texts.csv is missing", "annotations.csv is missing"]
    assert problems_of("crehate", tmp_path / "none") == [f"{tmp_path / 'none'} is not a folder"]
    for name in ("a", "b"):
        write(tmp_path / name, texts_csv="ID,Text\n")
    assert problems_of("crehate", tmp_path)[0] == "texts.csv is there 2 times"
    with pytest.raises(DataError, match="no format 'netflix'") as caught:
        import_data("netflix", tmp_path)
    assert all(name in str(caught.value) for name in FORMATS)


def test_files_without_rows_or_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, texts_csv="ID,Text\n", annotations_csv="ID,annotator_id,annotation\n")
    assert problems_of("crehate", tmp_path) == ["no examples were found"]
    (tmp_path / "texts.csv").write_bytes(b"ID,Text\nA,caf\xe9\nB,tea\n")
    assert problems_of("crehate", tmp_path) == ["texts.csv line 2: not UTF-8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_", "folder", "users", "labels"),
    [
        # Users and rows as the data's own README counts them.
        ("movielens", "movielens_latest_small", 610, {"no": 52_256, "yes": 48_580}),
        ("crehate", "crehate", 1062, {"fine": 21_775, "hateful": 17_711}),
        ("paradigms", "annotation_paradigms", 60, {"hateful": 7_509, "fine": 4_491}),
        ("clinc150", "clinc150", 10, None),
    ],
)
def test_real_data(
    tmp_path: Path, format_: str, folder: str, users: int, labels: dict[str, int] | None
) -> None:
    if not (REAL / folder).is_dir():
        pytest.skip(f"{REAL / folder} is not there")
    examples = import_data(format_, REAL / folder)
    counts = Counter(e.label for e in examples)
    assert len({e.user for e in examples}) == users
    assert counts == labels if labels else set(counts.values()) == {150}
    write_examples(tmp_path / "a.jsonl", examples)
    assert read_examples(tmp_path / "a.jsonl") == examples
