"""The worker: one engine, one broker connection, as many runs as the engine has slots. Owns the order of
starting, draining and failing. Must not know what becomes of a single job; that is ``run``'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from nats.aio.msg import Msg

from broker import metrics, presence, subjects, tokenizers, topology
from broker.connection import Broker, unix_ms
from broker.jobs import JobDelivery, JobPuller
from broker.plain_counter import Cell
from broker.process import Shutdown
from broker.survey import WORKER_INTERVAL_S, Survey
from broker.telemetry import telemetry_of
from schemas.config import Config
from schemas.ids import ModelToken, ResponseId, WorkerId, model_token, new_process_id
from schemas.presence import WorkerCard, WorkerState
from workers import service
from workers.engine.base import Delta, Engine, EngineDead, EngineInfo
from workers.engine.factory import make_engine
from workers.lifeline import Lifeline
from workers.publisher import Publisher
from workers.quarantine import Quarantine
from workers.run import Bench, Run, response_of
from workers.run_state import DrainOver, EngineFailed, Event, Nudged

log = logging.getLogger(__name__)

HAND_OFF_LIMIT_S = 5.0  # for all runs that the drain did not see finished
ABANDON_LIMIT_S = 1.2  # after the engine's death: for giving the jobs back
PULLS_END_LIMIT_S = 4.0  # and until no parked pull can bring another one, which would wait for ack_wait

T = TypeVar("T")


class Worker:
    """``engine`` is made from the configuration where none is given. ``port``: of /healthz and /metrics,
    once it listens. ``lifeline``: to the guardian, where there is one. ``on_loaded``: called when the engine
    is, before the first job."""

    def __init__(
        self,
        config: Config,
        *,
        engine: Engine | None = None,
        lifeline: Lifeline | None = None,
        on_loaded: Callable[[], None] | None = None,
    ) -> None:
        self.id = WorkerId(new_process_id("wk"))
        self.port = 0
        self.runs: dict[ResponseId, Run] = {}  # by response; the newest where a job came twice
        self._config = config
        self._engine = engine
        self._lifeline = lifeline or Lifeline(None)
        self._on_loaded = on_loaded
        self.health = (False, "starting")
        self._live: dict[ResponseId, Run] = {}
        self._tasks: dict[asyncio.Task[None], Run] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._state: WorkerState = "ready"
        self._announce = asyncio.Event()
        self._tokens = 0
        self._tokens_per_s = 0.0
        self._steps = Cell()
        self._started_unix_ms = unix_ms()
        self._telemetry = telemetry_of(config.tracing, "worker", self.id)

    async def run(self, shutdown: Shutdown) -> None:
        """Until a drain is over. Raises ``EngineDead``, ``BrokerClosed`` and their like."""
        async with asyncio.TaskGroup() as group:
            with _side_tasks(group) as start:
                start(self._serve_http(), "http")
                start(self._lifeline.beat(), "heartbeat")
                connecting = Broker.connect(self._config.nats, name=f"worker {self.id}")
                broker = await _unless(shutdown.requested, connecting)
                if broker is None:
                    return
                try:
                    start(broker.closed(), "broker-closed")
                    await self._with_engine(broker, shutdown, group)
                finally:
                    await broker.close()
                    if self._telemetry is not None:
                        await self._telemetry.close()

    async def _with_engine(self, broker: Broker, shutdown: Shutdown, group: asyncio.TaskGroup) -> None:
        if await _unless(shutdown.requested, _true_after(topology.apply(broker))) is None:
            return
        info = await _unless(shutdown.requested, self._start_engine())
        if info is None:
            log.info("stopped before the engine was ready")
        try:
            if info is not None:
                await self._serve(broker, info, shutdown, group)
        finally:
            if self._engine is not None:
                await self._engine.close()

    async def _start_engine(self) -> EngineInfo:
        begun_s = asyncio.get_running_loop().time()
        if self._engine is None:
            self._engine = await make_engine(self._config)
        info = await self._engine.start(self._on_step)
        took_s = asyncio.get_running_loop().time() - begun_s
        metrics.ENGINE_START_S.labels(model=info.model_name).set(took_s)
        return info

    async def _serve(
        self, broker: Broker, info: EngineInfo, shutdown: Shutdown, group: asyncio.TaskGroup
    ) -> None:
        assert self._engine is not None
        model = model_token(info.model_name, info.revision)
        await tokenizers.put_tokenizer(broker, model, info.tokenizer_dir)
        publisher = Publisher(
            broker, info.model_name, confirm_interval_s=self._config.worker.confirm_interval_s
        )
        bench = Bench(
            broker=broker,
            engine=self._engine,
            publisher=publisher,
            worker=self.id,
            model=model,
            model_name=info.model_name,
            hold_interval_s=self._config.nats.ack_wait_s / 3,
            live=self._live,
            quarantine=Quarantine(),
            telemetry=self._telemetry,
            shown=self._config.logging.responses,
        )

        def on_job(delivery: JobDelivery) -> None:
            self._begin(Run(bench, delivery, earlier=self.runs.get(response_of(delivery))), group, puller)

        reserved = min(self._config.worker.reserved_slots, info.slots - 1)
        puller = JobPuller(broker, model, on_job=on_job, reserved=reserved)
        await presence.answer_pings(broker, self.id)
        await service.answer(broker, lambda: self._card(info, model))
        await broker.nc.subscribe(subjects.cancel(ResponseId("*")), cb=self._nudge)
        self._show_load(info)
        if self._on_loaded is not None:
            self._on_loaded()
        with _side_tasks(group) as start:
            start(publisher.run(), "publisher")
            start(self._keep_announcing(broker, info, model), "presence")
            start(_survey(broker, info, model).run(), "survey")
            pulling = start(puller.run(), "pull-jobs")
            puller.set_free(info.slots)
            self._lifeline.ready(self.id)  # before it may pull: a job is nobody's else
            self.health = (True, "ready")
            log.info("%s serves %s, %d slots, %s", self.id, model, info.slots, info.engine)
            try:
                await self._while_engine_lives(shutdown.requested.wait())
                await self._while_engine_lives(self._drain(puller, pulling))
            except EngineDead:
                puller.stop()
                await self._tell_all(EngineFailed(), ABANDON_LIMIT_S)
                await asyncio.wait({pulling}, timeout=PULLS_END_LIMIT_S)  # gives back what still arrives
                raise
            finally:
                await presence.withdraw(broker, self.id)

    # -- runs -----------------------------------------------------------------------------------------

    def _begin(self, run: Run, group: asyncio.TaskGroup, puller: JobPuller) -> None:
        self.runs[run.response] = run
        self._idle.clear()
        self._lifeline.took(run.ack_subject)

        def end(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            if not task.cancelled():  # or nobody has settled what becomes of the job
                self._lifeline.done(run.ack_subject)
            if self.runs.get(run.response) is run:
                del self.runs[run.response]
            if not self._tasks:
                self._idle.set()
            puller.release()

        task = group.create_task(run.run(), name=f"run-{run.response}")
        self._tasks[task] = run
        task.add_done_callback(end)

    def _on_step(self, deltas: list[Delta]) -> None:
        live = self._live
        self._steps.value += 1
        for delta in deltas:
            self._tokens += len(delta.ids)
            if (run := live.get(delta.request_id)) is not None:
                run.on_delta(delta)

    async def _nudge(self, msg: Msg) -> None:
        if (run := self.runs.get(ResponseId(msg.subject.rpartition(".")[2]))) is not None:
            run.post(Nudged())

    # -- stopping -------------------------------------------------------------------------------------

    async def _drain(self, puller: JobPuller, pulling: asyncio.Task[None]) -> None:
        """Take nothing new, finish what runs, hand over what does not finish in time."""
        puller.stop()
        self._state = "draining"
        self.health = (False, "draining")
        self._announce.set()
        log.info("draining %d responses", len(self._tasks))
        try:
            async with asyncio.timeout(self._config.worker.drain_s):
                await self._idle.wait()
        except TimeoutError:
            log.info("handing off %d responses", len(self._tasks))
            await self._tell_all(DrainOver(), HAND_OFF_LIMIT_S)
        await pulling  # what arrived meanwhile is given back

    async def _tell_all(self, event: Event, limit_s: float) -> None:
        """Every run ends on this event, or is left to ack_wait after ``limit_s``."""
        for run in self._tasks.values():
            run.post(event)
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d responses are left to be delivered again after ack_wait", len(self._tasks))
            for task in self._tasks:
                task.cancel()

    async def _while_engine_lives(self, work: Coroutine[Any, Any, object]) -> None:
        """Raises ``EngineDead`` as soon as the engine fails."""
        assert self._engine is not None
        for task in await _first(self._engine.failed(), work):
            task.result()

    # -- what others see ------------------------------------------------------------------------------

    async def _serve_http(self) -> None:
        def listening(port: int) -> None:
            self.port = port
            log.info("health and metrics on http://%s:%d", worker.host, port)

        worker = self._config.worker
        await metrics.serve_http(worker.host, worker.port, lambda: self.health, on_listening=listening)

    async def _keep_announcing(self, broker: Broker, info: EngineInfo, model: ModelToken) -> None:
        clock = asyncio.get_running_loop().time
        before_s, before_tokens = clock(), self._tokens
        while True:
            if (passed_s := clock() - before_s) >= self._config.worker.presence_interval_s / 2:
                self._tokens_per_s = (self._tokens - before_tokens) / passed_s
                before_s, before_tokens = clock(), self._tokens
            self._announce.clear()
            await presence.announce(broker, self._card(info, model))
            try:
                async with asyncio.timeout(self._config.worker.presence_interval_s):
                    await self._announce.wait()
            except TimeoutError:
                pass  # the regular one

    def _card(self, info: EngineInfo, model: ModelToken) -> WorkerCard:
        assert self._engine is not None
        load = self._engine.load()
        return WorkerCard(
            worker=self.id,
            model=model,
            model_name=info.model_name,
            revision=info.revision,
            engine=info.engine,
            state=self._state,
            slots=info.slots,
            running=load.running,
            waiting=load.waiting,
            tokens_per_s=round(self._tokens_per_s, 1),
            kv_cache_usage=load.kv_cache_usage,
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            tokenizer=model,
            started_unix_ms=self._started_unix_ms,
            seen_unix_ms=unix_ms(),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("headrace"),
            interval_s=self._config.worker.presence_interval_s,
            structured_output=info.structured_output,
        )

    def _show_load(self, info: EngineInfo) -> None:
        model, engine = info.model_name, self._engine
        assert engine is not None
        metrics.WORKER_READY.set_function(lambda: self.health[0])
        metrics.SLOTS.labels(model=model).set(info.slots)
        metrics.SLOTS_USED.labels(model=model).set_function(lambda: len(self._tasks))
        self._steps = metrics.ENGINE_STEPS.labels(model=model)
        metrics.WORKER.running.labels(model=model).set_function(lambda: engine.load().running)
        metrics.WORKER.waiting.labels(model=model).set_function(lambda: engine.load().waiting)
        metrics.KV_CACHE.labels(model=model).set_function(lambda: engine.load().kv_cache_usage)


def _survey(broker: Broker, info: EngineInfo, model: ModelToken) -> Survey:
    def name_of(other: ModelToken) -> str:
        return info.model_name if other == model else other

    return Survey(broker, interval_s=WORKER_INTERVAL_S, name_of=name_of)


@contextmanager
def _side_tasks(group: asyncio.TaskGroup) -> Iterator[_Start]:
    """Tasks that run beside the block and end with it; one that fails takes the whole group down."""
    tasks: list[asyncio.Task[Any]] = []

    def start(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = group.create_task(work, name=name)
        tasks.append(task)
        return task

    try:
        yield start
    finally:
        for task in tasks:
            task.cancel()


class _Start(Protocol):
    def __call__(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]: ...


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``, or None where ``stop`` came first."""
    working = asyncio.ensure_future(work)
    try:
        await _first(stop.wait(), asyncio.wait({working}))
        return working.result() if working.done() else None
    finally:
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _true_after(work: Coroutine[Any, Any, None]) -> bool:
    await work
    return True


async def _first(*works: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Those that ended first, in the order given; the others are cancelled and waited for."""
    tasks = [asyncio.create_task(work, name=f"first-of-{number}") for number, work in enumerate(works)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
