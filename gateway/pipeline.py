"""From a checked request to an accepted response, and from the reply log to its readers.

Owns the responses that live on this gateway. Must not know HTTP, WebSockets or any API's JSON.
"""

from __future__ import annotations

from redis.asyncio import Redis

from broker.connection import Broker
from gateway.catalog import ModelCard
from gateway.generation import Generation
from gateway.live import Live
from schemas.config import Config
from schemas.ids import GatewayId, ResponseId, TenantId


class Pipeline:
    """``gateway``: this process's id. Use: ``async with TaskGroup`` → ``run()`` as a task, then ``submit``."""

    gateway: GatewayId

    def __init__(self, config: Config, broker: Broker, redis: Redis) -> None: ...

    async def run(self) -> None:
        """Tail the logs, follow the roster; returns never, raises when the broker is lost for good."""
        raise NotImplementedError

    async def submit(self, generation: Generation) -> Live:
        """Accept a response. Raises ``HeadraceError`` on refusal; once it returns, the response is stored
        and reaches one terminal update. Attach a reader within the grace time."""
        raise NotImplementedError

    async def cancel(self, response: ResponseId, tenant: TenantId) -> None:
        """Close the log; the terminal update comes from the log in stream order. No effect on an ended one.
        Raises ``HeadraceError`` response_not_found, broker_unavailable."""
        raise NotImplementedError

    def find(self, response: ResponseId, tenant: TenantId) -> Live | None:
        """A response in flight here, or ended a short while ago. None for another tenant's."""
        raise NotImplementedError

    def models(self) -> list[ModelCard]:
        raise NotImplementedError

    def ready(self) -> tuple[bool, str]:
        """Whether a chat would be answered now, and if not, why."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Refuse new responses (going_away) and wait for those in flight, ``gateway.drain_s`` at most."""
        raise NotImplementedError
