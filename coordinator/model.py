"""The personal model: a pretrained encoder, a task head and any set of methods, functional in the profile."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from umbel.coordinator.backbone import Backbone, BackboneShape
from umbel.coordinator.methods import method_class
from umbel.coordinator.methods.base import AbstractMethod, MethodConfig
from umbel.coordinator.sites import Frame, FrameHolder, InjectedLinear, find_sites, inject, rows_of
from umbel.coordinator.tasks import task_class
from umbel.coordinator.tasks.base import AbstractTask, mean_state
from umbel.shared.bank import RandomTensor
from umbel.shared.errors import ConfigError
from umbel.shared.profile import ProfileSpec
from umbel.shared.rng import integer_seed

_LEAST_ROOM = 8  # tokens of a text: two of them mark its ends


@final
class PersonalModel(nn.Module):
    """logits = model(input_ids, attention_mask, owner, profile).

    `owner` (batch,) says whose text each row is, an index into the leading axis of every profile tensor: one
    batch serves one user or many, and a gradient comes back per user.
    """

    def __init__(self, encoder: nn.Module, methods: Mapping[str, AbstractMethod], task: AbstractTask):
        super().__init__()
        self.encoder = encoder
        self.methods = nn.ModuleDict(dict(methods))
        self.task = task
        self._holder = FrameHolder()
        inside = [method for method in self.method_list() if method.acts_inside()]
        if inside:  # without, the encoder stays as it came: others may wrap its layers
            inject(encoder, find_sites(encoder), inside, self._holder)

    def method_list(self) -> list[AbstractMethod]:
        """Returns the methods, in the order in which they act."""
        return [method for method in self.methods.values() if isinstance(method, AbstractMethod)]

    def acts_on_embeddings(self) -> bool:
        """Says whether personal answers depend on a text through its embedding alone."""
        return self.task.reads_means and not any(method.acts_inside() for method in self.method_list())

    def profile_spec(self) -> ProfileSpec:
        """Returns the private tensors of one user."""
        return ProfileSpec(tuple(spec for method in self.method_list() for spec in method.profile_tensors()))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        owner: Tensor,
        profile: Mapping[str, Tensor],
    ) -> Tensor:
        """Returns logits (batch, labels).

        Args:
            input_ids: (batch, seq) int64.
            attention_mask: (batch, seq) int64, 1 for tokens.
            owner: (batch,) int64 index of each row's user.
            profile: Private tensors by full name: (users, *shape).
        """
        frame = self.frame(attention_mask, owner, profile)
        frame.users = profile
        return self.run(input_ids, attention_mask, frame)

    def frame(self, attention_mask: Tensor, owner: Tensor, profile: Mapping[str, Tensor]) -> Frame:
        """Gives each example the private tensors of its owner: (users, *shape) -> (batch, *shape)."""
        rows = {name: rows_of(owner, values) for name, values in profile.items()}
        return Frame(rows, attention_mask, owner=owner)

    def nobody(self, attention_mask: Tensor) -> Frame:
        """Returns the frame of texts that are read without a profile."""
        device = attention_mask.device
        zeros = {t.name: torch.zeros(1, *t.shape, device=device) for t in self.profile_spec().tensors}
        frame = self.frame(
            attention_mask, torch.zeros(len(attention_mask), dtype=torch.int64, device=device), zeros
        )
        frame.users = zeros
        return frame

    def run(self, input_ids: Tensor, attention_mask: Tensor, frame: Frame) -> Tensor:
        """Returns logits (batch, labels) under a frame that the caller made."""
        return self.read(input_ids, attention_mask, frame)[0]

    def read(self, input_ids: Tensor, attention_mask: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Returns logits (batch, labels) and embeddings (batch, d): the mean of each text's token states."""
        states = self.states(input_ids, attention_mask, frame)
        logits = self.answers(states, attention_mask, frame)
        assert frame.embedding is not None
        return logits, frame.embedding

    def answers(self, states: Tensor, attention_mask: Tensor, frame: Frame) -> Tensor:
        """Returns logits (batch, labels) of texts whose last token states (batch, seq, d) are known."""
        frame.embedding = mean_state(states, attention_mask)
        logits: Tensor = self.task(states, attention_mask)
        for method in self.method_list():
            extra = method.at_logits(logits, frame)
            logits = logits if extra is None else logits + extra
        return logits

    def states(self, input_ids: Tensor, attention_mask: Tensor, frame: Frame) -> Tensor:
        """Returns the encoder's last token states (batch, seq, d), prompt rows left out."""
        self._holder.frame = frame
        frame.made.clear()
        try:
            if self.prompt_rows():
                return self._with_prompt(input_ids, attention_mask, frame)
            states: Tensor = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            return states
        finally:
            self._holder.frame = None

    def prompt_rows(self) -> int:
        """Returns how many rows the methods together put before the input."""
        return sum(method.prompt_rows() for method in self.method_list())

    def longest_text(self, shape: BackboneShape) -> int:
        """Returns how many tokens of a text the encoder has room for beside the methods' rows."""
        return shape.max_tokens - self.prompt_rows()

    def _with_prompt(self, input_ids: Tensor, attention_mask: Tensor, frame: Frame) -> Tensor:
        encoder: Any = self.encoder
        embedded = encoder.get_input_embeddings()(input_ids)  # (batch, seq, d)
        prompts = [method.prompt(embedded, frame) for method in self.method_list()]
        rows = torch.cat([prompt for prompt in prompts if prompt is not None], dim=1)
        ones = attention_mask.new_ones(rows.shape[0], rows.shape[1])
        states: Tensor = encoder(
            inputs_embeds=torch.cat([rows, embedded], dim=1),
            attention_mask=torch.cat([ones, attention_mask], dim=1),
        ).last_hidden_state
        return states[:, rows.shape[1] :]

    def shared_names(self) -> list[str]:
        """Returns the names of the parameters that umbel adds to the logits: methods and task head."""
        aside = self.training_only_names()
        return [
            name
            for name, _ in self.named_parameters()
            if not name.startswith("encoder.") and name not in aside
        ]

    def training_only_names(self) -> set[str]:
        """Returns the names of the parameters that only training terms read: graphs do not hold them."""
        parts = tuple(
            f"methods.{method.name}.{part}." for method in self.method_list() for part in method.training_only
        )
        return {name for name, _ in self.named_parameters() if name.startswith(parts)}

    def rebuilt_tensors(self) -> dict[str, RandomTensor]:
        """Returns the shared parameters that a seed stands for: name -> how it is made."""
        return {
            f"methods.{method.name}.{name}": source
            for method in self.method_list()
            for name, source in method.rebuilt_tensors().items()
        }

    def stored_tensors(self) -> dict[str, str]:
        """Returns the shared parameters that a release holds in fewer bytes: name -> float16 or int8."""
        return {
            f"methods.{method.name}.{name}": storage
            for method in self.method_list()
            for name, storage in method.stored_tensors().items()
        }

    @torch.no_grad()
    def folded(self, profile: Mapping[str, Tensor]) -> PersonalModel:
        """Returns a plain model for one user: every method folded into W, b and the task's own head.

        Args:
            profile: The user's private tensors by full name: (*shape).

        Raises:
            NotImplementedError: A method that is on cannot be folded, or the task cannot take a head.
        """
        twin = copy.deepcopy(self)
        for path, module in list(twin.encoder.named_modules()):
            if isinstance(module, InjectedLinear):
                parent = twin.encoder.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], self._folded_linear(module, profile))
        for method in self.method_list():
            change = method.fold_logits(profile)
            if change is not None:
                twin.task.add(*change)
        twin.methods = nn.ModuleDict()
        return twin

    def _folded_linear(self, module: InjectedLinear, profile: Mapping[str, Tensor]) -> nn.Linear:
        linear = copy.deepcopy(module.base)
        weight = linear.weight
        old_bias = linear._parameters["bias"]  # None in ModernBERT
        bias = weight.new_zeros(linear.out_features) if old_bias is None else old_bias.clone()
        for site in module.sites:
            rows = slice(site.offset, site.offset + site.d_out)
            for method in self.method_list():
                change = method.fold(site, profile)
                if change is not None:
                    weight[rows] += change[0]
                    bias[rows] += change[1]
        linear.bias = nn.Parameter(bias)
        return linear


