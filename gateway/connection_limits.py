"""What TCP connections may cost beside what their requests are allowed: how many there are, of whom, and how
slowly their clients may read. Used by the two protocols (``http_protocol``, ``websocket_protocol``).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable

from broker import metrics
from broker.settings import ConfigError
from gateway.auth.shown import address_of_host, is_loopback_host
from schemas.config import Gateway

SLOWEST_BYTES = 16 << 10  # what a client must take in gateway.slow_reader_s while more waits
SPARE_CONNECTIONS = 128  # beyond max_connections, for those who ask how the gateway is


class OpenConnections:
    """Of one server, by address: they cost a file each, whether or not they ever ask anything. A client may
    have twice as many as it may use, so that the one too many can be told why."""

    def __init__(self, limits: Gateway) -> None:
        """Raises ``ConfigError``."""
        self._most = limits.max_connections + SPARE_CONNECTIONS
        self._most_of_one = 2 * limits.max_connections_per_address
        self._proxies = [_network(text) for text in limits.trusted_proxies]
        self._of: Counter[str] = Counter()
        self._all = 0

    def take(self, host: str) -> str | None:
        """What to give back; None where there are too many."""
        address = address_of_host(host)
        limited = self._most_of_one and not (is_loopback_host(host) or self._is_proxy(host))
        if self._all >= self._most or (limited and self._of[address] >= self._most_of_one):
            return None
        self._all += 1
        self._of[address] += 1
        metrics.TCP_CONNECTIONS.set(self._all)
        return address

    def _is_proxy(self, host: str) -> bool:
        """It comes for many; whom it comes for is counted by the requests."""
        return bool(self._proxies) and any(ipaddress.ip_address(host) in proxies for proxies in self._proxies)

    def give_back(self, address: str) -> None:
        self._all -= 1
        self._of[address] -= 1
        metrics.TCP_CONNECTIONS.set(self._all)
        if not self._of[address]:
            del self._of[address]


class SlowReader:
    """Looks, while more waits than the transport's high-water mark, whether enough of it is taken."""

    def __init__(self, within_s: float, cut_off: Callable[[], None]) -> None:
        self._within_s = within_s
        self._cut_off = cut_off
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        self.end()
        waits = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._within_s, self._look, transport, waits)
        metrics.SLOW_READERS.inc()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            metrics.SLOW_READERS.dec()

    def _look(self, transport: asyncio.Transport, waited: int) -> None:
        if waited - transport.get_write_buffer_size() >= SLOWEST_BYTES:
            self.begin(transport)
        else:
            self.end()
            metrics.SLOW_READERS_CLOSED.inc()
            self._cut_off()


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"gateway.trusted_proxies: {error}") from None
