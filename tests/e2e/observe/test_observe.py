"""What an operator's Prometheus and Grafana see of a live system: every query of every panel returns data
under load. That every alert fires where its fault is provoked is ``provoke_alerts.py``, run by hand."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from deploy.observe.grafana import FOLDER
from tests.e2e.observe.prometheus import alert_rules, programs
from tests.e2e.observe.world import MODELS, POISON, World
from tests.e2e.stack import wait_until

METRICS_PAGE = Path(__file__).parents[3] / "deploy/METRICS.md"

pytestmark = pytest.mark.timeout(240)


def queries() -> dict[str, str]:
    """Of all panels as Grafana would send them, with where they stand."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$model", ".*")
                for window in ("$__rate_interval", "$__range"):
                    expression = expression.replace(window, "2m")
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = expression
    return found


def test_rules_are_timed_as_they_say() -> None:
    """promtool: each alert waits its time, and no longer."""
    tests = Path(__file__).parent / "alerts_test.yml"
    checked = subprocess.run(
        [programs() / "promtool", "test", "rules", tests], capture_output=True, text=True, cwd=tests.parent
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    named = {line.split(":")[1].strip() for line in tests.read_text().splitlines() if "alertname:" in line}
    assert named == set(alert_rules())


def test_the_exporter_of_valkey_tells_what_the_page_says(world: World) -> None:
    """Names and arguments as in deploy/METRICS.md, on the server that `headrace up` runs."""
    assert world.answers()
    named = set(re.findall(r"`(redis_\w+)`", METRICS_PAGE.read_text())) - {"redis_exporter"}
    assert len(named) > 5
    wait_until(lambda: bool(world.prometheus.query("redis_up == 1")), timeout_s=30, what="Valkey, scraped")
    assert {name for name in named if not world.prometheus.query(name)} == set()
    assert world.prometheus.query('redis_commands_processed_total{job="valkey"} > 0')


def test_every_query_of_every_panel_returns_data(world: World) -> None:
    world.busy(2, lambda: world.stream("acme"))
    world.busy(1, lambda: world.stream("globex", model=MODELS[1]))
    world.busy(1, lambda: world.stream("globex", leave_after=3, max_output_tokens=300))
    world.busy(1, lambda: world.ask("acme", input="the same again", temperature=0))
    world.busy(1, lambda: world.ask("limited") and time.sleep(0.3))
    long = [world.busy(1, lambda: world.stream("acme", max_output_tokens=400)) for _ in range(6)]
    world.resume("acme", world.stream("acme"))
    world.stack.kill_worker_process()
    poisoned = world.ask("globex", model=MODELS[1], input=f"say {POISON} now", timeout_s=90)
    assert poisoned["error"]["code"] == "poison", poisoned
    for stop in long:
        stop.set()
    empty = queries()

    def all_answered() -> bool:
        for name, expression in list(empty.items()):
            if world.prometheus.query(expression):
                del empty[name]
        return not empty

    try:
        wait_until(all_answered, timeout_s=90, what="data in every panel")
    except AssertionError:
        raise AssertionError("no data:\n" + "\n".join(f"{n}: {q}" for n, q in empty.items())) from None
