"""What Flower's Grid is in any process of ours that sends messages itself: one run, and messages of it."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class OwnGrid(Grid):
    """A Grid of one run; where its messages go is for its subclasses to say."""

    def __init__(self, run: Run, node_id: int, task_id: int):
        """Takes the run, and who sends in it.

        Args:
            run: The run.
            node_id: The sender's id.
            task_id: The id of its task.
        """
        self._run = run
        # Flower's Message reads whom it is from here.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, node_id, task_id

    def set_run(self, run: Run) -> None:
        """Sets the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Makes a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
