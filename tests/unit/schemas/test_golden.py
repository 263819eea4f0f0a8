"""Bytes of every message as first written: they must decode for ever (see schemas/job.py)."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import msgspec
import pytest

from schemas import codec
from tests.unit.schemas.messages import MESSAGES

GOLDEN = {
    "job": "de0011a474797065a36a6f62a8726573706f6e7365bf726573705f30314a4430303030303030303030303030303030303030303030a674656e616e74a461636d65a773657373696f6ea27331a767617465776179a467772d31a56d6f64656cad74696e792d3030303030303030aa6d6f64656c5f6e616d65a474696e79a87072696f72697479a56261746368a46c616e65a46f766572aa70726f6d70745f6964739301ccc8ce00011170a873616d706c696e67de0011aa6d61785f746f6b656e7340aa6d696e5f746f6b656e7301ab74656d7065726174757265cb3fe0000000000000a5746f705f70cb3feccccccccccccda5746f705f6b28a56d696e5f70cb3fa999999999999ab070726573656e63655f70656e616c7479cb3fb999999999999ab16672657175656e63795f70656e616c7479cb3fc999999999999ab272657065746974696f6e5f70656e616c7479cb3ff199999999999aa473656564f9a86c6f6770726f627302aa6c6f6769745f626961738105cbbff8000000000000ae73746f705f746f6b656e5f6964739102aa69676e6f72655f656f73c3a96261645f776f72647391a26e6fb1616c6c6f7765645f746f6b656e5f69647393010203aa7374727563747572656481ab6a736f6e5f736368656d61b17b2274797065223a226f626a656374227dac70726573656e746174696f6e87a3617069a463686174a473746f7091a3454e44a46563686faf7b226d65746164617461223a7b7d7dac636f6e766572736174696f6ea4636f6e76b470726576696f75735f726573706f6e73655f6964bf726573705f30314a4430303030303030303030303030303030303030303030a9757365725f74657874a26869a573746f7265c2af637265617465645f756e69785f6d73cf0000018bcfe56800b0646561646c696e655f756e69785f6d73cf0000018bcfe9fbe0aa63616368655f73616c74a473616c74ab7472616365706172656e74a930302d302d302d3031a97265706c61795f6f66bf726573705f30314a4430303030303030303030303030303030303030303030",
    "dead": "88a474797065a464656164a8726573706f6e7365bf726573705f30314a4430303030303030303030303030303030303030303030a4636f6465a6706f69736f6ea76d657373616765ba3320617474656d70747320776974686f7574206120746f6b656ea36a6f62c40281ffab6a6f625f7375626a656374d92468722e6a6f622e74696e792d30303030303030302e62617463682e6f7665722e72657370a7686973746f727991b0736571203420776f726b657220772d31ac646965645f756e69785f6d73cf0000018bcfe569f4",
    "worker": "de0014a474797065a6776f726b6572a6776f726b6572a4776b2d31a56d6f64656cad74696e792d3030303030303030aa6d6f64656c5f6e616d65a474696e79a87265766973696f6ea27231a6656e67696e65a373696da57374617465a8647261696e696e67a5736c6f747308a772756e6e696e6703a777616974696e6701ac746f6b656e735f7065725f73cb4058e00000000000ae6b765f63616368655f7573616765cb3fd0000000000000ad6d61785f6d6f64656c5f6c656ecd0800aa766f6361625f73697a65cd0200a9746f6b656e697a6572ad74696e792d3030303030303030af737461727465645f756e69785f6d73cf0000018bcfe56800ac7365656e5f756e69785f6d73cf0000018bcfe56a58a4686f7374a168a37069642aa776657273696f6ea5302e312e30",
    "started": "86a474797065a773746172746564a7617474656d707402a6776f726b6572a4776b2d31ab61636b5f7375626a656374a9244a532e41434b2e78a964656c69766572656403ae70756c6c65645f756e69785f6d73cf0000018bcfe56801",
    "handoff": "82a474797065a768616e646f6666a566656e636511",
    "joined": "82a474797065a66a6f696e6564a66c6561646572bf726573705f30314a4430303030303030303030303030303030303030303030",
    "closed": "87a474797065a6636c6f736564a6726561736f6ea473746f70a4636f6465a963616e63656c6c6564a76d657373616765a16da5746f74616c02a3696473920b0ca5757361676583ad70726f6d70745f746f6b656e7309ad6361636865645f746f6b656e7304b1636f6d706c6574696f6e5f746f6b656e7302",
    "tokens": "85a474797065a6746f6b656e73a566656e636511a66f666673657401a3696473920b0ca86c6f6770726f62739292cbbfe000000000000092920bcbbfe0000000000000920ccbbff400000000000092cbc00000000000000090",
    "finished": "89a474797065a866696e6973686564a566656e636511a5746f74616c02a6726561736f6ea473746f70a3696473920b0ca5757361676583ad70726f6d70745f746f6b656e7309ad6361636865645f746f6b656e7304b1636f6d706c6574696f6e5f746f6b656e7302a774696d696e677384a871756575655f6d73cb3ff8000000000000af656e67696e655f71756575655f6d73cb3fe0000000000000aa70726566696c6c5f6d73cb4034000000000000a96465636f64655f6d73cb4072c40000000000aa73746f705f746f6b656e02a86c6f6770726f62739292cbbfe000000000000092920bcbbfe0000000000000920ccbbff400000000000092cbc00000000000000090",
    "failed": "85a474797065a66661696c6564a566656e636511a4636f6465af656e67696e655f72656a6563746564a76d657373616765ab626164206772616d6d6172a5746f74616c01",
}

DECODERS: dict[str, Callable[[bytes], codec.Message]] = {
    "job": codec.decode_job,
    "dead": codec.decode_dead_letter,
    "worker": codec.decode_worker_card,
    **dict.fromkeys(("started", "handoff", "joined", "closed"), codec.decode_fence_message),
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


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_an_independent_library_reads_the_same(name: str) -> None:
    read = _read(MESSAGES[name])
    assert read == msgspec.msgpack.decode(codec.encode(MESSAGES[name]))
    fields = set(MESSAGES[name].__struct_fields__)
    assert fields <= set(read), "the sample leaves a field unset"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_fields_of_a_later_version_are_ignored(name: str) -> None:
    later = _read(MESSAGES[name]) | {"added_in_v2": {"a": [1]}}
    assert DECODERS[name](msgpack.packb(later)) == MESSAGES[name]


@pytest.mark.parametrize("name", sorted(MESSAGES))
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa3xxx", b"\xff" * 40])
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
