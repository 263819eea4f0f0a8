"""``sequence_number``: a client's cursor into the reply log. A pure function of the log, never a counter.

Events before the first token are 0, 1, 2 …; the events caused by token k (from 1) are 1000·k + j; the
events of the end are 1000·(total + 1) + j, and the first of those (j = 0) is kept for the text that only
the end released. Any gateway gives the same number to the same event; gaps are normal.
"""

from __future__ import annotations

STEP = 1000  # more events than one token can cause
FLUSH = 0  # j of the delta with text that the end released
FIRST_ENDING = 1  # j of the first event that closes the response


def cursor(token: int, ordinal: int = 0) -> int:
    """The number of the ``ordinal``-th event caused by token ``token`` (0: before the first token).
    For a ``Text`` update, ``token`` is its ``end_token``."""
    if not 0 <= ordinal < STEP:
        raise ValueError(f"a token cannot cause event number {ordinal}")
    return STEP * token + ordinal


def ending(total: int, ordinal: int = FIRST_ENDING) -> int:
    """The number of an event of the end of a response of ``total`` tokens."""
    return cursor(total + 1, ordinal)


def token_of(sequence_number: int) -> int:
    """The token that caused the event: what a reader who has seen it need not be given again."""
    return sequence_number // STEP
