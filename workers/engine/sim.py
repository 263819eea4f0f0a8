"""The simulated engine: real batching and timing, made-up tokens, faults on request.

One timer drives the whole batch; no task, future or queue per request or token (about 5 us a token on one
core). What it says is ``sim_sequence``'s; must not know queues or networks.
"""

from __future__ import annotations

import asyncio
import heapq
from pathlib import Path

from schemas.config import Sim
from schemas.ids import ResponseId
from schemas.reply import TokenLogprobs
from workers.engine.base import Delta, EngineDead, EngineInfo, EngineLoad, EngineRequest, RequestEnd, StepSink
from workers.engine.sim_sequence import (
    SimState,
    choose,
    dictated,
    is_end,
    logprobs_of,
    next_state,
    start_state,
)
from workers.engine.sim_tokenizer import write_tokenizer
from workers.engine.sim_words import EOS_ID, VOCAB_SIZE

_WATCHDOG_LOOKS = 4  # in one hang timeout


class _Request:
    """One request in the batch, or waiting for it. Times are the loop's clock in seconds."""

    __slots__ = (
        "admitted_s",
        "first_token_s",
        "limit",
        "position",
        "request",
        "said",
        "state",
        "submitted_s",
    )

    def __init__(self, request: EngineRequest, state: SimState, limit: int, now_s: float) -> None:
        self.request = request
        self.state = state
        self.said = dictated(request.prompt_ids)
        self.position = len(request.prior_ids)  # of the next token in the completion
        self.limit = limit  # the position where it ends by length
        self.submitted_s = self.admitted_s = self.first_token_s = now_s

    def end(self, now_s: float, stop_token: int | None) -> RequestEnd:
        return RequestEnd(
            reason="length" if stop_token is None else "stop",
            stop_token=stop_token,
            engine_queue_ms=(self.admitted_s - self.submitted_s) * 1000,
            prefill_ms=(self.first_token_s - self.admitted_s) * 1000,
            decode_ms=(now_s - self.first_token_s) * 1000,
        )


