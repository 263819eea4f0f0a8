"""Runs stored jobs again, at a pace, and compares each with its original. Must not know how it is shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from broker import jetstream, subjects
from broker.connection import Broker, NoAnswer, unix_ms
from broker.jetstream import ApiError
from broker.tokenizers import fetch_tokenizer
from deploy.replay.account import Account, read_account
from deploy.replay.comparison import Comparison, compare
from deploy.replay.copies import ChangeError, Changes, apply_changes, check_fits, copy_of
from deploy.replay.finding import Found, whole_job
from deploy.replay.letters import POISON
from deploy.replay.pacing import Pace
from deploy.replay.prompts import for_tokenizer
from deploy.replay.results import Result, State, side_of
from deploy.replay.runner import Runner
from gateway.catalog import ModelCard, tokenizer_cache
from gateway.text import Detokenizer
from gateway.tokenizer import ChatTokenizer
from schemas.errors import HeadraceError
from schemas.ids import ModelToken, new_response_id
from schemas.job import Job

log = logging.getLogger(__name__)

READ_TRIES = 5
PAUSE_S = 0.5
WORKER_LIMIT_S = 30.0  # for a worker that crashed to be back
AROUND = (8, 16)  # tokens shown before and behind where two answers part
AROUND_CHARACTERS = (40, 80)

T = TypeVar("T")
Finish = Callable[[Found, Result], Awaitable[None]]


async def _nothing(found: Found, result: Result) -> None:
    pass


@dataclass(frozen=True, slots=True)
class How:
    """``onto``: the model to run on, where it is not the job's own. ``poison``: also what killed its workers.
    ``show_text``: results hold ids and text."""

    onto: ModelCard | None = None
    changes: Changes = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    keep_class: bool = False
    poison: bool = False
    show_text: bool = False


@dataclass(frozen=True, slots=True)
class _Replay:
    """``old`` and ``new``: the tokenizers of the original and of the copy."""

    job: Job
    copy: Job
    original: Account | None
    old: ChatTokenizer
    new: ChatTokenizer
    same_tokenizer: bool


class Replays:
    """``results`` grows as they end. ``on_begin`` is called for each, ``on_end`` is awaited."""

    def __init__(
        self,
        broker: Broker,
        runner: Runner,
        how: How,
        *,
        on_begin: Callable[[], None] = lambda: None,
        on_end: Finish = _nothing,
    ) -> None:
        self.results: list[Result] = []
        self._absent: set[ModelToken] = set()  # waited for in vain
        self._broker = broker
        self._runner = runner
        self._how = how
        self._on_begin = on_begin
        self._on_end = on_end
        self._room = asyncio.Semaphore(how.pace.at_once)

    async def run(self, all_found: Sequence[Found]) -> None:
        """Cancelled, it closes what it has begun."""
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        starts = self._how.pace.starts([found.stored_unix_ms for found in all_found])
        async with asyncio.TaskGroup() as tasks:
            for start_s, found in zip(starts, all_found, strict=True):
                await asyncio.sleep(max(0.0, begun_s + start_s - clock()))
                await self._room.acquire()
                tasks.create_task(self._run_one(found), name=f"replay {found.response}")

    async def _run_one(self, found: Found) -> None:
        self._on_begin()
        try:
            result = await self._result(found)
            self.results.append(result)
            await self._on_end(found, result)
        finally:
            self._room.release()

    async def _result(self, found: Found) -> Result:
        try:
            replay = await self._prepare(found)
        except (HeadraceError, ApiError, ChangeError) as error:
            passing = isinstance(error, ApiError | NoAnswer)
            return _not_run(found, "lost" if passing else "refused", _said(error))
        copy = replay.copy
        try:
            await self._runner.play(copy, replay.new)
            return await self._compared(found, replay)
        except (HeadraceError, ApiError) as error:
            return _not_run(found, "lost", _said(error), copy)
        except asyncio.CancelledError:
            self.results.append(_not_run(found, "interrupted", "", copy))
            raise

    async def _prepare(self, found: Found) -> _Replay:
        """Raises ``HeadraceError``, ``ApiError``, ``ChangeError``."""
        how, catalog = self._how, self._runner.catalog
        job = await self._patiently(lambda: whole_job(self._broker, found))
        card = how.onto or await self._card(job)
        old, new = await catalog.tokenizer_of(job.model), await catalog.tokenizer(card)
        same_tokenizer = await self._same_tokenizer(job, card)
        original = await self._account(job, found.stored_unix_ms, old)
        killed = found.letter is not None and found.letter.is_poison
        if not how.poison and (killed or (original is not None and original.code == POISON)):
            raise HeadraceError("poison", "It killed its workers: add --poison to run it all the same.")
        sampling = apply_changes(job.sampling, how.changes)
        prompt_ids, shape = job.prompt_ids, job.presentation.shape
        if not same_tokenizer:
            built = await asyncio.to_thread(for_tokenizer, job, sampling, old, new, card)
            prompt_ids, sampling, shape = built.ids, built.sampling, built.shape
        check_fits(len(prompt_ids), sampling, card)
        copy = copy_of(
            job,
            response=new_response_id(),
            gateway=self._runner.gateway,
            card=card,
            sampling=sampling,
            prompt_ids=prompt_ids,
            shape=shape,
            keep_class=how.keep_class,
            now_unix_ms=unix_ms(),
        )
        return _Replay(job, copy, original, old, new, same_tokenizer)

    async def _card(self, job: Job) -> ModelCard:
        """Its own model's. A worker that was there may be about to be there again."""
        catalog = self._runner.catalog
        give_up = asyncio.get_running_loop().time() + WORKER_LIMIT_S
        while (card := catalog.serving(job.model)) is None:
            late = asyncio.get_running_loop().time() > give_up
            if late or job.model in self._absent or not catalog.has_seen(job.model):
                self._absent.add(job.model)
                served = ", ".join(card.name for card in catalog.models()) or "none"
                raise HeadraceError(
                    "no_worker",
                    f"No worker serves {job.model_name} in the revision of then ({job.model}); served now: "
                    f"{served}. Add --onto NAME.",
                )
            await asyncio.sleep(PAUSE_S)
        return card

    async def _same_tokenizer(self, job: Job, card: ModelCard) -> bool:
        """The same ids mean the same text."""
        if card.token == job.model:
            return True
        served = self._runner.catalog.serving(job.model)
        names = (job.model if served is None else served.tokenizer, card.tokenizer)
        one, other = [
            (await fetch_tokenizer(self._broker, name, tokenizer_cache())) / "tokenizer.json"
            for name in names
        ]
        return one.read_bytes() == other.read_bytes()

    async def _compared(self, found: Found, replay: _Replay) -> Result:
        copy, original = replay.copy, replay.original
        stored = await self._patiently(
            lambda: jetstream.last_message(self._broker, subjects.JOBS, subjects.job(copy))
        )
        stored_unix_ms = copy.created_unix_ms if stored is None else stored.stored_unix_ms
        after = await self._account(copy, stored_unix_ms, replay.new)
        if after is None:
            return _not_run(found, "lost", "Its log is no longer kept.", copy)
        if original is not None and original.outcome == "open":  # it may have come to its end meanwhile
            original = await self._account(replay.job, found.stored_unix_ms, replay.old)
        comparison = compare(original, after, same_tokenizer=replay.same_tokenizer)
        around = self._around(comparison, after, replay.new.detokenizer)
        before = None if original is None else self._around(comparison, original, replay.old.detokenizer)
        return Result(
            origin=found.response,
            response=copy.response,
            model=found.job.model_name,
            onto=None if copy.model == found.job.model else copy.model_name,
            tenant=found.job.tenant,
            state="ran",
            sampled=copy.sampling.temperature > 0 and copy.sampling.seed is None,
            original=None if original is None else side_of(original, before),
            replay=side_of(after, around),
            comparison=comparison,
        )

    def _around(
        self, comparison: Comparison, account: Account, detokenizer: Detokenizer
    ) -> tuple[tuple[int, ...], str] | None:
        """Ids and text around where the two part, or of the beginning."""
        if not self._how.show_text:
            return None
        if comparison.character is not None:
            before, behind = AROUND_CHARACTERS
            at = comparison.character
            return (), account.text[max(0, at - before) : at + behind]
        before, behind = AROUND
        at = comparison.token or 0
        ids = account.ids[max(0, at - before) : at + behind]
        return ids, detokenizer.decode(ids)

    async def _account(self, job: Job, stored_unix_ms: int, tokenizer: ChatTokenizer) -> Account | None:
        detokenizer = tokenizer.detokenizer_of(job.presentation.shape)
        return await self._patiently(lambda: read_account(self._broker, job, stored_unix_ms, detokenizer))

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """A short absence of the broker costs no result."""
        for _ in range(READ_TRIES - 1):
            try:
                return await read()
            except NoAnswer as error:
                log.debug("%s", error)
                await asyncio.sleep(PAUSE_S)
        return await read()


def _not_run(found: Found, state: State, problem: str, copy: Job | None = None) -> Result:
    return Result(
        origin=found.response,
        response=None if copy is None else copy.response,
        model=found.job.model_name,
        onto=None if copy is None or copy.model == found.job.model else copy.model_name,
        tenant=found.job.tenant,
        state=state,
        problem=problem or None,
    )


def _said(error: Exception) -> str:
    return error.message if isinstance(error, HeadraceError) else str(error)
