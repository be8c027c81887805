"""The configuration of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from umbel.coordinator.config import BackboneConfig, CoordinatorConfig, OnboardingConfig, Strict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,99}$"
"""Of data sets and contestants: files are named by them, with dots between."""

_Name = Annotated[str, Field(pattern=NAME)]
_Rate = Annotated[float, Field(ge=0, le=100)]
_Prior = Annotated[float, Field(ge=0, le=1e6)]


@final
class DataSetConfig(Strict):
    """[data.NAME]: one set of people."""

    source: Literal["community", "movielens", "crehate", "clinc150", "paradigms"] = Field(
        description="The generated community, or a public format."
    )
    folder: str = Field(
        default="", pattern=r"^[A-Za-z0-9._+ -]*$", description="Name of its folder among the data sets."
    )
    user_prefix: str = Field(default="", description="Only people whose id begins so.")
    users: int | None = Field(default=None, ge=4, description="People of the generated community.")
    choosiness: float = Field(
        default=0.0,
        ge=0,
        le=20,
        description="How much they judge what they would like, rather than anything.",
    )
    rivals: tuple[str, ...] = Field(default=(), description="Rivals that take part; empty: all of them.")
    tasks: bool = Field(default=False, description="Profiles are tasks that training knows, not new people.")
    unseen_share: float = Field(default=0.3, gt=0, lt=1, description="Share of people that are new.")
    calibration_share: float = Field(
        default=0.1, gt=0, lt=0.9, description="Share of seen people on whom options are chosen."
    )
    calibration_users: int = Field(default=10, ge=1, description="Of them, at most.")
    more_calibration_users: int = Field(
        default=0, ge=0, description="Further ones, where they cost next to nothing."
    )
    calibration_query: int = Field(
        default=50, ge=1, description="Of a task: examples that options are chosen on."
    )
    training_users: int | None = Field(
        default=None,
        ge=2,
        description="Seen people for whom private tensors inside the encoder are trained; None: all.",
    )
    people: int = Field(default=20, ge=1, description="New people for whom contestants learn.")
    more_people: int = Field(default=0, ge=0, description="Further ones, where they cost next to nothing.")
    query: int = Field(default=30, ge=1, description="Examples to predict per person, at most.")
    k: tuple[int, ...] = Field(default=(4, 16, 32), min_length=1, description="Counts of own examples.")
    personal_layers: int = Field(
        default=3, ge=1, description="Last layers in which personal parts act; prompts act before the first."
    )
    max_tokens: int = Field(default=32, ge=4, le=512, description="Texts are cut to so many tokens.")
    generic_steps: int = Field(default=300, ge=1, description="Steps of the generic model, batches of 64.")
    generic_rate: float = Field(
        default=1e-4, ge=0, le=1, description="Its encoder's rate; 0 trains its head alone."
    )
    traits: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Traits of texts, as seen people's judgements tell them, that the generic model's "
        "encoder is also trained towards.",
    )
    steps: int = Field(default=150, ge=1, description="Steps in which a method's shared part is trained.")
    text_steps: int = Field(
        default=600,
        ge=1,
        description="The same for methods that read the texts' embeddings alone: their steps cost next to "
        "nothing, so all seen people's private tensors are trained.",
    )
    rival_steps: int = Field(
        default=80, ge=1, description="Steps in which rivals train what they share, if anything."
    )
    learning_steps: int = Field(
        default=10, ge=1, description="Full-batch steps of few-shot learning, everybody's."
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.k) != sorted(set(self.k)) or self.k[0] < 1:
            raise ValueError("k must be ascending, different and at least 1")
        if (self.source == "community") == bool(self.folder) or self.folder.strip(".") != self.folder:
            raise ValueError("every source but community needs folder, a name without dots at its ends")
        if self.choosiness and self.source != "community":
            raise ValueError("choosiness is the generated community's")
        if self.tasks and len(self.k) > 1:
            raise ValueError("where profiles are tasks, training learns them from all examples: give one k")
        return self


@final
class ColdStartConfig(Strict):
    """[contestants.NAME.cold_start]: what a new person's profile is made from, and how far it is trusted."""

    onboard: bool = Field(default=True, description="It starts as the onboarding network writes it.")
    learn: bool = Field(default=True, description="It is then learned from the person's examples.")
    texts: int = Field(default=0, ge=0, description="Further texts of the person, without labels, are known.")
    share: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.5, 1.0), min_length=1, description="Shares of the network's profile that are tried."
    )
    folds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Folds of the cross-validation that says how much is used; 0: all.",
    )
    by_k: bool = Field(
        default=False, description="Options are chosen for each k apart, as recipes with by_k have them."
    )
    trust: tuple[Annotated[float, Field(ge=-1e3, le=1e3)], ...] = Field(
        default=(2.0,), min_length=1, description="Nats that speak for all of it beforehand; those tried."
    )
    network: OnboardingConfig = Field(
        default_factory=lambda: OnboardingConfig(steps=80),  # type: ignore[call-arg]
        description="The onboarding network, and its training.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.onboard and not self.learn:
            raise ValueError("with neither onboard nor learn nothing is done: that is the generic model")
        if self.onboard and not self.network.steps:
            raise ValueError("to onboard, the network needs steps")
        if self.texts and not self.onboard:
            raise ValueError("texts without labels tell the onboarding network alone")
        return self


@final
class ContestantConfig(Strict):
    """[contestants.NAME]: methods that are on together, and how their shared part is trained."""

    title: str = Field(default="", description="Its name for people.")
    data: tuple[str, ...] = Field(default=(), description="Data sets on which it takes part; empty: on all.")
    methods: Mapping[str, Mapping[str, Any]] = Field(min_length=1, description="Method -> its options.")
    shared_rate: float = Field(default=1e-3, gt=0, le=10, description="Rate of the shared tensors.")
    private_rate: float = Field(
        default=2e-2, gt=0, le=10, description="Rate of seen people's private tensors."
    )
    encoder_layers: int = Field(
        default=0, ge=0, description="Last layers of the encoder that are trained with it; 0: it is frozen."
    )
    encoder_rate: float = Field(default=5e-5, gt=0, le=1, description="Their rate.")
    head: Literal["trained", "generic"] = Field(
        default="trained",
        description="generic: the task head stays the generic model's, and so do answers without a profile "
        "where methods do nothing without one.",
    )
    personalised_dropout: float = Field(
        default=0.35, ge=0, lt=1, description="Share of examples trained without a profile."
    )
    learning_rate: tuple[_Rate, ...] = Field(
        default=(0.1, 0.2), min_length=1, description="Few-shot rates that are tried."
    )
    prior_strength: tuple[_Prior, ...] = Field(
        default=(1.0, 2.0), min_length=1, description="Few-shot priors that are tried."
    )
    cold_start: ColdStartConfig | None = Field(
        default=None, description="How a new person's first profile comes about; None: learned from zeros."
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self._methods()
        if self.head == "generic" and self.encoder_layers:
            raise ValueError("head = 'generic' keeps a head that encoder_layers would take its encoder from")
        return self

    def resolved(self) -> dict[str, Any]:
        """Returns all that its figures depend on, with every default of its methods."""
        methods = {name: own.model_dump(mode="json") for name, own in self._methods().items()}
        unread: dict[str, Any] = dict.fromkeys(("title", "data", "methods"), True)
        # Nothing is trained in rounds here; and these were not there when older cells were hashed.
        unread["cold_start"] = True
        if self.cold_start is not None:
            unread["cold_start"] = {"network": {"rounds"}} | ({} if self.cold_start.by_k else {"by_k": True})
        unread |= {} if self.encoder_layers else {"encoder_layers": True, "encoder_rate": True}
        unread |= {"head": True} if self.head == "trained" else {}
        found = self.model_dump(mode="json", exclude=unread) | {"methods": methods}
        if self.cold_start is not None and self.cold_start.folds:
            found["cold_start"]["fold"] = "texts"  # cells in which folds went by place were hashed without it
        return found

    def _methods(self) -> Mapping[str, Any]:
        return CoordinatorConfig.model_validate({"methods": self.methods}).method_configs()


@final
class ComparisonConfig(Strict):
    """A whole comparison: every contestant on every data set under every seed."""

    study: Literal["methods", "onboarding"] = Field(
        default="methods", description="What its page asks: which claims, tables and figures it has."
    )
    seeds: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] = Field(default=(0, 1, 2), min_length=1)
    notes: tuple[str, ...] = Field(default=(), description="What readers of the results should know.")
    reasons: Mapping[str, str] = Field(
        default_factory=dict,
        description="Name of a claim: what was found, and tried, where it does not hold.",
    )
    backbone: BackboneConfig = BackboneConfig.model_construct()
    batch_size: int = Field(default=64, ge=1, description="Examples per training step.")
    rivals: tuple[str, ...] = Field(
        description="Names of simulations/comparison/rivals, all without profiles."
    )
    contestants: Mapping[_Name, ContestantConfig]
    data: Mapping[_Name, DataSetConfig] = Field(min_length=1)

    @field_validator("seeds", "rivals")
    @classmethod
    def _different(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected each one once")
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, section in self.data.items():
            strange = [rival for rival in section.rivals if rival not in self.rivals]
            if strange:
                raise ValueError(f"data.{name}.rivals: '{strange[0]}' is not among rivals")
        both = [name for name in self.contestants if name in self.rivals]
        if both:
            raise ValueError(f"contestants.{both[0]}: a rival has this name")
        for name, own in self.contestants.items():
            wrong = [data for data in own.data if data not in self.data]
            if wrong:
                raise ValueError(f"contestants.{name}.data: there is no data set '{wrong[0]}'")
            tasks = [data for data in own.data or self.data if self.data[data].tasks]
            if own.cold_start is not None and tasks:
                raise ValueError(
                    f"contestants.{name}.cold_start: training knows the profiles of data set '{tasks[0]}'"
                )
        return self

    def on(self, data: str) -> tuple[str, ...]:
        """Returns who takes part on a data set: rivals, then umbel's."""
        own = (name for name, found in self.contestants.items() if not found.data or data in found.data)
        wanted = self.data[data].rivals or self.rivals
        return (*(rival for rival in self.rivals if rival in wanted), *own)
