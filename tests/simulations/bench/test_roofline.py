"""The formulas of a person's matrix products, against a count of what torch runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from umbel.device_client.weights import load_weights
from umbel.shared.text import TokenBatch
from umbel.simulations.bench.ceilings import measured_ceilings
from umbel.simulations.bench.encoders import backbone_name
from umbel.simulations.bench.plain_loop import TorchEngine
from umbel.simulations.bench.roofline import (
    Product,
    Sizes,
    Work,
    private_step,
    private_step_behind,
    reading,
    shared_step,
    shared_step_behind,
    sizes_of,
)
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.simulation_bench import QUICK, Rounds

TEXTS, TOKENS, USERS = 3, 9, 2


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's FlopCounterMode does, by its formulas; that one itself breaks `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=found)
        return found


def counted(work: Callable[[], object]) -> int:
    counter = Counter()
    with counter:
        work()
    return counter.flop


class Asked:
    """A release's plain model, and arguments for its gradients."""

    def __init__(self, sides: Sides, method: str) -> None:
        release = sides.release("tiny", method)
        self.engine = TorchEngine(release, backbone_name("tiny", sides.folder / "encoders"), method, 1)
        encoder: Any = self.engine.model.encoder
        encoder.set_attn_implementation("eager")  # a fused kernel may compute something twice
        self.sizes = sizes_of(release, sides.backbone("tiny"))
        weights = load_weights(release)
        shared = {name: weights[name].copy() for name in release.manifest.trainables}
        self.tokens = TokenBatch(np.full((TEXTS, TOKENS), 2000), np.ones((TEXTS, TOKENS), np.int64))
        profile = release.manifest.profile.zeros(USERS)
        self.rest = (np.zeros(TEXTS, np.int64), np.array([0, 1, 1]), profile, shared)


def owners(sizes: Sizes) -> float:
    """The graphs give each text its owner's vector by a product with a 0-1 matrix; a choice is no work."""
    return Product(TEXTS, USERS, sizes.vector).flop


def test_a_person_inside_the_encoder(sides: Sides) -> None:
    asked = Asked(sides, "plora")
    sizes, engine = asked.sizes, asked.engine
    assert sizes == Sizes(layers=2, width=32, inner=64, heads=4, labels=2, rank=16, vector=64)
    learn = counted(lambda: engine.learn(asked.tokens, *asked.rest))
    assert learn == private_step(sizes, TEXTS, TOKENS).flop + 2 * owners(sizes)
    contribute = counted(lambda: engine.contribute(asked.tokens, *asked.rest))
    assert contribute == shared_step(sizes, TEXTS, TOKENS).flop + owners(sizes)


def test_a_person_behind_the_encoder(sides: Sides) -> None:
    asked = Asked(sides, "headbias")
    sizes, engine = asked.sizes, asked.engine
    assert sizes.sites == sizes.rank == sizes.vector == 0
    read = counted(lambda: engine.read(asked.tokens, {}))
    nobody = Product(TEXTS, 1, 2).flop  # everybody's bias is nobody's
    assert read == reading(sizes, TEXTS, TOKENS).flop + nobody
    embedding = engine.read(asked.tokens, {})[1]
    learn = counted(lambda: engine.learn_embedded(embedding, *asked.rest))
    assert learn == private_step_behind(sizes, TEXTS).flop
    contribute = counted(lambda: engine.contribute_embedded(embedding, *asked.rest))
    assert contribute == shared_step_behind(sizes, TEXTS).flop


def test_a_product_computes_and_touches() -> None:
    assert Product(2, 3, 5).flop == sum(2 for _ in range(2) for _ in range(3) for _ in range(5))
    assert Product(2, 3, 5).touched == 4 * (2 * 3 + 3 * 5 + 2 * 5)
    assert Product(2, 3, 5, 7).flop == 7 * Product(2, 3, 5).flop
    assert Work(1.0, 2.0) * 3 + Work(1.0, 1.0) == Work(4.0, 7.0)


def test_a_round_is_its_peoples_work(sides: Sides) -> None:
    inside, behind = (Rounds(sides, "tiny", method, QUICK) for method in ("plora", "headbias"))
    sizes = sizes_of(inside.release, sides.backbone("tiny"))
    one = private_step(sizes, 6, 8) * 2 + shared_step(sizes, 6, 8)
    assert inside.work() == one * 6
    # 6 of 8 take part in each of two rounds; who of the second was in the first has been read.
    plain = sizes_of(behind.release, sides.backbone("tiny"))
    steps = (private_step_behind(plain, 6) * 2 + shared_step_behind(plain, 6)) * 6
    read = (behind.work().flop - steps.flop) / reading(plain, 6, 8).flop
    assert read == pytest.approx(round(read))
    assert 0 <= round(read) <= 2


@pytest.mark.slow  # a core for seconds
def test_ceilings_are_those_of_some_machine() -> None:
    found = measured_ceilings(1)
    assert 1e8 < found.touched < found.flop * 100 < 1e16
