"""A process under this one: started so that it cannot outlive us, in a process group of its own. Must not
know what it is, nor when or why it is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from broker import child

_SHOWN_LINES = 8
_SHOWN_BYTES = 4096


class ChildProcess:
    def __init__(self, process: asyncio.subprocess.Process, log: Path | None, log_start: int) -> None:
        self._process = process
        self._log = log
        self._log_start = log_start

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environ: Mapping[str, str],
        log: Path | None,
        *,
        given: bytes | None = None,
        pass_fds: Sequence[int] = (),
    ) -> ChildProcess:
        """``log`` None: our own output. ``given``: all that it can read from its standard input. Call it on
        the main thread: the death signal is tied to the thread that forks. The group of its own keeps the
        terminal's Ctrl-C from it: we stop it in order."""
        command = (sys.executable, "-I", "-S", str(child.__file__), str(os.getpid()), *argv)
        full_environ = {**os.environ, **environ}
        output = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=full_environ,
                pass_fds=pass_fds,
                process_group=0,
            )
            log_start = 0 if output is None else os.fstat(output).st_size
        finally:
            if output is not None:
                os.close(output)
        if given is not None:
            assert process.stdin is not None
            process.stdin.write(given)
            process.stdin.close()  # written out in the background; one that dies before it reads is noticed
        return cls(process, log, log_start)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Its exit status (negative: the signal that killed it), when nothing of its group is left."""
        try:
            return await self._process.wait()
        finally:
            self.kill()  # what it left behind, or itself if we are cancelled

    def terminate(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """It and all it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_lines(self) -> list[str]:
        """The end of what this process has written; nothing where the log cannot be read."""
        if self._log is None:
            return []
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - _SHOWN_BYTES))
                return file.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]
        except OSError:
            return []


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
