"""Who and what is refused, each with its own clear message, over real TLS.

The coordinator runs in this process; what it meets are a device's own functions, or a stranger's.
"""

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from tests.federation import free_port

from umbel.coordinator.service.certificates import certificate_pem, key_pem, new_server, read_key
from umbel.coordinator.service.folder import Address, Folder
from umbel.coordinator.service.link_state import LinkState
from umbel.coordinator.service.roster import Roster
from umbel.coordinator.service.serving import Listening, Service, most_objects, most_request_bytes, serving
from umbel.device_client.flower_link import Memory, connected
from umbel.device_client.joining.asking import ask_in
from umbel.device_client.joining.membership import Membership
from umbel.device_client.joining.reached import UnreachedError
from umbel.shared.errors import LinkError
from umbel.shared.invitation import ENROLL_PATH, Invitation

HOLD_S = 0.2


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("coordinator")
    return Folder.make(path, Address("127.0.0.1", free_port(), ("localhost",)))[0]


@pytest.fixture(scope="module")
def service(folder: Folder) -> Iterator[Service]:
    with serving(folder, 1000, Listening("127.0.0.1", None, HOLD_S)) as own:
        yield own


def authority(folder: Folder) -> str:
    return (folder.path / "ca.pem").read_text()


def invited(folder: Folder, life: timedelta = timedelta(days=1)) -> Membership:
    with Roster.open(folder.roster) as roster:
        (code,) = roster.new_codes(1, life)
    return Membership.begun(Invitation(folder.address.url, authority(folder), code))


def at(membership: Membership, **changes: str) -> Membership:
    return Membership(**(membership.as_setting() | changes))


def refused(membership: Membership) -> tuple[str, str]:
    """Returns headline and problem of the refusal to take a device in."""
    with pytest.raises(LinkError) as error:
        ask_in(membership)
    return error.value.headline, error.value.problems[0]


def refused_link(membership: Membership) -> LinkError:
    with pytest.raises(LinkError) as error, connected(membership, Path("nowhere"), Memory()):
        pass
    return error.value


def test_a_key_that_was_not_registered_is_refused(service: Service, folder: Folder) -> None:
    error = refused_link(invited(folder))  # it has a code, and has not shown it
    assert error.headline == f"{folder.address.url} does not know this device"
    assert not isinstance(error, UnreachedError)  # asking again changes nothing
    assert service.online() == 0


def test_another_authority_is_not_believed(service: Service, folder: Folder, tmp_path: Path) -> None:
    other, _ = Folder.make(tmp_path, folder.address)
    wrong = at(invited(folder), authority=authority(other))
    headline, problem = refused(wrong)
    assert headline == f"{folder.address.url} is not the coordinator that this device joined"
    assert "its certificate is not from the authority" in problem
    assert "its certificate is not from the authority" in refused_link(wrong).problems[0]


def test_a_certificate_for_another_name_is_not_believed(service: Service, folder: Folder) -> None:
    moved = at(invited(folder), url=f"https://127.0.0.2:{folder.address.port}")
    with socket.create_server(("127.0.0.2", folder.address.port)) as listener:
        threading.Thread(target=_forward, args=(listener, folder.address.port), daemon=True).start()
        assert "its certificate is for another address" in refused(moved)[1]


def test_a_certificate_that_is_out_of_date_is_not_believed(tmp_path: Path) -> None:
    port = free_port()
    old, _ = Folder.make(tmp_path, Address("127.0.0.1", port))
    signing = read_key((tmp_path / "private/ca.key").read_bytes(), "ca.key")
    then = datetime.now(UTC) - timedelta(days=500)
    key, certificate = new_server(old.authority(), signing, ["127.0.0.1"], then)
    old.key_file.write_bytes(key_pem(key) + certificate_pem(certificate))
    with serving(old, 1000, Listening("127.0.0.1", port, HOLD_S)):
        assert "its certificate is out of date" in refused(invited(old))[1]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has one kind of address only")
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_devices_come_by_new_and_by_old_addresses(host: str, tmp_path: Path) -> None:
    folder, _ = Folder.make(tmp_path, Address(host, free_port()))
    with serving(folder, 1000, Listening("", None, HOLD_S)) as own:
        device = invited(folder)
        ask_in(device)
        with connected(device, Path("nowhere"), Memory()):
            assert own.online() == 1


def test_without_tls_nothing_is_said(tmp_path: Path) -> None:
    port = free_port()
    folder, _ = Folder.make(tmp_path, Address("127.0.0.1", port))
    heard: list[bytes] = []
    with _plain_server(port, heard):
        headline, problem = refused(invited(folder))
        assert headline == f"{folder.address.url} is no coordinator that can be trusted"
        assert problem == "what answers there speaks without TLS"
        assert refused_link(invited(folder)).problems[0] == problem
    said = [first for first in heard if first]  # the last one only wakes the server
    assert len(said) == 2
    assert all(first[0] == 22 for first in said)  # a TLS handshake, and nothing else, was sent


