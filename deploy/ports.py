"""Chooses the TCP ports of parts on this machine."""

from __future__ import annotations

import random
import socket

# Below Linux's ephemeral range (32768-60999): a port from inside it may become some connection's own
# while its part is being restarted, and a probe that dials it before can even connect to itself.
_FREE_RANGE = range(20_000, 32_000)


class PortTaken(Exception):
    """The port that was asked for is in use."""


class Ports:
    """Never gives the same port twice."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def exactly(self, host: str, port: int) -> int:
        """Raises ``PortTaken``."""
        if not self._take(host, port):
            raise PortTaken(f"port {port} on {host} is in use")
        return port

    def at_or_above(self, host: str, port: int) -> int:
        """The first free one from ``port`` on; any free one for 0."""
        for candidate in range(port, 65536) if port else random.sample(_FREE_RANGE, k=1000):
            if self._take(host, candidate):
                return candidate
        raise PortTaken(f"no port from {port} on is free on {host}")

    def _take(self, host: str, port: int) -> bool:
        if port in self._given or not _is_free(host, port):
            return False
        self._given.add(port)
        return True


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
