"""The onboarding network: from a set of somebody's texts, labelled or not, to a profile to start with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.config import OnboardingConfig
from umbel.coordinator.methods.base import kaiming
from umbel.shared.profile import ProfileSpec
from umbel.shared.rng import integer_seed

_CONSTANT = 1e-6  # a deviation below which an input says nothing
_LEAST = 1e-9  # of a weight: 0 has no logarithm
_HALF = 4.0  # texts, or labelled ones, at which what they say counts half, before training


@final
class Onboarder(nn.Module):
    """PHA's retriever, prototypes and hypernetwork, for every private tensor of every method.

    Of each text i: its embedding e_i and logits l_i without a profile, and its label y_i if there is one.

        z_i = normal(R_2 relu(R_1 e_i + r_1) + r_2)                       instance-dense retriever, (q,)
        g_ic = G_c z_i / sqrt(q) + g_c                                    what prototype c answers otherwise
        w = softmax(prior + t sum_i log p_c(y_i | i) / p(y_i | i) + sum_i a z_i / (n + n_0))
        code = w K                                                        similarity-weighted prototypes
        pull = sum_i (onehot(y_i) - softmax(l_i)) [z_i ; 1]^T / (k + k_0) what labels say beyond the model
        u = S [code ; pull ; mean z] + H_2 relu(H_1 [code ; pull ; mean z] + h_1)
        profile of tensor T = n / (n + n_1) * W_T u                       hypernetwork

    with p = softmax(l) and p_c = softmax(l + g_c). Sums are over one user's texts, so that their order does
    not matter. Nobody's texts give zeros, the generic profile.
    """

    def __init__(self, config: OnboardingConfig, spec: ProfileSpec, hidden_size: int, labels: int, seed: int):
        super().__init__()
        rng = torch.Generator().manual_seed(integer_seed(seed, 0, "", "init onboarding"))
        size, count, hidden = config.code_size, config.prototypes, config.hidden
        self.spec, self.label_count = spec, labels
        self.first = kaiming(hidden, hidden_size, rng)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = kaiming(size, hidden, rng)
        self.second_bias = nn.Parameter(torch.zeros(size))
        self.judge = _normal(rng, 0.1, count, labels, size)
        self.judge_bias = _normal(rng, 0.1, count, labels)
        self.interest = _normal(rng, 0.01, count, size)
        self.prior = nn.Parameter(torch.zeros(count))
        self.trust = nn.Parameter(torch.zeros(1))  # log t
        self.prototypes = _normal(rng, size**-0.5, count, size)
        self.halves = nn.Parameter(torch.full((3,), _HALF).log())  # log n_0, log k_0, log n_1
        width = size + labels * (size + 1) + size
        self.skip = kaiming(size, width, rng)
        self.inner = kaiming(hidden, width, rng)
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = kaiming(size, hidden, rng)
        self.heads = nn.ParameterDict(
            {_key(t.name): nn.Parameter(torch.zeros(t.size, size)) for t in spec.tensors}
        )

    def forward(
        self, embedding: Tensor, logits: Tensor, labels: Tensor, owner: Tensor, owners: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Writes the profiles of some users.

        Args:
            embedding: (texts, d) mean token states without a profile.
            logits: (texts, labels) without a profile.
            labels: (texts,) int64, -1 where it is not known.
            owner: (texts,) int64 whose each text is; one that is not in `owners` is nobody's.
            owners: (users,) int64, all different.

        Returns:
            Name -> (users, *shape), and the prototypes' weights (users, prototypes), which sum to 1.
        """
        z = self.retrieve(embedding)
        given = self._given(labels)  # (texts, labels), a row of zeros where there is no label
        member = (owners.unsqueeze(1) == owner.unsqueeze(0)).to(z.dtype)  # (users, texts)
        texts, known = member.sum(1, keepdim=True), member @ given.sum(1, keepdim=True)
        half_n, half_k, half_start = self.halves.exp().unbind()
        evidence = self.evidence(z, logits, given)
        score = self.prior + self.trust.exp() * (member @ evidence)
        weights = functional.softmax(score + (member @ (z @ self.interest.T)) / (texts + half_n), dim=-1)
        surprise = given - functional.softmax(logits, dim=-1) * given.sum(1, keepdim=True)
        said = torch.cat([(surprise.unsqueeze(2) * z.unsqueeze(1)).flatten(1), surprise], dim=1)
        summary = torch.cat(
            [weights @ self.prototypes, member @ said / (known + half_k), member @ z / (texts + half_n)],
            dim=-1,
        )
        code = summary @ self.skip.T + self._inner(summary)
        sure = texts / (texts + half_start)
        return {t.name: self._written(t.name, t.shape, code * sure) for t in self.spec.tensors}, weights

    def retrieve(self, embedding: Tensor) -> Tensor:
        """Returns z (texts, q), each of mean 0 and variance 1 over its entries."""
        hidden = functional.relu(embedding @ self.first.T + self.first_bias)
        z = hidden @ self.second.T + self.second_bias
        normal: Tensor = functional.layer_norm(z, z.shape[-1:])
        return normal

    def judgements(self, z: Tensor) -> Tensor:
        """Returns g (texts, prototypes, labels): what each prototype adds to the logits of a text."""
        size = z.shape[-1]
        flat: Tensor = z @ self.judge.reshape(-1, size).T / size**0.5
        return flat.reshape(-1, *self.judge_bias.shape) + self.judge_bias

    def evidence(self, z: Tensor, logits: Tensor, given: Tensor) -> Tensor:
        """Returns log p_c(y_i | i) - log p(y_i | i), 0 where there is no label: (texts, prototypes)."""
        generic = functional.log_softmax(logits, dim=-1).unsqueeze(1)
        own = functional.log_softmax(logits.unsqueeze(1) + self.judgements(z), dim=-1)
        return ((own - generic) * given.unsqueeze(1)).sum(-1)

    def mixture(self, weights: Tensor, embedding: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns -log sum_c w_c p_c(y | i) of labelled texts, what `judgements` are trained by: (texts,).

        Args:
            weights: (texts, prototypes) those of the person whose text each is.
            embedding: (texts, d) without a profile.
            logits: (texts, labels) without a profile.
            labels: (texts,) int64, every one known.
        """
        own = logits.unsqueeze(1) + self.judgements(self.retrieve(embedding))
        chance = functional.log_softmax(own, dim=-1)  # (texts, prototypes, labels)
        said = (chance * self._given(labels).unsqueeze(1)).sum(-1)
        return -torch.logsumexp(said + (weights + _LEAST).log(), dim=1)

    @torch.no_grad()
    def fit_inputs(self, mean: Tensor, deviation: Tensor) -> None:
        """Lets the first layer begin with inputs of mean 0 and deviation 1: (d,) each, of training texts."""
        self.first.div_(torch.where(deviation > _CONSTANT, deviation, torch.ones_like(deviation)))
        self.first_bias.copy_(-self.first @ mean)

    @torch.no_grad()
    def fit_outputs(self, profiles: Mapping[str, Tensor], rng: torch.Generator) -> None:
        """Gives each head a tenth of the size of what seen users learned: name -> (users, *shape)."""
        for tensor in self.spec.tensors:
            rms = float(profiles[tensor.name].double().square().mean().sqrt())
            head = self.heads[_key(tensor.name)]
            head.normal_(0.0, 0.1 * rms / head.shape[1] ** 0.5, generator=rng)

    def _given(self, labels: Tensor) -> Tensor:
        known = (labels >= 0).to(self.first.dtype).unsqueeze(1)
        return functional.one_hot(labels.clamp_min(0), self.label_count).to(self.first.dtype) * known

    def _inner(self, summary: Tensor) -> Tensor:
        hidden: Tensor = functional.relu(summary @ self.inner.T + self.inner_bias)
        found: Tensor = hidden @ self.outer.T
        return found

    def _written(self, name: str, shape: tuple[int, ...], code: Tensor) -> Tensor:
        flat: Tensor = code @ self.heads[_key(name)].T
        return flat.reshape(-1, *shape)


def _key(name: str) -> str:
    """Returns a tensor's name as the name of a parameter, in which dots part modules."""
    return name.replace(".", "__")


def _normal(rng: torch.Generator, deviation: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(0.0, deviation, generator=rng))
