"""The gateway's door: reads the credential that a request shows, whatever its kind, and has shown out whom a
revoked key let in. Must not know HTTP's or a WebSocket's way to say so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import HTTPConnection

from broker.connection import Broker
from broker.keys import KeyRing
from broker.settings import ConfigError
from gateway.auth import browser_token
from gateway.auth.failures import Failures
from gateway.auth.grant import Grant, refused
from gateway.auth.jwt_reader import JwtReader
from gateway.auth.shown import address_of, credential_of
from gateway.caller import Caller
from schemas.config import Config
from schemas.errors import HeadraceError
from schemas.key import PREFIX, parse_key

log = logging.getLogger(__name__)

_WRONG = "Incorrect API key provided: it does not exist, was revoked, or has expired."


class Door:
    """``run`` must be running. ``ready``: the keys are known."""

    def __init__(self, config: Config, broker: Broker) -> None:
        """Raises ``ConfigError``."""
        if not config.security.secret:
            raise ConfigError(
                "security.secret: needed where auth.methods is set, the same on every gateway "
                "(HEADRACE_SECURITY__SECRET): it signs browser tokens and keeps tenants apart"
            )
        self._secret = config.security.secret.encode()
        self._config = config.auth
        self._failures = Failures(config.auth.failures_per_minute)
        self._ring = KeyRing(broker, on_revoked=self._revoked)
        self._takes_keys = "keys" in config.auth.methods
        self._jwts = JwtReader(config.auth) if "jwt" in config.auth.methods else None
        self._inside: dict[str, set[Callable[[], None]]] = {}  # by key: how to show each out

    @property
    def open_metrics(self) -> bool:
        return self._config.open_metrics

    @property
    def max_token_s(self) -> int:
        return self._config.max_token_s

    @property
    def ready(self) -> asyncio.Event:
        return self._ring.ready

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ring.run(), name="key-ring")
            if self._jwts is not None:
                tasks.create_task(self._jwts.jwks.run(), name="jwks")

    async def admit(self, connection: HTTPConnection) -> Grant:
        """Raises ``HeadraceError``: invalid_api_key, too_many_attempts, forbidden, auth_unavailable."""
        shown = credential_of(connection)
        try:
            if shown is None:
                raise refused("You didn't provide an API key: send the header Authorization: Bearer <key>.")
            grant = await self._read(shown)
        except HeadraceError as error:
            if error.code == "invalid_api_key":
                self._failed(address_of(connection))
            raise
        if grant.origin and connection.headers.get("origin") != grant.origin:
            raise HeadraceError("forbidden", "This token is for the pages of another origin.")
        return grant

    async def _read(self, shown: str) -> Grant:
        now_unix_s = time.time()
        if not shown.isascii():
            raise refused(_WRONG)
        if shown.startswith(PREFIX):
            return self._read_key(shown, now_unix_s)
        if shown.startswith(browser_token.PREFIX):
            grant = browser_token.read(self._secret, shown, now_unix_s)
            self._check_source(grant, now_unix_s)
            return grant
        if self._jwts is None:
            raise refused(_WRONG)
        return await self._jwts.read(shown)

    def _read_key(self, shown: str, now_unix_s: float) -> Grant:
        text = parse_key(shown)
        key = self._ring.find(text.id) if text is not None and self._takes_keys else None
        if text is None or key is None or not key.opens_with(text.secret, now_unix_s * 1000):
            raise refused(_WRONG)
        return Grant(Caller(key.tenant, key.quota), key_id=key.id, until_unix_s=key.expires_unix_ms / 1000)

    def _check_source(self, grant: Grant, now_unix_s: float) -> None:
        key = self._ring.find(grant.key_id)
        is_over = key is None or key.is_over(now_unix_s * 1000) or not self._takes_keys
        if (grant.key_id and is_over) or (not grant.key_id and self._jwts is None):
            raise refused("This token's API key no longer counts.")

    def mint(self, grant: Grant, *, lives_s: int, origin: str) -> tuple[str, int]:
        """A browser token and when it expires, unix seconds. Raises ``forbidden``."""
        if not grant.may_mint:
            raise HeadraceError("forbidden", "A token cannot be used to get another: use your API key.")
        expires_unix_s = int(time.time()) + lives_s
        if grant.until_unix_s:
            expires_unix_s = min(expires_unix_s, int(grant.until_unix_s))
        value = browser_token.mint(self._secret, grant, expires_unix_s=expires_unix_s, origin=origin)
        return value, expires_unix_s

    @contextmanager
    def inside(self, grant: Grant, show_out: Callable[[], None]) -> Iterator[None]:
        """Around what was opened with a grant: ``show_out`` is called once its key is revoked. Its time
        (``until_unix_s``) is for the caller to look after."""
        if not grant.key_id:
            yield
            return
        others = self._inside.setdefault(grant.key_id, set())
        others.add(show_out)
        try:
            yield
        finally:
            others.discard(show_out)
            if not others and self._inside.get(grant.key_id) is others:
                del self._inside[grant.key_id]

    def _revoked(self, key_id: str) -> None:
        for show_out in list(self._inside.get(key_id, ())):
            show_out()

    def _failed(self, address: str) -> None:
        """Raises ``too_many_attempts``."""
        number = self._failures.count(address, time.monotonic())
        if number == 1:
            log.info("a credential from %s is refused", address)
        if self._failures.exceeds(number):
            raise HeadraceError("too_many_attempts", "Too many wrong credentials came from your address.")
