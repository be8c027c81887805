"""Flower's own simulation engine, in this process: its nodes, its Ray workers, the installed ClientApp.

Why `_run_simulation`, which Flower does not promise: the public `run_simulation` is deprecated, says so on
every run, and passes no run config on; `flwr run` needs a SuperLink, a SuperExec and a simulation process,
which stay behind. `_run_simulation` is what that process calls itself, here with the same app folder and the
same overrides, so that the two ways differ in nothing but the processes around. flwr is pinned below 1.42.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from flwr.app import Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.federation.presence import first_line
from umbel.shared.errors import MissingExtraError, TrainingError, UmbelError
from umbel.simulations.engines.ray_cluster import connected

APP_FOLDER: Final = Path(__file__).parents[1] / "flower_app"
_RAYS_ERROR = "ray.exceptions."  # what Flower tells of an error of Ray's begins with its class
_OBJECT_STORE_BYTES = 100 * 2**20  # messages are small; Ray's own default is a third of the machine
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns about its next version
    "TOKENIZERS_PARALLELISM": "false",
}


def run_flower(
    config: dict[str, Any],
    population: int,
    workers: int,
    on_round: Callable[[RoundRecord], None] | None,
    *,
    ray_address: str | None = None,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`."""
    if ray_address is not None:
        folders = [Path(str(config[name])) for name in ("release", "devices")]
        with _environment(_QUIET), _quiet_flower():
            _import_ray()
            with connected(ray_address, folders, _QUIET):
                return _run(config, population, _backend({}), on_round)
    # Ray's sockets lie here, and the path of a socket may not be longer than 107 bytes.
    folder = tempfile.TemporaryDirectory(prefix="umbel-ray-", dir="/tmp", ignore_cleanup_errors=True)
    with _environment(_QUIET), _quiet_flower(), folder as ray_folder:
        return _run(config, population, _backend(_own_ray(workers, ray_folder)), on_round)


def _run(
    config: dict[str, Any],
    population: int,
    backend: dict[str, Any],
    on_round: Callable[[RoundRecord], None] | None,
) -> RoundsResult:
    ray = _import_ray()
    from flwr.app import Context, RecordDict
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation.run_simulation import _run_simulation

    from umbel.coordinator.server_app import serve
    from umbel.simulations.engines.client_app import app as client_app

    stop, outcome = threading.Event(), _Outcome()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        stop_without_ray(grid)
        outcome.catch(lambda: serve(grid, context.run_config, on_round=on_round, stopped=stop.is_set))

    run = _new_run(config)
    context = Context(run.run_id, 0, {}, RecordDict(), dict(config))
    try:
        _run_simulation(
            num_supernodes=population,
            exit_event=_exit_event(),
            client_app=client_app,
            server_app=server_app,
            backend_config=backend,
            server_app_context=context,
            app_dir=str(APP_FOLDER),
            is_app=True,
            run=run,
        )
    except UmbelError:
        raise
    except Exception as error:
        raise TrainingError("Flower's engine broke", [f"{type(error).__name__}: {error}"]) from error
    finally:
        stop.set()
        ray.shutdown()
    return outcome.result()


def stop_without_ray(grid: Any) -> None:
    """Lets a grid's answers end the run where Ray has failed, and not the device.

    A process of Ray's that is gone would otherwise cost its devices, or everybody, each round that is left.
    """
    pull = grid.pull_messages

    def pull_messages(message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in pull(message_ids):
            if reply.has_error() and _RAYS_ERROR in str(reply.error.reason):
                raise TrainingError(
                    "Ray has lost a process that devices ran in",
                    [first_line(str(reply.error.reason))],
                    "Finished rounds are kept: run the same again, once there is memory and a cluster.",
                )
            yield reply

    grid.pull_messages = pull_messages


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "the flower engine needs Flower's simulation", hint="pip install 'umbel[simulation]'"
        ) from error
    return ray


class _Outcome:
    """What the server's thread ended with: Flower loses the type of an error between its threads."""

    def __init__(self) -> None:
        self._result: RoundsResult | None = None
        self._error: BaseException | None = None

    def catch(self, work: Callable[[], RoundsResult]) -> None:
        """Runs the work and keeps its result or its error."""
        try:
            self._result = work()
        except BaseException as error:
            self._error = error

    def result(self) -> RoundsResult:
        """Returns the result, or raises the error."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise TrainingError("Flower's engine ended before the rounds did")
        return self._result


def _new_run(config: dict[str, Any]) -> Any:
    """Makes a run as `_run_simulation` would, but with our overrides of the app folder's run config."""
    from flwr.common.constant import RUN_ID_NUM_BYTES, SUPERLINK_NODE_ID, TASK_ID_NUM_BYTES
    from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    run = Run.create_empty(generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
    run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
    run.federation_id = NOOP_FEDERATION_ID
    run.override_config = dict(config)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID
    return run


def _backend(init: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how Flower runs devices: a process for each core. `init` starts a Ray, where there is none.

    A GPU is not given out by Ray: what runs the graphs is named by the run, and processes may share one.
    """
    return {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": dict(init)}


def _own_ray(workers: int, folder: str) -> dict[str, Any]:
    return {
        "address": "local",  # and no other that RAY_ADDRESS names
        "num_cpus": workers,
        "num_gpus": 0,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "logging_level": "ERROR",
        "log_to_driver": False,
        "_temp_dir": folder,
    }


def _exit_event() -> Any:
    from flwr.supercore.telemetry import EventType

    return EventType.PYTHON_API_RUN_SIMULATION_LEAVE


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, and puts back all that Flower and Ray change in it."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Holds back Flower's log and telemetry; what matters of the log is in the rounds' notes."""
    from flwr.supercore import telemetry

    logger = logging.getLogger("flwr")
    level, reports = logger.level, telemetry.FLWR_TELEMETRY_ENABLED
    logger.setLevel(logging.CRITICAL)
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # it reads the environment once, when it is imported
    try:
        yield
    finally:
        logger.setLevel(level)
        telemetry.FLWR_TELEMETRY_ENABLED = reports
