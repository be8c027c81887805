"""Small real things for the tests of every part: a tiny release, and the homes of simulated devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from umbel.shared.examples import Example, write_examples
from umbel.shared.release import Release
from umbel.shared.rng import generator

LABELS = ("no", "yes")
WORDS = (
    "good",
    "bad",
    "film",
    "book",
    "a",
    "the",
    "is",
    "not",
    "very",
    "slow",
    "tender",
    "we",
    "they",
    "like",
)


def tiny_release(folder: Path) -> Release:
    """Writes a release around a random BERT of width 32 and 2 layers, and returns it. Needs torch."""
    from tests.coordinator.conftest import tiny_config, write_backbone

    from umbel.coordinator.backbone import load_backbone
    from umbel.coordinator.graphs.joint import export_joint, parameter_arrays
    from umbel.coordinator.graphs.split import split_graphs, weights_file
    from umbel.coordinator.methods.plora import PLoRAConfig
    from umbel.coordinator.model import build_model
    from umbel.shared.files import sha256_bytes
    from umbel.shared.recipe import LearningRecipe
    from umbel.shared.release import Blob, Manifest, write_release

    backbone = load_backbone(str(write_backbone(folder / "backbone", tiny_config("bert"))))
    model = build_model(backbone, "classification", LABELS, {"plora": PLoRAConfig(rank=4, user_size=8)}, 0)
    _stir(model)
    trainables = [n for n in model.shared_names() if n.startswith("task.") or n.endswith(".B")]
    joint = export_joint(model, trainables, backbone.shape)
    arrays = parameter_arrays(model)
    files = [
        weights_file("backbone.safetensors", {n: a for n, a in arrays.items() if n.startswith("encoder.")}),
        weights_file("shared.safetensors", {n: a for n, a in arrays.items() if not n.startswith("encoder.")}),
    ]
    shapes = {name: arrays[name].shape for name in trainables}
    spec = model.profile_spec()
    graphs = split_graphs(joint, [t.name for t in spec.tensors], shapes, files)
    blobs = {f"{name}.onnx": data for name, data in graphs.items()}
    blobs |= {file.location: file.data for file in files} | {"tokenizer.json": backbone.tokenizer_json}
    manifest = Manifest(
        parent=None,
        task="classification",
        labels=LABELS,
        backbone={"name": "tiny", "family": "bert", "sha256": backbone.sha256},
        methods={"plora": {"rank": 4, "user_size": 8}},
        max_tokens=16,
        profile=spec,
        recipe=LearningRecipe(steps=6),
        trainables=shapes,
        parity={},
        blobs={name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()},
    )
    return write_release(folder / "release", manifest, blobs)


def _stir(model: object) -> None:
    """Moves B and the task head off zero, so that profiles matter and every gradient is alive."""
    import torch

    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B") or name.startswith("task."):
                noise = generator(0, 0, "", f"stir {name}").normal(0.0, 0.1, tuple(parameter.shape))
                parameter.copy_(torch.tensor(noise, dtype=parameter.dtype))


def random_examples(seed: int, user: str, count: int, purpose: str = "examples") -> list[Example]:
    """Returns examples of 2 to 6 random words; a user likes texts that hold their own favourite word."""
    favourite = WORDS[int(generator(seed, 0, user, "favourite").integers(len(WORDS)))]
    rng = generator(seed, 0, user, purpose)
    examples = []
    for _ in range(count):
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=int(rng.integers(2, 7)))]
        examples.append(Example(user, " ".join(words), LABELS[favourite in words]))
    return examples


def write_devices(folder: Path, counts: Sequence[int], *, heldout: int = 4, seed: int = 0) -> Path:
    """Writes the homes of simulated devices, one for each count of examples, and returns their folder."""
    for number, count in enumerate(counts):
        home = folder / f"{number:06d}"
        write_examples(home / "examples.jsonl", random_examples(seed, str(number), count))
        write_examples(home / "heldout.jsonl", random_examples(seed, str(number), heldout, "heldout"))
    return folder
