"""What there is of a response by its id, whichever gateway accepted it: read, followed, cancelled, deleted.

Every look checks the tenant; another's response is like one that does not exist. Must not know how a response
is accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from broker.connection import Broker
from broker.jetstream import ApiError
from broker.jobs import find_job
from broker.replylog import ReplyLog
from gateway import closer
from gateway.catalog import Catalog
from gateway.ended import EndedResponses
from gateway.erasure import erase
from gateway.in_flight import InFlight
from gateway.live import Live
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import ResponseId, TenantId
from schemas.job import Job
from schemas.reply import Closed

log = logging.getLogger(__name__)


class Lookup:
    """``forget_context``: of a stored response, for those who would go on from it."""

    def __init__(
        self,
        broker: Broker,
        catalog: Catalog,
        in_flight: InFlight,
        ended: EndedResponses,
        *,
        forget_context: Callable[[TenantId, ResponseId], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._catalog = catalog
        self._in_flight = in_flight
        self._ended = ended
        self._forget_context = forget_context

    def find(self, response: ResponseId, tenant: TenantId) -> Live | None:
        """A response in flight here, or ended a short while ago. None for another tenant's."""
        if self._ended.is_dropped(response):
            return None
        live = self._in_flight.find(response) or self._ended.find(response)
        return live if live is not None and live.tenant == tenant else None

    async def find_anywhere(self, response: ResponseId, tenant: TenantId) -> Live | None:
        """As ``attach``; None where there is no such response."""
        live = self.find(response, tenant)
        if live is not None:
            return live
        job = await self._find_job(response, tenant)
        if job is None:
            return None
        tokenizer = await self.tokenizer_of(job)
        # A moment later it may have come to live here, or to an end.
        return self.find(response, tenant) or await self._in_flight.follow(job, tokenizer)

    async def attach(self, response: ResponseId, tenant: TenantId) -> Live:
        """A response of any gateway, read up to now, and followed from now on if it has not ended. Raises
        ``HeadraceError``: response_not_found, broker_unavailable, and what getting its tokenizer raises."""
        live = await self.find_anywhere(response, tenant)
        if live is None:
            raise _not_found(response)
        return live

    async def find_request(self, response: ResponseId, tenant: TenantId) -> Job:
        """What was asked. Raises ``HeadraceError``: response_not_found, broker_unavailable."""
        job = await self._find_job(response, tenant)
        if job is None:
            raise _not_found(response)
        return job

    async def cancel(self, response: ResponseId, tenant: TenantId) -> None:
        """Close the log, of whichever gateway; the terminal update comes from the log, in stream order. No
        effect on an ended one. Raises ``HeadraceError``: response_not_found, broker_unavailable."""
        live = self.find(response, tenant)
        if live is not None and live.end is not None:
            return
        try:
            job = live.job if live is not None else await self.find_request(response, tenant)
            if live is None and job.held:  # what was said so far is in another log
                live = await self.attach(response, tenant)
            if (live is not None and live.end is not None) or (live is None and await self._is_over(job)):
                return
            ids = None if live is None else live.lent_ids()
            await closer.close(self._broker, job, Closed(reason="cancelled", ids=ids))
        except ApiError as error:
            raise refused(error) from error

    async def delete(self, response: ResponseId, tenant: TenantId) -> None:
        """It is cancelled if it runs, and then nobody finds it any more, at any gateway. Raises
        ``HeadraceError``: response_not_found, broker_unavailable, context_unavailable."""
        job = await self.find_request(response, tenant)
        if job.presentation.store and job.presentation.api == "responses":
            await self._forget_context(tenant, response)
        try:
            await erase(self._broker, job)
        except ApiError as error:
            raise refused(error) from error
        self.forget(response)

    def forget(self, response: ResponseId) -> None:
        """It was deleted, here or elsewhere."""
        self._ended.drop(response, time.monotonic())

    async def tokenizer_of(self, job: Job) -> ChatTokenizer:
        """Raises ``HeadraceError``."""
        return await self._catalog.tokenizer_of(job.model)

    async def _find_job(self, response: ResponseId, tenant: TenantId) -> Job | None:
        try:
            job = await find_job(self._broker, response)
        except ApiError as error:
            raise refused(error) from error
        return job if job is not None and job.tenant == tenant else None

    async def _is_over(self, job: Job) -> bool:
        """Of another gateway's response; its log may have been deleted by its age."""
        reply_log = ReplyLog(self._broker, job.gateway, job.response, job.session)
        return not closer.is_of_use(job) or (await reply_log.read()).end is not None


def refused(error: ApiError) -> HeadraceError:
    log.warning("JetStream refused: %s", error)
    return HeadraceError("broker_unavailable", "The queue cannot be used right now: try again.")


def _not_found(response: ResponseId) -> HeadraceError:
    return HeadraceError("response_not_found", f"There is no response {response}.")
