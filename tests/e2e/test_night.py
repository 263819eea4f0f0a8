"""A night on call: a load, a prompt that kills engines, a worker that dies, a tenant that floods. Each is
found and explained with the commands that an operator has; then the dead letter is run again, and all that
was asked is asked of another model. `headrace` runs as a process, and reaches nothing but NATS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import keys
from schemas.config import Config, Nats
from schemas.quota import OwnQuota
from tests.e2e.stack import Stack, wait_until
from workers.engine.sim_words import FIRST_WORD_ID, WORDS

POISON = "mooncraft"  # a word whose token crashes the engine of one model
SLOTS = 8
LONG = 1200  # tokens: long enough to be found by `headrace top`
ENV = {
    "HEADRACE_AUTH__METHODS": "keys",
    "HEADRACE_LIMITS__MIN_SHARE": "1",
    "HEADRACE_SIM__SLOTS": str(SLOTS),
    "HEADRACE_SIM__INTER_TOKEN_MS": "10",
    "HEADRACE_SIM__MEAN_OUTPUT_TOKENS": "0",
    "HEADRACE_WORKER__PRESENCE_INTERVAL_S": "0.5",
}
CRASHES = {"HEADRACE_SIM__CRASH_ON_TOKEN_ID": str(FIRST_WORD_ID + WORDS.index(POISON))}
TENANTS = ("acme", "globex", "flood")


class Night:
    def __init__(self, folder: Path) -> None:
        self.stack = Stack(folder / "data", model="river", workers=2, env=ENV | CRASHES)
        self.environment = {**os.environ, **ENV, "HEADRACE_NATS__URL": self.stack.nats_url}
        config = Config(nats=Nats(url=self.stack.nats_url))
        self._keys = {
            name: keys.create(config, name, name="", quota=OwnQuota(), lives_s=None)[1] for name in TENANTS
        }

    def ask(self, tenant: str, text: str = "what flows", **fields: Any) -> dict[str, Any]:
        body = {"model": "river", "input": text, "max_output_tokens": 40, "temperature": 0, "cache": "off"}
        headers = {"authorization": f"Bearer {self._keys[tenant]}"}
        url = f"{self.stack.url}/v1/responses"
        answer: dict[str, Any] = httpx.post(url, json=body | fields, headers=headers, timeout=60).json()
        return answer

    def headrace(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """What the command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in codes, done.stderr
        return done.stdout

    def told(self, *arguments: str, codes: Sequence[int] = (0,)) -> Any:
        return json.loads(self.headrace(*arguments, codes=codes))

    @contextmanager
    def other_model(self, name: str) -> Iterator[None]:
        """Served by a worker that no prompt kills."""
        named = {"HEADRACE_WORKER__ENGINE": "sim", "HEADRACE_WORKER__PORT": "0", "HEADRACE_SIM__NAME": name}
        worker = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "worker"],
            env=self.environment | named,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: name in self._served(), timeout_s=30, what=f"the model {name}")
            yield
        finally:
            worker.terminate()
            worker.wait(30)

    def _served(self) -> list[str]:
        headers = {"authorization": f"Bearer {self._keys['acme']}"}
        return [one["id"] for one in httpx.get(f"{self.stack.url}/v1/models", headers=headers).json()["data"]]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    begun = Night(tmp_path_factory.mktemp("night"))
    try:
        yield begun
    finally:
        assert begun.stack.stop() == 0, begun.stack.output()


@pytest.mark.timeout(300)  # it waits for a dozen processes to start, and for one tenant's flood
def test_a_night_on_call(night: Night) -> None:
    with ThreadPoolExecutor(8) as people:
        load = list(people.map(lambda n: night.ask("acme", f"question {n}"), range(8)))
    assert {answer["status"] for answer in load} == {"incomplete"}, "they come to their length"

    # somebody's prompt kills every engine that takes it
    killer = night.ask("globex", f"say {POISON} now")
    assert killer["error"]["code"] == "poison", killer
    (letter,) = night.told("dead", "list", "--json")
    assert (letter["tenant"], letter["code"]) == ("globex", "poison")
    killed = letter["response"]
    life = night.told("trace", killed, "--json")["life"]
    assert (life["outcome"]["code"], len(life["attempts"])) == ("poison", letter["attempts"])
    assert life["dead"]["code"] == "poison"
    assert POISON not in night.headrace("trace", killed), "what was asked is not shown"
    (failure,) = night.told("top", "--once", "--json")["failures"]
    assert (failure["response"], failure["dead"], failure["tenant"]) == (killed, True, "globex")

    # a worker dies under a long answer, which goes on elsewhere
    with ThreadPoolExecutor(1) as person:
        long = person.submit(night.ask, "acme", "go on and on", max_output_tokens=LONG)
        pid = wait_until(lambda: busy_worker(night), timeout_s=20, what="the long answer runs")
        os.kill(pid, signal.SIGKILL)
        interrupted = long.result()
    assert interrupted["status"] == "incomplete"
    life = night.told("trace", interrupted["id"], "--json")["life"]
    assert len(life["attempts"]) > 1
    assert round(life["parts"]["reconnect_ms"], 3) == interrupted["timings"]["reconnect_ms"] > 0
    assert sum(attempt["tokens"] for attempt in life["attempts"]) == LONG

    # one tenant floods; the others are answered all the same
    with ThreadPoolExecutor(96) as crowd:
        flood = [crowd.submit(night.ask, "flood", f"and {n}", max_output_tokens=300) for n in range(96)]
        seen = wait_until(lambda: tenants(night).get("flood"), timeout_s=20, what="top names the tenant")
        assert seen["waiting"] >= seen["over"] > 0, "it waits, above its share"
        answer = night.ask("acme", "between them")
        assert not all(one.done() for one in flood), "who came last was answered before the flood was"
    assert answer["status"] == "incomplete"

    # in the morning: what died is run again where it kills nothing, and the night on another model
    with night.other_model("brook"):
        told = night.told(*("dead", "redrive", killed, "--yes", "--poison", "--onto", "brook", "--json", "-"))
        (again,) = told["results"]
        assert (again["state"], again["original"]["code"]) == ("ran", "poison")
        assert night.told("dead", "list", "--json") == []
        asked = night.told(
            *(
                "replay",
                "--since",
                "1h",
                "--tenant",
                "acme",
                "--onto",
                "brook",
                "--speed",
                "8",
                "--json",
                "-",
            ),
            codes=(0, 1),
        )
    assert asked["summary"]["selected"] == asked["summary"]["ran"] == len(load) + 2
    originals = {result["origin"] for result in asked["results"]}
    assert originals == {one["id"] for one in (*load, interrupted, answer)}
    assert all(result["onto"] == "brook" and result["replay"]["tokens"] for result in asked["results"])


def busy_worker(night: Night) -> int | None:
    """The process that has something to do."""
    workers = night.told("top", "--once", "--json")["workers"]
    return next((worker["pid"] for worker in workers if worker["running"]), None)


def tenants(night: Night) -> dict[str, Any]:
    return {row["tenant"]: row for row in night.told("top", "--once", "--json")["tenants"]}
