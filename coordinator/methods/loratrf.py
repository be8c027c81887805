"""LoRATRF: low-rank adaptation with a task-relevant feature filter (Li et al., 2024, arXiv 2412.09827)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

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

_EPSILON = 1e-8
"""Added to squared norms: the cosine with a vector of zeros is 0, and so is its gradient."""


@final
class LoRATRFConfig(MethodConfig):
    """Options of LoRATRF; the paper's symbols in brackets. What its abstract leaves open is an option."""

    rank: int = Field(default=16, ge=1, le=4096, description="Rank of the update [r].")
    alpha: float = Field(default=16.0, gt=0, description="Scale of the update is alpha / rank [alpha].")
    filter_rank: int = Field(default=8, ge=1, le=4096, description="Rank of the filtered part [r'].")
    beta: float = Field(default=1.0, gt=0, description="Scale of the filtered part [beta].")
    gate: Literal["cosine-clamp", "sigmoid"] = Field(
        default="cosine-clamp", description="How relevant a token is: max(cos(h, xi), 0), or a sigmoid."
    )
    on: Literal["h", "lora"] = Field(default="h", description="What is filtered: h, or the low-rank update.")
    vectors: Literal["projection", "layer", "shared"] = Field(
        default="projection", description="Who shares a task vector xi: nobody, a layer, or all projections."
    )
    start: Literal["texts", "random"] = Field(
        default="texts", description="First xi: the mean h over the training texts, or noise."
    )
    users: Literal["embeddings", "zeros"] = Field(
        default="embeddings", description="Where training starts seen users; new users start at zeros."
    )
    private: Literal["gates", "shift", "none"] = Field(
        default="gates", description="What a person has: a gate per layer, a shift of xi, or nothing."
    )
    shift_size: int = Field(default=8, ge=1, le=4096, description="Floats of a private shift [q].")
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the private tensor."
    )


@final
class _Projection(nn.Module):
    """A (r, d_in), B (d_out, r), C (r', d_out) and D (d_out, r') of one site."""

    def __init__(self, site: Site, config: LoRATRFConfig, rng: torch.Generator):
        super().__init__()
        self.A = kaiming(config.rank, site.d_in, rng)
        self.B = nn.Parameter(torch.zeros(site.d_out, config.rank))
        self.C = kaiming(config.filter_rank, site.d_out, rng)
        self.D = nn.Parameter(torch.zeros(site.d_out, config.filter_rank))


