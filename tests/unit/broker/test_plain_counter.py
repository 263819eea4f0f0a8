from __future__ import annotations

from prometheus_client import REGISTRY, generate_latest

from broker.plain_counter import PlainCounter


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_a_counter_without_labels_is_shown_from_the_beginning() -> None:
    counter = PlainCounter("test_plain", "of a test")
    assert shown("test_plain_total") == 0
    counter.labels().value += 3
    counter.labels().value += 4
    assert shown("test_plain_total") == 7
    assert b"# TYPE test_plain_total counter" in generate_latest(REGISTRY)


def test_each_combination_of_labels_counts_for_itself() -> None:
    counter = PlainCounter("test_labelled", "of a test", ["way", "size"])
    counter.labels(way="in", size="s").value += 1
    counter.labels(size="s", way="in").value += 1
    counter.labels(way="out", size="s").read = lambda: 40
    assert shown("test_labelled_total", way="in", size="s") == 2
    assert shown("test_labelled_total", way="out", size="s") == 40
    assert shown("test_labelled_total", way="out", size="l") is None
