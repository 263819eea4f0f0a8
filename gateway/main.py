"""The gateway process: connects, serves, and on SIGTERM finishes what it has begun."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import nullcontext
from importlib.metadata import version

import msgspec

from broker import metrics, topology
from broker.cache import connect_redis
from broker.connection import Broker
from broker.process import Shutdown, run_process
from broker.settings import ConfigError
from gateway.api.app import build
from gateway.api.front import Front
from gateway.api.guard import is_loopback
from gateway.auth.door import Door
from gateway.certificate import certificate_of
from gateway.pipeline import Pipeline
from gateway.server import bind, make_server, raise_file_limit
from gateway.siblings import Place, telling
from schemas.config import Config

log = logging.getLogger(__name__)

COLLECT_AFTER = (20_000, 20, 20)  # Python's own: (700, 10, 10)


def run(config: Config) -> int:
    """Returns the exit code."""

    async def main(shutdown: Shutdown) -> None:
        metrics.introduce("gateway", version("headrace"))
        await serve(config, shutdown)

    return run_process("gateway", config, main)


def run_sharing(place: Place, given: bytes) -> int:
    """One of several processes on the same port. ``given``: the configuration as JSON."""
    config = msgspec.json.decode(given, type=Config)

    async def main(shutdown: Shutdown) -> None:
        metrics.introduce("gateway", version("headrace"))
        await serve(config, shutdown, place)

    return run_process(f"gateway-{place.number}", config, main)


async def serve(config: Config, shutdown: Shutdown, place: Place | None = None) -> None:
    """Until a shutdown is requested and done. ``place``: among those that share the port. Raises what
    ``broker.process`` knows how to tell."""
    refuse_open_host(config)
    shared = place is not None
    with bind(config.gateway, shared=shared) as listener:  # first, so that a taken port is told at once
        raise_file_limit(config.gateway.max_connections)
        broker = await Broker.connect(config.nats, name="gateway")
        redis = connect_redis(config.redis)
        try:
            await topology.apply(broker)
            pipeline = Pipeline(config, broker, redis)
            front = Front(pipeline, config.gateway, place)
            metrics.GATEWAY_READY.set_function(lambda: front.ready()[0])
            door = Door(config, broker) if config.auth.methods else None
            certificate = certificate_of(config.gateway)
            tls = None if certificate is None else certificate.context
            server = make_server(build(front, door), config.gateway, tls)
            async with telling(place) if place else nullcontext(), asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(pipeline.run(), name="pipeline")]
                if door is not None:  # who has a key is let in from the first moment on
                    beside.append(tasks.create_task(door.run(), name="door"))
                    await door.ready.wait()
                if certificate is not None:
                    beside.append(tasks.create_task(certificate.keep_fresh(), name="certificate"))
                server_task = tasks.create_task(server.serve([listener]), name="server")
                host, port = listener.getsockname()[:2]
                _settle_memory()
                scheme = "https" if config.gateway.tls_cert else "http"
                log.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
                await shutdown.requested.wait()
                await front.drain()
                server.should_exit = True
                await server_task
                for task in beside:
                    task.cancel()
        finally:
            await redis.aclose()
            await broker.close()
    log.info("stopped")


def _settle_memory() -> None:
    """What was made at the start stays, and need not be looked at by each garbage collection; what comes is
    freed by its reference counts, so that collections may be rare: each holds up every stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def refuse_open_host(config: Config) -> None:
    """Raises ``ConfigError``. Where nobody is asked who they are, only this machine may ask."""
    gateway = config.gateway
    if config.auth.methods:
        if not (is_loopback(gateway.host) or gateway.tls_cert or gateway.trusted_proxies):
            log.warning(
                "keys come unencrypted to %s: set gateway.tls_cert, or gateway.trusted_proxies where a proxy "
                "in front ends TLS",
                gateway.host,
            )
        return
    if not gateway.allow_unauthenticated and not is_loopback(gateway.host):
        raise ConfigError(
            f"gateway.host = {gateway.host!r} is open to the network and nobody is authenticated: use "
            "127.0.0.1, set auth.methods, or set gateway.allow_unauthenticated = true behind something that "
            "authenticates"
        )
