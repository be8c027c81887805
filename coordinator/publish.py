"""`umbel coordinator publish`: from a finished training to a release that devices can use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umbel.coordinator.artifacts import TrainedModel, rebuild, rebuild_onboarder
from umbel.coordinator.backbone import Backbone
from umbel.coordinator.graphs import onboard
from umbel.coordinator.graphs.embedded import embedded_graphs, measure_embedded
from umbel.coordinator.graphs.gelu import with_shared_erf
from umbel.coordinator.graphs.joint import export_joint, parameter_arrays
from umbel.coordinator.graphs.parity import check_parity, measure_parity
from umbel.coordinator.graphs.quantized import (
    compared,
    int8_blobs,
    random_tokens,
    sample_tokens,
    too_far,
)
from umbel.coordinator.graphs.split import by_content, in_no_file, split_graphs, weights_file
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.onboarding.shown import shown_anew
from umbel.shared.answers import Int8
from umbel.shared.checks import shown
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.files import sha256_bytes, sole_use
from umbel.shared.onboarding import MOST_CHARACTERS, PREFIX, Onboarding, Shown
from umbel.shared.profile import FloatArray
from umbel.shared.rebuilt import Rebuilt, described, digest
from umbel.shared.release import (
    BACKBONE_WEIGHTS,
    INT8_BLOBS,
    INT8_GRAPHS,
    INT8_WEIGHTS,
    SHARED_WEIGHTS,
    TOKENIZER,
    Blob,
    Manifest,
    Release,
    is_release_id,
    write_release,
)
from umbel.shared.storage import packed, unpacked

OnPhase = Callable[[str], None]


def _silent(phase: str) -> None:
    """Reports to nobody."""


def publish(
    trained: TrainedModel,
    folder: Path,
    *,
    parent: str | None = None,
    int8: bool = True,
    texts: Sequence[str] = (),
    on_phase: OnPhase = _silent,
) -> Release:
    """Writes a release of a finished training.

    Args:
        trained: The training.
        folder: Where the release goes; blobs that are there already are kept.
        parent: Id of the release that this one follows.
        int8: Whether it also has the graphs that predict and learn with the encoder's matrices in 8 bits.
        texts: Texts on which that is compared with float32; without any, random tokens are.
        on_phase: Hears which phase begins.

    Raises:
        BusyError: Another process writes to the folder.
        ReleaseError: `parent` is no release id, a tensor is not what its seed makes, torch and onnxruntime
            do not agree, or 8 bits move answers far; nothing was written.
        BackboneError: The backbone is not the one that was trained on.
        ConfigError: A pattern of `trainables` names nothing.
    """
    check_parent(parent)
    on_phase("load")
    with sole_use(folder):
        backbone, model = rebuild(trained)
        return publish_model(
            model, backbone, trained, folder, parent=parent, int8=int8, texts=texts, on_phase=on_phase
        )


def check_parent(parent: str | None) -> None:
    """Raises ReleaseError if `parent` is neither None nor a release id, before the long work begins."""
    if parent is not None and not is_release_id(parent):
        raise ReleaseError(
            "the parent is not a release id",
            [f"found '{shown(parent)}', expected 64 lower-case hex digits"],
            "It is the id that 'umbel coordinator publish --json' printed for that release.",
        )


def publish_model(
    model: PersonalModel,
    backbone: Backbone,
    trained: TrainedModel,
    folder: Path,
    *,
    parent: str | None = None,
    int8: bool = True,
    texts: Sequence[str] = (),
    on_phase: OnPhase = _silent,
) -> Release:
    """Writes a release of a model that is in memory; see `publish`."""
    config = trained.config
    network = rebuild_onboarder(trained, model)
    parameters = {} if network is None else onboard.parameter_arrays(network)
    trainables = trainable_names(model, config.trainables, list(parameters))
    names = [name for name in trainables if name not in parameters]
    lessons = [name for name in trainables if name in parameters]
    max_tokens = min(config.backbone.max_tokens, model.longest_text(backbone.shape))
    storage = model.stored_tensors()
    model = _as_stored(model, storage)
    arrays = parameter_arrays(model)
    rebuilt = _rebuilt(model, arrays)
    on_phase("export graphs")
    joint = export_joint(model, names, backbone.shape)
    encoder = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
    shared = {name: array for name, array in arrays.items() if name not in {*encoder, *rebuilt}}
    for name, kind in storage.items():
        shared |= packed(name, arrays[name], kind)
    shared |= parameters
    files = {n: weights_file(n, own) for n, own in ((BACKBONE_WEIGHTS, encoder), (SHARED_WEIGHTS, shared))}
    outside = in_no_file({name: arrays[name] for name in (*rebuilt, *storage)})
    private = [tensor.name for tensor in model.profile_spec().tensors]
    shapes = {name: arrays[name].shape for name in names}
    placed = [by_content(files[BACKBONE_WEIGHTS]), files[SHARED_WEIGHTS], outside]
    cut = split_graphs(joint, private, shapes, placed)
    graphs = with_shared_erf(cut)
    own = {} if network is None else onboard.onboarding_graphs(network, files[SHARED_WEIGHTS], lessons)
    behind = embedded_graphs(model, shapes, placed) if model.acts_on_embeddings() else {}
    on_phase("compare torch and onnxruntime")
    # What is compared are the bytes that will be written, weights and what is rebuilt included.
    written = _weights({name: file.data for name, file in files.items()}, storage, rebuilt)
    plain = {name: array for name, array in written.items() if not name.startswith(PREFIX)}
    parity = measure_parity(model, graphs, plain, names, max_tokens)
    parity |= measure_embedded(model, behind, plain, names, max_tokens)
    if network is not None:
        parity |= onboard.measure_onboarding(network, own, written)
    check_parity(parity)
    small: dict[str, bytes] = {}
    found = None
    if int8:
        on_phase("int8")
        tokens = sample_tokens(backbone, texts, max_tokens)
        # Of the graphs as they were cut: in 8 bits, learning rounds what predicting rounds.
        small, found = int8_blobs(cut, written, tokens, model.profile_spec())
    on_phase("write")
    blobs = {f"{name}.onnx": data for name, data in (graphs | behind | own).items()} | small
    blobs |= {name: file.data for name, file in files.items()} | {TOKENIZER: backbone.tokenizer_json}
    manifest = Manifest(
        parent=parent,
        task=config.task.kind,
        labels=trained.labels,
        backbone={"name": _public_name(backbone), "family": backbone.family, "sha256": backbone.sha256},
        methods={name: options.model_dump(mode="json") for name, options in config.method_configs().items()},
        max_tokens=max_tokens,
        profile=model.profile_spec(),
        recipe=trained.recipe,
        trainables={name: tuple((arrays | parameters)[name].shape) for name in trainables},
        parity={name: float(f"{value:.2e}") for name, value in parity.items()},
        blobs=_described(blobs),
        rebuilt=rebuilt,
        storage=storage,
        onboarding=None if network is None else _onboarding(trained),
        int8=found,
        calibration=trained.calibration,
    )
    return write_release(folder, manifest, blobs)


def _onboarding(trained: TrainedModel) -> Onboarding:
    """Returns what is shown of each prototype; nothing where the training has kept nothing."""
    count = trained.config.onboarding.prototypes
    rows = (*trained.report.get("prototypes", ()), *[()] * count)[:count]
    return Onboarding(
        tuple(tuple(Shown(text[:MOST_CHARACTERS], label) for text, label in row) for row in rows)
    )


def publish_update(release: Release, values: Mapping[str, FloatArray], folder: Path) -> Release:
    """Writes the release that follows another after rounds: the same graphs, other values of its trainables.

    The graphs take trainables as inputs, so they need no new export; only one blob and the manifest change.
    If rounds have trained onboarding, what shows each prototype is chosen anew.

    Args:
        release: The release that the rounds started from.
        values: The trainables after the rounds, by name.
        folder: Where the new release goes.

    Raises:
        ReleaseError: `values` are not the release's trainables, or not finite.
    """
    from safetensors.numpy import load_file

    manifest = release.manifest
    _check_values(values, manifest.trainables)
    shared: dict[str, Any] = load_file(release.blob_path(SHARED_WEIGHTS))
    shared |= {name: np.asarray(value, np.float32) for name, value in values.items()}
    blobs = {name: release.blob_path(name).read_bytes() for name in manifest.blobs}
    blobs[SHARED_WEIGHTS] = weights_file(SHARED_WEIGHTS, shared).data
    onboarding = manifest.onboarding
    if any(name.startswith(PREFIX) for name in values):
        weights = _weights(blobs, manifest.storage, manifest.rebuilt)
        onboarding = shown_anew(manifest, blobs, weights)
    int8 = None if manifest.int8 is None else _int8_again(manifest, blobs)
    if int8 is None:
        blobs = {name: data for name, data in blobs.items() if name not in INT8_BLOBS}
    updated = replace(
        manifest, parent=release.release_id, blobs=_described(blobs), onboarding=onboarding, int8=int8
    )
    return write_release(folder, updated, blobs)


def _int8_again(manifest: Manifest, blobs: Mapping[str, bytes]) -> Int8 | None:
    """Compares the graphs in 8 bits again, on random tokens; None if they are too far from float32 now."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    weights = _weights(blobs, manifest.storage, manifest.rebuilt) | load(blobs[INT8_WEIGHTS])
    vocabulary = Tokenizer.from_str(blobs[TOKENIZER].decode()).get_vocab_size()
    tokens = random_tokens(vocabulary, manifest.max_tokens)
    plain = {name: blobs[f"{name}.onnx"] for name in INT8_GRAPHS}
    small = {name: blobs[f"{own}.onnx"] for name, own in INT8_GRAPHS.items()}
    found = compared(plain, small, weights, tokens, manifest.profile)
    return None if too_far(found) else found


