// The state of a conversation: what it asks, how an answer ends, and what a reload keeps.

import assert from "node:assert/strict"
import { test } from "node:test"

import { Chat } from "../../../../gateway/page/chat.js"

const delta = (text) => ({ type: "response.output_text.delta", delta: text })
const thought = (text) => ({ type: "response.reasoning_text.delta", delta: text })
const error = (code) => ({ type: "error", error: { code, message: "" } })
const ended = (type, response = {}) => ({ type, response })
const cancelled = ended("response.incomplete", { incomplete_details: { reason: "cancelled" } })
const SETTINGS = { model: "model", instructions: "", temperature: 0.3, maxOutputTokens: null }
const at = (ms) => ({ ms, wallMs: 1_700_000_000_000 + ms })

function asked() {
  const chat = new Chat()
  const request = chat.ask("Why?", SETTINGS, at(1000))
  return { chat, request, answer: chat.active }
}

/** A conversation of one round, whose response is resp_1. */
function answered() {
  const { chat } = asked()
  chat.receive({ type: "response.created", response: { id: "resp_1" } }, 1050)
  chat.receive(delta("Because."), 1100)
  chat.receive(ended("response.completed"), 1200)
  return chat
}

test("an answer ends as its last event says", () => {
  const endings = [
    [ended("response.completed"), "completed"],
    [ended("response.incomplete", { incomplete_details: { reason: "max_output_tokens" } }), "truncated"],
    [ended("response.failed", { error: { code: "poison" } }), "failed"],
    [error("model_not_found"), "failed"],
    [error("response_not_found"), "interrupted"],
    [cancelled, "interrupted"],
  ]
  for (const [event, phase] of endings) {
    const { chat, answer } = asked()
    chat.receive(delta("Because"), 1100)
    assert.equal(answer.phase, "streaming")
    chat.receive(event, 1200)
    assert.equal(answer.phase, phase)
    assert.equal(answer.text, "Because")
    assert.equal(answer.meta.ttftMs, 100)
    assert.equal(chat.busy, false)
  }
})

test("an answer that was told to stop is stopped, unless it came to its end first", () => {
  for (const [event, phase] of [
    [cancelled, "stopped"],
    [error("cancelled"), "stopped"],
    [error("response_not_found"), "stopped"],
    [ended("response.completed"), "completed"],
  ]) {
    const { chat, answer } = asked()
    chat.stop()
    assert.equal(chat.stopping, true)
    chat.receive(event, 1200)
    assert.equal(answer.phase, phase)
    assert.equal(chat.stopping, false)
  }
})

test("a passing refusal shows until the next event", () => {
  const { chat, answer } = asked()
  chat.refused({ code: "no_worker" })
  assert.equal(answer.waiting.code, "no_worker")
  chat.receive({ type: "response.created", response: { id: "resp_01" } }, 1100)
  assert.equal(answer.waiting, null)
})

test("the place in the queue is the last that was told", () => {
  const { chat, answer } = asked()
  chat.receive({ type: "response.queued", position: 3, eta_ms: 4000 }, 1100)
  chat.receive({ type: "response.queued", position: 2 }, 1200)
  assert.deepEqual([answer.phase, answer.position, answer.etaMs], ["queued", 2, null])
})

test("a request says what was chosen and nothing else", () => {
  const { request } = asked()
  assert.deepEqual(JSON.parse(JSON.stringify(request)), { model: "model", input: "Why?", temperature: 0.3 })
  const chosen = { model: "auto", instructions: "Be brief.", temperature: 0, maxOutputTokens: 50 }
  assert.deepEqual(JSON.parse(JSON.stringify(new Chat().ask("Why?", chosen, at(0)))), {
    model: "auto",
    input: "Why?",
    instructions: "Be brief.",
    temperature: 0,
    max_output_tokens: 50,
  })
})

test("a question goes on from the answer before it, and so does the same question again", () => {
  const chat = answered()
  const request = chat.ask("And then?", SETTINGS, at(2000))
  assert.equal(request.previous_response_id, "resp_1")
  chat.receive({ type: "response.created", response: { id: "resp_2" } }, 2050)
  chat.receive(delta("Then."), 2100)
  chat.receive(ended("response.completed"), 2200)
  const again = chat.again(SETTINGS, at(3000))
  assert.deepEqual([again.input, again.previous_response_id], ["And then?", "resp_1"])
  chat.receive(ended("response.completed"), 3100)
  const other = chat.rephrase("And now?", SETTINGS, at(4000))
  assert.deepEqual([other.input, other.previous_response_id], ["And now?", "resp_1"])
  assert.deepEqual(
    chat.turns.map(({ role, text }) => [role, text]),
    [["user", "Why?"], ["assistant", "Because."], ["user", "And now?"], ["assistant", ""]],
  )
  assert.equal(chat.title, "Why?")
})

