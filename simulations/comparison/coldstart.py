"""Contestants for a person's first minute: onboarded, learned, cross-validated, as a device does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from typing import final

import numpy as np
import torch

from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.onboarding.network import Onboarder
from umbel.coordinator.onboarding.reading import Readings, read_texts
from umbel.coordinator.onboarding.training import OnboardingTrainer, onboarded
from umbel.coordinator.training.calibrate import side_by_side
from umbel.coordinator.training.data import Rows, stack
from umbel.shared.bias import softmax
from umbel.shared.files import sha256_bytes
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.strength import STRENGTHS, Index, expected_strength, fold_rows
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.config import ColdStartConfig, ContestantConfig
from umbel.simulations.comparison.contestant import Costs, Options, World
from umbel.simulations.comparison.kept import keep, read_kept
from umbel.simulations.comparison.profiles import Profiles

_PROFILE = "profile."
_SEEN = 256  # held-out examples of seen people that are predicted at once


@final
class ColdStart(Profiles):
    """Methods whose profiles start from the onboarding network, and are used as far as examples bear it out.

    What is trained is kept in the place's folder: contestants that agree in the methods share them, and those
    that agree in the network share that.
    """

    version = 100 * Profiles.version + 1

    def __init__(self, world: World, name: str, config: ContestantConfig):
        super().__init__(world, name, config)
        if config.cold_start is None:
            raise ValueError("expected a section cold_start")
        self.cold: ColdStartConfig = config.cold_start
        self.by_k = self.cold.by_k
        self.network: Onboarder | None = None
        self._readings: Readings | None = None
        self._folds: dict[tuple[object, ...], tuple[Index, FloatArray]] = {}

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Trains the methods, then the onboarding network; or reads what an earlier contestant has kept."""
        super().prepare(on_step)
        if not self.cold.onboard:
            return
        self.network = self._onboarder(on_step)
        cohort = self.world.cohort
        people = (*cohort.people, *cohort.more, *cohort.calibration, *cohort.more_calibration)
        known = [person.support.text for person in people]
        texts = np.unique(np.concatenate(known))
        self._readings = read_texts(self._trained(), cohort.data.tokens, texts, self.world.precision())

    def options(self) -> Sequence[Options]:
        """Rates and priors, shares of the network's profile, and trusts, as far as they do anything."""
        tried: dict[str, Sequence[float]] = {}
        if self.cold.learn:
            tried |= {"rate": self.config.learning_rate, "prior": self.config.prior_strength}
        if self.cold.onboard:
            tried["share"] = self.cold.share
        if self.cold.folds:
            tried["trust"] = self.cold.trust
        return [dict(zip(tried, values, strict=True)) for values in product(*tried.values())]

    def costs(self) -> Costs:
        """The profile as it is packed; the network counts among what is shared."""
        own = super().costs()
        network = 0 if self.network is None else sum(value.numel() for value in self.network.parameters())
        return Costs(own.private_bytes, own.private_numbers, own.shared_numbers + network)

    def seen(self) -> tuple[int, int]:
        """Predicts held-out examples of seen people under what they learned: (right, asked)."""
        held = self.world.cohort.table.validation
        right = 0
        for at in range(0, len(held), _SEEN):
            rows = held.take(np.arange(at, min(at + _SEEN, len(held))))
            users, own = np.unique(rows.user, return_inverse=True)
            parts = [rows.take(np.flatnonzero(own == number)) for number in range(len(users))]
            logits = self._predicted(parts, {name: values[users] for name, values in self._tasks.items()})
            right += sum(int((z.argmax(1) == p.label).sum()) for z, p in zip(logits, parts, strict=True))
        return right, len(held)

    def _side_by_side(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        supports = [person.support.take(np.arange(k)) for person in people]
        further = [_without_labels(person.support, k, self.cold.texts) for person in people]
        profile = self._profiles(supports, further, options)
        if k > 0 and self.cold.folds:
            who = (k, *(person.user for person in people))
            strengths = self._strengths(supports, further, options, who)
            profile = {name: _times(values, strengths) for name, values in profile.items()}
        return self._predicted([person.query for person in people], profile)

    def _profiles(
        self, supports: Sequence[Rows], further: Sequence[Rows], options: Options
    ) -> dict[str, FloatArray]:
        """Returns profiles (users, *shape), each from one's examples and further texts alone."""
        origin = self._started(supports, further, options)
        if not self.cold.learn or not any(len(own) for own in supports):
            return origin
        return self._fitted(supports, origin, options)

    @torch.no_grad()
    def _started(
        self, supports: Sequence[Rows], further: Sequence[Rows], options: Options
    ) -> dict[str, FloatArray]:
        known = side_by_side([stack(pair) for pair in zip(supports, further, strict=True)])
        if self.network is None or self._readings is None or not len(known):
            return self._trained().profile_spec().zeros(len(supports))
        found, _ = onboarded(self.network, self._readings, known, len(supports))
        return {name: values.numpy() * np.float32(options["share"]) for name, values in found.items()}

    def _strengths(
        self, supports: Sequence[Rows], further: Sequence[Rows], options: Options, who: tuple[object, ...]
    ) -> FloatArray:
        """Returns how much of each profile is used, (users,), as the device's `cautious_profiles` does.

        What folds give does not depend on the trust that is tried, so it is kept, by `who`.
        """
        found = np.ones(len(supports), np.float32)
        key = (*who, *(value for name, value in options.items() if name != "trust"))
        if key not in self._folds:
            self._folds[key] = self._held_out(supports, further, options)
        owners, nll = self._folds[key]
        for user in np.unique(owners):
            found[user] = expected_strength(nll[:, owners == user].sum(1), options["trust"])
        return found

    def _held_out(
        self, supports: Sequence[Rows], further: Sequence[Rows], options: Options
    ) -> tuple[Index, FloatArray]:
        """Returns whose each fold is, (folds,), and held-out nll at every strength, (strengths, folds)."""
        splits = [
            (user, *rows)
            for user, own in enumerate(supports)
            for rows in fold_rows(own.text.tolist(), self.cold.folds)
        ]
        owners = np.array([user for user, _, _ in splits], np.int64)
        if not splits:
            return owners, np.zeros((len(STRENGTHS), 0), np.float32)
        learned = self._profiles(
            [supports[user].take(rest) for user, rest, _ in splits],
            [further[user] for user in owners],
            options,
        )
        held = [supports[user].take(rows) for user, _, rows in splits]

        def held_nll(strength: float) -> FloatArray:
            scaled = {name: values * np.float32(strength) for name, values in learned.items()}
            return np.array([_nll(*pair) for pair in zip(self._predicted(held, scaled), held, strict=True)])

        return owners, np.stack([held_nll(strength) for strength in STRENGTHS])

    def _train(
        self, model: PersonalModel, config: CoordinatorConfig, on_step: Callable[[int, int], None]
    ) -> dict[str, FloatArray]:
        kept = self.world.folder / f"methods-{self._methods_hash()[:12]}.safetensors"
        trains = self.config.encoder_layers > 0
        wanted = {n: v for n, v in model.state_dict().items() if trains or not n.startswith("encoder.")}
        spec, users = model.profile_spec(), len(self.world.cohort.table.users)
        shapes = {n: tuple(v.shape) for n, v in wanted.items()}
        shapes |= {_PROFILE + tensor.name: (users, *tensor.shape) for tensor in spec.tensors}
        tensors = read_kept(kept, shapes)
        if tensors is not None:
            model.load_state_dict({name: tensors[name] for name in wanted}, strict=False)
            return {t.name: tensors[_PROFILE + t.name].numpy() for t in spec.tensors}
        tasks = super()._train(model, config, on_step)
        state = model.state_dict()
        keep(
            kept,
            {name: state[name] for name in wanted}
            | {_PROFILE + name: torch.from_numpy(values) for name, values in tasks.items()},
        )
        return tasks

    def _onboarder(self, on_step: Callable[[int, int], None]) -> Onboarder:
        config = self._coordinator_config()
        row = [self._methods_hash(), config.onboarding.model_dump(mode="json")]
        fingerprint = sha256_bytes(json.dumps(row).encode())
        folder = self.world.folder / f"onboarding-{fingerprint[:12]}"
        kept = folder.with_suffix(".safetensors")
        model, labels = self._trained(), len(self.world.cohort.table.labels)
        width = self.world.backbone.shape.hidden_size
        network = Onboarder(config.onboarding, model.profile_spec(), width, labels, config.seed)
        tensors = read_kept(kept, {name: tuple(value.shape) for name, value in network.named_parameters()})
        if tensors is not None:
            network.load_state_dict(tensors)
            return network.requires_grad_(False).eval()
        folder.mkdir(parents=True, exist_ok=True)
        trainer = OnboardingTrainer(
            model,
            self.world.cohort.table,
            {name: torch.from_numpy(values) for name, values in self._tasks.items()},
            config,
            folder,
            fingerprint,
            bfloat16=self.world.bfloat16,
        )
        network = trainer.run(on_step)
        keep(kept, dict(network.named_parameters()))
        shutil.rmtree(folder)
        return network

    def _coordinator_config(self) -> CoordinatorConfig:
        config = super()._coordinator_config()
        return config.model_copy(update={"onboarding": self.cold.network}) if self.cold.onboard else config

    def _methods_hash(self) -> str:
        """Returns the hash of what the methods' training depends on, whatever is done with them then."""
        return sha256_bytes(f"{self.version} {self._fingerprint(super()._coordinator_config())}".encode())


def _without_labels(rows: Rows, at: int, count: int) -> Rows:
    """Returns the next `count` rows, as far as there are, as texts of which only the text is known."""
    some = rows.take(np.arange(at, min(at + count, len(rows))))
    return Rows(some.text, some.user, np.full(len(some), UNKNOWN, np.int64))


def _times(values: FloatArray, strengths: FloatArray) -> FloatArray:
    return np.asarray(values * strengths.reshape(-1, *[1] * (values.ndim - 1)), np.float32)


def _nll(logits: FloatArray, rows: Rows) -> float:
    chance = softmax(logits)[np.arange(len(rows)), rows.label]
    return float(-np.log(np.maximum(chance, 1e-12)).sum())
