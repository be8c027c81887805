"""`umbel methods`: every method is listed with its true sizes, and explained with all that it has."""

import json
from pathlib import Path

import pytest
from tests.coordinator.conftest import tiny_config, write_backbone

from umbel import cli
from umbel.coordinator.methods import REGISTRY, method_class


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("encoder"), tiny_config("bert"))


def test_all_are_listed_with_what_they_cost(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--backbone", str(encoder), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(REGISTRY)
    # 2 layers of width 32, queries and values: A (16, 32), P (16, 64), B (32, 16); 64 float16 are private.
    assert rows["plora"]["shared_parameters"] == 2 * 2 * (16 * 32 + 16 * 64 + 32 * 16)
    assert (rows["plora"]["private_values"], rows["plora"]["private_bytes"]) == (64, 128)
    for row in rows.values():
        assert row["shared_parameters"] == sum(part["size_bytes"] for part in row["shared"]) // 4
        assert row["private_bytes"] == sum(part["size_bytes"] for part in row["private"])
    assert cli.main(["methods", "--backbone", str(encoder)]) == 0
    words = capsys.readouterr().out
    for name in REGISTRY:
        assert f"\n{name}: {rows[name]['private_bytes']:,} private bytes a person" in words
        assert method_class(name).citation in words


@pytest.mark.parametrize("name", list(REGISTRY))
def test_one_is_explained_with_all_its_options(
    encoder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["methods", "explain", name, "--backbone", str(encoder)]) == 0
    words = capsys.readouterr().out
    kind = method_class(name)
    assert f"\n  {kind.equation}\n" in words
    for option, info in kind.Config.model_fields.items():
        assert info.description, f"option {option} says nothing"
        assert f"\n  {option} = {json.dumps(info.default)}  {info.description}\n" in words + "\n"
    assert cli.main(["methods", "explain", name, "--backbone", str(encoder), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert all(f"\n  {part['name']} (" in words for part in (*row["private"], *row["shared"]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["explain", "lora"], "there is no method 'lora'\nKnown methods: "),
        (["--backbone", "nowhere/there"], "backbone 'nowhere/there' is neither a folder nor a model"),
    ],
)
def test_what_is_not_there(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", *words]) == 2
    assert told in capsys.readouterr().err
