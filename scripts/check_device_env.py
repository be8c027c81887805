"""Proves that this environment is a device's: what runs there must come from the device extra alone."""

import importlib.util
import subprocess
import sys

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


def main() -> int:
    """Returns 0 if this is a device's environment, and 1 after saying everything that is wrong with it."""
    problems = [f"{name} can be imported here" for name in ABSENT if importlib.util.find_spec(name)]
    problems += [f"{name} is missing" for name in PRESENT if not importlib.util.find_spec(name)]
    problems += _command_problems()
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


def _umbel(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "umbel", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


if __name__ == "__main__":
    sys.exit(main())
