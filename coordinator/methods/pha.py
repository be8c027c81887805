"""PHA: prototype-based hyper-adapter (Zhao et al., EMNLP 2023, arXiv 2310.11670)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

_APART = -1e9  # a logit whose share of any softmax is 0, and whose gradient is finite


@final
class PHAConfig(MethodConfig):
    """Options of PHA; the paper's symbols in brackets."""

    width: int = Field(
        default=8, ge=1, le=4096, description="Bottleneck of the adapters that are written [b]."
    )
    prototype_size: int = Field(default=64, ge=1, le=4096, description="Floats in the private prototype [k].")
    layer_size: int = Field(default=64, ge=1, le=4096, description="Size of a layer's embedding.")
    hidden: int = Field(
        default=128, ge=1, le=4096, description="Hidden width of the hypernetwork and the retriever."
    )
    code_size: int = Field(
        default=64, ge=1, le=4096, description="Size of what the adapters are written from [u]."
    )
    prototypes: int = Field(default=16, ge=1, le=4096, description="Prototypes in the shared bank [K].")
    embedding_scale: float = Field(
        default=0.1,
        gt=0,
        description="Standard deviation of the first bank and layer embeddings; small ones let k_u count.",
    )
    start_scale: float = Field(
        default=0.1,
        ge=0,
        description="Scale of the first W_up and biases against hyperfan-in; 0 starts as the plain backbone.",
    )
    instance_weight: float = Field(default=0.1, ge=0, description="Weight of L_IR.")
    prototype_weight: float = Field(default=0.1, ge=0, description="Weight of L_Pro.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of both contrastive terms.")
    contrast: Literal["users", "bank"] = Field(
        default="users",
        description="What L_Pro tells apart: the prototypes of the batch's users, or those of the bank.",
    )
    shared_rate: float = Field(
        default=0.2, ge=0, le=1e6, description="As in every method: the heads add up the steps of 64 inputs."
    )
    start: Literal["embeddings", "zeros"] = Field(
        default="embeddings", description="Where training starts seen users; new users start at zeros."
    )
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the prototype."
    )


@final
@dataclass(frozen=True, slots=True)
class Adapter:
    """relu(LN(x) W_down + b_down) W_up + b_up: one for all examples, or one per example along axis 0.

    Attributes:
        gain: (d,) of the LayerNorm.
        shift: (d,) of the LayerNorm.
        down: (d, b) or (batch, d, b).
        down_bias: (1, b) or (batch, 1, b).
        up: (b, d) or (batch, b, d).
        up_bias: (1, d) or (batch, 1, d).
    """

    gain: Tensor
    shift: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Maps the block's input (batch, seq, d) to what is added to its output."""
        normal = functional.layer_norm(x, x.shape[-1:], self.gain, self.shift)
        return functional.relu(normal @ self.down + self.down_bias) @ self.up + self.up_bias


@final
class _Hypernetwork(nn.Module):
    """u_l = LN(second relu(first [k ; layer_l])), and the four heads that write an adapter from it."""

    def __init__(self, config: PHAConfig, shape: BackboneShape, rng: torch.Generator):
        super().__init__()
        d, b, code, scale = shape.hidden_size, config.width, config.code_size, config.start_scale
        self.width = b
        layers = torch.empty(shape.layers, config.layer_size)
        self.layers = nn.Parameter(layers.normal_(0.0, config.embedding_scale, generator=rng))
        self.first = kaiming(config.hidden, config.prototype_size + config.layer_size, rng)
        self.first_bias = nn.Parameter(torch.zeros(config.hidden))
        self.second = kaiming(code, config.hidden, rng)
        self.second_bias = nn.Parameter(torch.zeros(code))
        self.norm = nn.LayerNorm(code)
        self.up = hyperfan(b * d, code, b, scale, rng)
        self.down = hyperfan(d * b, code, d, 1.0, rng)
        self.up_bias = hyperfan(d, code, d, scale, rng)  # small: it goes to every token unfiltered
        self.down_bias = hyperfan(b, code, 1, scale, rng)
        self.inputs = nn.ModuleList([nn.LayerNorm(d) for _ in range(shape.layers)])

    def forward(self, layer: int, k: Tensor) -> Adapter:
        """Writes one layer's adapters, one per row of k (batch, prototype_size)."""
        own = self.layers[layer].expand(k.shape[0], -1)
        hidden = functional.relu(torch.cat([k, own], dim=-1) @ self.first.T + self.first_bias)
        u: Tensor = self.norm(hidden @ self.second.T + self.second_bias)  # (batch, code)
        entry = self.inputs[layer]
        assert isinstance(entry, nn.LayerNorm)
        d = entry.weight.shape[0]
        return Adapter(
            entry.weight,
            entry.bias,
            (u @ self.down.T).reshape(-1, d, self.width),
            (u @ self.down_bias.T).unsqueeze(1),
            (u @ self.up.T).reshape(-1, self.width, d),
            (u @ self.up_bias.T).unsqueeze(1),
        )


