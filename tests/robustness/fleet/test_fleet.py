"""The proof of a whole fleet in small, and that what it compares and searches by can fail."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.federation import Federation
from tests.robustness.fleet import reference
from tests.robustness.fleet.needles import LEAST, found_in, of_bits, of_numbers
from tests.robustness.fleet.proof import examples_of, masked_release, prove
from tests.robustness.fleet.scene import KILL, RESTART, small, whole

from umbel.coordinator.federation.privacy.sources import KEY
from umbel.device_client.owner import Device
from umbel.shared.release import Release
from umbel.shared.rng import generator


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return masked_release(tmp_path_factory.mktemp("masked"))


@given(st.binary(max_size=200), st.lists(st.binary(min_size=LEAST, max_size=20)), st.data())
def test_pieces_are_found_as_a_plain_search_finds_them(
    data: bytes, others: list[bytes], draw: st.DataObject
) -> None:
    """Some are cut out of the bytes, so that some are there."""
    starts = draw.draw(st.lists(st.integers(0, max(0, len(data) - LEAST)), max_size=5))
    pieces = [*others, *(data[start : start + LEAST + 3] for start in starts if len(data) >= LEAST)]
    assert found_in(data, pieces) == {piece for piece in pieces if piece in data}


def test_numbers_and_masks_are_found_where_they_are_planted() -> None:
    rng = generator(0, 0, "", "planted")
    row, mask = rng.normal(size=60).astype(np.float32), (rng.random((2, 128)) < 0.3).astype(np.float32)
    numbers, bits = of_numbers({"row": row}), of_bits({"mask": mask, "row": row}, b"")
    assert len(numbers) == 40
    noise = rng.bytes(10_000)
    assert found_in(noise, numbers | bits) == set()
    for planted in (row.tobytes(), row.astype(np.float16).tobytes(), row.astype(np.float64).tobytes()):
        assert len(found_in(noise + planted + noise, numbers)) == 10
    whole_mask = np.packbits(mask > 0).tobytes()
    assert len(bits) == 6
    assert len(found_in(noise + whole_mask + noise, bits)) == 3  # it, and both its rows
    packed = bytes(40) + rng.bytes(64)
    assert len(found_in(noise + packed[40:], of_bits({}, packed))) > 5


def test_those_who_failed_are_read_from_records_and_those_who_lied_are_not() -> None:
    notes = ["round 2, train.share, device 000004: no answer", "round 2, train.collect, device 000001: bad"]
    notes += [
        "round 2: device 000001 is on probation, not asked before round 5",
        "round 2 moved by its noise",
    ]
    found = reference.failures([{"refused": [1], "notes": notes}, {"refused": [], "notes": []}])
    assert found == {(2, "train.share", 4): "no answer"}


def test_the_scene_is_that_of_the_issue_and_follows_from_its_seed() -> None:
    scene = whole(3, 30.0)
    assert (scene.devices, scene.rounds) == (12, 5)
    kinds = [blow.kind for blow in scene.blows]
    assert (kinds.count(KILL), kinds.count(RESTART), len(kinds)) == (3, 2, 6)
    assert scene.liar not in {blow.device for blow in scene.blows}
    assert scene == whole(3, 30.0) != whole(4, 30.0)


def test_a_reference_notes_what_its_devices_keep_to_themselves(tiny_release: Release, tmp_path: Path) -> None:
    own, scene = Federation(tmp_path / "own", tiny_release, 3, examples_of), small(0, 60.0)
    settings = [*scene.settings, "rounds=1", "clients=3", "noise_multiplier=0", "epsilon_budget=0"]
    found, secrets = reference.run(own, settings, {}, {}, tmp_path / "reference")
    assert [(record.clients, record.notes) for record in found.rounds] == [(3, ())]
    assert min(len(getattr(secrets, name)) for name in ("changes", "coded", "profiles")) > 0


@pytest.mark.slow
def test_a_reference_is_other_if_another_device_fails(masked: Release, tmp_path: Path) -> None:
    own, scene = Federation(tmp_path / "own", masked, 6, examples_of), small(0, 60.0)
    settings = [*scene.settings, "rounds=1"]
    for number in range(own.devices):
        with Device.open(own.home(number)) as device:
            device.rounding_key()  # before homes are copied: it is made once
    key = own.folder.rounds(masked.release_id) / KEY
    key.parent.mkdir(parents=True)
    key.write_bytes(bytes(32))
    found = [
        reference.run(own, settings, {(1, "train.collect", number): "lost"}, {}, tmp_path / f"{place}")[0]
        for place, number in enumerate((1, 1, 2))
    ]
    one, again, other = (result.trainables for result in found)
    assert all(np.array_equal(value, again[name]) for name, value in one.items())
    assert all(np.abs(value - other[name]).max() > 1e-3 for name, value in one.items())


@pytest.mark.slow
def test_a_small_fleet_that_breaks_and_lies_reaches_what_it_would_have(
    masked: Release, tmp_path: Path
) -> None:
    found = prove(tmp_path, masked, small(0, 60.0), updates=2)
    assert found["problems"] == []
    assert found["result"]["to the bit"]
    assert [round_["refused"] for round_ in found["rounds"]] == [[small(0, 60.0).liar], []]
