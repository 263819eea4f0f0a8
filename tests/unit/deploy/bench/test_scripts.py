"""What is said, and how each API is asked it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.bench.dialogue import Dialogue
from deploy.bench.distribution import Fixed, Uniform
from deploy.bench.plan import Api, Target, Workload, address_of
from deploy.bench.scripts import Scripts, Turn


def test_a_seed_says_what() -> None:
    workload = Workload(prompt_tokens=Uniform(5, 50), turns=Uniform(1, 4), think_s=Uniform(0, 1))
    some, same, other = Scripts(workload, 1), Scripts(workload, 1), Scripts(workload, 2)
    assert some.conversation(9) == same.conversation(9)  # also without the eight before it
    assert some.conversation(9) != some.conversation(8)
    assert some.conversation(9) != other.conversation(9)


def test_prompts_have_their_length_and_share_their_beginning() -> None:
    scripts = Scripts(Workload(prompt_tokens=Fixed(6000), shared_prefix=0.75, turns=Fixed(2)), 3)
    one, another = scripts.conversation(0), scripts.conversation(1)
    first, second = one[0].text.split(), another[0].text.split()
    assert len(first) == len(second) == len(one[1].text.split()) == 6000
    assert first[:4500] == second[:4500]
    assert first[4500:] != second[4500:]
    assert one[1].text.split()[:4500] != first[:4500]


def test_a_prompt_file_is_taken_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hello", "max_tokens": 7}\n\n{"turns": ["One", "Two"]}\n')
    scripts = Scripts(Workload(prompt_file=str(file), output_tokens=Fixed(20)), 0)
    assert scripts.conversation(0) == scripts.conversation(2) == [Turn("Hello", 7, 0)]
    assert scripts.conversation(1) == [Turn("One", 20, 0), Turn("Two", 20, 0)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\nnot JSON', "line 2"),
        ('{"prompt": "a", "turns": ["b"]}', "give prompt or turns"),
        ('{"turns": []}', "give prompt or turns"),
        ('{"text": "a"}', "text"),
    ],
)
def test_a_bad_prompt_file_is_refused_by_its_line(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=told):
        Scripts(Workload(prompt_file=str(file)), 0)


TURNS = [Turn("one", 10, 0.0), Turn("two", 20, 0.5)]


def bodies(api: Api, memory: str = "previous", **workload: Any) -> list[dict[str, Any]]:
    target = msgspec.convert(
        {"api": api, "urls": ["http://h"], "model": "m", "memory": memory, "extra": {"seed": 4}}, Target
    )
    dialogue = Dialogue(target, Workload(**workload), list(TURNS))
    first = json.loads(dialogue.next_body)
    dialogue.answered("answer", "resp_1")
    assert not dialogue.over
    second = json.loads(dialogue.next_body)
    dialogue.answered("last", "resp_2")
    assert dialogue.over
    return [first, second]


def test_chat_completions_are_sent_the_whole_conversation() -> None:
    first, second = bodies("chat", temperature=0.5)
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "one"}],
        "max_tokens": 10,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "ignore_eos": True,
        "seed": 4,
    }
    assert [message["content"] for message in second["messages"]] == ["one", "answer", "two"]
    assert second["max_tokens"] == 20


def test_completions_are_sent_the_text_so_far() -> None:
    first, second = bodies("completions", ignore_eos=False)
    assert first["prompt"] == "one"
    assert second["prompt"] == "oneanswer\ntwo"
    assert "ignore_eos" not in first


def test_responses_go_on_by_id() -> None:
    first, second = bodies("responses")
    assert first == {
        "model": "m",
        "input": "one",
        "max_output_tokens": 10,
        "stream": True,
        "ignore_eos": True,
        "seed": 4,
    }
    assert second["previous_response_id"] == "resp_1"
    assert second["input"] == "two"


def test_or_by_the_name_of_their_conversation() -> None:
    first, second = bodies("responses-ws", memory="conversation")
    assert first["type"] == "response.create"
    assert "stream" not in first
    assert first["conversation"] == second["conversation"]
    assert "previous_response_id" not in second
    assert bodies("responses-ws", memory="conversation")[0]["conversation"] != first["conversation"]


def test_null_leaves_a_field_out() -> None:
    target = Target(api="chat", urls=("http://h",), model="m", extra={"stream_options": None})
    assert "stream_options" not in json.loads(Dialogue(target, Workload(), list(TURNS)).next_body)


@pytest.mark.parametrize(
    ("url", "authority", "tls", "path"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False, "/v1/x"),
        ("http://h/v1", "h", False, "/v1/x"),
        ("https://h/v1/", "h", True, "/v1/x"),
        ("wss://h:8443/edge", "h:8443", True, "/edge/v1/x"),
        ("http://[::1]:80", "[::1]", False, "/v1/x"),
    ],
)
def test_an_address(url: str, authority: str, tls: bool, path: str) -> None:
    address = address_of(url, "/v1/x")
    assert (address.authority, address.tls, address.path) == (authority, tls, path)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://h", "http://", "http://user:key@h"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        address_of(url, "/v1/x")
