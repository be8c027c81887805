"""Training in several processes, as torchrun starts them: each takes its share of every batch.

Every worker has the whole model and makes the same random choices. Gradients are added up, each share's by
the share of the batch that it is, so that a step is that of one process up to rounding. The first worker
alone writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from umbel.shared.errors import TrainingError

_PATIENCE = timedelta(days=7)  # while the first worker does what is not shared; who ends is noticed at once
_LOST = "another worker of this training has ended; the first one's words say why"


@final
@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of a batch.

    Attributes:
        rows: Places in the batch.
        weight: What its mean loss counts in the batch's; those of all workers sum to 1.
        everyone: (rows, ...) -> (batch, ...), all workers' rows in the batch's order, with gradients; None
            where this worker has all of the rows.
    """

    rows: npt.NDArray[np.intp]
    weight: float = 1.0
    everyone: Callable[[Tensor], Tensor] | None = None


@final
@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank: This one's number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker writes files and tells how it goes."""
        return self.rank == 0

    def share(self, size: int) -> Share:
        """Returns this worker's part of a batch: every so-manieth row, as rows are sorted by length.

        Of a batch that has fewer rows than there are workers, each worker takes all.
        """
        every = np.arange(size)
        if self.count == 1:
            return Share(every)
        if size < self.count:
            return Share(every, 1.0 / self.count)
        own = every[self.rank :: self.count]
        index = torch.from_numpy(own)

        def everyone(rows: Tensor) -> Tensor:
            if not rows.is_floating_point():
                return _placed(rows, index, size)
            whole: Tensor = _Everyone.apply(rows, index, size)  # type: ignore[no-untyped-call]
            return whole

        return Share(own, len(own) / size, everyone)

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by the sum over all workers, in place, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _connected():
            distributed.all_reduce(flat)
        for tensor, part in zip(
            tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.reshape(tensor.shape))

    @torch.no_grad()
    def copy_from_first(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives tensors the first worker's values, in place."""
        if self.count == 1:
            return
        with _connected():
            for name in sorted(tensors):
                value = tensors[name].detach().contiguous()
                distributed.broadcast(value, 0)
                tensors[name].copy_(value)

    def from_first(self, value: Any) -> Any:
        """Returns the first worker's value; what the others give does not count."""
        if self.count == 1:
            return value
        box = [value]
        with _connected():
            distributed.broadcast_object_list(box, 0)
        return box[0]

    def agree(self, what: str, value: str) -> None:
        """Checks that all workers have the same value.

        Raises:
            TrainingError: They differ; the same error in every worker.
        """
        if self.count == 1:
            return
        found: list[str] = [""] * self.count
        with _connected():
            distributed.all_gather_object(found, value)
        if len(set(found)) > 1:
            raise TrainingError(
                f"the workers of this training do not have the same {what}",
                [f"worker {rank}: {own[:12]}" for rank, own in enumerate(found)],
                "Give all of them the same configuration, examples, backbone and version of umbel.",
            )


ALONE = Workers()


@contextmanager
def joined(on_gpu: bool) -> Iterator[Workers]:
    """Joins the other processes where torchrun has started this one, and leaves them at the end.

    Args:
        on_gpu: Whether this training is on GPUs.

    Raises:
        TrainingError: torchrun's environment is not whole, or the others cannot be reached.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1" or distributed.is_initialized():
        yield ALONE
        return
    rank = os.environ.get("RANK", "")
    if not (count.isdecimal() and rank.isdecimal() and int(rank) < int(count)):
        raise TrainingError(
            "WORLD_SIZE and RANK do not name the workers of a training",
            [f"WORLD_SIZE is '{count[:20]}', RANK is '{rank[:20]}'"],
            "Start them with torchrun, or unset both.",
        )
    if on_gpu:
        torch.cuda.set_device(own_gpu())
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            "the workers of this training do not find each other",
            [f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"],
            "Start them with torchrun; on one machine GLOO_SOCKET_IFNAME=lo may help.",
        ) from error
    try:
        yield Workers(int(rank), int(count))
    finally:
        distributed.destroy_process_group()


def is_helper() -> bool:
    """Says whether torchrun has started this process, and not as the first."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def own_gpu() -> int:
    """Returns which GPU of its machine this worker has."""
    local = os.environ.get("LOCAL_RANK", "0")
    return int(local) if local.isdecimal() else 0


@contextmanager
def _connected() -> Iterator[None]:
    """Tells in one sentence that another worker is gone."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(_LOST, hint="Give the same command again: training goes on.") from error


def _placed(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Returns all workers' rows in the batch's order."""
    whole = rows.new_zeros(size, *rows.shape[1:])
    whole[index.to(rows.device)] = rows
    with _connected():
        distributed.all_reduce(whole)
    return whole


@final
class _Everyone(torch.autograd.Function):
    """Gathers rows of all workers; a row's gradient is the sum of what all workers' losses have for it."""

    @staticmethod
    def forward(context: Any, rows: Tensor, index: Tensor, size: int) -> Tensor:
        context.index = index
        return _placed(rows.detach(), index, size)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = gradient.contiguous().clone()
        with _connected():
            distributed.all_reduce(whole)
        return whole[context.index.to(whole.device)], None, None
