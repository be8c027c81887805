"""Opens graphs for torch where an engine would open them for onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, final

import numpy as np
import onnx
import torch

from umbel.device_client.engine import opens_with
from umbel.shared.checks import shown
from umbel.shared.errors import ConfigError
from umbel.shared.onboarding import PREFIX
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.simulations.torch_graphs.session import TorchSession

TORCH = "torch"

_ready: dict[str, int] = {}  # threads, by what graphs are computed with


@final
class TorchOpener:
    """Makes the sessions of a release; its weights are moved to the device once for all of them."""

    def __init__(self, device: torch.device, *, bfloat16: bool = False):
        """Moves nothing yet.

        Args:
            device: Where to compute.
            bfloat16: Whether products are of bfloat16's numbers.
        """
        self._device = device
        self._bfloat16 = bfloat16
        self._release = ""
        self._moved: dict[str, torch.Tensor] = {}

    def __call__(
        self,
        release: Release,
        graph: str,
        weights: Mapping[str, FloatArray],
        placed: Collection[str],
        options: Any,
    ) -> TorchSession:
        """Opens a graph; see `umbel.device_client.engine.Opener`."""
        del placed, options
        if release.release_id != self._release:
            self._release, self._moved = release.release_id, {}
        model = onnx.load_from_string(release.blob_path(f"{graph}.onnx").read_bytes())
        own = {tensor.name for tensor in model.graph.initializer}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights are mapped from a file and cannot be written
            for name in own & set(weights):
                if name not in self._moved:
                    array = np.ascontiguousarray(weights[name])
                    self._moved[name] = torch.from_numpy(array).to(self._device)
        changing = {tensor.name for tensor in release.manifest.profile.tensors}
        if not graph.startswith(("predict", "learn")):
            changing |= {name for name in release.manifest.trainables if not name.startswith(PREFIX)}
        return TorchSession(model, self._moved, self._device, changing=changing, bfloat16=self._bfloat16)


def compute_with_torch(compute: str, *, threads: int = 1) -> None:
    """Lets engines of this process that are opened for `compute` compute with torch; nothing the next time.

    Args:
        compute: As in `opener_of`.
        threads: Of torch's operators on a CPU.

    Raises:
        ConfigError: Torch has no such device here.
    """
    if _ready.get(compute) != threads:
        opener = opener_of(compute)
        torch.set_num_threads(threads)
        opens_with(compute, opener)
        _ready[compute] = threads


def opener_of(compute: str) -> TorchOpener:
    """Returns what opens graphs for a device of torch.

    Args:
        compute: "torch:DEVICE" or "torch:DEVICE:bfloat16", such as "torch:cuda", "torch:cpu", "torch:cuda:1".

    Raises:
        ConfigError: Torch has no such device here.
    """
    kind, _, rest = compute.partition(":")
    name, bfloat16 = rest.removesuffix(":bfloat16"), rest.endswith(":bfloat16")
    problem = "" if kind == TORCH and name else f"found '{shown(compute)}'"
    device = torch.device("cpu")
    if not problem:
        try:
            device = torch.device(name)
            torch.ones(1, device=device).item()  # "meta" takes tensors, and has no numbers of them
        except Exception as error:
            problem = f"{shown(name)}: {str(error).splitlines()[0]}"
    if problem:
        raise ConfigError(
            "torch cannot compute there",
            [problem],
            "Say torch:cpu, torch:cuda or torch:cuda:1; torch:cuda:bfloat16 for products in 16 bits.",
        )
    return TorchOpener(device, bfloat16=bfloat16)
