"""Gains and their intervals, against the slow and obvious."""

import numpy as np
import pytest

from umbel.shared.rng import generator
from umbel.simulations.against_central.gains import gains, late_gains
from umbel.simulations.against_central.results import Look, Scores, Seed, Traffic, Tried

TRIED = (Tried(options={}, looks=(Look(at=0, nll=1.0, validation=0.5, unseen=0.5),), seconds=0.0),)
TRAFFIC = Traffic(rounds=1, devices=1, failures=0, bytes_up=1, bytes_down=1, seconds=1)


def scores(*personal: float) -> Scores:
    return Scores(generic=personal, personal=personal, nll=tuple(1 - own for own in personal))


def seed(number: int, people: tuple[str, ...], start: Scores, central: Scores, federated: Scores) -> Seed:
    return Seed(
        seed=number, public=1, devices=1, validation=1, public_examples=1, device_examples=1, people=people,
        asked=(1,) * len(people), shared_numbers=1, profile_bytes=1, start=start, central=central,
        federated=federated, central_tried=TRIED, federated_tried=TRIED, traffic=TRAFFIC,
    )  # fmt: skip


def test_gains_are_means_over_people_then_over_seeds() -> None:
    first = seed(0, ("a", "b"), scores(0.5, 0.5), scores(0.7, 0.5), scores(0.6, 0.6))
    second = seed(1, ("c",), scores(0.4), scores(0.7), scores(0.6))
    found = gains([first, second], "personal", draws=50)
    assert found.start == pytest.approx((0.5 + 0.4) / 2)
    assert found.central.value == pytest.approx((0.1 + 0.3) / 2)
    assert found.federated.value == pytest.approx((0.1 + 0.2) / 2)
    assert found.share.value == pytest.approx(0.75)
    assert found.difference.value == pytest.approx(-0.05)
    less = gains([first, second], "nll", draws=50)  # here nll is 1 - accuracy, so the gains are the same
    assert less.share.value == pytest.approx(0.75)
    assert less.central.value == pytest.approx(0.2)


def test_late_gains_are_those_of_the_last_third_of_the_looks() -> None:
    def tried(nll: float, *unseen: float) -> Tried:
        rows = [Look(at=10 * n, nll=nll, validation=0.5, unseen=own) for n, own in enumerate(unseen)]
        return Tried(options={}, looks=tuple(rows), seconds=0.0)

    row = seed(0, ("a",), scores(0.5), scores(0.5), scores(0.5))
    central = (
        tried(2.0, 0.5, 0.9, 0.9, 0.9),
        tried(1.0, 0.5, 0.6, 0.8, 0.7),
    )  # of 10, 20, 30 only 30 is late
    federated = (tried(1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.62),)  # of 10 to 60, 50 and 60
    row = row.model_copy(update={"central_tried": central, "federated_tried": federated})
    assert late_gains([row]) == pytest.approx((0.2, 0.11))
    other = row.model_copy(update={"central_tried": federated})
    assert late_gains([row, other]) == pytest.approx(((0.2 + 0.11) / 2, 0.11))


def test_no_gain_has_no_share() -> None:
    same = scores(0.5, 0.5)
    assert np.isnan(gains([seed(0, ("a", "b"), same, same, same)], "personal", draws=10).share.value)


def test_intervals_are_those_of_drawing_people_one_by_one() -> None:
    """Twenty people in two seeds, ten of them in both: a loop over draws, each person's figures in a list."""
    rng = generator(3, 0, "", "gains")
    people = (tuple(f"p{n}" for n in range(15)), tuple(f"p{n}" for n in range(5, 20)))
    rows = [[tuple(rng.uniform(low, low + 0.3, 15).tolist()) for low in (0.3, 0.5, 0.45)] for _ in people]
    seeds = [seed(n, people[n], *(scores(*row) for row in rows[n])) for n in range(2)]
    found = gains(seeds, "personal", draws=4000)
    shares, differences = list[float](), list[float]()
    loop = generator(4, 0, "", "loop")
    everybody = sorted({*people[0], *people[1]})
    for _ in range(4000):
        drawn = [everybody[int(n)] for n in loop.integers(0, len(everybody), len(everybody))]
        sides: list[list[float]] = [[], []]
        for n in range(2):
            place = {user: number for number, user in enumerate(people[n])}
            own = [place[user] for user in drawn if user in place]
            for side in range(2):
                sides[side].append(float(np.mean([rows[n][1 + side][i] - rows[n][0][i] for i in own])))
        central, federated = (sum(side) / 2 for side in sides)
        shares.append(federated / central)
        differences.append(federated - central)
    # Two draws of 4,000: the ends of a 95 % interval agree to about a tenth of its width.
    for estimate, several in ((found.share, shares), (found.difference, differences)):
        low, high = np.quantile(several, (0.025, 0.975))
        np.testing.assert_allclose((estimate.low, estimate.high), (low, high), atol=(high - low) / 8)
