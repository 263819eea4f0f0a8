"""Nonsense in the routing section is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.settings import ConfigError, load
from schemas.config import Candidate

GOOD = """
[routing]
aliases = {"gpt-4o-mini" = "small", "best" = "auto"}
fallback = {"large" = ["small"]}
[[routing.auto]]
model = "large"
max_queue_ms = 500
[[routing.auto]]
model = "small"
"""


def test_a_policy_is_read(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text(GOOD)
    routing = load(tmp_path / "h.toml", {}).routing
    assert routing.aliases == {"gpt-4o-mini": "small", "best": "auto"}
    assert routing.auto == (Candidate(model="large", max_queue_ms=500), Candidate(model="small"))
    assert routing.fallback == {"large": ("small",)}


def test_variables_are_written_as_in_toml() -> None:
    routing = load(
        None,
        {
            "HEADRACE_ROUTING__AUTO": '[{model = "large", max_rtt_ms = 80}, {model = "small"}]',
            "HEADRACE_ROUTING__ALIASES": '{"gpt-4o" = "large"}',
        },
    ).routing
    assert routing.auto[0] == Candidate(model="large", max_rtt_ms=80)
    assert routing.aliases == {"gpt-4o": "large"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('aliases = {"a" = "b", "b" = "c"}', "leads to the alias 'b'"),
        ('aliases = {"auto" = "b"}', "the policy's own name"),
        ('aliases = {"best" = "auto"}', "routing.auto has no candidates"),
        ('auto = [{model = "auto"}]', "is not a served name"),
        ('auto = [{model = "a"}, {model = "a"}]', "stands there twice"),
        ('auto = [{model = "a", max_queue = 3}]', "max_queue"),
        ('auto = [{model = "a", max_queue_ms = -1}]', ">= 0"),
        ("auto = [{max_queue_ms = 1}]", "model"),
        ('fallback = {"a" = ["a"]}', "list other models"),
        ('fallback = {"a" = []}', "list other models"),
        ('fallback = {"auto" = ["a"]}', "is not a served name"),
    ],
)
def test_nonsense_is_refused(settings: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text(f"[routing]\n{settings}\n")
    with pytest.raises(ConfigError, match="routing") as refused:
        load(tmp_path / "h.toml", {})
    assert said in str(refused.value)


def test_auto_as_the_default_needs_a_policy() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.default_model"):
        load(None, {"HEADRACE_GATEWAY__DEFAULT_MODEL": "auto"})