def build_model(
    backbone: Backbone, task_kind: str, labels: Sequence[str], methods: Mapping[str, MethodConfig], seed: int
) -> PersonalModel:
    """Builds a model around a copy of the backbone; the same arguments give the same bits.

    Raises:
        ConfigError: A method or the task is not known, or the methods' rows leave texts no room.
        BackboneError: The backbone's layers cannot be found.
    """
    encoder = copy.deepcopy(backbone.module)
    makers: dict[str, Any] = {name: method_class(name) for name in methods}
    sites = find_sites(encoder) if any(maker.acts_inside() for maker in makers.values()) else ()
    built: dict[str, AbstractMethod] = {}
    for name, config in methods.items():
        built[name] = makers[name](config, backbone.shape, sites, _rng(seed, f"init {name}"))
        built[name].bind(len(labels))
    task_maker: Any = task_class(task_kind)
    task = task_maker(tuple(labels), backbone.shape.hidden_size, _rng(seed, "init task"))
    model = PersonalModel(encoder, built, task)
    room = model.longest_text(backbone.shape)
    if room < _LEAST_ROOM:
        raise ConfigError(
            "the methods' prompts leave texts no room",
            [
                f"prompts take {model.prompt_rows()} of the encoder's {backbone.shape.max_tokens} tokens",
                f"texts have {max(room, 0)}, expected {_LEAST_ROOM} at least",
            ],
            "Give prompts fewer rows.",
        )
    return model


def _rng(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(integer_seed(seed, 0, "", purpose))
