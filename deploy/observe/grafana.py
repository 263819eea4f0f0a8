"""Dashboards as Grafana imports them, made from what ``boards`` declares. Must not know any metric."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.observe.boards import DASHBOARDS
from deploy.observe.panels import Dashboard, Panel, Query

FOLDER = Path(__file__).parent / "dashboards"
SCHEMA_VERSION = 39  # of Grafana 11; later ones migrate it as they load it
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, object]


def files() -> dict[str, str]:
    """The text of each dashboard by file name."""
    return {
        f"{board.uid}.json": json.dumps(dashboard(board), indent=2, ensure_ascii=False) + "\n"
        for board in DASHBOARDS
    }


def dashboard(board: Dashboard) -> Json:
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["headrace"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "links": [_links()],
        "templating": {"list": [_datasource(), _model()]},
        "annotations": {"list": []},
        "panels": list(_placed(board.panels)),
    }


def _links() -> Json:
    return {
        "title": "Headrace",
        "type": "dashboards",
        "icon": "external link",
        "tooltip": "",
        "url": "",
        "tags": ["headrace"],
        "asDropdown": True,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model() -> Json:
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": "label_values(headrace_workers_alive, model)",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(panels: Iterable[Panel]) -> Iterator[Json]:
    """From left to right, in rows as high as their first panel."""
    x = y = height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + height
        if x == 0:
            height = panel.height
        yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
        x += panel.width


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "targets": [_target(query, n) for n, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _target(query: Query, number: int) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": True,
    }


def _field(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    field: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        field["custom"] = {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.red_from is None else "line"},
        }
    return field


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
    },
}