@final
class LoRATRF(AbstractMethod):
    """out = h + s B A x + beta D C (g f(h, xi) h), s = alpha / r, at every query and value projection.

    f in [0, 1] says how relevant a token is to the task: the clamped cosine of h and the task vector xi. With
    private gates, g = 1 + (G g_u)_l; with a private shift, xi + S s_u stands for xi. g_u and s_u are zero at
    birth. B and D start at zero, so a new model is the backbone.

    Devices train A alone. The gradients of G and S have the private tensor as a factor; those of C, D and xi
    have the layer's gate as a factor, or are taken at the shifted xi. B's has none, but stays as it is so
    that the mean of the devices' B A is B times their mean A.
    """

    name = "loratrf"
    citation = "Li et al., low-rank adaptation with task-relevant feature enhancement, 2024, arXiv 2412.09827"
    equation = "h + s B A x + beta D C (g clamp(cos(h, xi), 0, 1) h),  s = alpha / r,  g = 1 + (G g_u)_l"
    Config = LoRATRFConfig
    config: LoRATRFConfig
    round_tensors = ("*.A",)

    def __init__(
        self, config: LoRATRFConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.layers = shape.layers
        own = [site for site in sites if site.role in ("query", "value")]
        self.projections = nn.ModuleDict({site.name: _Projection(site, config, rng) for site in own})
        self.sharers: dict[str, list[str]] = {}  # task vector -> its sites
        self.xi = nn.ParameterDict()
        self.S = nn.ParameterDict()
        for site in own:
            self.sharers.setdefault(self._vector(site), []).append(site.name)
            if self._vector(site) not in self.xi:
                self.xi[self._vector(site)] = nn.Parameter(torch.empty(site.d_out).normal_(generator=rng))
                if config.private == "shift":
                    self.S[self._vector(site)] = kaiming(site.d_out, config.shift_size, rng)
        if config.private == "gates":
            self.G = nn.Parameter(torch.eye(self.layers))

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The gates g_u (L,), the shift s_u (q,), or nothing."""
        sizes = {"gates": self.layers, "shift": self.config.shift_size}
        kind, storage = self.config.private, self.config.storage
        return (TensorSpec(f"loratrf.{kind}", (sizes[kind],), storage),) if kind in sizes else ()

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns s B A x + beta D C (g f(h, xi) h): (batch, seq, d_out)."""
        if site.name not in self.projections:
            return None
        part = self.projections[site.name]
        assert isinstance(part, _Projection)
        update = (self.config.alpha / self.config.rank) * ((x @ part.A.T) @ part.B.T)
        private = self._private(frame)  # (batch, n)
        weight = self._relevance(site, h, private)  # (batch, seq, 1)
        if private is not None and self.config.private == "gates":
            weight = weight * (1.0 + private @ self.G[site.layer]).reshape(-1, 1, 1)
        filtered = weight * ((h if self.config.on == "h" else update) @ part.C.T)  # (batch, seq, r')
        return update + self.config.beta * (filtered @ part.D.T)

    def _private(self, frame: Frame) -> Tensor | None:
        if self.config.private == "none":
            return None
        own = frame.profile[f"loratrf.{self.config.private}"]
        return own if frame.keep is None else own * frame.keep

    def _relevance(self, site: Site, h: Tensor, private: Tensor | None) -> Tensor:
        """Returns f(h, xi), or f(h, xi + S s_u): (batch, seq, 1)."""
        vector = self._vector(site)
        xi = self.xi[vector].unsqueeze(0)  # (1 or batch, d_out)
        if private is not None and self.config.private == "shift":
            xi = xi + private @ self.S[vector].T
        product = h @ xi.unsqueeze(-1)
        if self.config.gate == "sigmoid":
            return torch.sigmoid(product * site.d_out**-0.5)
        lengths = (h.square().sum(-1, keepdim=True) + _EPSILON).sqrt()
        length = (xi.square().sum(-1) + _EPSILON).sqrt().reshape(-1, 1, 1)
        cosine: Tensor = product / (lengths * length)
        return cosine.clamp(0.0, 1.0)

    def _vector(self, site: Site) -> str:
        """Returns the name of the site's task vector."""
        return {"projection": site.name, "layer": f"layer_{site.layer}", "shared": "all"}[self.config.vectors]

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.users == "embeddings" and self.config.private != "none"

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns the users' coordinates on the leading principal directions of their summaries."""
        sizes = {"gates": self.layers, "shift": self.config.shift_size}
        kind = self.config.private
        return {f"loratrf.{kind}": leading(summary, sizes[kind])}

    def starts_shared(self) -> bool:
        """Task vectors start at the mean of what they are compared with, unless the configuration says no."""
        return self.config.start == "texts"

    @torch.no_grad()
    def start_shared(self, means: Mapping[str, Tensor]) -> None:
        """Sets xi to the mean h: a random one would be almost orthogonal to everything, and f about 0.

        Projections that share a vector are heard alike: the mean of their directions, of their mean length.
        S grows or shrinks as xi does, so that a private shift of a given size turns xi as far as before.
        """
        for vector, names in self.sharers.items():
            own = torch.stack([means[name] for name in names])  # (sites, d_out)
            length = own.norm(dim=1)
            if not bool((length > 0).all()):
                continue
            start = (own / length.unsqueeze(1)).mean(0) * length.mean()
            if vector in self.S:
                self.S[vector].mul_(float(start.norm() / self.xi[vector].norm()))
            self.xi[vector].copy_(start)

    @torch.no_grad()
    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes the seen users' second moment the identity: G <- G L or S <- S L, and g, s <- L^-1 g, s."""
        name = f"loratrf.{self.config.private}"
        found = balanced(profiles[name]) if name in profiles else None
        if found is None:
            return dict(profiles)
        for weight in [self.G] if self.config.private == "gates" else self.S.values():
            weight.copy_((weight.double() @ found[0]).to(weight.dtype))
        return {**profiles, name: found[1]}