@final
class _Retriever(nn.Module):
    """z = second relu(first pooled): where a text lies among the prototypes."""

    def __init__(self, config: PHAConfig, shape: BackboneShape, rng: torch.Generator):
        super().__init__()
        self.first = kaiming(config.hidden, shape.hidden_size, rng)
        self.first_bias = nn.Parameter(torch.zeros(config.hidden))
        self.second = kaiming(config.prototype_size, config.hidden, rng)
        self.second_bias = nn.Parameter(torch.zeros(config.prototype_size))

    def forward(self, pooled: Tensor) -> Tensor:
        """Maps mean token states (batch, d) to z (batch, prototype_size)."""
        hidden = functional.relu(pooled @ self.first.T + self.first_bias)
        return hidden @ self.second.T + self.second_bias


@final
class PHA(AbstractMethod):
    """A hypernetwork writes an adapter beside every feed-forward block, from k = k_0 + T k_u.

    k_u is private and zero at birth; the rest is shared. k_0 = softmax(a) K is a mean of the bank of
    prototypes. T starts as the identity: it keeps k_u of unit scale, while prototypes and texts stay in one
    space.
    """

    name = "pha"
    citation = (
        "Zhao et al., Prototype-based HyperAdapter for Sample-Efficient Multi-task Tuning, EMNLP 2023, "
        "arXiv 2310.11670"
    )
    equation = (
        "h = FFN(x) + relu(LN(x) W_down + b_down) W_up + b_up,  all four written from LN(MLP([k ; layer])),  "
        "k = softmax(a) K + T k_u"
    )
    Config = PHAConfig
    config: PHAConfig
    # The first layer's gradient has k as a factor, and each head's has u, which is computed from it.
    round_tensors = ()
    training_only = ("retriever",)

    def __init__(self, config: PHAConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator):
        super().__init__()
        self.config = config
        size = config.prototype_size
        bank = torch.empty(config.prototypes, size).normal_(0.0, config.embedding_scale, generator=rng)
        self.bank = nn.Parameter(bank)
        self.bank_weights = nn.Parameter(torch.zeros(config.prototypes))
        self.basis = nn.Parameter(torch.eye(size))
        self.hypernetwork = _Hypernetwork(config, shape, rng)
        self.retriever = _Retriever(config, shape, rng) if self.needs_generic_pass() else None

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The user's prototype k_u, as seen from the generic one."""
        return (TensorSpec("pha.prototype", (self.config.prototype_size,), self.config.storage),)

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns what the written adapter makes of the feed-forward block's input: (batch, seq, d)."""
        if site.role != "feed_forward":
            return None
        entry = self.hypernetwork.inputs[site.layer]

        def written(own: Tensor) -> tuple[Tensor, ...]:
            adapter: Adapter = self.hypernetwork(site.layer, self.prototype(own))
            return adapter.down, adapter.down_bias, adapter.up, adapter.up_bias

        assert isinstance(entry, nn.LayerNorm)
        adapter = Adapter(entry.weight, entry.bias, *frame.per_user(written, "pha.prototype"))
        return adapter(frame.block_inputs[site.layer])

    def generic_prototype(self) -> Tensor:
        """Returns k_0 = softmax(a) K: (prototype_size,)."""
        return functional.softmax(self.bank_weights, dim=0) @ self.bank

    def prototype(self, own: Tensor) -> Tensor:
        """Returns k = k_0 + T k_u for private prototypes (batch, prototype_size)."""
        return self.generic_prototype() + own @ self.basis.T

    @torch.no_grad()
    def fold_adapter(self, profile: Mapping[str, Tensor]) -> tuple[Adapter, ...]:
        """Writes one user's adapters, a layer each, so that nothing is left to write while predicting.

        Args:
            profile: The user's private tensors by full name: (*shape).
        """
        k = self.prototype(profile["pha.prototype"].unsqueeze(0))
        written = [self.hypernetwork(layer, k) for layer in range(len(self.hypernetwork.inputs))]
        return tuple(
            Adapter(a.gain, a.shift, a.down[0], a.down_bias[0], a.up[0], a.up_bias[0]) for a in written
        )

    def retrieve(self, states: Tensor, mask: Tensor) -> Tensor:
        """Returns z (batch, prototype_size) of texts.

        Args:
            states: (batch, seq, d) last token states without profiles.
            mask: (batch, seq) 1 for tokens.

        Raises:
            ValueError: Both contrastive terms are off, so that there is no retriever.
        """
        if self.retriever is None:
            raise ValueError("there is no retriever: instance_weight and prototype_weight are 0")
        weights = mask.to(states.dtype).unsqueeze(-1)
        z: Tensor = self.retriever((states * weights).sum(1) / weights.sum(1).clamp_min(1.0))
        return z

    def needs_generic_pass(self) -> bool:
        """The retriever reads the states without profiles: a new user has none to read others from."""
        return self.config.instance_weight > 0 or self.config.prototype_weight > 0

    def training_term(self, logits: Tensor, generic_logits: Tensor | None, frame: Frame) -> Tensor | None:
        """Returns instance_weight * L_IR + prototype_weight * L_Pro."""
        if self.retriever is None or frame.owner is None or frame.generic_states is None:
            return None
        z = functional.normalize(self.retrieve(frame.generic_states, frame.mask), dim=-1)
        own = functional.normalize(self.prototype(frame.profile["pha.prototype"]), dim=-1)
        z, own, owner = (frame.of_batch(rows) for rows in (z, own, frame.owner))
        same = owner.unsqueeze(1) == owner
        instance = instance_term(z @ z.T / self.config.temperature, same)
        if self.config.contrast == "users":
            contrast = prototype_term(z @ own.T / self.config.temperature, same)
        else:
            contrast = self._bank_term(z, own)
        return self.config.instance_weight * instance + self.config.prototype_weight * contrast

    def _bank_term(self, z: Tensor, own: Tensor) -> Tensor:
        """Cross-entropy: texts choose among the bank as their users' prototypes do."""
        bank = functional.normalize(self.bank, dim=-1)
        wanted = functional.softmax(own @ bank.T / self.config.temperature, dim=-1).detach()
        return -(wanted * functional.log_softmax(z @ bank.T / self.config.temperature, dim=-1)).sum(-1).mean()

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.start == "embeddings"

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns the users' coordinates on the leading principal directions of their summaries."""
        return {"pha.prototype": leading(summary, self.config.prototype_size)}

    @torch.no_grad()
    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the seen users unit scale: T <- T L, k_u <- L^-1 k_u, L L^T = mean of k_u k_u^T.

        T k_u is unchanged for every k_u, so no output changes, and a prior of N(0, I) is the spread of the
        people seen. Unless the bank was trained itself (`contrast` = "bank"), it is then set out along the
        directions in which they differ most: k_0 plus and minus each of the first columns of T. Their mean
        is k_0, as before.
        """
        found = balanced(profiles["pha.prototype"])
        if found is None:
            return dict(profiles)
        basis, rebased = found
        self.basis.copy_((self.basis.double() @ basis).to(self.basis.dtype))
        if self.config.contrast == "users":
            self._set_out_bank()
        return {**profiles, "pha.prototype": rebased}

    def _set_out_bank(self) -> None:
        pairs = min(len(self.bank) // 2, len(self.basis))
        steps = self.basis.T[:pairs]
        generic = self.generic_prototype()
        rest = steps.new_zeros(len(self.bank) - 2 * pairs, steps.shape[1])
        self.bank.copy_(generic + torch.cat([steps, -steps, rest]))
        self.bank_weights.zero_()


def hyperfan(rows: int, columns: int, fan_in: int, scale: float, rng: torch.Generator) -> nn.Parameter:
    """Returns (rows, columns) of a head that writes weights of a fan-in: uniform, hyperfan-in times `scale`.

    From an input of unit variance, what it writes has variance scale^2 / fan_in.
    """
    bound = scale * (3.0 / (columns * fan_in)) ** 0.5
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=rng))


def instance_term(scores: Tensor, same: Tensor) -> Tensor:
    """L_IR: supervised contrastive loss over a batch; rows of the same user are positives.

    Args:
        scores: (batch, batch) cosines over the temperature.
        same: (batch, batch) whether two rows are of one user.

    Returns:
        The mean over the rows that have a positive; 0 where none has.
    """
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    log_shares = functional.log_softmax(scores.masked_fill(itself, _APART), dim=-1)
    positives = (same & ~itself).to(scores.dtype)
    counts = positives.sum(-1)
    rows = -(log_shares * positives).sum(-1) / counts.clamp_min(1.0)
    return rows.sum() / (counts > 0).sum().clamp_min(1)


def prototype_term(scores: Tensor, same: Tensor) -> Tensor:
    """L_Pro: InfoNCE of each row against the prototypes of the batch's users, each of them counted once.

    Args:
        scores: (batch, batch) cosines of texts (rows) and of prototypes of rows' users, over the temperature.
        same: (batch, batch) whether two rows are of one user.

    Returns:
        The mean of -log(exp s_own / sum over users of exp s), own included: never below 0.
    """
    copies = same.sum(0).to(scores.dtype)
    return (torch.logsumexp(scores - copies.log(), dim=-1) - scores.diagonal()).mean()
