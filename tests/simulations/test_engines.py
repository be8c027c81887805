"""The engines on a small real release: equal numbers, resumed runs, and what a client process holds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from tests.builders import write_devices

from umbel.coordinator.federation.journal import Journal
from umbel.coordinator.server_app import serve
from umbel.shared.errors import ConfigError, ExampleError, ReleaseError, TrainingError
from umbel.shared.release import Release
from umbel.simulations.engines import RoundSettings, RoundsResult, run_rounds
from umbel.simulations.engines.flower import stop_without_ray
from umbel.simulations.engines.serial import SerialGrid, raising, replying, run_serial

SETTINGS = RoundSettings(
    rounds=2, clients=3, seed=5, evaluate_clients=3, local_rate=0.5, clip=0.5, secure=False
)
EXAMPLES = [5, 6, 2, 9, 4]
ACTOR_DIED = (
    "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"
)

# Runs rounds in a process of its own and tells of each; the test may end it in between.
RUN = """
import json, sys
from pathlib import Path
from umbel.simulations.engines import RoundSettings, run_rounds

engine, release, devices, out, total, config, compute = sys.argv[1:]
settings = RoundSettings.from_run_config(json.loads(config))
try:
    run_rounds(
        engine, release_folder=Path(release), devices_folder=Path(devices), clients_total=int(total),
        settings=settings, out=Path(out), compute=compute or None,
        on_round=lambda record: print(record.round, flush=True),
    )
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_devices(tmp_path_factory.mktemp("devices"), EXAMPLES)


@pytest.fixture(scope="module")
def serial(tiny_release: Release, devices: Path, tmp_path_factory: pytest.TempPathFactory) -> RoundsResult:
    return run("serial", tiny_release, devices, tmp_path_factory.mktemp("serial"))


def run(
    engine: str,
    release: Release,
    devices: Path,
    out: Path,
    settings: RoundSettings = SETTINGS,
    **more: object,
) -> RoundsResult:
    return run_rounds(
        engine,
        release_folder=release.folder,
        devices_folder=devices,
        clients_total=len(EXAMPLES),
        settings=settings,
        out=out,
        **more,  # type: ignore[arg-type]
    )


def command(
    engine: str, release: Release, devices: Path, out: Path, settings: RoundSettings, compute: str = ""
) -> list[str]:
    config = json.dumps(settings.as_run_config())
    arguments = [engine, str(release.folder), str(devices), str(out), str(len(EXAMPLES)), config, compute]
    return [sys.executable, "-c", RUN, *arguments]


def assert_equal(found: RoundsResult, expected: RoundsResult) -> None:
    assert set(found.trainables) == set(expected.trainables)
    for name, values in expected.trainables.items():
        np.testing.assert_array_equal(found.trainables[name], values)
    records = [[replace(record, seconds=0.0) for record in result.rounds] for result in (found, expected)]
    assert records[0] == records[1]


