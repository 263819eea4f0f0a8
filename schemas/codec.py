"""MessagePack to and from the typed messages. One encoder, and one decoder a message family.

Raises ``msgspec.ValidationError`` (a ``msgspec.DecodeError``) on what does not fit; callers turn it into
their own coded error, because only they know whose fault it is.
Measured in tests/bench: about 0.3 us to encode and 0.5 us to decode a one-token ``Tokens``.
"""

from __future__ import annotations

import msgspec

from schemas.job import DeadLetter, Job
from schemas.presence import WorkerCard
from schemas.reply import FenceMessage, ReplyMessage, TokenMessage

Message = Job | DeadLetter | WorkerCard | ReplyMessage

_encoder = msgspec.msgpack.Encoder()
_job = msgspec.msgpack.Decoder(Job)
_dead = msgspec.msgpack.Decoder(DeadLetter)
_card = msgspec.msgpack.Decoder(WorkerCard)
_fence: msgspec.msgpack.Decoder[FenceMessage] = msgspec.msgpack.Decoder(FenceMessage)
_token: msgspec.msgpack.Decoder[TokenMessage] = msgspec.msgpack.Decoder(TokenMessage)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_job(data: bytes) -> Job:
    return _job.decode(data)


def decode_dead_letter(data: bytes) -> DeadLetter:
    return _dead.decode(data)


def decode_worker_card(data: bytes) -> WorkerCard:
    return _card.decode(data)


def decode_fence_message(data: bytes) -> FenceMessage:
    return _fence.decode(data)


def decode_token_message(data: bytes) -> TokenMessage:
    return _token.decode(data)
