"""What an ack subject tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.pull import AckInfo, Delivery, parse_ack_subject

NUMBERS = "3.41.7.1795363200123456789.12"
EXPECTED = AckInfo("JOBS", "m-interactive-fair", 3, 41, 7, 1795363200123456789, 12)


@pytest.mark.parametrize(
    "subject",
    [
        f"$JS.ACK.JOBS.m-interactive-fair.{NUMBERS}",
        f"$JS.ACK._.ACCHASH.JOBS.m-interactive-fair.{NUMBERS}",
        f"$JS.ACK.hub.ACCHASH.JOBS.m-interactive-fair.{NUMBERS}.Xr4nd0m",
    ],
)
def test_all_forms(subject: str) -> None:
    assert parse_ack_subject(subject) == EXPECTED


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.ACK",
        "$JS.ACK.JOBS.c.1.2.3.4",
        "$JS.NAK.JOBS.c.1.2.3.4.5",
        "_INBOX.x",
        "$JS.ACK.JOBS.c.1.2.3.x.5",
    ],
)
def test_what_is_none(subject: str) -> None:
    with pytest.raises(ValueError, match=r"ack subject|invalid literal"):
        parse_ack_subject(subject)


numbers = st.integers(0, 2**63)


@given(delivered=numbers, sseq=numbers, cseq=numbers, stored=numbers, pending=numbers, domain=st.booleans())
def test_numbers_survive(
    delivered: int, sseq: int, cseq: int, stored: int, pending: int, domain: bool
) -> None:
    prefix = "$JS.ACK.d.h" if domain else "$JS.ACK"
    subject = f"{prefix}.S.C.{delivered}.{sseq}.{cseq}.{stored}.{pending}" + (".r" if domain else "")
    assert parse_ack_subject(subject) == ("S", "C", delivered, sseq, cseq, stored, pending)


def test_a_delivery_is_read_from_it() -> None:
    delivery = Delivery("hr.job.x", b"data", None, f"$JS.ACK.JOBS.m-interactive-fair.{NUMBERS}")
    assert (delivery.delivered, delivery.stream_seq, delivery.consumer_seq) == (3, 41, 7)
    assert delivery.stored_unix_ms == 1795363200123.456
    assert delivery.pending == 12
