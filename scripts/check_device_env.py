"""Proves that this environment is a device's: what runs there must come from the device extra alone."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# What only the other side may have. If one of these were here, the device's tests would prove nothing.
ABSENT = (
    "flwr",
    "matplotlib",
    "onnx",
    "onnxscript",
    "optimum",
    "pyarrow",
    "ray",
    "torch",
    "transformers",
)
PRESENT = (
    "cryptography",
    "keyring",
    "numpy",
    "onnxruntime",
    "rich",
    "safetensors",
    "tokenizers",
    "tuf",
    "typer",
    "umbel",
)
# Loaded where they are needed, not when a module of the device is imported.
_OTHERS = (
    "flower_app",
    "flower_link",
    "__init__",
    "__main__",
)  # with the extra `flower`, or nothing of their own
_LAZY = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.kdf.scrypt",
    "keyring",
    "onnxruntime",
    "rich.console",
    "rich.progress",
    "rich.table",
    "safetensors.numpy",
    "tokenizers",
    "tuf.ngclient",
)
_LARGEST = 10


def main() -> int:
    """Returns 0 if this is a device's environment, and 1 after saying everything that is wrong with it."""
    problems = [f"{name} can be imported here" for name in ABSENT if importlib.util.find_spec(name)]
    problems += [f"{name} is missing" for name in PRESENT if not importlib.util.find_spec(name)]
    problems += _command_problems()
    problems += [] if problems else _size_problems()
    for problem in problems:
        print(f"check_device_env: {problem}", file=sys.stderr)
    if not problems:
        print(f"a device's environment: none of {', '.join(ABSENT)}; the umbel command works without them")
    return 1 if problems else 0


def _command_problems() -> list[str]:
    problems = []
    for words in (["--help"], ["device", "--help"]):
        run = _umbel(*words)
        if run.returncode != 0:
            problems.append(f"`umbel {' '.join(words)}` ended with {run.returncode}: {run.stderr.strip()}")
    run = _umbel("coordinator", "--help")
    # Its help may do without torch; if not, the message must name the remedy.
    if run.returncode != 0 and "pip install 'umbel[coordinator]'" not in run.stderr:
        problems.append(f"`umbel coordinator` ended with {run.returncode}, no remedy: {run.stderr.strip()}")
    return problems


def _size_problems() -> list[str]:
    """Returns what is wrong with the size of what the device extra brings; says the size where nothing is."""
    from umbel.simulations.bench.footprint import LIMIT_BYTES, device_sizes

    sizes, bytecode = device_sizes(), _bytecode_of_use()
    shipped = sum(size.shipped for size in sizes)
    whole = shipped + bytecode
    told = (
        f"{whole / 1e6:.1f} MB: {shipped / 1e6:.1f} as shipped, {bytecode / 1e6:.1f} bytecode of what is used"
    )
    if whole <= LIMIT_BYTES:
        print(f"what the device extra brings: {len(sizes)} packages, {told}")
        return []
    sizes.sort(key=lambda size: -size.shipped)
    largest = ", ".join(f"{size.name} {size.shipped / 1e6:.1f}" for size in sizes[:_LARGEST])
    return [
        f"what the device extra brings takes {told}; expected {LIMIT_BYTES / 1e6:.0f} at most. "
        f"The largest as shipped, in MB: {largest}"
    ]


def _bytecode_of_use() -> int:
    """Returns the bytes of bytecode that Python keeps once a device has used all that it has."""
    names = [f"umbel.{path.stem}" for path in Path("src/umbel").glob("[a-z]*.py")]
    for part in ("device_client", "shared"):
        found = sorted(Path("src/umbel", part).rglob("*.py"))
        names += [".".join(path.relative_to("src").with_suffix("").parts) for path in found]
    wanted = [name for name in (*names, *_LAZY) if not name.endswith(_OTHERS)]
    with tempfile.TemporaryDirectory() as folder:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-c", "; ".join(f"import {name}" for name in wanted)]
        subprocess.run(command, check=True, env=variables | {"PYTHONPYCACHEPREFIX": folder})
        # Python's own modules are kept there as well, and are not what the extra brings.
        own = Path(folder, *Path(sysconfig.get_path("stdlib")).parts[1:])
        return sum(
            path.stat().st_size
            for path in Path(folder).rglob("*.pyc")
            if "site-packages" in path.parts or not path.is_relative_to(own)
        )


def _umbel(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "umbel", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


if __name__ == "__main__":
    sys.exit(main())
