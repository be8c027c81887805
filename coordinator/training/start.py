"""Where training starts the seen users' private tensors: what their labels say about frozen embeddings.

From zeros, the private and the shared tensors must find each other by chance, which takes many steps. A seen
user's labels already tell which directions of the embedding they like; the leading directions in which people
differ are a start that means something from the first step. New users still start at zeros, and what is
learned is free to move.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.step import UserTable
from umbel.shared.text import TokenBatch

_BATCH = 256
_PRIOR_EXAMPLES = 8.0
_MOST_LABELS = 16
_ROUNDING = 1e-9  # people who differ by less differ by the rounding of float64 alone

Matrix = npt.NDArray[np.float64]


@torch.no_grad()
def start_users(model: PersonalModel, table: UserTable, data: TrainingData) -> None:
    """Sets the table to each method's own start; methods that have none stay at zeros."""
    makers = [method for method in model.method_list() if method.starts_users()]
    if not makers or len(data.labels) > _MOST_LABELS or len(data.users) < 2:
        return
    embedded = embeddings(model, data.tokens)
    summary = torch.from_numpy(summaries(embedded, data.train, len(data.users), len(data.labels)))
    values = table.as_profile()
    for method in makers:
        for name, start in method.start_users(summary).items():
            values[name].copy_(start)


@torch.no_grad()
def embeddings(model: PersonalModel, tokens: TokenBatch) -> Matrix:
    """Returns the mean token state of every text, without any profile: (texts, d)."""
    device = next(model.parameters()).device
    model.eval()
    found: list[npt.NDArray[np.float64] | None] = [None] * len(tokens)
    order = np.argsort(tokens.mask.sum(1), kind="stable")
    for at in range(0, len(order), _BATCH):
        index = order[at : at + _BATCH]
        part = tokens.rows(index)
        ids, mask = (torch.from_numpy(array).to(device) for array in (part.ids, part.mask))
        zeros = {
            tensor.name: torch.zeros(len(index), *tensor.shape, device=device)
            for tensor in model.profile_spec().tensors
        }
        states = model.states(ids, mask, Frame(zeros, mask))
        weights = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(1) / weights.sum(1)
        for number, row in zip(index, pooled.double().cpu().numpy(), strict=True):
            found[int(number)] = row
    return np.stack([row for row in found if row is not None])


def summaries(embedded: Matrix, rows: Rows, users: int, labels: int) -> Matrix:
    """Returns what each user's labels say: (users, (d + 1) (labels - 1)).

    For every label but the first: the covariance, over the user's examples, of having that label and the
    embedding, and how much more often than others the user gives that label; both shrunk towards 0 by 8
    examples' worth, and scaled so that both kinds vary as much between users. Zeros where people do not
    differ.
    """
    centred = embedded - embedded.mean(0)
    shares = np.eye(labels)[rows.label][:, 1:]  # (n, labels - 1)
    taste = np.zeros((users, (labels - 1) * embedded.shape[1]))
    lean = np.zeros((users, labels - 1))
    for user in range(users):
        mine = rows.user == user
        count = int(mine.sum())
        weight = count / (count + _PRIOR_EXAMPLES)
        given = shares[mine]
        own = centred[rows.text[mine]]
        taste[user] = weight * ((given - given.mean(0)).T @ own / max(count, 1)).ravel()
        lean[user] = weight * (given.mean(0) - shares.mean(0))
    taste -= taste.mean(0)
    return np.concatenate([_unit(taste), _unit(lean)], axis=1)


def _unit(block: Matrix) -> Matrix:
    """Scales a block of columns so that its strongest direction has variance 1 between users."""
    strongest = np.linalg.norm(block, 2) / np.sqrt(max(len(block), 1))
    return np.asarray(block / strongest if strongest > _ROUNDING else np.zeros_like(block))
