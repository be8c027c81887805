"""The rules by which changes become one, a file each. To add one: its file, its test, and its line here."""

from __future__ import annotations

from importlib import import_module

from umbel.coordinator.federation.aggregation.base import AbstractRule
from umbel.shared.errors import ConfigError

REGISTRY: dict[str, str] = {
    "mean": "umbel.coordinator.federation.aggregation.mean:Mean",
    "median": "umbel.coordinator.federation.aggregation.median:Median",
    "trimmed-mean": "umbel.coordinator.federation.aggregation.trimmed_mean:TrimmedMean",
    "krum": "umbel.coordinator.federation.aggregation.krum:Krum",
    "multi-krum": "umbel.coordinator.federation.aggregation.krum:MultiKrum",
}


def rule_class(name: str) -> type[AbstractRule]:
    """Returns the class of a registered rule.

    Raises:
        ConfigError: No rule has this name.
    """
    if name not in REGISTRY:
        raise ConfigError(f"there is no rule '{name}'", hint=f"Known rules: {', '.join(REGISTRY)}.")
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[AbstractRule] = getattr(import_module(module), attribute)
    assert issubclass(found, AbstractRule)
    return found
