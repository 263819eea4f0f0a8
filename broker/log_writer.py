"""Writes one attempt's part of a reply log: engine tokens in, messages to publish out. Pure.

Tokens are published without waiting for an ack. What makes that safe: now and then one message is
confirmed, after a miss or a reconnect everything since the last confirmed token is sent again, and
``Finished`` repeats them all. Must not know how messages travel, nor what the time is.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.ids import Fence
from schemas.reply import Failed, Finished, FinishReason, Timings, TokenLogprobs, Tokens, Usage

MESSAGE_TOKENS = 1024  # with 20 log probabilities each about 350 KB, well below NATS's default limit of 1 MB


class LogWriter:
    """``fence``: stream sequence of this attempt's acked Started. ``prior_ids``: what the log holds
    before it; the first new token stands at offset ``len(prior_ids)``."""

    __slots__ = ("_confirmed", "_ended", "_logprobs", "_prior", "_sent", "fence", "ids")

    def __init__(
        self,
        fence: Fence,
        prior_ids: Sequence[int] = (),
        prior_logprobs: Sequence[TokenLogprobs] = (),
    ) -> None:
        self.fence = fence
        self.ids = list(prior_ids)
        self._logprobs = list(prior_logprobs)
        self._prior = self._sent = self._confirmed = len(self.ids)
        self._ended = False

    @property
    def total(self) -> int:
        return len(self.ids)

    @property
    def generated(self) -> int:
        """Tokens that this attempt made."""
        return len(self.ids) - self._prior

    @property
    def unsent(self) -> int:
        return len(self.ids) - self._sent

    @property
    def unconfirmed(self) -> int:
        return len(self.ids) - self._confirmed

    def append(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None) -> None:
        """New tokens from the engine. Raises ``RuntimeError`` after the terminal was made."""
        if self._ended:
            raise RuntimeError("tokens after the terminal message")
        self.ids.extend(ids)
        if logprobs is not None:
            self._logprobs.extend(logprobs)

    def take(self) -> Tokens | None:
        """Tokens not yet sent, as one message; what piled up while the publisher was busy is merged, up to
        ``MESSAGE_TOKENS``. More may be left: see ``unsent``."""
        start, end = self._sent, len(self.ids)
        if start == end:
            return None
        if end - start > MESSAGE_TOKENS:
            end = start + MESSAGE_TOKENS
        self._sent = end
        logprobs = tuple(self._logprobs[start:end]) if self._logprobs and self._has_logprobs else None
        return Tokens(fence=self.fence, offset=start, ids=tuple(self.ids[start:end]), logprobs=logprobs)

    def confirmed(self, end_offset: int) -> None:
        """The server has stored the message whose last token stands before ``end_offset``, and so
        everything published before it on the same connection."""
        self._confirmed = max(self._confirmed, end_offset)

    def rewind(self) -> None:
        """Take everything since the last confirmed token again: an ack is missing or the connection
        broke. Readers skip what they know."""
        self._sent = min(self._sent, self._confirmed)

    def finished(
        self,
        reason: FinishReason,
        usage: Usage,
        timings: Timings,
        stop_token: int | None = None,
    ) -> Finished:
        self._ended = True
        return Finished(
            fence=self.fence,
            total=len(self.ids),
            reason=reason,
            ids=tuple(self.ids),
            usage=usage,
            timings=timings,
            stop_token=stop_token,
            logprobs=tuple(self._logprobs) if self._has_logprobs else None,
        )

    def failed(self, code: str, message: str) -> Failed:
        self._ended = True
        return Failed(fence=self.fence, code=code, message=message, total=len(self.ids))

    @property
    def _has_logprobs(self) -> bool:
        return bool(self._logprobs) and len(self._logprobs) == len(self.ids)
