"""What the rival is given: the same weights as a folder of transformers, its scripts, people's profiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from umbel.device_client.weights import load_weights
from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray, ProfileSpec
from umbel.shared.release import TOKENIZER, Release
from umbel.shared.rng import generator

PEOPLE = 1024
"""People whose profiles are kept; some rows of them are as good as others."""
PROFILES = "profiles.safetensors"
_ENCODER = "encoder."
_METHOD = "methods.plora.projections."
_READY = "personal.json"


def stage_scripts(folder: Path) -> Path:
    """Copies the rival's scripts into a folder of their own, and returns what PYTHONPATH must be."""
    place = folder / "rival-side"
    shutil.copytree(
        Path(__file__).parent / "rival", place / "rival", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    return place


def stage_model(release: Release, backbone: Path, folder: Path) -> Path:
    """Writes a release as a folder that transformers reads, once, and returns it.

    Args:
        release: The release, of PLoRA or of a private bias alone.
        backbone: Folder of its encoder, for config.json.
        folder: Where such folders are kept.
    """
    from safetensors.numpy import save

    place = folder / "rival-models" / release.release_id[:12]
    if (place / _READY).is_file() and "method" in json.loads((place / _READY).read_bytes()):
        return place
    weights = load_weights(release)
    encoder = {
        name.removeprefix(_ENCODER).replace(".base.", "."): np.ascontiguousarray(array)
        for name, array in weights.items()
        if name.startswith(_ENCODER)
    }
    personal = {
        plain_name(name): np.ascontiguousarray(array)
        for name, array in weights.items()
        if name.startswith((_METHOD, "task."))
    }
    (method, options), *_ = release.manifest.methods.items()
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(backbone / "config.json", place / "config.json")
    shutil.copyfile(release.blob_path(TOKENIZER), place / "tokenizer.json")
    atomic_write(place / "model.safetensors", save(encoder, {"format": "pt"}))
    atomic_write(place / "personal.safetensors", save(personal))
    (people,) = profiles_of(release.manifest.profile, PEOPLE).values()
    atomic_write(place / PROFILES, save({"user": people}))
    atomic_write(place / "person.safetensors", save({"user": np.ascontiguousarray(people[0])}))
    scale = options["alpha"] / options["rank"] if method == "plora" else options["scale"]
    told = {"method": method, "scale": scale}
    atomic_write(place / _READY, json.dumps(told).encode())  # last: it says that the folder is whole
    return place


def plain_name(name: str) -> str:
    """Returns what the rival calls a shared tensor."""
    return name.removeprefix(_METHOD)


def profiles_of(spec: ProfileSpec, people: int) -> dict[str, FloatArray]:
    """Returns profiles of so many people, as they are stored: any numbers, the same ones every time."""
    drawn = {
        tensor.name: generator(0, 0, "", f"profiles {tensor.name}")
        .normal(size=(people, *tensor.shape))
        .astype(np.float32)
        for tensor in spec.tensors
    }
    return spec.rounded(drawn)
