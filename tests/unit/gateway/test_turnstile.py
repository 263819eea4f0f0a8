"""Who may begin in which pass of the event loop."""

from __future__ import annotations

import asyncio

from gateway.turnstile import BEGIN, Turnstile


async def test_a_burst_begins_in_its_order_a_few_in_each_pass() -> None:
    turnstile = Turnstile()
    begun: list[tuple[int, int]] = []
    passes = 0

    async def ask(number: int) -> None:
        await turnstile.enter()
        begun.append((passes, number))

    async with asyncio.TaskGroup() as tasks:
        for number in range(5 * BEGIN + 1):
            tasks.create_task(ask(number))
        while len(begun) <= 5 * BEGIN:
            passes += 1
            await asyncio.sleep(0)
    assert [number for _, number in begun] == list(range(5 * BEGIN + 1))
    together = [sum(at == one for at, _ in begun) for one in range(passes + 1)]
    assert max(together) == BEGIN


async def test_a_lone_request_does_not_wait() -> None:
    turnstile = Turnstile()
    for _ in range(3):
        entering = turnstile.enter()
        try:
            entering.send(None)
        except StopIteration:
            pass
        else:
            raise AssertionError("it waited")
        for _ in range(2):
            await asyncio.sleep(0)


async def test_who_gave_up_takes_nobodys_turn() -> None:
    turnstile = Turnstile()
    asking = [asyncio.create_task(turnstile.enter()) for _ in range(3 * BEGIN)]
    await asyncio.sleep(0)
    for task in asking[BEGIN : 2 * BEGIN]:
        task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*asking, return_exceptions=True)
        await turnstile.enter()
    assert [task.cancelled() for task in asking] == [BEGIN <= n < 2 * BEGIN for n in range(3 * BEGIN)]
