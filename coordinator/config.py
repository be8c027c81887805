"""The configuration of coordinator training, read from TOML and checked at once as a whole."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from umbel.coordinator.backbone import MINILM
from umbel.coordinator.methods import REGISTRY, method_class
from umbel.coordinator.methods.base import MethodConfig
from umbel.coordinator.tasks import REGISTRY as TASKS
from umbel.shared.checks import has_controls, shown
from umbel.shared.errors import ConfigError
from umbel.shared.examples import MAX_NAME_CHARACTERS
from umbel.shared.onboarding import PREFIX as ONBOARDING

_LONGEST = 200  # characters of what a parser says
Section = TypeVar("Section", bound=BaseModel)


class Strict(BaseModel):
    """A section: unknown keys are errors, numbers are finite, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@final
class BackboneConfig(Strict):
    """[backbone]: the pretrained encoder and how much of it is trained."""

    name: str = Field(MINILM, description="Packaged model, folder, or hub name.")
    sha256: str | None = Field(None, description="Pin of model.safetensors; the packaged model has its own.")
    max_tokens: int = Field(32, ge=4, le=8192, description="Texts are cut to this many tokens.")
    train: str = Field(
        "none", description="What of the encoder is trained: none, top:N (its last N layers), all."
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout in the encoder while training; by default as it was pretrained.",
    )

    @field_validator("train")
    @classmethod
    def _train(cls, value: str) -> str:
        count = value.removeprefix("top:")
        top = count != value and count.isascii() and count.isdigit() and int(count) > 0
        if value not in ("none", "all") and not top:
            raise ValueError("expected 'none', 'all' or 'top:N' with N of at least 1")
        return value


@final
class TaskConfig(Strict):
    """[task]: what is predicted."""

    kind: str = Field("classification", description="Kind of task.")
    labels: tuple[str, ...] | None = Field(
        None, description="Label names in order; None takes those in the examples."
    )

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value not in TASKS:
            raise ValueError(f"unknown task, expected one of {', '.join(sorted(TASKS))}")
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(set(value)) < max(2, len(value)) or "" in value):
            raise ValueError("expected two or more different names")
        if any(len(label) > MAX_NAME_CHARACTERS or has_controls(label) for label in value or ()):
            raise ValueError(f"expected names of at most {MAX_NAME_CHARACTERS} printable characters")
        return value


@final
class TrainingConfig(Strict):
    """[training]: how the coordinator trains what everyone shares."""

    max_steps: int = Field(600, ge=1, description="Optimizer steps at most.")
    batch_size: int = Field(64, ge=1, description="Examples per step, of many users mixed.")
    shared_rate: float = Field(1e-3, gt=0, le=10, description="Learning rate of the methods' shared tensors.")
    head_rate: float = Field(3e-3, gt=0, le=10, description="Learning rate of the task head.")
    backbone_rate: float = Field(
        5e-5, gt=0, le=10, description="Learning rate of the trained part of the encoder."
    )
    private_rate: float = Field(
        3e-2, gt=0, le=10, description="Learning rate of the seen users' private tensors."
    )
    private_prior: float = Field(0.01, ge=0, description="Weight of |p_u|^2 / 2, per example, in the loss.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of everything else.")
    warmup_steps: int = Field(50, ge=0, description="Steps over which rates rise from 0.")
    personalised_dropout: float = Field(
        0.2, ge=0, lt=1, description="Share of examples trained without a profile."
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Gradients of everything shared are clipped to this norm."
    )
    adapt_steps: int = Field(
        0,
        ge=0,
        description="Steps in which the encoder learns, as far as it is trained, before methods are trained "
        "on top of it; 0 trains both together.",
    )
    adapt_rate: float = Field(2e-4, gt=0, le=10, description="Learning rate of these steps.")
    head: Literal["trained", "adapted"] = Field(
        "trained",
        description="adapted: the task head stays as adapt_steps made it; then methods alone are trained.",
    )
    traits: int = Field(
        4,
        ge=0,
        le=64,
        description="Traits of a text, as who judges it how tells them; trained towards where they predict "
        "held-out judgements; 0: none.",
    )
    examples_per_user: int = Field(200, ge=1, description="Examples of one user in an epoch at most.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of a seen user's examples held out.")
    validation_examples: int = Field(2000, ge=1, description="Held-out examples looked at, at most.")
    evaluate_every: int = Field(100, ge=1, description="Steps between looks at held-out examples.")
    patience: int = Field(4, ge=1, description="Looks without a better loss before training stops.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    calibration_share: float = Field(
        0.1, ge=0, lt=0.9, description="Share of seen users kept for choosing the recipe."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where a GPU or the processor (AMX, AVX512-BF16) has units."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    compile: Literal["auto"] | bool = Field(
        "auto", description="Whether a step is compiled by torch.compile; auto: on a GPU."
    )