def test_who_speaks_without_tls_gets_no_answer(service: Service, folder: Folder) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", folder.address.port, timeout=10)
    plain.request("POST", ENROLL_PATH, b"{}")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()


def test_an_older_tls_is_not_spoken(service: Service, folder: Folder) -> None:
    context = ssl.create_default_context(cadata=authority(folder))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", folder.address.port), timeout=10) as raw,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(raw, server_hostname="127.0.0.1"),
    ):
        pass


def test_a_code_that_has_expired_is_refused(service: Service, folder: Folder) -> None:
    assert refused(invited(folder, timedelta(seconds=-1)))[1] == "the code has expired"


def test_a_code_that_is_replayed_is_refused(service: Service, folder: Folder) -> None:
    own = invited(folder)
    ask_in(own)
    ask_in(own)  # its own answer may have been lost
    thief = Membership.begun(Invitation(own.url, own.authority, own.code))
    assert refused(thief)[1] == "the code was used already, by another device"
    with connected(own, Path("nowhere"), Memory()):
        assert service.online() == 1
    assert service.online() == 0


def test_a_code_that_nobody_made_is_refused(service: Service, folder: Folder) -> None:
    assert refused(at(invited(folder), code="a" * 26))[1] == "the coordinator knows no such code"


def test_a_device_that_is_shut_out_is_told_so(service: Service, folder: Folder) -> None:
    own = invited(folder)
    ask_in(own)
    with Roster.open(folder.roster) as roster:
        assert roster.bar(own.request()["key"].encode())
    service.tidy()
    assert "does not know this device" in refused_link(own).headline
    assert refused(own)[1] == "the coordinator has shut this device out"


def test_a_signature_of_yesterday_is_refused(
    service: Service, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = invited(folder)
    ask_in(own)
    from flwr.supernode import node_auth_http_interceptor as signing

    monkeypatch.setattr(signing, "now", lambda: datetime.now(UTC) - timedelta(days=1))
    assert "clock" in refused_link(own).hint


def test_one_node_brings_no_answer_of_another(service: Service, folder: Folder) -> None:
    """Flower's own handler checks who asks, and takes what it says of itself as it comes."""
    one, two = invited(folder), invited(folder)
    for own in (one, two):
        ask_in(own)
    with (
        connected(one, Path("nowhere"), Memory()) as mine,
        connected(two, Path("nowhere"), Memory()) as theirs,
    ):
        question = Message(RecordDict({"config": ConfigRecord({"value": 1})}), mine._node.node_id, "train")
        question.metadata.__dict__["_message_id"] = question.object_id
        answer = Message(RecordDict(), reply_to=question)
        answer.metadata.__dict__["_src_node_id"] = mine._node.node_id
        answer.metadata.__dict__["_message_id"] = answer.object_id
        with pytest.raises(Exception, match="403"):
            theirs._client.PushMessages(
                PushMessagesRequest(
                    node=theirs._node,
                    messages_list=[message_to_proto(answer)],
                    message_object_trees=[get_object_tree(answer)],
                )
            )


def test_an_answer_of_objects_without_end_is_refused(service: Service, folder: Folder) -> None:
    own = invited(folder)
    ask_in(own)
    with connected(own, Path("nowhere"), Memory()) as link:
        question = Message(RecordDict(), link._node.node_id, "train")
        question.metadata.__dict__["_message_id"] = question.object_id
        answer = Message(RecordDict(), reply_to=question)
        answer.metadata.__dict__["_src_node_id"] = link._node.node_id
        answer.metadata.__dict__["_message_id"] = answer.object_id
        leaf = ObjectTree(object_id="0" * 64)
        bomb = ObjectTree(object_id=answer.object_id, children=[leaf] * 10_000)
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            link._client.PushMessages(
                PushMessagesRequest(
                    node=link._node, messages_list=[message_to_proto(answer)], message_object_trees=[bomb]
                )
            )


def test_the_ways_by_which_flower_is_operated_are_not_there(service: Service, folder: Folder) -> None:
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/push-messages",
        "/docs",
        "/",
    ):
        assert _post(folder, path, b"", "application/protobuf")[0] == 404
    assert _post(folder, "/v1/fleet/register-node", b"", "application/protobuf")[0] in (400, 401, 403, 415)


def test_what_is_longer_than_anything_a_device_says_is_not_read(service: Service, folder: Folder) -> None:
    assert _post(folder, ENROLL_PATH, b" " * 5000) == (400, {"why": "malformed"})
    assert _post(folder, ENROLL_PATH, b"[" * 4000) == (400, {"why": "malformed"})
    assert _post(folder, "/v1/fleet/push-object", b"x" * (2 << 20))[0] == 413


