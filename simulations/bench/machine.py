"""Where a benchmark runs: what its seconds depend on besides the code."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import umbel

_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_LIBRARIES = ("onnxruntime", "numpy", "tokenizers")


def machine(rival: Mapping[str, str]) -> dict[str, str]:
    """Returns the machine in words.

    Args:
        rival: Versions of the rival's libraries; empty without a rival.
    """
    info = _cpu_info()
    flags = set(info.get("flags", "").split())
    told = {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "instructions": ", ".join(name for name in _SETS if name in flags) or "unknown",
        "cores": str(os.cpu_count() or 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "umbel": umbel.__version__,
        **{name: _version(name) for name in _LIBRARIES},
    }
    return told | {f"rival {name}": found for name, found in rival.items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_info() -> dict[str, str]:
    """Returns what Linux tells of the first core; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
