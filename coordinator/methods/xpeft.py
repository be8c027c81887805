"""X-PEFT: masks over a shared bank of adapters (Kwak & Kim, 2024, arXiv 2401.16137)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.methods.base import AbstractMethod, BackboneShape, MethodConfig
from umbel.coordinator.sites import Frame, Site
from umbel.shared.bank import RandomTensor
from umbel.shared.errors import ConfigError
from umbel.shared.profile import TensorSpec, top_storage
from umbel.shared.rng import generator

_EPSILON = 1e-5
_START_DIRECTIONS = 16
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}

_SOFT = {"dead_zone": 0.0, "device_moment": "recipe", "device_rate": 1.0, "device_prior": 0.01}


@final
class XPEFTConfig(MethodConfig):
    """Options of X-PEFT; the paper's symbols in brackets."""

    adapters: int = Field(default=100, ge=2, le=10_000, description="Adapters in the bank of each layer [N].")
    width: int = Field(
        default=16, ge=1, le=4096, description="Bottleneck of an adapter [b]; the paper uses 48."
    )
    kept: int = Field(
        default=50, ge=1, description="Adapters that a hard mask chooses in each layer [k]; fewer than N."
    )
    dead_zone: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="Logits nearer to 0 than this count as 0 in a hard mask; up to six decimals; 0 if soft.",
    )
    mask: Literal["hard", "soft"] = Field(
        default="hard",
        description="Equal shares of the k chosen, kept as bits; or a softmax, kept as floats.",
    )
    bank: Literal["trained", "random"] = Field(
        default="trained", description="Train the adapters, or leave them as a seed made them."
    )
    bank_seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of a random bank.")
    bank_storage: Literal["float32", "float16", "int8"] = Field(
        default="float32", description="How a release holds a trained bank; int8 has a scale per adapter."
    )
    activation: Literal["relu", "gelu", "tanh"] = Field(
        default="relu", description="Between the two projections of an adapter."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Logits are divided by it, in the softmax that gradients go through."
    )
    spread: float = Field(
        default=0.02, gt=0, description="Standard deviation of the matrices that k adapters make at first."
    )
    centred: bool = Field(
        default=True, description="Up-projections sum to zero at first, so that a new model is the backbone."
    )

    private_prior: float = Field(
        default=0.0, ge=0, le=1e6, description="As in every method: 2 L N logits, each worth about 1 / N."
    )
    device_moment: Literal["recipe", "tensor", "element", "none"] = Field(
        default="none",
        description="As in every method: few examples leave most logits in the dead zone; 'recipe' if soft.",
    )
    device_rate: float = Field(
        default=50.0,
        ge=0,
        le=1e6,
        description="As in every method: of undivided gradients, which are about 0.005; 1 if soft.",
    )
    device_prior: float = Field(
        default=0.001, ge=0, le=1e6, description="As in every method: seen beside those; 0.01 if soft."
    )
    start: Literal["embeddings", "zeros"] = Field(
        default="embeddings", description="Where training starts seen users; new users start at zeros."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_soft_mask(cls, given: Any) -> Any:
        """A soft mask has no dead zone: its logits are learned as other private tensors are."""
        if isinstance(given, Mapping) and given.get("mask") == "soft":
            return {**_SOFT, **given}
        return given

    @model_validator(mode="after")
    def _keeps_some_of_them(self) -> XPEFTConfig:
        wrong = []
        if self.kept >= self.adapters:
            wrong.append(f"kept is {self.kept}, expected fewer than adapters, which is {self.adapters}")
        if self.dead_zone and self.mask == "soft":
            wrong.append(f"dead_zone is {self.dead_zone}, but a soft mask has none")
        if self.dead_zone != round(self.dead_zone, 6):
            wrong.append(f"dead_zone is {self.dead_zone}, expected at most six decimal places")
        if self.bank == "random" and self.bank_storage != "float32":
            wrong.append(f"bank_storage is {self.bank_storage}, but a release holds no random bank")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def soft_mask(logits: Tensor, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature): (..., N)."""
    return functional.softmax(logits / temperature, dim=-1)


def hard_mask(logits: Tensor, kept: int, temperature: float, dead_zone: float = 0.0) -> Tensor:
    """Returns 1/k for the k largest of each row and 0 for the others; gradients are those of `soft_mask`.

    Equal values are chosen together and share alike: a row of zeros gives 1/N everywhere, and the bits 0.0
    and 1.0 that a device keeps give the very mask of the logits that they were made of.

    Args:
        logits: (..., N).
        kept: How many to choose: k; more where values are equal to the k-th.
        temperature: Of the softmax that gradients go through.
        dead_zone: Logits between -dead_zone and dead_zone are chosen as if they were 0; below 1, so that the
            bits stay what they are. Gradients do not depend on it.
    """
    fixed = logits.detach()
    if dead_zone:
        fixed = torch.where(fixed.abs() < dead_zone, 0.0, fixed)
    least = torch.topk(fixed, kept, dim=-1).values[..., -1:]
    chosen = (fixed >= least).to(logits.dtype)
    hard = chosen / chosen.sum(-1, keepdim=True)
    soft = soft_mask(logits, temperature)
    return hard + (soft - soft.detach())  # in brackets: exactly zero, so that the mask is exactly `hard`


def _sources(site: Site, config: XPEFTConfig) -> dict[str, RandomTensor]:
    """Returns what a random bank of one layer is made of; a trained one has the same shapes and spread."""
    shapes = {
        "down": (config.adapters, site.d_out, config.width),
        "up": (config.adapters, config.width, site.d_out),
    }
    deviation = config.spread * config.kept**0.5  # the mean of k of them is narrower by sqrt k
    return {
        part: RandomTensor(config.bank_seed, f"layer {site.layer} {part}", shape, deviation)
        for part, shape in shapes.items()
    }


@final
class _Bank(nn.Module):
    """N adapters of one layer: down (N, d, b), up (N, b, d), and the LayerNorm (b,) that they share."""

    def __init__(self, site: Site, config: XPEFTConfig, rng: torch.Generator):
        super().__init__()
        sources = _sources(site, config)
        if config.bank == "random":
            values = [torch.from_numpy(source.values()) for source in sources.values()]
        else:
            values = [
                torch.empty(source.shape).normal_(0.0, source.deviation, generator=rng)
                for source in sources.values()
            ]
            values[1] -= values[1].mean(0) if config.centred else 0.0
        self.down, self.up = nn.Parameter(values[0]), nn.Parameter(values[1])
        self.norm_weight = nn.Parameter(torch.ones(config.width))
        self.norm_bias = nn.Parameter(torch.zeros(config.width))


@final
class XPEFT(AbstractMethod):
    """h + act(LN(h A_u)) B_u where a feed-forward block ends: an adapter mixed from a bank.

    A_u = sum_i Ma[l, i] A_i and B_u = sum_i Mb[l, i] B_i. The logits of the masks Ma and Mb (L, N) are
    private and zero at birth: everyone then has the mean of the bank, which is the generic model. The B_i
    sum to zero at first, so that a new model is the backbone, and yet they differ, so that masks have
    gradients from the start. A random bank, which nothing trains, is taken relative to its mean at all times.
    """

    name = "xpeft"
    citation = (
        "Kwak & Kim, X-PEFT: eXtremely Parameter-Efficient Fine-Tuning for Extreme Multi-Profile Scenarios, "
        "2024, arXiv 2401.16137"
    )
    equation = "h + act(LN(h A_u)) B_u,  A_u = sum_i Ma[l, i] A_i,  B_u = sum_i Mb[l, i] B_i"
    Config = XPEFTConfig
    config: XPEFTConfig
    round_tensors = ()  # the bank's gradient is zero where the mask is, LayerNorm's has B_u as a factor

    def __init__(
        self, config: XPEFTConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.layers = shape.layers
        self.sites = [site for site in sites if site.role == "feed_forward"]
        self.banks = nn.ModuleDict({site.name: _Bank(site, config, rng) for site in self.sites})

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The logits of both masks, (L, N) each; of a hard mask only the bits are kept."""
        hard = self.config.mask == "hard"
        storage = top_storage(self.config.kept, self.config.dead_zone) if hard else "float16"
        shape = (self.layers, self.config.adapters)
        return tuple(TensorSpec(name, shape, storage) for name in ("xpeft.down", "xpeft.up"))

    def rebuilt_tensors(self) -> dict[str, RandomTensor]:
        """A random bank's matrices: its seed stands for them."""
        if self.config.bank == "trained":
            return {}
        return {
            f"banks.{site.name}.{part}": source
            for site in self.sites
            for part, source in _sources(site, self.config).items()
        }

    def stored_tensors(self) -> dict[str, str]:
        """A trained bank's matrices, as `bank_storage` says."""
        if self.config.bank_storage == "float32":
            return {}
        names = (f"banks.{site.name}.{part}" for site in self.sites for part in ("down", "up"))
        return dict.fromkeys(names, self.config.bank_storage)

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns act(LN(h A_u)) B_u: (batch, seq, d)."""
        if site.name not in self.banks:
            return None
        bank = self._bank(site.name)

        def mixed(of_down: Tensor, of_up: Tensor) -> tuple[Tensor, ...]:
            return self._mixed(bank, of_down[:, site.layer], of_up[:, site.layer])

        down, up = frame.per_user(mixed, "xpeft.down", "xpeft.up")
        width = (self.config.width,)
        inner = functional.layer_norm(h @ down, width, bank.norm_weight, bank.norm_bias, _EPSILON)
        return _ACTIVATIONS[self.config.activation](inner) @ up

    def starts_users(self) -> bool:
        """Seen users start where their labels point, unless the configuration says zeros."""
        return self.config.start == "embeddings"

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns random projections of the users' summaries: whose labels say alike shares most adapters.

        The summary is taken along its 16 strongest directions; each logit is its product with a random
        vector, and all logits together have a mean square of 1.
        """
        _, _, directions = torch.linalg.svd(summary, full_matrices=False)
        strongest = directions[:_START_DIRECTIONS]  # (r, features); a projector has no signs to choose
        shape = (2, self.layers, self.config.adapters)
        rng = generator(0, 0, "", "xpeft start")
        vectors = torch.from_numpy(rng.standard_normal((summary.shape[1], math.prod(shape))))
        logits = summary @ strongest.T @ (strongest @ vectors.to(summary))
        size = logits.square().mean().sqrt()
        unit = (logits / size if size > 0 else logits).float().reshape(len(summary), *shape)
        return {"xpeft.down": unit[:, 0], "xpeft.up": unit[:, 1]}

    @torch.no_grad()
    def grow_from(self, smaller: Self) -> None:
        """Takes over a trained bank; what is added to it has the mean of what was there, which is generic.

        Raises:
            ConfigError: The bank is random, does not grow, or something else differs too.
        """
        _check_growth(smaller.config, self.config)
        for site in self.sites:
            own, old = self._bank(site.name), smaller._bank(site.name)
            for mine, theirs in ((own.down, old.down), (own.up, old.up)):
                mine.copy_(_grown(theirs, mine[len(theirs) :]))
            own.norm_weight.copy_(old.norm_weight)
            own.norm_bias.copy_(old.norm_bias)

    @torch.no_grad()
    def fold_adapter(self, profile: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns the one adapter per layer that a person's masks stand for.

        Args:
            profile: The person's private tensors by full name: (L, N).

        Returns:
            Site name -> (A_u (d, b), B_u (b, d)).
        """
        folded = {}
        for site in self.sites:
            down, up = (profile[tensor][site.layer, None] for tensor in ("xpeft.down", "xpeft.up"))
            a, b = self._mixed(self._bank(site.name), down, up)
            folded[site.name] = a[0], b[0]
        return folded

    def _mixed(self, bank: _Bank, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Returns A_u (batch, d, b) and B_u (batch, b, d) for logits (batch, N)."""
        of_down, of_up = self._mask(down), self._mask(up)
        if self.config.bank == "trained":
            return _mix(of_down, bank.down), _mix(of_up, bank.up)
        if self.config.centred:  # sum_i (Mb_i - 1/N) B_i = sum_i Mb_i (B_i - mean B), and exactly 0 at birth
            of_up = of_up - 1.0 / self.config.adapters
        return _mix(of_down, bank.down.detach()), _mix(of_up, bank.up.detach())

    def _mask(self, logits: Tensor) -> Tensor:
        if self.config.mask == "soft":
            return soft_mask(logits, self.config.temperature)
        return hard_mask(logits, self.config.kept, self.config.temperature, self.config.dead_zone)

    def _bank(self, name: str) -> _Bank:
        bank = self.banks[name]
        assert isinstance(bank, _Bank)
        return bank


def _mix(mask: Tensor, bank: Tensor) -> Tensor:
    """Returns sum_i mask_i bank_i: (batch, N) and (N, *shape) -> (batch, *shape)."""
    return (mask @ bank.reshape(bank.shape[0], -1)).reshape(mask.shape[0], *bank.shape[1:])


def _grown(bank: Tensor, noise: Tensor) -> Tensor:
    """Returns N adapters and n more around their mean, spread as they are: the mean of all stays the same.

    Args:
        bank: (N, *shape).
        noise: (n, *shape); its mean is taken out and its size is not used. One adapter alone is the mean.
    """
    exact, change = bank.double(), noise.double()
    mean = exact.mean(0)
    change = change - change.mean(0)
    size, wanted = change.square().mean().sqrt(), (exact - mean).square().mean().sqrt()
    more = mean + (change * (wanted / size) if size > 0 else change)
    return torch.cat([exact, more]).to(bank.dtype)


def _check_growth(smaller: XPEFTConfig, larger: XPEFTConfig) -> None:
    problems = []
    if larger.bank == "random":
        problems.append("bank is random: it is taken relative to its mean, which would move")
    if larger.adapters <= smaller.adapters:
        problems.append(f"adapters is {larger.adapters}, expected more than {smaller.adapters}")
    rest = larger.model_copy(update={"adapters": smaller.adapters})
    same = smaller.model_dump()
    problems += [f"{name} differs" for name, value in rest.model_dump().items() if value != same[name]]
    if problems:
        raise ConfigError("the bank of xpeft cannot grow like this", problems, "Change nothing but adapters.")
