"""``python -m tests.bench.feeder NATS_URL FOLDER …``: plays a worker at the least cost, so that a gateway is
what a benchmark measures: it takes jobs, and writes tokens for all of them to the reply logs at once, a step
at a time. No engine, no confirmations; the broker must stay up. Ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop

from broker import presence, tokenizers, topology
from broker.connection import Broker, unix_ms
from broker.jobs import JobDelivery, JobPuller
from broker.replylog import ReplyLog
from schemas import codec
from schemas.config import Nats
from schemas.ids import Fence, ModelToken, WorkerId, model_token, new_process_id
from schemas.job import Job
from schemas.presence import WorkerCard
from schemas.reply import Finished, Started, Timings, Tokens, Usage
from workers.engine.sim_tokenizer import write_tokenizer
from workers.engine.sim_words import FIRST_WORD_ID

MODEL_NAME = "bench"
ACK_WAIT_S = 600.0  # no job is held: a run is shorter
WORDS = 1000  # of the vocabulary, in turn
FLOOD_BYTES = 1 << 20  # in the client's output buffer: then the broker is waited for
SLOTS = 8192


@dataclass(slots=True, eq=False)
class Stream:
    delivery: JobDelivery
    log: ReplyLog
    fence: Fence
    left: int
    prompt_tokens: int
    offset: int = 0


class Feeder:
    """``inter_token_ms`` 0: as fast as the broker takes them. ``per_message``: tokens. ``together``: no token
    is written until so many streams are here."""

    def __init__(self, broker: Broker, inter_token_ms: float, per_message: int, together: int) -> None:
        self._broker = broker
        self._step_s = inter_token_ms * per_message / 1000
        self._per_message = per_message
        self._together = together
        self._streams: set[Stream] = set()
        self._news = asyncio.Event()
        self._worker = WorkerId(new_process_id("wk"))
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, folder: Path) -> None:
        broker = self._broker
        await topology.apply(broker)
        tokenizer, revision = write_tokenizer(folder, 1 << 20)
        model = model_token(MODEL_NAME, revision)
        await tokenizers.put_tokenizer(broker, model, tokenizer)
        self._puller = JobPuller(broker, model, on_job=self._take)
        self._puller.set_free(SLOTS)
        await presence.answer_pings(broker, self._worker)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._puller.run(), name="pull")
            tasks.create_task(self._announce(model, revision), name="presence")
            tasks.create_task(self._feed(), name="feed")

    async def _announce(self, model: ModelToken, revision: str) -> None:
        while True:
            card = WorkerCard(
                worker=self._worker,
                model=model,
                model_name=MODEL_NAME,
                revision=revision,
                engine="feeder",
                state="ready",
                slots=SLOTS,
                running=len(self._streams),
                max_model_len=1 << 20,
                vocab_size=1 << 16,
                tokenizer=model,
                started_unix_ms=unix_ms(),
                seen_unix_ms=unix_ms(),
            )
            await presence.announce(self._broker, card)
            await asyncio.sleep(2)

    def _take(self, delivery: JobDelivery) -> None:
        self._begin(self._start(delivery, codec.decode_job(delivery.delivery.data)))

    def _begin(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, delivery: JobDelivery, job: Job) -> None:
        log = ReplyLog(self._broker, job.gateway, job.response, job.session)
        claim = await log.claim(lambda attempt: Started(attempt=attempt, worker=self._worker))
        assert claim.fence is not None
        stream = Stream(delivery, log, claim.fence, job.sampling.max_tokens, len(job.prompt_ids))
        self._streams.add(stream)
        self._news.set()

    async def _feed(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            while len(self._streams) < self._together:
                self._news.clear()
                await self._news.wait()
            due_s = clock()
            while self._streams:
                for stream in list(self._streams):
                    await self._write(stream)
                due_s = max(due_s + self._step_s, clock() - 1)
                await asyncio.sleep(max(0.0, due_s - clock()))
                while self._broker.nc.pending_data_size > FLOOD_BYTES:
                    await asyncio.sleep(0.001)

    async def _write(self, stream: Stream) -> None:
        count = min(self._per_message, stream.left)
        stream.left -= count
        ids = tuple(FIRST_WORD_ID + n % WORDS for n in range(stream.offset, stream.offset + count))
        tokens = Tokens(fence=stream.fence, offset=stream.offset, ids=ids)
        stream.offset += count
        await self._broker.nc.publish(stream.log.tokens_subject, codec.encode(tokens))
        if not stream.left:
            self._streams.discard(stream)
            self._begin(self._end(stream))

    async def _end(self, stream: Stream) -> None:
        total = stream.offset
        finished = Finished(
            fence=stream.fence,
            total=total,
            reason="length",
            ids=tuple(FIRST_WORD_ID + n % WORDS for n in range(total)),
            usage=Usage(prompt_tokens=stream.prompt_tokens, completion_tokens=total),
            timings=Timings(),
        )
        await stream.log.end(finished)
        await stream.delivery.ack()
        self._puller.release()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.feeder", description=__doc__)
    parser.add_argument("nats_url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inter-token-ms", type=float, default=10.0)
    parser.add_argument("--per-message", type=int, default=1)
    parser.add_argument("--together", type=int, default=1)
    args = parser.parse_args()
    broker = await Broker.connect(Nats(url=args.nats_url, ack_wait_s=ACK_WAIT_S), name="feeder")
    feeder = Feeder(broker, args.inter_token_ms, args.per_message, args.together)
    feeding = asyncio.create_task(feeder.run(args.folder), name="feeder")
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({feeding, ended}, return_when=asyncio.FIRST_COMPLETED)
    if feeding.done():
        feeding.result()


if __name__ == "__main__":
    uvloop.run(main())
