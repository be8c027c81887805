"""A coordinator's folder: begun once, never overwritten, its keys its owner's alone."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from umbel.coordinator.service.certificates import key_pem, names_of, new_authority, vouched
from umbel.coordinator.service.folder import Address, Folder
from umbel.shared.errors import ConfigError
from umbel.shared.files import refuse_taken

HERE = Address("rounds.example.org", 8443, ("10.0.0.5",))


def files(path: Path) -> dict[str, bytes]:
    return {str(own.relative_to(path)): own.read_bytes() for own in path.rglob("*") if own.is_file()}


def test_keys_are_the_owners_alone_and_certificates_fit(tmp_path: Path) -> None:
    folder, new = Folder.make(tmp_path / "fed", HERE)
    assert new
    assert folder.address.url == "https://rounds.example.org:8443"
    for name in ("private/ca.key", "private/server.key", "devices.sqlite"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((folder.path / "private").stat().st_mode) == 0o700
    assert names_of(folder.server()) == ["rounds.example.org", "10.0.0.5"]
    assert vouched(folder.server(), folder.authority())
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder.key_file)
    left = folder.server().not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=396) < left < timedelta(days=398)


def test_begun_again_nothing_changes(tmp_path: Path) -> None:
    Folder.make(tmp_path, HERE)
    before = files(tmp_path)
    folder, new = Folder.make(tmp_path, HERE)
    assert not new
    assert folder.address == HERE
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (
            Address("rounds.example.org", 9000, HERE.names),
            "it is for https://rounds.example.org:8443, not for",
        ),
        (Address("rounds.example.org", 8443), "its names are rounds.example.org, 10.0.0.5"),
    ],
)
def test_one_with_another_address_is_not_overwritten(tmp_path: Path, other: Address, problem: str) -> None:
    Folder.make(tmp_path, HERE)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="there is a coordinator") as error:
        Folder.make(tmp_path, other)
    assert error.value.problems[0].startswith(problem)
    assert files(tmp_path) == before


def test_what_says_where_it_is_can_be_made_again_and_the_authority_stays(tmp_path: Path) -> None:
    """Devices trust the authority: another one would lock all of them out."""
    Folder.make(tmp_path, HERE)
    before = files(tmp_path)
    (tmp_path / "coordinator.json").unlink()
    folder, new = Folder.make(tmp_path, HERE)
    assert new
    kept = ("private/ca.key", "ca.pem", "devices.sqlite", "coordinator.json")
    assert {name: files(tmp_path)[name] for name in kept} == {name: before[name] for name in kept}
    assert vouched(folder.server(), folder.authority())


@pytest.mark.parametrize("lost", ["private/ca.key", "ca.pem"])
def test_an_authority_in_part_is_not_replaced(tmp_path: Path, lost: str) -> None:
    Folder.make(tmp_path, HERE)
    for name in ("coordinator.json", lost):
        (tmp_path / name).unlink()
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="a part is missing") as error:
        Folder.make(tmp_path, HERE)
    assert "devices.sqlite is there" in error.value.problems
    assert files(tmp_path) == before


def test_nothing_else_is_written_among_its_files(tmp_path: Path) -> None:
    Folder.make(tmp_path, HERE)
    with pytest.raises(ConfigError, match="holds a coordinator"):
        refuse_taken(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a release"):
        Folder.make(tmp_path, HERE)
    assert list(files(tmp_path)) == ["manifest.json"]


def test_an_address_that_no_certificate_can_carry_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Address("two words", 0, ("ok.example", ".dot"))
    assert [problem.split(" is ")[0] for problem in error.value.problems] == ["'two words'", "'.dot'", "port"]


def test_renewing_changes_the_servers_key_and_not_whom_devices_trust(tmp_path: Path) -> None:
    folder, _ = Folder.make(tmp_path, HERE)
    authority, before = folder.authority(), folder.server()
    folder.renew(Address("new.example.org", 8443, ("rounds.example.org",)))
    again = Folder.read(tmp_path)
    assert again.authority() == authority
    assert again.server().public_key() != before.public_key()
    assert names_of(again.server()) == ["new.example.org", "rounds.example.org"]
    assert again.address.url == "https://new.example.org:8443"


def test_renewing_takes_the_authoritys_key_from_where_it_was_put_away(tmp_path: Path) -> None:
    folder, _ = Folder.make(tmp_path / "fed", HERE)
    away = tmp_path / "stick.key"
    (folder.path / "private/ca.key").rename(away)
    with pytest.raises(ConfigError, match="the authority's key is not at"):
        folder.renew()
    folder.renew(authority_key=away)
    away.write_bytes(key_pem(new_authority(datetime.now(UTC))[0]))
    with pytest.raises(ConfigError, match="do not belong together"):
        folder.renew(authority_key=away)
    assert vouched(folder.server(), folder.authority())


@pytest.mark.parametrize("name", ["ca.pem", "private/server.key", "coordinator.json"])
def test_what_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    Folder.make(tmp_path, HERE)
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=name):
        Folder.read(tmp_path).server()


def test_a_certificate_of_another_authority_is_not_shown_to_devices(tmp_path: Path) -> None:
    one, _ = Folder.make(tmp_path / "one", HERE)
    two, _ = Folder.make(tmp_path / "two", HERE)
    one.key_file.write_bytes(two.key_file.read_bytes())
    with pytest.raises(ConfigError, match="is not by this coordinator's authority"):
        one.server()


def test_where_nothing_was_begun_one_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="umbel coordinator init"):
        Folder.read(tmp_path)
