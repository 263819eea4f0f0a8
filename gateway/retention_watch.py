"""Whether the broker keeps jobs and reply logs for as long as a response may take; while it does not, nothing
new is accepted, so that what runs keeps the head of its log. Must not know requests.
"""

from __future__ import annotations

import asyncio
import logging
import math

from broker import metrics, subjects
from broker.connection import Broker
from broker.jetstream import ApiError
from broker.retention import Retention, retention
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)

LOOK_S = 1.0
FULL = 0.8  # what runs may write the rest: a stream at its limit drops its oldest messages
DEADLINES = 2  # that a stream reaches back: to run, and to be resumed for as long again
MAX_RETRY_S = 60
_KEYS = {
    subjects.REPLIES: "nats.replies_max_bytes",
    subjects.JOBS: "nats.jobs_max_bytes or nats.jobs_max_messages",
}


class RetentionWatch:
    """``deadline_s``: the longest that a response of this gateway may have."""

    def __init__(self, broker: Broker, deadline_s: float) -> None:
        self._broker = broker
        self._need_s = DEADLINES * deadline_s
        self._squeezed: dict[str, Retention] = {}

    def check(self) -> None:
        """Raises ``HeadraceError``: storage_full."""
        if not self._squeezed:
            return
        metrics.REFUSALS.labels(limit="storage").inc()
        reach_s = min(found.reach_s for found in self._squeezed.values())
        raise HeadraceError(
            "storage_full",
            "The service has no room to keep another answer until it is read: try again later.",
            retry_after_s=max(1, min(MAX_RETRY_S, math.ceil(self._need_s - reach_s))),
        )

    async def run(self) -> None:
        """Never returns."""
        while True:
            for stream in _KEYS:
                try:
                    self._looked(stream, await retention(self._broker, stream))
                except (HeadraceError, ApiError) as error:
                    log.debug("stream %s cannot be looked at: %s", stream, error)
            await asyncio.sleep(LOOK_S)

    def _looked(self, stream: str, found: Retention) -> None:
        metrics.STREAM_FILL.labels(stream=stream).set(found.fill)
        metrics.STREAM_NEEDED.labels(stream=stream).set(found.needed_s(self._need_s))
        was = self._squeezed.pop(stream, None)
        if found.is_squeezed(self._need_s, FULL):
            self._squeezed[stream] = found
        if (was is None) == (stream not in self._squeezed):
            return
        if was is None:
            log.warning(
                "stream %s is %.0f %% full and reaches back %.0f s, %.0f are needed: nothing is accepted "
                "until it does; raise %s, or lower gateway.deadline_s",
                *(stream, 100 * found.fill, found.reach_s, self._need_s, _KEYS[stream]),
            )
        else:
            log.warning("stream %s keeps long enough again: requests are accepted", stream)