@pytest.mark.parametrize(("numbers", "tensors"), [(296_450, 26), (3_000_001, 2)])  # BERT-base, and more
def test_no_piece_of_an_honest_answer_is_too_long(numbers: int, tensors: int) -> None:
    parts = np.array_split(np.ones(numbers, np.float32), tensors)
    plain = {f"tensor {n}": part for n, part in enumerate(parts)}
    for arrays in (plain, {"masked": np.arange(numbers + 2, dtype=np.uint32)}):
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        message = Message(RecordDict({"arrays": record, "config": ConfigRecord()}), 1, "train")
        pieces = [made.deflate() for made in get_all_nested_objects(message).values()]
        assert max(map(len, pieces)) + 1024 < most_request_bytes(numbers)
        assert len(list(iterate_object_tree(get_object_tree(message)))) <= most_objects(numbers, tensors)


def test_a_bundle_of_code_is_not_fetched_and_its_run_is_refused(
    service: Service, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a coordinator that turned rogue would do: a run whose bundle holds other code for devices."""
    from umbel.device_client import flower_app

    state, own = service._state, invited(folder)
    ask_in(own)
    run = _rogue_run(state)
    ran: list[Message] = []
    monkeypatch.setattr(flower_app, "app", lambda message, context: ran.append(message))
    fetched: list[str] = []
    monkeypatch.setattr(state, "get_fab", fetched.append)
    with connected(own, Path("nowhere"), Memory()) as link:
        question = Message(
            RecordDict({"config": ConfigRecord({"value": 1})}), link._node.node_id, "train", group_id="1"
        )
        question.metadata.__dict__["_run_id"] = run
        (asked,) = state.ask([question], run)
        turn = link.turn()
        assert turn is not None
        assert turn.refused == "BundleError"
        (answer,) = state.answers([asked], run)
    assert answer.error.reason == "BundleError"
    assert (ran, fetched) == ([], [])
    assert "the coordinator sent code to be run" in caplog.text
    assert "this device runs what is installed on it" in caplog.text


def test_a_message_of_an_unknown_kind_is_answered_with_an_error_and_does_not_come_again(
    service: Service, folder: Folder
) -> None:
    state, own = service._state, invited(folder)
    ask_in(own)
    run = state.begin_run()
    with connected(own, Path("nowhere"), Memory()) as link:
        question = Message(RecordDict(), link._node.node_id, "train.unheard_of", group_id="1")
        question.metadata.__dict__["_run_id"] = run.run_id
        (asked,) = state.ask([question], run.run_id)
        turn = link.turn()
        assert turn is not None
        assert (turn.kind, turn.refused) == ("train.unheard_of", "ValueError")
        assert [found.error.reason for found in state.answers([asked], run.run_id)] == ["ValueError"]
        assert link.turn() is None
    state.end_run(run)


def test_a_body_in_chunks_is_refused_before_it_is_read_whatever_length_it_says(
    service: Service, folder: Folder
) -> None:
    context = ssl.create_default_context(cadata=authority(folder))
    with (
        socket.create_connection(("127.0.0.1", folder.address.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as own,
    ):
        own.sendall(
            f"POST {ENROLL_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n".encode()
            + b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        )
        assert own.recv(4096).startswith(b"HTTP/1.1 411 ")


def _rogue_run(state: LinkState) -> int:
    from flwr.common.constant import NOOP_FLWR_AID
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.fab import Fab

    name = state.store_fab(Fab("", b"code", {}))
    run = state.create_run(
        "rogue/app", "1.0.0", name, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    assert task is not None
    assert state.claim_task(task) is not None
    assert state.activate_task(task)
    return run


def _post(folder: Folder, path: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    context = ssl.create_default_context(cadata=authority(folder))
    port = folder.address.port
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None
    finally:
        connection.close()


def _forward(listener: socket.socket, port: int) -> None:
    """Passes one connection's bytes on, as somebody in between could."""
    near, _ = listener.accept()
    with near, socket.create_connection(("127.0.0.1", port)) as far:
        threading.Thread(target=_pass, args=(far, near), daemon=True).start()
        _pass(near, far)


def _pass(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(4096):
            other.sendall(data)
    except OSError:
        pass


@contextmanager
def _plain_server(port: int, heard: list[bytes]) -> Iterator[None]:
    """Answers without TLS, and keeps what it was sent."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        over = threading.Event()

        def answer() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.settimeout(5)  # who connects and says nothing is not waited for
                    heard.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        over.set()
        with socket.create_connection(("127.0.0.1", port)):
            pass
        thread.join()
