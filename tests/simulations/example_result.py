"""A plausible result made from a seed, for tests of the result file and the report."""

import numpy as np

from umbel.shared.rng import generator
from umbel.simulations.results import Backbone, CurvePoint, Data, Machine, Result, Round, Seen, Training
from umbel.simulations.summary import UserAccuracies, summarise_unseen

KS = (0, 1, 2, 4, 8, 16, 32)


def example_accuracies(seed: int, users: int = 60, lift: float = 0.18) -> dict[int, UserAccuracies]:
    """Returns accuracies of 40 answers per user; `lift` is what a profile gains with many examples."""
    rng = generator(seed, 0, "", "example result")
    generic = rng.beta(14, 8, users)
    ceiling = lift * rng.normal(1.0, 0.55, users)
    rows = {}
    for k in KS:
        learned = 1 - np.exp(-k / 6)
        noise = rng.normal(0, 0.03, users) * (k > 0)
        personal = np.round(np.clip(generic + ceiling * learned + noise, 0, 1) * 40) / 40
        bias = np.round(np.clip(generic + ceiling * learned * 0.25, 0, 1) * 40) / 40
        rows[k] = UserAccuracies(np.round(generic * 40) / 40, bias, personal)
    return rows


def example_result(seed: int = 7, users: int = 60, lift: float = 0.18, bayes: bool = True) -> Result:
    """Returns a whole result of 240 seen and `users` unseen people."""
    rng = generator(seed, 1, "", "example result")
    rows = example_accuracies(seed, users, lift)
    best = np.clip(rows[32].generic + 0.24, 0, 1) if bayes else None
    everyone = np.clip(rows[32].generic + 0.02, 0, 1) if bayes else None
    return Result(
        experiment="demo",
        seed=seed,
        engine="flower",
        data=Data(
            name="community", users_seen=240, users_unseen=users, users_skipped=3, examples=14_400, labels=2
        ),
        backbone=Backbone(name="all-MiniLM-L6-v2", sha256="53" * 32),
        methods=("plora",),
        profile_bytes=128,
        release="9f2c41d07be8a355",
        rounds=tuple(
            Round(
                round=number,
                clients=24,
                failures=int(number == 4),
                seconds=6.2 + rng.random(),
                bytes_up=24 * 49_312,
                bytes_down=24 * (1_912_044 if number == 1 else 98_700),
                seen_accuracy=0.74 + 0.05 * (1 - np.exp(-number / 3)) + rng.normal(0, 0.003),
            )
            for number in range(1, 9)
        ),
        seen=Seen(users=240, generic_accuracy=0.6312, personal_accuracy=0.7934),
        unseen=summarise_unseen(rows, seed=seed, bayes=best, generic_bayes=everyone, draws=500),
        training=example_training(rng),
        seconds={
            "data": 0.8,
            "train": 96.4,
            "publish": 58.1,
            "rounds": 52.9,
            "evaluate": 21.7,
            "report": 1.3,
        },
        machine=Machine(
            cpus=2, threads=2, gpu=None, python="3.11.9", versions={"torch": "2.13.0", "flwr": "1.41.0"}
        ),
        config={"method": {"plora": {"rank": 8, "rate": 1e-7}}, "users": 300, "k": list(KS), "resume": None},
    )


def example_training(rng: np.random.Generator) -> Training:
    """Returns a training of 600 steps with held-out accuracy every 50."""
    points = [
        CurvePoint(
            step=step,
            loss=0.42 + 0.28 * np.exp(-step / 120) + rng.normal(0, 0.012),
            heldout_accuracy=None
            if step % 50
            else 0.58 + 0.2 * (1 - np.exp(-step / 150)) + rng.normal(0, 0.004),
        )
        for step in range(10, 610, 10)
    ]
    return Training(steps=600, epochs=4.0, best_step=550, train_examples=9_600, curve=tuple(points))
