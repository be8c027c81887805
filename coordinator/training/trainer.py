"""The training loop: progress, held-out looks, early stopping, checkpoints, resume to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from umbel.coordinator.training.data import Rows, TrainingData, epoch_batches
from umbel.coordinator.training.speed import Steps, compiled, diverged, placed
from umbel.coordinator.training.step import (
    Batch,
    UserTable,
    batch_loss,
    make_optimizer,
    set_dropout,
    set_rates,
    trained_parameters,
)
from umbel.coordinator.training.traits import TraitHead
from umbel.coordinator.training.workers import ALONE, Share, Workers, own_gpu
from umbel.shared.errors import TrainingError
from umbel.shared.files import atomic_write
from umbel.shared.rng import generator, integer_seed

METRICS = "metrics.jsonl"
ASIDE = ("users/", "traits/")
"""First parts of the names of weights that are there while training goes on, and no longer."""


@final
class Trainer:
    """Trains a personal model on seen users; every random choice is a function of (seed, step)."""

    def __init__(
        self,
        model: PersonalModel,
        data: TrainingData,
        config: CoordinatorConfig,
        folder: Path,
        fingerprint: str,
        traits: TraitHead | None = None,
        workers: Workers = ALONE,
    ):
        self.config = config
        self.workers = workers
        self.data = data
        self.folder = folder
        self.fingerprint = fingerprint
        self.device = training_device(config.training.device)
        self.model = model.to(self.device)
        self.table = UserTable(model.profile_spec(), len(data.users)).to(self.device)
        if config.backbone.dropout is not None:
            set_dropout(model.encoder, config.backbone.dropout)
        head = config.training.head == "trained"
        trained = trained_parameters(model, config.backbone, head=head)
        self.traits = None if traits is None else traits.to(self.device)
        self.optimizer = make_optimizer(trained, self.table, config.training, config.methods, self.traits)
        self.weights: dict[str, Tensor] = dict(trained)
        self.weights |= {f"users/{name}": value for name, value in self.table.as_profile().items()}
        if self.traits is not None:
            self.weights |= {f"traits/{name}": value for name, value in self.traits.named_parameters()}
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        self._bfloat16 = uses_bfloat16(config.training.precision, self.device)
        self._steps = Steps(on_gpu=self.device.type == "cuda")
        self._loss = compiled(self._batch_loss, config.training.compile, self.device)

    def run(self, on_step: Callable[[Progress], None] | None = None) -> Progress:
        """Trains until the last step or until held-out loss no longer falls, then takes the best weights.

        A checkpoint that lies in the folder is resumed. On Ctrl-C the step is ended and kept as a checkpoint.

        Raises:
            TrainingError: The folder holds another training, or the loss is no longer finite.
            KeyboardInterrupt: Ctrl-C, after the checkpoint is written; at once if it is pressed twice.
        """
        workers = self.workers
        found = load_checkpoint(self.folder, self.fingerprint) if workers.first else None
        found = workers.from_first(found)
        if found is not None:
            self.progress, tensors = found
            self.best = restore(tensors, self.weights, self.optimizer)
        workers.copy_from_first(self.weights)
        if workers.first:
            self._cut_metrics()
        with interrupts_held() as interrupted:
            self._loop(on_step, interrupted)
        with torch.no_grad():
            for name, value in self.best.items():
                self.weights[name].copy_(value)
        return self.progress

    def _loop(self, on_step: Callable[[Progress], None] | None, interrupted: Callable[[], bool]) -> None:
        training, progress = self.config.training, self.progress
        while not progress.stopped:
            batches = epoch_batches(self.data, training, self.config.seed, progress.epoch)
            while progress.batch < len(batches) and not progress.stopped:
                self.step(self.data.train.take(batches[progress.batch]), interrupted=interrupted())
                progress.batch += 1
                stop = self._after_step()
                if on_step is not None:
                    on_step(progress)
                if stop or (interrupted() and self.workers.count == 1):
                    self._steps.heard(progress.recent, now=True)
                    self._checkpoint()
                    raise KeyboardInterrupt
            if not progress.stopped:
                progress.epoch, progress.batch = progress.epoch + 1, 0

    def step(self, rows: Rows, *, interrupted: bool = False) -> None:
        """Trains on a batch; `progress.step` says which step it is, and is left to the caller.

        Args:
            rows: The batch.
            interrupted: Whether training shall end here, which all workers hear.

        Raises:
            TrainingError: The loss of this step, or of an earlier one, is not finite.
        """
        number, workers = self.progress.step, self.workers
        set_rates(self.optimizer, number, self.config.training)
        share = workers.share(len(rows))
        loss, nll = self._computed(rows, share)
        told = torch.stack([loss.detach(), nll, torch.full_like(nll, float(interrupted))]).float()
        told[:2] *= share.weight
        self.optimizer.zero_grad()
        torch.autograd.backward(loss * share.weight if workers.count > 1 else loss)
        workers.add_up([told, *(v.grad for v in self.weights.values() if v.grad is not None)])
        self._steps.took(number, told)  # before anything is changed by a loss that is not finite
        shared = [value for name, value in self.weights.items() if not name.startswith(ASIDE)]
        torch.nn.utils.clip_grad_norm_(shared, self.config.training.clip_norm)
        self.optimizer.step()

    def gradients(self, rows: Rows) -> tuple[float, dict[str, Tensor]]:
        """Returns the loss that `step` would have of a whole batch, and its gradients; nothing changes."""
        loss, _ = self._computed(rows, ALONE.share(len(rows)))
        wanted = {name: value for name, value in self.weights.items() if value.requires_grad}
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        named = zip(wanted, found, strict=True)
        return float(loss.detach()), {name: value for name, value in named if value is not None}

    def _computed(self, rows: Rows, share: Share) -> tuple[Tensor, Tensor]:
        """Returns loss and nll of a share of a batch, as this step computes them."""
        purpose = f"dropout{self.workers.rank or ''}"
        torch.manual_seed(integer_seed(self.config.seed, self.progress.step, "", purpose))
        self.model.train()
        with self.precision():
            found: tuple[Tensor, Tensor] = self._loss(self._batch(rows, share), self._traits())
        return found

    def _batch_loss(self, batch: Batch, traits: tuple[TraitHead, float] | None) -> tuple[Tensor, Tensor]:
        return batch_loss(self.model, self.table, batch, self.config.training.private_prior, traits)

    def _traits(self) -> tuple[TraitHead, float] | None:
        """Returns the trait head and its weight, which falls to 0 at half of the steps."""
        weight = 1.0 - 2.0 * self.progress.step / self.config.training.max_steps
        return None if self.traits is None or weight <= 0 else (self.traits, weight)

    def _after_step(self) -> bool:
        """Looks and keeps a checkpoint where it is time to; says whether training shall end."""
        training, progress = self.config.training, self.progress
        progress.step += 1
        last = progress.step >= training.max_steps
        look = progress.step % training.evaluate_every == 0 or last
        keep = progress.step % training.checkpoint_every == 0
        stop = self._steps.heard(progress.recent, now=look or keep)
        if look:
            self._look(float(np.mean(progress.recent)))
            progress.recent.clear()
        if last and not progress.stopped:
            progress.stopped = "reached max_steps"
        if keep or progress.stopped:
            self._checkpoint()
        return stop

    def _look(self, train_loss: float) -> None:
        """Measures held-out examples, keeps the best weights, and decides whether to stop."""
        progress = self.progress
        loss, accuracy = self.held_out()
        if not math.isfinite(loss):
            raise diverged(progress.step)
        if self.workers.count > 1:
            self.workers.agree(f"weights at step {progress.step}", _digest(self.weights))
        row = {"step": progress.step, "loss": train_loss, "heldout_loss": loss, "heldout_accuracy": accuracy}
        progress.curve.append(row)
        if self.workers.first:
            with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
            self.best = {name: value.detach().clone() for name, value in self.weights.items()}
        else:
            progress.stale += 1
        if progress.stale >= self.config.training.patience:
            progress.stopped = f"no better held-out loss in {progress.stale} looks"

    @torch.no_grad()
    def held_out(self) -> tuple[float, float]:
        """Returns mean nll and accuracy of seen users' held-out examples under their own private tensors."""
        self.model.eval()
        rows, profile = self.data.validation, self.table.as_profile()
        workers = self.workers
        found = torch.zeros(2, dtype=torch.float64, device=self.device)
        for part in self.data.tokens.like_length(256, rows.text)[workers.rank :: workers.count]:
            batch = self._batch(rows.take(part))
            with self.precision():
                # Not the model's own call, which makes everybody's adapters: there may be many users.
                frame = self.model.frame(batch.mask, batch.owner, profile)
                logits = self.model.run(batch.ids, batch.mask, frame)
            found[0] += self.model.task.nll(logits.float(), batch.labels).sum()
            found[1] += (logits.argmax(-1) == batch.labels).sum()
        workers.add_up([found])
        loss, right = (found / len(rows)).tolist()
        return loss, right

    def _batch(self, rows: Rows, share: Share | None = None) -> Batch:
        """Returns rows on the device: all as they are, or a share, as it is trained on."""
        keep = np.ones((len(rows), 1), np.float32)
        everyone = None
        if share is not None:
            rng = generator(self.config.seed, self.progress.step, "", "personalised dropout")
            drawn = rng.random((len(rows), 1)) >= self.config.training.personalised_dropout
            keep, rows, everyone = drawn.astype(np.float32)[share.rows], rows.take(share.rows), share.everyone
        tokens = self.data.tokens.rows(rows.text)
        arrays = (tokens.ids, tokens.mask, rows.label, rows.user, keep)
        ids, mask, labels, owner, kept = (placed(array, self.device) for array in arrays)
        return Batch(ids, mask, labels, owner, kept, rows.text, everyone)

    def _checkpoint(self) -> None:
        if not self.workers.first:
            return
        save_checkpoint(self.folder, self.fingerprint, self.progress, self.weights, self.best, self.optimizer)

    def _cut_metrics(self) -> None:
        """Makes the metrics file hold exactly the looks of the progress that training goes on from."""
        rows = [json.dumps(row) + "\n" for row in self.progress.curve]
        atomic_write(self.folder / METRICS, "".join(rows).encode())

    def precision(self) -> Any:
        """Returns the context in which the model runs."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C wait for the end of a step: only between two steps is there a state to go on from.

    Gives a function that says whether Ctrl-C was pressed. The second press acts at once. Outside the main
    thread, where signals cannot be caught, nothing is held.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if pressed:
        raise KeyboardInterrupt


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Returns a hash of all weights, to the bit."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def training_device(wanted: str) -> torch.device:
    """Returns where to train.

    Raises:
        TrainingError: There is no GPU, but one is asked for.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device is 'cuda', but torch sees no GPU", hint="Use device = 'auto' or 'cpu'."
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if own_gpu() >= torch.cuda.device_count():
        raise TrainingError(
            "more workers were started on this machine than it has GPUs",
            [f"GPUs: {torch.cuda.device_count()}, this worker is number {own_gpu()} here"],
            "Start fewer: torchrun --nproc-per-node.",
        )
    return torch.device("cuda", own_gpu())


def uses_bfloat16(precision: str, device: torch.device | None = None) -> bool:
    """Says whether matrix products are in bfloat16; by "auto" where there are units that make it faster.

    Args:
        precision: "auto", "float32" or "bfloat16".
        device: Where; None for the processor.
    """
    if precision != "auto":
        return precision == "bfloat16"
    capabilities = torch.cpu.get_capabilities()
    on_gpu = device is not None and device.type == "cuda"
    return on_gpu or bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
