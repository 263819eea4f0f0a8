"""A terminal chat: one conversation with a gateway, by the client that applications use."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from gateway.client import Client, ResponseError

PATIENCE_S = 20.0  # for a gateway that is away; someone sits and waits


class ChatError(Exception):
    """The gateway cannot be reached, or refused, or the answer failed."""


def converse(url: str, model: str | None, api_key: str | None = None) -> None:
    """Asks and answers on the terminal until Ctrl-D. A refused question does not end the conversation."""
    chat = Chat(url, model, api_key)
    print(f"Chatting with {url}. Ctrl-C stops an answer, Ctrl-D leaves.")
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


def answer_lines(url: str, model: str | None, questions: Iterable[str], api_key: str | None = None) -> None:
    """One answer a line, its own line ends as spaces."""
    chat = Chat(url, model, api_key)
    for question in questions:
        if question.strip():
            parts: list[str] = []
            chat.ask(question.strip(), parts.append)
            print(" ".join("".join(parts).splitlines()), flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class Chat:
    """One conversation. Each question has a connection of its own: what was said is kept by the
    conversation's name. Raises ``ChatError``."""

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        try:
            Client([url])
        except ValueError as error:
            problem = "is not a gateway's address; expected something like http://127.0.0.1:8080"
            raise ChatError(f"{url} {problem}") from error
        self._url = url
        self._api_key = api_key
        self._params = {
            "conversation": f"conv_{secrets.token_hex(12)}",
            **({"model": model} if model else {}),
        }

    def ask(self, question: str, write: Callable[[str], object]) -> None:
        """Writes the answer as it arrives. Ctrl-C cancels it and returns once the gateway has ended it."""
        try:
            asyncio.run(self._ask(question, write))
        except ResponseError as error:
            raise ChatError(f"{error.message or 'the response failed'} ({error.code})") from error

    async def _ask(self, question: str, write: Callable[[str], object]) -> None:
        async with Client([self._url], api_key=self._api_key, patience_s=PATIENCE_S) as client:
            with _noted_interrupt() as interrupted:
                await self._answer(client, question, write, interrupted)

    async def _answer(
        self, client: Client, question: str, write: Callable[[str], object], interrupted: asyncio.Event
    ) -> None:
        response_id = ""

        async def cancel() -> None:
            await interrupted.wait()
            await client.cancel(response_id)

        cancelling: asyncio.Task[None] | None = None
        try:
            async for event in client.stream(input=question, **self._params):
                if event["type"] == "response.created":
                    response_id = event["response"]["id"]
                    cancelling = asyncio.create_task(cancel(), name="cancel-on-interrupt")
                elif event["type"] == "response.output_text.delta":
                    write(event["delta"])
                elif event["type"] == "response.failed":
                    error = event["response"]["error"] or {}
                    raise ChatError(f"{error.get('message')} ({error.get('code')})")
        finally:
            if cancelling is not None:
                cancelling.cancel()
                await asyncio.wait({cancelling})


@contextmanager
def _noted_interrupt() -> Iterator[asyncio.Event]:
    """Set by Ctrl-C, which otherwise would end the program in the middle of the client's own code."""
    noted, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, noted.set)
    try:
        yield noted
    finally:
        loop.remove_signal_handler(signal.SIGINT)
