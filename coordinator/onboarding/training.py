"""Trains the onboarding network: first towards what seen users have learned, then by playing new users."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from umbel.coordinator.config import CoordinatorConfig, OnboardingConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.onboarding.episodes import Episode, Players
from umbel.coordinator.onboarding.network import Onboarder
from umbel.coordinator.onboarding.reading import Readings, read_texts
from umbel.coordinator.onboarding.shown import representatives
from umbel.coordinator.training.calibrate import TorchGradients, relative
from umbel.coordinator.training.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.trainer import interrupts_held
from umbel.shared.errors import TrainingError
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator, integer_seed
from umbel.shared.text import TokenBatch

_WARM_USERS = 32  # embeddings are there already, so that more users cost nothing
_CHECKPOINT_EVERY = 50
_CLIP = 1.0
_LEAST_JUDGES = 3


def found_players(data: TrainingData) -> Players:
    """Returns the seen people who can play somebody new.

    Raises:
        TrainingError: There are none.
    """
    players = Players(data.train, len(data.users))
    if not len(players.able):
        raise TrainingError(
            "onboarding: nobody has two examples to train on",
            hint="Give more examples per user, or set steps = 0 under [onboarding].",
        )
    return players


@final
class OnboardingTrainer:
    """Trains an `Onboarder` around a finished model, which stays as it is."""

    def __init__(
        self,
        model: PersonalModel,
        data: TrainingData,
        profiles: Mapping[str, Tensor],
        config: CoordinatorConfig,
        folder: Path,
        fingerprint: str,
        *,
        bfloat16: bool = False,
    ):
        """Reads every training text once.

        Args:
            model: The finished model.
            data: What it was trained on.
            profiles: What seen users have learned: name -> (users, *shape), in the order of `data.users`.
            config: The training's configuration.
            folder: Where checkpoints lie.
            fingerprint: Hash of all that the result depends on.
            bfloat16: Matrix products of the model are in bfloat16.
        """
        self.model = model.requires_grad_(False).eval()
        self.device = next(model.parameters()).device
        self.data, self.config, self.folder = data, config, folder
        self.fingerprint, self.bfloat16 = fingerprint, bfloat16
        self.options: OnboardingConfig = config.onboarding
        self.profiles = {name: values.detach().cpu().float() for name, values in profiles.items()}
        self.readings: Readings = read_texts(
            model, data.tokens, np.unique(data.train.text), self._precision()
        )
        self.players = found_players(data)
        self.network = made(model, config, self.readings, self.profiles)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), betas=(0.9, 0.98), weight_decay=self.options.weight_decay
        )
        self.progress = Progress()

    def run(self, on_step: Callable[[int, int], None] | None = None) -> Onboarder:
        """Trains to the end; a checkpoint that lies in the folder is resumed.

        Args:
            on_step: Called with (steps done, steps in all).

        Raises:
            TrainingError: The folder holds another training, or the loss is no longer finite.
            KeyboardInterrupt: Ctrl-C, after the checkpoint is written.
        """
        weights = dict(self.network.named_parameters())
        found = load_checkpoint(self.folder, self.fingerprint)
        if found is not None:
            self.progress, tensors = found
            restore(tensors, weights, self.optimizer)
        total = self.options.warm_steps + self.options.steps
        with interrupts_held() as interrupted:
            while self.progress.step < total:
                self._step()
                if on_step is not None:
                    on_step(self.progress.step, total)
                if self.progress.step % _CHECKPOINT_EVERY == 0 or interrupted():
                    save_checkpoint(self.folder, self.fingerprint, self.progress, weights, {}, self.optimizer)
                if interrupted():
                    raise KeyboardInterrupt
        return self.network.requires_grad_(False).eval()

    def representatives(self) -> list[list[tuple[int, int]]]:
        """Returns, for each prototype, the training texts that show what it stands for: (text, label).

        A text that fewer than three users judged may be somebody's own, and is not shown.
        """
        pairs = np.unique(np.stack([self.data.train.text, self.data.train.user]), axis=1)
        text, judges = np.unique(pairs[0], return_counts=True)
        texts = text[judges >= _LEAST_JUDGES]
        if not len(texts):
            return [[] for _ in range(self.options.prototypes)]
        found = representatives(self.network, *self.readings.rows(texts), self.options.shown)
        return [[(int(texts[row]), label) for row, label in rows] for rows in found]

    def _step(self) -> None:
        step, warm = self.progress.step, self.options.warm_steps
        early = step < warm
        rate = self.options.warm_rate if early else self.options.rate
        done = step / warm if early else (step - warm) / self.options.steps
        for group in self.optimizer.param_groups:
            group["lr"] = rate * _factor(done)
        torch.manual_seed(integer_seed(self.config.seed, step, "", "onboarding"))
        users = _WARM_USERS if early else self.options.users
        episode = self.players.episode(self.options, users, self.config.seed, step)
        profile, weights = onboarded(self.network, self.readings, episode.support, len(episode.users))
        loss = self._mixture(episode, weights)
        loss = loss + (self._distance(episode, profile) if early else self._judged(episode, profile, step))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"onboarding: the loss is no longer finite at step {step}",
                hint="Lower warm_rate or rate under [onboarding].",
            )
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.optimizer.step()
        self.progress.step += 1

    def _mixture(self, episode: Episode, weights: Tensor) -> Tensor:
        """Returns the mean nll of the query under the prototypes' answers, mixed by the users' weights."""
        embedding, logits = self.readings.rows(episode.query.text)
        label, user = (torch.from_numpy(part) for part in (episode.query.label, episode.query.user))
        return self.network.mixture(weights[user], embedding, logits, label).mean()

    def _distance(self, episode: Episode, profile: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean squared distance to what the users have learned, in units of its own size."""
        index = torch.from_numpy(episode.users)
        parts = []
        for name, found in profile.items():
            size = self.profiles[name].square().mean().clamp_min(1e-12)
            parts.append((found - self.profiles[name][index]).square().mean() / size)
        return torch.stack(parts).mean()

    def _judged(self, episode: Episode, profile: Mapping[str, Tensor], step: int) -> Tensor:
        """Returns the mean nll of the query under the model: as onboarded, or after a few learning steps.

        The learning steps are constants to the gradient (first order).
        """
        options = self.options
        share = generator(self.config.seed, step, "", "onboarding: learning").random()
        if options.learning_steps and share < options.learning_share:
            moved = self._learned(episode, {name: v.detach().numpy() for name, v in profile.items()})
            profile = {
                name: values + (torch.from_numpy(moved[name]) - values.detach())
                for name, values in profile.items()
            }
        tokens = self.data.tokens.rows(episode.query.text)
        arrays = (tokens.ids, tokens.mask, episode.query.user)
        inputs = (torch.from_numpy(array).to(self.device) for array in arrays)
        own = {name: values.to(self.device) for name, values in profile.items()}
        with self._precision():
            logits = self.model(*inputs, own)
        label = torch.from_numpy(episode.query.label).to(self.device)
        nll: Tensor = self.model.task.nll(logits.float(), label)
        return nll.mean().cpu()

    def _learned(self, episode: Episode, origin: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        recipe = self._short_recipe()
        twin = TorchGradients(self.model, self.data.tokens, bfloat16=self.bfloat16)
        rows = episode.labelled()
        if not len(rows):
            return dict(origin)
        return minimise(lambda values: twin.learn(rows, values), origin, recipe)

    def _short_recipe(self) -> LearningRecipe:
        steps, rate = self.options.learning_steps, self.options.learning_rate
        return LearningRecipe(steps=steps, learning_rate=rate, **relative(self.model))

    def _precision(self) -> Any:
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def made(
    model: PersonalModel, config: CoordinatorConfig, readings: Readings, profiles: Mapping[str, Tensor]
) -> Onboarder:
    """Makes the network, its first and last layers in the scale of what it reads and writes."""
    labels = readings.logits.shape[1]
    network = Onboarder(
        config.onboarding, model.profile_spec(), readings.embedding.shape[1], labels, config.seed
    )
    network.fit_inputs(readings.embedding.mean(0), readings.embedding.std(0, correction=0))
    rng = torch.Generator().manual_seed(integer_seed(config.seed, 0, "", "init onboarding heads"))
    network.fit_outputs(profiles, rng)
    return network


def onboarded(
    network: Onboarder, readings: Readings, support: Rows, users: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the profiles (users, *shape) and prototype weights that the network gives for a support."""
    embedding, logits = readings.rows(support.text)
    label, owner = torch.from_numpy(support.label), torch.from_numpy(support.user)
    found: tuple[dict[str, Tensor], Tensor] = network(embedding, logits, label, owner, torch.arange(users))
    return found


def starts_of(
    network: Onboarder, model: PersonalModel, tokens: TokenBatch, users: Sequence[Rows]
) -> Callable[[Rows, int], dict[str, FloatArray]]:
    """Returns what gives users' first profiles by some of their rows; all texts of `users` are read once.

    Args:
        network: The trained network.
        model: The model that it was trained with.
        tokens: Every text.
        users: Rows of everybody who may be asked about.
    """
    every = np.unique(np.concatenate([np.zeros(0, np.int64), *(rows.text for rows in users)]))
    readings = read_texts(model, tokens, every) if len(every) else None

    @torch.no_grad()
    def starts(support: Rows, count: int) -> dict[str, FloatArray]:
        if readings is None or not len(support):
            return model.profile_spec().zeros(count)
        found, _ = onboarded(network, readings, support, count)
        return {name: values.numpy() for name, values in found.items()}

    return starts


def _factor(done: float) -> float:
    """Linear warm-up over the first tenth, then a half cosine to a twentieth."""
    return min(1.0, 10 * done + 0.1) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
