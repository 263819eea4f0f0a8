"""What a gateway tells who asks NATS for services: `nats service info headrace-gateway`."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version

from broker import subjects
from broker.connection import Broker
from broker.metrics import GATEWAY
from broker.service import Endpoint, EndpointStats, Service, answer_services, endpoint_stats, total
from gateway.pipeline import Pipeline

NAME = "headrace-gateway"


async def answer(broker: Broker, pipeline: Pipeline, url: str) -> None:
    """``url``: where it listens for clients."""
    responses = Endpoint(
        name="responses",
        subject=subjects.replies_of_gateway(pipeline.gateway),
        metadata={"what": "responses accepted here; their reply logs stand under the subject"},
    )
    service = Service(
        name=NAME,
        id=pipeline.gateway,
        version=version("headrace"),
        description="Headrace gateway: HTTP and WebSocket in, jobs out",
        metadata={"url": url, "host": socket.gethostname(), "pid": str(os.getpid())},
        endpoints=(responses,),
    )

    def stats() -> list[EndpointStats]:
        ready, reason = pipeline.ready()
        data: dict[str, object] = {
            "ready": ready,
            "state": reason,
            "models": [card.name for card in pipeline.models()],
            "running": total(GATEWAY.running),
            "waiting": total(GATEWAY.waiting),
        }
        return [endpoint_stats(responses, GATEWAY, failures=("failed",), data=data)]

    await answer_services(broker, service, stats)
