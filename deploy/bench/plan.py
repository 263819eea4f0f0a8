"""What a measurement asks, of whom, and how hard: everything that must be known to repeat it, and no
secret."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from deploy.bench.distribution import Distribution, Fixed

Api = Literal["responses-ws", "responses", "chat", "completions"]
PATHS: dict[Api, str] = {
    "responses-ws": "/v1/responses",
    "responses": "/v1/responses",
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
Positive = Annotated[int, Meta(ge=1)]
AboveZero = Annotated[float, Meta(gt=0)]


class Address(msgspec.Struct, frozen=True):
    """Where a URL leads. ``path`` is that of the API."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """``urls``: base addresses, with or without ``/v1``; conversations take them in turn. ``extra``: fields
    that every request gets besides those that the plan asks for (null: the field is left out). ``memory``:
    how the Responses API is told what was said before; the others are sent the whole conversation each
    time."""

    api: Api
    urls: Annotated[tuple[str, ...], Meta(min_length=1)]
    model: str
    extra: dict[str, Any] = {}
    memory: Literal["previous", "conversation"] = "previous"

    def addresses(self) -> list[Address]:
        """Raises ``ValueError``."""
        return [address_of(url, PATHS[self.api]) for url in self.urls]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is said. ``prompt_tokens``: of each turn, in words of about one token. ``shared_prefix``: the
    share of a conversation's first prompt that is the same in all. ``prompt_file``: texts from there instead.
    ``ignore_eos``: answers are as long as ``output_tokens`` says, where the server can do it."""

    prompt_tokens: Distribution = Fixed(128)
    output_tokens: Distribution = Fixed(128)
    shared_prefix: Annotated[float, Meta(ge=0, le=1)] = 0.0
    turns: Distribution = Fixed(1)
    think_s: Distribution = Fixed(0)
    prompt_file: str = ""
    temperature: float | None = None
    ignore_eos: bool = True


class OpenLoop(msgspec.Struct, frozen=True, tag="open"):
    """Conversations begin at ``rate`` a second, whether or not earlier ones are answered."""

    rate: AboveZero
    arrivals: Literal["poisson", "constant"] = "poisson"

    @property
    def value(self) -> float:
        return self.rate

    def __str__(self) -> str:
        return f"{self.rate:g}/s"


class ClosedLoop(msgspec.Struct, frozen=True, tag="closed"):
    """So many clients, each of which asks again once it has its answer and its think time is over."""

    concurrency: Positive

    @property
    def value(self) -> float:
        return self.concurrency

    def __str__(self) -> str:
        return f"{self.concurrency} at once"


Load = OpenLoop | ClosedLoop


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``duration_s`` of measurement behind ``warmup_s``; or, with ``conversations``, exactly so many and no
    warm-up. ``timeout_s``: of one response. ``grace_s``: for what is under way when the time is up."""

    target: Target
    load: Load
    workload: Workload = Workload()
    duration_s: Positive = 20
    warmup_s: Annotated[int, Meta(ge=0)] = 3
    conversations: Annotated[int, Meta(ge=0)] = 0
    seed: int = 0
    processes: Positive = 1
    timeout_s: AboveZero = 300.0
    grace_s: Annotated[float, Meta(ge=0)] = 30.0
    max_in_flight: Positive = 20_000  # of an open loop; beyond, arrivals are dropped, and counted as such


def address_of(url: str, path: str) -> Address:
    """Raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{url} is not an address; expected something like http://127.0.0.1:8080")
    tls = parts.scheme in ("https", "wss")
    base = PurePosixPath(parts.path or "/")
    if base.name == "v1":
        base = base.parent
    prefix = "" if str(base) == "/" else str(base)
    return Address(parts.hostname, parts.port or (443 if tls else 80), tls, prefix + path)
