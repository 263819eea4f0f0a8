"""``headrace gateway --processes N``: gateway processes that share one port (SO_REUSEPORT: the kernel gives
each connection to one of them), and the small parent that starts, restarts and drains them.

Each is a gateway with an id of its own; one that dies takes its own connections with it, and their clients
resume at another. Must not know what a gateway does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from functools import partial
from pathlib import Path

import msgspec

from broker.metrics import PortUnavailable
from broker.process import set_up_logging
from broker.settings import ConfigError
from deploy.parts import Part
from deploy.scratch import scratch_folder
from deploy.supervisor import Keeper, Supervisor
from gateway.certificate import certificate_of
from gateway.main import refuse_open_host
from gateway.server import hold_port
from gateway.siblings import Place, lives
from schemas.config import Config

log = logging.getLogger(__name__)

HANG_S = 30.0  # an event loop that does not turn for so long: the kernel goes on giving it connections


def run(config: Config) -> int:
    """Until all have stopped; the exit code: 0 drained, 1 could not be started."""
    set_up_logging("gateway", config.logging)
    try:
        refuse_open_host(config)
        certificate_of(config.gateway)  # what none of them could use is told once, and before they start
        held = hold_port(config.gateway)
    except (ConfigError, PortUnavailable) as error:
        log.error("%s", error)
        return 1
    with held, scratch_folder("headrace-gateways-") as folder:
        port = held.getsockname()[1]
        parts = gateway_parts(_shared(config, port), folder, port)
        log.info("%d processes share port %d", len(parts), port)
        return asyncio.run(_keep(parts))  # not uvloop's: it starts no process in a group of its own


def _shared(config: Config, port: int) -> Config:
    """What all must have in common, where the configuration leaves it open."""
    security = msgspec.structs.replace(
        config.security, secret=config.security.secret or secrets.token_hex(32)
    )
    gateway = msgspec.structs.replace(config.gateway, port=port)
    return msgspec.structs.replace(config, gateway=gateway, security=security)


def gateway_parts(config: Config, folder: Path, port: int) -> list[Part]:
    count = config.gateway.processes
    given = msgspec.json.encode(config)  # not in arguments or environment: it holds secrets
    parts = []
    for number in range(1, count + 1):
        path = Place(number, count, folder).socket_of(number)

        # -P: a folder called gateway where the user stands is not ours.
        argv = (sys.executable, "-P", "-m", "gateway", str(number), str(count), str(folder))
        parts.append(
            Part(
                "gateway",
                f"gateway-{number}",
                port,
                argv,
                partial(lives, path),
                drain_s=config.gateway.drain_s,
                given=given,
                hang_s=HANG_S,
            )
        )
    return parts


async def _keep(parts: list[Part]) -> int:
    supervisor = Supervisor([parts], lambda _: None, Lines(), lambda _: None)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(signum, supervisor.ask_to_stop)
    return 0 if await supervisor.run([("gateway",)]) else 1


class Lines:
    """A ``supervisor.Report`` for the log."""

    def changed(self, keeper: Keeper) -> None:
        if keeper.state in ("ready", "stopping", "stopped"):
            log.info("%s (pid %d) is %s", keeper.part.id, keeper.pid, keeper.state)

    def crashed(self, keeper: Keeper, how: str, last_lines: list[str], retry_s: float | None) -> None:
        next_ = "giving up" if retry_s is None else f"starting it again in {retry_s:g} s"
        log.error("%s (pid %d) %s; %s", keeper.part.id, keeper.pid, how, next_)
