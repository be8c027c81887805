"""LoPA: prompt rows that a low-rank gate fits to the text and the person (Jain et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.methods.base import (
    AbstractMethod,
    BackboneShape,
    MethodConfig,
    balanced,
    leading,
)
from umbel.coordinator.sites import Frame, Site
from umbel.shared.profile import TensorSpec

_HEAD_STD = 0.02
_EPSILON = 1e-6
_REACH = 5.0


@final
class LoPAConfig(MethodConfig):
    """Options of LoPA; the paper's symbols in brackets."""

    rows: int = Field(default=10, ge=1, le=4096, description="Shared prompt rows [m].")
    rank: int = Field(
        default=4, ge=1, le=4096, description="Rank of the factors [r]; the paper uses 1, 2 and 4."
    )
    private: Literal["both", "rows"] = Field(
        default="both", description="Private factors: both, or only the row factor over a shared basis."
    )
    combine: Literal["product", "add", "concat"] = Field(
        default="product",
        description="The person multiplies the shared rows, adds to them, or moves m more rows beside them.",
    )
    instance: bool = Field(default=True, description="Fit the rows to the text, too.")
    width: int = Field(
        default=256, ge=1, le=4096, description="Hidden width of the heads that read the text."
    )
    standardise: bool = Field(
        default=True, description="Scale the text's mean embedding to mean 0, variance 1 before the heads."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the heads' input while training.")
    init_std: float = Field(
        default=0.055,
        gt=0,
        description="Standard deviation of the first prompt rows: that of the backbone's word embeddings.",
    )
    start: Literal["responses", "embeddings", "zeros"] = Field(
        default="responses",
        description="Where training starts seen users, and the basis: along what moves answers as their "
        "labels ask for, where their labels point, or at zeros. New users start at zeros.",
    )
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the factors."
    )


@final
class _Head(nn.Module):
    """W2 tanh(W1 e + b1) + b2: from the text's embedding (d,) to a factor."""

    def __init__(self, inputs: int, width: int, outputs: int, rng: torch.Generator):
        super().__init__()
        self.W1 = _normal((width, inputs), _HEAD_STD, rng)
        self.b1 = nn.Parameter(torch.zeros(width))
        self.W2 = _normal((outputs, width), _HEAD_STD, rng)
        self.b2 = nn.Parameter(torch.zeros(outputs))

    def forward(self, e: Tensor) -> Tensor:
        """Maps (batch, d) to (batch, outputs)."""
        return torch.tanh(e @ self.W1.T + self.b1) @ self.W2.T + self.b2


