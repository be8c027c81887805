"""The device's side of Flower: what answers its messages. It runs what is installed.

An owner's device names its home in its own node config (`home`; also `coordinator`, a name for the log, and
`release`, a folder, if it is not the one of the home); a simulated one finds its folder and its release by
the run config (`devices`, `release`) and its partition. Every answer passes the gate (`egress/gate.py`).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from umbel.device_client.egress.allowed import (
    REASON,
    Allowed,
    allowed_contribution,
    allowed_error,
    allowed_evaluation,
    allowed_gain,
    allowed_hello,
    of_error,
)
from umbel.device_client.egress.gate import Asker, admit, decline, leave
from umbel.device_client.engine import ONNXRUNTIME, Engine
from umbel.device_client.releases.installed import installed
from umbel.device_client.rounds import Steps, alone, evaluating, training
from umbel.device_client.secure.part import collected, take_part
from umbel.device_client.simulated import TABLE, AbstractSimulatedHome, SimulatedHome
from umbel.shared.checks import shown
from umbel.shared.errors import ConfigError, EgressError, MessageError, StoreError, UmbelError
from umbel.shared.files import sha256_file
from umbel.shared.messages import (
    GAIN,
    NPY,
    TRAIN,
    GainReport,
    Hello,
    RoundTask,
    Wire,
    read_gain_question,
    read_task,
)
from umbel.shared.npy import npy_bytes
from umbel.shared.release import MANIFEST, Manifest, Release, read_release
from umbel.shared.secure.messages import STAGES, UNMASK

if TYPE_CHECKING:
    from umbel.device_client.enrolled import EnrolledHome

HOME, DEVICES, RELEASE, THREADS, PARTITION = "home", "devices", "release", "threads", "partition-id"
COMPUTE = "compute"
COORDINATOR = "coordinator"
ARRAYS, CONFIG = "arrays", "config"
_SECURE, _HELD = "secure sum", "held"
_RAISED = 2  # Flower's code for "the ClientApp raised an exception"

Simulated: TypeAlias = Callable[[Path, int], AbstractSimulatedHome]
"""Opens the home of a simulated device: the run config's `devices`, and the device's number."""
_AnyHome: TypeAlias = "AbstractSimulatedHome | EnrolledHome"

_opening = threading.Lock()
log = logging.getLogger(__name__)


def device_folder(devices: Path, partition: int) -> Path:
    """Returns the home of one simulated device.

    Example:
        >>> device_folder(Path("devices"), 7).as_posix()
        'devices/000007'
    """
    return devices / f"{partition:06d}"


def folder_home(devices: Path, partition: int) -> AbstractSimulatedHome:
    """Opens the home of one simulated device: a folder.

    Raises:
        ConfigError: The devices are in a table.
    """
    if (devices / TABLE).is_file():
        raise ConfigError(
            "this app reads no table of people",
            [f"{devices} holds {TABLE}"],
            "Run its rounds by umbel's own engines, or make a folder for each device.",
        )
    return SimulatedHome(device_folder(devices, partition), partition)


Responds: TypeAlias = Callable[[Message, Context], Message]
"""Answers one device's message."""


def reply(message: Message, context: Context, simulated: Simulated = folder_home) -> Message:
    """Answers a message; of an error, only its type leaves. The rest is in the device's own log."""
    try:
        return answer(message, context, simulated)
    except Exception as error:
        return refusal(message, context, error, simulated)


def client_app(respond: Responds = reply) -> ClientApp:
    """Makes the app that answers every message of a round.

    Args:
        respond: Answers one.
    """
    made = ClientApp()
    made.query()(respond)
    made.query("gain")(respond)
    made.train()(respond)
    for stage in ("setup", "share", "collect", "unmask"):  # of a secure sum
        made.train(stage)(respond)
    made.evaluate()(respond)
    return made


app = client_app()


def refusal(
    message: Message, context: Context, error: Exception, simulated: Simulated = folder_home
) -> Message:
    """Answers a message with the type of an error."""
    kind = shown(str(message.metadata.message_type))
    usual = kind == GAIN and isinstance(error, EgressError)  # most owners tell none; egress says why
    level = logging.INFO if usual else logging.WARNING
    log.log(level, "%s failed on %s: %s", kind, _place(context), _told(error))
    return Message(Error(_RAISED, _leaving(error, message, context, simulated)), reply_to=message)


def answer(message: Message, context: Context, simulated: Simulated = folder_home) -> Message:
    """Answers a message.

    Args:
        message: What is asked.
        context: Flower's, of the node.
        simulated: Opens the home of a simulated device.

    Raises:
        EgressError: The answer may not leave.
        UmbelError: The message, the release, the home or its examples cannot be used.
    """
    return alone(answering(message, context, simulated))


