"""Several owners in one batch are answered as each would be alone; who does not open is told, all at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from umbel import cli
from umbel.device_client import Device, Household
from umbel.device_client.engine import Engine
from umbel.device_client.prediction import Prediction, predict_texts
from umbel.device_client.releases.updating import Wanted
from umbel.shared.errors import ConfigError, ExampleError, ReleaseError, StoreError
from umbel.shared.examples import Example
from umbel.shared.release import Release

pytestmark = pytest.mark.full  # a release is made, by torch

TASTES = {"ann": "yes", "bob": "no"}
TEXTS = ["a slow film", "good", "we like the very tender book", "not a bad film", "slow"]
OWNERS = ["bob", "cleo", "ann", "ann", "bob"]


@pytest.fixture
def homes(int8_release: Release, tmp_path: Path) -> dict[str, Path]:
    """Ann and Bob have learned what they like; Cleo has just enrolled."""
    found = {name: tmp_path / name for name in ("ann", "bob", "cleo")}
    for name, home in found.items():
        with Device.enroll(home, int8_release.folder) as device:
            if name in TASTES:
                device.add([Example("owner", text, TASTES[name]) for text in TEXTS[:3]])
                device.learn()
    return found


def same(found: Prediction, wanted: Prediction) -> None:
    """Padding and the rows beside it change float32's rounding, and nothing else."""
    assert found.label == wanted.label
    assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_mixed_batch_is_everybody_alone(homes: dict[str, Path], precision: str) -> None:
    with Household.open(homes) as household:
        found = household.predict(TEXTS, OWNERS, precision=precision)
        ann, bob = household.predict(["good", "good"], ["ann", "bob"], precision=precision)
    assert abs(ann.probabilities["yes"] - bob.probabilities["yes"]) > 1e-3
    for text, owner, prediction in zip(TEXTS, OWNERS, found, strict=True):
        with Device.open(homes[owner]) as device:
            (alone,) = device.predict([text], precision=precision)
        same(prediction, alone)
        assert (prediction.generic_label is None) == (owner != "cleo")
        assert owner != "cleo" or alone.label == alone.generic_label


def test_people_of_two_releases(homes: dict[str, Path], tiny_release: Release, tmp_path: Path) -> None:
    with Device.enroll(tmp_path / "dora", tiny_release.folder):
        pass
    with Household.open({**homes, "dora": tmp_path / "dora"}) as household:
        found = household.predict(TEXTS[:3], ["dora", "ann", "dora"], compare=True)
    other = predict_texts(tiny_release, TEXTS[:3], None)
    for number in (0, 2):
        same(found[number], other[number])
        assert found[number].generic_label == other[number].label


def test_all_who_do_not_open_are_told(homes: dict[str, Path], tmp_path: Path) -> None:
    (homes["bob"] / "key").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="some of the household do not open") as caught:
        Household.open({**homes, "eve": tmp_path / "eve"})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["bob", "eve"]
    with pytest.raises(StoreError, match="somebody in it"):
        Household.open({})


def test_each_home_has_its_own_copy_checked(homes: dict[str, Path]) -> None:
    """Ann's is whole, though Bob's of the same release and Cleo's are not: both are told, with the reason."""
    for name in ("bob", "cleo"):
        with Device.open(homes[name]) as device:
            blob = device.release.blob_path("tokenizer.json")
        blob.unlink()
        if name == "cleo":
            blob.write_bytes(b"{}")
    with pytest.raises(ReleaseError, match="cannot be asked") as caught:
        Household.open(homes)
    bob, cleo = caught.value.problems
    assert bob.startswith("bob: ")
    assert cleo.startswith("cleo: ")
    assert "has 2 bytes" in cleo


def test_a_missing_key_is_told_with_what_it_is(homes: dict[str, Path]) -> None:
    (homes["ann"] / "key").unlink()
    with pytest.raises(StoreError) as caught:
        Household.open(homes)
    (problem,) = caught.value.problems
    assert problem.startswith("ann: the store's key cannot be read from")
    assert problem.endswith("No such file or directory")


