"""Who holds a store's key: what is kept, what is refused, what is never said."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from tests.channels import plain_release

from umbel.device_client.owner import Device
from umbel.device_client.vault.keys import KeyFile, KeyHolder, Keyring, Passphrase, unwrap, wrap
from umbel.device_client.vault.sealing import new_key
from umbel.shared.errors import ConfigError, StoreError

WORDS = "correct horse battery"


class InMemory(KeyringBackend):
    """A keyring as the library's documentation has one written."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def ring() -> Iterator[InMemory]:
    before, own = keyring.get_keyring(), InMemory()
    keyring.set_keyring(own)
    yield own
    keyring.set_keyring(before)


def holders(folder: Path) -> dict[str, KeyHolder]:
    return {
        "file": KeyFile(folder / "key"),
        "keyring": Keyring("a store"),
        "passphrase": Passphrase(lambda: WORDS),
    }


@pytest.mark.parametrize("kind", ["file", "keyring", "passphrase"])
def test_a_wrapped_key_comes_back(kind: str, tmp_path: Path, ring: InMemory) -> None:
    key = new_key()
    kept = wrap(key, holders(tmp_path)[kind], "a store")
    assert unwrap(kept, holders(tmp_path)[kind], "a store") == key
    assert key.hex() not in str(kept)
    assert WORDS not in str(kept)


@pytest.mark.parametrize("kind", ["file", "keyring", "passphrase"])
def test_a_key_of_another_store_or_a_changed_one_does_not_open(
    kind: str, tmp_path: Path, ring: InMemory
) -> None:
    kept = wrap(new_key(), holders(tmp_path)[kind], "a store")
    with pytest.raises(StoreError, match="does not open"):
        unwrap(kept, holders(tmp_path)[kind], "another")
    turned = f"{int(kept['wrapped'][-1], 16) ^ 1:x}"
    changed = kept | {"wrapped": kept["wrapped"][:-1] + turned}
    with pytest.raises(StoreError, match="does not open"):
        unwrap(changed, holders(tmp_path)[kind], "a store")


def test_a_wrong_passphrase_is_said_and_not_quoted() -> None:
    kept = wrap(new_key(), Passphrase(lambda: WORDS), "a store")
    with pytest.raises(StoreError, match="the passphrase is wrong") as caught:
        unwrap(kept, Passphrase(lambda: "wrong horse battery"), "a store")
    assert "horse" not in str(caught.value)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(StoreError, match="too short"):
        wrap(new_key(), Passphrase(lambda: "short"), "a store")


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 40},
        {"n": 3},
        {"n": "65536"},
        {"r": 1 << 20},
        {"p": 1 << 20},
        {"salt": "00"},
        {"salt": "zz"},
        {"salt": 1},
        {"salt": None},
    ],
)
def test_damaged_costs_are_refused_before_they_cost_anything(change: dict[str, Any]) -> None:
    kept = wrap(new_key(), Passphrase(lambda: WORDS), "a store")
    with pytest.raises(StoreError, match="damaged"):
        unwrap(kept | {"told": kept["told"] | change}, Passphrase(lambda: pytest.fail("asked")), "a store")


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    holder = KeyFile(tmp_path / "key")
    made, _ = holder.make()
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert holder.make()[0] == holder.read({}) == made
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        holder.read({})
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key").write_bytes(made[:-1])
    with pytest.raises(StoreError, match="32 bytes"):
        holder.read({})
    holder.erase()
    with pytest.raises(StoreError, match="cannot be read"):
        holder.read({})
    holder.erase()


def test_a_keyring_forgets(ring: InMemory) -> None:
    holder = Keyring("a store")
    holder.make()
    holder.erase()
    assert ring.kept == {}
    with pytest.raises(StoreError, match="no key for this store"):
        holder.read({})
    holder.erase()


def test_a_key_that_an_interrupted_change_has_left_is_erased(tmp_path: Path, ring: InMemory) -> None:
    """Killed before it erased the file, the same command does it, though the holder is the new one."""
    home = tmp_path / "home"
    with Device.enroll(home, plain_release(tmp_path / "release", "one").folder) as device:
        left = (home / "key").read_bytes()
        device.rekey("keyring")
        (home / "key").write_bytes(left)
        with pytest.raises(ConfigError, match="already: keyring"):
            device.rekey("keyring")
        assert not (home / "key").exists()
    Device.open(home).close()


def test_who_was_there_before_another_changed_the_holder_erases_nothing(
    tmp_path: Path, ring: InMemory
) -> None:
    """A process that opened the store under the old holder must not put another key over the new one's."""
    home = tmp_path / "home"
    with Device.enroll(home, plain_release(tmp_path / "release", "one").folder) as device:
        with Device.open(home) as late:
            device.rekey("keyring")
            kept = dict(ring.kept)
            with pytest.raises(StoreError, match="another process has changed"):
                late.rekey("keyring")
        assert ring.kept == kept
    Device.open(home).close()


def test_a_keyring_that_keeps_nothing_is_found_out(ring: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InMemory, "set_password", lambda *_: None)
    with pytest.raises(StoreError, match="no key for this store"):
        Keyring("a store").make()


def test_a_passphrase_is_the_same_however_its_letters_are_typed() -> None:
    kept = wrap(new_key(), Passphrase(lambda: "ein Schl\u00fcssel"), "a store")
    unwrap(kept, Passphrase(lambda: "ein Schlu\u0308ssel"), "a store")
    wrap(new_key(), Passphrase(lambda: "bytes of no text \udcff"), "a store")


def test_without_a_keyring_one_is_told_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from keyring.backends.fail import Keyring as Nothing

    monkeypatch.setattr(keyring.core, "_keyring_backend", Nothing())  # type: ignore[no-untyped-call]
    with pytest.raises(StoreError, match="--key file"):
        Keyring("a store").make()