def answering(message: Message, context: Context, simulated: Simulated = folder_home) -> Steps[Message]:
    """Answers a message as `answer` does; stops where it wants a profile."""
    to = _asker(message, context)
    with _home(context, simulated) as home:
        if (
            message.metadata.message_type != UNMASK
        ):  # it belongs to a change that has left; no work is done for it
            admit(str(message.metadata.message_type), home, to)
        wire, allowed = yield from _done(home, message, context)
        return _message(leave(wire, allowed, home, to), message)


def _done(home: _AnyHome, message: Message, context: Context) -> Steps[tuple[Wire, Allowed]]:
    """Returns the answer, and what may leave in it."""
    stage, client = message.metadata.message_type, home.client_number()
    if stage == MessageType.QUERY:
        return Hello(client).wire(), allowed_hello(client)
    if stage == GAIN:
        return _gain(home, message, _asker(message, context))
    if stage in STAGES:
        opened = lambda wire, held: collected(_engine(context, home), home, client, wire, held)  # noqa: E731
        answered = yield from take_part(
            stage, _wire(message), _kept(context), _place_of(context, home).id, opened
        )
        # Before anything leaves: a stage is answered once, whatever becomes of the answer.
        _keep(context, answered.kept)
        _refuse_few(home, message, context, answered.over)
        return answered.wire, answered.allowed
    if stage == TRAIN:
        _refuse_few(home, message, context, 1)
    engine = _engine(context, home)
    manifest = engine.release.manifest
    simulated = home.release_folder is None
    task = _tasks.read(message.content, manifest) if simulated else read_task(_wire(message), manifest)
    if task.stage != stage:
        raise MessageError("the round task cannot be used", [f"it is for {task.stage}, but came as {stage}"])
    if task.stage == TRAIN:
        change = yield from training(engine, home, client, task)
        return change.wire(), allowed_contribution(manifest, task, home.most_norm)
    counts = yield from evaluating(engine, home, task)
    return counts.wire(), allowed_evaluation(manifest, task)


def _refuse_few(home: _AnyHome, message: Message, context: Context, devices: int) -> None:
    """Refuses a change that is asked for in a sum over fewer devices than the owner wants, or by itself."""
    against = home.sum_refusals(devices)
    if against:
        decline(str(message.metadata.message_type), home, _asker(message, context), against)


def _gain(home: _AnyHome, message: Message, to: Asker) -> tuple[Wire, Allowed]:
    """Returns the noised gain. Whatever speaks against it, the coordinator is told the same."""
    release_id = read_gain_question(_wire(message)).release_id
    against = home.gain_refusals(release_id)
    if against:
        decline(GAIN, home, to, against)
    return GainReport(release_id, home.noised_gain(release_id)).wire(), allowed_gain(release_id)


def _kept(context: Context) -> str:
    """Returns what this device keeps of the secure sum that it is in; it is in the node's memory only."""
    record = context.state.config_records.get(_SECURE)
    return "" if record is None else str(record[_HELD])


def _keep(context: Context, held: str) -> None:
    """Keeps what a device needs for the next stage of its secure sum; after the last, nothing."""
    if held:
        context.state[_SECURE] = ConfigRecord({_HELD: held})
    elif _SECURE in context.state:
        del context.state[_SECURE]


def _leaving(error: Exception, message: Message, context: Context, simulated: Simulated) -> str:
    """Returns what leaves of an error; written down unless the home itself cannot be used.

    Nothing may be raised here: Flower would send its words.
    """
    wire, to = of_error(error), _asker(message, context)
    with suppress(Exception), _home(context, simulated) as home:
        leave(wire, allowed_error(), home, to)
    return str(wire.config[REASON])


@contextmanager
def _home(context: Context, simulated: Simulated) -> Iterator[_AnyHome]:
    """Opens the device's home. What a run's config says changes nothing for a device that names its own."""
    own = context.node_config.get(HOME)
    if own is not None:
        from umbel.device_client.enrolled import EnrolledHome  # with it the store, which no simulation needs
        from umbel.device_client.owner import Device

        with Device.open(Path(str(own)).expanduser(), ask=_passphrase) as device:
            yield EnrolledHome(device)
        return
    partition, devices = context.node_config.get(PARTITION), context.run_config.get(DEVICES)
    if not isinstance(partition, int) or not devices:
        problems = [f"node config has no '{HOME}'"]
        problems += [] if isinstance(partition, int) else [f"node config has no '{PARTITION}'"]
        problems += [] if devices else [f"run config has no '{DEVICES}'"]
        raise ConfigError(
            "this device has no home",
            problems,
            "Give home in the SuperNode's --node-config, or devices in a simulated run's config.",
        )
    yield simulated(Path(str(devices)), partition)


