"""Serves devices and runs rounds with them, in one process, until they are done or somebody stops it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import uvicorn

from umbel.coordinator.federation.gains import GainFigures, Gains
from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.federation.presence import OnWait
from umbel.coordinator.server_app import OUT, POPULATION, RELEASE, serve
from umbel.coordinator.service.enrolment import Enrolment
from umbel.coordinator.service.fleet import HOLD_S, Bell, Link, make_app
from umbel.coordinator.service.folder import PRIVATE, Folder
from umbel.coordinator.service.gain import GainAsker
from umbel.coordinator.service.grid import LinkGrid
from umbel.coordinator.service.link_state import LinkState
from umbel.coordinator.service.roster import Roster
from umbel.shared.errors import ConfigError
from umbel.shared.files import sole_use
from umbel.shared.release import Release

_TIDY_S: Final = 5.0
_START_S: Final = 30.0
_END_S: Final = 10.0
_GRACE_S: Final = 2
_BACKLOG: Final = 2048
_SLACK_BYTES: Final = 1 << 20
_MOST_RECORDS: Final = 32  # a message, its records and the arrays of a secure sum's stages
_CHUNK_BYTES: Final = 5 << 20  # Flower cuts an array into objects of so many

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Listening:
    """Where a coordinator listens.

    Attributes:
        bind: The address of this machine; "" for all.
        port: The port; None for the one that devices are told.
        hold_s: How long a device's question is held.
    """

    bind: str = ""
    port: int | None = None
    hold_s: float = HOLD_S


@final
class Service:
    """A coordinator that listens; `run` runs rounds with the devices that come."""

    def __init__(self, folder: Folder, state: LinkState, roster: Roster, bell: Bell):
        self._folder, self._state, self._roster, self._bell = folder, state, roster, bell

    def known(self) -> int:
        """Returns how many devices may take part."""
        return sum(device.barred is None for device in self._roster.devices())

    def online(self) -> int:
        """Returns how many devices were heard of lately."""
        return len(self._state.online())

    def run(
        self,
        release: Release,
        settings: Mapping[str, Any],
        population: int,
        *,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_gain: Callable[[GainFigures], None] = lambda figures: None,
        on_wait: OnWait = lambda here, wanted, connected: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> RoundsResult:
        """Runs what is left of a release's rounds, and asks devices for their gain with it.

        Args:
            release: The release.
            settings: A run config's settings of the rounds; see `RoundSettings`.
            population: How many devices to wait for; 0 to begin when their number no longer grows.
            on_round: Called after every round.
            on_gain: Hears what devices' gains come to, whenever there are enough new ones.
            on_wait: Hears of devices that are missing, so that a wait is not silent.
            stopped: Asked while waiting; True ends the run.

        Raises:
            ConfigError: The settings cannot be used, the rounds were begun with others, or what is kept of
                the gain is damaged.
            Stopped: `stopped` said so.
            TrainingError: Too few devices can take part.
        """
        out = self._folder.rounds(release.release_id)
        config = {**settings, RELEASE: str(release.folder), OUT: str(out), POPULATION: population}
        asker = GainAsker(Gains(out, release.release_id), release.release_id, on_gain)
        grid = LinkGrid(self._state, self._bell.ring)
        try:
            return serve(
                grid,
                config,
                on_round=on_round,
                stopped=stopped,
                owns=self._owns,
                on_greeted=asker,
                on_wait=on_wait,
                release=release,
            )
        finally:
            grid.end()

    def tidy(self) -> None:
        """Writes down who was heard of, and shuts out whom the operator has barred meanwhile."""
        self._roster.heard([bytes(node.public_key) for node in self._state.online()])
        for device in self._roster.devices():
            if device.barred is not None:
                self._state.shut_out(device.key)

    def _owns(self, node: int, number: int) -> bool:
        """Says whether a node may go by a number: the first one that tells it owns it for good."""
        return self._roster.claim(self._state.key_of(node), number)


@contextmanager
def serving(
    folder: Folder, numbers: int, listening: Listening | None = None, *, tensors: int = 1
) -> Iterator[Service]:
    """Listens for devices over TLS while the context is open.

    Args:
        folder: The coordinator's.
        numbers: How many numbers a device's answer has, all tensors together: masked, they are one array.
        listening: Where; by default at the port that devices are told, on every address.
        tensors: How many tensors they are.

    Raises:
        BusyError: Another process serves this folder.
        ConfigError: The port is taken, or a certificate or key cannot be used.
    """
    where = listening or Listening()
    with sole_use(folder.path / PRIVATE), Roster.open(folder.roster) as roster:
        folder.server()  # is there, and by the authority that devices trust
        objects = most_objects(numbers, tensors)
        link = Link(LinkState(), Enrolment(roster), hold_s=where.hold_s, most_objects=objects)
        for device in roster.devices():
            if device.barred is None:
                link.state.admit(device.key)
        service = Service(folder, link.state, roster, link.bell)
        ready, over = threading.Event(), threading.Event()
        server = _server(folder, make_app(link, most_request_bytes(numbers), ready.set))
        with _listening(folder, where) as listener:
            # A daemon: uvloop closes its loop only when every connection has ended, and somebody who has
            # connected and says nothing, or is in the midst of a handshake, would hold it for ever.
            web = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web", daemon=True)
            tidying = threading.Thread(target=_tidy, args=(service, over), name="tidy")
            web.start()
            try:
                if not ready.wait(_START_S) or not web.is_alive():
                    raise ConfigError("the coordinator's web server did not start")
                tidying.start()
                yield service
            finally:
                over.set()
                link.bell.close()
                server.should_exit = True
                web.join(_END_S)
                if tidying.ident is not None:
                    tidying.join()


def most_request_bytes(numbers: int) -> int:
    """Returns the most bytes of a request: a device brings its answer in pieces, none larger than a chunk."""
    return min(4 * numbers, _CHUNK_BYTES) + _SLACK_BYTES


def most_objects(numbers: int, tensors: int) -> int:
    """Returns of how many objects an answer is made at most: records, arrays, and the chunks of each."""
    return _MOST_RECORDS + 2 * tensors + 4 * numbers // _CHUNK_BYTES


def _server(folder: Folder, app: Any) -> uvicorn.Server:
    """Returns the web server: TLS 1.3 only, for both sides are this package."""
    key = str(folder.key_file)
    config = uvicorn.Config(
        app,
        ssl_keyfile=key,
        ssl_certfile=key,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=2 * int(HOLD_S),
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            "the server's key and certificate cannot be used",
            [f"{key}: {type(error).__name__}"],
            "Make them anew: umbel coordinator renew.",
        ) from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return uvicorn.Server(config)


@contextmanager
def _listening(folder: Folder, where: Listening) -> Iterator[socket.socket]:
    """Opens the socket, so that a port that is taken is known before anything begins."""
    port = folder.address.port if where.port is None else where.port
    try:
        listener = _listener(where.bind, port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        unknown = isinstance(error, socket.gaierror)  # whose numbers are not the system's
        said = str(error.strerror) if unknown else os.strerror(error.errno or 0)
        problem = "another program listens there" if taken else said
        raise ConfigError(
            f"the coordinator cannot listen on {where.bind or 'any address'}, port {port}",
            [problem],
            "Stop that program, or listen elsewhere: --port, --bind.",
        ) from None
    with listener:
        yield listener


def _listener(bind: str, port: int) -> socket.socket:
    """Opens a socket at an address, or at every one of the machine, old and new, where it has both."""
    if ":" in bind:
        return socket.create_server((bind, port), family=socket.AF_INET6, backlog=_BACKLOG)
    if not bind and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return socket.create_server((bind, port), backlog=_BACKLOG)


def _tidy(service: Service, over: threading.Event) -> None:
    while not over.wait(_TIDY_S):
        try:
            service.tidy()
        except Exception as error:  # a full disk, say: rounds go on, and the next try may work
            log.warning("who was heard of could not be written down: %s", type(error).__name__)
