"""What a personalization method is: private tensors, a shared module, what it does at injection points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.sites import Frame, Site
from umbel.shared.bank import RandomTensor
from umbel.shared.errors import ConfigError
from umbel.shared.profile import TensorSpec

_EIGENVALUE_FLOOR = 1e-4


class MethodConfig(BaseModel):
    """Options of a method, as written under [methods.NAME] in a configuration.

    The factors are what the method needs against others that are on beside it; [training] and [recipe] say
    how fast all of them learn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared_rate: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="Rate of its shared tensors, as a factor on training.shared_rate.",
    )
    private_rate: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="Rate of seen users' tensors, as a factor on training.private_rate.",
    )
    private_prior: float = Field(
        default=1.0, ge=0, le=1e6, description="Their pull to 0, as a factor on training.private_prior."
    )
    device_rate: float = Field(
        default=1.0, ge=0, le=1e6, description="Rate on a device, as a factor on the recipe's learning_rate."
    )
    device_prior: float = Field(
        default=1.0, ge=0, le=1e6, description="Pull on a device, as a factor on the recipe's prior_strength."
    )
    device_moment: Literal["recipe", "tensor", "element", "none"] = Field(
        default="recipe", description="What divides its gradients on a device; none: nothing does."
    )


class AbstractMethod(nn.Module, ABC):
    """A method: shared parameters, private tensors, and what they add to the encoder.

    A method does nothing at the points that it does not override, and nothing at all while its private
    tensors and its shared module are as they were made: a new model starts as the plain backbone.

    Attributes:
        name: Its name in configurations and tensor names.
        citation: The paper.
        equation: What it computes, in one line.
        Config: Its options.
        config: The options that it was made with.
        round_tensors: Patterns of its shared parameters that devices may train in rounds unless the
            configuration says otherwise. Leave out any whose gradient would give the profile away.
        training_only: First parts of the names of its parameters that only `training_term` reads. The logits
            do not depend on them: they are trained and saved, but no graph and no release holds them.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    equation: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    config: MethodConfig
    round_tensors: ClassVar[tuple[str, ...]]
    training_only: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def acts_inside(cls) -> bool:
        """Says whether it acts inside the encoder or before it; otherwise it reads the last states alone."""
        return cls.acts_before() or cls.at_site is not AbstractMethod.at_site

    @classmethod
    def acts_before(cls) -> bool:
        """Says whether it acts before the encoder's first layer, as prompts do."""
        return cls.prompt_rows is not AbstractMethod.prompt_rows

    def bind(self, labels: int) -> None:
        """Hears how many labels the task has: once, before `profile_tensors` is asked for."""

    @abstractmethod
    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """Returns the private tensors of one user; names start with "<method>."."""

    def rebuilt_tensors(self) -> Mapping[str, RandomTensor]:
        """Returns its shared parameters that a seed stands for: own parameter name -> how it is made.

        A release holds the seed instead of the values, and every device rebuilds them. Nothing may train
        them: neither the coordinator nor a device in a round.
        """
        return {}

    def stored_tensors(self) -> Mapping[str, str]:
        """Returns its shared parameters that a release holds in fewer bytes: own name -> float16 or int8.

        Training knows nothing of it; what is published, compared and used on devices are the rounded values.
        Devices do not train them in rounds.
        """
        return {}

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns what to add to a projection's output.

        Args:
            site: Which projection.
            x: (batch, seq, d_in) its input.
            h: (batch, seq, d_out) its output without any method.
            frame: The private tensors of each example.

        Returns:
            (batch, seq or 1, d_out), or None to leave the site alone.
        """
        return None

    def prompt_rows(self) -> int:
        """Returns how many rows `prompt` puts before the input: m; they come off the longest text."""
        return 0

    def prompt(self, embedded: Tensor, frame: Frame) -> Tensor | None:
        """Returns rows to put before the input embeddings.

        Args:
            embedded: (batch, seq, d) the texts' token embeddings.
            frame: The private tensors of each example, and the texts' mask.

        Returns:
            (batch, m, d) with m = `prompt_rows()`, or None where m is 0.
        """
        return None

    def at_logits(self, logits: Tensor, frame: Frame) -> Tensor | None:
        """Returns (batch, labels) to add to the task's output, or None; `frame.embedding` is the text's."""
        return None

    def needs_generic_pass(self) -> bool:
        """Says whether `training_term` wants the logits of the same texts without profiles."""
        return False

    def training_term(self, logits: Tensor, generic_logits: Tensor | None, frame: Frame) -> Tensor | None:
        """Returns a scalar to add to the loss while the coordinator trains, or None.

        Args:
            logits: (batch, labels) with profiles.
            generic_logits: (batch, labels) without, if `needs_generic_pass`; only the head gets gradients
                through it.
            frame: The pass that made `logits`, with its records.

        Where several processes train, each has some rows of a batch: a mean over rows is right as it is, and
        what compares rows with each other takes `frame.of_batch(rows)`.
        """
        return None

    def fold(self, site: Site, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Returns (change of W (d_out, d_in), change of b (d_out,)) that stand for this method, for one user.

        None: the method does nothing at this site. Methods that cannot be folded raise NotImplementedError.
        """
        raise NotImplementedError(f"{self.name} cannot be folded into weights")

    def fold_logits(self, profile: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor] | None:
        """Returns (change of W (labels, d) or None, change of b (labels,)) that stand for `at_logits`.

        W and b are those of the task's head, W times the text's embedding. For one user; None for nothing.

        Raises:
            NotImplementedError: `at_logits` is overridden and this is not.
        """
        if type(self).at_logits is not AbstractMethod.at_logits:
            raise NotImplementedError(f"{self.name} cannot be folded into the task's head")
        return None

    def starts_users(self) -> bool:
        """Says whether training starts seen users elsewhere than at zeros; then `start_users` says where."""
        return False

    def start_users(self, summary: Tensor) -> dict[str, Tensor]:
        """Returns where training starts the seen users' private tensors: full name -> (users, *shape).

        Args:
            summary: (users, features) float64: what each user's labels say about the frozen embeddings, and
                how often they give each label; the strongest direction of either has variance 1.
        """
        return {}

    def response_size(self) -> int:
        """Returns how many directions of its prompt training shall find; then `start_responding` takes them.

        0, for nearly all, or where none are found: `start_users` says where seen users start.
        """
        return 0

    def response_reach(self) -> float:
        """Returns how far a prompt row can be moved before it answers otherwise than to first order."""
        return 1.0

    def start_responding(self, coordinates: Tensor, directions: Tensor) -> dict[str, Tensor]:
        """Sets what private prompt rows move along, once, before training, and returns where users start.

        Args:
            coordinates: (users, q) where seen users are, q at most `response_size`.
            directions: (d, q): moving every row by coordinates @ directions.T changes the users' answers as
                their labels ask for, to first order (coordinator/training/response.py).

        Returns:
            Full name -> (users, *shape).
        """
        return {}

    def starts_shared(self) -> bool:
        """Says whether shared tensors take their first values from texts; then `start_shared` sets them."""
        return False

    def start_shared(self, means: Mapping[str, Tensor]) -> None:
        """Sets first values of shared tensors, once, before training.

        Args:
            means: What each projection of the frozen encoder gives on average over the tokens of the training
                texts: name of the site -> (d_out,) float64.
        """

    def grow_from(self, smaller: Self) -> None:
        """Takes shared tensors over from a trained method of fewer parts, so that nobody's output changes.

        This one is as the constructor made it. Private tensors have longer last axes in it; what a person
        has of the smaller one, with nothing added, must mean the same here (see shared/growth.py).

        Args:
            smaller: The same method, trained with other options.

        Raises:
            ConfigError: The method cannot grow, or not from those options to its own.
        """
        raise ConfigError(f"{self.name} has nothing that could grow", hint="X-PEFT's bank can, for one.")

    def rebase(self, profiles: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Expresses the private tensors in the basis where few-shot learning goes best, changing no output.

        Args:
            profiles: The trained private tensors of seen users, by full name: (users, *shape).

        Returns:
            The same profiles in the new basis.
        """
        return dict(profiles)


def kaiming(rows: int, columns: int, rng: torch.Generator) -> nn.Parameter:
    """Returns (rows, columns), kaiming-uniform with a = sqrt 5: uniform in +-1 / sqrt(columns)."""
    bound = columns**-0.5
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=rng))


def leading(summary: Tensor, size: int) -> Tensor:
    """Returns the users' coordinates on the leading principal directions of their summaries: (users, size).

    The strongest direction comes first; columns for which there are no directions are zeros. Each column is
    turned so that its largest entry is positive: the sign of a singular vector is arbitrary.

    Args:
        summary: (users, features), as `AbstractMethod.start_users` gets it.
        size: How many coordinates.
    """
    left, values, _ = torch.linalg.svd(summary, full_matrices=False)
    count = min(size, len(values))
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signed = left * torch.where(largest < 0, -1.0, 1.0)
    start = summary.new_zeros(len(summary), size)
    start[:, :count] = (signed * values)[:, :count]
    return start.float()


def balanced(users: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns the basis in which the users' second moment is the identity, and the users in it.

    Directions in which the users hardly differ, or that fewer users than d cannot tell, are cut off at 1e-4
    of the largest eigenvalue and keep a moment below 1.

    Args:
        users: (users, d) private vectors p.

    Returns:
        L (d, d) float64, with L L^T = mean of p p^T and the strongest direction first; L^-1 p of every user
        (users, d), of the type of `users`. None if no one learned anything: nothing says which directions
        matter.
    """
    exact = users.double()
    if not exact.any():
        return None
    values, vectors = torch.linalg.eigh(exact.T @ exact / len(exact))
    values = values.clamp_min(_EIGENVALUE_FLOOR * values.max()).flip(0)
    vectors = vectors.flip(1)
    return vectors * values.sqrt(), (exact @ (vectors / values.sqrt())).to(users.dtype)


__all__ = ["AbstractMethod", "BackboneShape", "MethodConfig", "balanced", "kaiming", "leading"]
