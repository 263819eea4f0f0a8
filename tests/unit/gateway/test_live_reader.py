"""The short way of text past a reader's task: the same updates in the same order, whoever gives them."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cursor import cursor
from gateway.generation import Ended, Parsed, Started, Text, Update
from gateway.live import Live
from gateway.tick import Tick
from tests.unit.gateway.test_live import AT, STARTED, finished, ids_of, live_one_by_one, make, text_of, tokens

TEXT = "Ünïcödé and 🙂 more than that, STOP not here"
IDS = ids_of(TEXT)
Step = int | str  # so many tokens come; or "shut", "open", "turn" (of the event loop)


class Client:
    """A task that reads, and the short way past it while that is open."""

    def __init__(self, live: Live) -> None:
        self.got: list[Update] = []
        self.short = 0
        self.is_open = True
        self._reader = live.reader()
        self._reader.divert(Tick(), self._show)
        self.task = asyncio.create_task(self._read(), name="client")

    def _show(self, text: Text | Parsed) -> bool:
        if self.is_open:
            self.got.append(text)
            self.short += 1
        return self.is_open

    async def _read(self) -> None:
        while updates := await self._reader.next():
            self.got += updates


async def turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5) | st.sampled_from(["shut", "open", "turn", "turn"]), max_size=60))
async def test_the_updates_are_the_same_by_either_way(steps: list[Step]) -> None:
    live, _ = make()
    client = Client(live)
    live.feed(1, STARTED, AT)
    at = 0
    for seq, step in enumerate(steps, start=2):
        if isinstance(step, int):
            live.feed(seq, tokens(at, IDS[at : at + step]), AT)
            at = min(len(IDS), at + step)
        elif step == "turn":
            await turn()
        else:
            client.is_open = step == "open"
    live.feed(1000, finished(IDS), AT)
    await client.task
    assert [type(client.got[0]), type(client.got[-1])] == [Started, Ended]
    texts = [update for update in client.got if isinstance(update, Text)]
    assert len(texts) == len(client.got) - 2
    assert text_of(client.got) == TEXT
    assert [text.first_token for text in texts[1:]] == [text.end_token for text in texts[:-1]]
    single = {cursor(u.end_token) for u in live_one_by_one(IDS, ()) if isinstance(u, Text)}
    assert {cursor(text.end_token) for text in texts} <= single


async def test_each_token_by_itself_and_what_comes_at_once_together() -> None:
    live, _ = make()
    client = Client(live)
    live.feed(1, STARTED, AT)
    await turn()
    ids = ids_of("abcdef")
    for n in range(3):
        live.feed(n + 2, tokens(n, [ids[n]]), AT)
        await turn()
    live.feed(5, tokens(3, [ids[3]]), AT)
    live.feed(6, tokens(4, [ids[4]]), AT)
    await turn()
    assert [update.text for update in client.got if isinstance(update, Text)] == ["a", "b", "c", "de"]
    assert client.short == 4
    live.feed(7, finished(ids), AT)
    await client.task
    assert text_of(client.got) == "abcdef"


async def test_a_bug_in_how_text_is_shown_is_met_by_its_own_task() -> None:
    live, _ = make()
    reader = live.reader()
    live.feed(1, STARTED, AT)
    assert await reader.next() == [Started()]

    def show(_: Text | Parsed) -> bool:
        raise ArithmeticError

    reader.divert(Tick(), show)
    waiting = asyncio.ensure_future(reader.next())
    await turn()
    live.feed(2, tokens(0, ids_of("a")), AT)
    (text,) = await waiting
    assert isinstance(text, Text)
    reader.close()
