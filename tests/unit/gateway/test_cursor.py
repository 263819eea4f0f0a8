"""The numbers of events, as the protocol states them."""

from __future__ import annotations

import pytest

from gateway.cursor import cursor, ending, token_of


def test_numbers() -> None:
    assert [cursor(0, j) for j in range(3)] == [0, 1, 2]
    assert [cursor(1), cursor(1, 2), cursor(7)] == [1000, 1002, 7000]
    assert [ending(7, 0), ending(7), ending(0)] == [8000, 8001, 1001]


def test_token_of_is_the_cause() -> None:
    assert [token_of(n) for n in (0, 2, 1000, 1999, 7000, 8001)] == [0, 0, 1, 1, 7, 8]


def test_ordinals_are_bounded() -> None:
    with pytest.raises(ValueError, match="1000"):
        cursor(3, 1000)