def test_a_member_who_is_updated_meanwhile(homes: dict[str, Path], tiny_release: Release) -> None:
    """A household and a device that stay open answer with what is in use now, and keep under its id."""
    with Household.open(homes) as household, Device.open(homes["ann"]) as device:
        before = household.predict(TEXTS, OWNERS)
        device.predict(TEXTS)
        with Device.open(homes["ann"]) as other:
            assert other.update(Wanted(release=tiny_release.folder, force=True)).outcome == "adopted"
            wanted = other.predict(TEXTS)
        found = household.predict(TEXTS, ["ann"] * len(TEXTS))
        for one, answer, alone in zip(found, device.predict(TEXTS), wanted, strict=True):
            same(one, alone)
            same(answer, alone)
        device.learn(anew=True)
        assert device.release.release_id == tiny_release.release_id
        assert device.status()["profile"] is not None
        for number, answer in enumerate(household.predict(TEXTS, OWNERS)):
            if OWNERS[number] != "ann":
                same(answer, before[number])


def test_what_cannot_be_asked_is_told(homes: dict[str, Path]) -> None:
    with Household.open({"ann": homes["ann"]}) as household:
        with pytest.raises(ExampleError) as caught:
            household.predict(["good", "bad"], ["ann", "bob", "bob"])
        assert len(caught.value.problems) == 3
        with pytest.raises(ConfigError, match="'int4' is no precision"):
            household.predict(["good"], ["ann"], precision="int4")
        assert household.predict([], []) == []


def test_the_command_line(homes: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"owner": owner, "text": text} for owner, text in zip(OWNERS, TEXTS, strict=True)]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    members = [word for name, home in homes.items() for word in ("--member", f"{name}={home}")]
    command = ["device", "household", *members, "--texts", str(file)]
    assert cli.main([*command, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with Household.open(homes) as household:
        wanted = household.predict(TEXTS, OWNERS)
    assert [(row["owner"], row["text"]) for row in told] == list(zip(OWNERS, TEXTS, strict=True))
    assert [row["label"] for row in told] == [row.label for row in wanted]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[r["owner"], r["label"]] for r in told]


@pytest.mark.parametrize(
    ("members", "rows", "says"),
    [
        (["ann", "=x", "a=b", "a=c"], "", "these are no members"),
        (["ann=x"], "[]\nnot json\n", "there are no texts to answer"),
        (["ann=x"], "", "there are no texts to answer"),
    ],
)
def test_what_cannot_be_read(
    members: list[str], rows: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(rows)
    words: list[Any] = [word for member in members for word in ("-m", member)]
    assert cli.main(["device", "household", *words, "-t", str(file)]) == 2
    assert says in capsys.readouterr().err


def test_a_device_keeps_its_graphs_open(homes: dict[str, Path]) -> None:
    """Learning and both precisions share weights, and a second call opens no graph anew."""
    with Device.open(homes["ann"]) as device:
        first = device.predict(TEXTS)
        engine = device.engine()
        device.learn()
        again = device.predict(TEXTS)
        assert device.engine() is engine
        quick = engine.quick()
        assert (quick.precision, engine.precision) == ("int8", "float32")
        assert quick.trainables().keys() == engine.trainables().keys()
    for one, other in zip(first, again, strict=True):
        same(one, other)


def test_8_bits_are_near_float32_and_not_it(int8_release: Release, tiny_release: Release) -> None:
    """What the publisher measured on random tokens is within a hundredth; on these texts it is, too."""
    found, exact = (predict_texts(int8_release, TEXTS, None, precision=p) for p in ("int8", "float32"))
    moved = [abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in zip(found, exact, strict=True)]
    assert 0 < max(moved) < 0.05
    assert Engine(tiny_release).quick().precision == "float32"
    plain = predict_texts(tiny_release, TEXTS, None)
    assert plain == predict_texts(tiny_release, TEXTS, None, precision="float32")
