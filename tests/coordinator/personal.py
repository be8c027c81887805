"""Small personal models, batches and profiles for the tests of the coordinator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from safetensors.numpy import load
from tests.numeric import assert_close_relative
from tests.oracles.personal import OracleConfig, OracleResult, oracle_gradients, oracles_of
from torch import Tensor

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.graphs.gelu import with_shared_erf
from umbel.coordinator.graphs.joint import parameter_arrays
from umbel.coordinator.graphs.split import split_graphs, weights_file
from umbel.coordinator.methods.base import MethodConfig
from umbel.coordinator.methods.plora import PLoRA, PLoRAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training.start import site_means
from umbel.shared.profile import ProfileSpec
from umbel.shared.release import BACKBONE_WEIGHTS, SHARED_WEIGHTS
from umbel.shared.rng import generator
from umbel.shared.text import TokenBatch

GRADIENT = "grad."
LABELS = ("awful", "fair", "great")
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids with their owners, labels and weights; each row holds at least two tokens."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int64]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ids, mask and owner, as the model takes them."""
        return torch.tensor(self.input_ids), torch.tensor(self.attention_mask), torch.tensor(self.owner)

    def take(self, index: npt.NDArray[np.intp]) -> "Batch":
        """Returns some rows, of the same users."""
        ids, mask = self.input_ids[index], self.attention_mask[index]
        return Batch(ids, mask, self.labels[index], self.weights[index], self.owner[index])

    def row(self, index: int) -> "Batch":
        """Returns one row as a batch of one, for a single user."""
        own = slice(index, index + 1)
        ids, mask = self.input_ids[own], self.attention_mask[own]
        return Batch(ids, mask, self.labels[own], self.weights[own], np.zeros(1, np.int64))


