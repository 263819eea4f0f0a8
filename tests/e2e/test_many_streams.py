"""Two gateways, two workers, one broker, two hundred conversations at once; every stream is checked by the
oracle, token by token, against what the queue holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import websockets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from broker import jetstream, subjects
from broker.connection import Broker
from broker.replylog import ReplyLog
from schemas import codec
from schemas.config import Nats, Sim
from schemas.ids import ResponseId
from schemas.job import Job
from schemas.reply import Finished
from tests.e2e.stack import Stack
from tests.oracle import expected_of_job
from workers.engine.sim_tokenizer import write_tokenizer

CONVERSATIONS, TURNS = 200, 2
TERMINALS = {"response.completed", "response.incomplete", "response.failed"}


@dataclass
class Turn:
    question: str
    events: list[dict[str, Any]]

    @property
    def response(self) -> dict[str, Any]:
        response: dict[str, Any] = self.events[-1]["response"]
        return response

    @property
    def text(self) -> str:
        return "".join(
            event["delta"] for event in self.events if event["type"] == "response.output_text.delta"
        )


@pytest.fixture(scope="module")
def wide_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(
        tmp_path_factory.mktemp("wide") / "data",
        workers=2,
        gateways=2,
        env={"HEADRACE_SIM__INTER_TOKEN_MS": "5", "HEADRACE_SIM__SLOTS": "48"},
    )
    yield running
    assert running.stop() == 0, running.output()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder, _ = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), Sim().max_model_len)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


async def converse(url: str, number: int) -> list[Turn]:
    turns: list[Turn] = []
    async with websockets.connect(url.replace("http", "ws", 1) + "/v1/responses", open_timeout=60) as socket:
        for turn in range(TURNS):
            question = f"question {turn} of conversation {number}"
            create = {
                "type": "response.create",
                "input": question,
                "conversation": f"conversation-{number}",
                "max_output_tokens": 20 + number % 60,
            }
            await socket.send(json.dumps(create))
            events: list[dict[str, Any]] = []
            while not events or events[-1]["type"] not in TERMINALS:
                events.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
                assert events[-1]["type"] != "error", events[-1]
            turns.append(Turn(question, events))
    return turns


async def test_two_hundred_conversations(wide_stack: Stack, tokenizer: PreTrainedTokenizerBase) -> None:
    urls = wide_stack.gateway_urls
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(converse(urls[number % 2], number), name=f"conversation {number}")
            for number in range(CONVERSATIONS)
        ]
    conversations = [task.result() for task in running]

    jobs = await stored_jobs(wide_stack.nats_url)
    assert len(jobs) == CONVERSATIONS * TURNS
    workers = set()
    for turns in conversations:
        messages: list[dict[str, str]] = []
        for turn in turns:
            job, log_ids, worker = jobs[turn.response["id"]]
            workers.add(worker)
            ids, reason = expected_of_job(job, Sim())
            assert log_ids == ids, "the log is not what the engine says"
            assert turn.text == tokenizer.decode(ids, skip_special_tokens=True), "the client's text"
            assert turn.response["usage"]["output_tokens"] == len(ids)
            assert turn.response["status"] == ("completed" if reason == "stop" else "incomplete")
            check_order(turn)
            messages.append({"role": "user", "content": turn.question})
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert tokenizer.decode(job.prompt_ids) == rendered, turn.response
            messages.append({"role": "assistant", "content": turn.text})
        first, second = (jobs[turn.response["id"]][0].prompt_ids for turn in turns)
        spoken = jobs[turns[0].response["id"]][1]
        assert second[: len(first) + len(spoken)] == (*first, *spoken), "the very tokens, not re-encoded ones"
    assert len(workers) == 2, "both workers took part"


def check_order(turn: Turn) -> None:
    """Cursors grow, events come once, and the end is the last."""
    cursors = [event["sequence_number"] for event in turn.events if "position" not in event]
    assert all(before < after for before, after in pairwise(cursors))
    kinds = [event["type"] for event in turn.events]
    assert kinds[0] == "response.created"
    assert sum(kind in TERMINALS for kind in kinds) == 1
    for once in ("response.created", "response.output_item.added", "response.output_text.done"):
        assert kinds.count(once) == 1, once


async def stored_jobs(nats_url: str) -> dict[ResponseId, tuple[Job, list[int], str]]:
    """Every job in the queue with what its log says, read as any operator could."""
    broker = await Broker.connect(Nats(url=nats_url), name="oracle")
    found = {}
    try:
        async for item in jetstream.messages(broker, subjects.JOBS, subjects.JOBS_SUBJECTS):
            job = codec.decode_job(item.data)
            log = await ReplyLog(broker, job.gateway, job.response, job.session).read()
            assert log.end is not None
            assert isinstance(log.end.message, Finished)
            assert log.last_started is not None
            assert log.attempts == 1, "nobody died, so nobody took over"
            found[job.response] = (job, log.ids, log.last_started.worker)
    finally:
        await broker.close()
    return found
