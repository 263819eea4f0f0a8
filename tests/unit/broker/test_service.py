"""What a process tells of its endpoints comes from its own metrics."""

from __future__ import annotations

from broker.metrics import RequestMetrics
from broker.service import Endpoint, endpoint_stats

ENDPOINT = Endpoint(name="jobs", subject="hr.job.m.>", queue_group="m")


def test_an_endpoint_counts_what_the_metrics_count() -> None:
    side = RequestMetrics("test_service", "here")
    nothing = endpoint_stats(ENDPOINT, side, failures=("failed",), data={})
    assert (nothing.num_requests, nothing.num_errors, nothing.average_processing_time) == (0, 0, 0)
    for model, outcome, count in (("a", "completed", 3), ("b", "completed", 2), ("b", "failed", 1)):
        side.requests.labels(model=model, outcome=outcome).inc(count)
    for model, spent_s in (("a", 0.5), ("b", 1.5)):
        side.end_to_end_s.labels(model=model).observe(spent_s)
    stats = endpoint_stats(ENDPOINT, side, failures=("failed",), data={"slots": 4})
    assert (stats.name, stats.subject, stats.queue_group) == ("jobs", "hr.job.m.>", "m")
    assert (stats.num_requests, stats.num_errors) == (6, 1)
    assert (stats.processing_time, stats.average_processing_time) == (2_000_000_000, 1_000_000_000)
    assert stats.data == {"slots": 4}
