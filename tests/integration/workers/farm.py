"""Workers with the simulated engine on a real broker, and a gateway's view of what they write.

``Client`` publishes jobs and tails their logs as a gateway would, and checks every stream by the oracle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import msgspec

from broker import jobs, presence, subjects
from broker.connection import Broker
from broker.log_reader import LogReader
from broker.process import Shutdown
from broker.replylog import ReplyLog
from broker.tail import ReplyTail
from schemas.config import Config, Nats, Sim
from schemas.ids import (
    GatewayId,
    ModelToken,
    ResponseId,
    SessionToken,
    TenantId,
    WorkerId,
    model_token,
    new_process_id,
    new_response_id,
)
from schemas.job import Job, Presentation
from schemas.presence import WorkerCard
from schemas.reply import Finished, ReplyMessage
from schemas.sampling import Sampling
from tests.integration.conftest import free_port
from tests.oracle import expected_of_job
from tests.process_tree import children
from workers.engine.sim_tokenizer import write_tokenizer
from workers.worker import Worker

LIMIT_S = 30.0


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


def make_config(
    nats: Nats, *, ack_wait_s: float = 15, drain_s: float = 20, hang_s: float = 30, **sim: object
) -> Config:
    base = Config()
    return msgspec.structs.replace(
        base,
        nats=msgspec.structs.replace(nats, ack_wait_s=ack_wait_s),
        worker=msgspec.structs.replace(
            base.worker, engine="sim", port=0, drain_s=drain_s, presence_interval_s=0.2, hang_timeout_s=hang_s
        ),
        sim=msgspec.convert({"prefill_base_ms": 1, "inter_token_ms": 2, **sim}, Sim),
    )


def sim_model(config: Config, folder: Path) -> ModelToken:
    """The model token under which a worker with this configuration serves."""
    return model_token(config.sim.name, write_tokenizer(folder, config.sim.max_model_len)[1])


class Client:
    """``logs``: by response, as the tail showed them."""

    def __init__(self, broker: Broker, config: Config, model: ModelToken) -> None:
        self.broker = broker
        self.config = config
        self.model = model
        self.gateway = GatewayId(new_process_id("gw"))
        self.logs: dict[ResponseId, LogReader] = {}
        self.messages: dict[ResponseId, list[ReplyMessage]] = {}
        self.tail = ReplyTail(broker, self.gateway, on_message=self._on_message)

    def _on_message(
        self, response: ResponseId, seq: int, message: ReplyMessage, stored_unix_ms: float
    ) -> None:
        step = self.logs.setdefault(response, LogReader()).feed(seq, message)
        assert not step.gap
        self.messages.setdefault(response, []).append(message)

    def job(
        self, prompt_ids: Sequence[int] = (1, 2, 3), *, deadline_s: float = 60, **sampling: object
    ) -> Job:
        now = int(time.time() * 1000)
        return Job(
            response=new_response_id(),
            tenant=TenantId("acme"),
            session=SessionToken("s1"),
            gateway=self.gateway,
            model=self.model,
            model_name=self.config.sim.name,
            prompt_ids=tuple(prompt_ids),
            sampling=msgspec.convert({"max_tokens": 64, **sampling}, Sampling),
            presentation=Presentation(api="responses"),
            created_unix_ms=now,
            deadline_unix_ms=now + int(deadline_s * 1000),
        )

    async def submit(self, *all_jobs: Job) -> None:
        for job in all_jobs:
            await jobs.publish_job(self.broker, job)

    async def streams(self, count: int, max_tokens: int) -> list[Job]:
        """Jobs of which each has tokens, and is far from its end."""
        all_jobs = [self.job([n], max_tokens=max_tokens, ignore_eos=True, seed=n) for n in range(count)]
        await self.submit(*all_jobs)
        await until(lambda: all(self.tokens_of(job) > 20 for job in all_jobs))
        return all_jobs

    def log(self, job: Job) -> ReplyLog:
        return ReplyLog(self.broker, job.gateway, job.response, job.session)

    def tokens_of(self, job: Job) -> int:
        reader = self.logs.get(job.response)
        return 0 if reader is None else len(reader.ids)

    def ended(self, job: Job) -> bool:
        reader = self.logs.get(job.response)
        return reader is not None and reader.end is not None

    async def until_ended(self, *all_jobs: Job, limit_s: float = LIMIT_S) -> None:
        await until(lambda: all(self.ended(job) for job in all_jobs), limit_s)

    async def check(self, *all_jobs: Job) -> None:
        """Each stream is exactly what the oracle says, in the tail and as stored."""
        for job in all_jobs:
            ids, reason = expected_of_job(job, self.config.sim)
            for reader in (self.logs[job.response], await self.log(job).read()):
                assert reader.end is not None
                end = reader.end.message
                assert isinstance(end, Finished), end
                assert reader.ids == ids
                assert (end.ids, end.total, end.reason) == (tuple(ids), len(ids), reason)
                assert end.usage.completion_tokens == len(ids)
                assert end.usage.prompt_tokens == len(job.prompt_ids)

    async def unacked(self) -> int:
        """Jobs that are waiting or held, over all queues."""
        count = 0
        for info in await self.broker.js.consumers_info(subjects.JOBS):
            count += (info.num_ack_pending or 0) + (info.num_pending or 0)
        return count

    async def until_all_acked(self, limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while await self.unacked():
                await asyncio.sleep(0.02)

    async def workers(self) -> list[WorkerCard]:
        roster = presence.Roster(self.broker)
        running = asyncio.create_task(roster.run())
        try:
            await roster.ready.wait()
            return roster.workers()
        finally:
            await stop_task(running)


@contextlib.asynccontextmanager
async def client(broker: Broker, config: Config, folder: Path) -> AsyncIterator[Client]:
    tester = Client(broker, config, sim_model(config, folder))
    tailing = asyncio.create_task(tester.tail.run())
    try:
        await tester.tail.ready.wait()
        yield tester
        assert not tailing.done(), tailing.result()
    finally:
        await stop_task(tailing)


async def stop_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


class InProcess:
    """A worker in this process. ``most_running`` is watched at every engine step."""

    def __init__(self, config: Config) -> None:
        self.worker = Worker(config)
        self.shutdown = Shutdown()
        self.task = asyncio.create_task(self.worker.run(self.shutdown), name="worker")

    @property
    def id(self) -> WorkerId:
        return self.worker.id

    async def until_ready(self) -> None:
        await until(lambda: self.task.done() or self.worker.health[0])
        if self.task.done():
            self.task.result()

    async def drain(self) -> None:
        self.shutdown.requested.set()
        async with asyncio.timeout(LIMIT_S):
            await self.task


@contextlib.asynccontextmanager
async def in_process(config: Config) -> AsyncIterator[InProcess]:
    running = InProcess(config)
    try:
        await running.until_ready()
        yield running
    finally:
        if not running.task.done():
            await stop_task(running.task)


class Subprocess:
    """`headrace worker` as an operator starts it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.port = free_port()
        self.output = folder / f"worker-{self.port}.log"
        worker = msgspec.structs.replace(config.worker, port=self.port)
        environment = {
            f"HEADRACE_{section}__{key}".upper(): str(value)
            for section, keys in (("nats", config.nats), ("worker", worker), ("sim", config.sim))
            for key, value in msgspec.to_builtins(keys).items()
        }
        command = [sys.executable, "-m", "deploy.cli", "worker"]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **environment}
            )

    async def health(self) -> tuple[int, str]:
        async with httpx.AsyncClient() as http:
            try:
                answer = await http.get(f"http://127.0.0.1:{self.port}/healthz")
            except httpx.TransportError:
                return 0, ""
        return answer.status_code, answer.text.strip()

    async def until_health(self, status: int, text: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self.health() != (status, text):
                assert self.process.poll() is None, self.output.read_text()
                await asyncio.sleep(0.02)

    async def until_exit(self, limit_s: float = LIMIT_S) -> int:
        await until(lambda: self.process.poll() is not None, limit_s)
        return self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To the guardian."""
        self.process.send_signal(number)

    @property
    def worker_pid(self) -> int:
        """Of the process under the guardian; 0 while there is none."""
        return next(iter(children(self.process.pid)), 0)

    def signal_worker(self, number: signal.Signals) -> None:
        """To the process under the guardian."""
        pid = self.worker_pid
        assert pid, "there is no worker process; 0 would signal ourselves"
        os.kill(pid, number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def subprocess_worker(config: Config, folder: Path) -> Iterator[Subprocess]:
    running = Subprocess(config, folder)
    try:
        yield running
    finally:
        running.end()