def loaded_by(pattern: str) -> Iterator[str]:
    """Yields the memory map of every process whose command holds `pattern`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if pattern in (folder / "cmdline").read_text():
                yield (folder / "maps").read_text()
        except OSError:
            continue


def test_rounds_move_the_shared_tensors_and_leave_a_profile_in_each_home_that_trained(
    tiny_release: Release, devices: Path, serial: RoundsResult
) -> None:
    assert [(record.round, record.clients, record.failures) for record in serial.rounds] == [
        (1, 3, 0),
        (2, 3, 0),
    ]
    assert all(0 <= (record.seen_accuracy or -1) <= 1 for record in serial.rounds)
    assert set(serial.trainables) == set(tiny_release.manifest.trainables)
    from safetensors.numpy import load_file

    before = load_file(tiny_release.blob_path("shared.safetensors"))
    moved = [name for name, values in serial.trainables.items() if not np.array_equal(values, before[name])]
    assert set(moved) == set(serial.trainables)
    profiles = list(devices.glob("*/profile-*.umbel"))
    assert 3 <= len(profiles) <= len(EXAMPLES)
    assert {path.stat().st_size for path in profiles} == {tiny_release.manifest.profile.file_bytes}


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_flower_gives_the_same_numbers_and_its_clients_hold_no_torch(
    tiny_release: Release, devices: Path, serial: RoundsResult, tmp_path: Path
) -> None:
    """Bit-equal: the same graphs, sums in one order. In a process of its own, as Ray leaves files open."""
    process = started(command("flower", tiny_release, devices, tmp_path, SETTINGS))
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "1\n"
        libraries = list(loaded_by("ray::ClientAppActor"))
        rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert rest.startswith("2\n[")  # and no word of Flower's or Ray's
    journal = Journal(tmp_path, tiny_release.release_id, len(EXAMPLES), SETTINGS)
    found = journal.read()
    assert found is not None
    assert_equal(found, serial)
    assert any("onnxruntime" in maps for maps in libraries)
    assert not [maps for maps in libraries if "libtorch" in maps]


@pytest.mark.slow
def test_torch_runs_the_graphs_in_flowers_processes(
    tiny_release: Release, devices: Path, serial: RoundsResult, tmp_path: Path
) -> None:
    subprocess.run(
        command("flower", tiny_release, devices, tmp_path, SETTINGS, "torch:cpu"), check=True, timeout=120
    )
    found = Journal(tmp_path, tiny_release.release_id, len(EXAMPLES), SETTINGS, compute="torch:cpu").read()
    assert found is not None
    assert [record.clients for record in found.rounds] == [record.clients for record in serial.rounds]
    gaps = [np.abs(found.trainables[name] - values).max() for name, values in serial.trainables.items()]
    assert 0 < max(gaps) < 1e-5  # torch's sums are in another order: it was torch that made them


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tiny_release: Release, devices: Path, serial: RoundsResult, tmp_path: Path
) -> None:
    longer = replace(SETTINGS, rounds=50)
    process = started(command("serial", tiny_release, devices, tmp_path, longer))
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=20) == -signal.SIGKILL
    reached = len(json.loads((tmp_path / "rounds.json").read_text())["rounds"])
    assert 1 <= reached < 50
    settings = replace(SETTINGS, rounds=reached + 1)
    found = run("serial", tiny_release, devices, tmp_path, settings)
    assert_equal(found, run("serial", tiny_release, devices, tmp_path / "whole", settings))
    assert_equal(RoundsResult(found.rounds[:2], serial.trainables), serial)


def test_a_client_process_never_loads_torch(tiny_release: Release, devices: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, rounds=1)
    done = subprocess.run(
        command("serial", tiny_release, devices, tmp_path, settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "onnxruntime" in modules
    assert modules.isdisjoint({"torch", "transformers", "optimum", "onnx", "ray"})


def test_a_broken_home_costs_one_device_and_tells_only_what_kind_of_error(
    tiny_release: Release, tmp_path: Path
) -> None:
    devices = write_devices(tmp_path / "devices", EXAMPLES)
    (devices / "000002" / "examples.jsonl").write_text(
        '{"user": "ann", "text": "a secret", "label": "perhaps"}\n'
    )
    settings = replace(SETTINGS, rounds=1, clients=5, evaluate_clients=0)
    record = run("serial", tiny_release, devices, tmp_path / "out", settings).rounds[0]
    assert (record.clients, record.failures) == (4, 1)
    assert record.notes == ("round 1, train, device 000002: ExampleError",)


def test_the_debug_path_raises_where_it_breaks(tiny_release: Release, tmp_path: Path) -> None:
    devices = write_devices(tmp_path / "devices", EXAMPLES)
    (devices / "000002" / "examples.jsonl").unlink()
    config = replace(SETTINGS, clients=5).as_run_config() | {
        "release": str(tiny_release.folder), "devices": str(devices), "out": str(tmp_path / "out"),
        "population": 5,
    }  # fmt: skip
    with pytest.raises(ExampleError) as error:
        run_serial(config, 5, 1, None, respond=raising)
    assert error.value.__notes__ == ["round 1, stage train, device 000002"]


def test_a_run_that_is_asked_again_is_not_run_again_and_cannot_be_shortened(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    first = run("serial", tiny_release, devices, tmp_path)
    again = run("serial", tiny_release, empty_homes(tmp_path), tmp_path)
    assert again.rounds == first.rounds
    assert_equal(again, first)
    with pytest.raises(ConfigError, match="is at round 2, past round 1"):
        run("serial", tiny_release, devices, tmp_path, replace(SETTINGS, rounds=1))


def empty_homes(folder: Path) -> Path:
    """Returns homes that are empty: no device could do any work there."""
    for number in range(len(EXAMPLES)):
        (folder / "empty" / f"{number:06d}").mkdir(parents=True)
    return folder / "empty"


def test_a_wrong_release_is_refused(devices: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no release at"):
        run_rounds(
            "serial", release_folder=tmp_path, devices_folder=devices, clients_total=5, settings=SETTINGS,
            out=tmp_path / "out",
        )  # fmt: skip


def test_missing_homes_and_engines_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run_rounds(
            "magic", release_folder=tmp_path, devices_folder=tmp_path, clients_total=1, settings=SETTINGS,
            out=tmp_path, workers=0,
        )  # fmt: skip
    assert error.value.problems == (
        "engine is 'magic', expected one of cohort, flower, serial",
        "workers is 0, expected 1 or more",
        f"no such home: {tmp_path / '000000'}",
    )


def test_the_app_folder_names_every_setting_with_its_default() -> None:
    import tomllib

    from umbel.simulations.engines.flower import APP_FOLDER

    config = tomllib.loads((APP_FOLDER / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    paths = {"release": "", "devices": "", "out": "", "population": 0, "people": "", "threads": 1}
    assert config == {**RoundSettings().as_run_config(), **paths, "compute": ""}
    assert (APP_FOLDER / "LICENSE").is_file()


@pytest.mark.slow
def test_flower_passes_errors_on(tiny_release: Release, devices: Path, tmp_path: Path) -> None:
    Journal(tmp_path, "0" * 64, len(EXAMPLES), SETTINGS).write(RoundsResult([], {}))
    process = started(command("flower", tiny_release, devices, tmp_path, SETTINGS))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "belongs to a run with other settings" in output
    assert "release was" in output


@pytest.mark.slow
def test_ctrl_c_ends_flower_and_keeps_what_was_finished(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    longer = replace(SETTINGS, rounds=500)
    process = started(command("flower", tiny_release, devices, tmp_path, longer))
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert len(json.loads((tmp_path / "rounds.json").read_text())["rounds"]) >= 1
    time.sleep(1)
    assert not list(loaded_by("ray::ClientAppActor"))


def descendants(pattern: str) -> list[int]:
    """Returns the processes whose command holds `pattern`, and all that they started."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if pattern in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
