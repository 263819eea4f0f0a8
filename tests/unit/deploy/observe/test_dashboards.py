"""Dashboards, rules and runbook hold together, and with the metrics that there are. Whether their queries
find anything is tried in tests/e2e/observe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import REGISTRY

import broker.metrics  # noqa: F401  # declares them all
from deploy.observe.grafana import FOLDER, files

DEPLOY = Path(__file__).parents[4] / "deploy"
RULES = sorted((DEPLOY / "observe/rules").glob("*.yml"))
DASHBOARDS = sorted(FOLDER.glob("*.json"))


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def expressions() -> list[str]:
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [
        rule["expr"] for rule in rules()
    ]


def test_the_files_are_those_that_are_declared() -> None:
    """`python -m deploy.observe` writes them."""
    assert {path.name: path.read_text() for path in DASHBOARDS} == files()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafana_knows_every_field(path: Path) -> None:
    """Its schema reads the dashboard and writes it again: what it does not know would be lost."""
    register_default_plugins()
    written = json.loads(path.read_text())
    again = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert known(written, again) == written


def known(written: Any, again: Any) -> Any:
    """``again`` without what the schema adds."""
    if isinstance(written, dict) and isinstance(again, dict):
        return {key: known(value, again[key]) for key, value in written.items() if key in again}
    if isinstance(written, list) and isinstance(again, list) and len(written) == len(again):
        return [known(*pair) for pair in zip(written, again, strict=True)]
    return again


def test_panels_do_not_overlap() -> None:
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{path.stem}: {panel['title']}"
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_every_metric_that_is_asked_for_exists() -> None:
    there = {name for collector in REGISTRY._collector_to_names.values() for name in collector}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = set()
    for expression in expressions():
        asked |= (
            set(re.findall(r"\bmodel:\w+:\w+|\binstance:\w+:\w+|\bstream:\w+:\w+", expression)) - recorded
        )
        asked |= set(re.findall(r"(?<![:\w])headrace_\w+(?![:\w])", expression))
    assert asked
    assert {name for name in asked if name not in there} == set()


def test_every_alert_has_a_severity_and_an_entry_in_the_runbook() -> None:
    entries = set(re.findall(r"^### (\w+)$", (DEPLOY / "RUNBOOK.md").read_text(), re.MULTILINE))
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{name.lower()}"
    assert {entry for entry in entries if entry.startswith("Headrace")} == set(alerts)
