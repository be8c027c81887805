"""What messages are made of, in memory: Flower's store, in which an object's content says what its parts are.

Flower believes the tree that comes with an answer, before any content has come. Many objects have the same
hash in every device's answer (the heads of a stage's answers, say), so a device that named false parts of one
kept every other device's answer from ever being whole, and the questions in which it occurs from being read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_children_ids_from_object_content
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

_MOST_LEVELS = 8  # message, records, record, array, chunk


@final
class Objects(InMemoryObjectStore):
    """Flower's store, but for whose word counts."""

    def put(self, object_id: str, object_content: bytes) -> None:
        """Takes an object in; its parts are from then on those that its content names.

        Raises:
            ValueError: The content has another hash, or names parts that no tree has told.
        """
        with self.lock_store:
            told = get_object_children_ids_from_object_content(object_content)
            if not all(part in self.store for part in told):
                raise ValueError("the object names parts that were not told")
            super().put(object_id, object_content)
            entry = self.store[object_id]
            before, entry.child_object_ids = entry.child_object_ids, told
            for part in told:
                self.store[part].ref_count += 1
            for part in before:
                self.store[part].ref_count -= 1
                self.delete(part)

    def parts(self, object_id: str) -> set[str]:
        """Returns an object and all that it is made of, each once; as far as they are there."""
        found: set[str] = set()
        waiting = [object_id]
        with self.lock_store:
            while waiting:
                own = waiting.pop()
                if own not in found:
                    found.add(own)
                    entry = self.store.get(own)
                    waiting += [] if entry is None else entry.child_object_ids
        return found

    def refuses(self, tree: ObjectTree, most: int) -> str:
        """Returns why a tree is none that an answer has; nothing if it may be one.

        Args:
            tree: What a device tells of its answer.
            most: The most objects that an answer has.
        """
        told: dict[str, Sequence[str]] = {}
        level, levels, count = [tree], 0, 0
        while level:
            levels, count = levels + 1, count + len(level)
            if levels > _MOST_LEVELS or count > most:
                return f"an answer has at most {most} objects, in {_MOST_LEVELS} levels"
            for node in level:
                children = [child.object_id for child in node.children]
                if told.setdefault(node.object_id, children) != children or self._is_other(node, children):
                    return "an object has other parts elsewhere"
            level = [child for node in level for child in node.children]
        return ""

    def _is_other(self, node: ObjectTree, children: Sequence[str]) -> bool:
        """Says whether an object is here, with its content, and has other parts."""
        with self.lock_store:
            entry = self.store.get(node.object_id)
            return entry is not None and entry.is_available and entry.child_object_ids != children
