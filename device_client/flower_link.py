"""The connection of a device to a coordinator, in Flower's own wire format (the Fleet API of 1.41).

Flower's SuperNode fetches a bundle of code from the coordinator, installs it and runs it in a process of its
own. Here nothing is fetched but messages, and they are answered by the installed ClientApp in this process:
no coordinator can make a device run anything, and an idle device is one process rather than two. A run that
comes with a bundle is refused. Flower's client (`FleetHttpClient`) and its signature of each request are
used as they are; the loop around them is `joining/taking_part.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import urlsplit

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from umbel.device_client import flower_app
from umbel.device_client.joining.membership import Membership
from umbel.device_client.joining.reached import UnreachedError, unreached
from umbel.device_client.joining.taking_part import Turn
from umbel.shared.errors import BundleError, LinkError

_BEAT_S: Final = 0.5 * HEARTBEAT_DEFAULT_INTERVAL
_SOON_S: Final = 1.0  # a coordinator that answers at once that there is nothing is not asked again before
_LASTING: Final = (400, 401, 403, 404, 412)  # asking again changes nothing
_UNKNOWN: Final = (
    "It was shut out, or the coordinator lost its folder, or this machine's clock is wrong by minutes. "
    "Ask the operator for another invitation: umbel device join."
)
_CALL: Final = 1  # Flower's Message wants the number of a task; there are none here


@final
@dataclass(slots=True)
class Memory:
    """What outlives a connection, but not the process.

    Attributes:
        run: The run that the device was last asked in.
        state: What the app keeps from one message of that run to the next; left out of `repr`, as the answer.
        bundle: Whether that run comes with code.
        asked: The id of the last message.
        answer: What was answered; given again if the same message comes again.
    """

    run: int = 0
    state: RecordDict = field(default_factory=RecordDict, repr=False)
    bundle: bool = False
    asked: str = ""
    answer: Message | None = field(default=None, repr=False)


@contextmanager
def connected(membership: Membership, home: Path, memory: Memory) -> Iterator[FleetLink]:
    """Connects a device; leaves when the context ends, so that nobody waits for it.

    Args:
        membership: Its place at the coordinator.
        home: Its home.
        memory: What it knows of earlier connections.

    Raises:
        LinkError: The coordinator is another one, or does not know this device.
        UnreachedError: Nobody answers, or the connection broke.
    """
    key = membership.private_key()
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    where = urlsplit(membership.url).netloc
    client = FleetHttpClient.from_server_address(
        where, insecure=False, root_certificates=membership.authority.encode(), interceptors=[signing]
    )
    with client:
        link = FleetLink(client, membership.url, public_key_to_bytes(key.public_key()), home, memory)
        link.come()
        try:
            yield link
        finally:
            link.leave()


@final
class FleetLink:
    """A connection that a device has."""

    def __init__(self, client: FleetHttpClient, url: str, public_key: bytes, home: Path, memory: Memory):
        self._client, self._url, self._public_key, self._home = client, url, public_key, home
        self._memory = memory
        self._node = Node()

    def come(self) -> None:
        """Says that this device is there."""
        with self._told():
            request = ActivateNodeRequest(
                public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
            )
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    def leave(self) -> None:
        """Says that this device goes."""
        with suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def turn(self) -> Turn | None:
        """Waits a while for a message, answers it, and says what it was; None if there was none.

        Raises:
            UnreachedError: The connection broke.
            LinkError: The coordinator is another one, or does not know this device any longer.
        """
        asked = time.monotonic()
        with self._told():
            found = self._client.PullMessages(PullMessagesRequest(node=self._node))
            turn = None
            if found.messages_list:
                with self._beating():
                    turn = self._answer(
                        message_from_proto(found.messages_list[0]), found.message_object_trees[0]
                    )
            if turn is None:
                time.sleep(max(0.0, _SOON_S - (time.monotonic() - asked)))
            return turn

    def _answer(self, bare: Message, tree: ObjectTree) -> Turn | None:
        """Answers a message whose content is yet to come; one that was withdrawn meanwhile is left."""
        started, metadata = time.monotonic(), bare.metadata
        metadata.__dict__["_message_id"] = tree.object_id
        try:
            answer = self._reply(bare, tree)
            self._push(answer)
            # Only now: a device that is killed before is given the message again when it comes back.
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node, run_id=metadata.run_id, message_object_id=tree.object_id
                )
            )
        except (ObjectPullError, ObjectPushError):
            return None
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise
            return None  # its run is over
        refused = (answer.error.reason or "error") if answer.has_error() else ""
        return Turn(str(metadata.message_type), metadata.group_id, refused, time.monotonic() - started)

    def _reply(self, bare: Message, tree: ObjectTree) -> Message:
        """Returns what the installed app answers; a message that comes again is not worked on again.

        Whatever a coordinator sends, it is answered, if with the type of an error: it would come again.
        """
        memory, asked = self._memory, bare.metadata
        if memory.answer is not None and memory.asked == asked.message_id:
            return memory.answer
        self._know_run(asked.run_id)
        # Flower's Message reads whom it is from here.
        TaskIdentity.run_id, TaskIdentity.node_id = asked.run_id, self._node.node_id
        TaskIdentity.task_id = _CALL
        node_config: Any = {flower_app.HOME: str(self._home), flower_app.COORDINATOR: self._url}
        context = Context(asked.run_id, self._node.node_id, node_config, memory.state, {})
        try:
            answer = self._run(bare, tree, context)
        except (httpx.HTTPError, ObjectPullError):
            raise
        except Exception as error:  # a message of an unknown kind, or one that Flower's readers fail at
            answer = flower_app.refusal(bare, context, error)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        memory.state, memory.asked, memory.answer = context.state, asked.message_id, answer
        return answer

    def _run(self, bare: Message, tree: ObjectTree, context: Context) -> Message:
        """Fetches a message and hands it to the installed app; of a run with code nothing is fetched."""
        if self._memory.bundle:
            raise BundleError(
                "the coordinator sent code to be run",
                hint="It was not fetched, and its run is refused: this device runs what is installed on it.",
            )
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, bare.metadata.run_id)
        message = pull_and_inflate_object_from_tree(tree, pull, lambda _id: None, return_type=Message)
        message.metadata.__dict__["_message_id"] = tree.object_id
        return flower_app.app(message, context)

    def _know_run(self, run: int) -> None:
        """Looks whether a run that is new comes with code, and forgets what was kept of the one before."""
        if run == self._memory.run:
            return
        found = self._client.GetRun(GetRunRequest(node=self._node, run_id=run)).run
        self._memory.run, self._memory.state = run, RecordDict()
        self._memory.bundle = bool(found.fab_hash or found.fab_id)

    def _push(self, answer: Message) -> None:
        """Sends an answer: what it is made of first, then those parts that the coordinator lacks."""
        metadata = answer.metadata
        with no_object_id_recompute():
            bare = remove_content_from_message(answer)
            found = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[get_object_tree(answer)],
                )
            )
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, metadata.run_id, found.session_id
            )
            wanted = set(found.objects_to_push)
            push_objects(get_all_nested_objects(answer), push, object_ids_to_push=wanted, keep_objects=True)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Says now and then, while this device works, that it is still there; else its questions say so."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_BEAT_S):
                with suppress(httpx.HTTPError):
                    self._client.SendNodeHeartbeat(
                        SendNodeHeartbeatRequest(
                            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
                        )
                    )

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what a connection ends with into an error that the device's owner can act on."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in _LASTING:
                raise LinkError(
                    f"{self._url} does not know this device", [f"it answers with status {status}"], _UNKNOWN
                ) from None
            raise UnreachedError(f"{self._url} has a fault", [f"it answers with status {status}"]) from None
        except (httpx.HTTPError, OSError, ValueError, LookupError, TypeError) as error:  # or it says nonsense
            raise unreached(self._url, error) from None
