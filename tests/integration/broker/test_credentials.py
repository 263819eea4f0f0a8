"""A .creds file against a server that knows its users by JWT, and what a bad file is told."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nkeys  # type: ignore[import-untyped]
import pytest

from broker import topology
from broker.connection import Broker, BrokerUnavailable
from schemas.config import Nats
from tests.integration.broker.samples import until
from tests.integration.conftest import NatsServer, running

LIMITS = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}
STORAGE = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Key:
    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.public = bytes(self.pair.public_key).decode()

    def signs(self, subject: Key, name: str, claims: dict[str, object]) -> str:
        """A JWT of NATS, version 2."""
        body: dict[str, object] = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            "nats": {"version": 2, **claims},
        }
        body["jti"] = (
            base64.b32encode(hashlib.sha256(msgspec.json.encode(body)).digest()).decode().rstrip("=")
        )
        text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        return f"{text}.{_base64(self.pair.sign(text.encode()))}"


def _part(value: object) -> str:
    return _base64(msgspec.json.encode(value))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class JwtServer(NatsServer):
    """Knows an operator, an account with JetStream and, by their JWTs, the account's users."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = {**LIMITS, **STORAGE, "wildcards": True}
        account = operator.signs(self.account, "headrace", {"type": "account", "limits": limits})
        system_account = operator.signs(system, "SYS", {"type": "account", "limits": LIMITS})
        config = folder / "nats.conf"
        config.write_text(
            f"{config.read_text()}operator: {operator.signs(operator, 'op', {'type': 'operator'})}\n"
            f"system_account: {system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self.account.public}: {account}, {system.public}: {system_account} }}\n"
        )

    def creds(self) -> str:
        """The file of a new user, as nsc writes it."""
        user = Key(nkeys.PREFIX_BYTE_USER)
        limits = {"subs": -1, "data": -1, "payload": -1}
        jwt = self.account.signs(user, "gateway", {"type": "user", **limits})
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


@pytest.fixture
def jwt_server(tmp_path: Path) -> Iterator[JwtServer]:
    server = JwtServer(tmp_path / "nats")
    with running(server):
        yield server


async def user_of(broker: Broker) -> str:
    info = msgspec.json.decode((await broker.request("$SYS.REQ.USER.INFO")).data)
    return str(info["data"]["user"])


async def test_a_creds_file_opens_the_account(jwt_server: JwtServer, tmp_path: Path) -> None:
    file = tmp_path / "headrace.creds"
    file.write_text(jwt_server.creds())
    broker = await Broker.connect(Nats(url=jwt_server.url, credentials=str(file)), name="test")
    try:
        await topology.apply(broker)
        first = await user_of(broker)
        for content, same in (("is being written anew", True), (jwt_server.creds(), False)):
            jwt_server.kill()
            await until(lambda: not broker.connected)
            file.write_text(content)
            jwt_server.restart()
            await until(lambda: broker.connected)
            assert (await user_of(broker) == first) is same
    finally:
        await broker.close()


async def test_a_stranger_s_creds_file_is_refused(jwt_server: JwtServer, tmp_path: Path) -> None:
    file = tmp_path / "stranger.creds"
    file.write_text(JwtServer(tmp_path / "other").creds())
    with pytest.raises(BrokerUnavailable, match="refuses these credentials"):
        await Broker.connect(Nats(url=jwt_server.url, credentials=str(file)), name="test")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "No such file or directory"),
        ("", "it has no NATS USER JWT"),
        ("-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n", "it has no USER NKEY SEED"),
        (
            "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n"
            "-----BEGIN USER NKEY SEED-----\nSUSECRET\n------END USER NKEY SEED------\n",
            "the seed in it is not an nkey",
        ),
    ],
)
async def test_a_bad_creds_file_is_one_clear_line(
    nats_server: NatsServer, tmp_path: Path, content: str | None, error: str
) -> None:
    file = tmp_path / "bad.creds"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BrokerUnavailable) as caught:
        await Broker.connect(Nats(url=nats_server.url, credentials=str(file)), name="test")
    assert str(caught.value).startswith(f"nats.credentials: {file}: {error}")
    assert "SECRET" not in str(caught.value)
