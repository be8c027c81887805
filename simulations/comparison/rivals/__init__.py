"""What one would try instead of a private profile; one module each, one class in REGISTRY."""

from __future__ import annotations

from umbel.simulations.comparison.contestant import Contestant

REGISTRY: dict[str, type[Contestant]] = {}
