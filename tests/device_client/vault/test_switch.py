"""The store's one transaction by which a device exchanges its release: all of it or nothing."""

from pathlib import Path

import pytest

from umbel.device_client.vault.keys import KeyFile
from umbel.device_client.vault.store import Entry, KeptProfile, Store
from umbel.shared.errors import StoreError

ABOUT = {"how": "learned", "examples": 1, "state": ""}
OLD, NEW, OLDER = (KeptProfile(bytes([number]) * 50, ABOUT) for number in range(3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(
        tmp_path / "store.sqlite", "file", lambda kind, number: KeyFile(tmp_path / "key"), {"release": "old"}
    )
    made.add([Entry("a text", "yes", "2026-01-01T00:00:00+00:00")])
    made.save_profile("old", OLD)
    made.save_profile("older", OLDER)
    return made


def test_all_of_it(store: Store) -> None:
    with store:
        store.switch(
            {"release": "new", "previous": "old", "verdict": None},
            {"new": NEW},
            {"what": "updated"},
            keep=("new", "old"),
            erasures=store.erasures(),
        )
        assert (store.setting("release"), store.setting("previous")) == ("new", "old")
        assert {name: own.packed for name, own in store.profiles().items()} == {
            "new": NEW.packed,
            "old": OLD.packed,
        }
        assert [row["what"] for row in store.log()] == ["updated"]


def test_nothing_of_it_once_something_is_forgotten(store: Store) -> None:
    with store:
        before = store.erasures()
        store.remove([store.entries()[0].number])
        with pytest.raises(StoreError, match="has been forgotten"):
            store.switch(
                {"release": "new"}, {"new": NEW}, {"what": "updated"}, keep=("new",), erasures=before
            )
        assert store.setting("release") == "old"
        assert store.profiles() == {}
        assert store.log() == []


def test_nothing_of_it_if_a_part_fails(store: Store) -> None:
    with store:
        with pytest.raises(TypeError):
            store.switch({"release": "new", "verdict": object()}, {"new": NEW}, keep=("new",))
        assert store.setting("release") == "old"
        assert set(store.profiles()) == {"old", "older"}
