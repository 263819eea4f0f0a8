"""The headers of a request to the broker, as they stand on the wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.nats_client import header_lines, parse_headers

VALUE = st.text(st.characters(codec="utf-8"), min_size=1)


def test_no_headers_take_no_room() -> None:
    assert header_lines(None) == header_lines({}) == b""


def test_they_stand_as_the_server_reads_them() -> None:
    assert header_lines({"Nats-Msg-Id": "a", "Hr-Model": "é"}) == (
        b"NATS/1.0\r\nNats-Msg-Id: a\r\nHr-Model: \xc3\xa9\r\n\r\n"
    )


@given(VALUE)
def test_a_value_ends_no_line(value: str) -> None:
    lines = header_lines({"First": value, "Second": "2"})
    assert lines.count(b"\n") == lines.count(b"\r") == 4
    assert (parse_headers(lines) or {})["Second"] == "2"
