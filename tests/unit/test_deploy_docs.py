"""The commands of docs/aws.md exist, with the options that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app

PAGE = (Path(__file__).parents[2] / "docs/aws.md").read_text()
COMMANDS = re.findall(r"^python -m deploy (.*?)(?:\s+#.*)?$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_exists(command: str) -> None:
    """With --help a command line is read to its end, and an unknown option is an error all the same."""
    done = CliRunner().invoke(app, [*shlex.split(command), "--help"])
    assert done.exit_code == 0, done.output


def test_the_page_has_its_commands() -> None:
    assert len(COMMANDS) >= 7
    assert CliRunner().invoke(app, ["train", "--dataa", "x", "--help"]).exit_code != 0