class SimEngine:
    """Implements ``workers.engine.base.Engine``. A request's first token comes when its prefill is done;
    all others come at the ticks of one clock that the whole batch shares."""

    def __init__(self, config: Sim, *, hang_timeout_s: float, tokenizers_dir: Path) -> None:
        self._config = config
        self._hang_timeout_s = hang_timeout_s
        self._tokenizers_dir = tokenizers_dir
        self._tick_s = config.inter_token_ms / 1000
        self._requests: dict[ResponseId, _Request] = {}  # all that are not over
        self._waiting: list[tuple[int, int, _Request]] = []  # heap by priority, then arrival
        self._prefilling: list[tuple[float, int, _Request]] = []  # heap by when the first token is due
        self._decoding: dict[ResponseId, _Request] = {}
        self._over_at_once: list[Delta] = []  # refused, or nothing left to do: told at the next step
        self._arrivals = 0
        self._generated = 0
        self._next_tick_s = 0.0
        self._last_output_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._timer_s = 0.0
        self._stopped = False  # closed or failed
        self._hanging = False  # as configured: takes requests, makes nothing

    async def start(self, on_step: StepSink) -> EngineInfo:
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._on_step = on_step
        await asyncio.sleep(self._config.start_delay_s)
        if self._config.start_fault == "crash":
            raise EngineDead("the simulated engine crashed at start (sim.start_fault = crash)")
        if self._config.start_fault == "hang":
            await self._loop.create_future()
        folder, revision = write_tokenizer(self._tokenizers_dir, self._config.max_model_len)
        return EngineInfo(
            model_name=self._config.name,
            revision=revision,
            engine="sim 1",
            slots=self._config.slots,
            max_model_len=self._config.max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS_ID,),
            tokenizer_dir=folder,
        )

    def submit(self, request: EngineRequest) -> None:
        if request.request_id in self._requests:
            raise ValueError(f"{request.request_id} is in the batch already")
        if self._stopped:
            return
        limit = min(request.sampling.max_tokens, self._config.max_model_len - len(request.prompt_ids))
        end = self._refusal(request)
        if end is None and len(request.prior_ids) >= limit:
            end = RequestEnd(reason="length")
        if end is not None:
            self._over_at_once.append(Delta(request.request_id, end=end))
            self._wake_at(0.0)
            return
        state = start_state(request.prompt_ids, request.sampling.seed)
        for token in request.prior_ids:
            state = next_state(state, token)
        now_s = self._loop.time()
        if not self._requests:
            self._last_output_s = now_s
        self._arrivals += 1
        self._requests[request.request_id] = entry = _Request(request, state, limit, now_s)
        heapq.heappush(self._waiting, (request.priority, self._arrivals, entry))
        self._admit(now_s)

    def abort(self, request_id: ResponseId) -> None:
        self._over_at_once = [delta for delta in self._over_at_once if delta.request_id != request_id]
        entry = self._requests.pop(request_id, None)
        if entry is None:
            return
        if self._decoding.pop(request_id, None) is None:
            self._waiting = [item for item in self._waiting if item[2] is not entry]
            self._prefilling = [item for item in self._prefilling if item[2] is not entry]
            heapq.heapify(self._waiting)
            heapq.heapify(self._prefilling)
        if not self._stopped:
            self._admit(self._loop.time())

    def load(self) -> EngineLoad:
        waiting = len(self._waiting)
        running = len(self._requests) - waiting
        return EngineLoad(running, waiting, min(1.0, running / self._config.slots))

    async def failed(self) -> None:
        while True:
            await asyncio.wait({self._failure}, timeout=self._hang_timeout_s / _WATCHDOG_LOOKS)
            if self._failure.done():
                self._failure.result()
            silent_s = self._loop.time() - max(self._last_output_s, self._busy_until_s())
            if self._requests and silent_s > self._hang_timeout_s:
                waiting = f"{len(self._requests)} requests and no token for {silent_s:.1f} s"
                raise EngineDead(f"the simulated engine hangs: {waiting}")

    async def close(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _refusal(self, request: EngineRequest) -> RequestEnd | None:
        """What vLLM would refuse too; with its codes."""
        for name, ids in (("prompt", request.prompt_ids), ("earlier completion", request.prior_ids)):
            if ids and not (min(ids) >= 0 and max(ids) < VOCAB_SIZE):
                message = f"The {name} has a token id outside 0 … {VOCAB_SIZE - 1}."
                return RequestEnd(code="invalid_token_id", message=message)
        if not request.prompt_ids:
            return RequestEnd(code="engine_rejected", message="The prompt has no tokens; send at least one.")
        if len(request.prompt_ids) >= self._config.max_model_len:
            return RequestEnd(
                code="context_length_exceeded",
                message=f"The prompt has {len(request.prompt_ids)} tokens; this model takes "
                f"{self._config.max_model_len} with the answer. Shorten it.",
            )
        if request.sampling.min_tokens > request.sampling.max_tokens:
            return RequestEnd(code="engine_rejected", message="min_tokens may not be larger than max_tokens.")
        return None

    def _admit(self, now_s: float) -> None:
        """Waiting requests into free slots; their prefill starts now."""
        while self._waiting and len(self._prefilling) + len(self._decoding) < self._config.slots:
            _, arrival, entry = heapq.heappop(self._waiting)
            entry.admitted_s = now_s
            tokens = len(entry.request.prompt_ids) + len(entry.request.prior_ids)
            prefill_s = self._config.prefill_base_ms / 1e3 + tokens * self._config.prefill_us_per_token / 1e6
            heapq.heappush(self._prefilling, (now_s + prefill_s, arrival, entry))
        self._wake_when_due()

    def _busy_until_s(self) -> float:
        """A long prefill is not a hang."""
        return self._prefilling[0][0] if self._prefilling else 0.0

    def _wake_when_due(self) -> None:
        due_s = [self._next_tick_s] if self._decoding else []
        due_s += [self._prefilling[0][0]] if self._prefilling else []
        if due_s:
            self._wake_at(min(due_s))

    def _wake_at(self, when_s: float) -> None:
        if self._stopped or self._hanging or (self._timer is not None and self._timer_s <= when_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = when_s
        late = when_s <= self._loop.time()
        self._timer = self._loop.call_soon(self._step) if late else self._loop.call_at(when_s, self._step)

    def _step(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        deltas, self._over_at_once = self._over_at_once, []
        if self._decoding and now_s >= self._next_tick_s:
            self._next_tick_s = max(self._next_tick_s + self._tick_s, now_s)  # what was missed stays missed
            for entry in list(self._decoding.values()):
                deltas.append(self._advance(entry, now_s))
        while self._prefilling and self._prefilling[0][0] <= now_s:
            entry = heapq.heappop(self._prefilling)[2]
            if self._config.crash_on_token_id and self._config.crash_on_token_id in entry.request.prompt_ids:
                self._fail("the simulated engine crashed on a prompt (sim.crash_on_token_id)")
                return
            entry.first_token_s = now_s
            if not self._decoding:  # the clock starts with the batch
                self._next_tick_s = now_s + self._tick_s
            self._decoding[entry.request.request_id] = entry
            deltas.append(self._advance(entry, now_s))
        if deltas:
            self._report(deltas, now_s)
        if not self._stopped:
            self._admit(now_s)

    def _advance(self, entry: _Request, now_s: float) -> Delta:
        """The next token of one request."""
        request, state, position = entry.request, entry.state, entry.position
        if entry.said is not None:
            token = entry.said[position] if position < len(entry.said) else EOS_ID
        else:
            config = self._config
            mean, split = config.mean_output_tokens, config.split_characters
            token = choose(state, position, request.sampling, mean, split=split)
        if (entry.said is None or token == EOS_ID) and is_end(token, position, request.sampling):
            self._drop(request.request_id)
            return Delta(request.request_id, end=entry.end(now_s, token))
        logprobs: tuple[TokenLogprobs, ...] | None = None
        if request.sampling.logprobs is not None:
            logprobs = (logprobs_of(state, token, request.sampling.logprobs),)
        self._generated += 1
        entry.state = next_state(state, token)
        entry.position = position + 1
        if entry.position < entry.limit:
            return Delta(request.request_id, (token,), logprobs)
        self._drop(request.request_id)
        return Delta(request.request_id, (token,), logprobs, entry.end(now_s, None))

    def _drop(self, request_id: ResponseId) -> None:
        del self._requests[request_id], self._decoding[request_id]

    def _report(self, deltas: list[Delta], now_s: float) -> None:
        self._last_output_s = now_s
        try:
            self._on_step(deltas)
        except Exception as error:  # a broken sink would go unseen in a timer's callback
            self._fail(f"the sink of the engine's steps raised {error!r}")
            raise
        if self._config.crash_after_tokens and self._generated >= self._config.crash_after_tokens:
            self._fail(f"the simulated engine crashed after {self._generated} tokens (crash_after_tokens)")
        elif self._config.hang_after_tokens and self._generated >= self._config.hang_after_tokens:
            self._hanging = True

    def _fail(self, reason: str) -> None:
        self._stopped = True
        if not self._failure.done():
            self._failure.set_exception(EngineDead(reason))
            self._failure.exception()  # nobody may be waiting for it yet