def _weights(
    blobs: Mapping[str, bytes], storage: Mapping[str, str], rebuilt: Mapping[str, Rebuilt]
) -> dict[str, Any]:
    """Returns every weight of a release by name, as devices will have it."""
    from safetensors.numpy import load

    written: dict[str, Any] = load(blobs[BACKBONE_WEIGHTS]) | load(blobs[SHARED_WEIGHTS])
    written, _ = unpacked(written, storage)
    return written | {name: tensor.values() for name, tensor in rebuilt.items()}


def _rebuilt(model: PersonalModel, arrays: Mapping[str, FloatArray]) -> dict[str, Rebuilt]:
    """Describes the tensors that a seed stands for, once it is sure that it does."""
    found = {name: described(source) for name, source in model.rebuilt_tensors().items()}
    wrong = [name for name, tensor in found.items() if digest(arrays[name]) != tensor.sha256]
    if wrong:
        raise ReleaseError(
            "tensors of the model are not what their seeds make, so nothing was published",
            wrong,
            "Something has changed them since the model was built; train again.",
        )
    return found


@torch.no_grad()
def _as_stored(model: PersonalModel, storage: Mapping[str, str]) -> PersonalModel:
    """Returns the model with the values that devices will have; a copy, if they are other ones."""
    if not storage:
        return model
    twin, problems = copy.deepcopy(model), []
    for name, kind in storage.items():
        parameter = twin.get_parameter(name)
        exact: FloatArray = parameter.detach().cpu().float().numpy()
        rounded = unpacked(packed(name, exact, kind), {name: kind})[0][name]
        problems += (
            [] if np.isfinite(rounded).all() else [f"{name}: holds values that are not finite as {kind}"]
        )
        parameter.copy_(torch.from_numpy(rounded))
    if problems:
        raise ReleaseError("tensors cannot be stored as configured, so nothing was published", problems)
    return twin


