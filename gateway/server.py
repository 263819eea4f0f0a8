"""The HTTP and WebSocket server: uvicorn, embedded, on a socket of our own. Must not know any route."""

from __future__ import annotations

import logging
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from broker.metrics import PortUnavailable
from gateway.connection_limits import http_protocol, websocket_protocol
from schemas.config import Gateway

log = logging.getLogger(__name__)
CLOSE_S = 5  # after a drain, for close frames to be answered


class ClientNoise(logging.Filter):
    """What any client can make uvicorn log as an error: a refused handshake, a frame that is not UTF-8."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(
            ("ASGI callable returned without completing handshake", "Invalid UTF-8 sequence received")
        )


class EmbeddedServer(uvicorn.Server):
    """Signals belong to ``broker.process``."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


_CLIENT_NOISE = ClientNoise()  # one object, so that adding it twice adds it once


def bind(config: Gateway) -> socket.socket:
    """Port 0 takes a free one. Raises ``PortUnavailable``.

    Nobody can connect before the server listens: a client that is refused goes on to another gateway at once,
    and would wait for one that is still starting. One that stops reading is cut off by the kernel
    (TCP_USER_TIMEOUT, which also covers a window that stays shut, tcp(7)): uvicorn would wait for ever to
    flush, and its own pings need the flush too.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise PortUnavailable(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.ping_timeout_s * 1000))
    return listener


def make_server(app: ASGIApp, config: Gateway, tls: ssl.SSLContext | None = None) -> EmbeddedServer:
    logging.getLogger("uvicorn.error").addFilter(_CLIENT_NOISE)
    return EmbeddedServer(
        uvicorn.Config(
            app,
            loop="none",
            http=http_protocol(config),
            ws=websocket_protocol(config),
            ws_max_size=config.max_frame_bytes,
            ws_ping_interval=config.ping_interval_s,
            ws_ping_timeout=config.ping_timeout_s,
            ws_per_message_deflate=False,  # 45 against 12 KiB an idle connection, and tokens are too short
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_S,
            timeout_keep_alive=config.keep_alive_s,  # type: ignore[arg-type]  # annotated int, used as seconds
            proxy_headers=bool(config.trusted_proxies),  # by itself it would believe anyone on this machine
            forwarded_allow_ips=list(config.trusted_proxies),
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
    )


def raise_file_limit(connections: int) -> None:
    """One descriptor a connection, and some to live on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if hard < wanted:
        log.warning("the limit of open files (%d) is below gateway.max_connections (%d)", hard, connections)
