"""A private mix of shared heads: what a person likes, read off the text's embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from umbel.coordinator.methods.base import AbstractMethod, BackboneShape, MethodConfig, balanced, leading
from umbel.coordinator.sites import Frame, Site
from umbel.shared.profile import TensorSpec

_FIRST = 0.02  # deviation of the first M: at 0, heads and people who start at 0 would both stay there


@final
class HeadFactorsConfig(MethodConfig):
    """Options of the private mix of heads."""

    user_size: int = Field(
        default=8, ge=1, le=4096, description="Shared heads, and floats in the private vector [d_u]."
    )
    start: Literal["embeddings", "zeros"] = Field(
        default="embeddings", description="Where training starts seen users; new users start at zeros."
    )
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the vector."
    )


@final
class HeadFactors(AbstractMethod):
    """z = W e + b + sum_j p_u[j] (M_j e + m_j), e the mean of the text's token states.

    p_u (d_u,) is private and zero at birth; M_j (labels, d) and m_j (labels,) are shared: a person without a
    profile has exactly the task head's own answers. Latent factors of people, as in
    collaborative filtering, of which those of texts are read off the text.
    """

    name = "headfactors"
    citation = (
        "Latent factors as in Koren et al., Matrix Factorization Techniques for Recommender Systems, IEEE "
        "Computer 2009, those of texts read by the encoder"
    )
    equation = "z = W e + b + sum_j p_u[j] (M_j e + m_j),  e = mean(states)"
    Config = HeadFactorsConfig
    config: HeadFactorsConfig
    round_tensors = ()  # every gradient has p_u as a factor

    def __init__(
        self, config: HeadFactorsConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self._width = shape.hidden_size
        self._seed = int(torch.randint(2**62, (), generator=rng))
        self.bind(0)

    def bind(self, labels: int) -> None:
        """Takes the number of labels as the height of every head, and draws M ~ N(0, 0.02^2)."""
        rng = torch.Generator().manual_seed(self._seed)
        size = self.config.user_size
        self.M = nn.Parameter(torch.empty(size, labels, self._width).normal_(0.0, _FIRST, generator=rng))
        self.m = nn.Parameter(torch.zeros(size, labels))

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The user vector p_u (d_u,)."""
        return (TensorSpec("headfactors.user", (self.config.user_size,), self.config.storage),)

    def at_logits(self, logits: Tensor, frame: Frame) -> Tensor | None:
        """Returns sum_j p_u[j] (M_j e + m_j): (batch, labels)."""
        user = frame.profile["headfactors.user"]  # (batch, d_u)
        if frame.keep is not None:
            user = user * frame.keep
        embedding = frame.embedding
        if embedding is None:
            raise RuntimeError("headfactors acts on the text's embedding, which this pass has not got")
        size, labels, width = self.M.shape
        said = embedding @ self.M.reshape(size * labels, width).T + self.m.reshape(size * labels)
        return (user.unsqueeze(2) * said.reshape(-1, size, labels)).sum(1)

    def fold(self, site: Site, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Returns None: inside the encoder the method does nothing."""
        return None

    def fold_logits(self, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns sum_j p_u[j] M_j (labels, d) and sum_j p_u[j] m_j (labels,)."""
        user = profile["headfactors.user"]
        return torch.einsum("j,jld->ld", user, self.M), user @ self.m

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.start == "embeddings"

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns the users' coordinates on the leading principal directions of their summaries."""
        return {"headfactors.user": leading(summary, self.config.user_size)}

    @torch.no_grad()
    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes the seen users' second moment the identity: M <- L^T M, m <- L^T m, p <- L^-1 p.

        L L^T = mean of p p^T; what is added to logits is unchanged for every p.
        """
        found = balanced(profiles["headfactors.user"])
        if found is None:
            return dict(profiles)
        basis, rebased = found
        for heads in (self.M, self.m):
            turned = basis.T @ heads.double().flatten(1)
            heads.copy_(turned.reshape(heads.shape).to(heads.dtype))
        return {**profiles, "headfactors.user": rebased}
