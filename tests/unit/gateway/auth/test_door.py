"""What a gateway that authenticates needs before it starts."""

from __future__ import annotations

from typing import cast

import pytest

from broker.connection import Broker
from broker.settings import ConfigError
from gateway.auth.door import Door
from gateway.main import refuse_open_host
from schemas.config import Auth, Config, Gateway, Security

SECRET = Security(secret="a secret of sixteen characters")


def test_a_common_secret() -> None:
    """Else the gateway next door would not know this one's tokens."""
    with pytest.raises(ConfigError, match=r"security\.secret"):
        Door(Config(auth=Auth(methods=("keys",))), cast(Broker, None))


def test_where_jwts_come_from() -> None:
    with pytest.raises(ConfigError, match=r"auth\.jwt_keys"):
        Door(Config(auth=Auth(methods=("jwt",)), security=SECRET), cast(Broker, None))


@pytest.mark.parametrize(
    ("gateway", "warned"),
    [({}, True), ({"tls_cert": "c.pem"}, False), ({"trusted_proxies": ("10.0.0.1",)}, False)],
)
def test_it_may_listen_anywhere_and_warns_of_keys_in_the_clear(
    gateway: dict[str, object], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_open_host(
        Config(auth=Auth(methods=("keys",)), gateway=Gateway(host="0.0.0.0", **gateway))  # type: ignore[arg-type]
    )
    assert ("unencrypted" in caplog.text) is warned
