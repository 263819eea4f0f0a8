"""Credentials for tests: keys that the command makes, JWTs of an issuer that runs here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from deploy.commands import headrace
from tests.integration.conftest import NatsServer
from tests.integration.gateway.processes import Gateway

LIMIT_S = 30
ISSUER = "https://id.example.com/"


class Issuer:
    """A JWKS endpoint whose keys rotate; ``down``: it answers 500."""

    def __init__(self) -> None:
        self.down = False
        self.asked = 0
        self.keys = {"k1": ec.generate_private_key(ec.SECP256R1())}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                listed = [
                    ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid}
                    for kid, key in issuer.keys.items()
                ]
                body = json.dumps({"keys": listed}).encode()
                self.send_response(500 if issuer.down else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks"

    def sign(self, kid: str, tenant: str = "initech", **claims: Any) -> str:
        good = {"iss": ISSUER, "aud": "headrace", "exp": time.time() + 600, "tenant": tenant}
        return jwt.encode(good | claims, self.keys[kid], algorithm="ES256", headers={"kid": kid})


def command_of(server: NatsServer) -> Callable[..., str]:
    def invoke(*arguments: str) -> str:
        environ = {"HEADRACE_NATS__URL": server.url}
        done = CliRunner().invoke(headrace, ["keys", *arguments], env=environ, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def run(*arguments: str) -> str:
        with ThreadPoolExecutor(1) as elsewhere:  # than in the loop of an asynchronous test
            return elsewhere.submit(invoke, *arguments).result()

    return run


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


async def status(served: Gateway, credential: str, path: str = "/v1/models") -> int:
    async with httpx.AsyncClient(base_url=served.url, timeout=LIMIT_S) as client:
        return (await client.get(path, headers=bearer(credential))).status_code


async def until_status(served: Gateway, credential: str, wanted: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await status(served, credential) != wanted:
            await asyncio.sleep(0.01)
