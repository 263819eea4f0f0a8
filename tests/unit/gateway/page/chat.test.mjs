// The state of a conversation: how an answer ends, and what a reload keeps.

import assert from "node:assert/strict"
import { test } from "node:test"

import { Chat } from "../../../../gateway/page/chat.js"

const delta = (text) => ({ type: "response.output_text.delta", delta: text })
const error = (code) => ({ type: "error", error: { code, message: "" } })
const ended = (type, response = {}) => ({ type, response })
const cancelled = ended("response.incomplete", { incomplete_details: { reason: "cancelled" } })

function asked() {
  const chat = new Chat()
  const request = chat.ask("Why?", "model", 1000)
  return { chat, request, answer: chat.active }
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
    chat.receive(answer, delta("Because"), 1100)
    assert.equal(answer.phase, "streaming")
    chat.receive(answer, event, 1200)
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
    chat.receive(answer, event, 1200)
    assert.equal(answer.phase, phase)
    assert.equal(chat.stopping, false)
  }
})

test("a passing refusal shows until the next event", () => {
  const { chat, answer } = asked()
  chat.refused(answer)
  assert.equal(answer.waiting, true)
  chat.receive(answer, { type: "response.created", response: { id: "resp_01" } }, 1100)
  assert.equal(answer.waiting, false)
})

test("a new chat hears no more of the old one", () => {
  const { chat, request, answer } = asked()
  chat.stop()
  chat.reset()
  assert.equal(chat.busy, false)
  assert.equal(chat.stopping, false)
  const next = chat.ask("And now?", "model", 2000)
  assert.notEqual(next.conversation, request.conversation)
  chat.receive(answer, delta("old"), 2100)
  chat.receive(answer, cancelled, 2200)
  assert.equal(chat.active.text, "")
  assert.equal(chat.active.phase, "sent")
})

test("a reload goes on with the answer under way", () => {
  const { chat, request, answer } = asked()
  chat.receive(answer, delta("Be"), 1100)
  const saved = JSON.parse(JSON.stringify(chat.save({ id: "stream_1", cancelled: false })))
  const next = new Chat()
  assert.deepEqual(next.restore(saved), { id: "stream_1", cancelled: false })
  assert.equal(next.conversation, request.conversation)
  next.receive(next.active, delta("cause"), 50)
  const restored = next.active
  next.receive(restored, ended("response.completed", { usage: { output_tokens: 2 } }), 60)
  assert.equal(restored.text, "Because")
  // This page's clock began after the question.
  assert.equal(restored.meta.ttftMs, null)
  assert.equal(restored.meta.tokensPerS, null)
})

test("a reload keeps that an answer was told to stop, and what has ended", () => {
  const { chat, answer } = asked()
  chat.stop()
  const stopping = new Chat()
  stopping.restore(chat.save({ id: "stream_1", cancelled: true }))
  assert.equal(stopping.stopping, true)
  chat.receive(answer, cancelled, 1100)
  const over = new Chat()
  assert.equal(over.restore(chat.save(null)), null)
  assert.equal(over.busy, false)
  assert.equal(over.turns.at(-1).phase, "stopped")
})
