"""The gateway processes that share one port: each tells the others, and their parent, how it is and what it
has counted, on a socket of its own in a folder that nobody else may enter.

Whoever asks the port for metrics is given those of all, each sample under the number of its process, so that
a restart is a counter that begins anew, as Prometheus expects. Must not know how processes are started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker.metrics import exposition

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
ANSWER_S = 1.0  # one that takes longer is left out, and shown as down
_LIFE, _METRICS = b"l", b"m"
_UP = "headrace_gateway_process_up"


@dataclass(frozen=True, slots=True)
class Place:
    """Process ``number`` of those from 1 to ``count``; ``folder`` holds their sockets."""

    number: int
    count: int
    folder: Path

    def socket_of(self, number: int) -> Path:
        return self.folder / f"{number}.sock"


@contextlib.asynccontextmanager
async def telling(place: Place) -> AsyncIterator[None]:
    """Whoever connects and says what is wanted (``_METRICS``, in Prometheus's text format, or ``_LIFE``) is
    told that."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                wanted = await reader.read(1)
                writer.write(_own_metrics().encode() if wanted == _METRICS else _LIFE)
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # whoever asked has gone
        finally:
            writer.close()

    path = place.socket_of(place.number)
    path.unlink(missing_ok=True)  # of the process that was this one before
    server = await asyncio.start_unix_server(tell, path)
    async with server:
        yield


async def lives(path: Path) -> bool:
    """Its event loop turns; whether it can serve is for its clients to ask."""
    return await _ask(path, _LIFE) == _LIFE


async def metrics_of_all(place: Place) -> bytes:
    """As the process at this place finds them."""
    others = [number for number in range(1, place.count + 1) if number != place.number]
    answers = await asyncio.gather(*(_ask(place.socket_of(number), _METRICS) for number in others))
    told: dict[int, str | None] = {place.number: _own_metrics()}
    for number, answer in zip(others, answers, strict=True):
        told[number] = answer.decode() if answer.endswith(b"\n") else None  # else it broke off
    return merged(told).encode()


async def _ask(path: Path, wanted: bytes) -> bytes:
    """Empty where there is no answer in ``ANSWER_S``."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(wanted)
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


def _own_metrics() -> str:
    return exposition(TEXT_FORMAT)[0].decode()


def merged(told: Mapping[int, str | None]) -> str:
    """One exposition of several processes', with ``process`` as the first label of each sample. None: it did
    not answer. Text, not parsed samples: a tenth of a millisecond a process, and it is the event loop's."""
    families: dict[str, list[str]] = {}  # by their comment lines, in the order they were met
    for number, text in sorted(told.items()):
        comments, samples = "", families.setdefault("", [])
        for line in (text or "").splitlines():
            if line.startswith("#"):
                comments = f"{comments}{line}\n" if line.startswith("# TYPE") else f"{line}\n"
                samples = families.setdefault(comments, [])
            else:
                samples.append(_labelled(line, number))
    up = [f'{_UP}{{process="{number}"}} {int(text is not None)}' for number, text in sorted(told.items())]
    families[f"# HELP {_UP} 1 where a process that shares this port answers\n# TYPE {_UP} gauge\n"] = up
    return "".join(comments + "\n".join(lines) + "\n" for comments, lines in families.items() if lines)


def _labelled(sample: str, number: int) -> str:
    """A name holds neither a brace nor a space."""
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f'{name}{{process="{number}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{process="{number}"}} {value}'
