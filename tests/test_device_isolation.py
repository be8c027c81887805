"""The device's half of umbel neither has nor tries to have the training side's libraries."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.device

FORBIDDEN = ("torch", "transformers", "optimum", "ray", "onnx", "onnxscript", "tensorboard")
FLOWER_MODULES = ("umbel.device_client.flower_app", "umbel.device_client.flower_link")
DEVICE_LIBRARIES = {
    "click", "cryptography", "keyring", "numpy", "onnxruntime", "rich", "safetensors", "tokenizers", "tuf",
    "typer", "urllib3",
}  # fmt: skip

# Imports every module of two packages in a process where the forbidden names raise. A module that tries
# `import torch` inside try/except is as wrong as one that fails: the attempt itself is reported.
PROBE = """
import importlib, json, pkgutil, sys

forbidden, skipped = set(json.loads(sys.argv[1])), set(json.loads(sys.argv[2]))
attempts = []

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            frame, importers = sys._getframe(1), []
            while frame:
                importers.append(frame.f_globals.get("__name__", ""))
                frame = frame.f_back
            # A library that looks for torch and does well without it is no concern of ours.
            importer = next((name for name in importers if not name.startswith(("importlib", "_frozen"))), "")
            if importer.startswith("umbel"):
                attempts.append(f"{importer} imports {name}")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
names, failures = [], []
for package in ("umbel.shared", "umbel.device_client"):
    found = importlib.import_module(package)
    names.append(package)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if module.name in skipped:
            continue
        names.append(module.name)
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failures.append(f"{module.name}: {error!r}")
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in forbidden)
print(json.dumps({"names": names, "failures": failures, "attempts": attempts, "loaded": loaded}))
"""


def probe(forbidden: tuple[str, ...], skipped: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Imports the device's half in a fresh process, and returns what was imported, refused and loaded."""
    command = [sys.executable, "-c", PROBE, json.dumps(forbidden), json.dumps(skipped)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    report: dict[str, list[str]] = json.loads(run.stdout)
    return report


def has_flower() -> bool:
    """Whether the `flower` extra is installed here."""
    return importlib.util.find_spec("flwr") is not None


def test_every_module_imports_where_the_training_libraries_cannot_be_imported() -> None:
    report = probe(FORBIDDEN, () if has_flower() else FLOWER_MODULES)
    assert {"umbel.shared.errors", "umbel.device_client"} <= set(report["names"])
    assert report["failures"] == []
    assert report["attempts"] == []
    assert report["loaded"] == []


def test_onnxruntime_keeps_no_events_and_looks_for_no_server(tmp_path: Path) -> None:
    """Unasked it gives the machine a number and queues events about the process, when it is imported."""
    command = "import umbel.device_client.engine, onnxruntime; print(onnxruntime.__version__)"
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-B", "-c", command],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.rglob("*")) == []


def test_flower_is_known_to_two_modules_only() -> None:
    report = probe((*FORBIDDEN, "flwr"), FLOWER_MODULES)
    assert report["failures"] == []
    assert report["attempts"] == []
    assert report["loaded"] == []


def test_the_probe_sees_a_module_that_reaches_for_a_forbidden_library() -> None:
    # numpy stands in for torch: umbel.shared.rng imports it, so a probe that works must say so.
    report = probe(("numpy",))
    assert "umbel.shared.rng imports numpy" in report["attempts"]
    assert any(failure.startswith("umbel.shared.rng:") for failure in report["failures"])


def imports_of(source: Path) -> Iterator[tuple[str, bool]]:
    """Yields (top-level name, whether it is inside a function) for every import in a file."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            name = (
                ".".join(module.split(".")[:2]) if module.startswith("umbel.") else module.partition(".")[0]
            )
            yield name, id(node) in lazy


def strangers(folder: Path, allowed: set[str], allowed_lazily: set[str]) -> list[str]:
    """Returns "file: name" for every import in `folder` that is neither the standard library nor allowed."""
    known = set(sys.stdlib_module_names) | allowed
    return [
        f"{source.relative_to(folder)}: {name}"
        for source in sorted(folder.rglob("*.py"))
        for name, lazy in imports_of(source)
        if name not in known and not (lazy and name in allowed_lazily)
    ]


def test_shared_is_numpy_and_the_standard_library(repository: Path) -> None:
    found = strangers(repository / "shared", {"numpy", "umbel.shared"}, {"pyarrow", "tokenizers"})
    # Both sides of a secure sum make their keys and masks in one place.
    assert set(found) == {"secure/primitives.py: cryptography", "secure/primitives.py: flwr"}
    lazily = {"pyarrow", "tokenizers", "cryptography", "flwr"}
    # For types only: the rest of them is inside of functions.
    eager = strangers(repository / "shared", {"numpy", "umbel.shared"}, lazily)
    assert eager == ["secure/primitives.py: cryptography"]


def test_the_device_uses_only_its_own_libraries(repository: Path) -> None:
    allowed = {*DEVICE_LIBRARIES, "umbel", "umbel.shared", "umbel.device_client"}
    found = strangers(repository / "device_client", allowed, set())
    # Flower's client is one of httpx, which comes with it.
    assert set(found) <= {"flower_app.py: flwr", "flower_link.py: flwr", "flower_link.py: httpx"}


def test_strangers_tells_lazy_from_eager(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import torch\ndef f():\n    import pyarrow.parquet\nfrom umbel.shared.x import y\n"
    )
    assert strangers(tmp_path, {"umbel.shared"}, {"pyarrow", "torch"}) == ["m.py: torch"]
