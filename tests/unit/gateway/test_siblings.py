"""One exposition of several processes'."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.siblings import merged


def _told(asked: int) -> str:
    registry = CollectorRegistry()
    Gauge("open", "No labels", registry=registry).set(asked)
    counter = Counter("asked", "Labels, and text { } in one", ["model"], registry=registry)
    counter.labels(model='a "b" {c} d').inc(asked)
    Histogram("took", "Seconds", registry=registry, buckets=(1.0,)).observe(0.5)
    return generate_latest(registry).decode()


def test_each_sample_is_under_its_process_and_each_family_once() -> None:
    families = list(text_string_to_metric_families(merged({2: _told(7), 1: _told(3)})))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    found = {
        (sample.name, sample.labels["process"]): (sample.value, sample.labels.get("model"))
        for family in families
        for sample in family.samples
    }
    assert found["open", "1"] == (3, None)
    assert found["open", "2"] == (7, None)
    assert found["asked_total", "2"] == (7, 'a "b" {c} d')
    assert found["took_count", "1"] == (1, None)
    assert {family.name: family.type for family in families}["took"] == "histogram"


def test_one_that_does_not_answer_is_down() -> None:
    families = {
        family.name: family for family in text_string_to_metric_families(merged({1: _told(1), 2: None}))
    }
    up = {s.labels["process"]: s.value for s in families["headrace_gateway_process_up"].samples}
    assert up == {"1": 1, "2": 0}
    assert {s.labels["process"] for s in families["open"].samples} == {"1"}