test("an answer that failed is not gone on from", () => {
  const chat = answered()
  chat.ask("And then?", SETTINGS, at(2000))
  chat.receive({ type: "response.created", response: { id: "resp_2" } }, 2050)
  chat.receive(ended("response.failed", { error: { code: "engine_failed" } }), 2200)
  assert.equal(chat.ask("Hello?", SETTINGS, at(3000)).previous_response_id, "resp_1")
})

test("what the service forgot is told it in words, once", () => {
  const chat = answered()
  const request = chat.ask("And then?", SETTINGS, at(2000))
  assert.equal(chat.retell({ code: "engine_failed" }, request), null)
  const retold = chat.retell({ code: "previous_response_not_found" }, request)
  assert.equal(retold.previous_response_id, undefined)
  assert.deepEqual(retold.input, [
    { role: "user", content: "Why?" },
    { role: "assistant", content: "Because." },
    { role: "user", content: "And then?" },
  ])
  assert.equal(chat.retell({ code: "previous_response_not_found" }, retold), null)
})

test("instructions that were taken back are not remembered", () => {
  const chat = new Chat()
  chat.ask("Why?", { ...SETTINGS, instructions: "Rhyme." }, at(1000))
  chat.receive({ type: "response.created", response: { id: "resp_1" } }, 1050)
  chat.receive(delta("Sky."), 1100)
  chat.receive(ended("response.completed"), 1200)
  const request = chat.ask("And then?", SETTINGS, at(2000))
  assert.equal(request.previous_response_id, undefined)
  assert.equal(request.input.length, 3)
})

test("reasoning is kept apart, with the time it took", () => {
  const { chat, answer } = asked()
  chat.receive(thought("Well, "), 1100)
  assert.equal(answer.phase, "thinking")
  chat.receive(thought("so."), 1500)
  chat.receive(delta("Because."), 4100)
  assert.deepEqual([answer.reasoning, answer.text, answer.reasoningMs], ["Well, so.", "Because.", 3000])
  chat.receive(ended("response.completed"), 4200)
  assert.equal(answer.meta.ttftMs, 100)
})

test("a call grows, and is what its end says", () => {
  const { chat, answer } = asked()
  const item = { type: "function_call", id: "fc_1", name: "weather", arguments: "" }
  chat.receive({ type: "response.output_item.added", item }, 1100)
  chat.receive({ type: "response.function_call_arguments.delta", item_id: "fc_1", delta: '{"city":' }, 1200)
  assert.deepEqual(answer.calls, [{ id: "fc_1", name: "weather", arguments: '{"city":', done: false }])
  const whole = { ...item, arguments: '{"city":"Rome"}' }
  chat.receive({ type: "response.output_item.done", item: whole }, 1300)
  assert.deepEqual(answer.calls, [{ id: "fc_1", name: "weather", arguments: '{"city":"Rome"}', done: true }])
})

test("events of a protocol to come change nothing", () => {
  const { chat, answer } = asked()
  chat.receive({ type: "response.output_item.added", item: { type: "message", id: "msg_1" } }, 1100)
  chat.receive({ type: "response.something.new", whatever: 1 }, 1100)
  assert.equal(answer.phase, "sent")
})

test("a reload goes on with the answer under way", () => {
  const { chat } = asked()
  chat.receive(delta("Be"), 1100)
  const saved = JSON.parse(JSON.stringify(chat.save({ id: "stream_1", cancelled: false })))
  const next = new Chat(saved)
  assert.equal(next.id, chat.id)
  const restored = next.active
  next.receive(delta("cause"), 50)
  next.receive(ended("response.completed", { usage: { output_tokens: 2 } }), 60)
  assert.equal(restored.text, "Because")
  // This page's clock began after the question.
  assert.equal(restored.meta.ttftMs, null)
  assert.equal(restored.meta.totalMs, null)
  assert.equal(restored.meta.tokensPerS, null)
})

test("a reload keeps that an answer was told to stop, and what has ended", () => {
  const { chat } = asked()
  chat.stop()
  const stopping = new Chat(JSON.parse(JSON.stringify(chat.save({ id: "stream_1", cancelled: true }))))
  assert.equal(stopping.stopping, true)
  chat.receive(cancelled, 1100)
  const over = new Chat(chat.save(null))
  assert.equal(over.busy, false)
  assert.equal(over.turns.at(-1).phase, "stopped")
})
