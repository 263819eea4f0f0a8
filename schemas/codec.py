"""MessagePack to and from the typed messages. One encoder, and one decoder a message family.

Raises ``msgspec.DecodeError`` on whatever does not fit, and nothing else; callers turn it into their own
coded error, because only they know whose fault it is.
A one-token ``Tokens`` costs about 0.3 us to encode and 0.6 us to decode.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from schemas.job import DeadLetter, Job
from schemas.key import StoredKey
from schemas.presence import WorkerCard
from schemas.reply import FenceMessage, ReplyMessage, TokenMessage

T = TypeVar("T")
Message = Job | DeadLetter | WorkerCard | StoredKey | ReplyMessage

_encoder = msgspec.msgpack.Encoder()
_job = msgspec.msgpack.Decoder(Job)
_dead = msgspec.msgpack.Decoder(DeadLetter)
_card = msgspec.msgpack.Decoder(WorkerCard)
_key = msgspec.msgpack.Decoder(StoredKey)
_fence: msgspec.msgpack.Decoder[FenceMessage] = msgspec.msgpack.Decoder(FenceMessage)
_token: msgspec.msgpack.Decoder[TokenMessage] = msgspec.msgpack.Decoder(TokenMessage)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_job(data: bytes) -> Job:
    return _decode(_job, data)


def decode_dead_letter(data: bytes) -> DeadLetter:
    return _decode(_dead, data)


def decode_worker_card(data: bytes) -> WorkerCard:
    return _decode(_card, data)


def decode_key(data: bytes) -> StoredKey:
    return _decode(_key, data)


def decode_fence_message(data: bytes) -> FenceMessage:
    return _decode(_fence, data)


def decode_token_message(data: bytes) -> TokenMessage:
    return _decode(_token, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these two through as they are
        raise msgspec.DecodeError(str(error)) from None
