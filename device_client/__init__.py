"""The edge: learns a private profile with onnxruntime and numpy, and predicts with it. No torch here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.device_client.household import Household
    from umbel.device_client.owner import Device
    from umbel.device_client.releases.trust import Pin
    from umbel.device_client.releases.updating import Wanted

__all__ = ["Device", "Household", "Pin", "Wanted"]

_PLACES = {
    "Device": "owner",
    "Household": "household",
    "Pin": "releases.trust",
    "Wanted": "releases.updating",
}


def __getattr__(name: str) -> Any:
    """Loads a class, and onnxruntime or tuf with it, when it is asked for."""
    if name in _PLACES:
        return getattr(import_module(f"umbel.device_client.{_PLACES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
