"""JWTs: which are taken, and the classic ways to forge one (RFC 8725)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from broker.settings import ConfigError
from gateway.auth.jwt_reader import JwtReader
from schemas.config import Auth
from schemas.errors import HeadraceError
from schemas.quota import OwnQuota

ISSUER, AUDIENCE = "https://id.example.com/", "headrace"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
STRANGER = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    listed = [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "r"},
        ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "e"},
        OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True) | {"kid": "d"},
    ]
    file.write_text(json.dumps({"keys": listed}))
    return file


def reader(keys: Path, **more: Any) -> JwtReader:
    return JwtReader(Auth(jwt_keys=str(keys), jwt_issuer=ISSUER, jwt_audience=AUDIENCE, **more))


def claims(**change: Any) -> dict[str, Any]:
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "tenant": "acme"}
    return {name: value for name, value in (good | change).items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **change: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**change), key, algorithm=algorithm, headers=headers)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")]
)
async def test_a_good_one_names_the_tenant_and_its_limits(
    keys: Path, key: Any, algorithm: str, kid: str
) -> None:
    shown = signed(key, algorithm, kid, quota={"requests_per_minute": 5})
    grant = await reader(keys).read(shown)
    assert grant.caller.tenant == "acme"
    assert grant.caller.quota == OwnQuota(requests_per_minute=5)
    assert grant.may_mint
    assert grant.until_unix_s > time.time()


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://other.example.com/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"nbf": 1 << 40},
        {"tenant": None},
        {"tenant": "a b"},
        {"tenant": "x" * 65},
        {"tenant": ["acme"]},
        {"quota": {"requests_per_minute": -1}},
        {"quota": {"unheard_of": 1}},
    ],
)
async def test_claims_that_do_not_fit_are_refused(keys: Path, change: dict[str, Any]) -> None:
    with pytest.raises(HeadraceError, match="invalid_api_key"):
        await reader(keys).read(signed(**change))


async def test_clocks_may_differ_a_little(keys: Path) -> None:
    late = signed(exp=int(time.time()) - 10)
    assert (await reader(keys, jwt_leeway_s=60).read(late)).caller.tenant == "acme"
    with pytest.raises(HeadraceError, match="expired"):
        await reader(keys, jwt_leeway_s=1).read(late)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: dict[str, Any], signature_key: bytes | None) -> str:
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims()).encode())}"
    if signature_key is None:
        return text + "."
    return f"{text}.{b64(hmac.new(signature_key, text.encode(), hashlib.sha256).digest())}"


PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize(
    "shown",
    [
        forged({"alg": "none", "kid": "r"}, None),
        forged({"alg": "None", "kid": "r"}, None),
        forged({"alg": "HS256", "kid": "r"}, PEM),  # the public key as if it were a secret
        forged({"alg": "HS256"}, b""),
        jwt.encode(claims(), STRANGER, algorithm="RS256", headers={"kid": "r"}),
        jwt.encode(claims(), STRANGER, algorithm="RS256", headers={"kid": "unknown"}),
        jwt.encode(claims(), EC, algorithm="ES256", headers={"kid": "r"}),
        jwt.encode(claims(), STRANGER, algorithm="RS256", headers={"jku": "http://127.0.0.1:9/"}),
        jwt.encode(
            claims(),
            STRANGER,
            algorithm="RS256",
            headers={"jwk": RSAAlgorithm.to_jwk(STRANGER.public_key(), as_dict=True)},
        ),
        signed(algorithm="RS512"),  # of the right key, and not asked for
        signed(kid=None),  # it does not say which key
        "",
        "a",
        "a.b.c",
        "....",
        "é",
        signed() + "x",
        signed()[:-4],
    ],
)
async def test_forged_and_broken_ones_are_refused(keys: Path, shown: str) -> None:
    with pytest.raises(HeadraceError, match="invalid_api_key"):
        await reader(keys).read(shown)


async def test_a_public_key_in_pem_is_a_source_too(tmp_path: Path) -> None:
    file = tmp_path / "public.pem"
    file.write_bytes(PEM)
    assert (await reader(file).read(signed(kid=None))).caller.tenant == "acme"
    assert (await reader(file).read(signed(kid="any"))).caller.tenant == "acme"
    with pytest.raises(HeadraceError, match="invalid_api_key"):
        await reader(file).read(forged({"alg": "HS256"}, PEM))


@pytest.mark.parametrize(
    "settings",
    [
        {"jwt_keys": "", "jwt_issuer": "i", "jwt_audience": "a"},
        {"jwt_keys": "k", "jwt_issuer": "", "jwt_audience": "a"},
        {"jwt_keys": "k", "jwt_issuer": "i", "jwt_audience": ""},
        {"jwt_keys": "/nowhere.json", "jwt_issuer": "i", "jwt_audience": "a"},
        {"jwt_keys": "http://id.example.com/jwks", "jwt_issuer": "i", "jwt_audience": "a"},
        {"jwt_keys": "file:///etc/passwd", "jwt_issuer": "i", "jwt_audience": "a"},
    ],
)
def test_settings_that_would_let_in_too_many_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"auth\.jwt_"):
        JwtReader(Auth(**settings))
