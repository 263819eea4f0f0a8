"""The harness every process runs in: logging, the event loop, signals, and how a process ends.

A failure is one clear line where an operator can act on it, and a full trace where it is a bug. A failed
child task takes the process down: the supervisor starts it again. Must not know what the process does.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec
import uvloop

from broker.connection import BrokerClosed, BrokerUnavailable
from broker.labelled import labelled
from broker.loop_lag import LoopLag
from broker.metrics import LOG_RECORDS, PortUnavailable
from broker.settings import ConfigError
from broker.topology import TopologyError
from schemas.config import Config, Logging

log = logging.getLogger(__name__)

_is_plain = re.compile(r"[^\s\"=]+").fullmatch  # needs no quotes in a line of text

# What an operator can act on by its message alone.
KNOWN_ERRORS: tuple[type[Exception], ...] = (
    BrokerClosed,
    BrokerUnavailable,
    ConfigError,
    PortUnavailable,
    TopologyError,
)


class Shutdown:
    """``requested`` is set by the first SIGTERM or SIGINT: finish what is running, take nothing new."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()


def run_process(
    name: str,
    config: Config,
    main: Callable[[Shutdown], Awaitable[None]],
    *,
    known_errors: tuple[type[Exception], ...] = (),
) -> int:
    """Runs ``main`` to its end; returns the exit code: 0 when it returned, 1 when it failed or a second
    signal cut it short. ``known_errors`` are further exceptions whose message says all."""
    set_up_logging(name, config.logging)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_supervise(name, config, main, KNOWN_ERRORS + known_errors))
        except asyncio.CancelledError:
            log.warning("%s stopped at once by a second signal", name)
            return 1


async def _supervise(
    name: str,
    config: Config,
    main: Callable[[Shutdown], Awaitable[None]],
    known: tuple[type[Exception], ...],
) -> int:
    shutdown = Shutdown()
    task = asyncio.current_task()
    assert task is not None

    def stop(received: signal.Signals) -> None:
        if shutdown.requested.is_set():
            task.cancel()
        else:
            log.info("%s: stopping on %s", name, received.name)
            shutdown.requested.set()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop, each)
    lag = LoopLag(config.logging.loop_lag_ms)
    lag.begin()
    try:
        await main(shutdown)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        for leaf in _leaves(error):
            if isinstance(leaf, known):
                log.error("%s failed: %s: %s", name, type(leaf).__name__, leaf)
            else:
                log.critical("%s failed: %r", name, leaf, exc_info=leaf)
        if not isinstance(error, Exception):
            raise
        return 1
    finally:
        lag.end()
    return 0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def set_up_logging(name: str, config: Logging) -> None:
    """Everything to stderr, one line a record; a trace follows its line (JSON: stands in ``trace``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_counted)
    handler.setFormatter(_JsonLines(name) if config.format == "json" else _TextLines(name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # what no line shows need not be found out for each
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # where it was called (Python's logging HOWTO)
    for noisy in ("asyncio", "httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _counted(record: logging.LogRecord) -> bool:
    labelled(LOG_RECORDS, record.levelname.lower()).inc()
    return True


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def known(fields: Mapping[str, str | int | float | None]) -> dict[str, str | int | float]:
    """For ``extra`` of a logging call: what there is to tell, times to a microsecond."""
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in fields.items()
        if value is not None and value != ""
    }


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the call passed as ``extra``."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class _TextLines(logging.Formatter):
    """Fields stand behind the message, as ``name=value``."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s")
        self._second = 0
        self._shown = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:  # a busy gateway writes hundreds of lines in each
            self._second, self._shown = second, super().formatTime(record, "%Y-%m-%d %H:%M:%S")
        return f"{self._shown}.{int(record.msecs):03}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = "".join([f" {name}={_quoted(value)}" for name, value in _fields(record).items()])
        return super().formatMessage(record) + fields


def _quoted(value: object) -> object:
    if isinstance(value, int | float):
        return value
    text = str(value)
    return text if _is_plain(text) else msgspec.json.encode(text).decode()


class _JsonLines(logging.Formatter):
    """One JSON object a line; what a call passes as ``extra`` becomes fields of it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