def _public_name(backbone: Backbone) -> str:
    """Leaves out where the coordinator keeps its backbones; the hash says which one it is."""
    return Path(backbone.name).name if Path(backbone.name).is_dir() else backbone.name


def _check_values(values: Mapping[str, FloatArray], trainables: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name}" for name in trainables if name not in values]
    for name, value in values.items():
        if name not in trainables:
            problems.append(f"unknown: {name}")
        elif value.shape != trainables[name]:
            problems.append(f"{name}: shape is {value.shape}, expected {trainables[name]}")
        elif not (np.abs(value) <= np.finfo(np.float32).max).all():
            problems.append(f"{name}: holds values that are not finite")
    if problems:
        raise ReleaseError("these tensors are not the release's trainables", problems)


def trainable_names(
    model: PersonalModel, patterns: tuple[str, ...], onboarding: Sequence[str] = ()
) -> list[str]:
    """Returns the shared parameters that match the patterns: the model's, then the onboarding network's.

    The encoder's are never among them, nor are those that a release holds as a seed or rounded.

    Args:
        model: The model.
        patterns: With * and ?.
        onboarding: Names of the onboarding network's parameters; none if there is no such network.

    Raises:
        ConfigError: A pattern matches nothing that rounds could train.
    """
    fixed = {*model.rebuilt_tensors(), *model.stored_tensors()}
    shared = [*(name for name in model.shared_names() if name not in fixed), *onboarding]
    idle = [pattern for pattern in patterns if not any(_matches(name, pattern) for name in shared)]
    if idle:
        known = [any(_matches(name, pattern) for name in fixed) for pattern in idle]
        words = ("nothing", "only tensors that a release holds as a seed or rounded")
        raise ConfigError(
            "trainables names tensors that the model cannot train",
            [f"'{pattern}' matches {words[there]}" for pattern, there in zip(idle, known, strict=True)],
            f"Shared tensors look like: {', '.join(shared[:3])}, ...",
        )
    return [name for name in shared if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    """Says whether a pattern names a tensor; the onboarding network's are named by their own prefix only."""
    return fnmatchcase(name, pattern) and name.startswith(PREFIX) == pattern.startswith(PREFIX)


def _described(blobs: Mapping[str, bytes]) -> dict[str, Blob]:
    return {name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()}
