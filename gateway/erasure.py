"""Taking a response away at its client's wish: its job, its log, and what gateways keep of it. ADR 0015.

Must not know who may ask for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg

from broker import jetstream, subjects
from broker.connection import Broker
from broker.replylog import ReplyLog
from gateway import closer
from schemas.ids import ResponseId
from schemas.job import Job
from schemas.reply import DELETED, Closed

log = logging.getLogger(__name__)


async def erase(broker: Broker, job: Job) -> None:
    """Once it returns, no gateway finds it. The job goes last: until then, a further try begins anew. The
    ``Closed`` stays in the log, which has no content then: it ends what is running, and a worker that holds
    the job finds it. Raises ``HeadraceError(broker_unavailable)``, ``ApiError``."""
    reply_log = ReplyLog(broker, job.gateway, job.response, job.session)
    closed_seq = await reply_log.close(Closed(reason="cancelled", code=DELETED))
    await closer.hint(broker, job.response)
    prefix = subjects.reply(job.gateway, job.response, job.session)
    await jetstream.purge(broker, subjects.REPLIES, f"{prefix}.>", before_seq=closed_seq)
    await jetstream.purge(broker, subjects.DEAD, subjects.dead(job.model, job.response))
    await jetstream.purge(broker, subjects.JOBS, subjects.job(job))
    try:
        await broker.nc.publish(subjects.erased(job.response), b"")
    except nats.errors.Error as error:  # the others forget what they keep when they are back
        log.debug("that %s is erased was not told: %s", job.response, error)


class Erased:
    """What any gateway erases, and when that may have been missed: a gateway that was cut off must take
    nothing that it keeps for existing."""

    def __init__(
        self, broker: Broker, *, on_erased: Callable[[ResponseId], None], on_missed: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._on_erased = on_erased
        self._on_missed = on_missed

    async def run(self) -> None:
        """Never returns."""
        subscription = await self._broker.nc.subscribe(subjects.erased(ResponseId("*")), cb=self._heard)
        self._broker.on_reconnect(self._on_missed)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._broker.off_reconnect(self._on_missed)
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("unsubscribe: %s", error)

    async def _heard(self, msg: Msg) -> None:
        self._on_erased(ResponseId(msg.subject.rpartition(".")[2]))
