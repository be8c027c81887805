"""What many people's judgements of the same texts say of both, without reading a word: matrix factorisation.

Where several seen users judge the same texts, who agrees with whom tells what texts have in common and what
users like, with far fewer passes of an encoder than learning it from single judgements: a text's factors are
a target that the encoder can be trained towards, and a user's are a place to start from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from umbel.coordinator.training.data import Rows
from umbel.coordinator.training.threads import computing_with
from umbel.shared.rng import integer_seed

_STEPS = 400
_RATE = 0.05
_FIRST = 0.3  # standard deviation of the first factors
_MEAN_PRIOR = 2.0  # of what a user or a text is on its own
_HALF = 4.0  # judgements of a text at which its factors count half
_PRIORS = (2.0, 4.0, 8.0)
_ALONE = 1e3  # a prior under which there are no traits
_LEAST_HELD_OUT = 50
_LEAST_JUDGEMENTS = 2.0  # of a text, on average, for factors to say anything
_FLOOR = 1e-6  # of the strongest direction, in which users differ

Matrix = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Factors:
    """logits of label c by user u of text t = b_c + lean[u, c] + worth[t, c] + taste[u, c] . trait[t].

    Attributes:
        text: (texts,) the texts that somebody judged, ascending.
        trait: (texts, size), the strongest direction first; a step of 1 moves logits by 1 in the root mean
            square over users.
        worth: (texts, labels), what everybody thinks of it, beyond the mean; rows sum to 0.
        weight: (texts,) between 0 and 1: n / (n + 4) for n judgements.
        taste: (users, labels, size); the sum over users is 0, and a user's over labels.
        lean: (users, labels), how much more readily they give a label; rows sum to 0.
        base: (labels,) the mean logits.
    """

    text: npt.NDArray[np.int64]
    trait: Matrix
    worth: Matrix
    weight: Matrix
    taste: Matrix
    lean: Matrix
    base: Matrix

    def nll(self, rows: Rows) -> Matrix:
        """Returns the nll (n,) of judgements of texts that were factorised."""
        place = np.searchsorted(self.text, rows.text)
        own = (self.taste[rows.user] * self.trait[place][:, None]).sum(-1)
        logits = self.base + self.lean[rows.user] + self.worth[place] + own
        logits -= logits.max(1, keepdims=True)
        chosen = logits[np.arange(len(rows)), rows.label]
        return np.asarray(np.log(np.exp(logits).sum(1)) - chosen)


def has_overlap(rows: Rows) -> bool:
    """Says whether texts are judged by two users or more, on average."""
    return len(rows) >= _LEAST_JUDGEMENTS * len(np.unique(rows.text))


def found_factors(
    rows: Rows, held_out: Rows, users: int, labels: int, size: int, seed: int
) -> Factors | None:
    """Fits factors where they predict: the prior is chosen on held-out judgements.

    Args:
        rows: Who judged which text how.
        held_out: Further judgements of the same users.
        users: How many users there are.
        labels: How many labels there are.
        size: Traits of a text; none are found if it is 0.
        seed: Of the first values.

    Returns:
        None where texts are hardly shared, or where knowing who judges which text does not make the held-out
        judgements likelier, by two standard errors, than how each user and each text is on its own.
    """
    if size == 0 or users < 2 or not has_overlap(rows):
        return None
    known = held_out.take(np.flatnonzero(np.isin(held_out.text, rows.text)))
    if len(known) < _LEAST_HELD_OUT:
        return None
    with computing_with(1):  # each of very many steps is too small for more
        alone = factorise(rows, users, labels, 1, _ALONE, seed).nll(known)
        tried = [factorise(rows, users, labels, size, prior, seed) for prior in _PRIORS]
    best = min(tried, key=lambda factors: float(factors.nll(known).mean()))
    gain = alone - best.nll(known)
    return best if gain.mean() > 2 * gain.std() / len(gain) ** 0.5 else None


def factorise(rows: Rows, users: int, labels: int, size: int, prior: float, seed: int) -> Factors:
    """Fits the factors by maximum a posteriori; the same arguments give the same bits.

    Minimises sum_i nll_i + prior / 2 (|taste|^2 + |trait|^2) + |lean|^2 + |worth|^2, then turns traits and
    tastes, which changes no logit.

    Args:
        rows: Who judged which text how.
        users: How many users there are.
        labels: How many labels there are.
        size: Traits of a text.
        prior: Pull of tastes and traits to 0.
        seed: Of the first values.
    """
    text, place = np.unique(rows.text, return_inverse=True)
    rng = torch.Generator().manual_seed(integer_seed(seed, 0, "", "collaborative factors"))
    trait = torch.empty(len(text), size).normal_(0.0, _FIRST, generator=rng)
    taste = torch.empty(users, labels * size).normal_(0.0, _FIRST, generator=rng)
    worth, lean, base = torch.zeros(len(text), labels), torch.zeros(users, labels), torch.zeros(labels)
    parts = [value.requires_grad_(True) for value in (trait, taste, worth, lean, base)]
    optimizer = torch.optim.Adam(parts, lr=_RATE)
    whose, which, label = (torch.from_numpy(array) for array in (rows.user, place, rows.label))
    with torch.enable_grad():
        for step in range(_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / _STEPS)
            loss = _loss(trait, taste, worth, lean, base, whose, which, label, prior)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    found = [value.detach().double().numpy() for value in parts]
    counts = np.bincount(place, minlength=len(text)).astype(np.float64)
    return _turned(text, counts, found[0], found[1].reshape(users, labels, size), *found[2:])


def _loss(
    trait: Tensor,
    taste: Tensor,
    worth: Tensor,
    lean: Tensor,
    base: Tensor,
    whose: Tensor,
    which: Tensor,
    label: Tensor,
    prior: float,
) -> Tensor:
    labels = len(base)
    own = taste.index_select(0, whose).reshape(len(whose), labels, -1)
    logits = base + lean.index_select(0, whose) + worth.index_select(0, which)
    logits = logits + (own * trait.index_select(0, which).unsqueeze(1)).sum(-1)
    nll = functional.cross_entropy(logits, label, reduction="sum")
    of_means = lean.square().sum() + worth.square().sum()
    return nll + 0.5 * (_MEAN_PRIOR * of_means + prior * (taste.square().sum() + trait.square().sum()))


def _turned(
    text: npt.NDArray[np.int64],
    counts: Matrix,
    trait: Matrix,
    taste: Matrix,
    worth: Matrix,
    lean: Matrix,
    base: Matrix,
) -> Factors:
    """Centres everything and turns traits so that the strongest comes first, in units of logits."""
    shares = counts / counts.sum()
    middle = shares @ trait
    lean, trait = lean + taste @ middle, trait - middle
    # What everybody likes is a text's worth: a user without any taste is the mean user.
    worth, taste = worth + trait @ taste.mean(0).T, taste - taste.mean(0)
    taste = taste - taste.mean(1, keepdims=True)  # the same for every label changes no answer
    lean, worth = (values - values.mean(1, keepdims=True) for values in (lean, worth))
    base = base + lean.mean(0) + shares @ worth
    lean, worth = lean - lean.mean(0), worth - shares @ worth
    flat = taste.reshape(-1, taste.shape[2])
    values, vectors = np.linalg.eigh(flat.T @ flat / len(taste))
    values = np.maximum(values, _FLOOR * max(values.max(), 1e-300))
    spread = trait @ (vectors * np.sqrt(values))  # of users with unit tastes
    _, _, turn = np.linalg.svd(np.sqrt(shares)[:, None] * spread, full_matrices=False)
    turn = turn * np.where(turn[np.arange(len(turn)), np.abs(turn).argmax(1)] < 0, -1.0, 1.0)[:, None]
    return Factors(
        text,
        spread @ turn.T,
        worth,
        counts / (counts + _HALF),
        taste @ (vectors / np.sqrt(values)) @ turn.T,
        lean,
        base,
    )
