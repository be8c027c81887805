"""Comparisons made by hand or from a seed, for tests of the figures, the claims and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from umbel.shared.rng import generator
from umbel.simulations.comparison.results import Cell, Comparison, Measured
from umbel.simulations.results import Machine

MACHINE = Machine(cpus=2, threads=2, gpu=None, python="3.11.9", versions={"torch": "2.13.0"})
ASKED = 1000

# group, learns, private bytes, private numbers, shared numbers
KINDS: dict[str, tuple[Any, bool, int, int, int]] = {
    "generic": ("rival", False, 0, 0, 0),
    "shared-lora": ("rival", False, 0, 0, 10_000),
    "shared-loratrf": ("rival", False, 0, 0, 6_629),
    "lora": ("rival", True, 147_456, 36_864, 0),
    "adapter": ("rival", True, 884_736, 221_184, 0),
    "prompt": ("rival", True, 15_360, 3_840, 0),
    "headbias": ("method", True, 8, 2, 0),
    "plora": ("method", True, 128, 32, 9_000),
    "xpeft": ("method", True, 150, 1_200, 70_000),
    "xpeft-random": ("method", True, 150, 1_200, 600),
    "lopa": ("method", True, 1_576, 394, 5_000),
    "pha": ("method", True, 256, 64, 80_000),
    "plora+lopa": ("combination", True, 1_704, 426, 14_000),
}
MORE = ("generic", "shared-lora", "shared-loratrf")


def cell(
    contestant: str,
    right: Mapping[int, Sequence[int]],
    *,
    data: str = "movielens",
    seed: int = 0,
    asked: Sequence[int] | None = None,
    **changes: Any,
) -> Cell:
    """Returns a cell with these right answers by k."""
    group, learned, private_bytes, private_numbers, shared_numbers = KINDS[contestant]
    people = len(next(iter(right.values())))
    known = tuple(asked or (ASKED,) * people)
    row: dict[str, Any] = {
        "schema": "umbel.cell/1",
        "settings": "0",
        "identity": "0",
        "examples": f"{data} {seed}",
        "precision": "float32",
        # Under the next seed, all but two of the people are there again.
        "users": tuple(f"{n + 2 * seed}" for n in range(people)),
        "data": data,
        "seed": seed,
        "contestant": contestant,
        "title": contestant.upper(),
        "group": group,
        "labels": 2,
        "people": people,
        "learned": learned,
        "private_bytes": private_bytes,
        "private_numbers": private_numbers,
        "shared_numbers": shared_numbers,
        "chosen": {},
        "k": {
            str(k): Measured(right=tuple(r), asked=known, nll=(0.5,) * people, seconds=0.1 + seed)
            for k, r in right.items()
        },
        "train_seconds": 1.0,
        "choose_seconds": 1.0,
    }
    return Cell.model_validate(row | changes)


def comparison(cells: Sequence[Cell], config: Mapping[str, Any] | None = None) -> Comparison:
    """Returns these cells as a comparison."""
    return Comparison(
        schema="umbel.comparison/1", config=dict(config or {}), machine=MACHINE, cells=tuple(cells)
    )


def level(share: float, people: int = 4) -> list[int]:
    """Returns right answers of which each person has the same share."""
    return [round(share * ASKED)] * people


def flat(
    accuracies: Mapping[str, float],
    *,
    data: str = "movielens",
    ks: Sequence[int] = (4, 16, 32),
    seeds: Sequence[int] = (0,),
) -> list[Cell]:
    """Returns cells in which a contestant has one accuracy for everybody at every k."""
    return [
        cell(name, {k: level(share) for k in (ks if KINDS[name][1] else (0,))}, data=data, seed=seed)
        for seed in seeds
        for name, share in accuracies.items()
    ]


def config(data: Mapping[str, Sequence[int]], seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Returns a configuration that asks for every contestant on these data sets with these k."""
    rivals = [name for name, kind in KINDS.items() if kind[0] == "rival"]
    own: dict[str, Any] = {
        name: {"methods": {method: {} for method in name.split("+")}} for name in KINDS if name not in rivals
    }
    return {
        "seeds": list(seeds),
        "rivals": rivals,
        "contestants": own,
        "data": {name: {"k": list(ks)} for name, ks in data.items()},
    }


def random_comparison(seed: int, *, skip: Sequence[tuple[str, int, str]] = ()) -> Comparison:
    """Returns a plausible comparison of all contestants on two data sets, less the cells in `skip`."""
    data = {"community": (4, 16), "movielens": (4, 16, 32)}
    cells = []
    for name, ks in data.items():
        for run in (0, 1, 2):
            rng = generator(seed, run, name, "example comparison")
            asked = rng.integers(5, 30, 9).tolist()
            known: dict[str, Any] = (
                {"best": (0.9,) * 5, "best_generic": (0.6,) * 5} if name == "community" else {}
            )
            for contestant, kind in KINDS.items():
                people = 9 if contestant in MORE else 5
                chance = 0.6 + 0.2 * rng.random()
                right = {
                    k: [int(rng.binomial(count, chance)) for count in asked[:people]]
                    for k in ((0, *ks) if kind[1] else (0,))
                }
                if (name, run, contestant) not in skip:
                    cells.append(
                        cell(
                            contestant,
                            right,
                            data=name,
                            seed=run,
                            asked=asked[:people],
                            **known,
                        )
                    )
    return comparison(cells, config(data))
