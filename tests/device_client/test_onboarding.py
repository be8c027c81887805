"""A first profile in one pass: what it depends on, what it is good for, and what its owner is told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.device_client.test_learning import ENGINE, shared, support
from tests.linear_engine import PRIVATE
from tests.numeric import assert_close_relative
from tests.oracles.onboarding import onboarding_oracle

from umbel import cli
from umbel.device_client import onboarding
from umbel.device_client.caution import cautious_profiles
from umbel.device_client.device import learn_profile, onboard_profile
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, learn_exactly
from umbel.device_client.onboarding import (
    Known,
    examples_starter,
    influences,
    onboarded,
    read_known,
    starter,
)
from umbel.device_client.profile_file import read_profile
from umbel.shared.errors import ExampleError, ReleaseError
from umbel.shared.examples import Example
from umbel.shared.onboarding import PREFIX
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import MANIFEST, SHARED_WEIGHTS, Manifest, Release, read_release, write_release
from umbel.shared.strength import fold_rows
from umbel.shared.text import IntArray

TEXTS = ["a slow film", "a good book", "not very good", "slow slow slow", "we like the film"]
MINE = [
    Example("owner", text, label) for text, label in zip(TEXTS, ("yes", "no", "no", "yes", "no"), strict=True)
]

pytestmark = pytest.mark.full  # a release is built with torch


@pytest.fixture(scope="module")
def engine(onboarding_release: Release) -> Engine:
    return Engine(onboarding_release)


def known_of(engine: Engine, labels: Sequence[int], texts: Sequence[str] = TEXTS) -> Known:
    """The first texts with labels, the others without."""
    count = len(labels)
    own = np.array(labels, np.int64)
    return read_known(engine, Encoded(engine.encode(texts[:count]), own), engine.encode(texts[count:]))


def test_reading_gives_what_prediction_gives_nobody(engine: Engine) -> None:
    known = known_of(engine, [1, 0])
    assert known.labels.tolist() == [1, 0, -1, -1, -1]
    zeros = engine.release.manifest.profile.zeros(1)
    for number, text in enumerate(TEXTS):
        alone = engine.predict(engine.encode([text]), np.zeros(1, np.int64), zeros, {})
        assert known.logits[number] == pytest.approx(alone[0], rel=1e-4, abs=1e-6)
    assert known.embedding.shape == (5, 32)
    assert len(read_known(engine, Encoded(engine.encode([]), np.zeros(0, np.int64)), engine.encode([]))) == 0


def test_users_are_onboarded_each_for_themselves(engine: Engine) -> None:
    """Side by side or alone; the order of texts does not matter; of nothing comes the generic profile."""
    parts = [
        known_of(engine, [1, 0, 1]),
        known_of(engine, []),
        known_of(engine, [], []),
        known_of(engine, [0] * 5),
    ]
    together, weights = onboarded(engine, parts)
    assert weights.sum(1) == pytest.approx(1, abs=1e-5)
    for user, part in enumerate(parts):
        alone, _ = onboarded(engine, [part.rows(np.arange(len(part))[::-1])])
        for name, values in alone.items():
            assert together[name][user] == pytest.approx(values[0], rel=1e-4, abs=1e-6)
    assert not together["plora.user"][2].any()
    assert all(together["plora.user"][user].any() for user in (0, 1, 3))
    assert not np.allclose(together["plora.user"][0], together["plora.user"][1], atol=1e-3)


def test_the_graph_says_what_the_slow_twin_says(engine: Engine) -> None:
    from safetensors.numpy import load_file

    manifest = engine.release.manifest
    parameters = {
        name.removeprefix(PREFIX): values.astype(np.float64)
        for name, values in load_file(engine.release.blob_path(SHARED_WEIGHTS)).items()
        if name.startswith(PREFIX)
    }
    shapes = {tensor.name: tensor.shape for tensor in manifest.profile.tensors}
    known = known_of(engine, [1, 0, 0])
    owner, owners = np.array([0, 2, 0, -1, 2]), np.arange(3)
    wanted, shares = onboarding_oracle(
        parameters,
        shapes,
        known.embedding.astype(np.float64),
        known.logits.astype(np.float64),
        known.labels,
        owner,
        owners,
    )
    found, weights = engine.onboard(known.logits, known.embedding, known.labels, owner, 3, {})
    assert_close_relative("weights", weights, np.asarray(shares))
    assert_close_relative("profile", found["plora.user"], np.asarray(wanted["plora.user"]))


def test_influences_are_shares_of_what_leaving_out_changes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_of(engine, [1, 0])
    found = influences(engine, known)
    whole = onboarded(engine, [known])[0]["plora.user"][0]
    moved = []
    for left in range(5):
        rest = known.rows(np.array([number for number in range(5) if number != left]))
        moved.append(float(np.linalg.norm(onboarded(engine, [rest])[0]["plora.user"][0] - whole)))
    assert found == pytest.approx(np.array(moved) / sum(moved), rel=1e-3)
    assert influences(engine, known.rows(np.arange(0))).tolist() == []
    monkeypatch.setattr(onboarding, "_ROWS", 11)  # two at a time
    assert influences(engine, known) == pytest.approx(found, rel=1e-4)


def test_without_onboarding_it_says_so(tiny_release: Release) -> None:
    plain = Engine(tiny_release)
    with pytest.raises(ReleaseError, match="has no onboarding"):
        onboarded(plain, [known_of(plain, [])])
    assert starter(plain, [known_of(plain, [])], [0], 1.0) is None
    assert examples_starter(plain, [], 1.0) is None


def test_learning_starts_from_the_share_that_the_recipe_says(
    onboarding_release: Release, tmp_path: Path
) -> None:
    """Without steps, what is learned is the start: the onboarded profile times the share, as it is stored."""
    exact, _ = onboarded(Engine(onboarding_release), [known_of(Engine(onboarding_release), [1, 0, 0, 1, 0])])
    for share in (0.0, 0.5, 1.0):
        release = with_recipe(onboarding_release, LearningRecipe(steps=0, start=share), tmp_path / str(share))
        learned = learn_profile(release, MINE, tmp_path / "profile")
        found = read_profile(release, tmp_path / "profile")["plora.user"]
        assert found == pytest.approx(exact["plora.user"] * share, rel=2e-3, abs=1e-4)
        assert learned.strength == 1.0


def test_texts_without_labels_move_where_learning_starts(onboarding_release: Release, tmp_path: Path) -> None:
    release = with_recipe(onboarding_release, LearningRecipe(steps=0), tmp_path / "release")
    learn_profile(release, MINE[:2], tmp_path / "without")
    learned = learn_profile(release, MINE[:2], tmp_path / "with", texts=TEXTS[2:])
    assert (tmp_path / "without").read_bytes() != (tmp_path / "with").read_bytes()
    assert learned.notes == ()


def with_recipe(release: Release, recipe: LearningRecipe, folder: Path) -> Release:
    manifest: Manifest = replace(release.manifest, recipe=recipe)
    return write_release(folder, manifest, {n: release.blob_path(n).read_bytes() for n in manifest.blobs})


def test_a_fold_starts_without_what_it_holds_out() -> None:
    """The start is asked for all examples first, then for each fold's rest; folds go on from these."""
    asked: list[list[tuple[int, list[int]]]] = []

    def start(places: Sequence[tuple[int, IntArray]]) -> Mapping[str, FloatArray]:
        asked.append([(user, rows.tolist()) for user, rows in places])
        size = [[float(user), float(len(rows))] for user, rows in places]
        return {PRIVATE: np.array(size, np.float32)}

    parts = [support(0, 4), support(1, 3)]
    recipe = LearningRecipe(steps=2, folds=2, trust=500.0)
    profile, strengths = cautious_profiles(ENGINE, parts, recipe, start=start, shared=shared())
    texts = [
        [bytes(ids[mask > 0]) for ids, mask in zip(p.tokens.ids, p.tokens.mask, strict=True)] for p in parts
    ]
    folds = [(user, rest.tolist()) for user, own in enumerate(texts) for rest, _ in fold_rows(own, 2)]
    assert len(folds) == 4
    assert asked == [[(0, [0, 1, 2, 3]), (1, [0, 1, 2])], folds]
    origin = {PRIVATE: np.array([[0, 4], [1, 3]], np.float32)}
    exact = learn_exactly(ENGINE, parts, recipe, start=origin, shared=shared())[PRIVATE]
    assert strengths == pytest.approx(1, abs=1e-3)
    assert profile[PRIVATE] == pytest.approx(exact, rel=5e-3, abs=1e-3)


