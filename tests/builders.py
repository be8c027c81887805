"""Small real things for the tests of every part: a tiny release, and the homes of simulated devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.shared.examples import Example, write_examples
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.rng import generator

LABELS = ("no", "yes")
TINY_ONBOARDING = {"steps": 1, "prototypes": 5, "code_size": 6, "hidden": 7}
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


PLORA: dict[str, Any] = {"plora": {"rank": 4, "alpha": 8.0, "user_size": 8}}
EMBEDDED: dict[str, Any] = {"headfactors": {"user_size": 3}, "headbias": {}}
"""Methods that act on nothing but a text's embedding."""


def tiny_release(
    folder: Path,
    *,
    onboarding: bool = False,
    taught: bool = False,
    methods: dict[str, Any] = PLORA,
    recipe: LearningRecipe | None = None,
    int8: bool = False,
    trainables: Sequence[str] = (),
) -> Release:
    """Publishes a release around a random BERT of width 32 and 2 layers, and returns it. Needs torch.

    Args:
        folder: The backbone goes to its "backbone", the release to its "release".
        onboarding: Whether it has an onboarding network.
        taught: Whether rounds train that, too.
        methods: Its methods, with their options.
        recipe: How devices learn.
        int8: Whether it has the graphs that compute in 8 bits.
        trainables: What rounds train; where none is given, the head and what is of use to most tests.
    """
    from umbel.coordinator.publish import publish_model

    made = tiny_training(folder, onboarding, taught, methods, recipe, trainables)
    return publish_model(*made, folder / "release", int8=int8)


def tiny_training(
    folder: Path,
    onboarding: bool,
    taught: bool,
    methods: dict[str, Any] = PLORA,
    recipe: LearningRecipe | None = None,
    trainables: Sequence[str] = (),
) -> tuple[Any, Any, Any]:
    """Returns model, backbone and training of the tiny release."""
    from tests.coordinator.conftest import tiny_config, write_backbone

    from umbel.coordinator.artifacts import TrainedModel
    from umbel.coordinator.backbone import load_backbone
    from umbel.coordinator.config import CoordinatorConfig
    from umbel.coordinator.model import build_model

    backbone = load_backbone(str(write_backbone(folder / "backbone", tiny_config("bert"))))
    config = CoordinatorConfig.model_validate(
        {
            "backbone": {"name": str(folder / "backbone"), "max_tokens": 16},
            "methods": methods,
            "trainables": tuple(trainables)
            or (
                "task.*",
                *(("methods.*.B",) if "plora" in methods else ()),
                *(("onboarding.*",) if taught else ()),
            ),
            "onboarding": {**TINY_ONBOARDING, "rounds": taught} if onboarding else {},
        }
    )
    model = build_model(backbone, "classification", LABELS, config.method_configs(), 0)
    _stir(model)
    tensors = _onboarding_tensors(model, config) if onboarding else {}
    report = {"prototypes": [[["good film", "yes"], ["bad book", "no"]]] * 5} if onboarding else {}
    return (
        model,
        backbone,
        TrainedModel(
            config,
            LABELS,
            backbone.sha256,
            "0" * 64,
            recipe or LearningRecipe(steps=6),
            report,
            tensors,
        ),
    )


def _onboarding_tensors(model: Any, config: Any) -> dict[str, Any]:
    """Returns a network's parameters whose heads write profiles of full size."""
    import torch

    from umbel.coordinator.onboarding.network import Onboarder
    from umbel.shared.onboarding import PREFIX

    spec = model.profile_spec()
    network = Onboarder(config.onboarding, spec, 32, len(LABELS), 0)
    sizes = {tensor.name: torch.ones(2, *tensor.shape) for tensor in spec.tensors}
    network.fit_outputs(sizes, torch.Generator().manual_seed(0))
    return {PREFIX + name: value.detach() * 3 for name, value in network.named_parameters()}


def _stir(model: object) -> None:
    """Moves B and the task head off zero, so that profiles matter and every gradient is alive."""
    import torch

    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".B", ".M", ".m")) or name.startswith("task."):
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
