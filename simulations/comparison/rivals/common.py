"""What rivals share: passes through a model, learning from a person's examples, training on seen people."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame
from umbel.coordinator.tasks.classification import Classification
from umbel.coordinator.training.data import Rows, TrainingData, epoch_batches
from umbel.coordinator.training.step import set_rates
from umbel.shared.errors import TrainingError
from umbel.shared.profile import FloatArray
from umbel.shared.rng import integer_seed
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World, label_mask

STORED_BYTES = 2
"""Bytes of a learned number on a device: float16, as umbel's own store keeps private tensors."""

_EMBEDDING_BATCH = 256

Group = tuple[list[nn.Parameter], float]
"""Parameters and the rate at which they are trained."""


class Learner(Contestant):
    """Learns some parameters of a copy of the generic model, for each person anew from the same start.

    Where profiles are tasks, it learns its own copy of the task head's rows as well: nobody else's labels
    are in question there. A learned number is kept in 2 bytes.

    Attributes:
        rates: The rates that are tried.
    """

    rates: tuple[float, ...]

    def __init__(self, world: World):
        super().__init__(world)
        self._model: PersonalModel | None = None
        self._parameters: list[nn.Parameter] = []
        self._start: list[Tensor] = []

    def options(self) -> Sequence[Options]:
        """Returns one trial for each rate."""
        return tuple({"rate": rate} for rate in self.rates)

    @abstractmethod
    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns the model and what is learned for each person, the task head left out; called once."""

    def begin(self, user: str) -> None:
        """Draws a person's start, where it is random; everything learned is as `build` left it."""

    def own_head(self) -> bool:
        """Says whether a person's own copy of the task head's rows is learned beside what `build` returns."""
        return self.world.cohort.tasks

    def model(self) -> PersonalModel:
        """Returns the model, built on first use, in evaluation mode; only what is learned has gradients."""
        if self._model is None:
            model, parameters = self.build()
            parameters = [*parameters, *head_of(model)] if self.own_head() else parameters
            model.requires_grad_(False)
            self._model, self._parameters = model.eval(), parameters
            self.starts_here()
        return self._model

    def starts_here(self) -> None:
        """Makes what is learned, as it is now, the start of everybody."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._start = [parameter.detach().clone() for parameter in self._parameters]

    def costs(self) -> Costs:
        """Counts what one person learns; head rows are the mean over people of the labels they may have."""
        model = self.model()
        heads = head_of(model) if self.own_head() else []
        numbers = sum(p.numel() for p in self._parameters) - sum(p.numel() for p in heads)
        if heads:
            numbers += round(labels_per_person(self.world) * (heads[0].shape[1] + 1))
        return Costs(STORED_BYTES * numbers, numbers, self.shared_numbers())

    def shared_numbers(self) -> int:
        """Returns how many numbers were trained for everyone, beyond the generic model."""
        return 0

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Starts anew for each person, learns from `support[:k]`, and predicts the query."""
        return [self._logits(person, k, options["rate"]) for person in people]

    def _logits(self, person: Person, k: int, rate: float) -> FloatArray:
        model = self.model()
        with torch.no_grad():
            for parameter, start in zip(self._parameters, self._start, strict=True):
                parameter.copy_(start)
            self.begin(person.user)
        learn(self.world, model, self._parameters, person, k, rate)
        return predict(self.world, model, person.query)


def plain_copy(model: PersonalModel) -> PersonalModel:
    """Returns a copy of a model without methods, its encoder as Hugging Face made it, nothing trainable."""
    twin = model.folded({})
    twin.requires_grad_(False)
    return twin.eval()


def with_peft(encoder: nn.Module, config: Any) -> Any:
    """Returns an encoder as Hugging Face PEFT changes it under one of its configurations."""
    from peft import get_peft_model

    hugging: Any = encoder
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its former name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(hugging, config)


def head_of(model: PersonalModel) -> list[nn.Parameter]:
    """Returns W and b of the task head."""
    assert isinstance(model.task, Classification)
    return [model.task.weight, model.task.bias]


def labels_per_person(world: World) -> float:
    """Returns how many labels can occur for a person, on average."""
    every = len(world.cohort.data.labels)
    return float(np.mean([every if p.labels is None else len(p.labels) for p in world.cohort.people]))


@contextmanager
def seeded(seed: int, user: str, purpose: str) -> Iterator[None]:
    """Makes torch's random numbers a function of (seed, user, purpose), and gives back its state after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(seed, 0, user, purpose))
        yield


def first(rows: Rows, k: int) -> Rows:
    """Returns the first k rows."""
    return rows.take(np.arange(min(k, len(rows))))


def pooled_and_logits(world: World, model: PersonalModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean token states (n, d) and the logits (n, labels) of texts, both float32.

    The encoder runs in the world's precision, the head in float32.
    """
    torch.clear_autocast_cache()  # it may hold weights from before a step
    with world.precision():
        states = model.states(ids, mask, Frame({}, mask)).float()
    task = model.task
    assert isinstance(task, Classification)
    with torch.autocast("cpu", enabled=False):
        return task.pool(states, mask), task(states, mask)


