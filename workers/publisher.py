"""Sends tokens to the reply logs: one task for all responses, and none per token or ack.

The engine's step appends to each response's ``LogWriter`` and marks it; the task sends what every marked
response has, as one message each, all of a round in one piece. While the task, the connection or the broker
lags, tokens pile up in the writers (bounded by max_tokens) and go out merged, so the engine never waits for
the network. Must not know where tokens come from, nor what ends a response. What a token costs here is
measured by ``tests/bench/worker_cpu.py``.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial

from nats.aio.msg import Msg

from broker import metrics
from broker.connection import Broker
from broker.jetstream import ApiError, read_ack
from broker.log_writer import LogWriter
from broker.publish_batch import PublishBatch, command_of
from broker.replylog import ReplyLog
from schemas import codec
from schemas.reply import Tokens
from workers.pace import Pace

log = logging.getLogger(__name__)

CONFIRM_TIMEOUT_S = 2.0
ASK_TIMES = 4  # in a confirm interval; responses ask together, so that acks come together and wake us less
BATCH_BYTES = 64 << 10  # handed to the connection at once
UNWRITTEN_BYTES = 256 << 10  # in the client's output buffer: beyond, the connection lags, and rounds wait
FULL_BUFFER_PAUSE_S = 0.005
REPEATED_TOKENS = 2048  # 6 KB twice a second; at this length a response's log has become twice as large


@dataclass(slots=True, eq=False)
class Outlet:
    """One response's way out. Times are the loop's clock. ``sent_s``: when tokens were last sent, or the
    job was pulled; ``asked_s``: when an ack was last asked for, about, at ``inbox`` while it is awaited."""

    log: ReplyLog
    writer: LogWriter
    sent_s: float
    asked_s: float
    counted: int  # tokens up to this offset are in the metrics, or were another worker's
    command: bytes = field(init=False)
    first: bool = True
    inbox: str = ""
    patience: asyncio.TimerHandle | None = None
    open: bool = True

    def __post_init__(self) -> None:
        self.command = command_of(self.log.tokens_subject)

    @property
    def confirming(self) -> bool:
        return bool(self.inbox)


class Publisher:
    """``confirm_interval_s``: one message a response in this time asks for its ack (rule 5)."""

    def __init__(self, broker: Broker, model_name: str, *, confirm_interval_s: float) -> None:
        self._broker = broker
        self._confirm_interval_s = confirm_interval_s
        self._outlets: set[Outlet] = set()
        self._marked: dict[Outlet, None] = {}
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._pace = Pace()
        self._counts = _StepCounts(model_name)
        metrics.UNSENT_TOKENS.labels(model=model_name).set_function(
            lambda: sum(outlet.writer.unsent for outlet in self._outlets)
        )
        metrics.UNCONFIRMED_TOKENS.labels(model=model_name).set_function(
            lambda: sum(outlet.writer.unconfirmed for outlet in self._outlets)
        )

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
        self._ask_no_more(outlet)
        self._counts.add(outlet, outlet.writer.total, self._clock())
        self._counts.flush()

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
        resume_s = 0.0
        try:
            while True:
                await self._wake.wait()
                if (left_s := resume_s - self._clock()) > 0:
                    await asyncio.sleep(left_s)
                self._wake.clear()
                if not self._broker.connected:
                    continue  # the reconnect marks and wakes
                begun_s = self._clock()
                marked, self._marked = self._marked, {}
                await self._send(marked, begun_s)
                now_s = self._clock()
                resume_s = now_s + self._pace.pause_s(now_s - begun_s, now_s)
        finally:
            self._broker.off_reconnect(self._reconnected)

    async def _send(self, marked: dict[Outlet, None], now_s: float) -> None:
        batch = PublishBatch(self._broker)
        await self._until_written()
        for outlet in marked:
            tokens = outlet.writer.take() if outlet.open else None
            if tokens is None:
                continue
            end_offset = tokens.offset + len(tokens.ids)
            if now_s - outlet.asked_s >= self._confirm_interval_s and not outlet.inbox:
                whole = _with_all_before(outlet.writer, tokens)
                batch.add(outlet.command, codec.encode(whole), self._ask(outlet, end_offset, now_s))
            else:
                batch.add(outlet.command, codec.encode(tokens))
            if outlet.writer.unsent:
                self.mark(outlet)
            self._counts.add(outlet, end_offset, now_s)
            if batch.size > BATCH_BYTES:
                await batch.send()
                await self._until_written()
        await batch.send()
        self._counts.flush()

    async def _until_written(self) -> None:
        while self._broker.nc.pending_data_size > UNWRITTEN_BYTES and self._broker.connected:  # noqa: ASYNC110
            await asyncio.sleep(FULL_BUFFER_PAUSE_S)

    # -- acks -----------------------------------------------------------------------------------------

    def _ask(self, outlet: Outlet, end_offset: int, now_s: float) -> str:
        """Where the ack of its next message shall go."""
        outlet.asked_s = now_s - now_s % (self._confirm_interval_s / ASK_TIMES)
        outlet.inbox = self._broker.expect(partial(self._answered, outlet, end_offset, now_s))
        outlet.patience = self._loop.call_later(CONFIRM_TIMEOUT_S, self._missed, outlet)
        return outlet.inbox

    def _ask_no_more(self, outlet: Outlet) -> None:
        if outlet.patience is not None:
            outlet.patience.cancel()
            outlet.patience = None
        self._broker.forget(outlet.inbox)
        outlet.inbox = ""

    def _answered(self, outlet: Outlet, end_offset: int, asked_s: float, msg: Msg) -> None:
        now_s = self._clock()
        self._pace.acked(now_s - asked_s, now_s)
        metrics.TOKENS_ACK_S.observe(now_s - asked_s)
        try:
            read_ack(msg)
        except ApiError as error:
            log.warning("tokens on %s were refused: %s", outlet.log.tokens_subject, error)
            self._missed(outlet)
        else:
            self._ask_no_more(outlet)
            outlet.writer.confirmed(end_offset)

    def _missed(self, outlet: Outlet) -> None:
        """Send everything that is not confirmed again."""
        if outlet.confirming:
            metrics.ACKS_MISSED.inc()
        self._ask_no_more(outlet)
        outlet.writer.rewind()
        if outlet.writer.unsent:
            self.mark(outlet)

    def _reconnected(self) -> None:
        """What was on the wire may be lost."""
        self._pace.reconnected()
        for outlet in self._outlets:
            self._missed(outlet)


class _StepCounts:
    """Tokens by how long they took, for the metrics. Those of one step have taken equally long: they are
    counted together."""

    def __init__(self, model_name: str) -> None:
        self._first_token_s = metrics.WORKER.first_token_s.labels(model=model_name)
        self._inter_token_s = metrics.WORKER.inter_token_s.labels(model=model_name)
        self._completion_tokens = metrics.WORKER.completion_tokens.labels(model=model_name)
        self._new = 0
        self._alike = 0  # tokens that took each_s
        self._each_s = 0.0

    def add(self, outlet: Outlet, end_offset: int, now_s: float) -> None:
        """The tokens of this response up to ``end_offset`` go out now."""
        tokens = end_offset - outlet.counted
        if tokens <= 0:
            return  # sent again
        waited_s = now_s - outlet.sent_s
        outlet.sent_s = now_s
        outlet.counted = end_offset
        self._new += tokens
        if outlet.first:
            outlet.first = False
            self._first_token_s.observe(waited_s)
            return
        each_s = waited_s / tokens
        if each_s != self._each_s:
            self._observe()
            self._each_s = each_s
        self._alike += tokens

    def flush(self) -> None:
        self._observe()
        self._completion_tokens.inc(self._new)
        self._new = 0

    def _observe(self) -> None:
        if self._alike:
            self._inter_token_s.observe_many(self._each_s, self._alike)
            self._alike = 0


def _with_all_before(writer: LogWriter, tokens: Tokens) -> Tokens:
    """Rule 5 lets tokens be repeated: a next writer then reads the last second of the log instead of all of
    it, and a reader that missed some has them."""
    end = tokens.offset + len(tokens.ids)
    if end > REPEATED_TOKENS or tokens.logprobs is not None:
        return tokens
    return Tokens(fence=tokens.fence, offset=0, ids=tuple(writer.ids[:end]))
