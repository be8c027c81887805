"""Every row of the command's table leads to a command that exists and explains itself."""

import pytest

from umbel import cli


@pytest.mark.parametrize("name", list(cli.PARTS))
def test_the_row_leads_to_a_command_with_help(name: str) -> None:
    command = cli.load(name)
    assert (command.help or "").strip()


@pytest.mark.parametrize("name", list(cli.PARTS))
def test_the_rows_extra_is_one_of_the_packages_extras(name: str) -> None:
    assert cli.PARTS[name].extra in {"device", "coordinator", "simulation"}
