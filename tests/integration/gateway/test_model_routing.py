"""Two models at once: aliases, the policy behind auto, a model without a worker, and a conversation that
moves from one model to another."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from gateway.generation import Tool
from gateway.live import Live
from schemas.config import Candidate, Config, Gateway, Routing, Sim
from schemas.errors import HeadraceError
from tests.integration.conftest import NatsServer, RedisServer
from tests.integration.gateway import processes
from tests.integration.gateway.edge import TENANT, Edge, ask, configured, edge, finish, until, worker

ROUTING = Routing(
    aliases={"gpt-4o-mini": "small", "best": "auto"},
    auto=(Candidate(model="large", max_prompt_tokens=100, max_rtt_ms=80), Candidate(model="small")),
    fallback={"gone": ("missing", "small")},
)
SIM = Sim(inter_token_ms=1, prefill_base_ms=1, prefill_us_per_token=1, mean_output_tokens=12)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def config(nats_server: NatsServer, redis_server: RedisServer) -> Config:
    config = configured(nats_server, redis_server, sim=SIM, gateway=Gateway(default_model="best"))
    return replace(config, routing=ROUTING)


def serving(config: Config, name: str) -> Config:
    return replace(config, sim=replace(SIM, name=name))


@pytest.fixture
async def here(config: Config, tmp_path: Path) -> AsyncIterator[Edge]:
    async with (
        edge(config, tmp_path) as found,
        worker(serving(config, "large")),
        worker(serving(config, "small")),
    ):
        await until(lambda: len(found.pipeline.models()) == 2 and found.pipeline.ready()[0])
        yield found


def routed(live: Live) -> tuple[str, str, str]:
    route = live.job.presentation.route
    assert route is not None
    return live.model_name, route.by, route.reason


async def test_which_model_and_why(here: Edge) -> None:
    long = "word " * 120
    named = {
        "large": ("large", "name", ""),
        "gpt-4o-mini": ("small", "alias", "'gpt-4o-mini' stands for 'small'"),
        "auto": ("large", "auto", "preferred"),
        "": ("large", "auto", "preferred"),
        "best": ("large", "auto", "preferred"),
        "gone": ("small", "fallback", "no worker serves 'gone'"),
    }
    for model, expected in named.items():
        live = await here.pipeline.submit(ask("hello", model=model))
        assert routed(live) == expected
        assert live.job.presentation.route.requested == model  # type: ignore[union-attr]
        await finish(live)
    live = await here.pipeline.submit(ask(long, model="auto"))
    assert routed(live) == ("small", "auto", "large: prompt of about 150 tokens above 100")
    far = await here.pipeline.submit(replace(ask("hello", model="auto"), rtt_ms=200.0))
    assert routed(far) == ("small", "auto", "large: round trip 200 ms above 80")
    await finish(live)
    await finish(far)
    as_ids = replace(ask("", model="auto", api="completions"), messages=(), prompt_ids=tuple(range(300, 401)))
    with_tool = replace(ask("hello", model="auto"), tools=(Tool("look", '{"name": "look"}' + " " * 400),))
    for asked, tokens in ((as_ids, 101), (with_tool, 106)):
        live = await here.pipeline.submit(asked)
        assert routed(live) == ("small", "auto", f"large: prompt of about {tokens} tokens above 100")
        await finish(live)
    with pytest.raises(HeadraceError, match="model_not_found"):
        await here.pipeline.submit(ask("hello", model="larger"))
    names = [(offer.name, offer.card and offer.card.name) for offer in here.pipeline.offers()]
    assert names == [
        ("large", "large"), ("small", "small"), ("auto", None), ("gone", "small"),
        ("gpt-4o-mini", "small"), ("best", None),
    ]  # fmt: skip


async def test_what_is_remembered_counts_and_is_encoded_anew_for_another_model(
    here: Edge, config: Config, tmp_path: Path
) -> None:
    first = await here.pipeline.submit(ask("word " * 70, model="auto", conversation="grows", min_tokens=4))
    assert first.model_name == "large"
    await finish(first)
    second = await here.pipeline.submit(ask("word " * 30, model="auto", conversation="grows"))
    model, by, reason = routed(second)
    assert (model, by) == ("small", "auto")
    assert reason.startswith("large: prompt of about ")
    await finish(second)
    spelled = (await here.tokenizer()).detokenizer.decode(second.job.prompt_ids)
    assert first.text.strip() in spelled
    assert second.job.session == first.job.session
    async with edge(config, tmp_path) as other:  # tells the same of it
        await until(lambda: other.pipeline.ready()[0])
        assert routed(await other.pipeline.attach(second.response_id, TENANT)) == (model, by, reason)


def test_what_clients_see(
    shared_nats_server: NatsServer, shared_redis_server: RedisServer, tmp_path: Path
) -> None:
    nats, redis = shared_nats_server, shared_redis_server
    sim = {"inter_token_ms": 1, "mean_output_tokens": 5}
    policy = '[{model = "far", max_rtt_ms = 0.000001}, {model = "near"}]'
    with (
        processes.worker(nats, redis, tmp_path, name="near", **sim),
        processes.gateway(nats, redis, tmp_path, extra={"HEADRACE_ROUTING__AUTO": policy}) as gateway,
        processes.worker(nats, redis, tmp_path, name="far", **sim),
        httpx.Client(base_url=gateway.url, timeout=20) as client,
    ):
        while len(client.get("/v1/models").json()["data"]) < 3:
            time.sleep(0.05)
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert {name: model["root"] for name, model in listed.items()} == {
            "far": "far",
            "near": "near",
            "auto": None,
        }
        response = client.post("/v1/responses", json={"model": "auto", "input": "hi"})
        body = response.json()
        assert body["model"] == body["routing"]["model"] == response.headers["x-headrace-model"] == "near"
        assert (body["routing"]["requested"], body["routing"]["by"]) == ("auto", "auto")
        assert body["routing"]["reason"].startswith("far: round trip ")  # so it was measured
        assert response.headers["x-headrace-route"] == f"auto; {body['routing']['reason']}"
        assert client.get(f"/v1/responses/{body['id']}").json()["routing"] == body["routing"]
        several = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "n": 2}
        answer = client.post("/v1/chat/completions", json=several)
        assert answer.headers["x-headrace-route"].startswith("auto; far: round trip ")
        prompts = {"model": "auto", "prompt": ["a", "b and more"], "n": 2, "stream": True}
        answer = client.post("/v1/completions", json=prompts)
        assert answer.headers["x-headrace-model"] == "near"
        assert answer.headers["x-headrace-route"].startswith("auto; far: round trip ")
        assert answer.text.count('"model":"near"') == answer.text.count('"model":')
        chat = {"model": "far", "messages": [{"role": "user", "content": "hi"}]}
        answer = client.post("/v1/chat/completions", json=chat)
        assert (answer.json()["model"], answer.headers["x-headrace-route"]) == ("far", "name")