@final
class RecipeConfig(Strict):
    """[recipe]: what is tried, on calibration users, to choose how devices learn; every combination."""

    steps: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] = Field(
        (16,), description="Few-shot steps of a device."
    )
    learning_rate: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        (0.3,), description="Their first rate; it falls to 0."
    )
    prior_strength: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        (0.5, 1.0, 2.0), description="How strongly a profile is pulled to where learning starts."
    )
    second_moment: tuple[Literal["tensor", "element", "none"], ...] = Field(
        ("tensor",),
        description="What AdamW divides by: the gradient's size per tensor, per number, or nothing.",
    )
    start: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.5, 1.0),
        description="Shares of the onboarded profile to start from, where there is onboarding.",
    )
    bias_prior: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] = Field(
        (0.1, 0.3, 1.0, 3.0, 10.0),
        description="The pull to zero of the private bias that personal accuracy is compared with.",
    )
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (4, 16), description="Support sizes over which the loss is averaged."
    )
    by_k: bool = Field(
        False,
        description="Whether each k has the rate, prior and start that are best for it, or all of them one.",
    )
    users: int = Field(24, ge=1, description="Calibration users at most.")
    folds: int = Field(
        4, ge=0, le=100, description="Folds in which a device cross-validates a profile; 0 uses all of it."
    )
    trust: float = Field(
        2.0,
        ge=-1000,
        le=1000,
        description="Nats that speak for all of a profile, beside cross-validation.",
    )

    @field_validator("steps", "learning_rate", "prior_strength", "second_moment", "start", "bias_prior", "k")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("expected at least one value to try")
        return value


@final
class OnboardingConfig(Strict):
    """[onboarding]: the network that writes a new user's first profile from their texts and examples."""

    steps: int = Field(
        0, ge=0, description="Episodes in which seen users play new ones; 0 makes no such network."
    )
    warm_steps: int = Field(
        600, ge=0, description="Steps before them on embeddings alone, towards what seen users have learned."
    )
    users: int = Field(8, ge=1, description="Users in an episode.")
    query: int = Field(16, ge=1, description="Examples of each on which their profile is judged.")
    most_labelled: int = Field(64, ge=1, description="Examples that a user gives, at most.")
    most_texts: int = Field(
        32,
        ge=0,
        description="Further texts that they give without a label, at most; who gives no example gives one.",
    )
    learning_steps: int = Field(
        2, ge=0, description="Few-shot steps after which the profile is judged again; 0: it is not."
    )
    learning_share: float = Field(0.5, ge=0, le=1, description="Share of episodes in which that is done.")
    learning_rate: float = Field(0.2, ge=0, le=100, description="First rate of these few-shot steps.")
    shown: int = Field(
        3, ge=0, le=20, description="Training texts that a release shows for each prototype; 0: none."
    )
    prototypes: int = Field(32, ge=1, le=4096, description="Prototypes in the bank [K].")
    code_size: int = Field(
        64, ge=4, le=4096, description="Size of retrieved codes, prototypes and what heads read."
    )
    hidden: int = Field(128, ge=1, le=4096, description="Hidden width of the retriever and the hypernetwork.")
    warm_rate: float = Field(3e-3, gt=0, le=1, description="Learning rate before the episodes.")
    rate: float = Field(1e-3, gt=0, le=1, description="Learning rate in episodes.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay.")
    rounds: bool = Field(False, description="Whether devices train the network in rounds, too.")

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.rounds and not self.steps:
            raise ValueError("rounds train a network that steps = 0 does not make")
        return self


def _round_tensors(validated: dict[str, Any]) -> tuple[str, ...]:
    """Returns the patterns of the task head, of what each method lets devices train, and of onboarding.

    A head that stays as it was adapted is left out.
    """
    named = [
        f"methods.{name}.{pattern}"
        for name in validated["methods"]
        for pattern in method_class(name).round_tensors
    ]
    training, onboarding = validated.get("training"), validated.get("onboarding")
    head = () if training and training.head == "adapted" else ("task.*",)
    return (*head, *named, *((f"{ONBOARDING}*",) if onboarding and onboarding.rounds else ()))


