"""The device's side of Flower: the only module of the device that knows it. It runs what is installed.

A real device names its home and its release in its own node config (`home`, `release`); a simulated one finds
them by the run config (`devices`, `release`) and its partition.
"""

from __future__ import annotations

import logging
import traceback
from functools import lru_cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from umbel.device_client.engine import Engine
from umbel.device_client.rounds import evaluate, train
from umbel.device_client.store import DeviceHome
from umbel.shared.errors import ConfigError, MessageError, UmbelError
from umbel.shared.files import sha256_file
from umbel.shared.messages import EVALUATE, TRAIN, Hello, RoundTask, Wire, read_task
from umbel.shared.release import MANIFEST, Release, read_release

HOME, DEVICES, RELEASE, THREADS, PARTITION = "home", "devices", "release", "threads", "partition-id"
ARRAYS, CONFIG = "arrays", "config"
_RAISED = 2  # Flower's code for "the ClientApp raised an exception"

log = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tells the device's number."""
    return reply(message, context)


@app.train()
def train_stage(message: Message, context: Context) -> Message:
    """Learns the profile and answers with the change of the shared tensors."""
    return reply(message, context)


@app.evaluate()
def evaluate_stage(message: Message, context: Context) -> Message:
    """Answers with the counts of right and of all predictions."""
    return reply(message, context)


def reply(message: Message, context: Context) -> Message:
    """Answers a message; of an error, only its type leaves. The rest is in the device's own log."""
    try:
        return answer(message, context)
    except Exception as error:
        log.warning("%s failed on %s: %s", message.metadata.message_type, _place(context), _told(error))
        return Message(Error(_RAISED, type(error).__name__), reply_to=message)


def answer(message: Message, context: Context) -> Message:
    """Answers a message.

    Raises:
        UmbelError: The message, the release, the home or its examples cannot be used.
    """
    stage = message.metadata.message_type
    home, client = _home(context)
    if stage == MessageType.QUERY:
        return _message(Hello(client).wire(), message)
    engine = _engine(context)
    task = read_task(_wire(message), engine.release.manifest)
    if task.stage != stage:
        raise MessageError("the round task cannot be used", [f"it is for {task.stage}, but came as {stage}"])
    return _message(_done(engine, home, client, task), message)


def _done(engine: Engine, home: DeviceHome, client: int, task: RoundTask) -> Wire:
    work = {
        TRAIN: lambda: train(engine, home, client, task).wire(),
        EVALUATE: lambda: evaluate(engine, home, task).wire(),
    }
    return work[task.stage]()


def _home(context: Context) -> tuple[DeviceHome, int]:
    """Returns the device's home and number."""
    own = context.node_config.get(HOME)
    if own is not None:
        home = DeviceHome(Path(str(own)))
        return home, home.client_number()
    partition, devices = context.node_config.get(PARTITION), context.run_config.get(DEVICES)
    if not isinstance(partition, int) or not devices:
        problems = [f"node config has no '{HOME}'"]
        problems += [] if isinstance(partition, int) else [f"node config has no '{PARTITION}'"]
        problems += [] if devices else [f"run config has no '{DEVICES}'"]
        raise ConfigError(
            "this device has no home",
            problems,
            "Give home and release in the SuperNode's --node-config, or devices in a simulated run's config.",
        )
    return DeviceHome(device_folder(Path(str(devices)), partition)), partition


def device_folder(devices: Path, partition: int) -> Path:
    """Returns the home of one simulated device.

    Example:
        >>> device_folder(Path("devices"), 7).as_posix()
        'devices/000007'
    """
    return devices / f"{partition:06d}"


def _engine(context: Context) -> Engine:
    """Returns this process's engine for the release that the device has; made once, then kept."""
    folder = context.node_config.get(RELEASE) or context.run_config.get(RELEASE)
    if not folder:
        raise ConfigError("this device has no release", [f"neither node nor run config has '{RELEASE}'"])
    manifest = Path(str(folder)) / MANIFEST
    # The manifest's hash is the release's id, and it changes when a folder gets another release.
    release_id = sha256_file(manifest) if manifest.is_file() else ""
    threads = context.node_config.get(THREADS) or context.run_config.get(THREADS) or 1
    return _engine_of(str(folder), release_id, int(threads))


@lru_cache(maxsize=1)  # a second engine would double the memory of a small device
def _engine_of(folder: str, release_id: str, threads: int) -> Engine:
    release: Release = read_release(Path(folder))
    del release_id
    return Engine(release, threads=threads)


def _wire(message: Message) -> Wire:
    records = message.content
    if set(records) != {ARRAYS, CONFIG}:
        raise MessageError(
            "the round task cannot be used", [f"records are {sorted(records)}, expected arrays, config"]
        )
    arrays, config = records[ARRAYS], records[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise MessageError("the round task cannot be used", ["its records are of a wrong type"])
    return Wire.of(arrays, config)


def _message(wire: Wire, message: Message) -> Message:
    arrays = ArrayRecord({name: Array(array) for name, array in wire.arrays.items()})
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(wire.config))})
    return Message(content, reply_to=message)


def _told(error: Exception) -> str:
    """Returns an error for the device's own log; one that is not umbel's may quote a text: only its place."""
    if isinstance(error, UmbelError):
        return error.render()
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))


def _place(context: Context) -> str:
    partition = context.node_config.get(PARTITION)
    return "this device" if partition is None else f"device {partition:06d}"
