"""The releases that are measured, made without a training: what weights are changes no cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import umbel
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import MANIFEST, Release, read_release
from umbel.shared.rng import generator
from umbel.simulations.bench.encoders import backbone_name

if TYPE_CHECKING:
    from umbel.coordinator.backbone import Backbone
    from umbel.coordinator.config import CoordinatorConfig
    from umbel.coordinator.model import PersonalModel

LABELS = ("no", "yes")
MAX_TOKENS = 128
BEHIND = "headbias"
"""A release with nothing personal inside the encoder: one private number per label is added behind it."""
ONBOARDED = "plora, onboarding"
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "plora": {"plora": {}},
        ONBOARDED: {"plora": {}},
        "loratrf": {"loratrf": {}},
        "lopa": {"lopa": {}},
        "xpeft": {"xpeft": {}},
        "pha": {"pha": {}},
        BEHIND: {"headbias": {}},
    }
)
"""Kind of release -> its methods, with the options that umbel gives them by default."""

RECIPE = LearningRecipe(folds=4)
"""What `umbel coordinator train` gives by default: 16 steps, and a cross-validation in 4 folds."""

_GRAPHS = (
    "graphs/*.py",
    "methods/*.py",
    "tasks/*.py",
    "onboarding/network.py",
    "model.py",
    "publish.py",
    "sites.py",
)
_STIR = 0.02
_MADE = "made.json"


def release_of(encoder: str, kind: str, folder: Path, on_phase: Callable[[str], None]) -> Release:
    """Returns the release of an encoder and a kind, from `folder` or made anew.

    Args:
        encoder: One of `encoders.TITLES`.
        kind: One of `METHODS`.
        folder: Where encoders and releases are kept.
        on_phase: Hears what is done, where it takes long.
    """
    own = folder / "releases" / f"{encoder}-{kind.replace(', ', '-')}"
    wanted = _identity(encoder, kind)
    if (own / MANIFEST).is_file() and (own / _MADE).is_file() and (own / _MADE).read_bytes() == wanted:
        return read_release(own)
    on_phase(f"publish {encoder}, {kind}")
    made = _publish(backbone_name(encoder, folder / "encoders"), kind, own)
    atomic_write(own / _MADE, wanted)
    return made


def _identity(encoder: str, kind: str) -> bytes:
    """Returns what a release is made from: it is made anew if its options or umbel's graphs have changed."""
    root = Path(umbel.__file__).parent / "coordinator"
    sources = sorted(path for part in _GRAPHS for path in root.glob(part))
    code = sha256_bytes(b"".join(path.read_bytes() for path in sources))
    row = [encoder, kind, METHODS[kind], RECIPE.as_json(), MAX_TOKENS, LABELS, code]
    return json.dumps(row, default=dict, sort_keys=True).encode()


def model_of(backbone_at: str, kind: str) -> tuple[Backbone, CoordinatorConfig, PersonalModel]:
    """Returns the model that the release of an encoder and a kind is made of."""
    from umbel.coordinator.backbone import load_backbone
    from umbel.coordinator.model import build_model

    backbone = load_backbone(backbone_at)
    config = _config(backbone_at, kind)
    model = build_model(backbone, "classification", LABELS, config.method_configs(), 0)
    _stir(model)
    return backbone, config, model


def _publish(backbone_at: str, kind: str, folder: Path) -> Release:
    from umbel.coordinator.artifacts import TrainedModel
    from umbel.coordinator.publish import publish_model

    backbone, config, model = model_of(backbone_at, kind)
    network = _onboarding(model, config) if config.onboarding.steps else {}
    report = {"prototypes": [[["a quiet film", "yes"]]] * config.onboarding.prototypes} if network else {}
    trained = TrainedModel(config, LABELS, backbone.sha256, "0" * 64, RECIPE, report, network)
    return publish_model(model, backbone, trained, folder)


def _config(backbone_at: str, kind: str) -> CoordinatorConfig:
    from umbel.coordinator.config import CoordinatorConfig

    row: dict[str, Any] = {
        "backbone": {"name": backbone_at, "max_tokens": MAX_TOKENS},
        "methods": METHODS[kind],
        "onboarding": {"steps": 1} if kind == ONBOARDED else {},
    }
    return CoordinatorConfig.model_validate(row)


def _stir(model: PersonalModel) -> None:
    """Moves what starts at zero off it, so that profiles matter and every gradient is alive."""
    import torch

    fixed = {*model.rebuilt_tensors()}
    with torch.no_grad():
        for name in model.shared_names():
            if name in fixed:
                continue
            parameter = model.get_parameter(name)
            noise = generator(0, 0, "", f"bench {name}").normal(0.0, _STIR, tuple(parameter.shape))
            parameter.add_(torch.tensor(noise, dtype=parameter.dtype))


def _onboarding(model: PersonalModel, config: CoordinatorConfig) -> dict[str, Any]:
    """Returns the parameters of an onboarding network that writes profiles of the usual size."""
    import torch

    from umbel.coordinator.onboarding.network import Onboarder
    from umbel.shared.onboarding import PREFIX

    encoder: Any = model.encoder
    spec, width = model.profile_spec(), int(encoder.config.hidden_size)
    network = Onboarder(config.onboarding, spec, width, len(LABELS), 0)
    sizes = {tensor.name: torch.ones(2, *tensor.shape) for tensor in spec.tensors}
    network.fit_outputs(sizes, torch.Generator().manual_seed(0))
    return {PREFIX + name: value.detach() for name, value in network.named_parameters()}
