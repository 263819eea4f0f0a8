"""``python -m tests.bench.queue``: the job queue in jobs a second, empty and with 100,000 jobs waiting.

Through the code that gateways and workers use, in one process and on one connection each: publish, pull,
``Started``, ``Finished``, ack; how long a job takes to be found by its response, and a gateway's look at the
queues, which it takes once a second for the positions it tells. Then what a job costs that waits: in
nats-server's memory and file, and in a gateway's memory and CPU as long as its client waits too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import websockets
from rich.console import Console
from rich.table import Table

from broker import subjects, topology
from broker.connection import Broker
from broker.jobs import JobDelivery, JobPuller, find_job, publish_job
from broker.log_writer import LogWriter
from broker.queues import queue_states
from broker.replylog import ReplyLog
from schemas import codec
from schemas.ids import ModelToken, ResponseId, WorkerId, model_token
from schemas.job import Job, Priority
from schemas.reply import Started, Timings, Usage
from tests.bench.costs import cpu_s, rss_bytes
from tests.bench.layout import gateway, servers, sim_worker
from tests.bench.program import carry_out
from tests.chaos.failover import percentiles
from tests.integration.conftest import NatsServer
from tests.integration.workers.farm import Client, make_config

MODEL = model_token("bench", "1")
SLOTS = 64
AT_ONCE = 64  # publishes under way
PER_SOCKET = 32  # gateway.max_responses_per_connection
WAIT_S = 6.0
HELD_S = 0.01  # by a job that others wait behind


def main() -> int:
    args = _arguments()
    return carry_out(_run(args), _print, args)


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with AsyncExitStack() as stack:
            nats, redis = await servers(stack, Path(folder))
            edge = await Broker.connect(nats.config, name="edge")
            stack.push_async_callback(edge.close)
            workers = await Broker.connect(nats.config, name="workers")
            stack.push_async_callback(workers.close)
            await topology.apply(edge)
            await topology.ensure_job_consumers(workers, MODEL)
            queue = _Queue(nats, edge, workers)
            await queue.latencies(50)  # warm
            figures: dict[str, Any] = {
                "settings": {key: str(value) for key, value in vars(args).items()},
                "empty": {
                    **await queue.latencies(args.probes),
                    **await queue.looks(args.probes),
                    **await queue.throughput(args.jobs),
                },
            }
            figures["waiting"] = await queue.fill(args.waiting)
            figures["full"] = {
                **await queue.looks(args.probes),
                **await queue.latencies(args.probes),
                **await queue.drain(args.jobs),
            }
            figures["gateway"] = await _gateway(stack, Path(folder), nats, redis.url, args.responses)
    return figures


class _Queue:
    """``edge`` publishes, ``workers`` pulls."""

    def __init__(self, nats: NatsServer, edge: Broker, workers: Broker) -> None:
        self._nats = nats
        self._edge = edge
        self._workers = workers
        self._asker = Client(edge, make_config(nats.config), ModelToken(MODEL))
        self._clock = time.perf_counter
        self._last = ResponseId("")

    def _job(self, priority: Priority = "interactive") -> Job:
        job = msgspec.structs.replace(self._asker.job(range(1, 200), deadline_s=3600), priority=priority)
        self._last = job.response
        return job

    async def latencies(self, count: int) -> dict[str, Any]:
        """One interactive job after the other, to 8 slots that batch jobs fill if there are any: how long
        until it is stored, and until a worker has it. Milliseconds."""
        stored_ms, pulled_ms = [], []
        awaited: asyncio.Future[None] | None = None

        async def work(delivery: JobDelivery) -> None:
            if ".interactive." not in delivery.delivery.subject:
                await asyncio.sleep(HELD_S)
            elif awaited is not None:
                awaited.set_result(None)
            await delivery.ack()

        async with _Pulling(self._workers, work, slots=8, reserved=1) as pulling:
            await pulling.settled()
            for _ in range(count):
                job = self._job()
                awaited = asyncio.get_running_loop().create_future()
                begun_s = self._clock()
                await publish_job(self._edge, job)
                stored_ms.append((self._clock() - begun_s) * 1000)
                await awaited
                pulled_ms.append((self._clock() - begun_s) * 1000)
                awaited = None
                await asyncio.sleep(0.005)
        return {"stored_ms": _ranks(stored_ms), "pulled_ms": _ranks(pulled_ms)}

    async def looks(self, count: int) -> dict[str, Any]:
        """At the job that was published last, and at the depth of all queues. Milliseconds."""
        found_ms, depths_ms = [], []
        for _ in range(count):
            begun_s = self._clock()
            assert await find_job(self._edge, self._last) is not None
            found_ms.append((self._clock() - begun_s) * 1000)
            begun_s = self._clock()
            await queue_states(self._edge, MODEL)
            depths_ms.append((self._clock() - begun_s) * 1000)
        return {"found_ms": _ranks(found_ms), "depths_ms": _ranks(depths_ms)}

    async def throughput(self, count: int) -> dict[str, Any]:
        """All of a job's life but its tokens, jobs coming and going at once."""
        async with _Pulling(self._workers, self._whole_life, slots=SLOTS) as pulling:
            used_s, begun_s = time.process_time(), self._clock()
            await self._publish(self._job() for _ in range(count))
            await pulling.until(count)
            return self._rates(count, begun_s, used_s)

    async def drain(self, count: int) -> dict[str, Any]:
        """So many of those that wait."""
        async with _Pulling(self._workers, self._whole_life, slots=SLOTS) as pulling:
            used_s, begun_s = time.process_time(), self._clock()
            await pulling.until(count)
            return self._rates(count, begun_s, used_s)

    def _rates(self, count: int, begun_s: float, used_s: float) -> dict[str, Any]:
        cpu_us = (time.process_time() - used_s) / count * 1e6
        return {"jobs_per_s": round(count / (self._clock() - begun_s)), "cpu_us_per_job": round(cpu_us)}

    async def fill(self, count: int) -> dict[str, Any]:
        """Batch jobs, without a worker. What one costs the server, beside the rate at which they were
        taken."""
        pid = self._nats.pid
        rss, used_s, begun_s = rss_bytes(pid), cpu_s(pid), self._clock()
        file = (await self._edge.js.stream_info(subjects.JOBS)).state.bytes
        await self._publish(self._job("batch") for _ in range(count))
        stored = (await self._edge.js.stream_info(subjects.JOBS)).state.bytes - file
        return {
            "jobs": count,
            "stored_per_s": round(count / (self._clock() - begun_s)),
            "nats_cpu_us_each": round((cpu_s(pid) - used_s) / count * 1e6),
            "nats_memory_bytes_each": round((rss_bytes(pid) - rss) / count),
            "file_bytes_each": round(stored / count),
            "message_bytes": len(codec.encode(self._asker.job(range(1, 200)))),
        }

    async def _publish(self, jobs: Iterable[Job]) -> None:
        left = iter(jobs)

        async def one_after_the_other() -> None:
            for job in left:
                await publish_job(self._edge, job)

        async with asyncio.TaskGroup() as tasks:
            for number in range(AT_ONCE):
                tasks.create_task(one_after_the_other(), name=f"publish {number}")

    async def _whole_life(self, delivery: JobDelivery) -> None:
        job = codec.decode_job(delivery.delivery.data)
        log = ReplyLog(self._workers, job.gateway, job.response, job.session)
        claim = await log.claim(
            lambda attempt: Started(
                attempt=attempt, worker=WorkerId("bench"), ack_subject=delivery.ack_subject
            )
        )
        assert claim.fence is not None
        await log.end(LogWriter(claim.fence).finished("stop", Usage(), Timings()))
        await delivery.ack()


