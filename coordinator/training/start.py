"""Where training starts: private tensors from labels and frozen embeddings, shared ones from the texts.

From zeros, the private and the shared tensors must find each other by chance, which takes many steps. A seen
user's labels already tell which directions of the embedding they like; the leading directions in which people
differ are a start that means something from the first step. New users still start at zeros, and what is
learned is free to move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame, InjectedLinear
from umbel.coordinator.training.collaborative import Factors
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.response import Summary, responding_start
from umbel.coordinator.training.step import UserTable
from umbel.shared.text import TokenBatch

_BATCH = 256
_MEAN_TEXTS = 1024  # a mean over so many texts is known to a few percent of the texts' own deviation
_PRIOR_EXAMPLES = 8.0
_MOST_LABELS = 16
_ROUNDING = 1e-9  # people who differ by less differ by the rounding of float64 alone

Matrix = npt.NDArray[np.float64]


@torch.no_grad()
def start_users(
    model: PersonalModel, table: UserTable, data: TrainingData, factors: Factors | None = None, seed: int = 0
) -> None:
    """Sets the table to each method's own start; methods that have none stay at zeros.

    Args:
        model: The model, as it was made.
        table: Seen users' private tensors.
        data: What is trained on.
        factors: What judgements of the same texts say of users, where there are such: they start by whom they
            agree with. Otherwise they start by what their labels say about embeddings.
        seed: Of the choice of texts on which a prompt is tried.
    """
    makers = [method for method in model.method_list() if method.starts_users()]
    if not makers or len(data.labels) > _MOST_LABELS or len(data.users) < 2:
        return
    summary = _summary(model, data, factors)
    values = table.as_profile()
    for method in makers:
        size = method.response_size()
        reach = method.response_reach()
        moves = responding_start(model, data, summary, size, reach, seed) if size else None
        if moves is None:
            found = method.start_users(torch.from_numpy(summary.values))
        else:
            found = method.start_responding(*moves)
        for name, start in found.items():
            values[name].copy_(start)


def _summary(model: PersonalModel, data: TrainingData, factors: Factors | None) -> Summary:
    """Returns what seen users' judgements say of them, and the features of texts that it refers to."""
    if factors is not None:
        return Summary(collaborative_summaries(factors), factors.text, factors.trait / _trait_size(factors))
    texts = _seen_texts(data)
    embedded = embeddings(model, data.tokens.rows(texts))
    rows = replace(data.train, text=np.searchsorted(texts, data.train.text))
    values = summaries(embedded, rows, len(data.users), len(data.labels))
    return Summary(values, texts, embedded - embedded.mean(0))


def _trait_size(factors: Factors) -> Matrix:
    """Returns the root mean square of each trait over judged texts; 1 where there is nothing of it."""
    found = np.sqrt(np.average(factors.trait**2, axis=0, weights=factors.weight))
    return np.where(found > _ROUNDING, found, 1.0)


def collaborative_summaries(factors: Factors) -> Matrix:
    """Returns tastes, each as large as the traits that it meets, and leans: (users, labels (size + 1)).

    Both are scaled so that the strongest direction has variance 1 between users.
    """
    taste = factors.taste * np.sqrt(np.average(factors.trait**2, axis=0, weights=factors.weight))
    return np.concatenate([_unit(taste.reshape(len(taste), -1)), _unit(factors.lean)], axis=1)


def _seen_texts(data: TrainingData) -> npt.NDArray[np.int64]:
    """Returns the texts that seen users judged, ascending; `data.tokens` may hold others' texts, too."""
    return np.unique(np.concatenate([rows.text for rows in (data.train, data.validation, *data.calibration)]))


@torch.no_grad()
def start_shared(model: PersonalModel, data: TrainingData) -> None:
    """Lets the methods that ask for it take first values of shared tensors from the training texts."""
    makers = [method for method in model.method_list() if method.starts_shared()]
    if not makers:
        return
    texts = np.unique(data.train.text)
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _MEAN_TEXTS)).round().astype(np.int64)
    means = site_means(model, data.tokens.rows(texts[chosen]))
    for method in makers:
        method.start_shared(means)


@torch.no_grad()
def embeddings(model: PersonalModel, tokens: TokenBatch) -> Matrix:
    """Returns the mean token state of every text, without any profile: (texts, d)."""
    found: list[npt.NDArray[np.float64] | None] = [None] * len(tokens)
    for index, mask, states in _passes(model, tokens):
        weights = mask.unsqueeze(-1).double()
        pooled = (states.double() * weights).sum(1) / weights.sum(1)
        for number, row in zip(index, pooled.cpu().numpy(), strict=True):
            found[int(number)] = row
    return np.stack([row for row in found if row is not None])


@torch.no_grad()
def site_means(model: PersonalModel, tokens: TokenBatch) -> dict[str, Tensor]:
    """Returns each projection's mean output W x + b over all tokens of the texts, without any profile.

    Rows that methods put before the input are left out, as padding is.

    Returns:
        Name of the site -> (d_out,) float64, where the model is.
    """
    modules = [module for module in model.encoder.modules() if isinstance(module, InjectedLinear)]
    seen: dict[int, Tensor] = {}

    def keep(number: int, module: InjectedLinear) -> Any:
        return module.base.register_forward_hook(lambda _module, _x, h: seen.__setitem__(number, h))

    hooks = [keep(number, module) for number, module in enumerate(modules)]
    sums: dict[str, Tensor] = {}
    try:
        for _, mask, _ in _passes(model, tokens):
            for number, h in seen.items():
                total = torch.einsum("bs,bsd->d", mask.double(), h[:, -mask.shape[1] :].double())
                for site in modules[number].sites:
                    own = total[site.offset : site.offset + site.d_out]
                    sums[site.name] = sums.get(site.name, torch.zeros_like(own)) + own
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / float(tokens.mask.sum()) for name, total in sums.items()}


def _passes(
    model: PersonalModel, tokens: TokenBatch
) -> Iterator[tuple[npt.NDArray[np.intp], Tensor, Tensor]]:
    """Gives, batch by batch of like length: which texts, their mask (batch, seq) and their token states."""
    device = next(model.parameters()).device
    model.eval()
    for index in tokens.like_length(_BATCH):
        part = tokens.rows(index)
        ids, mask = (torch.from_numpy(array).to(device) for array in (part.ids, part.mask))
        zeros = {
            tensor.name: torch.zeros(len(index), *tensor.shape, device=device)
            for tensor in model.profile_spec().tensors
        }
        yield index, mask, model.states(ids, mask, Frame(zeros, mask))


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
