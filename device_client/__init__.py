"""The edge: learns a private profile with onnxruntime and numpy, and predicts with it. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.device_client.household import Household
    from umbel.device_client.owner import Device

__all__ = ["Device", "Household"]


def __getattr__(name: str) -> Any:
    """Loads `Device` or `Household`, and onnxruntime with it, when it is asked for."""
    if name == "Device":
        from umbel.device_client.owner import Device

        return Device
    if name == "Household":
        from umbel.device_client.household import Household

        return Household
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