def test_flwr_run_of_the_thin_app_gives_the_same_numbers(
    tiny_release: Release, devices: Path, serial: RoundsResult, repository: Path, tmp_path: Path
) -> None:
    """`flwr run` leaves a SuperLink behind; it and all that it started are ended here, by their ids."""
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    config = SETTINGS.as_run_config() | {
        "release": str(tiny_release.folder), "devices": str(devices), "out": str(tmp_path / "out"),
        "population": len(EXAMPLES),
    }  # fmt: skip
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    nodes = f"num-supernodes={len(EXAMPLES)} client-resources-num-cpus=1 init-args-num-cpus=1"
    try:
        done = subprocess.run(
            [folder / "flwr", "run", repository / "simulations" / "flower_app", "--stream",
             "--run-config", overrides, "--federation-config", nodes],
            env=environment, capture_output=True, text=True, timeout=180, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        left = descendants(str(tmp_path / "flwr"))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2: 3 devices" in done.stdout
    found = Journal(tmp_path / "out", tiny_release.release_id, len(EXAMPLES), SETTINGS).read()
    assert found is not None
    assert_equal(found, serial)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


def test_rounds_train_the_onboarding_network_and_a_release_follows(
    taught_release: Release, devices: Path, tmp_path: Path
) -> None:
    """What a new person's first profile is depends on what others' devices have taught."""
    from umbel.coordinator.publish import publish_update
    from umbel.device_client.device import onboard_profile

    settings = replace(SETTINGS, local_rate=1e-6, onboarding_rate=0.5)
    found = run("serial", taught_release, devices, tmp_path / "out", settings)
    assert [record.failures for record in found.rounds] == [0, 0]
    after = publish_update(taught_release, found.trainables, tmp_path / "after")
    changed = {n for n, blob in after.manifest.blobs.items() if blob != taught_release.manifest.blobs[n]}
    assert changed == {"shared.safetensors"}
    profiles = []
    for number, release in enumerate((taught_release, after)):
        file = tmp_path / f"{number}.umbel"
        onboard_profile(release, [], ["good film", "a slow book"], file)
        profiles.append(file.read_bytes()[40:])
    assert profiles[0] != profiles[1]


def test_rounds_end_where_ray_fails_and_go_on_to_the_same(tiny_release: Release, tmp_path: Path) -> None:
    """A device's own error costs one device; a process of Ray's that is gone would cost every round."""
    devices, reason = write_devices(tmp_path / "devices", EXAMPLES), ACTOR_DIED

    def respond(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.metadata.group_id == "2":
            return Message(Error(0, reason), reply_to=message)
        return replying(message, context)

    def rounds(out: Path, answers: Callable[[Message, Context], Message]) -> RoundsResult:
        config: dict[str, Any] = SETTINGS.as_run_config() | {
            "release": str(tiny_release.folder), "devices": str(devices), "out": str(out),
            "population": len(EXAMPLES), "threads": 1,
        }  # fmt: skip
        grid = SerialGrid(config, len(EXAMPLES), answers)
        stop_without_ray(grid)
        return serve(grid, config, roll=grid.roll())

    with pytest.raises(TrainingError, match="Ray has lost a process"):
        rounds(tmp_path / "cut", respond)
    kept = Journal(tmp_path / "cut", tiny_release.release_id, len(EXAMPLES), SETTINGS).read()
    assert kept is not None
    assert [record.round for record in kept.rounds] == [1]
    assert_equal(rounds(tmp_path / "cut", replying), rounds(tmp_path / "whole", replying))
