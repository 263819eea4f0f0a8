"""Bytes of every message as first written: they must decode for ever (see schemas/job.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgpack
import msgspec
import pytest

from schemas import codec
from schemas.job import Job, Presentation
from schemas.sampling import Sampling
from tests.unit.schemas.messages import MESSAGES

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden.json").read_text())
# each message as earlier versions wrote it, before they had all of its fields
EARLIER: dict[str, list[str]] = json.loads((Path(__file__).parent / "golden_earlier.json").read_text())

DECODERS: dict[str, Callable[[bytes], codec.Message]] = {
    "job": codec.decode_job,
    "dead": codec.decode_dead_letter,
    "worker": codec.decode_worker_card,
    "key": codec.decode_key,
    **dict.fromkeys(("started", "handoff", "joined", "parted", "closed"), codec.decode_fence_message),
    **dict.fromkeys(("tokens", "finished", "failed"), codec.decode_token_message),
}


def _read(message: codec.Message) -> dict[str, object]:
    """With the msgpack package, which shares no code with msgspec."""
    fields: dict[str, object] = msgpack.unpackb(codec.encode(message), strict_map_key=False)
    return fields


def test_every_message_has_golden_bytes() -> None:
    assert {_read(message)["type"] for message in MESSAGES.values()} == set(GOLDEN) == set(DECODERS)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_golden_bytes_decode(name: str) -> None:
    assert DECODERS[name](bytes.fromhex(GOLDEN[name])) == MESSAGES[name]


@pytest.mark.parametrize(
    ("name", "data"),
    [pytest.param(name, data, id=f"{name}-{n}") for name in EARLIER for n, data in enumerate(EARLIER[name])],
)
def test_golden_bytes_of_earlier_versions_decode(name: str, data: str) -> None:
    """What they did not know is as it was without it: fields at their defaults are not written."""
    assert _read(DECODERS[name](bytes.fromhex(data))) == msgpack.unpackb(
        bytes.fromhex(data), strict_map_key=False
    )


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_an_independent_library_reads_the_same(name: str) -> None:
    read = _read(MESSAGES[name])
    assert read == msgspec.msgpack.decode(codec.encode(MESSAGES[name]))
    fields = set(MESSAGES[name].__struct_fields__)
    assert fields <= set(read), "the sample leaves a field unset"


@pytest.mark.parametrize(("part", "type_"), [("presentation", Presentation), ("sampling", Sampling)])
def test_the_sample_of_a_job_sets_every_field_of_its_parts(part: str, type_: type[msgspec.Struct]) -> None:
    shown = _read(MESSAGES["job"])[part]
    assert isinstance(shown, dict)
    assert set(type_.__struct_fields__) == set(shown)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_fields_of_a_later_version_are_ignored(name: str) -> None:
    later = _read(MESSAGES[name]) | {"added_in_v2": {"a": [1]}}
    assert DECODERS[name](msgpack.packb(later)) == MESSAGES[name]


def test_a_card_of_before_it_told_its_interval_decodes() -> None:
    earlier = _read(MESSAGES["worker"])
    del earlier["interval_s"]
    card = codec.decode_worker_card(msgpack.packb(earlier))
    assert card == msgspec.structs.replace(MESSAGES["worker"], interval_s=2.0)


def test_a_card_of_before_it_told_of_structured_output_decodes() -> None:
    earlier = _read(MESSAGES["worker"])
    del earlier["structured_output"]
    card = codec.decode_worker_card(msgpack.packb(earlier))
    assert card == msgspec.structs.replace(MESSAGES["worker"], structured_output=False)


def test_a_job_of_before_idempotency_keys_decodes() -> None:
    earlier = _read(MESSAGES["job"])
    del earlier["request_digest"]
    assert DECODERS["job"](msgpack.packb(earlier)) == msgspec.structs.replace(
        MESSAGES["job"], request_digest=""
    )


def test_a_job_and_a_closed_of_before_shared_answers_decode() -> None:
    earlier = _read(MESSAGES["job"])
    del earlier["held"]
    job = DECODERS["job"](msgpack.packb(earlier))
    assert isinstance(job, Job)
    assert not job.held
    earlier = _read(MESSAGES["closed"])
    del earlier["finish"]
    assert DECODERS["closed"](msgpack.packb(earlier)) == msgspec.structs.replace(
        MESSAGES["closed"], finish=None
    )


@pytest.mark.parametrize("name", sorted(MESSAGES))
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x81\xa4type\xa3xxx",
        b"\xff" * 40,
        b"\x82\xa4type\xa3job\xa8response\xa1\xff",  # a string that is not UTF-8
        b"\x82\xa4type\xa6tokens\xa1\xff\x01",
        b"\x82\xa4type\xa6tokens\xa1x" + b"\x91" * 100_000,  # nested too deeply, in a field to be ignored
        b"\x82\xa4type\xa7started\xa1x" + b"\x91" * 100_000,
    ],
)
def test_malformed_bytes_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        DECODERS[name](data)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": [1.5]},
        {"prompt_ids": ["1"]},
        {"prompt_ids": [-1]},
        {"prompt_ids": [1 << 40]},
        {"sampling": {"max_tokens": 4.0}},
        {"sampling": {"max_tokens": 0}},
        {"sampling": {"max_tokens": 4, "seed": "x"}},
        {"sampling": {"max_tokens": 4, "seed": 1 << 63}},
        {"sampling": {"max_tokens": 4, "temperature": float("nan")}},
        {"sampling": {"max_tokens": 4, "top_p": float("inf")}},
        {"cache_salt": 7},
        {"priority": "urgent"},
        {"response": "resp_1"},
        {"gateway": "gw.>"},
        {"session": "a b"},
        {"model": "*"},
        {"tenant": ""},
    ],
)
def test_what_would_kill_an_engine_does_not_decode(change: dict[str, object]) -> None:
    job = _read(MESSAGES["job"]) | change
    with pytest.raises(msgspec.ValidationError):
        codec.decode_job(msgpack.packb(job))
