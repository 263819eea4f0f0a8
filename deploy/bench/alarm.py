"""Waits until an exact time. uvloop's timers count whole milliseconds, which is as much as an answer's first
token may take to cross a gateway; a timerfd (timerfd_create(2)) is as exact as the kernel's wake-ups:
0.05-0.1 ms."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from types import TracebackType

_CLOCK_MONOTONIC = 1  # what time.monotonic() reads
_ABSOLUTE = 1
_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """For any number of waiters in one event loop. Times are ``time.monotonic()``'s."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def __enter__(self) -> Alarm:
        self._timer: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _CLOEXEC_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        asyncio.get_running_loop().add_reader(self._timer, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._timer)
        os.close(self._timer)

    async def until(self, at_s: float) -> None:
        """Returns at once if that is past."""
        if at_s <= time.monotonic():
            return
        waiter = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (at_s, next(self._order), waiter))
        if self._waiting[0][2] is waiter:
            self._set()
        await waiter

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it was set anew since it fired
            os.read(self._timer, 8)
        now_s = time.monotonic()
        while self._waiting and (self._waiting[0][0] <= now_s or self._waiting[0][2].done()):
            _, _, waiter = heappop(self._waiting)
            if not waiter.done():  # cancelled, or its loop is ending
                waiter.set_result(None)
        if self._waiting:
            self._set()

    def _set(self) -> None:
        """For the first of those that wait. One in the past fires at once (and only zero would disarm)."""
        at_ns = int(self._waiting[0][0] * 1e9) + 1
        setting = _Setting(_Timespec(0, 0), _Timespec(at_ns // 1_000_000_000, at_ns % 1_000_000_000))
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(setting), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