def test_a_first_profile_is_kept_and_explained(onboarding_release: Release, tmp_path: Path) -> None:
    path = tmp_path / "profile"
    found = onboard_profile(onboarding_release, MINE[:2], TEXTS[2:], path)
    exact, weights = onboarded(Engine(onboarding_release), [known_of(Engine(onboarding_release), [1, 0])])
    kept = read_profile(onboarding_release, path)["plora.user"]
    assert kept == pytest.approx(exact["plora.user"], rel=1e-3, abs=1e-4)
    assert found.file_bytes == len(path.read_bytes())
    assert [own.weight for own in found.likenesses] == pytest.approx(sorted(weights[0])[::-1][:3])
    assert found.likenesses[0].examples == (("good film", "yes"), ("bad book", "no"))
    assert len(found.influences) == 5
    assert sum(found.influences) == pytest.approx(1)
    assert 0 < found.moved < 1
    assert 0 <= found.changed <= 1


def test_nothing_to_begin_with_writes_nothing(onboarding_release: Release, tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="nothing to begin with"):
        onboard_profile(onboarding_release, [], [], tmp_path / "profile")
    others = [replace(MINE[0], user="else"), MINE[1]]
    with pytest.raises(ExampleError, match="one person"):
        onboard_profile(onboarding_release, others, [], tmp_path / "profile")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["prototypes", "graph", "key", "examples"])
