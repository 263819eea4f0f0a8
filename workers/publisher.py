"""Sends tokens to the reply logs: one task for all responses, none per token.

The engine's step appends to each response's ``LogWriter`` and marks it; the task sends what every marked
response has, as one message each. While the task or the connection lags, tokens pile up in the writers
(bounded by max_tokens) and go out merged, so the engine never waits for the network. Must not know where
tokens come from, nor what ends a response.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker import metrics
from broker.connection import Broker
from broker.log_writer import LogWriter
from broker.replylog import MAX_UNSENT_BYTES, ReplyLog
from schemas.reply import Tokens

CONFIRM_TIMEOUT_S = 2.0
FULL_BUFFER_PAUSE_S = 0.005
REPEATED_TOKENS = 2048  # 6 KB twice a second; at this length a response's log has become twice as large


@dataclass(slots=True, eq=False)
class Outlet:
    """One response's way out. Times are the loop's clock. ``sent_s``: when tokens were last sent, or the
    job was pulled; ``asked_s``: when an ack was last asked for."""

    log: ReplyLog
    writer: LogWriter
    sent_s: float
    asked_s: float
    counted: int  # tokens up to this offset are in the metrics, or were another worker's
    first: bool = True
    confirming: bool = False
    open: bool = True


class Publisher:
    """``confirm_interval_s``: one message a response in this time asks for its ack (rule 5)."""

    def __init__(self, broker: Broker, model_name: str, *, confirm_interval_s: float) -> None:
        self._broker = broker
        self._confirm_interval_s = confirm_interval_s
        self._outlets: set[Outlet] = set()
        self._marked: dict[Outlet, None] = {}
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._first_token_s = metrics.WORKER.first_token_s.labels(model=model_name)
        self._inter_token_s = metrics.WORKER.inter_token_s.labels(model=model_name)
        self._completion_tokens = metrics.WORKER.completion_tokens.labels(model=model_name)

    def open(self, log: ReplyLog, writer: LogWriter, *, pulled_s: float) -> Outlet:
        # One that continues repeats all before it in its first message, for the one after it.
        asked_s = float("-inf") if writer.total else self._clock()
        outlet = Outlet(log, writer, sent_s=pulled_s, asked_s=asked_s, counted=writer.total)
        self._outlets.add(outlet)
        return outlet

    def close(self, outlet: Outlet) -> None:
        """Nothing more is sent for it; what its writer holds is the caller's."""
        if not outlet.open:
            return
        outlet.open = False
        self._outlets.discard(outlet)
        self._marked.pop(outlet, None)
        self._completion_tokens.inc(self._count(outlet, outlet.writer.total, self._clock()))

    def mark(self, outlet: Outlet) -> None:
        """Its writer has new tokens. Cheap: called for every request of every engine step."""
        self._marked[outlet] = None
        self._wake.set()

    async def flush(self, outlet: Outlet) -> None:
        """Send what its writer has, now."""
        while (tokens := outlet.writer.take()) is not None:
            if not await outlet.log.send_tokens(tokens):
                return  # the next writer makes them again

    async def run(self) -> None:
        """Never returns."""
        self._broker.on_reconnect(self._reconnected)
        try:
            async with asyncio.TaskGroup() as confirmations:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    if not self._broker.connected:
                        continue  # the reconnect marks and wakes
                    if self._broker.nc.pending_data_size > MAX_UNSENT_BYTES:
                        await asyncio.sleep(FULL_BUFFER_PAUSE_S)
                        self._wake.set()
                        continue
                    marked, self._marked = self._marked, {}
                    await self._send(marked, confirmations)
        finally:
            self._broker.off_reconnect(self._reconnected)

    async def _send(self, marked: dict[Outlet, None], confirmations: asyncio.TaskGroup) -> None:
        now_s = self._clock()
        asked = False
        sent = 0
        for outlet in marked:
            tokens = outlet.writer.take() if outlet.open else None
            if tokens is None:
                continue
            if now_s - outlet.asked_s >= self._confirm_interval_s and not outlet.confirming:
                outlet.confirming = asked = True
                outlet.asked_s = now_s
                whole = _with_all_before(outlet.writer, tokens)
                confirmations.create_task(self._confirm(outlet, whole), name="confirm-tokens")
            elif not await outlet.log.send_tokens(tokens):
                outlet.writer.put_back(tokens)
                self.mark(outlet)
                continue
            if outlet.writer.unsent:
                self.mark(outlet)
            sent += self._count(outlet, tokens.offset + len(tokens.ids), now_s)
        self._completion_tokens.inc(sent)
        if asked:  # a new task runs up to its publish before this one goes on, so no later tokens overtake it
            await asyncio.sleep(0)

    async def _confirm(self, outlet: Outlet, tokens: Tokens) -> None:
        stored = await outlet.log.send_tokens_confirmed(tokens, CONFIRM_TIMEOUT_S)
        outlet.confirming = False
        if stored:
            outlet.writer.confirmed(tokens.offset + len(tokens.ids))
        elif outlet.open:
            outlet.writer.rewind()
            self.mark(outlet)

    def _count(self, outlet: Outlet, end_offset: int, now_s: float) -> int:
        """Times of the tokens up to ``end_offset``; returns how many are news."""
        tokens = end_offset - outlet.counted
        if tokens <= 0:
            return 0  # sent again
        waited_s = now_s - outlet.sent_s
        outlet.sent_s = now_s
        outlet.counted = end_offset
        if outlet.first:
            outlet.first = False
            self._first_token_s.observe(waited_s)
        else:
            for _ in range(tokens):
                self._inter_token_s.observe(waited_s / tokens)
        return tokens

    def _reconnected(self) -> None:
        """What was on the wire may be lost: send everything that is not confirmed again."""
        for outlet in self._outlets:
            outlet.writer.rewind()
            if outlet.writer.unsent:
                self.mark(outlet)


def _with_all_before(writer: LogWriter, tokens: Tokens) -> Tokens:
    """Rule 5 lets tokens be repeated: a next writer then reads the last second of the log instead of all of
    it, and a reader that missed some has them."""
    end = tokens.offset + len(tokens.ids)
    if end > REPEATED_TOKENS or tokens.logprobs is not None:
        return tokens
    return Tokens(fence=tokens.fence, offset=0, ids=tuple(writer.ids[:end]))
