"""Tokenizer files through the object store."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

import pytest

from broker import jetstream, tokenizers
from broker.connection import Broker
from schemas.errors import HeadraceError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(bytes(range(256)) * 4096)  # 1 MiB: several chunks
    (folder / "tokenizer_config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_text("weights stay at home")
    return folder


async def stored(broker: Broker) -> int:
    answer = await jetstream.call(broker, "STREAM.INFO.OBJ_hr_tokenizers", b"", dict)
    last: int = answer["state"]["last_seq"]
    return last


async def test_put_and_fetch(broker: Broker, model: Path, tmp_path: Path) -> None:
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    folder = await tokenizers.fetch_tokenizer(broker, "demo-1", tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["demo-1"]  # nothing unfinished lies about


async def test_the_official_client_reads_it(broker: Broker, model: Path) -> None:
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    store = await broker.js.object_store("hr_tokenizers")
    data = (await store.get("demo-1")).data
    assert data is not None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["tokenizer.json", "tokenizer_config.json"]


async def test_the_same_files_are_sent_once(broker: Broker, model: Path) -> None:
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    before = await stored(broker)
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    assert await stored(broker) == before
    (model / "tokenizer_config.json").write_text('{"a": 2}')
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    assert await stored(broker) > before


async def test_many_fetch_at_once(broker: Broker, model: Path, tmp_path: Path) -> None:
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    cache = tmp_path / "cache"
    folders = await asyncio.gather(*(tokenizers.fetch_tokenizer(broker, "demo-1", cache) for _ in range(8)))
    assert set(folders) == {cache / "demo-1"}
    assert [path.name for path in cache.iterdir()] == ["demo-1"]


async def test_an_unknown_name(broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError) as caught:
        await tokenizers.fetch_tokenizer(broker, "nope", tmp_path)
    assert caught.value.code == "model_not_found"


async def test_a_folder_without_a_tokenizer(broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await tokenizers.put_tokenizer(broker, "demo-1", tmp_path)


async def test_a_hostile_archive_writes_nothing_outside(broker: Broker, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("../evil", str(tmp_path / "absolute"), "tokenizer.json"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("config.json")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        tar.addfile(link)
    store = await broker.js.object_store("hr_tokenizers")
    await store.put("evil", out.getvalue())
    folder = await tokenizers.fetch_tokenizer(broker, "evil", tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["evil"]
    assert not (tmp_path / "absolute").exists()
    assert not (tmp_path / "evil").exists()


async def test_a_name_that_is_no_file_name(broker: Broker, model: Path, tmp_path: Path) -> None:
    await tokenizers.put_tokenizer(broker, "org/../demo", model)
    folder = await tokenizers.fetch_tokenizer(broker, "org/../demo", tmp_path / "cache")
    assert folder.parent == tmp_path / "cache"
    assert (folder / "tokenizer.json").is_file()


async def test_damaged_chunks_are_noticed(broker: Broker, model: Path, tmp_path: Path) -> None:
    await tokenizers.put_tokenizer(broker, "demo-1", model)
    payload = b'{"seq": 2}'
    await jetstream.call(broker, "STREAM.MSG.DELETE.OBJ_hr_tokenizers", payload, dict)
    with pytest.raises(HeadraceError, match="damaged"):
        await tokenizers.fetch_tokenizer(broker, "demo-1", tmp_path)
