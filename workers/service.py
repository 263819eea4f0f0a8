"""What a worker tells who asks NATS for services: `nats service info headrace-worker`."""

from __future__ import annotations

from collections.abc import Callable

from broker import subjects
from broker.connection import Broker
from broker.metrics import WORKER
from broker.service import Endpoint, EndpointStats, Service, answer_services, endpoint_stats
from schemas.presence import WorkerCard

NAME = "headrace-worker"


async def answer(broker: Broker, card: Callable[[], WorkerCard]) -> None:
    """``card``: what it tells gateways, as of now."""
    known = card()
    jobs = Endpoint(
        name="jobs",
        subject=subjects.jobs_of_model(known.model),
        queue_group=known.model,  # not NATS's: the workers of a model share its consumers
        metadata={"what": "jobs pulled from the stream JOBS"},
    )
    service = Service(
        name=NAME,
        id=known.worker,
        version=known.version,
        description=f"Headrace worker: {known.model_name}, jobs in, tokens out",
        metadata={
            "model": known.model_name,
            "model_token": known.model,
            "revision": known.revision,
            "engine": known.engine,
            "slots": str(known.slots),
            "max_model_len": str(known.max_model_len),
            "host": known.host,
            "pid": str(known.pid),
        },
        endpoints=(jobs,),
    )

    def stats() -> list[EndpointStats]:
        now = card()
        data: dict[str, object] = {
            "state": now.state,
            "slots": now.slots,
            "running": now.running,
            "waiting": now.waiting,
            "tokens_per_s": now.tokens_per_s,
            "kv_cache_usage": now.kv_cache_usage,
        }
        return [endpoint_stats(jobs, WORKER, failures=("failed",), data=data)]

    await answer_services(broker, service, stats)
