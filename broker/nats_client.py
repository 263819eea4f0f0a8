"""nats-py's client where it is too strict or too slow: reading what any publisher may send, and commands and
headers as they stand on the wire. Must not know requests, nor when a connection is up.
"""

from __future__ import annotations

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import BadSubjectError

from broker.nats_parser import ShortcutParser, Take

Headers = dict[str, str]


class NatsClient(Client):
    """Reads what any publisher may send, so that nothing of it ends the read loop."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = self.parser = ShortcutParser(self)

    async def publish_commands(self, commands: bytes, messages: int) -> None:
        """``messages`` PUB commands as they go over the wire, appended to the output buffer in one piece.
        What ``publish`` does beside that costs 3 us a message. Nothing is checked here."""
        self.stats["out_msgs"] += messages
        self.stats["out_bytes"] += len(commands)
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def subscribe_short(self, subject: str, take: Take) -> Subscription:
        """Its messages go to ``take`` as they are read, past nats-py's queue and task. Raises
        ``nats.errors.Error``. End it with ``unsubscribe_short``."""
        subscription = await self.subscribe(subject)
        self.parser.takers[_id_of(subscription)] = take
        return subscription

    async def unsubscribe_short(self, subscription: Subscription) -> None:
        """Raises ``nats.errors.Error``; nothing is taken any more all the same."""
        self.parser.takers.pop(_id_of(subscription), None)
        await subscription.unsubscribe()

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Headers | None
    ) -> Msg:
        return self.msg_class(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes | None) -> Headers | None:
        return parse_headers(headers) if headers else None


def parse_headers(headers: bytes) -> Headers | None:
    """``NATS/1.0[ status[ description]]`` and lines of ``name: value`` (ADR-4). 4 us for the six of a
    direct get, against nats-py's 17: whoever takes over a response reads dozens of those."""
    first, *lines = headers.decode(errors="replace").split("\r\n")
    status, _, description = first[len("NATS/1.0 ") :].partition(" ")
    found = {"Status": status, "Description": description} if status.isdigit() else {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found or None


def header_lines(headers: Headers | None) -> bytes:
    """As they stand on the wire, where the server's max_payload counts them. A line break becomes a space. A
    tenth of what nats-py takes for ten of them."""
    if not headers:
        return b""
    lines = [f"{name}: {_on_one_line(value)}\r\n" for name, value in headers.items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode()


def _on_one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")


def command(subject: str, reply: str, headers: bytes, payload: bytes) -> bytes:
    """Raises ``BadSubjectError``."""
    if len(subject.split()) != 1:
        raise BadSubjectError
    to, size = f"{subject} {reply}".encode(), len(headers) + len(payload)
    if headers:
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(headers), size, headers, payload)
    return b"PUB %b %d\r\n%b\r\n" % (to, size, payload)


def _id_of(subscription: Subscription) -> bytes:
    """As it stands on the wire."""
    return b"%d" % subscription._id
