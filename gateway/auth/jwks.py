"""The public keys that sign JWTs: from a file, read once, or from one configured address, fetched in a thread
and kept. No address that a token names is ever asked. Must not know what a token says."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from jwt import PyJWKSet

from broker.settings import ConfigError
from schemas.errors import HeadraceError

log = logging.getLogger(__name__)

REFRESH_S = 600.0
COOLDOWN_S = 10.0  # between two fetches, whatever unknown keys tokens name
FETCH_S = 5.0
MAX_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Jwks:
    """``run`` must be running where keys come from an address. A fetch that fails changes no key."""

    def __init__(self, source: str) -> None:
        """Raises ``ConfigError``."""
        self._url = source if "://" in source else ""
        self._keys: dict[str | None, object] = {}
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()  # set and replaced at the end of each fetch
        self._fetched_at_s = float("-inf")
        if self._url:
            _check_address(self._url)
        else:
            self._keys = _of_file(source)

    async def run(self) -> None:
        """Never returns."""
        while self._url:
            await self._fetch()
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
        await asyncio.Event().wait()

    async def find(self, kid: str | None) -> object | None:
        """None: no such key; an unknown one is looked for at the address first. Raises ``auth_unavailable``
        where no keys could be fetched yet."""
        key = self._of(kid)
        if key is None and self._url and self._may_fetch():
            fetched = self._fetched
            self._wanted.set()
            try:
                async with asyncio.timeout(FETCH_S + 1):
                    await fetched.wait()
            except TimeoutError:
                pass
            key = self._of(kid)
        if not self._keys:
            raise HeadraceError("auth_unavailable", "JWTs cannot be checked right now: try again.")
        return key

    def _of(self, kid: str | None) -> object | None:
        if kid is None and len(self._keys) != 1:
            return None  # it does not say which
        if kid is None or None in self._keys:  # a PEM file's key has no name
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _may_fetch(self) -> bool:
        """Also while a fetch is under way."""
        return asyncio.get_running_loop().time() - self._fetched_at_s >= COOLDOWN_S

    async def _fetch(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_download, self._url)
        except Exception as error:  # whatever an issuer answers, it must not end a gateway
            log.warning("the keys at %s cannot be fetched, those known still count: %s", self._url, error)
        finally:
            self._fetched_at_s = asyncio.get_running_loop().time()
            self._fetched.set()
            self._fetched = asyncio.Event()


def _download(url: str) -> dict[str | None, object]:
    request = urllib.request.Request(url, headers={"accept": "application/json"})
    with urllib.request.urlopen(request, timeout=FETCH_S) as answer:
        data = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return _of_set(data.decode())


def _of_set(text: str) -> dict[str | None, object]:
    return {key.key_id: key for key in PyJWKSet.from_json(text).keys}


def _of_file(path: str) -> dict[str | None, object]:
    try:
        text = Path(path).read_text()
        if text.lstrip().startswith("{"):
            return _of_set(text)
        return {None: _of_pem(text)}
    except Exception as error:  # PyJWT raises many things for a key that it cannot read
        raise ConfigError(f"auth.jwt_keys: {path}: {error}") from None


def _of_pem(text: str) -> object:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return load_pem_public_key(text.encode())


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError("auth.jwt_keys: give an https address, or a file")
