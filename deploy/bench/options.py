"""From the command line's words to a ``Run``. Every refusal names its option."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.bench.controller import BenchError
from deploy.bench.distribution import Distribution, parse
from deploy.bench.plan import Api, ClosedLoop, Load, OpenLoop, Plan, Target, Workload
from deploy.bench.run import Run, first_model

AUTO = "auto"
_KEY = "HEADRACE_API_KEY"
_CONCURRENCY = "8"


@dataclass(frozen=True, kw_only=True)
class Options:
    """As ``deploy/commands/bench.py`` declares them."""

    urls: tuple[str, ...]
    api: Api
    model: str | None
    concurrency: str | None
    rate: str | None
    arrivals: Literal["poisson", "constant"]
    duration: int
    warmup: int
    conversations: int | None
    prompt_tokens: str
    output_tokens: str
    turns: str
    think_time: str
    shared_prefix: float
    prompts: Path | None
    memory: Literal["previous", "conversation"]
    temperature: float | None
    ignore_eos: bool
    extra: str | None
    seed: int
    processes: int | None
    timeout: float
    grace: float
    key_file: Path | None
    title: str
    json_file: Path | None
    html_file: Path | None

    def run(self, environ: Mapping[str, str]) -> Run:
        """Asks the server for a model's name if there is none. Raises ``BenchError``."""
        loads, search = self.loads()
        api_key = self._api_key(environ)
        urls = self.urls or ("http://127.0.0.1:8080",)
        target = Target(
            api=self.api,
            urls=urls,
            model=self.model or first_model(urls[0], api_key),
            extra=self._extra(),
            memory=self.memory,
        )
        plan = Plan(
            target=target,
            load=loads[0],
            workload=self._workload(),
            duration_s=self.duration,
            warmup_s=self.warmup,
            conversations=self.conversations or 0,
            seed=self.seed,
            processes=self.processes or max(1, len(os.sched_getaffinity(0)) // 4),
            timeout_s=self.timeout,
            grace_s=self.grace,
        )
        return Run(plan, loads, search, api_key, self.title, self.json_file, self.html_file)

    def loads(self) -> tuple[list[Load], bool]:
        """Those of a ramp, and whether it goes on by itself from the only one."""
        if self.rate is not None and self.concurrency is not None:
            raise BenchError("--rate is an open loop and --concurrency a closed one: give one of them")
        try:
            if self.rate is not None:
                rates = [1.0] if self.rate == AUTO else [float(rate) for rate in self.rate.split(",")]
                if not all(0 < rate < float("inf") for rate in rates):
                    raise ValueError
                return [OpenLoop(rate, self.arrivals) for rate in rates], self.rate == AUTO
            text = self.concurrency or _CONCURRENCY
            counts = [1] if text == AUTO else [int(number) for number in text.split(",")]
            if not all(count > 0 for count in counts):
                raise ValueError
            return [ClosedLoop(count) for count in counts], text == AUTO
        except ValueError:
            option = "--concurrency" if self.rate is None else "--rate"
            raise BenchError(f"{option}: expected a number above 0, several by commas, or {AUTO}") from None

    def _workload(self) -> Workload:
        return Workload(
            prompt_tokens=_length("--prompt-tokens", self.prompt_tokens),
            output_tokens=_length("--output-tokens", self.output_tokens),
            shared_prefix=self.shared_prefix,
            turns=_length("--turns", self.turns),
            think_s=_length("--think-time", self.think_time),
            prompt_file=str(self.prompts.absolute()) if self.prompts else "",
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
        )

    def _api_key(self, environ: Mapping[str, str]) -> str:
        if self.key_file is None:
            return environ.get(_KEY, "")
        try:
            return self.key_file.read_text().strip()
        except OSError as error:
            raise BenchError(f"--key-file: {self.key_file}: {error.strerror}") from error

    def _extra(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.extra or "{}")
        except ValueError as error:
            raise BenchError(f"--extra: {error}") from error
        if not isinstance(fields, dict):
            raise BenchError("--extra: expected a JSON object")
        return fields


def _length(option: str, text: str) -> Distribution:
    try:
        return parse(text)
    except ValueError as error:
        raise BenchError(f"{option}: {error}") from error
