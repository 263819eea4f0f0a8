"""A load process: ``python -m deploy.bench.process FD``, with one end of its controller's socket pair."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import sys

import uvloop

from deploy.bench.channel import Channel, Counted, Done, Go, Ready, Stop, Work
from deploy.bench.drive import Clients
from deploy.bench.exchange import Recorder

_REPORT_S = 1.0


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(socket.socket(fileno=int(sys.argv[1]))))


async def _run(end: socket.socket) -> None:
    channel = Channel(*await asyncio.open_unix_connection(sock=end))
    work = await channel.received()
    assert isinstance(work, Work)
    clients = Clients(work.plan, work.index, work.api_key)
    await clients.warm()
    # What is there stays: a full collection would look at all of it while answers arrive.
    gc.collect()
    gc.freeze()
    await channel.send(Ready())
    go = await channel.received()
    assert isinstance(go, Go)
    recorder = clients.begin(go.at_s)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        helpers = [
            tasks.create_task(_heed(channel, stop), name="heed"),
            tasks.create_task(_report(channel, recorder), name="report"),
        ]
        totals = await clients.run(stop)
        for helper in helpers:
            helper.cancel()
    await channel.send(Counted(recorder.taken()))
    await channel.send(Done(totals))
    channel.close()


async def _heed(channel: Channel, stop: asyncio.Event) -> None:
    if isinstance(await channel.received(), Stop):
        stop.set()


async def _report(channel: Channel, recorder: Recorder) -> None:
    while True:
        await asyncio.sleep(_REPORT_S)
        await channel.send(Counted(recorder.taken()))


if __name__ == "__main__":
    main()
