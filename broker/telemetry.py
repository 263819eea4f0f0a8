"""Tracing, as gateways and workers see it: a response's spans, begun when something begins and handed over
when it is over, so that a token costs nothing.

Off, which is the default, there is no ``Telemetry``, and what it is made of (``broker/spans.py``) is not
imported. Must not know what is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from broker.settings import ConfigError
from schemas.config import Tracing

Part = Literal["gateway", "worker"]
Attributes = Mapping[str, str | int | float | Sequence[str]]


class Trace(Protocol):
    """One span that has begun. Times are unix milliseconds. One that is not sampled does nothing."""

    @property
    def traceparent(self) -> str:
        """W3C trace context of this span, for whoever goes on; its flag says whether it is sampled."""
        ...

    def event(self, name: str, at_unix_ms: float, attributes: Attributes | None = None) -> None: ...

    def stage(self, name: str, from_unix_ms: float, to_unix_ms: float) -> None:
        """A part of it that is over: a span of its own below it."""
        ...

    def end(
        self, at_unix_ms: float, attributes: Attributes, *, error: str | None = None, name: str | None = None
    ) -> None:
        """``error``: a code of ``schemas.errors``; ``name``: a better one than it began with. A span that is
        never ended is never told of."""
        ...


class Telemetry(Protocol):
    def begin(
        self,
        name: str,
        kind: Literal["server", "consumer"],
        from_unix_ms: float,
        attributes: Attributes,
        *,
        parent: str | None,
        link: str | None = None,
    ) -> Trace:
        """``parent`` and ``link``: a traceparent. The parent's flag says whether it is sampled; without one
        the configured ratio does."""
        ...

    async def close(self) -> None:
        """Hand over what is left, for a second or two: a collector that is dead holds nobody up."""
        ...


def telemetry_of(config: Tracing, part: Part, instance: str) -> Telemetry | None:
    """None where it is off. ``instance``: the id of this gateway or worker. Raises ``ConfigError``."""
    if not config.endpoint:
        return None
    try:
        from broker.spans import OtlpTelemetry
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint is set and OpenTelemetry is not installed ({error}): install headrace[tracing]"
        ) from error
    return OtlpTelemetry(config, part, instance)


def trace_id_of(traceparent: str | None) -> str | None:
    """By which a trace is looked up."""
    return None if traceparent is None else traceparent.split("-")[1]
