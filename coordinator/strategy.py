"""Partial model personalization as a Flower strategy that samples by the devices' own numbers and can go on.

Flower gives devices new random ids at every start and counts every run from round 1. Here devices are known
by the number that they tell when asked, everything is a function of (seed, round), and `start` goes on after
the last round that it is given.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from umbel.coordinator.federation.aggregation import rule_class
from umbel.coordinator.federation.aggregation.mean import Mean, Total
from umbel.coordinator.federation.journal import Begun, RoundRecord, RoundsResult
from umbel.coordinator.federation.privacy.budget import PrivateRounds
from umbel.coordinator.federation.probation import last_rounds, length
from umbel.coordinator.federation.secure.summing import Summing, Take, lead
from umbel.coordinator.federation.server_step import moved
from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.errors import MessageError, TrainingError, UmbelError
from umbel.shared.messages import (
    EVALUATE,
    SCHEMA,
    TRAIN,
    Contribution,
    EvaluationReply,
    RoundTask,
    Wire,
    read_contribution,
    read_evaluation,
    read_hello,
)
from umbel.shared.profile import FloatArray
from umbel.shared.release import Manifest
from umbel.shared.rng import generator
from umbel.shared.secure.messages import COLLECT, SETUP

Ask: TypeAlias = Callable[[Iterable[Message]], Iterator[Message]]
"""Sends messages, and yields their answers as they come."""

ARRAYS, CONFIG = "arrays", "config"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.5
_SETTLE_S = 1.0
_PULLED_BYTES = 8 * 2**20  # of answers at a time: Flower hands all over that it is asked for and has
_GREETING_S = 10.0
_SILENT = "no answer"

log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818  (an event, like KeyboardInterrupt)
    """The run was asked to stop; what was finished is kept."""


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
        on_greeted: Callable[[Ask, Mapping[int, int]], None] = lambda ask, clients: None,
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
            on_greeted: Called before that with who is there, node id -> device number, and what asks them.
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
        self._release_id = manifest.release_id
        self._change_bytes = 4 * sum(math.prod(shape) for shape in manifest.trainables.values())
        self._clients: dict[int, int] = {}  # Flower's node id -> the device's number
        self._online: set[int] = set()  # node ids
        self._mute: set[int] = set()  # node ids that have not answered yet
        self._round = _Tally()

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
        arrays = _array_record(self.reached.trainables) if initial_arrays is None else initial_arrays
        result = Result(arrays=arrays)
        first = len(self.reached.rounds) + 1
        if first <= rounds:
            self._meet(grid, wait_s)
        for number in range(first, rounds + 1):
            if not self._affords(number):
                break
            started, self._round = time.perf_counter(), _Tally()
            self._greet(grid, number, wait_s)
            there = {node: client for node, client in self._clients.items() if node in self._online}
            self.on_greeted(partial(self._ask, grid, timeout=min(wait_s, _GREETING_S)), there)
            train = self._trained_securely if self.settings.secure else self._trained
            changed, trained = train(number, arrays, train_config or ConfigRecord(), grid, wait_s)
            arrays = arrays if changed is None else changed
            tasks = self.configure_evaluate(number, arrays, evaluate_config or ConfigRecord(), grid)
            evaluated = self.aggregate_evaluate(number, self._ask(grid, tasks, wait_s))
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
        return _array_record(values), MetricRecord({"clients": self._round.clients, "examples": examples})

    def _trained(
        self, number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, wait_s: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Trains a round in which every change is seen by itself."""
        tasks = self.configure_train(number, arrays, config, grid)
        return self.aggregate_train(number, self._ask(grid, tasks, wait_s, self._change_bytes))

    def _trained_securely(
        self, number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, wait_s: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Trains a round of whose changes nothing is seen but their sum."""
        del config
        task, weighted = self._task(number, arrays, TRAIN), self.settings.weighting == "examples"
        nodes = self._present(number, SETUP, self._chosen(number))
        try:
            summing = Summing(
                self.manifest, task, sorted(nodes), self.settings.secure_settings(), weighted=weighted
            )
            found = lead(summing, partial(self._stage, grid, number, wait_s, nodes))
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
        return _array_record(values), MetricRecord({"clients": found.devices, **examples})

    def _not_opened(self, task: RoundTask, why: str) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what comes of a round whose sum is not opened: nothing, or under a budget its noise."""
        if self.private is None:
            self._round.note(f"round {task.round} changed nothing: {why}")
            return None, None
        self._round.note(f"round {task.round} moved by its noise alone: {why}")
        nothing = {name: np.zeros(shape) for name, shape in self.manifest.trainables.items()}
        change = self._noised(self.private, Total(nothing, 0), 0, task)
        return _array_record(self._move(task, change)), MetricRecord({"clients": 0})

    def _stage(
        self,
        grid: Grid,
        round_: int,
        wait_s: float,
        nodes: Mapping[int, int],
        stage: str,
        tasks: Mapping[int, Wire],
        take: Take,
    ) -> None:
        """Asks devices for what a stage of a secure sum wants, and takes the answers in as they come.

        Args:
            grid: The way to the devices.
            round_: The round.
            wait_s: Longest wait for the stage that trains.
            nodes: Device number -> node id, as they were when the sum was begun.
            stage: The stage.
            tasks: Device number -> what it is asked.
            take: Takes an answer in.
        """
        messages, shared = [], SharedArrays()
        for client, wire in tasks.items():
            content = RecordDict(
                {ARRAYS: shared.record(wire.arrays), CONFIG: ConfigRecord(dict(wire.config))}
            )
            self._round.bytes_down += wire_bytes(content)
            messages.append(Message(content, nodes[client], stage, group_id=str(round_)))
        self._round.asked[stage] = {nodes[client]: client for client in tasks}
        large = stage == COLLECT
        wait_s = wait_s if large else min(wait_s, self.settings.secure_stage_s)
        replies = self._ask(grid, messages, wait_s, self._change_bytes if large else 0)
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
        panel = sampled(
            self._known(), self.settings.evaluate_clients, self.settings.seed, 0, "evaluation panel"
        )
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
        if self.begun is not None and self.begun.round == round_:
            chosen = list(self.begun.clients)
        else:
            chosen = self._sampled(round_)
        self.on_begin(Begun(round_, tuple(chosen)))
        return chosen

    def _sampled(self, round_: int) -> list[int]:
        """Returns a sample of the devices that are not on probation."""
        last = last_rounds(self.reached.rounds, self.settings.probation_rounds)
        able = [client for client in self._known() if last.get(client, 0) < round_]
        if self.private is not None:
            return self.private.sampled(able, round_)
        return sampled(able, self.settings.clients_per_round, self.settings.seed, round_, "sample")

    def _present(self, round_: int, stage: str, clients: Sequence[int]) -> dict[int, int]:
        """Returns device number -> node id of those who are there, and notes the others as failures."""
        online = {client: node for node, client in self._clients.items() if node in self._online}
        for absent in sorted(set(clients) - set(online)):
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
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(task.wire().config))})
        self._round.ask(stage, task, {nodes[client]: client for client in clients}, wire_bytes(content))
        return [Message(content, nodes[client], stage, group_id=str(round_)) for client in clients]

    def _usable(
        self, stage: str, round_: int, replies: Iterable[Message], read: Callable[[int, Wire], Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields device number and checked answer as they arrive; then notes every other task as a failure.

        Only the first answer of a device is looked at.
        """
        asked = self._round.asked[stage]
        reasons = dict.fromkeys(asked.values(), _SILENT)
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
                answer = read(client, wire_of(reply.content))
            except UmbelError as error:
                reasons[client] = "; ".join(error.problems) or error.headline
                if stage != EVALUATE:
                    self._round.refused.add(client)
                continue
            del reasons[client]
            yield client, answer
        for client in sorted(reasons):
            self._round.failures += 1
            self._round.note(f"round {round_}, {stage}, device {client:06d}: {_first_line(reasons[client])}")

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
        record = RoundRecord(
            number,
            tally.clients,
            tally.failures,
            seconds,
            tally.bytes_up,
            tally.bytes_down,
            accuracy,
            tuple(tally.notes),
            tuple(sorted(tally.refused)),
            epsilon,
            tally.clip,
            tally.within,
        )
        self.reached = RoundsResult(
            [*self.reached.rounds, record], self.reached.trainables, self.reached.velocity
        )
        if self.on_round is not None:
            self.on_round(self.reached)

    def _known(self) -> list[int]:
        return sorted(number for node, number in self._clients.items() if node in self._online)

    def _meet(self, grid: Grid, timeout: float) -> None:
        """Waits for the devices and asks each for its number.

        Raises:
            TrainingError: Too few devices came, or two have the same number.
        """
        nodes = self._gathered(grid, timeout)
        silent = self._introduce(grid, nodes, timeout)
        self._online = set(nodes)
        problems = [f"{count} devices: {reason}" for reason, count in silent.items() if count]
        if not self._clients or len(self._clients) < self.population:
            headline = f"{len(self._clients)} devices can take part, {self.population or 1} are needed"
            raise TrainingError(
                "the rounds cannot begin", [headline, *problems], "See the devices' own logs."
            )

    def _introduce(self, grid: Grid, nodes: Iterable[int], timeout: float) -> Counter[str]:
        """Asks nodes for their devices' numbers, and returns why some gave none, and how many."""
        content = RecordDict({ARRAYS: ArrayRecord(), CONFIG: ConfigRecord({"schema": SCHEMA})})
        messages = [Message(content, node, MessageType.QUERY, group_id="0") for node in nodes]
        silent: Counter[str] = Counter({_SILENT: len(messages)})
        answers: Iterable[Message] = self._ask(grid, messages, timeout) if messages else []
        for reply in sorted(answers, key=lambda reply: reply.metadata.src_node_id):
            silent[_SILENT] -= 1
            node = reply.metadata.src_node_id
            self._mute.discard(node)
            if reply.has_error():
                silent[_first_line(reply.error.reason or "error")] += 1
                continue
            try:
                number = read_hello(wire_of(reply.content)).client
            except MessageError as error:
                silent["; ".join(error.problems)] += 1
                continue
            others = {own for known, own in self._clients.items() if known != node}
            if number in others or not self.owns(node, number):
                silent[f"number {number} is given by more than one device"] += 1
            else:
                self._clients[node] = number
        return silent

    def _greet(self, grid: Grid, round_: int, timeout: float) -> None:
        """Gets to know who has come since; a round that was begun before waits for those who were to train.

        With fewer devices than a round needs none is begun: it waits for them, however long that takes. A
        device that has not said a word is not asked again while it stays: it would hold up every round.
        """
        least = min(self.settings.min_replies, self.population or self.settings.min_replies)
        deadline = time.monotonic() + timeout
        wanted = set(self.begun.clients) if self.begun and self.begun.round == round_ else set()
        while True:
            self._online = set(grid.get_node_ids())
            self._mute &= self._online
            new = self._online - set(self._clients) - self._mute
            self._mute |= new  # until they answer
            self._introduce(grid, sorted(new), min(timeout, _GREETING_S))
            known = set(self._known())
            if len(known) >= least and (wanted <= known or time.monotonic() > deadline):
                return
            self._pause()

    def _gathered(self, grid: Grid, timeout: float) -> list[int]:
        """Returns the nodes once there are enough, or once their number has stopped to grow."""
        deadline, grew, nodes = time.monotonic() + timeout, time.monotonic(), set(grid.get_node_ids())
        while time.monotonic() < deadline:
            if self.population and len(nodes) >= self.population:
                break
            settled = time.monotonic() - grew >= _SETTLE_S
            if not self.population and len(nodes) >= self.settings.min_replies and settled:
                break
            self._pause(0.1)
            before, nodes = len(nodes), set(grid.get_node_ids())
            grew = grew if len(nodes) == before else time.monotonic()
        return sorted(nodes)

    def _ask(
        self, grid: Grid, messages: Iterable[Message], timeout: float, answer_bytes: int = 0
    ) -> Iterator[Message]:
        """Sends messages and yields their answers as they come; unlike Flower's own wait, it can be stopped.

        Args:
            grid: The way to the devices.
            messages: What is sent.
            timeout: Longest wait, in seconds.
            answer_bytes: About what an answer has: so many are fetched at a time that memory stays small.
        """
        waiting = {key for key in grid.push_messages(messages) if key}
        several = max(1, _PULLED_BYTES // max(1, answer_bytes))
        deadline, pause_s = time.monotonic() + timeout, _FIRST_WAIT_S
        while waiting and time.monotonic() < deadline:
            for keys in _batches(waiting, several):
                for reply in grid.pull_messages(keys):
                    if reply.metadata.reply_to_message_id in waiting:
                        waiting.discard(reply.metadata.reply_to_message_id)
                        yield reply
            if waiting:
                self._pause(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_WAIT_S)

    def _pause(self, seconds: float = _LONGEST_WAIT_S) -> None:
        if self.stopped():
            raise Stopped
        time.sleep(seconds)


@final
class _Tally:
    """What is counted in one round."""

    def __init__(self) -> None:
        self.asked: dict[str, Mapping[int, int]] = {}  # stage -> node id -> device number
        self.clients = self.failures = self.bytes_up = self.bytes_down = 0
        self.notes: list[str] = []
        self.refused: set[int] = set()
        self.clip: float | None = None
        self.within: float | None = None
        self._tasks: dict[str, RoundTask] = {}

    def ask(self, stage: str, task: RoundTask, clients: Mapping[int, int], task_bytes: int) -> None:
        """Notes a task and whom it goes to: node id -> device number."""
        self._tasks[stage], self.asked[stage] = task, clients
        self.bytes_down += task_bytes * len(clients)

    def task(self, stage: str) -> RoundTask:
        """Returns the task of a stage."""
        return self._tasks[stage]

    def note(self, line: str) -> None:
        """Keeps a line for the record and logs it."""
        self.notes.append(line)
        log.warning("%s", line)


def sampled(clients: Sequence[int], count: int, seed: int, round_: int, purpose: str) -> list[int]:
    """Returns `count` of the devices, all of them if there are fewer; a function of the arguments only.

    Args:
        clients: Device numbers, sorted.
        count: How many to choose.
        seed: The run's seed.
        round_: The round; 0 where the choice is for all rounds.
        purpose: What for.

    Example:
        >>> sampled([10, 20, 30], 5, 0, 1, "sample")
        [10, 20, 30]
    """
    if count >= len(clients):
        return list(clients)
    index = generator(seed, round_, "", purpose).choice(len(clients), count, replace=False)
    return sorted(clients[i] for i in index.tolist())


def _batches(keys: Iterable[str], size: int) -> Iterator[set[str]]:
    """Yields the keys, `size` at a time; those that were there at the beginning."""
    remaining = list(keys)
    for start in range(0, len(remaining), size):
        yield set(remaining[start : start + size])


def wire_bytes(record: Any) -> int:
    """Returns the bytes in which Flower sends a record: those of its objects, each sent once."""
    sizes: dict[str, int] = {}
    waiting = [record]
    while waiting:
        item = waiting.pop()
        key = item.object_id  # a hash over all of it, made anew at every look
        if key not in sizes:
            sizes[key] = len(item.deflate())
            waiting += (item.children or {}).values()
    return sum(sizes.values())


@final
class SharedArrays:
    """Makes records of arrays; one that several messages have is made once, so that it is held once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[npt.NDArray[Any], Array]] = {}

    def record(self, arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
        """Returns the record of some arrays."""
        return ArrayRecord({name: self._array(array) for name, array in arrays.items()})

    def _array(self, array: npt.NDArray[Any]) -> Array:
        made = self._made.get(id(array))
        if made is None:  # the array is kept too: its id is its own only as long as it is there
            made = self._made[id(array)] = (array, Array(array))
        return made[1]


def _array_record(values: Mapping[str, FloatArray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def wire_of(content: RecordDict) -> Wire:
    """Returns a device's answer out of Flower's records.

    Raises:
        MessageError: It is none.
    """
    if set(content) != {ARRAYS, CONFIG}:
        raise MessageError(
            "an answer cannot be used", [f"it has {len(content)} records, expected arrays and config"]
        )
    arrays, config = content[ARRAYS], content[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise MessageError("an answer cannot be used", ["its records are of a wrong type"])
    return Wire.of(arrays, config)


def _keep(metrics: dict[int, MetricRecord], number: int, record: MetricRecord | None) -> None:
    if record is not None:
        metrics[number] = record


def _scalar(value: Any) -> Any:
    return value


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 200 else f"{line[:200]}..."
