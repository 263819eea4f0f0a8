"""Reads a ``.creds`` file: a user's JWT, and the seed that signs the server's nonce.

nats-py's own reader never returns where the JWT is missing, at a reconnect too, when the file may just be
written anew. The format: https://docs.nats.io/using-nats/developer/connecting/creds
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

_JWT, _SEED = "NATS USER JWT", "USER NKEY SEED"


class CredentialsError(Exception):
    """The file cannot be used. The message holds nothing of what is in it."""


@dataclass(frozen=True, slots=True, repr=False)
class _User:
    jwt: bytes
    key: Any  # nkeys.KeyPair


class Credentials:
    """The user of a file, which is read anew at every connect: it may be renewed while the process runs.
    While it cannot be read, the user read last is kept."""

    def __init__(self, path: str) -> None:
        """Raises ``CredentialsError``."""
        self._path = path
        self._user = self._read()

    def sign(self, nonce: str) -> bytes:
        """What nats-py calls first at a connect; then ``jwt``, of the same reading."""
        try:
            self._user = self._read()
        except CredentialsError as error:
            log.warning("%s; going on with what it held before", error)
        return base64.b64encode(self._user.key.sign(nonce.encode()))

    def jwt(self) -> bytearray:
        return bytearray(self._user.jwt)

    def _read(self) -> _User:
        try:
            content = Path(self._path).read_bytes()
        except OSError as error:
            raise self._error(error.strerror or "cannot be read") from None
        jwt, seed = self._section(content, _JWT), self._section(content, _SEED)
        try:
            return _User(jwt, nkeys.from_seed(bytearray(seed)))
        except (nkeys.NkeysError, binascii.Error, ValueError, IndexError):
            raise self._error("the seed in it is not an nkey") from None

    def _section(self, content: bytes, name: str) -> bytes:
        found = re.search(rb"-+BEGIN %b-+\s*(\S+)\s*-+END %b-+" % (name.encode(), name.encode()), content)
        if found is None:
            raise self._error(f"it has no {name}, as the files that `nsc generate creds` writes have")
        return found[1]

    def _error(self, what: str) -> CredentialsError:
        return CredentialsError(f"nats.credentials: {self._path}: {what}")
