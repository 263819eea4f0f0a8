"""The job queue: accepting a job, finding it again, burying it; pulling jobs, never more than there are free
slots; and what a worker may do with a delivery.

The subjects and headers make every job readable with ``nats stream view JOBS``. Must not know what a job
asks for, nor what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import nats.errors

from broker import jetstream, subjects, topology
from broker.allocation import allocate
from broker.connection import Broker, NoAnswer
from broker.nats_client import Headers, header_lines
from broker.pull import Delivery, Loss, PullLoop
from schemas import codec
from schemas.errors import HeadraceError
from schemas.ids import ModelToken, ResponseId
from schemas.job import CODEC, DeadLetter, Job, Lane, Priority

log = logging.getLogger(__name__)

ENQUEUE_S = 5.0
ACK_TRIES = 5
ACK_TRY_S = 2.0

# A pull parked on an idle queue binds a slot until it expires. While slots are plenty that costs nothing;
# when all are bound, they must come back soon for whichever queue has work.
PARKED_S = 1.0
PARKED_SCARCE_S = 0.1
# With a backlog in a lower queue, the better ones are asked first, at 0.2 ms each while a slot is idle; what
# was heard so short a while ago need not be asked again.
HEARD_S = 0.005
SILENCE_S = PARKED_S + 2.0  # a parked pull ends with a status; this much later it has been lost
REPAIR_PAUSE_S = 0.1
REPAIR_LIMIT_S = 2.0  # of one try; stop() must not wait longer for it than that and one request

# What is kept of a dead letter that is too large.
LETTER_LINES = 32
LETTER_LINE = 200  # characters


@dataclass(frozen=True, slots=True)
class Stored:
    """``duplicate``: a job of this response was stored before, at ``seq`` where that is known (else 0). Under
    a fresh response id that is this job itself, found again after a lost ack."""

    seq: int
    duplicate: bool


async def publish_job(
    broker: Broker, job: Job, *, msg_id: str | None = None, only_first: bool = False, timeout_s: float = 5
) -> Stored:
    """Returns once the job is stored: the response is accepted. ``msg_id`` defaults to the response id, by
    which the server finds a repetition within its duplicate window; ``only_first`` has it look through all of
    the queue, in the same round trip (0.1 ms at 250,000 jobs). Raises ``HeadraceError``: payload_too_large,
    and broker_unavailable, at once when disconnected. After a timeout the job may still have been stored; a
    further try under the same id finds it."""
    headers: Headers = {jetstream.MSG_ID: msg_id or job.response}
    if only_first:
        headers[jetstream.EXPECTED_SEQ] = "0"
        headers[jetstream.EXPECTED_SEQ_SUBJECT] = subjects.job_by_response(job.response)
    return await _publish(broker, job, headers, timeout_s)


async def enqueue_held(broker: Broker, job: Job) -> None:
    """Put a held job into the queue: once, however many do. Raises as ``publish_job``."""
    headers: Headers = {jetstream.MSG_ID: f"{job.response}-run", jetstream.EXPECTED_SEQ: "0"}
    await _publish(broker, msgspec.structs.replace(job, held=False), headers, ENQUEUE_S)


async def _publish(broker: Broker, job: Job, conditions: Headers, timeout_s: float) -> Stored:
    if not broker.connected:
        raise NoAnswer("disconnected", "job")
    headers = _job_headers(job) | conditions
    data = codec.encode(job)
    if len(data) > broker.nc.max_payload - jetstream.HEADERS_ALLOWANCE:
        raise HeadraceError(
            "payload_too_large",
            f"The request takes {len(data)} bytes in the queue, which takes {broker.nc.max_payload} at most: "
            "shorten the prompt, or raise max_payload of the NATS server.",
            param="input",
        )
    try:
        ack = await jetstream.publish_until_stored(
            broker, subjects.job(job), data, headers, timeout_s=timeout_s
        )
    except jetstream.ApiError as error:
        if not error.wrong_last_sequence:
            raise
        return Stored(0, duplicate=True)
    return Stored(ack.seq, ack.duplicate)


def _job_headers(job: Job) -> Headers:
    headers: Headers = {
        "Hr-Response": job.response,
        "Hr-Tenant": job.tenant,
        "Hr-Session": job.session,
        "Hr-Gateway": job.gateway,
        "Hr-Model": job.model_name.encode("ascii", "replace").decode(),
        "Hr-Class": f"{job.priority}/{job.lane}",
        "Hr-Deadline": str(job.deadline_unix_ms),
        "Hr-Prompt-Tokens": str(len(job.prompt_ids)),
        "Hr-Codec": CODEC,
    }
    if job.traceparent is not None:
        headers["traceparent"] = job.traceparent
    if job.request_id:
        headers["Hr-Request-Id"] = job.request_id
    if job.replay_of is not None:
        headers["Hr-Replay-Of"] = job.replay_of
    return headers


async def find_job(broker: Broker, response: ResponseId) -> Job | None:
    """The job of a response, for as long as JOBS keeps it. A job that does not decode counts as absent."""
    found = await jetstream.last_messages(broker, subjects.JOBS, [subjects.job_by_response(response)])
    if not found:
        return None
    try:
        return codec.decode_job(found[-1].data)
    except msgspec.DecodeError as error:
        log.error("the job at JOBS %d does not decode: %s", found[-1].seq, error)
        return None


async def bury(broker: Broker, model: ModelToken, letter: DeadLetter) -> None:
    """Store a dead letter; once for one response within the duplicate window. Retried for 30 s. What the
    server would not take whole is cut, and its message says so: the job itself stays in JOBS."""
    headers = {
        jetstream.MSG_ID: f"dead-{letter.response}",
        "Hr-Response": letter.response,
        "Hr-Code": letter.code,
    }
    subject = subjects.dead(model, letter.response)
    room = broker.nc.max_payload - max(jetstream.HEADERS_ALLOWANCE, len(header_lines(headers)))
    data = codec.encode(_cut_to(letter, room))
    await jetstream.publish_until_stored(broker, subject, data, headers, timeout_s=30)


def _cut_to(letter: DeadLetter, max_bytes: int) -> DeadLetter:
    """A letter that takes ``max_bytes`` encoded: of a job a head, of its history the last lines."""
    size = len(codec.encode(letter))
    if size <= max_bytes:
        return letter
    cut = msgspec.structs.replace(
        letter,
        message=f"{letter.message[:LETTER_LINE]} (the letter took {size} bytes: job and history are cut)",
        history=tuple(line[:LETTER_LINE] for line in letter.history[-LETTER_LINES:]),
        job=b"",
    )
    room = max_bytes - len(codec.encode(cut)) - 8  # the length of what takes so much room
    return msgspec.structs.replace(cut, job=letter.job[: max(0, room)])


class JobDelivery:
    """A job as it was delivered to this worker. Its bytes are in ``delivery.data``; they may not decode."""

    __slots__ = ("_broker", "delivery")

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self._broker = broker
        self.delivery = delivery

    @property
    def ack_subject(self) -> str:
        return self.delivery.ack_subject

    @property
    def delivered(self) -> int:
        """JetStream's delivery count: shown, never trusted (it may fall back)."""
        return self.delivery.delivered

    @property
    def stored_unix_ms(self) -> float:
        return self.delivery.stored_unix_ms

    async def ack(self) -> bool:
        """The job is over. False when the server did not confirm it in several tries: it will be delivered
        again, and whoever gets it finds the log ended and acks it."""
        for _ in range(ACK_TRIES):
            try:
                async with asyncio.timeout(ACK_TRY_S):
                    await self._broker.wait_connected()
                await self._broker.request(self.ack_subject, b"+ACK", timeout_s=ACK_TRY_S)
            except (NoAnswer, TimeoutError):
                continue
            return True
        log.warning("the ack of %s was not confirmed", self.delivery.subject)
        return False

    async def nak(self, delay_s: float = 0.0) -> None:
        """Give the job back, to be delivered again at once, or after ``delay_s``."""
        await nak_delivery(self._broker, self.ack_subject, delay_s)

    async def in_progress(self) -> None:
        """Hold the job for another ``ack_wait``."""
        await _send(self._broker, self.ack_subject, b"+WPI")


