"""What devices reach over the network: Flower's Fleet API, and where they are taken in. Nothing else.

Flower's own SuperLink serves three more APIs on the same port. Through them runs are started and nodes are
registered; without account authentication, which Flower's open edition lacks, anybody may. They are not here:
rounds run in the same process, and operators use the coordinator's folder.

Two of Flower's handlers are replaced. A node that asks for messages waits until there is one, rather than
coming back every three seconds; and an answer is taken only from the node that it says it is from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, cast, final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_DEPENDENCY, ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from umbel.coordinator.service.enrolment import MOST_BYTES, Enrolment
from umbel.coordinator.service.link_state import LinkState
from umbel.shared.checks import parsed_json
from umbel.shared.invitation import ENROLL_PATH

HOLD_S = 20.0
"""How long a node's question for messages is held; Flower's own nodes give up after 30 s."""

log = logging.getLogger(__name__)


@final
class Bell:
    """Wakes nodes that wait, from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.event = asyncio.Event()
        self.closing = False

    def hang(self) -> None:
        """Binds it to the running loop."""
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Wakes every node that waits."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._swing)

    def close(self) -> None:
        """Wakes every node for good."""
        self.closing = True
        self.ring()

    def _swing(self) -> None:
        self.event.set()
        self.event = asyncio.Event()


@final
@dataclass(slots=True)
class Link:
    """What the handlers share.

    Attributes:
        state: Nodes and messages.
        enrolment: Takes devices in.
        bell: Wakes nodes that wait.
        hold_s: How long a node's question is held.
        latest: Node id -> its latest question; an older one, whose connection broke, gives up.
        most_objects: Of how many objects an answer is made at most.
    """

    state: LinkState
    enrolment: Enrolment
    bell: Bell = field(default_factory=Bell)
    hold_s: float = HOLD_S
    latest: dict[int, object] = field(default_factory=dict)
    most_objects: int = 256


def _link(request: Request) -> Link:
    return cast(Link, request.app.state.link)


_Link = Annotated[Link, Depends(_link)]
_router = APIRouter(prefix="/v1/fleet", route_class=ProtobufRoute)


@_router.post("/pull-messages")
async def pull_when_there_is_one(
    request: Annotated[PullMessagesRequest, PROTOBUF_REQUEST_DEPENDENCY], link: _Link
) -> PullMessagesResponse:
    """Gives a node its next message, or after a while none; a node that asks has lost what it was given."""
    own, mine = request.node.node_id, object()
    link.latest[own] = mine
    await run_in_threadpool(link.state.give_again, own)
    deadline = asyncio.get_running_loop().time() + link.hold_s
    while True:
        event, closing = link.bell.event, link.bell.closing  # before the look, so that no ring is missed
        found = await run_in_threadpool(_look, link, request)
        left = deadline - asyncio.get_running_loop().time()
        if found.messages_list or closing or left <= 0 or link.latest.get(own) is not mine:
            return found
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), left)
        if link.latest.get(own) is not mine:
            return PullMessagesResponse()


def _look(link: Link, request: PullMessagesRequest) -> PullMessagesResponse:
    link.state.acknowledge_node_heartbeat(request.node.node_id, HEARTBEAT_DEFAULT_INTERVAL)
    return fleet_handlers.pull_messages(request, link.state, link.state.object_store)


@_router.post("/push-messages")
def push_own_answer(
    request: Annotated[PushMessagesRequest, PROTOBUF_REQUEST_DEPENDENCY], link: _Link
) -> PushMessagesResponse:
    """Takes a node's answer, if it is its own: Flower checks who asks, but not whose answer it brings."""
    messages, trees = request.messages_list, request.message_object_trees
    if len(messages) != 1 or len(trees) != 1 or messages[0].metadata.src_node_id != request.node.node_id:
        raise HTTPException(403, "a node may bring one answer of its own")
    if messages[0].metadata.message_id != trees[0].object_id:
        raise HTTPException(400, "the answer's parts are another one's")
    if problem := link.state.objects.refuses(trees[0], link.most_objects):
        raise HTTPException(400, problem)
    found = fleet_handlers.push_messages(request, link.state)
    link.state.brought(trees[0])
    return found


async def enroll(http: Request) -> JSONResponse:
    """Takes a device in."""
    link = _link(http)
    peer = http.client.host if http.client else ""
    try:
        row = parsed_json(await http.body()) if _length(http.scope) <= MOST_BYTES else None
    except ValueError:
        row = None
    answer = await run_in_threadpool(link.enrolment.take_in, row, peer)
    if answer.key is not None:
        await run_in_threadpool(link.state.admit, answer.key)
    log.info("a device at %s asked to be taken in: %s", peer, answer.why)
    return JSONResponse({"why": answer.why}, answer.status)


@final
class BodyLimit:
    """Refuses what is longer than anything that a device has to say, before any of it is read."""

    def __init__(self, app: ASGIApp, most_bytes: int):
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and (status := self._refusal(scope)):
            await JSONResponse({"detail": "refused for its length"}, status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> int:
        if scope["method"] == "POST" and _length(scope) < 0:
            return 411
        return 413 if _length(scope) > self._most_bytes else 0


def _length(scope: Scope) -> int:
    """Returns the length that a request says its body has, which the server then holds it to; -1 without.

    A body in chunks has none, whatever else the request says: the server would read it to its end.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return -1
    told = headers.get(b"content-length", b"")
    return int(told) if told.isdigit() else -1


def make_app(link: Link, most_bytes: int, on_ready: Callable[[], None] = lambda: None) -> FastAPI:
    """Returns the application that a web server runs.

    Args:
        link: What the handlers share.
        most_bytes: Of one request.
        on_ready: Called once it can be asked.
    """

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        link.bell.hang()
        on_ready()
        yield

    middleware = [
        Middleware(BodyLimit, most_bytes=most_bytes),
        Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
        Middleware(ProtobufTranslationMiddleware),
        Middleware(NodeAuthMiddleware),
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, middleware=middleware)
    app.state.link = link
    app.state.linkstate_factory = _Factory(link.state)
    app.state.enable_supernode_auth = True
    app.include_router(_router)  # before Flower's own, so that its handlers are the ones that are found
    app.include_router(fleet_router)
    app.add_api_route(ENROLL_PATH, enroll, methods=["POST"])
    return app


@final
class _Factory:
    """Gives Flower's handlers the state."""

    def __init__(self, state: LinkState):
        self._state = state

    def state(self) -> Any:
        return self._state
