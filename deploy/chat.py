"""A terminal chat: one conversation over a gateway's WebSocket ``/v1/responses``. Knows the protocol of
the client's side only."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

_POLL_S = 0.1  # how soon Ctrl-C is noticed while nothing arrives
_RECONNECT_CLOSES = {1001, 1012, 1013}  # the gateway goes away; another one will answer
_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}


class ChatError(Exception):
    """The gateway cannot be reached, refused, or went away."""


def converse(url: str, model: str | None) -> None:
    """Asks and answers on the terminal until Ctrl-D. A refused question does not end the conversation."""
    chat = Chat(url, model)
    print(f"Connected to {url}. Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            question = input("\n> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            print()
            break
        if not question:
            continue
        try:
            chat.ask(question, _write)
        except ChatError as error:
            print(f"\nheadrace: {error}", file=sys.stderr, end="")
        print()
    chat.close()


def answer_lines(url: str, model: str | None, questions: Iterable[str]) -> None:
    """One answer a line, its own line ends as spaces."""
    chat = Chat(url, model)
    for question in questions:
        if question.strip():
            parts: list[str] = []
            chat.ask(question.strip(), parts.append)
            print(" ".join("".join(parts).splitlines()), flush=True)
    chat.close()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class Chat:
    """One conversation. It reconnects for the next question if the gateway closed the socket between two:
    what was said is kept by the conversation's name, not by the socket."""

    def __init__(self, url: str, model: str | None) -> None:
        self._url = websocket_url(url)
        self._model = model
        self._conversation = f"conv_{secrets.token_hex(12)}"
        self._socket = self._connect()
        self._heard = False  # anything, since the last question

    def close(self) -> None:
        self._socket.close()

    def ask(self, question: str, write: Callable[[str], object]) -> None:
        """Writes the answer as it arrives. Ctrl-C cancels it and returns once the gateway has ended it."""
        request = {
            "type": "response.create",
            "input": question,
            "conversation": self._conversation,
            **({"model": self._model} if self._model else {}),
        }
        for last_try in (False, True):
            self._heard = sent = False
            try:
                self._socket.send(json.dumps(request))
                sent = True
                with _noted_interrupt() as interrupted:
                    self._stream(write, interrupted)
                return
            except ConnectionClosed as error:
                invited = error.rcvd is not None and error.rcvd.code in _RECONNECT_CLOSES
                if last_try or self._heard or (sent and not invited):
                    raise ChatError(f"the gateway closed the connection: {error}") from error
            self._socket = self._connect()

    def _stream(self, write: Callable[[str], object], interrupted: Callable[[], bool]) -> None:
        response_id = ""
        cancelled = False
        for event in self._events():
            kind = event.get("type")
            if kind == "response.created":
                response_id = str(_table(event, "response").get("id", ""))
            elif kind == "response.output_text.delta":
                write(str(event.get("delta", "")))
            elif kind == "error" or kind in _TERMINAL:
                _raise_if_failed(event)
                return
            if interrupted() and response_id and not cancelled:
                self._socket.send(json.dumps({"type": "response.cancel", "response_id": response_id}))
                cancelled = True

    def _events(self) -> Iterator[dict[str, object]]:
        """The gateway's events, and an empty one whenever nothing came for a while."""
        while True:
            try:
                event = json.loads(self._socket.recv(timeout=_POLL_S))
            except TimeoutError:
                yield {}
                continue
            except ValueError as error:
                raise ChatError(f"the gateway sent what is not JSON: {error}") from error
            self._heard = True
            yield event if isinstance(event, dict) else {}

    def _connect(self) -> ClientConnection:
        try:
            return connect(self._url, max_size=16 << 20)
        except (OSError, TimeoutError, InvalidURI, InvalidHandshake) as error:
            raise ChatError(f"cannot connect to {self._url}: {error}") from error


def websocket_url(url: str) -> str:
    """``http://host:8080`` to ``ws://host:8080/v1/responses``. Raises ``ChatError``."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ChatError(f"{url} is not a gateway's address; expected something like http://127.0.0.1:8080")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/v1/responses") else path.removesuffix("/v1") + "/v1/responses"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


@contextmanager
def _noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, instead of raised in the middle of the socket's own code."""
    noted = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)


def _raise_if_failed(event: dict[str, object]) -> None:
    if event.get("type") == "error":
        error = _table(event, "error") or event
    elif event.get("type") == "response.failed":
        error = _table(_table(event, "response"), "error")
    else:
        return
    raise ChatError(f"{error.get('message', 'the response failed')} ({error.get('code', 'no code')})")


def _table(event: dict[str, object], key: str) -> dict[str, object]:
    value = event.get(key)
    return value if isinstance(value, dict) else {}