async def nak_delivery(broker: Broker, ack_subject: str, delay_s: float = 0.0) -> None:
    """Have the delivery with this ack subject delivered again, whoever holds it. Not confirmed, and nothing
    while disconnected: ack_wait is the backstop."""
    await _send(broker, ack_subject, b'-NAK {"delay": %d}' % (delay_s * 1e9) if delay_s else b"-NAK")


async def _send(broker: Broker, ack_subject: str, payload: bytes) -> None:
    if not broker.connected:  # nats-py would keep it for later, when it may hit a newer delivery
        return
    try:
        await broker.nc.publish(ack_subject, payload)
    except nats.errors.Error as error:
        log.debug("%r was not sent: %s", payload, error)


class JobPuller:
    """``on_job`` is called in the event loop for every job and must not block; an exception there ends
    ``run``. Each job uses up a slot until ``release``. ``reserved``: of the free slots, the best queue's."""

    def __init__(
        self,
        broker: Broker,
        model: ModelToken,
        *,
        on_job: Callable[[JobDelivery], None],
        reserved: int = 0,
    ) -> None:
        self._reserved = reserved
        self._clock = asyncio.get_running_loop().time
        self._broker = broker
        self._model = model
        self._on_job = on_job
        self._free = 0
        self._stopping = False
        self._has_consumers = False  # and they were there a moment ago
        self._turn = 0
        self._news = asyncio.Event()
        self._unwanted: list[JobDelivery] = []  # at most what was outstanding; given back by run()
        self._loops = [self._loop(priority, lane) for priority, lane in topology.QUEUES]

    def _loop(self, priority: Priority, lane: Lane) -> PullLoop:
        return PullLoop(
            self._broker,
            subjects.JOBS,
            subjects.job_consumer(self._model, priority, lane),
            on_delivery=self._deliver,
            on_news=self._news.set,
            silence_s=SILENCE_S,
        )

    def set_free(self, slots: int) -> None:
        """So many more jobs may come from now on."""
        self._free = slots
        self._news.set()

    def release(self, n: int = 1) -> None:
        """``n`` jobs have ended: their slots are free again."""
        self._free += n
        self._news.set()

    def stop(self) -> None:
        """No further pulls. What still arrives is given back at once; ``run`` returns when nothing more
        can arrive (about a second)."""
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        """Returns after ``stop``. Raises what ``on_job`` raised, and ``TopologyError``. While the broker is
        away it waits; whether it comes back is for ``Broker.closed`` to tell."""
        try:
            for loop in self._loops:
                await loop.open()
            while not (self._stopping and not any(loop.expecting for loop in self._loops)):
                await self._round()
                await self._wait()
            await self._give_back()
        finally:
            for loop in self._loops:
                await loop.close()

    async def _round(self) -> None:
        for loop in self._loops:
            loop.check_silence()
            if loop.failure is not None:
                raise loop.failure
        await self._give_back()
        # Disconnected: nats-py would keep a pull for later, under an inbox that is forgotten by then.
        if self._stopping or not self._broker.connected:
            return
        lost = {loop.lost for loop in self._loops if loop.lost is not None}
        self._has_consumers &= lost <= {"reconnect"}
        if lost or not self._has_consumers:
            await self._repair(lost)
        else:
            await self._ask()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._news.wait()
        except TimeoutError:
            pass  # time to look for silence
        self._news.clear()

    async def _ask(self) -> None:
        outstanding = [loop.outstanding for loop in self._loops]
        pending = [loop.behind for loop in self._loops]
        heard_s = self._clock() - HEARD_S
        known = [loop.heard_empty_s >= heard_s for loop in self._loops]
        asks = allocate(self._free, pending, outstanding, self._turn, known=known, reserved=self._reserved)
        if not any(asks):
            return
        turn = self._turn  # probes are looks ahead and no turn
        scarce = sum(outstanding) + sum(asks) >= self._free
        contended = any(
            waiting > out + ask for waiting, out, ask in zip(pending, outstanding, asks, strict=True)
        )
        for loop, batch in zip(self._loops, asks, strict=True):
            if not batch:
                continue
            if contended and not loop.behind and not loop.outstanding:
                await loop.probe(batch)  # the slots are wanted elsewhere: they must not wait here
            else:
                turn = self._turn + 1
                await loop.pull(batch, expires_s=PARKED_SCARCE_S if scarce else PARKED_S)
        self._turn = turn

    def _deliver(self, delivery: Delivery) -> None:
        self._news.set()
        job = JobDelivery(self._broker, delivery)
        if self._stopping or self._free <= 0:
            self._unwanted.append(job)
            return
        self._free -= 1
        self._on_job(job)

    async def _give_back(self) -> None:
        while self._unwanted:
            await self._unwanted.pop().nak()

    async def _repair(self, lost: set[Loss]) -> None:
        """Requests in flight are lost: make sure of the consumers, and ask anew. A stream that is gone ends
        ``run`` and so the process, whose next start makes it again."""
        if lost:
            log.info("pulling jobs anew after %s", ", ".join(sorted(lost)))
        try:
            if not self._has_consumers:
                await topology.ensure_job_consumers(self._broker, self._model, limit_s=REPAIR_LIMIT_S)
                self._has_consumers = True
            for loop in self._loops:
                if loop.lost is not None:
                    await loop.open()
        except (NoAnswer, jetstream.ApiError, nats.errors.Error) as error:
            log.warning("cannot pull jobs: %s", error)
            await asyncio.sleep(REPAIR_PAUSE_S)
        self._news.set()
