"""Partial model personalization as a Flower strategy that samples by the devices' own numbers and can go on.

Flower gives devices new random ids at every start and counts every run from round 1. Here devices are known
by the number that they tell when asked, everything is a function of (seed, round), and `start` goes on after
the last round that it is given.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from umbel.coordinator.federation.aggregation import rule_class
from umbel.coordinator.federation.aggregation.mean import Mean, Total
from umbel.coordinator.federation.envelopes import SharedArrays, array_record, enveloped, opened, wire_bytes
from umbel.coordinator.federation.journal import Begun, RoundsResult
from umbel.coordinator.federation.line import Ask, Line
from umbel.coordinator.federation.presence import GREETING_S, SILENT, OnWait, Presence, first_line
from umbel.coordinator.federation.privacy.budget import PrivateRounds
from umbel.coordinator.federation.probation import last_rounds, length
from umbel.coordinator.federation.roll import Roll
from umbel.coordinator.federation.sampling import Without, sampled
from umbel.coordinator.federation.secure.summing import Summing, Take, lead
from umbel.coordinator.federation.server_step import moved
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.federation.tally import Tally
from umbel.shared.errors import MessageError, UmbelError
from umbel.shared.messages import (
    EVALUATE,
    TRAIN,
    Contribution,
    EvaluationReply,
    RoundTask,
    Wire,
    read_contribution,
    read_evaluation,
)
from umbel.shared.profile import FloatArray
from umbel.shared.release import Manifest
from umbel.shared.secure.messages import COLLECT, SETUP

PANEL = "evaluation panel"
"""For what purpose those who are evaluated are sampled."""

log = logging.getLogger(__name__)

OnGreeted: TypeAlias = Callable[[Ask, Mapping[int, int]], None]
"""Is told what asks devices, and device number -> node id of those that are there."""


@final
class PersonalRounds(Strategy):
    """Runs rounds of one release."""

    def __init__(
        self,
        manifest: Manifest,
        settings: RoundSettings,
        *,
        reached: RoundsResult,
        population: int = 0,
        private: PrivateRounds | None = None,
        on_round: Callable[[RoundsResult], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        owns: Callable[[int, int], bool] = lambda node, number: True,
        begun: Begun | None = None,
        on_begin: Callable[[Begun], None] = lambda begun: None,
        on_greeted: OnGreeted = lambda ask, nodes: None,
        on_wait: OnWait = lambda here, wanted, connected: None,
        roll: Roll | None = None,
    ):
        """Prepares the rounds.

        Args:
            manifest: The release.
            settings: What happens in a round.
            reached: Where to go on; no rounds and the release's own tensors at the beginning.
            population: How many devices to wait for; 0 to begin when their number no longer grows.
            private: Samples and adds noise under a privacy budget; None without noise.
            on_round: Called after every round with all that was reached.
            stopped: Asked while waiting; True ends the run.
            owns: Says whether a node may go by the number that it tells.
            begun: The round that was begun when the run was ended, and who was to train in it.
            on_begin: Called when a round begins, before anybody is asked.
            on_greeted: Called before that with who is there, and what asks them.
            on_wait: Hears of devices that are missing, so that a wait is not silent.
            roll: Who is at which node, where that is known: then nobody is waited for or asked who they are.
        """
        self.manifest = manifest
        self.settings = settings
        self.reached = reached
        self.population = population
        self.private = private
        self.on_round = on_round
        self.stopped = stopped
        self.owns = owns
        self.begun = begun
        self.on_begin = on_begin
        self.on_greeted = on_greeted
        self.on_wait = on_wait
        self.roll = roll
        self._release_id = manifest.release_id
        self._change_bytes = 4 * sum(math.prod(shape) for shape in manifest.trainables.values())
        self._round = Tally()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Runs what is left of the rounds; what is not given comes from the settings and what was reached."""
        rounds = self.settings.rounds if num_rounds is None else num_rounds
        wait_s = self.settings.timeout_s if timeout is None else timeout
        arrays = array_record(self.reached.trainables) if initial_arrays is None else initial_arrays
        result = Result(arrays=arrays)
        first = len(self.reached.rounds) + 1
        self._line = Line(grid, self.stopped)
        self._presence = Presence(
            self._line, self.population, self._least(), self.owns, self.on_wait, self.roll
        )
        if first <= rounds:
            self._presence.meet(wait_s, goes_on=first > 1 or self.begun is not None)
        for number in range(first, rounds + 1):
            if not self._affords(number):
                break
            started, self._round = time.perf_counter(), Tally()
            self._presence.greet(wait_s, self._begun(number) or ())
            ask = partial(self._line.ask, timeout=min(wait_s, GREETING_S))
            self.on_greeted(ask, self._presence.nodes())
            if self.settings.secure:
                changed, trained = self._trained_securely(number, arrays, wait_s)
            else:
                asked = self.configure_train(number, arrays, train_config or ConfigRecord(), grid)
                answers = self._line.ask(asked, wait_s, self._change_bytes)
                changed, trained = self.aggregate_train(number, answers)
            arrays = arrays if changed is None else changed
            tasks = self.configure_evaluate(number, arrays, evaluate_config or ConfigRecord(), grid)
            evaluated = self.aggregate_evaluate(number, self._line.ask(tasks, wait_s))
            result.arrays = arrays
            _keep(result.train_metrics_clientapp, number, trained)
            _keep(result.evaluate_metrics_clientapp, number, evaluated)
            _keep(
                result.evaluate_metrics_serverapp,
                number,
                evaluate_fn(number, arrays) if evaluate_fn else None,
            )
            self._finish(number, time.perf_counter() - started, evaluated)
        return result

    def summary(self) -> None:
        """Logs the settings."""
        log.info("rounds of release %s: %s", self._release_id[:12], self.settings)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the tasks of the devices that train in a round."""
        return self._tasks(server_round, arrays, TRAIN, self._chosen(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next shared tensors, or None if too few devices answered."""
        task = self._round.task(TRAIN)

        def read(client: int, wire: Wire) -> Contribution:
            return read_contribution(wire, self.manifest, task)

        rule = rule_class(self.settings.rule)(self.settings.rule_options(task.settings.clip))
        rule.begin(self.manifest.trainables)
        examples = within = 0
        for client, contribution in self._usable(TRAIN, server_round, replies, read):
            rule.add(client, contribution)
            self._round.clients += 1
            examples += contribution.examples
            within += contribution.within is True
        if self.private is not None:
            assert isinstance(rule, Mean)
            change = self._noised(self.private, rule.total(), within, task)
        elif self._round.clients >= self.settings.min_replies:
            change = rule.finish()
        else:
            asked = len(self._round.asked[TRAIN])
            self._round.note(
                f"round {server_round} changed nothing: {self._round.clients} of {asked} devices gave a "
                f"usable answer, {self.settings.min_replies} are needed"
            )
            return None, None
        values = self._move(task, change)
        return array_record(values), MetricRecord({"clients": self._round.clients, "examples": examples})

    def _trained_securely(
        self, number: int, arrays: ArrayRecord, wait_s: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Trains a round of whose changes nothing is seen but their sum."""
        task, weighted = self._task(number, arrays, TRAIN), self.settings.weighting == "examples"
        nodes = self._present(number, SETUP, self._chosen(number))
        try:
            summing = Summing(
                self.manifest, task, sorted(nodes), self.settings.secure_settings(), weighted=weighted
            )
            found = lead(summing, partial(self._stage, number, wait_s, nodes))
        except MessageError as error:
            return self._not_opened(task, "; ".join(error.problems))
        self._round.clients = found.devices
        total = Total(found.total, found.weight)
        if self.private is not None:
            change = self._noised(self.private, total, found.within or 0, task, summing.rounding)
        else:
            change = total.mean()
        values = self._move(task, change)
        examples = {"examples": found.weight} if weighted else {}
        return array_record(values), MetricRecord({"clients": found.devices, **examples})

    def _not_opened(self, task: RoundTask, why: str) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what comes of a round whose sum is not opened: nothing, or under a budget its noise."""
        if self.private is None:
            self._round.note(f"round {task.round} changed nothing: {why}")
            return None, None
        self._round.note(f"round {task.round} moved by its noise alone: {why}")
        nothing = {name: np.zeros(shape) for name, shape in self.manifest.trainables.items()}
        change = self._noised(self.private, Total(nothing, 0), 0, task)
        return array_record(self._move(task, change)), MetricRecord({"clients": 0})

    def _stage(
        self,
        round_: int,
        wait_s: float,
        nodes: Mapping[int, int],
        stage: str,
        tasks: Mapping[int, Wire],
        take: Take,
    ) -> None:
        """Asks devices for what a stage of a secure sum wants, and takes the answers in as they come.

        Args:
            round_: The round.
            wait_s: Longest wait for the stage that trains.
            nodes: Device number -> node id, as they were when the sum was begun.
            stage: The stage.
            tasks: Device number -> what it is asked.
            take: Takes an answer in.
        """
        messages, shared = [], SharedArrays()
        for client, wire in tasks.items():
            content = enveloped(shared.record(wire.arrays), wire.config)
            self._round.bytes_down += wire_bytes(content)
            messages.append(Message(content, nodes[client], stage, group_id=str(round_)))
        self._round.asked[stage] = {nodes[client]: client for client in tasks}
        large = stage == COLLECT
        wait_s = wait_s if large else min(wait_s, self.settings.secure_stage_s)
        replies = self._line.ask(messages, wait_s, self._change_bytes if large else 0)
        for _ in self._usable(stage, round_, replies, take):
            pass

    def _noised(
        self, private: PrivateRounds, total: Total, within: int, task: RoundTask, rounding: float = 0.0
    ) -> dict[str, FloatArray]:
        """Returns the round's change under the privacy budget; also if nobody answered, which would tell."""
        clip = task.settings.clip
        if private.settings.adaptive:
            self._round.clip = clip
            self._round.within = private.share_within(within, self._round.clients, task.round)
        return private.mean(total, task.round, clip, rounding)

    def _affords(self, number: int) -> bool:
        """Says whether the privacy budget pays for so many rounds."""
        if self.private is None or self.private.affords(number):
            return True
        log.warning("the privacy budget is spent after round %d", number - 1)
        return False

    def _clip(self) -> float:
        """Returns the clip of the next round: a function of the settings and of what the rounds have told."""
        clip = self.settings.clip
        for record in self.reached.rounds:
            if self.private is not None and record.within is not None:
                clip = self.private.next_clip(clip, record.within)
        return clip

    def _move(self, task: RoundTask, change: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Moves the shared tensors along the round's change and returns their next values."""
        values, velocity = moved(
            task.arrays,
            self.reached.velocity,
            change,
            self.settings.server_rate,
            self.settings.server_momentum,
        )
        self.reached = RoundsResult(self.reached.rounds, values, velocity)
        return values

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the tasks of the panel: the same devices in every round, so that rounds can be compared."""
        settings = self.settings
        panel = sampled(self._presence.known(), settings.evaluate_clients, settings.seed, 0, PANEL)
        return self._tasks(server_round, arrays, EVALUATE, panel) if panel else []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns the mean of the devices' accuracies, or None if no device was evaluated."""
        if EVALUATE not in self._round.asked:
            return None
        task = self._round.task(EVALUATE)

        def read(client: int, wire: Wire) -> EvaluationReply:
            return read_evaluation(wire, self.manifest, task)

        usable = dict(self._usable(EVALUATE, server_round, replies, read))
        if not usable:
            return None
        accuracy = sum(usable[client].correct / usable[client].total for client in sorted(usable)) / len(
            usable
        )
        return MetricRecord({"seen_accuracy": accuracy, "clients": len(usable)})

    def _chosen(self, round_: int) -> list[int]:
        """Returns who trains in a round; where it was begun before, the same as then."""
        begun = self._begun(round_)
        chosen = self._sampled(round_) if begun is None else list(begun)
        self.on_begin(Begun(round_, tuple(chosen)))
        return chosen

    def _begun(self, round_: int) -> tuple[int, ...] | None:
        """Returns who was to train in a round when the run was ended in it; else None."""
        return self.begun.clients if self.begun is not None and self.begun.round == round_ else None

    def _least(self) -> int:
        """Returns with how many devices a round is begun; all of them where the population is smaller."""
        least = self.settings.least_devices()
        return min(least, self.population or least)

    def _sampled(self, round_: int) -> list[int]:
        """Returns a sample of the devices that are not on probation."""
        last = last_rounds(self.reached.rounds, self.settings.probation_rounds)
        excluded = [client for client, until in last.items() if until >= round_]
        able = Without(self._presence.known(), excluded)
        if self.private is not None:
            return self.private.sampled(able, round_)
        return sampled(able, self.settings.clients, self.settings.seed, round_, "sample")

    def _present(self, round_: int, stage: str, clients: Sequence[int]) -> dict[int, int]:
        """Returns device number -> node id of those who are there, and notes the others as failures."""
        online = self._presence.nodes()
        for absent in sorted(client for client in set(clients) if client not in online):
            self._round.failures += 1
            self._round.note(f"round {round_}, {stage}, device {absent:06d}: it has not come back")
        return {client: online[client] for client in clients if client in online}

    def _task(self, round_: int, arrays: ArrayRecord, stage: str) -> RoundTask:
        values = {name: array.numpy() for name, array in arrays.items()}
        task = RoundTask(
            self._release_id, round_, self.settings.seed, stage, self.settings.local(self._clip()), values
        )
        task.check(self.manifest)
        return task

    def _tasks(self, round_: int, arrays: ArrayRecord, stage: str, clients: Sequence[int]) -> list[Message]:
        task, nodes = self._task(round_, arrays, stage), self._present(round_, stage, clients)
        clients = list(nodes)
        content = enveloped(arrays, task.wire().config)
        self._round.ask(stage, task, {nodes[client]: client for client in clients}, wire_bytes(content))
        return [Message(content, nodes[client], stage, group_id=str(round_)) for client in clients]

    def _usable(
        self, stage: str, round_: int, replies: Iterable[Message], read: Callable[[int, Wire], Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields device number and checked answer as they arrive; then notes every other task as a failure.

        Only the first answer of a device is looked at.
        """
        asked = self._round.asked[stage]
        reasons = dict.fromkeys(asked.values(), SILENT)
        heard: set[int] = set()
        for reply in replies:
            client = asked.get(reply.metadata.src_node_id)
            if client is None or client in heard:
                continue
            heard.add(client)
            if reply.has_error():
                reasons[client] = reply.error.reason or f"error {reply.error.code}"
                continue
            self._round.bytes_up += wire_bytes(reply.content)
            try:
                answer = read(client, opened(reply.content))
            except UmbelError as error:
                reasons[client] = "; ".join(error.problems) or error.headline
                if stage != EVALUATE:
                    self._round.refused.add(client)
                continue
            del reasons[client]
            yield client, answer
        for client in sorted(reasons):
            self._round.failures += 1
            self._round.note(f"round {round_}, {stage}, device {client:06d}: {first_line(reasons[client])}")

    def _note_probations(self, round_: int) -> None:
        for client in sorted(self._round.refused):
            before = sum(client in record.refused for record in self.reached.rounds)
            rounds = length(before, self.settings.probation_rounds)
            if rounds:
                self._round.note(
                    f"round {round_}: device {client:06d} is on probation, not asked before round "
                    f"{round_ + rounds + 1}"
                )

    def _finish(self, number: int, seconds: float, evaluated: MetricRecord | None) -> None:
        accuracy = None if evaluated is None else float(_scalar(evaluated["seen_accuracy"]))
        self._note_probations(number)
        tally, epsilon = self._round, None
        if self.private is not None:
            epsilon = self.private.spent(number)
            if not self.private.affords(number + 1):
                budget = self.private.settings.epsilon_budget
                tally.note(f"round {number} is the last: another would cost more than epsilon {budget:g}")
        record = tally.record(number, seconds, accuracy, epsilon)
        self.reached = RoundsResult(
            [*self.reached.rounds, record], self.reached.trainables, self.reached.velocity
        )
        if self.on_round is not None:
            self.on_round(self.reached)


def _keep(metrics: dict[int, MetricRecord], number: int, record: MetricRecord | None) -> None:
    if record is not None:
        metrics[number] = record


def _scalar(value: Any) -> Any:
    return value
