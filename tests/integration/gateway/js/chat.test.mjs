// Chat completions and models, with the official client.

import assert from "node:assert/strict"
import { test } from "node:test"
import OpenAI from "openai"

import { TOKENS, client, collect, model } from "./gateway.mjs"

const messages = [
  { role: "system", content: "s" },
  { role: "user", content: "the same" },
]
const said = { model, messages, max_tokens: TOKENS, temperature: 0 }
const content = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("")

test("models are listed and found", async () => {
  const found = await client.models.retrieve(model)
  assert.equal(found.id, model)
  assert.equal(found.object, "model")
  await assert.rejects(client.models.retrieve("none"), OpenAI.NotFoundError)
})

test("one answer, with its usage", async () => {
  const { choices, usage } = await client.chat.completions.create(said)
  assert.equal(choices[0].finish_reason, "length")
  assert.equal(usage.completion_tokens, TOKENS)
  assert.ok(choices[0].message.content)
})

test("the same text as a stream, with usage at the end, and by the stream helper", async () => {
  const whole = (await client.chat.completions.create(said)).choices[0].message.content
  const chunks = await collect(
    await client.chat.completions.create({ ...said, stream: true, stream_options: { include_usage: true } }),
  )
  assert.equal(content(chunks), whole)
  assert.equal(chunks.at(-1).usage.completion_tokens, TOKENS)
  assert.equal(chunks.at(-2).choices[0].finish_reason, "length")
  const runner = client.chat.completions.stream(said)
  assert.equal(await runner.finalContent(), whole)
})

test("stop strings", async () => {
  const whole = (await client.chat.completions.create({ ...said, max_tokens: 40 })).choices[0].message.content
  const stop = whole.slice(whole.length / 2, whole.length / 2 + 3)
  const { choices } = await client.chat.completions.create({ ...said, max_tokens: 40, stop: [stop] })
  assert.equal(choices[0].finish_reason, "stop")
  assert.equal(choices[0].message.content, whole.slice(0, whole.indexOf(stop)))
})

test("log probabilities", async () => {
  const { choices } = await client.chat.completions.create({ ...said, logprobs: true, top_logprobs: 2 })
  const { content: shown } = choices[0].logprobs
  assert.equal(shown.length, TOKENS)
  assert.ok(shown.every((at) => at.logprob <= 0 && at.top_logprobs.length === 2))
})

test("a seed is repeatable", async () => {
  const sampled = { ...said, temperature: 1, seed: 7 }
  const [first, second] = await Promise.all([1, 2].map(() => client.chat.completions.create(sampled)))
  assert.equal(first.choices[0].message.content, second.choices[0].message.content)
})

test("refusals are the client's errors", async () => {
  await assert.rejects(client.chat.completions.create({ ...said, temperature: 99 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError)
    assert.deepEqual([error.code, error.param], ["invalid_value", "temperature"])
    return true
  })
})
