"""What a device's libraries take: counted by hand on an installation that is made up of known bytes."""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from umbel.simulations.bench.footprint import Size, device_sizes, sizes_of


def install(folder: Path, name: str, files: dict[str, int], *requires: str) -> None:
    """Lays down a distribution as pip does, with files of so many bytes."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    needed = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needed}")
    for path, size in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"#" * size)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "pycache_prefix", None)  # where Python keeps bytecode unless told otherwise
    install(tmp_path, "aaa", {"aaa/x.py": 100, "aaa/y.so": 1000}, "bbb", 'ccc; extra == "more"')
    install(tmp_path, "bbb", {"bbb.py": 10}, "aaa", 'ddd; python_version < "3"')
    install(tmp_path, "ccc", {"ccc.py": 1})
    cache = Path(importlib.util.cache_from_source(str(tmp_path / "aaa" / "x.py")))
    cache.parent.mkdir()
    cache.write_bytes(b"#" * 7)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_distribution_counts_with_all_that_it_requires(site: Path) -> None:
    assert sizes_of("aaa") == [Size("aaa", 1100, 7), Size("bbb", 10, 0)]
    assert sizes_of("aaa", frozenset({"more"})) == [
        Size("aaa", 1100, 7),
        Size("bbb", 10, 0),
        Size("ccc", 1, 0),
    ]


def test_bytecode_that_pip_lists_is_not_counted_twice(site: Path) -> None:
    record = site / "aaa-1.dist-info" / "RECORD"
    cache = Path(importlib.util.cache_from_source(str(site / "aaa" / "x.py"))).relative_to(site)
    record.write_text(record.read_text() + f"{cache},,\n")
    assert sizes_of("aaa")[0] == Size("aaa", 1100, 7)


def test_what_is_not_installed_is_said(site: Path) -> None:
    with pytest.raises(PackageNotFoundError):
        sizes_of("eee")


def test_a_device_has_onnxruntime_and_no_torch() -> None:
    found = {size.name.lower(): size for size in device_sizes()}
    assert {"umbel", "onnxruntime", "numpy", "cryptography"} <= set(found)
    assert not {"torch", "transformers", "flwr", "onnx"} & set(found)
    assert found["umbel"].shipped > 500_000
