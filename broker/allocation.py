"""Which queue a worker asks next, and for how many jobs. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

FLOOR_EVERY = 8  # one turn in so many looks at a lower queue first


def allocate(
    free: int,
    pending: Sequence[int],
    outstanding: Sequence[int],
    turn: int = 0,
    *,
    known: Sequence[bool] | None = None,
    reserved: int = 0,
) -> list[int]:
    """How many more jobs to ask of each queue.

    ``free``: slots that run no job. ``pending``: jobs known to wait in each queue, best queue first.
    ``outstanding``: jobs already asked for. ``turn``: a number that grows as jobs are asked for. ``known``:
    queues of which was heard a moment ago, so that 0 pending means none (None: all). ``reserved``: free
    slots that only the best queue may have. The sum of ``outstanding`` and the result never exceeds
    ``free``, unless ``outstanding`` alone does.

    In order: every eighth turn one slot for a lower queue, in rotation, so that none starves behind a
    backlog; known backlogs, best queue first, but before a lower one's each better queue of which nothing is
    known is asked for all the room there is, or it would never be heard of; then one for each queue with
    nothing outstanding, so that a job arriving there is delivered at once. Where slots do not suffice for
    that, the best queue comes first (every other turn where there is but one slot) and the others take turns.
    """
    asks = [0] * len(pending)
    room = free - sum(outstanding)
    room_below = min(room, free - reserved - sum(outstanding[1:]))
    lower = range(1, len(pending))

    def give(queue: int, wanted: int) -> None:
        nonlocal room, room_below
        granted = max(0, min(room, wanted, room_below if queue else room))
        asks[queue] += granted
        room -= granted
        room_below = min(room, room_below - granted if queue else room_below)

    def heard(queue: int) -> bool:
        return known is None or known[queue] or outstanding[queue] > 0

    if lower and turn % FLOOR_EVERY == FLOOR_EVERY - 1:
        chosen = lower[(turn // FLOOR_EVERY) % len(lower)]
        if pending[chosen] or not heard(chosen):
            give(chosen, 1 - outstanding[chosen])
    backlogs = [queue for queue, waiting in enumerate(pending) if waiting > outstanding[queue]]
    for queue in range(backlogs[-1] + 1 if backlogs else 0):
        is_known = pending[queue] > 0 or heard(queue)
        give(queue, pending[queue] - outstanding[queue] - asks[queue] if is_known else room)
    for queue in _watch_order(room, lower, turn):
        give(queue, 1 - outstanding[queue] - asks[queue])
    return asks


def _watch_order(room: int, lower: range, turn: int) -> list[int]:
    start = (turn // 2) % len(lower) if lower else 0
    others = [*lower[start:], *lower[:start]]
    return [*others, 0] if room == 1 and turn % 2 else [0, *others]