@final
class LoPA(AbstractMethod):
    """Rows Z before the input embeddings: Z = Z_S * 2 sigmoid(U_u (V + V_u S)^T + U(x) V(x)^T).

    U_u (m, r) and V_u (d, r) are private and zero at birth, so that a person without factors has the generic
    prompt. Were the basis V (d, r) not there, each factor's gradient would have the other one, a zero, as a
    factor and nothing could be learned. U(x), V(x) come from two small networks that read the mean of the
    frozen token embeddings. The gradient of the prompt gives the factors away, and that of the networks the
    text: devices train none of this method's tensors (docs/methods/lopa.md).
    """

    name = "lopa"
    citation = (
        "Jain et al., Prompt Tuning Strikes Back: Customizing Foundation Models with Low-Rank Prompt "
        "Adaptation, NeurIPS 2024, arXiv 2405.15282"
    )
    equation = "Z = Z_S * 2 sigmoid(U_u (V + V_u S)^T + U(x) V(x)^T), rows before the input embeddings"
    Config = LoPAConfig
    config: LoPAConfig
    round_tensors = ()

    def __init__(self, config: LoPAConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator):
        super().__init__()
        self.config = config
        self.width = shape.hidden_size
        m, r, d = config.rows, config.rank, self.width
        self.Z = _normal((m, d), config.init_std, rng)
        if config.combine == "concat":
            self.Z_own = _normal((m, d), config.init_std, rng)
        # With factors of unit size the gate's argument, or a row that is added, gets a useful size.
        size = (1.0 if config.combine == "product" else config.init_std) / r**0.5
        self.V = _normal((d, r), size, rng)
        if config.private == "both":
            self.S = nn.Parameter(size * torch.eye(r))
        if config.instance:
            self.row_head = _Head(d, config.width, m * r, rng)
            self.column_head = _Head(d, config.width, d * r, rng)

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The factors U_u (m, r) and, unless only rows are private, V_u (d, r)."""
        config = self.config
        rows = TensorSpec("lopa.rows", (config.rows, config.rank), config.storage)
        if config.private == "rows":
            return (rows,)
        return rows, TensorSpec("lopa.columns", (self.width, config.rank), config.storage)

    def prompt_rows(self) -> int:
        """Returns m; 2 m where the person's rows stand beside the shared ones."""
        return self.config.rows * (2 if self.config.combine == "concat" else 1)

    def prompt(self, embedded: Tensor, frame: Frame) -> Tensor:
        """Returns Z (batch, m, d); with concat [Z_S * 2 sigmoid(U(x) V(x)^T); Z_own + U_u (V + V_u S)^T]."""
        personal = self._personal(frame)  # (batch, m, d)
        instance = self._instance(embedded, frame.mask)  # the same, or None
        if self.config.combine == "concat":
            shared = self.Z.expand_as(personal) if instance is None else self._gated(instance)
            return torch.cat([shared, self.Z_own + personal], dim=1)
        change = personal if instance is None else personal + instance
        return self._gated(change) if self.config.combine == "product" else self.Z + change

    def _gated(self, change: Tensor) -> Tensor:
        return self.Z * (2.0 * torch.sigmoid(change))  # change 0: exactly Z

    def _personal(self, frame: Frame) -> Tensor:
        """Returns U_u (V + V_u S)^T: (batch, m, d), and what every row is moved by besides."""
        columns: Tensor = self.V
        if self.config.private == "both":
            columns = columns + _kept("lopa.columns", frame) @ self.S  # (batch, d, r)
        personal: Tensor = _kept("lopa.rows", frame) @ columns.transpose(-1, -2)
        return personal if frame.shift is None else personal + frame.shift.unsqueeze(1)

    def _instance(self, embedded: Tensor, mask: Tensor) -> Tensor | None:
        """Returns U(x) V(x)^T: (batch, m, d), or None where the text has no say."""
        if not self.config.instance:
            return None
        share = mask.to(embedded.dtype)
        share = share / share.sum(1, keepdim=True).clamp_min(1.0)  # (batch, seq)
        e = (share.unsqueeze(1) @ embedded).squeeze(1)  # (batch, d)
        if self.config.standardise:
            e = functional.layer_norm(e, (self.width,), eps=_EPSILON)
        e = functional.dropout(e, self.config.dropout, self.training)
        rows = self.row_head(e).reshape(-1, self.config.rows, self.config.rank)
        columns = self.column_head(e).reshape(-1, self.width, self.config.rank)
        product: Tensor = rows @ columns.transpose(-1, -2)
        return product

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.start != "zeros"

    def response_size(self) -> int:
        """Returns r: each column of the basis is a direction."""
        return self.config.rank if self.config.start == "responses" else 0

    def response_reach(self) -> float:
        """Returns where a gate begins to saturate, or a few times the size of a row that is added to."""
        return 1.0 if self.config.combine == "product" else _REACH * self.config.init_std

    @torch.no_grad()
    def start_responding(self, coordinates: Tensor, directions: Tensor) -> dict[str, Tensor]:
        """Makes the directions the first columns of V; every row of U_u gets the user's coordinates."""
        count = coordinates.shape[1]
        self.V[:, :count].copy_(directions)
        rows = coordinates.new_zeros(len(coordinates), self.config.rows, self.config.rank)
        rows[:, :, :count] = coordinates.unsqueeze(1)
        return {"lopa.rows": rows}

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns U_u filled with the users' coordinates on the leading directions of their summaries.

        Column by column: the m strongest directions get a row each. V_u stays at zeros.
        """
        m, r = self.config.rows, self.config.rank
        start = leading(summary, m * r)
        return {"lopa.rows": start.reshape(-1, r, m).transpose(1, 2).contiguous()}

    @torch.no_grad()
    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes the second moments of the factors' rows the identity; no prompt changes.

        With L L^T the mean of u u^T over the rows u of all U_u, and K K^T that over the rows of all V_u:
        U_u <- U_u L^-T, V <- V L, V_u <- V_u K^-T, S <- K^T S L. The prior N(0, I) of few-shot learning then
        is as wide as the people seen. Directions below 1e-4 of the largest eigenvalue keep a moment below 1.
        """
        found = dict(profiles)
        rows = _balanced_rows(profiles["lopa.rows"])
        if rows is None:
            return found
        L, found["lopa.rows"] = rows
        self.V.copy_((self.V.double() @ L).to(self.V.dtype))
        if self.config.private == "both":
            spread = self.S.double() @ L
            columns = _balanced_rows(profiles["lopa.columns"])
            if columns is not None:
                K, found["lopa.columns"] = columns
                spread = K.T @ spread
            self.S.copy_(spread.to(self.S.dtype))
        return found


def _kept(name: str, frame: Frame) -> Tensor:
    """Returns a factor (batch, rows, r), zeros where personalised dropout hides it."""
    factor = frame.profile[name]
    return factor if frame.keep is None else factor * frame.keep.unsqueeze(-1)


def _balanced_rows(factors: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns `balanced` of the rows of every user's factor (users, n, r), the factors in their own shape."""
    found = balanced(factors.flatten(0, 1))
    return None if found is None else (found[0], found[1].reshape(factors.shape))


def _normal(shape: tuple[int, int], std: float, rng: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=rng))
