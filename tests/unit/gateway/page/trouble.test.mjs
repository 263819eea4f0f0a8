// What a reader is told of an error: in words where the code is known, and never nothing.

import assert from "node:assert/strict"
import { test } from "node:test"

import { trouble } from "../../../../gateway/page/trouble.js"

test("a known code is told in words, with what to do", () => {
  const told = trouble({ code: "context_length_exceeded", message: "4097 tokens are above 4096." })
  assert.equal(told.code, "context_length_exceeded")
  assert.match(told.hint, /new chat/)
  assert.equal(told.retry, false)
  assert.equal(trouble({ code: "queue_full", message: "" }).retry, true)
})

test("an unknown code is told in the server's words", () => {
  assert.deepEqual(trouble({ code: "of_tomorrow", message: "Something new." }), {
    code: "of_tomorrow",
    what: "Something new.",
    hint: "",
    retry: true,
  })
})

test("an error without code or message is told all the same", () => {
  assert.deepEqual(trouble(null), { code: "", what: "The answer failed.", hint: "", retry: true })
})
