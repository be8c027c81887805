"""The edge: learns a private profile with onnxruntime and numpy, and predicts with it. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.device_client.owner import Device

__all__ = ["Device"]


def __getattr__(name: str) -> Any:
    """Loads `Device`, and onnxruntime with it, when it is asked for."""
    if name == "Device":
        from umbel.device_client.owner import Device

        return Device
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
