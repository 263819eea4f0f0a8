"""What an operator's Prometheus finds after some traffic."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stack import Stack, wait_until

HISTOGRAMS = ("time_to_first_token", "inter_token_latency", "end_to_end_latency", "queue_wait")


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value by sample name and its ``outcome`` or ``le`` label, model-labelled ones only."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("headrace_") and "model" in sample.labels:
                key = sample.labels.get("outcome", sample.labels.get("le", ""))
                found[sample.name, key] = sample.value
    return found


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_metrics_count_what_was_done(stack: Stack, kind: str) -> None:
    before = samples(stack.metrics(kind))
    for count in range(5):
        request = {"input": f"question {count}", "max_output_tokens": 20, "ignore_eos": True}
        assert httpx.post(f"{stack.url}/v1/responses", json=request, timeout=30).status_code == 200

    prefix = f"headrace_{kind}"

    def grown(name: str, key: str = "") -> float:
        return samples(stack.metrics(kind)).get((name, key), 0) - before.get((name, key), 0)

    def counted() -> bool:
        return grown(f"{prefix}_requests_total", "incomplete") == 5

    wait_until(counted, timeout_s=10, what="5 responses counted")
    assert grown(f"{prefix}_completion_tokens_total") == 100
    assert grown(f"{prefix}_prompt_tokens_total") > 5 * len("question 0")
    for name in HISTOGRAMS:
        assert grown(f"{prefix}_{name}_seconds_count") >= 5, name
        buckets = [
            key for sample, key in samples(stack.metrics(kind)) if sample == f"{prefix}_{name}_seconds_bucket"
        ]
        assert len(buckets) >= 12, name
    after = samples(stack.metrics(kind))
    assert after[f"{prefix}_requests_running", ""] == 0
    assert after[f"{prefix}_requests_waiting", ""] == 0
