"""Errors tell the headline, every problem and what to do next."""

import pickle

import pytest

from umbel.shared import errors
from umbel.shared.errors import ConfigError, UmbelError

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UmbelError)),
    key=lambda kind: kind.__name__,
)


def test_headline_problems_and_hint() -> None:
    error = UmbelError("cannot read it", ["line 1: a", "line 2: b"], "Mend them.")
    assert error.render() == str(error) == "cannot read it\n  - line 1: a\n  - line 2: b\nMend them."


def test_a_headline_alone() -> None:
    assert str(UmbelError("cannot read it")) == "cannot read it"
    assert str(UmbelError("cannot read it", hint="Try again.")) == "cannot read it\nTry again."


@pytest.mark.parametrize(
    ("count", "shown", "last"),
    [(20, 20, "  - problem 19"), (21, 20, "  ... and 1 more"), (1000, 20, "  ... and 980 more")],
)
def test_many_problems_are_counted(count: int, shown: int, last: str) -> None:
    error = UmbelError("bad", (f"problem {n}" for n in range(count)))
    lines = str(error).splitlines()
    assert sum(line.startswith("  - ") for line in lines) == shown
    assert lines[-1] == last
    assert len(error.problems) == count


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_a_trip_between_processes(kind: type[UmbelError]) -> None:
    error = kind("bad", ["a", "b"], "Mend them.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.headline, back.problems, back.hint) == ("bad", ("a", "b"), "Mend them.")
    assert str(back) == str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_failure_to_the_shell(kind: type[UmbelError]) -> None:
    assert issubclass(kind, UmbelError)
    assert kind.exit_code != 0


def test_one_handler_catches_them_all() -> None:
    with pytest.raises(UmbelError, match=r"^unknown key$"):
        raise ConfigError("unknown key")
