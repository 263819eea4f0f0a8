"""A message tells the same time however it was read: whoever reads a log by another way computes the same."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from broker.jetstream import stamp_unix_ms
from broker.pull import Delivery


@given(st.integers(min_value=1_700_000_000_000_000_000, max_value=4_000_000_000_000_000_000))
def test_by_header_and_by_ack_subject(unix_ns: int) -> None:
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    stamp = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"
    delivery = Delivery("hr.reply.g.r.s.t", b"", None, f"$JS.ACK.REPLIES.reader.1.7.7.{unix_ns}.0")
    assert stamp_unix_ms(stamp) == delivery.stored_unix_ms
