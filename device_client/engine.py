"""Runs a release's graphs with onnxruntime; the encoder's weights are mapped, not copied, into memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt

from umbel.device_client.weights import REPORT, load_weights, placed_names
from umbel.shared.checks import shown
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.files import sha256_bytes
from umbel.shared.onboarding import (
    GRAPH,
    INPUTS,
    PREFIX,
    QUERY,
    START,
    TEACH,
    TOTAL,
    UNKNOWN,
    WANTED,
    WEIGHTS,
)
from umbel.shared.profile import FloatArray
from umbel.shared.release import (
    BACKBONE_WEIGHTS,
    CONTRIBUTE_EMBEDDED,
    EMBEDDED,
    GRAPHS,
    INT8_GRAPHS,
    INT8_WEIGHTS,
    TOKENIZER,
    Manifest,
    Release,
)
from umbel.shared.text import IntArray, TextEncoder, TokenBatch

GRADIENT = "grad."
ONNXRUNTIME = "onnxruntime"
_INTEGERS = frozenset(
    {"input_ids", "attention_mask", "owner", "owners", "labels", "query_labels", "query_owner"}
)
_ONBOARDING = (GRAPH, TEACH)
_Value = TypeVar("_Value")
_ANY = -1  # a width that the manifest does not tell
_BEHIND = (*EMBEDDED, CONTRIBUTE_EMBEDDED)


class Opener(Protocol):
    """Opens graphs."""

    def __call__(
        self,
        release: Release,
        graph: str,
        weights: Mapping[str, FloatArray],
        placed: Collection[str],
        options: Any,
    ) -> Any:
        """Returns what runs a graph as an onnxruntime session does.

        Args:
            release: The release.
            graph: The graph's name.
            weights: Every shared tensor of the release, by name.
            placed: Those that onnxruntime finds itself.
            options: Of an onnxruntime session.

        Raises:
            ReleaseError: The graph cannot be opened.
        """


def opens_with(compute: str, opener: Opener) -> None:
    """Names what opens graphs, for engines of this process that are made for `compute`."""
    _openers[compute] = opener


@final
class Engine:
    """The graphs of one release, ready to run.

    Sessions are made when first used. The trainable shared tensors have the release's values unless `shared`
    says otherwise; in a round it carries the round's, and each graph takes those that it has.
    """

    def __init__(
        self, release: Release, *, threads: int = 1, alone: bool = False, compute: str = ONNXRUNTIME
    ):
        """Opens the tokenizer and the weights; texts are read and learned from in float32.

        Args:
            release: A checked release.
            threads: Threads of one graph run.
            alone: Whether nothing else wants these threads' cores, so that within a graph run they wait for
                each other without going to sleep: as on an owner's device, and unlike in a simulation.
            compute: What runs the graphs: onnxruntime, or in a simulation what `opens_with` has named.

        Raises:
            ConfigError: Nothing is named `compute`.
            ReleaseError: The tokenizer or the weights do not fit the manifest, though their hashes are right.
        """
        self.release = release
        self.threads = threads
        self.alone = alone
        if compute not in _openers:
            raise ConfigError("graphs cannot be run", [f"nothing here is named '{shown(compute)}'"])
        self.compute = compute
        self._open = _openers[compute]
        self.encoder = TextEncoder(release.blob_path(TOKENIZER).read_bytes(), release.manifest.max_tokens)
        self._weights = load_weights(release)
        self._placed = placed_names(release)
        self._sessions: dict[str, Any] = {}
        self._opening = threading.Lock()
        self._reads, self._learns, _ = GRAPHS

    @property
    def precision(self) -> str:
        """How texts are read and learned from: "float32" or "int8"."""
        return "int8" if self._reads == INT8_GRAPHS[GRAPHS[0]] else "float32"

    def quick(self) -> Engine:
        """Returns an engine over the same weights and sessions that reads and learns from texts in 8 bits.

        It is this one where the release has no such graphs. What contributes computes in float32 with both.
        """
        if not self.has_int8:
            return self
        twin = copy(self)
        twin._reads, twin._learns = (INT8_GRAPHS[graph] for graph in GRAPHS[:2])
        return twin

    @property
    def has_int8(self) -> bool:
        """Whether the release reads texts in 8 bits, too."""
        if self.release.manifest.int8 is None:
            return False
        blobs = [self.release.blob_path(name) for name in (BACKBONE_WEIGHTS, INT8_WEIGHTS)]
        real = [blob.resolve() for blob in blobs]
        # A graph finds both by their own names only, in one folder.
        named = [blob.name for blob in blobs] == [blob.name for blob in real]
        return named and real[0].parent == real[1].parent

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.release.manifest.labels

    def trainables(self) -> dict[str, FloatArray]:
        """Returns the release's values of the shared tensors that rounds may train."""
        return {name: self._weights[name] for name in self.release.manifest.trainables}

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Encodes texts as the release's backbone wants them."""
        return self.encoder.encode(texts)

    def predict(
        self,
        tokens: TokenBatch,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> FloatArray:
        """Returns logits (batch, labels).

        Args:
            tokens: The texts.
            owner: (batch,) whose text each is: an index into the profile's leading axis.
            profile: Private tensors (users, *shape).
            shared: Other values for trainable shared tensors; empty for the release's own.
        """
        return self._run(self._reads, ["logits"], _feed(tokens, owner, profile, shared))["logits"]

    def read(self, tokens: TokenBatch, shared: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Returns what texts are to a person about whom nothing is known; arguments as in `predict`.

        Returns:
            Logits (batch, labels) and embeddings (batch, d), the mean states of their tokens.
        """
        nobody = self.release.manifest.profile.zeros(1)
        feed = _feed(tokens, np.zeros(len(tokens), np.int64), nobody, shared)
        found = self._run(self._reads, ["logits", "text_embedding"], feed)
        return found["logits"], found["text_embedding"]

    @property
    def embedding_size(self) -> int:
        """Width of an embedding."""
        (width,) = (
            value.shape[1]
            for value in self.session(self._reads).get_outputs()
            if value.name == "text_embedding"
        )
        return int(width)

    @property
    def embeds(self) -> bool:
        """Whether the release predicts and learns from texts that were read once."""
        return all(f"{graph}.onnx" in self.release.manifest.blobs for graph in EMBEDDED)

    @property
    def reader(self) -> str:
        """What a text's embedding depends on, as 64 hex digits: the same for releases that share all of it.

        Where a release `embeds`, neither profiles nor what rounds train are among it.
        """
        manifest = self.release.manifest
        parts = [str(manifest.max_tokens).encode()]
        blobs = (f"{self._reads}.onnx", TOKENIZER, BACKBONE_WEIGHTS)
        parts += [manifest.blobs[name].sha256.encode() for name in blobs]
        for name in sorted(set(self._weights) - self._placed):
            if name.startswith("encoder."):
                parts += [name.encode(), sha256_bytes(self._weights[name].tobytes()).encode()]
        return sha256_bytes(b"\n".join(parts))

    def predict_embedded(
        self,
        embedding: FloatArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> FloatArray:
        """Returns what `predict` does, of texts of which `read` has given the embeddings (batch, d)."""
        feed = _embedded_feed(embedding, owner, profile, shared)
        return self._run(EMBEDDED[0], ["logits"], feed)["logits"]

    def learn_embedded(
        self,
        embedding: FloatArray,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns what `learn` does, of texts of which `read` has given the embeddings (batch, d)."""
        feed = _embedded_feed(embedding, owner, profile, shared)
        return self._gradients(EMBEDDED[1], profile, feed | _targets(labels))

    @property
    def onboards(self) -> bool:
        """Whether the release has onboarding."""
        return self.release.manifest.onboarding is not None

    def onboard(
        self,
        logits: FloatArray,
        embedding: FloatArray,
        labels: IntArray,
        owner: IntArray,
        users: int,
        shared: Mapping[str, FloatArray],
    ) -> tuple[dict[str, FloatArray], FloatArray]:
        """Writes users' first profiles.

        Args:
            logits: (texts, labels) as `read` gives them.
            embedding: (texts, d) as `read` gives them.
            labels: (texts,) label numbers; -1 where only the text is known.
            owner: (texts,) whose each text is; -1: nobody's.
            users: How many users there are, those without texts included.
            shared: As in `predict`.

        Returns:
            Private tensors (users, *shape) float32, and the weight of each prototype (users, prototypes).
        """
        outputs = {t.name: START + t.name for t in self.release.manifest.profile.tensors}
        feed = _support(logits, embedding, labels, owner, users) | _own(shared)
        found = self._run(GRAPH, [WEIGHTS, *outputs.values()], feed)
        return {name: found[output] for name, output in outputs.items()}, found[WEIGHTS]

    def teach(
        self,
        known: tuple[FloatArray, FloatArray, IntArray, IntArray],
        query: tuple[FloatArray, FloatArray, IntArray, IntArray],
        wanted: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> dict[str, FloatArray]:
        """Returns what texts teach the onboarding network: the gradient by each of its trainable tensors.

        It is that of sum_T <wanted_T, profile_T>, of the profile that `onboard` writes, and of the nll of the
        queries under the prototypes' answers.

        Args:
            known: Logits, embeddings, labels and owners as in `onboard`; one text at least.
            query: The same of the texts that users are asked, every label known.
            wanted: The gradient of their loss by each private tensor: (users, *shape).
            shared: As in `predict`.
        """
        users = len(next(iter(wanted.values())))
        feed = _support(*known, users) | _own(shared)
        feed |= {WANTED + name: values for name, values in wanted.items()}
        logits, embedding, labels, owner = query
        feed |= dict(zip(QUERY, (embedding, logits, labels, owner), strict=True))
        outputs = {name: GRADIENT + name for name in _own(self.release.manifest.trainables)}
        found = self._run(TEACH, list(outputs.values()), feed)
        return {name: found[output] for name, output in outputs.items()}

    def learn(
        self,
        tokens: TokenBatch,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns each example's nll (batch,) and the gradient of their sum by every private tensor.

        Gradients are (users, *shape); arguments as in `predict`, with labels (batch,).
        """
        return self._gradients(
            self._learns, profile, _feed(tokens, owner, profile, shared) | _targets(labels)
        )

    def contribute(
        self,
        tokens: TokenBatch,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns each example's nll (batch,) and the gradient of their sum by every trainable tensor."""
        feed = _feed(tokens, owner, profile, shared) | _targets(labels)
        return self._gradients("contribute", _models(self.release.manifest.trainables), feed)

    @property
    def contributes_embedded(self) -> bool:
        """Whether what rounds want of texts can be computed from what they were read as."""
        return f"{CONTRIBUTE_EMBEDDED}.onnx" in self.release.manifest.blobs

    def contribute_embedded(
        self,
        embedding: FloatArray,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns what `contribute` does, of texts of which `read` has given the embeddings (batch, d)."""
        feed = _embedded_feed(embedding, owner, profile, shared) | _targets(labels)
        return self._gradients(CONTRIBUTE_EMBEDDED, _models(self.release.manifest.trainables), feed)

    def _gradients(
        self, graph: str, names: Iterable[str], feed: dict[str, npt.NDArray[Any]]
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        outputs = {name: GRADIENT + name for name in names}
        found = self._run(graph, ["nll", *outputs.values()], feed)
        return found["nll"], {name: found[output] for name, output in outputs.items()}

    def _run(
        self, graph: str, outputs: list[str], feed: dict[str, npt.NDArray[Any]]
    ) -> dict[str, FloatArray]:
        session = self.session(graph)
        try:
            found = session.run(outputs, feed)
        except Exception as error:
            # onnxruntime's own words can hold a token of a private text, so they are not passed on.
            raise ReleaseError(
                f"graph '{graph}' of the release cannot be run", [type(error).__name__], REPORT
            ) from None
        return dict(zip(outputs, found, strict=True))

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # It warns about trainables, which are inputs with defaults on purpose; and its errors, which are
        # raised as well, can quote a token of a private text.
        options.log_severity_level = 4
        # Spinning threads would take the cores of a simulation's other processes. Alone it makes two threads
        # a fifth faster; they sleep as soon as a run is over.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.alone else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def session(self, graph: str) -> Any:
        """Returns what runs a graph: an onnxruntime session, or what runs like one."""
        session = self._sessions.get(graph)
        if session is not None:
            return session
        with self._opening:
            return self._opened(graph)

    def _opened(self, graph: str) -> Any:
        if graph not in self._sessions:
            session = self._open(self.release, graph, self._weights, self._placed, self._options())
            problems = graph_problems(graph, session, self.release.manifest)
            if problems:
                raise ReleaseError(
                    f"graph '{graph}' of the release is not what its manifest says", problems, REPORT
                )
            self._sessions[graph] = session
        return self._sessions[graph]


def _check_path(path: Path) -> None:
    """Refuses a path that onnxruntime could not be told.

    Raises:
        ReleaseError: It is not UTF-8, or the system's locale is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ReleaseError(
            "the release lies in a folder whose name is not UTF-8",
            hint="Move it to another folder, or set a UTF-8 locale, such as LC_ALL=C.UTF-8.",
        ) from None


def _open_session(
    release: Release, graph: str, weights: Mapping[str, FloatArray], placed: Collection[str], options: Any
) -> Any:
    import onnxruntime

    blob = release.blob_path(BACKBONE_WEIGHTS).resolve()
    _check_path(blob)
    # The graphs name the encoder's blob, which onnxruntime maps from here; a weight that it copies costs its
    # size in each session. Nothing is looked for in the folder that the process happens to run in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(blob.parent))
    # A graph refuses weights that it does not have; the onboarding network's are in no other graph.
    outside = graph in (*_ONBOARDING, *_BEHIND)  # the encoder is not in it
    own = {
        name: array
        for name, array in weights.items()
        if name not in placed
        and name.startswith(PREFIX) == (graph in _ONBOARDING)
        and not (outside and name.startswith("encoder."))
    }
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in own.values()]
    options.add_external_initializers(list(own), values)
    data = release.blob_path(f"{graph}.onnx").read_bytes()
    if not outside and placed and blob.name.encode() not in data:
        raise ReleaseError(
            f"graph '{graph}' of the release does not name the encoder's blob",
            hint="An earlier version of umbel made it: its publisher must publish it again.",
        )
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise ReleaseError(
            f"graph '{graph}' of the release cannot be opened", [f"{type(error).__name__}: {first}"], REPORT
        ) from error


_openers: dict[str, Opener] = {ONNXRUNTIME: _open_session}


def graph_problems(graph: str, session: Any, manifest: Manifest) -> list[str]:
    """Returns where a graph's inputs, overridable weights and outputs are not what the manifest promises."""
    private = {tensor.name: tensor.shape for tensor in manifest.profile.tensors}
    free: Mapping[str, tuple[int | None, ...]] = {name: (None, *shape) for name, shape in private.items()}
    if graph in _ONBOARDING:
        return _onboarding_problems(graph, session, manifest, free)
    text: dict[str, tuple[int | None, ...]] = {"input_ids": (None, None), "attention_mask": (None, None)}
    results: dict[str, tuple[int | None, ...]] = {"logits": (None, len(manifest.labels))}
    if graph in _BEHIND:
        text = {"text_embedding": (None, _ANY)}
    else:
        results["text_embedding"] = (None, _ANY)
    trainables = _models(manifest.trainables)
    targets: dict[str, tuple[int | None, ...]] = {}
    if not graph.startswith("predict"):
        targets = {"labels": (None,), "weights": (None,)}
        worked_on = free if graph.startswith("learn") else trainables
        results = {"loss": (), "nll": (None,)} | {GRADIENT + n: shape for n, shape in worked_on.items()}
    return [
        *_value_problems("input", session.get_inputs(), {**text, "owner": (None,), **targets, **free}),
        *_value_problems("trainable", session.get_overridable_initializers(), trainables),
        *_value_problems("output", session.get_outputs(), results),
    ]


def _onboarding_problems(
    graph: str, session: Any, manifest: Manifest, free: Mapping[str, tuple[int | None, ...]]
) -> list[str]:
    prototypes = len(manifest.onboarding.prototypes) if manifest.onboarding is not None else 0
    inputs: dict[str, tuple[int | None, ...]] = dict.fromkeys(INPUTS, (None,))
    inputs |= {"text_embedding": (None, _ANY), "logits": (None, len(manifest.labels))}
    results: dict[str, tuple[int | None, ...]] = {START + name: shape for name, shape in free.items()}
    results[WEIGHTS] = (None, prototypes)
    trainables = _own(manifest.trainables)
    if graph == TEACH:
        inputs |= dict(
            zip(QUERY, ((None, _ANY), (None, len(manifest.labels)), (None,), (None,)), strict=True)
        )
        inputs |= {WANTED + name: shape for name, shape in free.items()}
        results = {TOTAL: ()} | {GRADIENT + name: shape for name, shape in trainables.items()}
    return [
        *_value_problems("input", session.get_inputs(), inputs),
        *_value_problems("trainable", session.get_overridable_initializers(), trainables),
        *_value_problems("output", session.get_outputs(), results),
    ]


def _value_problems(
    kind: str, found: Sequence[Any], expected: Mapping[str, tuple[int | None, ...]]
) -> list[str]:
    values = {value.name: value for value in found}
    problems = [f"unknown {kind}: {name}" for name in sorted(set(values) - set(expected))]
    problems += [f"missing {kind}: {name}" for name in sorted(set(expected) - set(values))]
    for name in sorted(set(expected) & set(values)):
        wanted = "tensor(int64)" if name in _INTEGERS else "tensor(float)"
        shape, size = values[name].shape, expected[name]
        fits = len(shape) == len(size) and all(map(_size_fits, shape, size))
        if values[name].type != wanted or not fits:
            problems.append(f"{kind} {name} is {values[name].type} {shape}, expected {wanted} {list(size)}")
    return problems


def _size_fits(found: object, expected: int | None) -> bool:
    """An axis that varies must be free in the graph; a fixed one must be right where the graph names it."""
    if expected is None or expected == _ANY:
        return expected == _ANY or not isinstance(found, int)
    return found == expected or not isinstance(found, int)


def _feed(
    tokens: TokenBatch, owner: IntArray, profile: Mapping[str, FloatArray], shared: Mapping[str, FloatArray]
) -> dict[str, npt.NDArray[Any]]:
    own = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "owner": owner}
    return {**own, **profile, **_models(shared)}


def _embedded_feed(
    embedding: FloatArray,
    owner: IntArray,
    profile: Mapping[str, FloatArray],
    shared: Mapping[str, FloatArray],
) -> dict[str, npt.NDArray[Any]]:
    return {"text_embedding": embedding, "owner": owner, **profile, **_models(shared)}


def _models(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Returns those of the shared tensors that the model's graphs have."""
    return {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}


def _own(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Returns those of the shared tensors that are the onboarding network's."""
    return {name: value for name, value in tensors.items() if name.startswith(PREFIX)}


def _support(
    logits: FloatArray, embedding: FloatArray, labels: IntArray, owner: IntArray, users: int
) -> dict[str, npt.NDArray[Any]]:
    """Returns the inputs of the onboarding graph; where there are no texts, there is one that is nobody's."""
    if not len(labels):
        logits, embedding = (np.zeros((1, values.shape[1]), np.float32) for values in (logits, embedding))
        labels = owner = np.full(1, UNKNOWN, np.int64)
    found = (embedding, logits, labels, owner, np.arange(users))
    return dict(zip(INPUTS, found, strict=True))


def _targets(labels: IntArray) -> dict[str, npt.NDArray[Any]]:
    return {"labels": labels, "weights": np.ones(len(labels), np.float32)}