class _Pulling:
    """A worker's pulling, with ``work`` instead of an engine."""

    def __init__(
        self,
        broker: Broker,
        work: Callable[[JobDelivery], Coroutine[Any, Any, None]],
        *,
        slots: int,
        reserved: int = 0,
    ) -> None:
        self._work = work
        self._slots = slots
        self._done = 0
        self._news = asyncio.Event()
        self._puller = JobPuller(broker, MODEL, on_job=self._begin, reserved=reserved)
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> _Pulling:
        await self._tasks.__aenter__()
        self._tasks.create_task(self._puller.run(), name="pull")
        self._puller.set_free(self._slots)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._puller.stop()
        await self._tasks.__aexit__(*failure)

    async def settled(self) -> None:
        """The slots are full, or nothing waits."""
        await asyncio.sleep(1.0)

    async def until(self, count: int) -> None:
        while self._done < count:
            self._news.clear()
            await self._news.wait()

    def _begin(self, delivery: JobDelivery) -> None:
        self._tasks.create_task(self._run(delivery), name="job")

    async def _run(self, delivery: JobDelivery) -> None:
        await self._work(delivery)
        self._done += 1
        self._puller.release()
        self._news.set()


async def _gateway(
    stack: AsyncExitStack, folder: Path, nats: NatsServer, redis_url: str, count: int
) -> dict[str, Any]:
    """What a gateway keeps of a response that waits, its client connected."""
    sim = {"slots": 1, "inter_token_ms": 1000, "mean_output_tokens": 0}
    await sim_worker(stack, folder, nats, sim)
    process, port = await gateway(stack, folder, nats.url, redis_url)
    sockets = [
        await stack.enter_async_context(
            websockets.connect(f"ws://127.0.0.1:{port}/v1/responses", compression=None, max_queue=None)
        )
        for _ in range(-(-count // PER_SOCKET))
    ]
    await _ask(sockets[0], 1)
    rss, used_s = rss_bytes(process.pid), cpu_s(process.pid)
    for socket in sockets[1:]:
        await _ask(socket, PER_SOCKET)
    asked = PER_SOCKET * (len(sockets) - 1)
    found = {
        "responses": asked,
        "memory_bytes_each": round((rss_bytes(process.pid) - rss) / asked),
        "cpu_us_each": round((cpu_s(process.pid) - used_s) / asked * 1e6),
    }
    used_s, server_s = cpu_s(process.pid), cpu_s(nats.pid)
    await asyncio.sleep(WAIT_S)
    return {
        **found,
        "cpu_percent_while_they_wait": round(100 * (cpu_s(process.pid) - used_s) / WAIT_S, 1),
        "nats_cpu_percent": round(100 * (cpu_s(nats.pid) - server_s) / WAIT_S, 1),
    }


async def _ask(socket: websockets.ClientConnection, count: int) -> None:
    for _ in range(count):
        await socket.send('{"type":"response.create","input":"What is a headrace?","max_output_tokens":4000}')
    queued: set[str] = set()
    while len(queued) < count:
        event = json.loads(await socket.recv())
        assert event["type"] != "error", event
        if event["type"] == "response.queued":
            queued.add(event["response"]["id"])


# -- figures ----------------------------------------------------------------------------------------


def _ranks(values: Sequence[float]) -> dict[str, float]:
    """``percentiles`` has tenths of a millisecond, which is what these take."""
    return {name: value / 1000 for name, value in percentiles([value * 1000 for value in values]).items()}


def _print(figures: Mapping[str, Any], console: Console) -> None:
    timed = {
        "stored_ms": "stored",
        "pulled_ms": "at a worker",
        "found_ms": "found by its id",
        "depths_ms": "all depths",
    }
    table = Table("queue", "jobs/s", "CPU us a job", *timed.values(), title="milliseconds: p50 / p99")
    for name in ("empty", "full"):
        run = figures[name]
        ranks = [f"{run[what]['p50']:.2f} / {run[what]['p99']:.2f}" for what in timed]
        shown = "empty" if name == "empty" else f"{figures['waiting']['jobs']} batch jobs wait"
        table.add_row(shown, str(run["jobs_per_s"]), str(run["cpu_us_per_job"]), *ranks)
    console.print(table)
    for name, title in (("waiting", "a job that waits, nats-server"), ("gateway", "the same, its gateway")):
        table = Table(*figures[name], title=title)
        table.add_row(*map(str, figures[name].values()))
        console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="for the throughput")
    parser.add_argument("--probes", type=int, default=300, help="for the latencies")
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--responses", type=int, default=2000, help="that wait at the gateway")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
