"""What one would try instead of a private profile; one module each, one class in REGISTRY."""

from __future__ import annotations

from umbel.simulations.comparison.contestant import Contestant
from umbel.simulations.comparison.rivals.adapter import Adapter
from umbel.simulations.comparison.rivals.counts import Counts
from umbel.simulations.comparison.rivals.fedavg import FedAvg
from umbel.simulations.comparison.rivals.generic import Generic
from umbel.simulations.comparison.rivals.headbias import HeadBias
from umbel.simulations.comparison.rivals.knn import NearestNeighbours
from umbel.simulations.comparison.rivals.lora import LoRA
from umbel.simulations.comparison.rivals.prompt import Prompt
from umbel.simulations.comparison.rivals.retrieval import Retrieval
from umbel.simulations.comparison.rivals.shared_lora import SharedLoRA
from umbel.simulations.comparison.rivals.shared_loratrf import SharedLoRATRF

_CLASSES: tuple[type[Contestant], ...] = (
    Generic,
    Counts,
    HeadBias,
    LoRA,
    Adapter,
    Prompt,
    NearestNeighbours,
    Retrieval,
    FedAvg,
    SharedLoRA,
    SharedLoRATRF,
)

REGISTRY: dict[str, type[Contestant]] = {made.name: made for made in _CLASSES}
