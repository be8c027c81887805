"""`umbel coordinator grow`: a finished training with more of something, and the same output for everybody."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from umbel.coordinator.artifacts import TrainedModel, rebuild
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.model import PersonalModel, build_model
from umbel.shared.checks import shown
from umbel.shared.errors import ConfigError
from umbel.shared.files import sha256_bytes
from umbel.shared.rng import integer_seed


def grow(trained: TrainedModel, changes: Mapping[str, Mapping[str, Any]]) -> TrainedModel:
    """Returns a training whose methods have grown: other sizes, the same generic and personal outputs.

    People's profiles of the smaller one fit after `umbel.shared.growth.grown_profile`.

    Args:
        trained: A finished training.
        changes: Method name -> the options that change, such as {"xpeft": {"adapters": 120}}.

    Raises:
        ConfigError: A method is not there or cannot grow like this, an option is out of range, or an
            onboarding network writes profiles of the smaller size.
        BackboneError: The backbone is not the one that was trained on.
    """
    config = _changed(trained.config, changes)
    before, after = trained.config.method_configs(), config.method_configs()
    wider = [name for name in after if after[name] != before[name]]
    if not wider:
        raise ConfigError("nothing would grow", hint="Give a method's option with another value than it has.")
    rows = {name: options.model_dump(mode="json") for name, options in after.items()}
    fingerprint = sha256_bytes(json.dumps([trained.fingerprint, "grown", rows], sort_keys=True).encode())
    backbone, smaller = rebuild(trained)
    seed = integer_seed(config.seed, 0, fingerprint, "grow")  # no growth adds what an earlier one added
    larger = build_model(backbone, config.task.kind, trained.labels, after, seed)
    if config.onboarding.steps and larger.profile_spec() != smaller.profile_spec():
        raise ConfigError(
            "the training has an onboarding network, which writes profiles of the smaller size",
            hint="Train one of the larger size, or grow one that was trained without [onboarding].",
        )
    tensors = dict(trained.tensors)
    for name in wider:
        _method(larger, name).grow_from(_method(smaller, name))
        tensors |= {
            f"methods.{name}.{key}": value.detach() for key, value in _method(larger, name).named_parameters()
        }
    report = {**trained.report, "grown_from": trained.fingerprint}
    return replace(trained, config=config, fingerprint=fingerprint, report=report, tensors=tensors)


def _changed(config: CoordinatorConfig, changes: Mapping[str, Mapping[str, Any]]) -> CoordinatorConfig:
    row = config.model_dump(mode="json")
    unknown = [f"methods.{name} is not there" for name in changes if name not in row["methods"]]
    if unknown:
        raise ConfigError("the training has no such method", unknown, f"It has {', '.join(row['methods'])}.")
    methods = {name: {**options, **changes.get(name, {})} for name, options in row["methods"].items()}
    return validated(CoordinatorConfig, {**row, "methods": methods}, "the grown configuration")


def _method(model: PersonalModel, name: str) -> Any:
    return model.methods[name]


def read_changes(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads what `--set` was given: "xpeft.adapters=120" -> {"xpeft": {"adapters": 120}}.

    Raises:
        ConfigError: Something is not METHOD.OPTION=VALUE with a value as TOML has it.
    """
    changes: dict[str, dict[str, Any]] = {}
    wrong = []
    for word in words:
        name, _, value = word.partition("=")
        method, _, option = name.strip().partition(".")
        try:
            parsed = tomllib.loads(f"value = {value}")
        except (ValueError, RecursionError):  # not TOML, or numbers and nests without end
            parsed = {}
        if not (method and option) or parsed.keys() != {"value"}:
            wrong.append(f"found '{shown(word)}'")
        else:
            changes.setdefault(method, {})[option] = parsed["value"]
    if wrong:
        raise ConfigError("--set takes METHOD.OPTION=VALUE", wrong, "For instance: --set xpeft.adapters=120")
    return changes
