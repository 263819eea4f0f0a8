"""Several subjects, each read by itself, joined as they are stored: all of a moment, or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.history import in_stream_order
from broker.jetstream import StoredMessage

SUBJECTS = 3  # read together; what stands under any other number belongs to somebody else


def stored(seq: int, subject: int) -> StoredMessage:
    return StoredMessage(f"subject.{subject}", seq, float(seq), b"", {})


Reading = list[tuple[int, list[StoredMessage]]]


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[StoredMessage], Reading]:
    """What is to be found, and each subject's last sequence with what the answers held: of servers that were
    at other places in the stream, and of a stream that goes on and drops its oldest messages."""
    stream = [stored(seq, subject) for seq, subject in enumerate(draw(st.lists(st.integers(0, SUBJECTS))), 1)]
    place = st.integers(0, len(stream))
    moment, first_seq = draw(place), draw(place)
    truth: list[StoredMessage] = []
    read: Reading = []
    for number in range(SUBJECTS):
        of_subject = [m for m in stream if m.subject == f"subject.{number}" and m.seq >= first_seq]
        then = [m for m in of_subject if m.seq <= moment]
        if then:
            dropped, reached = draw(st.one_of(st.just(0), place)), draw(place)
            read.append((then[-1].seq, [m for m in of_subject if dropped < m.seq <= reached]))
            truth += [m for m in then if m.seq > dropped]
    return sorted(truth, key=lambda message: message.seq), read


@given(readings())
def test_all_of_a_moment_or_nothing(reading: tuple[list[StoredMessage], Reading]) -> None:
    truth, read = reading
    reached = all(last_seq in [m.seq for m in found] for last_seq, found in read)
    assert in_stream_order(read) == (truth if reached else None)


def test_nothing_is_stored() -> None:
    assert in_stream_order([]) == []


def test_tokens_are_not_shown_without_the_fence_before_them() -> None:
    """The fence's answer came from a replica that had not heard of the second one."""
    tokens, fences = [stored(2, 0), stored(5, 0)], [stored(1, 1), stored(4, 1), stored(9, 1)]
    assert in_stream_order([(5, tokens), (4, fences[:1])]) is None
    joined = in_stream_order([(5, tokens), (4, fences)])
    assert joined is not None
    assert [message.seq for message in joined] == [1, 2, 4, 5]
