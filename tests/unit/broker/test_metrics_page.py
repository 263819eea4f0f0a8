"""deploy/METRICS.md is what an operator knows of the metrics: it and the registry say the same."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

import broker.metrics  # noqa: F401  # declares them

PAGE = Path(__file__).parents[3] / "deploy" / "METRICS.md"
ROW = re.compile(r"^\| `(headrace_\w+)` \| (\w+)(?:: ([\w, ]+))? \| (.+) \|$", re.M)
OF_SEVERAL_PROCESSES = "headrace_gateway_process_up"  # told by gateway/siblings.py, in no registry


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = ROW.findall(PAGE.read_text())
    assert len(rows) == len({name for name, *_ in rows}), "a metric stands twice on the page"
    return {name: (kind, tuple(labels.split(", ")) if labels else ()) for name, kind, labels, _ in rows}


def declared() -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {}
    for collector in REGISTRY._collector_to_names:
        for family in collector.describe() if hasattr(collector, "describe") else ():
            if family.name.startswith("headrace_"):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                found[name] = (family.type, tuple(collector._labelnames))  # type: ignore[attr-defined]
    return found


def test_the_page_tells_of_every_metric_and_of_no_other() -> None:
    page = documented()
    page.pop(OF_SEVERAL_PROCESSES)
    assert len(page) > 50
    assert page == declared()
