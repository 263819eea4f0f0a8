"""Attacks on a gateway's WebSockets, and what must be true of each connection afterwards: it answers, or it
was closed with a code that says why. Only a client that broke off itself may be left without one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.fuzz import events
from tests.fuzz.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Closed,
    RawSocket,
    frame,
    handshake,
)

PATHS = ("/v1/responses", "/ws/chat")
# protocol error, unsupported data, not UTF-8, too big; and the answer to a client's own close
CODES = {1000, 1001, 1002, 1003, 1005, 1007, 1009, 3000, 4999}


class DeadConnection(AssertionError):
    """Neither an answer nor a close code."""


class SocketAttacker:
    """One connection at a time; ``seen`` counts what became of each kind of attack."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._chance = random.Random(seed)
        self._known: list[str] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self._attacks: list[Callable[[RawSocket], Awaitable[bool]]] = [
            self._garbage,
            self._unfinished,
            self._too_long,
            self._fragments,
            self._broken_fragments,
            self._bad_utf8,
            self._bad_opcode,
            self._control_abuse,
            self._bad_close,
            self._unmasked,
            self._many_pings,
            self._events,
            self._events,
            self._events,
            self._rude,
        ]

    async def attack(self) -> None:
        """Raises ``DeadConnection``, ``TimeoutError``."""
        if self._chance.random() < 0.1:
            await self._half_a_handshake()
            return
        chosen = self._chance.choice(self._attacks)
        path = self._chance.choice(PATHS)
        name = chosen.__name__.strip("_")
        socket = await RawSocket.open(self._url, path)
        try:
            whole = await chosen(socket)
            outcome = await self._outcome(socket, path, whole)
        except DeadConnection as error:
            raise DeadConnection(f"{name} on {path}: {error}") from None
        except TimeoutError:
            raise TimeoutError(f"{name} on {path}: neither an answer nor an end") from None
        finally:
            socket.close()
        self.seen[name, outcome] += 1

    async def _outcome(self, socket: RawSocket, path: str, whole: bool) -> str:
        """``whole``: all frames were sent to their end, so that the next one is read as such."""
        if not whole:
            socket.half_close()
            await socket.read_all()
            return "left"
        probe = f"probe {self._chance.random()}"
        question = {"type": "ping", "event_id": probe} if path == PATHS[0] else {"user_id": probe}
        await socket.send(frame(json.dumps(question).encode()))
        try:
            while not self._is_answer(await socket.receive(), path, probe):
                pass
        except Closed as closed:
            if closed.code is None:
                raise DeadConnection("it ended without a code") from None
            if closed.code not in CODES:
                raise DeadConnection(f"it was closed with {closed.code}") from None
            return f"closed {closed.code}"
        return "lives on"

    def _is_answer(self, got: Any, path: str, probe: str) -> bool:
        if got.opcode != TEXT:
            return False
        event = json.loads(got.payload)
        if event.get("type") == "response.created":
            self._known = [*self._known[-20:], event["response"]["id"]]
        if path == PATHS[0]:
            return bool(event.get("event_id") == probe)
        return "error" in event and event["error"]["param"] == "query"

    # -- what is done to a connection ---------------------------------------------------------------------

    async def _garbage(self, socket: RawSocket) -> bool:
        await socket.send(self._chance.randbytes(self._chance.choice([1, 2, 7, 100, 10_000])))
        return False

    async def _unfinished(self, socket: RawSocket) -> bool:
        body = events.text(self._chance, self._known).encode(errors="surrogatepass")
        whole = frame(body, self._chance.choice([TEXT, BINARY]))
        await socket.send(whole[: self._chance.randrange(1, len(whole))])
        return False

    async def _too_long(self, socket: RawSocket) -> bool:
        said = self._chance.choice([(16 << 20) + 1, 1 << 31, 1 << 62, (1 << 63) - 1, (1 << 64) - 1])
        await socket.send(frame(b"x", length=said))
        return True

    async def _fragments(self, socket: RawSocket) -> bool:
        body = events.text(self._chance, self._known).encode(errors="surrogatepass")[:2000]
        opcode = TEXT
        for at in range(0, len(body), 7):
            await socket.send(frame(body[at : at + 7], opcode, fin=False))
            opcode = CONTINUATION
            if self._chance.random() < 0.2:
                await socket.send(frame(b"between", PING))
        await socket.send(frame(b"", opcode))
        return True

    async def _broken_fragments(self, socket: RawSocket) -> bool:
        first = frame(b'{"type":', fin=False)
        await socket.send(
            self._chance.choice(
                [
                    first + frame(b'"ping"}'),  # a new message inside of one
                    frame(b"x", CONTINUATION),  # none to continue
                    first + first,
                    frame(b"x", PING, fin=False),
                ]
            )
        )
        return True

    async def _bad_utf8(self, socket: RawSocket) -> bool:
        bad = self._chance.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
        if self._chance.random() < 0.5:
            await socket.send(frame(b'{"a":"', fin=False) + frame(bad + b'"}', CONTINUATION))
        else:
            await socket.send(frame(bad, self._chance.choice([TEXT, BINARY])))
        return True

    async def _bad_opcode(self, socket: RawSocket) -> bool:
        if self._chance.random() < 0.5:
            await socket.send(frame(b"x", self._chance.choice([3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])))
        else:
            await socket.send(frame(b"{}", reserved=self._chance.randrange(1, 8)))
        return True

    async def _control_abuse(self, socket: RawSocket) -> bool:
        await socket.send(
            self._chance.choice(
                [
                    frame(b"x" * 126, PING),
                    frame(b"x" * 70_000, PONG),
                    frame(b"x" * 125, PONG) * 500,
                    frame(b"", PING, fin=False),
                    frame(b"x" * 200, CLOSE),
                ]
            )
        )
        return True

    async def _bad_close(self, socket: RawSocket) -> bool:
        code = self._chance.choice([0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 3000, 4999, 5000, 65535])
        body = self._chance.choice([b"", b"\x03", code.to_bytes(2), code.to_bytes(2) + b"\xff\xfe"])
        await socket.send(frame(body, CLOSE) + frame(b"after the end"))
        return True

    async def _unmasked(self, socket: RawSocket) -> bool:
        await socket.send(frame(b'{"type":"ping"}', self._chance.choice([TEXT, PING]), masked=False))
        return True

    async def _many_pings(self, socket: RawSocket) -> bool:
        await socket.send(frame(b"x" * self._chance.randrange(126), PING) * 2_000)
        return True

    async def _events(self, socket: RawSocket) -> bool:
        for _ in range(self._chance.randrange(1, 12)):
            body = events.text(self._chance, self._known).encode(errors="surrogatepass")
            await socket.send(frame(body, self._chance.choice([TEXT, TEXT, BINARY])))
            if self._chance.random() < 0.2:
                await asyncio.sleep(0)
        return True

    async def _rude(self, socket: RawSocket) -> bool:
        """Gone in the middle of an answer, or of its own question; the delay varies which of the two."""
        ask = {"type": "response.create", "input": "rude", "max_output_tokens": 200}
        whole = frame(json.dumps(ask).encode())
        await socket.send(whole if self._chance.random() < 0.7 else whole[:-3])
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.random() / 50)
        socket.reset()
        return False

    async def _half_a_handshake(self) -> None:
        whole = handshake(self._url.partition("://")[2], self._chance.choice(PATHS))
        socket = await RawSocket.connect(self._url)
        try:
            match self._chance.randrange(4):
                case 0:
                    await socket.send(whole[: self._chance.randrange(len(whole))])
                case 1:
                    await socket.send(whole.replace(b"Version: 13", b"Version: 12"))
                case 2:
                    await socket.send(whole.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Quay"))
                case _:
                    await socket.send(whole[:-2] + frame(b"too early"))
            socket.half_close()
            answer = await socket.read_all()
        finally:
            socket.close()
        if answer.startswith(b"HTTP/1.1 5"):
            raise DeadConnection(f"half a handshake: {answer[:200]!r}")
        self.seen["half a handshake", answer[9:12].decode() or "left"] += 1
