"""`headrace replay` and `headrace dead` with an operator's options: in this process, on the test's own
connection, for a process takes a second to start; or as a process, where signals count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from broker import jetstream, subjects
from broker.connection import Broker
from broker.log_reader import LogReader
from broker.replylog import ReplyLog
from deploy.commands import dead, headrace, replay
from deploy.replay.run import replay_on
from schemas import codec
from schemas.config import Config
from schemas.ids import ResponseId
from schemas.job import Job

LIMIT_S = 60


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Commands:
    def __init__(self, broker: Broker, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
        self._broker = broker
        self._config = config
        self._capsys = capsys
        self._environment = {
            "HEADRACE_NATS__URL": config.nats.url,
            "HEADRACE_CACHE_DIR": os.environ["HEADRACE_CACHE_DIR"],
        }

    async def replay(self, *arguments: str) -> Done:
        return await self._run(replay.order_of(**_parsed(replay.command, arguments)))

    async def redrive(self, *arguments: str) -> Done:
        return await self._run(dead.order_of(**_parsed(dead.redrive, arguments)))

    async def _run(self, order: Any) -> Done:
        self._capsys.readouterr()
        code = await replay_on(self._broker, self._config, order)
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    async def dead(self, *arguments: str) -> Result:
        """Of those that end at once."""
        runner = CliRunner(env=self._environment)
        return await asyncio.to_thread(runner.invoke, headrace, ["dead", *arguments])

    async def start(self, *arguments: str) -> Process:
        command = [sys.executable, "-m", "deploy.cli", *arguments]
        environment = {**os.environ, **self._environment}
        return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)

    async def done(self, process: Process) -> Done:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def stored(self) -> list[Job]:
        """All jobs, in the order of their storing."""
        found = jetstream.messages(self._broker, subjects.JOBS, subjects.JOBS_SUBJECTS)
        return [codec.decode_job(message.data) async for message in found]

    async def copies(self) -> list[Job]:
        return [job for job in await self.stored() if job.replay_of is not None]

    async def until_copied(self, count: int = 1) -> list[Job]:
        async with asyncio.timeout(LIMIT_S):
            while len(copies := await self.copies()) < count:
                await asyncio.sleep(0.05)
        return copies

    async def log(self, job: Job) -> LogReader:
        return await ReplyLog(self._broker, job.gateway, job.response, job.session).read()

    async def headers(self, response: ResponseId) -> dict[str, str]:
        """As `nats stream view` shows them."""
        (found,) = await jetstream.last_messages(
            self._broker, subjects.JOBS, [subjects.job_by_response(response)]
        )
        return dict(found.headers)


def _parsed(command: click.Command, arguments: tuple[str, ...]) -> dict[str, Any]:
    return command.make_context("headrace", list(arguments)).params


@contextlib.asynccontextmanager
async def ended_in_order(process: Process) -> AsyncIterator[Process]:
    """Nothing outlives a test that fails."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
