"""How a vLLM engine is configured and brought up. All of it blocks for seconds: call it in a thread.

Owns the defaults, the check of the ``[vllm]`` table and the statistics hook. Must not know requests.
vLLM is imported inside the functions: it takes seconds, and the worker's event loop must go on meanwhile.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workers.engine.base import EngineDead
from workers.models import ModelFolder

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

log = logging.getLogger(__name__)

# Fields of [vllm] that contradict something the worker needs, and what to do instead.
_REFUSED = {
    "model": "set worker.model instead",
    "tokenizer": "the worker and the gateways must share the model's own tokenizer",
    "skip_tokenizer_init": "without a tokenizer one foreign token id kills the engine core",
    "stream_interval": "tokens are merged further on, and only when readers lag",
}
_ORPHAN_GUARD = "headrace_orphan_guard"  # the entry point in pyproject.toml
_CPU_WORKER = "workers.engine.vllm_cpu.SeededCPUWorker"
_CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"  # by path: "uni" is rewritten to "mp"


@dataclasses.dataclass(slots=True)
class EngineSteps:
    """Written after each engine step, also those that made no token (a long prefill, a grammar being
    compiled): what tells a busy engine from one that hangs."""

    count: int = 0
    running: int = 0
    kv_cache_usage: float = 0.0


def boot(
    model: ModelFolder,
    served_name: str,
    slots: int,
    table: Mapping[str, Any],
    steps: EngineSteps,
    still_wanted: Callable[[], bool],
) -> AsyncLLM:
    """Import, configure and start; returns when the model is loaded. ``still_wanted`` is asked before
    the engine process is started. Raises ``EngineDead``."""
    _set_environment(slots)
    try:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineDead(
            f"vLLM cannot be imported ({error}): install headrace[cpu] or headrace[gpu]"
        ) from error
    args = engine_args(model, served_name, slots, table)
    if args.enforce_eager:
        # vLLM means its models by it. torch would still compile helpers of the sampler when a request
        # first needs one, and all streams stand still meanwhile (18 s for log probabilities on a CPU).
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except Exception as error:  # pydantic, transformers, OSError, …: all mean "this cannot be configured"
        raise EngineDead(f"vLLM refused its configuration: {error}") from error
    from workers.engine import vllm_replay  # imports vLLM

    vllm_replay.install(config)
    if not still_wanted():
        raise EngineDead("closed before the engine was started")
    try:
        return AsyncLLM.from_vllm_config(
            config,
            stat_loggers=None if args.disable_log_stats else _stat_loggers(steps),
            disable_log_stats=True,  # vLLM's own, which prints to the log
        )
    except Exception as error:
        raise EngineDead(f"vLLM did not start: {error}. Its own log above says why") from error


def engine_args(
    model: ModelFolder, served_name: str, slots: int, table: Mapping[str, Any]
) -> AsyncEngineArgs:
    """vLLM's arguments: our defaults, and the user's ``[vllm]`` table over them."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    check_names(table, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
    defaults = cpu_defaults(table) if current_platform.is_cpu() else _accelerator_defaults()
    if slots:
        defaults["max_num_seqs"] = slots
    # Batches below the number of sequences are refused by vLLM.
    defaults["max_num_batched_tokens"] = max(
        defaults["max_num_batched_tokens"], table.get("max_num_seqs", defaults["max_num_seqs"])
    )
    defaults["model"] = str(model.path)
    defaults["served_model_name"] = served_name
    defaults["use_tqdm_on_load"] = False
    defaults["scheduling_policy"] = "priority"  # so that the priority of a request means something
    try:
        return AsyncEngineArgs(**{**defaults, **table})
    except (TypeError, ValueError) as error:
        raise EngineDead(f"vLLM refused a value in [vllm]: {error}") from error


def check_names(table: Mapping[str, Any], known: list[str]) -> None:
    """Refuse what vLLM does not know, and what the worker cannot live with. Raises ``EngineDead``."""
    wrong = [f"{name}: {_REFUSED[name]}" for name in table if name in _REFUSED]
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f": did you mean {' or '.join(close)}?" if close else " is no field of AsyncEngineArgs"
            wrong.append(name + hint)
    if wrong:
        raise EngineDead("the [vllm] table cannot be used: " + "; ".join(wrong))


def _accelerator_defaults() -> dict[str, Any]:
    return {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def cpu_defaults(table: Mapping[str, Any]) -> dict[str, Any]:
    """Measured with a 135M model on 2 cores: bfloat16 or a separate worker process are 2 to 4 times
    slower, compiling costs more than it gives, and blocks of 128 tokens (vLLM's default here) waste
    prefix hits. A step of 512 prompt tokens lasts about a second, for which all other streams wait."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "worker_cls": _CPU_WORKER,
    }
    if "gpu_memory_utilization" not in table:
        defaults["kv_cache_memory_bytes"] = min(2 << 30, total // 8)
    if table.get("tensor_parallel_size", 1) * table.get("pipeline_parallel_size", 1) == 1:
        defaults["distributed_executor_backend"] = _CPU_EXECUTOR
    return defaults


def _set_environment(slots: int) -> None:
    """Read by vLLM and OpenMP when they are imported, here and in the processes vLLM starts. What the
    operator has set stays."""
    cores = len(os.sched_getaffinity(0))
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A forked engine core would hold this process's sockets for as long as it takes to die.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # One core is left to this process, the broker and the gateway; idle threads must not spin.
        "OMP_NUM_THREADS": str(max(1, cores - 1)),
        "OMP_WAIT_POLICY": "passive",
        # Outputs of one step are handled in chunks of this size, with other tasks in between; a step
        # that is cut in two reaches the sink in two calls.
        "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": str(max(128, slots)),
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    plugins = os.environ.get("VLLM_PLUGINS")  # a list of those to load; not set: all
    if plugins is not None and _ORPHAN_GUARD not in plugins.split(","):
        os.environ["VLLM_PLUGINS"] = f"{plugins},{_ORPHAN_GUARD}"


def _stat_loggers(steps: EngineSteps) -> list[Any]:
    """Statistics stay on: they are the heartbeat of the watchdog, the times of each request, and vLLM's
    own metrics. As shipped they double the cost of a token in this process (27 to 45-54 us, 32 streams);
    nearly all of it is one histogram observation a token and environment look-ups. One observation a
    step instead (its requests advance together, so the distribution stays) and ``enable_envs_cache``
    bring it to about 33. ``disable_log_stats`` in [vllm] saves the rest and loses the three."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger  # a subclass of it takes its place

    class StepLogger(PrometheusStatLogger):
        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: MultiModalCacheStats | None = None,
            engine_idx: int = 0,
        ) -> None:
            steps.count += 1
            try:
                if scheduler_stats is not None:
                    steps.running = scheduler_stats.num_running_reqs
                    steps.kv_cache_usage = scheduler_stats.kv_cache_usage
                if iteration_stats is not None:
                    del iteration_stats.inter_token_latencies_iter[1:]
                super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)
            except Exception:
                # vLLM calls its statistics unstable, and an exception here would end its output handler
                # and with it every request: worse than a metric that stands still.
                log.exception("recording vLLM's statistics failed")

    return [StepLogger]
