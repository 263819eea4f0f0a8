"""The example files say what is true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import deploy
from broker.settings import load, shown_values
from deploy.parts import nats_server_program
from schemas.config import Config

EXAMPLES = Path(str(deploy.__file__)).parent / "examples"
COMMENTED_KEY = re.compile(r"^#(\w+ = .*)$", re.MULTILINE)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_it_loads(file: Path) -> None:
    load(file, {})


def test_headrace_toml_holds_every_key_at_its_default() -> None:
    uncommented = COMMENTED_KEY.sub(r"\1", (EXAMPLES / "headrace.toml").read_text())
    shown = {
        (section, key): tuple(value) if isinstance(value, list) else value
        for section, table in tomllib.loads(uncommented).items()
        for key, value in table.items()
    }
    assert shown == {(section, key): value for section, key, value in shown_values(Config())}


def test_headrace_toml_as_it_is_changes_nothing() -> None:
    assert load(EXAMPLES / "headrace.toml", {}) == Config()


def test_nats_server_takes_its_example() -> None:
    done = subprocess.run(
        [nats_server_program(), "-t", "-c", str(EXAMPLES / "nats.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