def random_batch(
    seed: int, rows: int, seq: int, users: int, vocabulary: int, weights: npt.ArrayLike | None = None
) -> Batch:
    """Returns rows of 2 to `seq` tokens, the longest first, with weights in [0.5, 1.5) if none are given."""
    rng = generator(seed, 0, "", "test batch")
    lengths = rng.integers(2, seq + 1, rows)
    lengths[0] = seq
    mask = (np.arange(seq) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(4, vocabulary, (rows, seq)) * mask
    ids[:, 0] = 2
    importance = rng.uniform(0.5, 1.5, rows) if weights is None else np.asarray(weights)
    return Batch(
        ids,
        mask,
        rng.integers(0, len(LABELS), rows),
        importance.astype(np.float32),
        rng.integers(0, users, rows),
    )


def random_users(seed: int, users: int, size: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Returns private vectors (users, size)."""
    return generator(seed, 0, "", "test users").normal(0.0, scale, (users, size)).astype(np.float32)


def random_profile(seed: int, users: int, spec: ProfileSpec) -> dict[str, npt.NDArray[np.float32]]:
    """Returns private tensors by name: (users, *shape)."""
    return {
        tensor.name: generator(seed, number, "", "test users")
        .normal(size=(users, *tensor.shape))
        .astype(np.float32)
        for number, tensor in enumerate(spec.tensors)
    }


def trained_model(backbone: Backbone, config: PLoRAConfig, seed: int = 0) -> PersonalModel:
    """Returns a model with PLoRA in evaluation mode whose B and head are no longer as they were made."""
    return trained_with(backbone, {"plora": config}, seed)


def trained_with(backbone: Backbone, methods: Mapping[str, MethodConfig], seed: int = 0) -> PersonalModel:
    """Returns a model in evaluation mode whose head, and whatever began as zeros, is made of noise.

    Shared tensors that start from texts start from those of a random batch.
    """
    model = build_model(backbone, "classification", LABELS, methods, seed)
    texts = random_batch(seed, 64, 9, 1, backbone.shape.vocabulary)
    for method in model.method_list():
        if method.starts_shared():
            method.start_shared(site_means(model, TokenBatch(texts.input_ids, texts.attention_mask)))
    with torch.no_grad():
        for name in model.shared_names():
            parameter = model.get_parameter(name)
            if not parameter.any() or name.startswith("task."):
                rng = generator(seed, 0, "", f"test {name}")
                noise = rng.normal(0.0, 0.1, tuple(parameter.shape)).astype(np.float32)
                parameter.copy_(torch.tensor(noise))
    return model.eval()


TINY_PLORA = PLoRAConfig(rank=3, alpha=6, user_size=5)


@dataclass(frozen=True, slots=True)
class Joint:
    """A model, what of it is trainable in rounds, and its joint graph, which holds no weights."""

    backbone: Backbone
    model: PersonalModel
    trainables: tuple[str, ...]
    proto: Any

    def graphs(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Returns the public graphs and the weights files, as they are published."""
        graphs, files = self.cut()
        return with_shared_erf(graphs), files

    def cut(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Returns the public graphs as they are cut, of which those in 8 bits are made, and the files."""
        arrays = parameter_arrays(self.model)
        encoder = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
        shared = {name: array for name, array in arrays.items() if name not in encoder}
        files = [weights_file(BACKBONE_WEIGHTS, encoder), weights_file(SHARED_WEIGHTS, shared)]
        private = [tensor.name for tensor in self.model.profile_spec().tensors]
        shapes = {name: arrays[name].shape for name in self.trainables}
        return split_graphs(self.proto, private, shapes, files), {file.location: file.data for file in files}


class Sessions:
    """The three graphs of a release in onnxruntime, with the weights from the published files."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint
        graphs, files = joint.graphs()
        weights = {name: array for data in files.values() for name, array in load(data).items()}
        self.graphs = {name: self._open(data, weights) for name, data in graphs.items()}

    def _open(self, data: bytes, weights: Mapping[str, Any]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, batch: Batch, profile: Mapping[str, Any]) -> OracleResult:
        """Returns what the graphs compute; what two of them compute must be the same in both."""
        feed = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
            "weights": batch.weights,
            "owner": batch.owner,
            **profile,
        }
        found: dict[str, Any] = {}
        for session in self.graphs.values():
            wanted = {value.name for value in session.get_inputs()}
            names = [value.name for value in session.get_outputs()]
            values = session.run(names, {name: value for name, value in feed.items() if name in wanted})
            for name, value in zip(names, values, strict=True):
                assert_close_relative(name, value, found.setdefault(name, value), 1e-6)
        grads = {n.removeprefix(GRADIENT): v for n, v in found.items() if n.startswith(GRADIENT)}
        return OracleResult(found["logits"], found["nll"], float(found["loss"]), grads)


def assert_agree(
    found: OracleResult, wanted: OracleResult, gradients: set[str], tolerance: float = 1e-5
) -> None:
    assert found.grads.keys() >= gradients
    assert wanted.grads.keys() >= gradients
    assert_close_relative("logits", found.logits, wanted.logits)
    assert_close_relative("nll", found.nll, wanted.nll)
    assert_close_relative("loss", np.array(found.loss), np.array(wanted.loss))
    for name in sorted(gradients):
        assert_close_relative(name, found.grads[name], wanted.grads[name], tolerance)


def plora_of(model: PersonalModel) -> PLoRA:
    """Returns the model's PLoRA."""
    method = model.methods["plora"]
    assert isinstance(method, PLoRA)
    return method


def torch_gradients(
    model: PersonalModel, batch: Batch, profile: Mapping[str, Any], names: Sequence[str] | None = None
) -> OracleResult:
    """Returns logits, nll, loss and gradients of torch's float32, in the oracle's own form.

    `names` are the shared parameters that have gradients; all of them if None.
    """
    private = {name: torch.tensor(values, requires_grad=True) for name, values in profile.items()}
    shared = {name: model.get_parameter(name) for name in names or model.shared_names()}
    logits = model(*batch.tensors(), private)
    nll = model.task.nll(logits, torch.tensor(batch.labels))
    loss = (nll * torch.tensor(batch.weights)).sum()
    wanted = {**private, **shared}
    found = torch.autograd.grad(loss, list(wanted.values()))
    grads: Arrays = {name: grad.numpy() for name, grad in zip(wanted, found, strict=True)}
    return OracleResult(logits.detach().numpy(), nll.detach().numpy(), float(loss.detach()), grads)


def oracle_of(model: PersonalModel, batch: Batch, profile: Mapping[str, Any]) -> OracleResult:
    """Returns what the numpy oracle makes of the same model, batch and profile."""
    config: Any = model.encoder.config
    sizes = OracleConfig(config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps)
    options = {method.name: method.config.model_dump() for method in model.method_list()}
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    return oracle_gradients(
        weights,
        sizes,
        batch.input_ids,
        batch.attention_mask,
        batch.labels,
        batch.weights,
        oracles_of(weights, options, batch.owner, profile),
    )


def off_by_a_thousandth(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with one mistake: the first attention scores are multiplied by 1.001."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    nodes = wrong.graph.node
    wrong.graph.initializer.append(onnx.helper.make_tensor("off", onnx.TensorProto.FLOAT, [], [1.001]))
    at = next(number for number, node in enumerate(nodes) if node.op_type == "Softmax")
    nodes.insert(at, onnx.helper.make_node("Mul", [nodes[at].input[0], "off"], ["scores_off"]))
    nodes[at + 1].input[0] = "scores_off"
    return wrong
