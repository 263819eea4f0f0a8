"""Tokenizer files in the object store, by model revision, so that an edge needs no model hub.

One object a revision: an uncompressed tar of the few files a tokenizer is made of, byte for byte the same
wherever it is packed. The layout is the NATS object store's (ADR-20): `nats object get` reads it.
Must not know what is in the files.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import msgspec
import nats.errors
from nats.js.errors import Error as JetStreamError

from broker import jetstream, subjects
from broker.connection import Broker, NoAnswer
from broker.jetstream import ApiError
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)

FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
MAX_BYTES = 256 << 20
TRANSFER_LIMIT_S = 60.0
TRIES = 3

_STREAM = f"OBJ_{subjects.TOKENIZERS_BUCKET}"


class _ObjectInfo(msgspec.Struct, frozen=True):
    """What is used of ADR-20's ObjectInfo."""

    nuid: str = ""
    size: int = 0
    digest: str = ""
    deleted: bool = False


async def put_tokenizer(broker: Broker, name: str, folder: Path) -> None:
    """Store the tokenizer files of ``folder`` under ``name``; nothing is sent where the same are there.
    Raises ``FileNotFoundError`` where it holds no tokenizer, ``HeadraceError(broker_unavailable)``."""
    data = await asyncio.to_thread(_pack, folder)
    for attempt in range(TRIES):
        try:
            info = await _info(broker, name)
            if info is not None and not info.deleted and info.digest == _digest(data):
                return
            async with asyncio.timeout(TRANSFER_LIMIT_S):
                store = await broker.js.object_store(subjects.TOKENIZERS_BUCKET)
                await store.put(name, data)
        except (NoAnswer, ApiError, JetStreamError, nats.errors.Error, TimeoutError) as error:
            await _pause(broker, f"tokenizer {name} was not stored: {error!r}", attempt)
        else:
            log.info("tokenizer %s stored, %d bytes", name, len(data))
            return
    raise NoAnswer("timeout", name)


async def fetch_tokenizer(broker: Broker, name: str, into: Path) -> Path:
    """The folder ``into/<name>`` with the files; taken from there if it exists already. Appears whole or not
    at all, however many processes fetch it. Raises ``HeadraceError``: ``model_not_found`` where there is no
    such object, ``broker_unavailable``, ``internal_error`` where what is stored is damaged; ``OSError`` where
    ``into`` cannot be written."""
    folder = into / _safe(name)
    if folder.is_dir():
        return folder
    for attempt in range(TRIES):
        try:
            async with asyncio.timeout(TRANSFER_LIMIT_S):
                data = await _get(broker, name)
        except (NoAnswer, ApiError, TimeoutError) as error:
            await _pause(broker, f"tokenizer {name} was not fetched: {error!r}", attempt)
        else:
            await asyncio.to_thread(_unpack, data, folder)
            return folder
    raise NoAnswer("timeout", name)


async def _pause(broker: Broker, reason: str, attempt: int) -> None:
    log.warning("%s", reason)
    if attempt + 1 < TRIES:
        await broker.wait_connected()
        await asyncio.sleep(0.2)


async def _info(broker: Broker, name: str) -> _ObjectInfo | None:
    key = base64.urlsafe_b64encode(name.encode()).decode()
    stored = await jetstream.last_message(broker, _STREAM, f"$O.{subjects.TOKENIZERS_BUCKET}.M.{key}")
    return None if stored is None else msgspec.json.decode(stored.data, type=_ObjectInfo)


async def _get(broker: Broker, name: str) -> bytes:
    info = await _info(broker, name)
    if info is None or info.deleted:
        raise HeadraceError("model_not_found", f"No worker has stored the tokenizer {name!r} yet.")
    if info.size > MAX_BYTES:
        raise HeadraceError(
            "internal_error", f"The stored tokenizer {name!r} is larger than {MAX_BYTES} bytes."
        )
    chunks = jetstream.messages(broker, _STREAM, f"$O.{subjects.TOKENIZERS_BUCKET}.C.{info.nuid}")
    data = b"".join([chunk.data async for chunk in chunks])
    if _digest(data) != info.digest:
        raise HeadraceError(
            "internal_error", f"The stored tokenizer {name!r} is damaged: its digest differs."
        )
    return data


def _digest(data: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()


def _pack(folder: Path) -> bytes:
    """A tar with no times, owners or order of this machine in it: equal files give equal bytes."""
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer.json")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in FILES:
            path = folder / name
            if path.is_file():
                content = path.read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o644
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _unpack(data: bytes, folder: Path) -> None:
    """Only regular files with the names we pack are taken, whatever else an archive may claim."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isreg() and entry.name in FILES else None
                if content is not None:
                    (unfinished / entry.name).write_bytes(content.read())
        os.replace(unfinished, folder)
    except tarfile.TarError as error:
        raise HeadraceError(
            "internal_error", f"The stored tokenizer {folder.name!r} is no archive."
        ) from error
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same files
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _safe(name: str) -> str:
    """A folder name for an object name: as it is where that is harmless, else its hash."""
    harmless = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and not name.startswith(".")
    return name if harmless and len(name) <= 128 else hashlib.sha256(name.encode()).hexdigest()[:32]
