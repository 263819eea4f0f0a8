"""Which queue a worker asks next, and for how many jobs. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

FLOOR_EVERY = 8  # of so many slots given while a better queue has a backlog, one goes to the others


def allocate(free: int, pending: Sequence[int], outstanding: Sequence[int], turn: int = 0) -> list[int]:
    """How many more jobs to ask of each queue.

    ``free``: slots that are not running a job. ``pending``: jobs known to wait in each queue, best queue
    first. ``outstanding``: jobs already asked for. ``turn`` counts slots given so far: every eighth goes to
    the other queues in rotation, whatever waits in the best, so that no queue starves. The sum of
    ``outstanding`` and the result never exceeds ``free`` (unless ``outstanding`` does already).

    In order: the floor's one; known backlogs, best queue first; one for every queue with nothing
    outstanding, so that a job arriving there is delivered without delay.
    """
    asks = [0] * len(pending)
    room = free - sum(outstanding)

    def give(queue: int, wanted: int) -> None:
        nonlocal room
        granted = max(0, min(room, wanted))
        asks[queue] += granted
        room -= granted

    if turn % FLOOR_EVERY == FLOOR_EVERY - 1 and len(pending) > 1:
        lower = 1 + (turn // FLOOR_EVERY) % (len(pending) - 1)
        if outstanding[lower] == 0:
            give(lower, 1)
    for queue, waiting in enumerate(pending):
        give(queue, waiting - outstanding[queue] - asks[queue])
    for queue in range(len(pending)):
        if outstanding[queue] + asks[queue] == 0:
            give(queue, 1)
    return asks
