"""The gateway's TLS certificate, from PEM files that something else renews. Must not know who connects."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from cryptography import x509

from broker import metrics
from broker.settings import ConfigError
from schemas.config import Gateway

log = logging.getLogger(__name__)
CHECK_S = 30.0


def certificate_of(config: Gateway) -> Certificate | None:
    """None: no TLS here. Raises ``ConfigError``."""
    if not (config.tls_cert or config.tls_key):
        return None
    return Certificate(config.tls_cert, config.tls_key)


class Certificate:
    """``context`` is what the server was given: a renewed certificate goes into it, and connections that are
    open keep the one they have. Raises ``ConfigError``: files that cannot be used."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key or cert
        try:
            self._seen = self._stamps()
            self.context = self._loaded()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"gateway.tls_cert, gateway.tls_key: {cert}, {key}: {error}") from None
        self._show_end()

    async def keep_fresh(self) -> None:
        """Looks at the files, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.renew()

    def renew(self) -> None:
        """Files that do not fit together (yet) change nothing."""
        try:
            stamps = self._stamps()
            if stamps == self._seen:
                return
            self._loaded()  # a failure would leave the live one with half of each
            self.context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            log.error("the renewed certificate cannot be used, and the old one stays: %s", error)
            return
        self._seen = stamps
        self._show_end()
        log.info("the certificate was renewed")

    def _show_end(self) -> None:
        """Of the first of its chain that ends: clients refuse it from then on."""
        try:
            chain = x509.load_pem_x509_certificates(Path(self._cert).read_bytes())
        except (OSError, ValueError) as error:
            log.warning("when the certificate ends cannot be read: %s", error)
            metrics.CERTIFICATE_EXPIRY.set(0)
            return
        metrics.CERTIFICATE_EXPIRY.set(min(link.not_valid_after_utc for link in chain).timestamp())

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 at least
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key)
        return context

    def _stamps(self) -> list[tuple[int, int]]:
        """Files are often renewed by turning a link to others, which may be older: any change counts."""
        stats = [Path(path).stat() for path in (self._cert, self._key)]
        return [(at.st_ino, at.st_mtime_ns) for at in stats]
