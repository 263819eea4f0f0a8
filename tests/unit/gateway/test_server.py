"""The server's settings that guard it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from starlette.types import ASGIApp

from broker.settings import ConfigError
from gateway.certificate import certificate_of
from gateway.server import make_server
from schemas.config import Gateway

APP = cast(ASGIApp, None)


def test_nobodys_forwarding_headers_are_believed_unless_named() -> None:
    """uvicorn by itself believes whoever comes from this machine."""
    assert make_server(APP, Gateway()).config.proxy_headers is False
    trusting = make_server(APP, Gateway(trusted_proxies=("10.0.0.0/8",))).config
    assert (trusting.proxy_headers, trusting.forwarded_allow_ips) == (True, ["10.0.0.0/8"])


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not a certificate")
    for cert in ("nowhere.pem", str(tmp_path / "cert.pem")):
        with pytest.raises(ConfigError, match=r"gateway\.tls_cert"):
            certificate_of(Gateway(tls_cert=cert))
