"""Configuration from a file and the environment, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.settings import ConfigError, load, masked_urls, read
from schemas.config import Config


def errors_of(path: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, environ)
    return str(raised.value).splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def test_nothing_set_gives_the_defaults() -> None:
    assert load(None, {"PATH": "/bin"}) == Config()


def test_a_variable_wins_over_the_file(file: Path) -> None:
    file.write_text('[nats]\nurl = "nats://file:4222"\nreplicas = 3\n')
    loaded = read(file, {"HEADRACE_NATS__URL": "nats://env:4222"})
    assert loaded.config.nats.url == "nats://env:4222"
    assert loaded.config.nats.replicas == 3
    assert loaded.origins == {("nats", "url"): "HEADRACE_NATS__URL", ("nats", "replicas"): str(file)}


def test_the_file_may_be_named_by_a_variable(file: Path) -> None:
    file.write_text("[gateway]\nport = 9000\n")
    assert load(None, {"HEADRACE_CONFIG": str(file)}).gateway.port == 9000


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("HEADRACE_GATEWAY__PORT", "0", "gateway", "port", 0),
        ("HEADRACE_GATEWAY__ALLOW_UNAUTHENTICATED", "true", "gateway", "allow_unauthenticated", True),
        ("HEADRACE_NATS__ACK_WAIT_S", "2", "nats", "ack_wait_s", 2.0),
        ("HEADRACE_WORKER__ENGINE", "sim", "worker", "engine", "sim"),
        ("HEADRACE_SECURITY__SECRET", "1234567890123456", "security", "secret", "1234567890123456"),
    ],
)
def test_variables_are_read_by_the_key_s_type(
    variable: str, text: str, section: str, key: str, value: object
) -> None:
    read_value = getattr(getattr(load(None, {variable: text}), section), key)
    assert read_value == value
    assert type(read_value) is type(value)


def test_engine_arguments_are_toml_values_or_text() -> None:
    environ = {
        "HEADRACE_VLLM__MAX_NUM_SEQS": "16",
        "HEADRACE_VLLM__ENFORCE_EAGER": "true",
        "HEADRACE_VLLM__DTYPE": "float32",
        "HEADRACE_VLLM__REVISION": '"5"',
        "HEADRACE_VLLM__ALLOWED": "[1, 2]",
        "HEADRACE_VLLM__TWO_LINES": "1\nother = 2",
    }
    assert load(None, environ).vllm == {
        "max_num_seqs": 16,
        "enforce_eager": True,
        "dtype": "float32",
        "revision": "5",
        "allowed": [1, 2],
        "two_lines": "1\nother = 2",
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[gatway]\nport = 1\n", "gatway: unknown section; did you mean gateway?"),
        ("[gateway]\nprot = 1\n", "gateway.prot: unknown key; did you mean port?"),
        (
            "[redis]\nzzzz = 1\n",
            "redis.zzzz: unknown key; known: url, timeout_s",
        ),
        ("port = 1\n", "port: unknown key outside a section"),
        ("nats = 1\n", "nats: expected a table, [nats]"),
        ("[gateway]\nport = 70000\n", "gateway.port: Expected `int` <= 65535"),
        ('[gateway]\nport = "80"\n', "gateway.port: Expected `int`, got `str`"),
        ("[nats]\nack_wait_s = inf\n", "nats.ack_wait_s: Expected a finite number"),
        ('[worker]\nengine = "vlm"\n', 'worker.engine: Expected one of "vllm", "sim"'),
        ("[worker\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(file: Path, text: str, error: str) -> None:
    file.write_text(text)
    (line,) = errors_of(file, {})
    assert line.startswith(f"{file}: {error}")


@pytest.mark.parametrize(
    ("variable", "text", "error"),
    [
        ("HEADRACE_NATS_URL", "x", "unknown variable; did you mean HEADRACE_NATS__URL?"),
        ("HEADRACE_NATS__ULR", "x", "unknown variable; did you mean HEADRACE_NATS__URL?"),
        ("HEADRACE_NAT__URL", "x", "unknown variable; did you mean HEADRACE_NATS__URL?"),
        ("HEADRACE_VLLM__", "x", "unknown variable"),
        ("HEADRACE_GATEWAY__PORT", "http", "Expected `int`, got `str`"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_it(variable: str, text: str, error: str) -> None:
    (line,) = errors_of(None, {variable: text})
    assert line.startswith(f"{variable}: {error}")


def test_every_mistake_is_shown_at_once(file: Path) -> None:
    file.write_text("[gateway]\nprot = 1\nport = -1\n")
    assert len(errors_of(file, {"HEADRACE_SIM__SLOTS": "0"})) == 3


def test_no_message_holds_a_value(file: Path) -> None:
    file.write_text("[security]\nsecret = 123456789\n[gateway]\nport = 987654321\n")
    text = "\n".join(errors_of(file, {"HEADRACE_NATS__REPLICAS": "s3cret"}))
    assert "12345" not in text
    assert "98765" not in text
    assert "s3cret" not in text


def test_a_missing_file_is_an_error(file: Path) -> None:
    assert errors_of(file, {}) == [f"{file}: cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "[nats]\nreplies_max_age_s = 599\n",
            "nats.replies_max_age_s: 599 is less than twice gateway.deadline_s (300): ",
        ),
        (
            "[nats]\njobs_max_age_s = 900\n[gateway]\ndeadline_s = 1000\n",
            "nats.jobs_max_age_s: 900 is less than gateway.deadline_s (1000): ",
        ),
        (
            "[worker]\npresence_interval_s = 16\n",
            "{file}: worker.presence_interval_s: Expected `float` <= 15",
        ),
    ],
)
def test_what_would_cut_a_response_short_is_refused(file: Path, text: str, error: str) -> None:
    file.write_text(text)
    (line,) = errors_of(file, {})
    assert line.startswith(error.format(file=file))


def test_the_longest_deadline_goes_with_the_default_ages(file: Path) -> None:
    assert load(None, {"HEADRACE_GATEWAY__DEADLINE_S": "3600"}).gateway.deadline_s == 3600


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://h:4222,h2:4222", "nats://h:4222,h2:4222"),
        ("nats://u:p@ss@h:4222", "nats://****@h:4222"),
        ("nats://u:1/2@h:4222", "nats://****@h:4222"),
        ("redis://:p,w@h/0", "redis://****@h/0"),
        ("token@h:4222, u:pw@h2", "****@h:4222, ****@h2"),
        ("nats://u:pw@h1,tls://token@h2", "nats://****@h1,tls://****@h2"),
    ],
)
def test_addresses_are_shown_without_credentials(text: str, shown: str) -> None:
    assert masked_urls(text) == shown


def test_a_pod_s_service_variables_are_not_settings() -> None:
    environ = {
        "HEADRACE_PORT": "tcp://10.0.0.1:80",
        "HEADRACE_GATEWAY_PORT": "tcp://10.0.0.1:8080",
        "HEADRACE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_GATEWAY_SERVICE_PORT_HTTP": "8080",
        "HEADRACE_GATEWAY_PORT_8080_TCP_ADDR": "10.0.0.1",
        "HEADRACE_CACHE_DIR": "/var/cache",
    }
    assert load(None, environ) == Config()
