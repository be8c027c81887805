"""What pip gets: an sdist, a wheel made from it, and a package that works from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

PARTS = ("shared", "device_client", "coordinator", "simulations")

IMPORT_ALL = """
import importlib, pkgutil, sys, umbel
assert umbel.__file__.startswith(sys.argv[1]), umbel.__file__
# A script for an environment that has pfl-research, which no umbel has.
aside = ("__main__", "bench.rival.rounds")
names = [m.name for m in pkgutil.walk_packages(umbel.__path__, "umbel.") if not m.name.endswith(aside)]
for name in names:
    assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name
print("\\n".join(names))
"""


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built from a copy so that no old build leaks into them."""
    work = tmp_path_factory.mktemp("packaging")
    source, out = work / "source", work / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (repository / name).exists():
            shutil.copy(repository / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", *PARTS):
        shutil.copytree(repository / name, source / name, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def wheel_files(built: Path) -> set[str]:
    """The paths inside the wheel."""
    (wheel,) = built.glob("umbel-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel alone was installed."""
    (wheel,) = built.glob("umbel-*.whl")
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, timeout=120)
    return target


def run_installed(installed: Path, empty: Path, *words: str) -> str:
    """Runs python in an empty folder with the wheel first on the path, and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *words]
    run = subprocess.run(
        command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_wheel_holds_every_module_of_the_four_parts(repository: Path, wheel_files: set[str]) -> None:
    for part in PARTS:
        sources = {f"umbel/{path.relative_to(repository)}" for path in (repository / part).rglob("*.py")}
        assert f"umbel/{part}/__init__.py" in sources
        assert sources - wheel_files == set()


def test_wheel_holds_types_licence_and_the_experiments_data(repository: Path, wheel_files: set[str]) -> None:
    assert "umbel/py.typed" in wheel_files
    assert any(name.endswith("licenses/LICENSE") for name in wheel_files)
    files = [path for part in PARTS for path in (repository / part).rglob("*") if path.is_file()]
    data = {path for path in files if path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")}
    wanted = {path for path in data if path.name != "result.json"}  # figures stay in the repository
    assert {f"umbel/{path.relative_to(repository)}" for path in wanted} - wheel_files == set()
    assert not [name for name in wheel_files if name.endswith("/result.json")]


def test_nothing_but_the_package_is_shipped(built: Path, wheel_files: set[str]) -> None:
    assert {name.partition("/")[0].partition("-")[0] for name in wheel_files} == {"umbel"}
    names = [Path(name).name for name in wheel_files]
    assert not [name for name in names if name.startswith(("test_", "conftest")) or name.endswith("_test.py")]
    (sdist,) = built.glob("umbel-*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or "/tests/" in member.name]


def test_every_module_imports_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    names = run_installed(installed, tmp_path, "-c", IMPORT_ALL, str(installed)).split()
    assert {f"umbel.{part}" for part in PARTS} <= set(names)
    assert "umbel.cli" in names


def test_command_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert run_installed(installed, tmp_path, "-m", "umbel", "--version").startswith("umbel ")
    assert "simulate" in run_installed(installed, tmp_path, "-m", "umbel", "--help")
    assert list(tmp_path.iterdir()) == []
