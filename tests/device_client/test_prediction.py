"""What people are shown: probabilities at the release's temperatures, the labels as they are."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from umbel.device_client.engine import Engine
from umbel.device_client.prediction import predict_owners
from umbel.shared.answers import Calibration
from umbel.shared.bias import softmax
from umbel.shared.release import Release, read_release

pytestmark = pytest.mark.full  # a release is made, by torch

TEXTS = ["a slow film", "good", "we like the very tender book", "not a bad film"]


def test_temperatures_change_what_is_shown_and_no_label(tiny_release: Release) -> None:
    """The slow twin: softmax(logits / T), each text alone."""
    found = Calibration(generic=2.0, personal=4.0)
    release = replace(tiny_release, manifest=replace(tiny_release.manifest, calibration=found))
    spec = release.manifest.profile
    profile = {tensor.name: np.full((1, *tensor.shape), 0.5, np.float32) for tensor in spec.tensors}
    owner = np.array([0, 1, 0, 1])
    plain, warm = (predict_owners(Engine(r), TEXTS, owner, [profile, None]) for r in (tiny_release, release))
    engine = Engine(release)
    for text, number, before, after in zip(TEXTS, owner, plain, warm, strict=True):
        own, temperature = (profile, 4.0) if number == 0 else (spec.zeros(1), 2.0)
        logits = engine.predict(engine.encode([text]), np.zeros(1, np.int64), own, {})
        assert list(after.probabilities.values()) == pytest.approx(softmax(logits / temperature)[0], abs=1e-6)
        assert (after.label, after.generic_label) == (before.label, before.generic_label)
        assert 0.5 <= after.probability <= before.probability


def test_a_run_is_given_the_profiles_of_its_texts_only(
    tiny_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 owners who ask one text each, no run of at most 32 texts is given more than 32 profiles."""
    engine = Engine(tiny_release)
    spec = tiny_release.manifest.profile
    profiles = [
        {tensor.name: np.full((1, *tensor.shape), n / 40, np.float32) for tensor in spec.tensors}
        for n in range(40)
    ]
    sizes = []
    plain = Engine._run

    def counted(self: Engine, graph: str, outputs: list[str], feed: dict[str, np.ndarray]) -> object:
        sizes.append((len(feed["owner"]), len(feed["plora.user"])))
        return plain(self, graph, outputs, feed)

    monkeypatch.setattr(Engine, "_run", counted)
    found = predict_owners(engine, ["good"] * 40, np.arange(40)[::-1].copy(), profiles, compare=False)
    assert sorted(sizes) == [(8, 8), (32, 32)]
    alone = [predict_owners(engine, ["good"], np.zeros(1, np.int64), [own])[0] for own in reversed(profiles)]
    assert [row.probability for row in found] == pytest.approx([row.probability for row in alone], abs=1e-6)


def test_a_linked_blob_of_another_name_is_read_in_float32(int8_release: Release, tmp_path: Path) -> None:
    """A graph finds its files by their own names in one folder; where it could not, float32 answers."""
    folder = tmp_path / "release"
    shutil.copytree(int8_release.folder, folder)
    release = read_release(folder)
    assert Engine(release).quick().precision == "int8"
    blob = release.blob_path("backbone_int8.safetensors")
    blob.rename(tmp_path / blob.name)
    blob.symlink_to(tmp_path / blob.name)
    linked = read_release(folder)
    assert Engine(linked).quick().precision == "float32"
    owner = np.zeros(1, np.int64)
    assert predict_owners(Engine(linked).quick(), ["good"], owner, [None])[0].probability > 0
