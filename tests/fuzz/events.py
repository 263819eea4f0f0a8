"""Client events, right, wrong and absurd, made from a seeded source of chance."""

from __future__ import annotations

import json
import random
from typing import Any

Json = dict[str, Any]
RESPONSE = "resp_01JD0000000000000000000000"
KINDS = ("response.create", "response.cancel", "response.resume", "ping", "response.destroy", "", None, 7)
FIELDS = (
    "input",
    "model",
    "instructions",
    "conversation",
    "previous_response_id",
    "max_output_tokens",
    "metadata",
    "store",
    "stream",
    "stream_id",
    "stream_options",
    "idempotency_key",
    "event_id",
    "response_id",
    "starting_after",
    "text",
    "tools",
    "tool_choice",
    "reasoning",
    "include",
    "top_logprobs",
    "truncation",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "logit_bias",
    "stop_token_ids",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "user",
    "background",
    "no_such_field",
)
# JSON text, since what is worst about some of it no encoder would write
ABSURD = (
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "1E400",
    "-0.0",
    "NaN",
    "123456789012345678901234567890",
    "9" * 5_000,
    "9223372036854775808",
    '""',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"' + "x" * 5_000 + '"',
    '"\u202e\u0301\U0001f600"',
    "[]",
    "{}",
    "[" * 900 + "]" * 900,
    "[" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
    '{"type":"function","function":{"name":null}}',
    '[{"role":"user","content":[{"type":"input_text","text":"x"}]}]',
    '[{"role":"wizard","content":"x"}]',
    '[{"type":"function_call_output","call_id":"c","output":"x"}]',
    '{"0":1,"-1":2,"4294967296":3}',
    "[2147483647,-1]",
    '{"format":{"type":"json_schema","name":"n","schema":{"$ref":"#"}}}',
)


def good(chance: random.Random, known: list[str]) -> Json:
    """An event that may be served. ``known``: ids of responses that may exist."""
    response = chance.choice([*known, RESPONSE])
    return chance.choice(
        [
            {"type": "ping"},
            {"type": "response.cancel", "response_id": response},
            {
                "type": "response.resume",
                "response_id": response,
                "starting_after": chance.randrange(-1, 5000),
            },
            {
                "type": "response.create",
                "input": chance.choice(["hello", "x " * chance.randrange(1, 400), "\U0001f600 é"]),
                "max_output_tokens": chance.randrange(1, 30),
                **chance.choice(
                    [
                        {},
                        {"conversation": f"c{chance.randrange(3)}"},
                        {"stream_id": f"lane {chance.randrange(3)}"},
                        {"idempotency_key": f"k{chance.randrange(20)}"},
                        {"stop": ["a", "e"], "temperature": 0},
                        {"top_logprobs": 5},
                        {"seed": 7, "store": False, "top_p": 0.5},
                    ]
                ),
            },
        ]
    )


def text(chance: random.Random, known: list[str]) -> str:
    """An event's JSON: good, or with some of it replaced by what makes no sense."""
    event = good(chance, known)
    damage = chance.randrange(4)
    if damage == 0:
        return json.dumps(event)
    pairs = [(json.dumps(name), json.dumps(value)) for name, value in event.items()]
    for _ in range(damage):
        pairs.append((json.dumps(chance.choice(FIELDS)), chance.choice(ABSURD)))
    if chance.random() < 0.2:
        pairs[0] = ('"type"', json.dumps(chance.choice(KINDS)))
    if chance.random() < 0.3:
        chance.shuffle(pairs)
    shown = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    if chance.random() < 0.15:
        cut = chance.randrange(len(shown))
        shown = shown[:cut] + chance.choice(["", "}", "\\", '"', "\x00", "]"]) + shown[cut + 1 :]
    return shown
