"""The command line without any server: help, errors, and what is imported for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands import headrace
from deploy.commands.config import masked
from gateway.client.client import _socket_url

HEAVY = ("torch", "vllm", "transformers", "nats", "redis", "fastapi", "uvicorn", "rich", "websockets")
COMMANDS = (
    "up",
    "gateway",
    "worker",
    "model",
    "chat",
    "bench",
    "replay",
    "dead",
    "trace",
    "top",
    "decode",
    "config",
    "version",
)

CHECK_IMPORTS = """
import sys
from deploy.cli import main
sys.argv = ["headrace", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = set(sys.modules) & {names}
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], *[[name, "--help"] for name in COMMANDS], ["model", "fetch", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = CHECK_IMPORTS.format(names=set(HEAVY))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: headrace" in done.stdout


def test_every_command_is_listed() -> None:
    text = CliRunner().invoke(headrace, ["--help"]).output
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_an_unknown_command_is_one_line_and_code_2() -> None:
    result = CliRunner().invoke(headrace, ["gatway"])
    assert result.exit_code == 2
    assert "No such command 'gatway'" in result.output


@pytest.mark.parametrize("name", ["gateway", "worker", "up"])
def test_a_configuration_error_is_one_line_and_code_2(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_GATEWAY__PORT", "http")
    result = CliRunner().invoke(headrace, [name])
    assert result.exit_code == 2
    assert result.output == "headrace: HEADRACE_GATEWAY__PORT: Expected `int`, got `str`\n"


def test_config_check_shows_values_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[gateway]\nport = 9000\n[security]\nsecret = "a-secret-of-some-length"\n')
    monkeypatch.setenv("HEADRACE_NATS__URL", "nats://user:hunter2@host:4222")
    monkeypatch.setenv("HEADRACE_VLLM__MAX_NUM_SEQS", "8")
    result = CliRunner().invoke(headrace, ["--config", str(file), "config", "check"])
    assert result.exit_code == 0
    lines = {" ".join(line.split()) for line in result.output.splitlines()}
    assert f"port = 9000 # {file}" in lines
    assert 'url = "nats://****@host:4222" # HEADRACE_NATS__URL' in lines
    assert "max_num_seqs = 8 # HEADRACE_VLLM__MAX_NUM_SEQS" in lines
    assert f'secret = "****" # {file}' in lines
    assert 'engine = "vllm" # default' in lines
    assert "hunter2" not in result.output
    assert "a-secret" not in result.output


def test_config_check_lists_every_error(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[gateway]\nport = -1\nprot = 1\n")
    result = CliRunner().invoke(headrace, ["--config", str(file), "config", "check"])
    assert result.exit_code == 2
    assert result.output.count("headrace: ") == 2


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("password", "x", '"****"'),
        ("password", "", '""'),
        ("hf_token", "x", '"****"'),
        ("tokenizer", "x", '"x"'),
        ("url", "redis://:pw@h/0", '"redis://****@h/0"'),
        ("url", "nats://a:b@h1,nats://tok@h2", '"nats://****@h1,nats://****@h2"'),
        ("url", "nats://h:4222", '"nats://h:4222"'),
        ("default_max_tokens", 5, "5"),
    ],
)
def test_secrets_are_not_shown(key: str, value: object, shown: str) -> None:
    assert masked(key, value) == shown


@pytest.mark.parametrize(
    ("url", "websocket"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/responses"),
        ("https://chat.example/", "wss://chat.example/v1/responses"),
        ("https://chat.example/v1", "wss://chat.example/v1/responses"),
        ("ws://h:1/v1/responses", "ws://h:1/v1/responses"),
        ("http://h/edge", "ws://h/edge/v1/responses"),
    ],
)
def test_the_gateway_s_socket_by_its_address(url: str, websocket: str) -> None:
    assert _socket_url(url) == websocket


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://h", "http://"])
def test_chat_refuses_what_is_no_address(url: str) -> None:
    result = CliRunner().invoke(headrace, ["chat", "--url", url])
    assert result.exit_code == 2
    assert result.output.startswith(f"headrace: {url} is not a gateway's address")


RESPONSE = "resp_01JD0000000000000000000000"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "say which"),
        (["x"], "'x' is no response id"),
        ([RESPONSE, "--since", "1h"], "do not go together"),
        (["--since", "soon"], "neither a time"),
        ([RESPONSE, "--speed", "2", "--rate", "2"], "exclude each other"),
    ],
)
def test_replay_asks_for_what_it_can_do(arguments: list[str], problem: str) -> None:
    result = CliRunner().invoke(headrace, ["replay", *arguments])
    assert (result.exit_code, problem in result.output) == (2, True), result.output


@pytest.mark.parametrize("name", ["redrive", "drop"])
def test_all_dead_letters_must_be_asked_for(name: str) -> None:
    result = CliRunner().invoke(headrace, ["dead", name])
    assert result.exit_code == 2
    assert result.output == "headrace: say which: response ids, options that select, or --all\n"
