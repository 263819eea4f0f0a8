"""Publishes without an ack, many at once, as one piece of the connection's output.

Costs 0.6 us a message, against 3.4 for nats-py's ``publish``: that was the most that a token cost a worker.
Must not know what the messages say.
"""

from __future__ import annotations

import nats.errors

from broker import metrics
from broker.connection import Broker

END = b"\r\n"
LENGTHS = tuple(b"%d\r\n" % length for length in range(256))  # 0.3 us of 0.9 would be formatting them


def command_of(subject: str) -> bytes:
    """The beginning of every PUB command on this subject; made once. The subject is taken as it is."""
    return b"PUB " + subject.encode() + b" "


class PublishBatch:
    """``size``: bytes that wait for ``send``."""

    def __init__(self, broker: Broker) -> None:
        self.size = 0
        self._broker = broker
        self._max_payload = broker.nc.max_payload
        self._parts: list[bytes] = []
        self._messages = 0

    def add(self, command: bytes, payload: bytes, reply: str = "") -> None:
        """``reply``: where the ack goes, if one is asked for. Raises ``MaxPayloadError`` for what the server
        would close the connection for."""
        length = len(payload)
        if length > self._max_payload:
            raise nats.errors.MaxPayloadError
        if reply:
            command += reply.encode() + b" "
        told = LENGTHS[length] if length < len(LENGTHS) else b"%d\r\n" % length
        self._parts += (command, told, payload, END)
        self._messages += 1
        self.size += len(command) + length + 10

    async def send(self) -> None:
        """In the order in which they were added, behind what was published before. While disconnected they
        are dropped, as is what was on the wire: ``Broker.on_reconnect`` is when to send them again."""
        parts, self._parts = self._parts, []
        messages, self._messages, self.size = self._messages, 0, 0
        if not self._broker.connected:
            metrics.TOKENS_HELD_BACK.inc(messages)
        elif messages:
            await self._broker.nc.publish_commands(b"".join(parts), messages)
