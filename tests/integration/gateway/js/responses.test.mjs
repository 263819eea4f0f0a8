// The Responses API, over HTTP and WebSocket, with the official client.

import assert from "node:assert/strict"
import { test } from "node:test"
import OpenAI from "openai"
import { ResponsesWS } from "openai/resources/responses/ws"

import { ENDS, TOKENS, check, client, collect, model } from "./gateway.mjs"

const ask = { model, input: "the same", max_output_tokens: TOKENS, temperature: 0 }

/** Everything that a socket says, until so many responses have ended. */
async function untilEnded(socket, count) {
  const events = []
  for await (const event of socket) {
    assert.notEqual(event.type, "error", event.error?.message)
    if (event.type !== "message") continue
    events.push(event.message)
    count -= ENDS.includes(event.message.type)
    if (count === 0) return events
  }
  assert.fail("the connection ended first")
}

test("one answer", async () => {
  const response = await client.responses.create({
    ...ask,
    instructions: "be brief",
    metadata: { colour: "blue" },
  })
  assert.equal(response.status, "incomplete")
  assert.equal(response.incomplete_details.reason, "max_output_tokens")
  assert.equal(response.usage.output_tokens, TOKENS)
  assert.deepEqual(response.metadata, { colour: "blue" })
  assert.ok(response.output_text.length > 0)
})

test("input as items, and sent back as the history", async () => {
  const first = await client.responses.create({ ...ask, input: [{ role: "user", content: "one" }] })
  const second = await client.responses.create({
    ...ask,
    input: [
      { role: "user", content: [{ type: "input_text", text: "one" }] },
      ...first.output,
      { role: "user", content: "two" },
    ],
  })
  assert.ok(second.usage.input_tokens >= first.usage.input_tokens + TOKENS)
})

test("the same text by every way", async () => {
  const texts = [(await client.responses.create(ask)).output_text]
  texts.push(check(await collect(await client.responses.create({ ...ask, stream: true }))))
  texts.push((await client.responses.stream(ask).finalResponse()).output_text)
  const socket = new ResponsesWS(client)
  try {
    socket.send({ type: "response.create", ...ask })
    texts.push(check(await untilEnded(socket, 1)))
  } finally {
    socket.close()
  }
  assert.ok(texts[0])
  assert.deepEqual(new Set(texts).size, 1)
})

test("many at once on one socket", async () => {
  const socket = new ResponsesWS(client)
  try {
    for (const n of [1, 2, 3, 4]) {
      socket.send({ type: "response.create", ...ask, input: `question ${n}`, stream_id: `lane ${n}` })
    }
    const events = await untilEnded(socket, 4)
    const lanes = Map.groupBy
      ? Map.groupBy(events, (event) => event.stream_id)
      : events.reduce((map, e) => map.set(e.stream_id, [...(map.get(e.stream_id) ?? []), e]), new Map())
    assert.equal(lanes.size, 4)
    assert.equal(new Set([...lanes.values()].map(check)).size, 4)
  } finally {
    socket.close()
  }
})

test("a refusal on a socket is an error event, and the socket lives on", async () => {
  const socket = new ResponsesWS(client)
  try {
    const refused = new Promise((resolve) => socket.once("error", resolve))
    socket.send({ type: "response.create", ...ask, temperature: 99 })
    assert.match((await refused).message, /temperature/)
    socket.send({ type: "response.create", ...ask })
    check(await untilEnded(socket, 1))
  } finally {
    socket.close()
  }
})

test("resumed behind any event", async () => {
  const seen = []
  for await (const event of await client.responses.create({ ...ask, max_output_tokens: 60, stream: true })) {
    seen.push(event)
    if (seen.length === 6) break
  }
  const id = seen[0].response.id
  const rest = await client.responses.retrieve(id, {
    stream: true,
    starting_after: seen.at(-1).sequence_number,
  })
  const text = check([...seen, ...(await collect(rest))])
  assert.equal((await client.responses.retrieve(id)).output_text, text)
})

test("cancelled", async () => {
  let last
  for await (const event of await client.responses.create({ ...ask, max_output_tokens: 5000, stream: true })) {
    last = event
    if (event.type === "response.created") {
      assert.equal((await client.responses.cancel(event.response.id)).status, "cancelled")
    }
  }
  assert.equal(last.type, "response.incomplete")
  assert.equal(last.response.status, "cancelled")
})

test("conversations, by name and by the response before", async () => {
  const first = await client.responses.create({ ...ask, input: "my name is Ada", conversation: "js" })
  const second = await client.responses.create({ ...ask, input: "who am I?", conversation: "js" })
  const after = await client.responses.create({ ...ask, input: "who am I?", previous_response_id: first.id })
  assert.ok(second.usage.input_tokens >= first.usage.input_tokens + TOKENS)
  assert.equal(after.usage.input_tokens, second.usage.input_tokens)
  assert.equal(after.previous_response_id, first.id)
})

test("refusals are the client's errors", async () => {
  await assert.rejects(client.responses.create({ ...ask, model: "none" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError)
    assert.deepEqual([error.code, error.param], ["model_not_found", "model"])
    return true
  })
  await assert.rejects(client.responses.create({ ...ask, temprature: 1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError)
    assert.equal(error.code, "unknown_parameter")
    return true
  })
  await assert.rejects(client.responses.retrieve("resp_01JD0000000000000000000000"), OpenAI.NotFoundError)
})

test("an abandoned request is nobody's trouble", async () => {
  const aborted = new AbortController()
  const stream = await client.responses.create(
    { ...ask, max_output_tokens: 5000, stream: true },
    { signal: aborted.signal },
  )
  const seen = []
  for await (const event of stream) {
    seen.push(event)
    if (seen.length === 4) aborted.abort()
  }
  assert.ok(seen.length >= 4)
  assert.equal((await client.responses.create(ask)).usage.output_tokens, TOKENS)
})
