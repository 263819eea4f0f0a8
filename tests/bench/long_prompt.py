"""What a 100,000-token prompt does to everybody else: python -m tests.bench.long_prompt FOLDER

FOLDER holds a tokenizer.json. Prints what each step that runs on the event loop takes, and how long another
thread waited for the GIL while the prompt was built in its own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway import jobs, prompt
from gateway.api.parse_json import decode_object
from gateway.api.parse_responses import parse_create
from gateway.context import Context, Turn
from gateway.generation import ChatMessage, Generation
from gateway.tokenizer import ChatTokenizer
from schemas import codec
from schemas.ids import GatewayId, ModelToken, ResponseId, SessionToken, TenantId
from schemas.job import Job, Presentation
from schemas.sampling import Sampling

T = TypeVar("T")
TEXT = ("The quick brown fox jumps over the lazy dog. " * 11_000)[:480_000]
MODEL = ModelToken("m")


def step(name: str, work: Callable[[], T]) -> T:
    best_ms, done = float("inf"), work()
    for _ in range(5):
        began_s = time.thread_time()
        done = work()
        best_ms = min(best_ms, (time.thread_time() - began_s) * 1000)
    print(f"{name:28} {best_ms:8.2f} ms")
    return done


def beside(name: str, work: Callable[[], T]) -> T:
    """How late a thread that sleeps half a millisecond at a time wakes up."""
    done, worst_s = threading.Event(), [0.0]

    def watch() -> None:
        while not done.is_set():
            began_s = time.perf_counter()
            time.sleep(0.0005)
            worst_s[0] = max(worst_s[0], time.perf_counter() - began_s - 0.0005)

    watching = threading.Thread(target=watch)
    watching.start()
    began_s = time.perf_counter()
    try:
        return work()
    finally:
        took_ms = (time.perf_counter() - began_s) * 1000
        done.set()
        watching.join()
        print(f"{name:28} {took_ms:8.0f} ms in a thread; another waited {worst_s[0] * 1000:.1f} ms at most")


def main() -> None:
    tokenizer = ChatTokenizer.load(Path(sys.argv[1]))
    body = msgspec.json.encode({"input": TEXT})
    generation = Generation(
        "responses", TenantId("t"), "", (ChatMessage("user", TEXT),), Sampling(max_tokens=10)
    )

    def build(context: Context) -> prompt.Prompt:
        return prompt.build(tokenizer, MODEL, 1 << 20, generation, context, default_max_tokens=10)

    built = beside("build the prompt", lambda: build(Context()))
    print(f"{len(built.ids)} tokens")
    context = Context(turns=(Turn((("user", TEXT),), "Yes."),), ids=built.ids, model=MODEL)
    beside("build the next turn's", lambda: build(context))
    raw = step("JSON", lambda: decode_object(body))
    step("parse", lambda: parse_create(dict(raw)))
    step("digest", lambda: jobs.request_digest(generation))
    job = Job(
        response=ResponseId("resp_01JD0000000000000000000000"),
        tenant=TenantId("t"),
        session=SessionToken("s"),
        gateway=GatewayId("g"),
        model=MODEL,
        model_name="m",
        prompt_ids=built.ids,
        sampling=Sampling(max_tokens=10),
        presentation=Presentation(api="responses", user_text=TEXT),
        created_unix_ms=0,
        deadline_unix_ms=0,
    )
    data = step("encode the job", lambda: codec.encode(job))
    step("decode the job", lambda: codec.decode_job(data))
    stored = step("encode the context", lambda: msgspec.msgpack.encode(context))
    step("decode the context", lambda: msgspec.msgpack.decode(stored, type=Context))


if __name__ == "__main__":
    main()