def logits_of(world: World, model: PersonalModel, rows: Rows) -> Tensor:
    """Returns (n, labels) float32 logits of some rows in one batch."""
    ids, mask, _ = world.batch(rows)
    return pooled_and_logits(world, model, ids, mask)[1]


@torch.no_grad()
def predict(world: World, model: PersonalModel, rows: Rows) -> FloatArray:
    """Returns (n, labels) logits of some rows in one batch, as an array."""
    return as_floats(logits_of(world, model, rows))


@torch.no_grad()
def embedded(world: World, model: PersonalModel, rows: Rows) -> tuple[FloatArray, FloatArray]:
    """Returns unit mean token states (n, d) and logits (n, labels) of some rows in one batch."""
    ids, mask, _ = world.batch(rows)
    pooled, logits = pooled_and_logits(world, model, ids, mask)
    return as_floats(functional.normalize(pooled, dim=-1)), as_floats(logits)


def embedded_texts(world: World, model: PersonalModel, rows: Rows) -> FloatArray:
    """Returns the unit mean token state of every text of the rows: (all texts, d), zeros for the others."""
    texts = np.unique(rows.text)
    found = np.zeros((len(world.cohort.texts), head_of(model)[0].shape[1]), np.float32)
    for part in world.cohort.data.tokens.like_length(_EMBEDDING_BATCH, texts):
        nothing = np.zeros(len(part), np.int64)
        found[texts[part]] = embedded(world, model, Rows(texts[part], nothing, nothing))[0]
    return found


def as_floats(values: Tensor) -> FloatArray:
    """Returns a tensor's values as an array of float32."""
    return np.asarray(values.detach().float().numpy(), np.float32)


def masked_nll(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean negative log-likelihood of labels, in nats, over the labels that can occur.

    Args:
        logits: (n, labels).
        labels: (n,) int64.
        mask: (labels,) 0 where a label can occur, -1e9 elsewhere.
    """
    return functional.cross_entropy(logits + mask, labels)


def learn(
    world: World,
    model: PersonalModel,
    parameters: Sequence[nn.Parameter],
    person: Person,
    k: int,
    rate: float,
) -> None:
    """Takes the comparison's full-batch Adam steps on the person's `support[:k]`, the rate falling to 0.

    Nothing happens without examples. The model's mode stays as it is: in evaluation mode, dropout is off.
    """
    rows = first(person.support, k)
    if not len(rows):
        return
    mask = torch.from_numpy(label_mask(person, len(world.cohort.data.labels)))
    labels = torch.from_numpy(rows.label)
    optimizer = torch.optim.Adam(list(parameters), lr=rate)
    steps = world.config.learning_steps
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1.0 - step / steps)
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=False):  # gradients as the pass was, whatever the caller is in
            torch.autograd.backward(masked_nll(logits_of(world, model, rows), labels, mask))
        optimizer.step()
    optimizer.zero_grad()


def batches(data: TrainingData, size: int, seed: int) -> Iterator[Rows]:
    """Gives batches of `data.train` without end, in the order of umbel's own training."""
    config = TrainingConfig.model_validate({"batch_size": size})
    epoch = 0
    while True:
        for index in epoch_batches(data, config, seed, epoch):
            yield data.train.take(index)
        epoch += 1


def train_on_seen(
    world: World,
    model: PersonalModel,
    groups: Sequence[Group],
    on_step: Callable[[int, int], None],
    steps: int | None = None,
) -> None:
    """Trains some parameters on the judgements of all seen people; see `train`. No steps: `rival_steps`."""
    data = world.cohort.data
    steps = steps or world.config.rival_steps
    rows_of_step = list(islice(batches(data, world.batch_size, world.seed), steps))
    nobody = torch.zeros(len(data.labels))

    def loss(step: int) -> Tensor:
        rows = rows_of_step[step]
        return masked_nll(logits_of(world, model, rows), torch.from_numpy(rows.label), nobody)

    train(world, model, groups, steps, loss, on_step)


def train(
    world: World,
    model: PersonalModel,
    groups: Sequence[Group],
    steps: int,
    loss: Callable[[int], Tensor],
    on_step: Callable[[int, int], None],
) -> None:
    """Trains some parameters as umbel trains its own: AdamW, warm-up, half a cosine, clipped, dropout on.

    Args:
        world: Gives the seed of dropout.
        model: In evaluation mode and without gradients afterwards.
        groups: What is trained, and how fast.
        steps: How many steps.
        loss: Number of a step -> scalar.
        on_step: Hears (steps done, steps in all).

    Raises:
        TrainingError: The loss is no longer finite.
    """
    config = TrainingConfig.model_validate({"max_steps": steps, "warmup_steps": max(1, steps // 10)})
    model.requires_grad_(False)
    every = [parameter for parameters, _ in groups for parameter in parameters]
    for parameter in every:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "base": rate} for parameters, rate in groups],
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
    )
    model.train()
    for step in range(steps):
        set_rates(optimizer, step, config)
        with seeded(world.seed, "", f"rival dropout {step}"):
            value = loss(step)
        if not torch.isfinite(value):
            raise TrainingError(f"a rival's loss is no longer finite at step {step}")
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(every, config.clip_norm)
        optimizer.step()
        on_step(step + 1, steps)
    optimizer.zero_grad()
    model.requires_grad_(False)
    model.eval()