@final
class CoordinatorConfig(Strict):
    """Everything that `umbel coordinator train` needs to know besides the examples."""

    seed: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Seed of all randomness.")
    backbone: BackboneConfig = BackboneConfig.model_construct()
    task: TaskConfig = TaskConfig.model_construct()
    methods: Mapping[str, MethodConfig] = Field(
        default_factory=lambda: {"plora": {}},
        validate_default=True,
        description="Method name -> its options, in the order in which they act.",
    )
    training: TrainingConfig = TrainingConfig.model_construct()
    recipe: RecipeConfig = RecipeConfig.model_construct()
    onboarding: OnboardingConfig = OnboardingConfig.model_construct()
    trainables: tuple[str, ...] = Field(
        default_factory=_round_tensors,
        description="Shared tensors (patterns) that devices may train in rounds; by default the task head, "
        "unless training.head is adapted, what each method names and, with onboarding.rounds, the onboarding "
        "network (onboarding.*).",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = any(pattern.startswith(ONBOARDING) for pattern in self.trainables)
        if named != self.onboarding.rounds:
            which = "names onboarding tensors" if named else "names no onboarding tensors"
            raise ValueError(
                f"trainables {which}, but onboarding.rounds is {str(self.onboarding.rounds).lower()}"
            )
        if self.training.adapt_steps and self.backbone.train == "none":
            raise ValueError(
                "training.adapt_steps trains an encoder that backbone.train = 'none' leaves as it is"
            )
        return self

    @field_validator("methods", mode="plain")
    @classmethod
    def _methods(cls, value: Any) -> Mapping[str, MethodConfig]:
        """Reads each method's options by its own class; what it finds is told under methods.NAME.OPTION."""
        if not isinstance(value, Mapping) or not value:
            raise ValueError("expected at least one section [methods.NAME]")
        wrong: list[InitErrorDetails] = []
        built: dict[str, MethodConfig] = {}
        for name, options in value.items():
            if name not in REGISTRY:
                known = f"no such method, expected some of {', '.join(sorted(REGISTRY))}"
                wrong.append(
                    _detail(PydanticCustomError("method", "{known}", {"known": known}), (name,), name)
                )
                continue
            try:
                built[name] = method_class(name).Config.model_validate(options)
            except ValidationError as error:
                wrong += [_detail_of(detail, name) for detail in error.errors()]
        if wrong:
            raise ValidationError.from_exception_data("methods", wrong)
        return MappingProxyType(built)

    @field_serializer("methods")
    def _methods_json(self, value: Mapping[str, MethodConfig]) -> dict[str, Any]:
        return {name: options.model_dump(mode="json") for name, options in value.items()}

    def method_configs(self) -> dict[str, MethodConfig]:
        """Returns each method's options, defaults filled in."""
        return dict(self.methods)


def _detail(kind: PydanticCustomError, place: tuple[str | int, ...], found: Any) -> InitErrorDetails:
    return InitErrorDetails(type=kind, loc=place, input=found)


def _detail_of(detail: Any, method: str) -> InitErrorDetails:
    """Repeats a problem of a method's options under the method's name, whatever kind it is of."""
    message = "unknown key" if detail["type"] == "extra_forbidden" else str(detail["msg"])
    kind = PydanticCustomError("option", "{message}", {"message": message})
    return _detail(kind, (method, *detail["loc"]), detail["input"])


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: It is missing or not TOML; the line is named.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}", [error.strerror or type(error).__name__]) from error
    except (ValueError, RecursionError) as error:  # not TOML, not text, or numbers and nests without end
        raise ConfigError(f"{path} is not TOML", [str(error)[:_LONGEST]]) from error


def validated(kind: type[Section], row: Mapping[str, Any], place: str) -> Section:
    """Builds a section, or lists everything that is wrong with it.

    Raises:
        ConfigError: Keys are unknown or values out of range.
    """
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        # A default that rests on a wrong value is no mistake of its own.
        wrong = [detail for detail in error.errors() if detail["type"] != "default_factory_not_called"]
        problems = [_problem(detail) for detail in wrong]
        raise ConfigError(
            f"{place} cannot be used", problems, "Mend the lines above and run again."
        ) from error


def _problem(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "(whole)"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    return f"{where}: {message} (found {shown(repr(detail['input']))})"


def read_config(path: Path) -> CoordinatorConfig:
    """Reads the configuration of `umbel coordinator train`.

    Raises:
        ConfigError: The file is missing, is not TOML, or has unknown keys or values out of range; all are
            listed.
    """
    return validated(CoordinatorConfig, read_toml(path), str(path))
