"""What Flower's link knows: nodes, messages and their objects, in memory.

Flower's own state is extended where a device that is killed or cut off would otherwise lose its place:
- a node's id is a function of its public key: a device is the same node after a restart of either side;
- a node that is thought to be online may come again at once, not only when its heartbeats have run out;
- a message that a node was given and has not answered is given to it again when it next asks.
Nothing here needs to survive the coordinator: who may take part is kept in the roster, and what rounds have
reached in their journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import final

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager

from umbel.coordinator.service.object_store import Objects
from umbel.shared.errors import TrainingError

_NODE_BYTES = 8


def node_id(key: bytes) -> int:
    """Returns the node id of a public key: the first bytes of its hash.

    Args:
        key: The public key (PEM).
    """
    found = int.from_bytes(hashlib.sha256(key).digest()[:_NODE_BYTES], "big")
    return found if found not in (0, SUPERLINK_NODE_ID) else SUPERLINK_NODE_ID + 1


@final
class LinkState(InMemoryLinkState):
    """Flower's state, with nodes that stay who they are."""

    def __init__(self) -> None:
        self.objects = Objects()
        self._brought: dict[str, set[str]] = {}  # answer's id -> the objects that its device told of
        super().__init__(NoOpFederationManager(), self.objects)

    def admit(self, key: bytes) -> int:
        """Lets a public key (PEM) in, and returns its node id; one that is in already stays."""
        wanted = node_id(key)
        with self.lock:
            if wanted in self.nodes:
                return wanted
            made = self.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
            node = self.nodes.pop(made)
            node.node_id = wanted
            self.nodes[wanted] = node
            self.node_public_key_to_node_id[key] = wanted
            owned = self.owner_to_node_ids[NOOP_FLWR_AID]
            owned.discard(made)
            owned.add(wanted)
        return wanted

    def key_of(self, node: int) -> bytes:
        """Returns the public key (PEM) of a node."""
        return bytes(self.nodes[node].public_key)

    def shut_out(self, key: bytes) -> None:
        """Lets a public key in no longer."""
        with self.lock:
            own = self.node_public_key_to_node_id.pop(key, None)
            if own is not None:
                self.nodes[own].status = NodeStatus.UNREGISTERED

    def online(self) -> list[NodeInfo]:
        """Returns the nodes that were heard of lately."""
        return list(self.get_node_info(statuses=[NodeStatus.ONLINE]))

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Takes a node in that comes, also where it was killed and is still thought to be online."""
        with self.lock:
            self.deactivate_node(node_id)
            self.give_again(node_id)
            return super().activate_node(node_id, heartbeat_interval)

    def give_again(self, node_id: int) -> None:
        """Makes what a node was given and has not wholly answered ready to be given again."""
        with self.lock:
            for message_id, message in self.message_ins_store.items():
                given = message.metadata.dst_node_id == node_id and message.metadata.delivered_at
                if not given or self.is_answered(message_id):
                    continue
                self._drop_answer(message_id)
                message.metadata.delivered_at = ""

    def brought(self, tree: ObjectTree) -> None:
        """Notes what an answer that was taken is made of, as its device tells it."""
        with self.lock:
            if tree.object_id in self.message_res_store:
                self._brought[tree.object_id] = {part.object_id for part in iterate_object_tree(tree)}

    def _on_push_session_expired(self, message_object_ids: set[str]) -> None:
        """Forgets answers whose objects did not come in time."""
        super()._on_push_session_expired(message_object_ids)
        for own in message_object_ids:
            self._brought.pop(own, None)

    def is_answered(self, message_id: str) -> bool:
        """Says whether the answer to a message has arrived with all its objects."""
        answer = self.message_ins_id_to_message_res_id.get(message_id)
        if answer is None:
            return False
        return all(self.object_store.get(part) for part in self._parts(answer))

    def begin_run(self) -> Run:
        """Begins a run; devices are asked within one. It has no bundle: devices run what is installed."""
        run_id = self.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = self.get_run_info(run_ids=[run_id])[0] if run_id else None
        task = run.primary_task_id if run else None
        if run is None or task is None or self.claim_task(task) is None or not self.activate_task(task):
            raise TrainingError("Flower's link began no run")
        # A claimed task ends where its process sends no heartbeats; this one ends with the process.
        with self.lock_task_store:
            record = self.task_token_store.pop(task)
            self.task_token_to_task_id.pop(record.token)
        return run

    def end_run(self, run: Run) -> None:
        """Ends a run; what devices still answer is refused."""
        if run.primary_task_id is not None:
            self.finish_task(run.primary_task_id, SubStatus.COMPLETED, "")
        self.cleanup_run(run.run_id)

    def ask(self, messages: Iterable[Message], run_id: int) -> list[str]:
        """Puts messages where nodes fetch them; returns their ids, "" for one whose node is unknown."""
        ids = []
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                ids.append(self._put(message, run_id))
        return ids

    def _put(self, message: Message, run_id: int) -> str:
        """Puts one message with its objects; what another message has brought already is not made again."""
        session = self.start_session(run_id)  # it ends with its last object
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        bare = remove_content_from_message(message)
        stored, missing = self.store_message_and_object_tree(bare, tree, session)
        for part in missing:
            self.store_object(run_id, session, part, objects[part].deflate())
        return message.metadata.message_id if stored else ""

    def answers(self, message_ids: Iterable[str], run_id: int) -> list[Message]:
        """Takes the answers that are whole, and Flower's own errors about nodes that have gone without one.

        Args:
            message_ids: Of messages; those whose answer is on its way are left for the next time.
            run_id: Their run.
        """
        with self.lock:
            wanted = set(message_ids)
            come = {own for own in wanted if own in self.message_ins_id_to_message_res_id}
            asked = {own: self.message_ins_store[own] for own in wanted if own in self.message_ins_store}
            # Flower would report a node that has answered and left at once as gone, and lose its answer.
            answers = [self._answer_to(own) for own in sorted(come) if self.is_answered(own)]
            answers += self.get_message_res(wanted - come, run_id) if wanted - come else []
            found = [self._taken(answer, asked) for answer in answers]
            for answer in found:
                self.drop(answer.metadata.reply_to_message_id)
        return found

    def _answer_to(self, message_id: str) -> Message:
        return self.message_res_store[self.message_ins_id_to_message_res_id[message_id]]

    def _taken(self, answer: Message, asked: Mapping[str, Message]) -> Message:
        """Returns an answer with its content.

        What it says of itself within its content (whose answer it is, and to what) is replaced by what was
        checked when it came: a device may write anything there.
        """
        metadata = answer.metadata
        question = asked.get(metadata.reply_to_message_id)
        if question is not None:  # Flower's own errors come from the link; they are about this node
            metadata.__dict__["_src_node_id"] = question.metadata.dst_node_id
        return self._whole(metadata)

    def _whole(self, metadata: Metadata) -> Message:
        own = metadata.message_id
        try:
            contents = {part: self.object_store.get(part) or b"" for part in self._parts(own)}
            found = inflate_object_from_contents(own, contents)
            if not isinstance(found, Message):
                raise TypeError(type(found).__name__)
            if found.has_content():
                return make_message(metadata=metadata, content=found.content)
            return make_message(metadata=metadata, error=found.error)
        except Exception as error:  # a device may send any bytes, and Flower's readers fail in many ways
            reason = f"its answer cannot be read ({type(error).__name__})"
            return make_message(metadata=metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))

    def drop(self, message_id: str) -> None:
        """Forgets a message, what came of it, and the objects of both."""
        with self.lock:
            self._drop_answer(message_id)
            self.delete_messages({message_id})
            self.object_store.delete(message_id)

    def _drop_answer(self, message_id: str) -> None:
        answer = self.message_ins_id_to_message_res_id.pop(message_id, None)
        if answer is not None:
            self.message_res_store.pop(answer, None)
            # Its objects go with it; one that no object holds was told of in vain.
            for part in (answer, *self._brought.pop(answer, ())):
                self.object_store.delete(part)

    def _parts(self, object_id: str) -> set[str]:
        return self.objects.parts(object_id)
