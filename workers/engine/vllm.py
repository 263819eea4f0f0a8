"""The vLLM engine: ``AsyncLLM`` in this process, its engine core in a child process of this one.

Owns the life of requests inside the engine, the batching of their deltas by engine step, and the engine's
own life: start, failure, close. Must not know queues or the network.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from schemas.ids import ResponseId
from schemas.sampling import StructuredOutput
from workers.engine.base import (
    Delta,
    EngineDead,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    RequestEnd,
    StepSink,
)
from workers.engine.vllm_boot import EngineSteps, boot
from workers.engine.vllm_output import Replay, delta_of
from workers.engine.vllm_sampling import FORCED, Admitted, Limits, admit, structured_params, vllm_params
from workers.models import ModelFolder

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

_TICK_S = 0.1  # how often the watchdog looks
_SHUTDOWN_S = 5.0  # for a clean end of the engine core; after that it is killed
_FIRST_TOKEN_S = 120.0  # for the first token of all, which pays for what vLLM does lazily


class VllmEngine:
    """An ``Engine`` (see ``workers.engine.base``). ``table`` is ``[vllm]`` of the configuration: any field
    of vLLM's ``AsyncEngineArgs``. ``slots`` 0: vLLM's ``max_num_seqs``."""

    _on_step: StepSink
    _limits: Limits
    _traced: bool  # vLLM exports traces: then, and only then, it is given the parent

    def __init__(
        self,
        model: ModelFolder,
        *,
        served_name: str = "",
        slots: int = 0,
        table: Mapping[str, Any] | None = None,
        hang_timeout_s: float = 30,
        canary_interval_s: float = 60,
    ) -> None:
        self._model = model
        self._served_name = served_name or model.name
        self._slots = slots
        self._table = dict(table or {})
        self._hang_timeout_s = hang_timeout_s
        self._canary_interval_s = canary_interval_s
        self._steps = EngineSteps()
        self._failure = asyncio.Event()
        self._why_failed = ""
        self._closing = False
        self._boot: asyncio.Task[None] | None = None
        self._engine: AsyncLLM | None = None
        self._not_ours: set[int | None] = set()  # children of this process from before the boot
        self._cores: list[BaseProcess] | None = None  # None: still booting
        self._live: dict[ResponseId, asyncio.Task[None]] = {}  # requests that may still emit
        self._tasks: set[asyncio.Task[None]] = set()  # those, and the cancelled on their way out
        self._submitted = 0
        self._pending: list[Delta] = []  # of the engine step that is being taken apart

    # -- life ---------------------------------------------------------------------------------------

    async def start(self, on_step: StepSink) -> EngineInfo:
        self._on_step = on_step
        self._not_ours = {process.pid for process in multiprocessing.active_children()}
        self._boot = asyncio.create_task(asyncio.to_thread(self._load), name="vllm-boot")
        try:
            # Shielded: a thread cannot be cancelled. If start() is, close() deals with what it makes.
            await asyncio.shield(self._boot)
            assert self._engine is not None
            engine = self._engine
            self._cores = self._processes()
            info = self._describe(engine)
            await self._prove_forcing(engine)
            info = dataclasses.replace(info, structured_output=await self._takes_structures(engine))
        except EngineDead:
            await self.close()
            raise
        self._own(self._watch(engine), "vllm-watchdog")
        return info

    def _load(self) -> None:
        """In a thread. Not by return value: vLLM keeps frames of this call alive, and an engine that
        they held would be finalized when the interpreter is half gone, with a traceback."""
        arguments = (self._model, self._served_name, self._slots, self._table, self._steps)
        self._engine = boot(*arguments, still_wanted=lambda: not self._closing)

    def _describe(self, engine: AsyncLLM) -> EngineInfo:
        import vllm
        import vllm.envs

        vllm.envs.enable_envs_cache()  # vLLM does so in its engine core, and not here
        config = engine.vllm_config
        self._limits = Limits(
            config.model_config.get_vocab_size(),
            config.model_config.max_model_len,
            forcing="always" if self._table.get("logits_processors") else "needed",
            seed_by_position=config.use_v2_model_runner,
        )
        self._slots = self._slots or config.scheduler_config.max_num_seqs
        self._traced = config.observability_config.otlp_traces_endpoint is not None
        # The tokenizer's own, then those that the model's generation config adds: vLLM stops at all.
        more = config.model_config.try_get_generation_config().get("eos_token_id")
        eos = [engine.renderer.get_eos_token_id(), *(more if isinstance(more, list) else [more])]
        return EngineInfo(
            model_name=self._served_name,
            revision=self._model.revision,
            engine=f"vllm {vllm.__version__}",
            slots=self._slots,
            max_model_len=self._limits.max_model_len,
            vocab_size=self._limits.vocab_size,
            eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
            tokenizer_dir=self._model.path,
        )

    async def close(self) -> None:
        self._closing = True
        self._live.clear()
        self._pending.clear()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_SHUTDOWN_S)
        if self._boot is None:
            return
        while not self._boot.done():  # its thread waits for the process it has started
            self._kill()
            await asyncio.wait({self._boot}, timeout=_TICK_S)
        if not self._boot.cancelled():
            self._boot.exception()  # start() has raised it, or was cancelled and nobody wants it
        if self._cores is None:
            self._cores = self._processes()
        engine, self._engine = self._engine, None
        if engine is not None:
            if self._failure.is_set():  # a clean end could only use up its time
                self._kill()
            if engine.output_handler is not None:  # it would report the end of the core as an error
                engine.output_handler.cancel()
            shutdown = asyncio.create_task(
                asyncio.to_thread(engine.shutdown, _SHUTDOWN_S), name="vllm-shutdown"
            )
            await asyncio.wait({shutdown}, timeout=2 * _SHUTDOWN_S)
        self._kill()

    def _processes(self) -> list[BaseProcess]:
        """The engine cores of this engine. Workers that a core has started end with it (orphan_guard)."""
        if self._cores is not None:
            return self._cores
        return [process for process in multiprocessing.active_children() if process.pid not in self._not_ours]

    def _kill(self) -> None:
        for process in self._processes():
            process.kill()
            process.join(timeout=1)  # milliseconds: SIGKILL ends a stopped process too

    # -- requests -----------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> None:
        self.abort(request.request_id)  # a second run of a response ends the first
        admitted = admit(request, self._limits)
        if isinstance(admitted, RequestEnd):
            self._emit(Delta(request.request_id, end=admitted))
            return
        self._live[request.request_id] = self._own(self._run(request, admitted), f"vllm-{request.request_id}")

    def abort(self, request_id: ResponseId) -> None:
        task = self._live.pop(request_id, None)
        if task is not None:
            task.cancel()
        if self._pending:
            self._pending = [delta for delta in self._pending if delta.request_id != request_id]

    async def _run(self, request: EngineRequest, admitted: Admitted) -> None:
        """One request: emits its deltas, the last one with its end."""
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._engine is not None
        engine = self._engine
        self._submitted += 1
        key = f"{request.request_id}-{self._submitted}"  # ids may come again before vLLM forgot the first
        replay = Replay(admitted.forced)
        try:
            outputs = engine.generate(
                tokens_input(admitted.token_ids, cache_salt=request.cache_salt),
                vllm_params(admitted.sampling, admitted.forced),
                key,
                priority=request.priority,
                trace_headers={"traceparent": request.traceparent}
                if self._traced and request.traceparent
                else None,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    self._steps.count += 1
                    if not replay.take_off(output.outputs[0]):
                        log.error("vLLM did not repeat the tokens of %s", request.request_id)
                        self._emit_end(request, "engine_failed", "The engine lost the response's thread.")
                        return
                    delta = delta_of(request, output)
                    if delta is not None:
                        self._emit(delta)
        except asyncio.CancelledError:
            # generate() aborts by itself, except while it is still handing the request over.
            await engine.abort(key)
            raise
        except EngineDeadError:
            self._fail("vLLM's engine core died")
        except VLLMClientError as error:
            self._emit_end(request, "engine_rejected", str(error))
        except VLLMError as error:
            if isinstance(error.__cause__, ValueError):  # some of vLLM's checks raise these bare
                self._emit_end(request, "engine_rejected", str(error.__cause__))
            else:
                log.exception("vLLM failed on %s", request.request_id)
                self._emit_end(request, "engine_failed", "The engine failed on this request.")

    def _emit_end(self, request: EngineRequest, code: str, message: str) -> None:
        self._emit(Delta(request.request_id, end=RequestEnd(code=code, message=message)))

    def _emit(self, delta: Delta) -> None:
        """Collect the deltas of a step. All requests that a step gave tokens to wake up in one round of
        the event loop; the flush scheduled by the first runs in the next one and takes them all."""
        if delta.end is not None:
            self._live.pop(delta.request_id, None)
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(delta)

    def _flush(self) -> None:
        deltas, self._pending = self._pending, []
        if not deltas:  # an abort may have taken the only one
            return
        try:
            self._on_step(deltas)
        except Exception:  # the event loop would only log it, and the tokens would be lost
            log.critical("the step's tokens could not be delivered", exc_info=True)
            self._fail("the step's tokens could not be delivered")

    def load(self) -> EngineLoad:
        """Ours counts what is inside, vLLM's last step tells how much of it runs: when nothing steps,
        its own figures stand still."""
        inside = len(self._live)
        running = min(inside, self._slots if self._table.get("disable_log_stats") else self._steps.running)
        return EngineLoad(running, inside - running, self._steps.kv_cache_usage if inside else 0.0)

    # -- failure ------------------------------------------------------------------------------------

    async def failed(self) -> None:
        await self._failure.wait()
        raise EngineDead(self._why_failed)

    def _fail(self, why: str) -> None:
        if not self._failure.is_set() and not self._closing:
            log.error("engine failed: %s", why)
            self._why_failed = why
            self._failure.set()

    async def _watch(self, engine: AsyncLLM) -> None:
        """vLLM notices a core that exits, and nothing else: not one that is stopped, nor one whose input
        thread died. Time is counted in ticks, so that a pause of this very process is not held against
        the engine."""
        steps, busy, silent_s = self._steps.count, False, 0.0
        while not self._failure.is_set():
            await asyncio.sleep(_TICK_S)
            if engine.errored:
                self._fail("vLLM's engine core died")
            if steps != self._steps.count or busy != bool(self._live):
                steps, busy, silent_s = self._steps.count, bool(self._live), 0.0
                continue
            silent_s += _TICK_S
            if busy and silent_s >= self._hang_timeout_s:
                self._fail(f"vLLM hangs: {len(self._live)} requests inside, no step for {silent_s:.0f} s")
            elif not busy and silent_s >= self._canary_interval_s:
                try:
                    await self._prove_alive(engine, self._hang_timeout_s)
                except EngineDead as error:
                    self._fail(str(error))

    async def _prove_forcing(self, engine: AsyncLLM) -> None:
        """The first request of all: that vLLM lives, and whether its sampler emits what it is told to.
        Raises ``EngineDead``."""
        last = self._limits.vocab_size - 1
        forced = [last, max(0, last - 1)]  # that a model begins with these by itself is next to impossible
        if await self._prove_alive(engine, _FIRST_TOKEN_S, forced) != forced:
            log.warning(
                "vLLM cannot be made to repeat tokens: responses continued here may differ where they have "
                "a seed, penalties or bad words, and are refused where their output is structured"
            )
            self._limits = dataclasses.replace(self._limits, forcing="never")

    async def _takes_structures(self, engine: AsyncLLM) -> bool:
        """Asked of vLLM with a request, also because it loads its grammar compilers at the first one that
        needs them, in this event loop: 2.5 s, measured, in which all others would wait."""
        from vllm.exceptions import VLLMClientError

        try:
            await self._prove_alive(engine, _FIRST_TOKEN_S, structured=StructuredOutput(json_object=True))
        except EngineDead as error:
            if not isinstance(error.__cause__, VLLMClientError):
                raise
            log.warning("vLLM takes no structured output: %s", error.__cause__)
            return False
        return True

    async def _prove_alive(
        self,
        engine: AsyncLLM,
        patience_s: float,
        forced: Sequence[int] = (),
        structured: StructuredOutput | None = None,
    ) -> list[int]:
        """The canary: one token, or as many as are forced, through everything a request goes through.
        Returns them. Raises ``EngineDead``."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input

        ids: list[int] = []
        params = SamplingParams(
            max_tokens=len(forced) or 1,
            temperature=0.0,
            logprobs=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={FORCED: list(forced)} if forced else None,
            structured_outputs=None if structured is None else structured_params(structured),
        )
        self._submitted += 1
        try:
            async with asyncio.timeout(patience_s):
                outputs = engine.generate(tokens_input([0]), params, f"canary-{self._submitted}")
                async with aclosing(outputs):
                    async for output in outputs:
                        self._steps.count += 1
                        ids = list(output.outputs[0].token_ids)
        except TimeoutError:
            raise EngineDead(f"vLLM hangs: its canary had no token after {patience_s:.0f} s") from None
        except VLLMError as error:
            raise EngineDead(f"vLLM failed its canary: {error}") from error
        return ids

    # -- tasks --------------------------------------------------------------------------------------

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Every task is ended by close(), and one that raises what it should not ends the engine."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s ended", task.get_name(), exc_info=error)
            self._fail(f"{task.get_name()} ended with {error!r}")