def _passphrase() -> str:
    """Returns the passphrase of a store that has one: nobody can be asked for it here."""
    try:
        return os.environ["UMBEL_PASSPHRASE"]
    except KeyError:
        raise StoreError(
            "a passphrase is needed, and there is nobody to ask", hint="Set UMBEL_PASSPHRASE."
        ) from None


class _Place(NamedTuple):
    """Where a device's release lies."""

    folder: str
    id: str
    in_home: bool


def _engine(context: Context, home: _AnyHome) -> Engine:
    """Returns this process's engine for the release that the device has; made once, then kept."""
    run = context.run_config if home.release_folder is None else {}
    threads = context.node_config.get(THREADS) or run.get(THREADS) or 1
    place = _place_of(context, home)
    with _opening:  # a simulation asks several devices at a time
        compute = str(run.get(COMPUTE) or ONNXRUNTIME)
        return _engine_of(place.folder, place.id, int(threads), place.in_home, compute)


def _place_of(context: Context, home: _AnyHome) -> _Place:
    """Returns where the device's release lies, and which it is."""
    own, run = context.node_config, context.run_config if home.release_folder is None else {}
    folder = own.get(RELEASE) or home.release_folder or run.get(RELEASE)
    if not folder:
        raise ConfigError("this device has no release", [f"neither node nor run config has '{RELEASE}'"])
    in_home = home.release_folder is not None and not own.get(RELEASE)
    return _Place(str(folder), _release_id(str(folder)), in_home)


def _release_id(folder: str) -> str:
    """Returns the hash of a release's manifest, which is its id: another one when another lies there."""
    manifest = os.path.join(folder, MANIFEST)
    try:
        found = os.stat(manifest)
    except OSError:
        return ""
    if not stat.S_ISREG(found.st_mode):
        return ""
    return _hashed(manifest, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _hashed(manifest: str, *written: int) -> str:
    """Returns the hash of a file, not read for each message; one that was written anew is another."""
    del written
    return sha256_file(Path(manifest))


@lru_cache(maxsize=1)  # a second engine would double the memory of a small device
def _engine_of(folder: str, release_id: str, threads: int, in_home: bool, compute: str) -> Engine:
    """Opens a release; one of a home is the one that its store names, and so its folder."""
    place = Path(folder)
    release: Release = installed(place.parent, place.name) if in_home else read_release(place)
    del release_id
    return Engine(release, threads=threads, compute=compute)


def _asker(message: Message, context: Context) -> Asker:
    """Returns who asks. Flower tells an app no address; the owner may name the coordinator in node config."""
    name = str(context.node_config.get(COORDINATOR) or "")
    return Asker(context.run_id, context.node_id, message.metadata.src_node_id, name)


@final
class _TaskReader:
    """Reads tasks; simulated devices of one process that are given the very same records read them once."""

    def __init__(self) -> None:
        self._last: tuple[RecordDict, str, RoundTask] | None = None

    def read(self, records: RecordDict, manifest: Manifest) -> RoundTask:
        """Returns the task; see `read_task`."""
        last = self._last
        if last is not None and last[0] is records and last[1] == manifest.release_id:
            return last[2]
        task = read_task(_wire_of(records), manifest)
        self._last = records, manifest.release_id, task
        return task


_tasks = _TaskReader()


def _wire(message: Message) -> Wire:
    return _wire_of(message.content)


def _wire_of(records: RecordDict) -> Wire:
    if set(records) != {ARRAYS, CONFIG}:
        raise MessageError(
            "the round task cannot be used", [f"records are {sorted(records)}, expected arrays, config"]
        )
    arrays, config = records[ARRAYS], records[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise MessageError("the round task cannot be used", ["its records are of a wrong type"])
    return Wire.of(arrays, config)


def _message(wire: Wire, message: Message) -> Message:
    arrays = ArrayRecord({name: _array(array) for name, array in wire.arrays.items()})
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(wire.config))})
    return Message(content, reply_to=message)


def _array(array: npt.NDArray[Any]) -> Array:
    """Returns what `Array(array)` is, made in half the time."""
    return Array(str(array.dtype), array.shape, NPY, npy_bytes(array))


def _told(error: Exception) -> str:
    """Returns an error for the device's own log; one that is not umbel's may quote a text: only its place."""
    if isinstance(error, UmbelError):
        return error.render()
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))


def _place(context: Context) -> str:
    partition = context.node_config.get(PARTITION)
    return "this device" if partition is None else f"device {partition:06d}"
