"""PLoRA: personalized low-rank adaptation (Zhang et al., AAAI 2024, arXiv 2403.06208)."""

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
    kaiming,
    leading,
)
from umbel.coordinator.sites import Frame, Site
from umbel.shared.profile import TensorSpec

_TEMPERATURE = 4.0


@final
class PLoRAConfig(MethodConfig):
    """Options of PLoRA; the paper's symbols in brackets."""

    rank: int = Field(default=16, ge=1, le=4096, description="Rank of the update [r]; the paper uses 64.")
    alpha: float = Field(
        default=32.0, gt=0, description="Scale of the update is alpha / rank [alpha]; the paper uses 128."
    )
    user_size: int = Field(
        default=64, ge=1, le=4096, description="Floats in the private vector [d_u]; the paper uses 512."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout of x and of the user vector while training."
    )
    agreement: float = Field(
        default=0.1, ge=0, description="Weight of the agreement (mutual-information) terms [mim]."
    )
    start: Literal["embeddings", "zeros"] = Field(
        default="embeddings", description="Where training starts seen users; new users start at zeros."
    )
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the vector."
    )


@final
class _Projection(nn.Module):
    """A (r, d_in), B (d_out, r) and P (r, d_u) of one site."""

    def __init__(self, site: Site, config: PLoRAConfig, rng: torch.Generator):
        super().__init__()
        self.A = kaiming(config.rank, site.d_in, rng)
        self.P = kaiming(config.rank, config.user_size, rng)
        self.B = nn.Parameter(torch.zeros(site.d_out, config.rank))


@final
class PLoRA(AbstractMethod):
    """h = W x + b + s B (A drop(x) + P drop(m_u p_u)), s = alpha / r, at every query and value projection.

    p_u (d_u,) is private and zero at birth; A, P, B are shared. B starts at zero, so a new model is the
    backbone.
    """

    name = "plora"
    citation = (
        "Zhang et al., Personalized LoRA for Human-Centered Text Understanding, AAAI 2024, arXiv 2403.06208"
    )
    equation = "h = W x + b + s B (A drop(x) + P drop(m_u p_u)),  s = alpha / r"
    Config = PLoRAConfig
    config: PLoRAConfig
    round_tensors = ("*.A",)  # the gradients of P and B have p_u as a factor

    def __init__(
        self, config: PLoRAConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.scale = config.alpha / config.rank
        own = [site for site in sites if site.role in ("query", "value")]
        self.projections = nn.ModuleDict({site.name: _Projection(site, config, rng) for site in own})

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The user vector p_u (d_u,)."""
        return (TensorSpec("plora.user", (self.config.user_size,), self.config.storage),)

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns s B (A drop(x) + P drop(m_u p_u)): (batch, seq, d_out)."""
        part = self._projection(site)
        if part is None:
            return None
        rate = self.config.dropout if self.training else 0.0
        low_rank = functional.dropout(x, rate, self.training) @ part.A.T  # (batch, seq, r)
        personal = self._personal(site, frame, rate, x.shape[1])  # (batch, seq, r), the same for every token
        if frame.records is not None:
            # s B (A x + P p) - s B A x is s B P p.
            frame.record("plora.shift", self.scale * (personal[:, 0] @ part.B.T))  # (batch, d_out)
        # The scale goes to the matrix, which a graph holds scaled: what is added to h is a product alone.
        return (low_rank + personal) @ (self.scale * part.B).T

    def _personal(self, site: Site, frame: Frame, rate: float, tokens: int) -> Tensor:
        """Returns P drop(m_u p_u): (batch, tokens, r); without dropout, of all sites in one product."""
        user = frame.profile["plora.user"]  # (batch, d_u)
        if frame.keep is not None:
            user = user * frame.keep
        if rate:
            own = functional.dropout(user, rate) @ self._part(site.name).P.T  # (batch, r)
            return own.unsqueeze(1).expand(-1, tokens, -1)
        names = list(self.projections)

        def of_all() -> tuple[Tensor, ...]:
            P = torch.cat([self._part(name).P for name in names])  # (sites * r, d_u)
            every = (user @ P.T).unsqueeze(1).expand(-1, tokens, -1)  # (batch, tokens, sites * r)
            return torch.split(every, self.config.rank, dim=-1)

        return frame.once("plora.personal", of_all)[names.index(site.name)]

    def needs_generic_pass(self) -> bool:
        """The agreement terms compare with the generic logits."""
        return self.config.agreement > 0

    def training_term(self, logits: Tensor, generic_logits: Tensor | None, frame: Frame) -> Tensor | None:
        """Returns mim * (mean over sites MSE(s B(Ax + Pp), s B A x) + KL(softmax(z_p/4), softmax(z_0/4)))."""
        if generic_logits is None or frame.records is None:
            return None
        mse = torch.stack([shift.square().mean() for shift in frame.records["plora.shift"]]).mean()
        personal = functional.log_softmax(logits / _TEMPERATURE, dim=-1)
        generic = functional.log_softmax(generic_logits / _TEMPERATURE, dim=-1)
        divergence = (personal.exp() * (personal - generic)).sum(dim=-1).mean()
        return self.config.agreement * (mse + divergence)

    def fold(self, site: Site, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Returns (s B A, s B P p_u): the whole method is a change of W and b for one user."""
        part = self._projection(site)
        if part is None:
            return None
        return self.scale * part.B @ part.A, self.scale * part.B @ (part.P @ profile["plora.user"])

    def _projection(self, site: Site) -> _Projection | None:
        return self._part(site.name) if site.name in self.projections else None

    def _part(self, name: str) -> _Projection:
        part = self.projections[name]
        assert isinstance(part, _Projection)
        return part

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.start == "embeddings"

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns the users' coordinates on the leading principal directions of their summaries."""
        return {"plora.user": leading(summary, self.config.user_size)}

    @torch.no_grad()
    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes the seen users' second moment the identity: P <- P L, p <- L^-1 p, L L^T = mean of p p^T.

        P p is unchanged for every p. A prior of N(0, I) on the new vector then is the distribution of the
        people seen, so that a few examples move a new user along the directions in which people really
        differ.
        """
        found = balanced(profiles["plora.user"])
        if found is None:
            return dict(profiles)
        basis, rebased = found
        for part in self.projections.values():
            assert isinstance(part, _Projection)
            part.P.copy_((part.P.double() @ basis).to(part.P.dtype))
        return {**profiles, "plora.user": rebased}
