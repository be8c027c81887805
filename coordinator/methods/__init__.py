"""The methods, one file each. To add one: its file, its test, and its line in `REGISTRY`."""

from __future__ import annotations

from importlib import import_module

from umbel.coordinator.methods.base import AbstractMethod
from umbel.shared.errors import ConfigError

REGISTRY: dict[str, str] = {
    "headbias": "umbel.coordinator.methods.headbias:HeadBias",
    "headfactors": "umbel.coordinator.methods.headfactors:HeadFactors",
    "loratrf": "umbel.coordinator.methods.loratrf:LoRATRF",
    "lopa": "umbel.coordinator.methods.lopa:LoPA",
    "pha": "umbel.coordinator.methods.pha:PHA",
    "plora": "umbel.coordinator.methods.plora:PLoRA",
    "xpeft": "umbel.coordinator.methods.xpeft:XPEFT",
}


def method_class(name: str) -> type[AbstractMethod]:
    """Returns the class of a registered method.

    Raises:
        ConfigError: No method has this name.
    """
    if name not in REGISTRY:
        raise ConfigError(
            f"there is no method '{name}'", hint=f"Known methods: {', '.join(sorted(REGISTRY))}."
        )
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[AbstractMethod] = getattr(import_module(module), attribute)
    assert issubclass(found, AbstractMethod)
    return found
