"""Which queue a worker asks next, and for how many jobs. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

FLOOR_EVERY = 8  # one turn in so many looks at a lower queue first


def allocate(free: int, pending: Sequence[int], outstanding: Sequence[int], turn: int = 0) -> list[int]:
    """How many more jobs to ask of each queue.

    ``free``: slots that run no job. ``pending``: jobs known to wait in each queue, best queue first.
    ``outstanding``: jobs already asked for. ``turn``: a number that grows from call to call. The sum of
    ``outstanding`` and the result never exceeds ``free``, unless ``outstanding`` alone does.

    In order: every eighth turn one slot for a lower queue, in rotation, so that none starves behind a
    backlog; known backlogs, best queue first; then one for each queue with nothing outstanding, so that a
    job arriving there is delivered at once. Where slots do not suffice for that, the best queue comes first
    (every other turn where there is but one slot) and the others take turns.
    """
    asks = [0] * len(pending)
    room = free - sum(outstanding)
    lower = range(1, len(pending))

    def give(queue: int, wanted: int) -> None:
        nonlocal room
        granted = max(0, min(room, wanted))
        asks[queue] += granted
        room -= granted

    if lower and turn % FLOOR_EVERY == FLOOR_EVERY - 1:
        chosen = lower[(turn // FLOOR_EVERY) % len(lower)]
        give(chosen, 1 - outstanding[chosen])
    for queue, waiting in enumerate(pending):
        give(queue, waiting - outstanding[queue] - asks[queue])
    for queue in _watch_order(room, lower, turn):
        give(queue, 1 - outstanding[queue] - asks[queue])
    return asks


def _watch_order(room: int, lower: range, turn: int) -> list[int]:
    start = (turn // 2) % len(lower) if lower else 0
    others = [*lower[start:], *lower[:start]]
    return [*others, 0] if room == 1 and turn % 2 else [0, *others]
