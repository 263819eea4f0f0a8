"""HTTP/1.1 that no client sends by accident: what a gateway answers to each must be an answer (never 5xx of
its own making) or an end, and what follows it on the connection must not be taken for another request."""

from __future__ import annotations

import random
from collections import Counter
from urllib.parse import urlsplit

from tests.fuzz.frames import RawSocket

MARK = b"/smuggled"
BODY = b'{"user_id":"u"}'


class BadAnswer(AssertionError):
    pass


def shapes(host: str) -> dict[str, bytes]:
    """Each ends the connection or is answered; none may be taken for two requests."""

    def post(headers: bytes, body: bytes = b"") -> bytes:
        return b"POST /chat HTTP/1.1\r\nHost: " + host.encode() + b"\r\n" + headers + b"\r\n" + body

    def get(headers: bytes = b"", target: bytes = b"/healthz", version: bytes = b"HTTP/1.1") -> bytes:
        return b"GET " + target + b" " + version + b"\r\nHost: " + host.encode() + b"\r\n" + headers + b"\r\n"

    hidden = b"GET " + MARK + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n"
    return {
        "length and chunked": post(
            b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (5 + len(hidden)), b"0\r\n\r\n" + hidden
        ),
        "chunked and length": post(
            b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n" + hidden
        ),
        "two lengths": post(b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(hidden), hidden),
        "a length list": post(b"Content-Length: 0, %d\r\n" % len(hidden), hidden),
        "a signed length": post(b"Content-Length: +0\r\n", hidden),
        "a negative length": post(b"Content-Length: -1\r\n", hidden),
        "a hexadecimal length": post(b"Content-Length: 0x0\r\n", hidden),
        "a huge length": post(b"Content-Length: 99999999999999999999999\r\n", BODY),
        "chunked by another name": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + hidden),
        "chunked, then identity": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + hidden),
        "chunked twice": post(
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n" + hidden
        ),
        "a space before the colon": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + hidden),
        "a tab before the value": post(b"Transfer-Encoding:\tchunked\r\n", b"z\r\n"),
        "a folded header": post(b"X-A: b\r\n Transfer-Encoding: chunked\r\n", hidden),
        "a huge chunk": post(b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\n" + BODY),
        "a negative chunk": post(b"Transfer-Encoding: chunked\r\n", b"-1\r\n" + BODY),
        "a chunk without its end": post(b"Transfer-Encoding: chunked\r\n", b"1\r\nabcdef\r\n0\r\n\r\n"),
        "a chunk extension without end": post(b"Transfer-Encoding: chunked\r\n", b"1;" + b"a" * 100_000),
        "trailers": post(b"Transfer-Encoding: chunked\r\n", b"0\r\nContent-Length: 9\r\nHost: x\r\n\r\n"),
        "bare line feeds": b"GET /healthz HTTP/1.1\nHost: " + host.encode() + b"\n\n",
        "bare carriage returns": get(b"X-A: b\rX-B: c\r\n"),
        "NUL in a header": get(b"X-A: a\0b\r\n"),
        "bytes above ASCII in a header": get(b"X-A: \xff\xfe\r\n"),
        "a header without a name": get(b": x\r\n"),
        "a header without a colon": get(b"nonsense\r\n"),
        "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
        "two hosts": get(b"Host: evil.example\r\n"),
        "HTTP/0.9": b"GET /healthz\r\n",
        "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": get(version=b"HTTP/9.9"),
        "h2c upgrade": get(
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
        ),
        "an absolute target": get(target=b"http://evil.example/healthz"),
        "a target with NUL": get(target=b"/\0"),
        "a target above ASCII": get(target=b"/\xff\xfe"),
        "a target that climbs": get(target=b"/assets/..%2f..%2fapp.py"),
        "bad percent encoding": get(target=b"/v1/models/%zz%ff%c0%af?%=%&stream=%ff"),
        "a query of many": get(target=b"/v1/responses/resp_x?" + b"&".join([b"a=b"] * 5_000)),
        "a long target": get(target=b"/" + b"a" * 50_000),
        "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n",
        "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        "a method of one's own": b"BREW /healthz HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n",
        "a lower case method": b"get /healthz HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n",
        "expect, and nothing comes": post(b"Expect: 100-continue\r\nContent-Length: 9\r\n"),
        "a body that stops": post(b"Content-Length: 100\r\n", BODY),
        "a body on GET": get(b"Content-Length: 5\r\n") + b"hello",
        "many headers": get(b"".join(b"X-%d: y\r\n" % i for i in range(2_000))),
        "one long header": get(b"X-A: " + b"a" * 200_000 + b"\r\n"),
        "many requests at once": get() * 200,
        "a TLS greeting": bytes.fromhex("1603010200010001fc0303") + b"\0" * 300,
    }


class RequestAttacker:
    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._chance = random.Random(seed)
        self._shapes = shapes(urlsplit(url).netloc)
        self.seen: Counter[tuple[str, str]] = Counter()

    @property
    def names(self) -> list[str]:
        return list(self._shapes)

    async def attack(self) -> None:
        """One of the shapes, damaged here and there."""
        name = self._chance.choice(self.names)
        damaged = bytearray(self._shapes[name])
        for _ in range(self._chance.randrange(1, 4)):
            at = self._chance.randrange(len(damaged))
            match self._chance.randrange(3):
                case 0:
                    damaged[at] = self._chance.randrange(256)
                case 1:
                    del damaged[at : at + self._chance.randrange(1, 20)]
                case _:
                    damaged[at:at] = self._chance.choice(
                        [b"\r\n", b"\0", b" ", b"\r\n\r\n", b":", b"\xff" * 9]
                    )
            if not damaged:
                break
        await self.send(name, bytes(damaged))

    async def send_plain(self, name: str) -> str:
        return await self.send(name, self._shapes[name])

    async def send(self, name: str, request: bytes) -> str:
        """The statuses of all answers. Raises ``BadAnswer``."""
        socket = await RawSocket.connect(self._url)
        try:
            await socket.send(request)
            socket.half_close()
            answer = await socket.read_all()
        finally:
            socket.close()
        statuses = [part[:3].decode() for part in answer.split(b"HTTP/1.1 ")[1:]]
        if any(status.startswith("5") for status in statuses):
            raise BadAnswer(f"{name}: {request[:300]!r} was answered {answer[:300]!r}")
        if MARK in answer and b"POST" in request:
            raise BadAnswer(f"{name}: a hidden request was answered: {answer[:600]!r}")
        told = " ".join(statuses[:3]) or "closed"
        self.seen[name, told] += 1
        return told
