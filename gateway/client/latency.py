"""Where an answer's time went, as its client sees it. Pure. Must not know how the answer came."""

from __future__ import annotations

from gateway.client.errors import JsonObject

PARTS = ("edge", "queue", "prefill", "decode", "reconnect", "transport")  # as gateways tell them


def latency_parts(response: JsonObject, measured_ms: float) -> dict[str, float]:
    """Milliseconds by part, which add up to ``measured_ms``: from the request to the last event, on the
    client's own clock. What is none of the service's is ``network``: the way there and back, and what this
    client waited for a connection where that held its answer up. Empty where the gateway tells nothing."""
    timings = response.get("timings")
    if not isinstance(timings, dict):
        return {}
    parts = {part: float(timings.get(f"{part}_ms") or 0.0) for part in PARTS}
    return {**parts, "network": max(0.0, measured_ms - sum(parts.values()))}
