"""A Ray cluster that is there already: how it is reached, and what each of its machines must have.

Devices run on whatever machine has a core for them. So every machine needs this umbel, and the folders of the
release and of the devices under the same paths, as on a disk that they share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import umbel
from umbel.shared.errors import ConfigError

AUTO: Final = "auto"
_REACH_S, _LOOK_S = 5.0, 120.0
_START = (
    "Start one: 'ray start --head --port=6379 --disable-usage-stats' on the first machine, 'ray start "
    "--address=FIRST:6379' on the others; see docs/experiments.md."
)
_ALIKE = (
    "Every machine of the cluster needs the same umbel, and the run's folders under the same paths, as on a "
    "disk that they share."
)


def address_problems(address: str) -> list[str]:
    """Returns what is wrong with an address, one line each: HOST:PORT of the first machine, or "auto"."""
    host, _, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    if address == AUTO or (host and "/" not in host and 1 <= number <= 65535):
        return []
    return [f"the Ray cluster's address is '{address}', expected HOST:PORT of its first machine, or auto"]


@contextlib.contextmanager
def connected(address: str, folders: Sequence[Path], variables: Mapping[str, str]) -> Iterator[None]:
    """Connects this process to a cluster, and checks that each machine can do its part.

    Args:
        address: As in `address_problems`.
        folders: What must be there on each machine that runs devices; the last must be writable.
        variables: Environment variables of the processes that devices run in.

    Raises:
        ConfigError: There is no cluster, or a machine cannot take part: all of them are told.
    """
    import ray

    address = reach(address)
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": dict(variables)},
        )
    except Exception as error:  # another Python or Ray there, a port that is something else's, no answer
        first = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"the Ray cluster at {address} cannot be used", [f"{type(error).__name__}: {first}"], _START
        ) from None
    try:
        _check_machines(folders)
        yield
    finally:
        ray.shutdown()


def reach(address: str) -> str:
    """Finds out soon whether a cluster answers: Ray itself waits for long, or for ever.

    Returns:
        HOST:PORT, that of "auto" too.

    Raises:
        ConfigError: None does.
    """
    address = _started_here() if address == AUTO else address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except OSError as error:
        raise ConfigError(
            f"there is no Ray cluster at {address}", [error.strerror or type(error).__name__], _START
        ) from None
    if "RAY_USE_TLS" not in os.environ and not _speaks(address):
        raise ConfigError(f"what answers at {address} is no Ray cluster", hint=_START)
    return address


def _started_here() -> str:
    """Returns where the cluster is that `ray start` has made on this machine, or has joined, last.

    `ray.init` would also take any other Ray that runs here, as that of another simulation.
    """
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address()
    if not address:
        raise ConfigError("no Ray cluster was started on this machine", hint=_START)
    return address


def _speaks(address: str) -> bool:
    """Says whether gRPC is spoken there, as a Ray cluster does."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_REACH_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _check_machines(folders: Sequence[Path]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    every: Any = ray.nodes  # it has no types
    nodes = [node for node in every() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise ConfigError(
            "the Ray cluster has no core for devices", hint="Start ray with --num-cpus=1 or more."
        )
    look = ray.remote(num_cpus=0)(_looker())
    paths = [str(folder) for folder in folders]
    asked = {
        f"machine {number}, {node['NodeManagerAddress']}": look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(paths, umbel.__version__)
        for number, node in enumerate(nodes, 1)
    }
    problems = [f"{name}: {problem}" for name, answer in asked.items() for problem in _answered(answer)]
    if problems:
        raise ConfigError("machines of the Ray cluster cannot take part", problems, _ALIKE)


def _answered(answer: Any) -> list[str]:
    import ray

    try:
        found: list[str] = ray.get(answer, timeout=_LOOK_S)
    except Exception as error:  # it went away, or its processes do not start
        return [f"does not answer ({type(error).__name__})"]
    return found


def _looker() -> Callable[[list[str], str], list[str]]:
    """Returns what looks around on a machine; it goes there as it is, for umbel may not be there."""

    def look(paths: list[str], version: str) -> list[str]:
        import os

        problems = [f"there is no folder {path}" for path in paths if not os.path.isdir(path)]
        if os.path.isdir(paths[-1]) and not os.access(paths[-1], os.W_OK):
            problems.append(f"the folder {paths[-1]} cannot be written")
        try:
            import umbel
            import umbel.simulations.engines.client_app
        except ImportError as error:
            return [*problems, f"umbel cannot be imported: there is no {error.name}"]
        if umbel.__version__ != version:
            problems.append(f"umbel is {umbel.__version__}, here it is {version}")
        return problems

    return look