def test_a_manifest_that_does_not_fit_is_refused(
    onboarding_release: Release, tmp_path: Path, damage: str
) -> None:
    manifest = onboarding_release.manifest
    blobs = {name: onboarding_release.blob_path(name).read_bytes() for name in manifest.blobs}
    write_release(tmp_path, manifest, blobs)
    row: dict[str, Any] = json.loads((tmp_path / MANIFEST).read_bytes())
    if damage == "prototypes":
        row["onboarding"]["prototypes"] = row["onboarding"]["prototypes"][:4]
    if damage == "graph":
        del row["blobs"]["onboard.onnx"]
    if damage == "key":
        del row["onboarding"]
    if damage == "examples":
        row["onboarding"]["prototypes"][1] = [{"text": "a", "label": 7}]
    data = json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False)
    (tmp_path / MANIFEST).write_text(data + "\n")
    wanted = {
        "prototypes": "not what its manifest says",
        "graph": "cannot be used",
        "key": "cannot be used",
        "examples": "cannot be used",
    }

    def use() -> None:
        engine = Engine(read_release(tmp_path))
        onboarded(engine, [known_of(engine, [])])

    with pytest.raises(ReleaseError, match=wanted[damage]):
        use()


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main(["device", *map(str, words)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_the_command(
    onboarding_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\n".join(TEXTS[2:]) + "\n")
    rows = [{"text": row.text, "label": row.label} for row in MINE[:2]]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = ("-r", onboarding_release.folder, "-e", "mine.jsonl", "-t", "mine.txt")
    assert json.loads(run(capsys, "onboard", *both, "--json")[1])["influences"] == []
    status, out, err = run(capsys, "onboard", *both, "--json", "--explain")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["examples"], found["texts"], len(found["influences"])) == (2, 3, 5)
    status, out, _ = run(capsys, "onboard", *both, "--explain")
    assert status == 0
    assert 'yes to "good film"' in out
    assert '"a slow film"' in out
    status, out, _ = run(capsys, "predict", "-r", onboarding_release.folder, "a slow book", "--json")
    assert status == 0
    status, out, _ = run(capsys, "learn", *both, "--json")
    assert status == 0
    assert json.loads(out)["notes"] == []


def test_the_command_says_what_is_wrong(
    onboarding_release: Release,
    tiny_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("mine.txt").write_text("a slow film\n")
    status, _, err = run(capsys, "onboard", "-r", onboarding_release.folder)
    assert (status, "nothing to begin with" in err) == (2, True)
    status, _, err = run(capsys, "onboard", "-r", onboarding_release.folder, "-t", "empty.txt")
    assert (status, "no texts" in err) == (2, True)
    status, _, err = run(capsys, "onboard", "-r", tiny_release.folder, "-t", "mine.txt")
    assert (status, "has no onboarding" in err) == (2, True)
    assert not Path("profile.umbel").exists()
    Path("mine.jsonl").write_text('{"text": "a", "label": "yes"}\n{"text": "b", "label": "no"}\n')
    rest = ("-r", tiny_release.folder, "-e", "mine.jsonl", "-t", "mine.txt", "--json")
    status, out, _ = run(capsys, "learn", *rest)
    assert status == 0
    assert json.loads(out)["notes"] == [
        "learning does not start from onboarding here, so texts without labels are not used."
    ]


def test_what_the_first_profile_replaces_is_said(
    onboarding_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And that the release's recipe does not start from it, where it does not."""
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\n".join(TEXTS) + "\n")
    manifest = onboarding_release.manifest
    blobs = {name: onboarding_release.blob_path(name).read_bytes() for name in manifest.blobs}
    zeros = write_release(
        tmp_path / "zeros", replace(manifest, recipe=replace(manifest.recipe, start=0.0)), blobs
    )
    words = ("onboard", "-r", zeros.folder, "-t", "mine.txt")
    Path("mine.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    first, second = (run(capsys, *words)[1] for _ in range(2))
    assert "does not start from it" in run(capsys, *words, "-e", "mine.jsonl")[1]
    assert "does not start from it" not in first  # nothing could be learned
    assert "replaces" not in first
    assert "Note: it replaces the profile that was there" in second
    found = json.loads(run(capsys, *words, "--json")[1])
    assert (found["replaced"], found["start"]) == (True, 0.0)
    words = ("onboard", "-r", onboarding_release.folder, "-t", "mine.txt")
    assert "does not start from it" not in run(capsys, *words)[1]
