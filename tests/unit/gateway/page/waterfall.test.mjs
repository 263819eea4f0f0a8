// Where an answer's time went: the parts add up to what the browser measured, and none is invented.

import assert from "node:assert/strict"
import { test } from "node:test"

import { duration, waterfall } from "../../../../gateway/page/waterfall.js"

const TOLD = {
  edge_ms: 3,
  queue_ms: 42,
  engine_queue_ms: 2,
  prefill_ms: 55,
  decode_ms: 400,
  reconnect_ms: 0,
  transport_ms: 10,
  ttft_ms: 105,
  total_ms: 510,
}
const asMap = ({ parts }) => Object.fromEntries(parts.map(({ name, ms }) => [name, ms]))
const sumOf = ({ parts }) => parts.reduce((sum, { ms }) => sum + (ms ?? 0), 0)

test("all told: what is the browser's alone is the network", () => {
  const fall = waterfall(TOLD, 660)
  assert.deepEqual(asMap(fall), { edge: 3, queue: 42, prefill: 55, decode: 400, transport: 10, network: 150 })
  assert.deepEqual(fall.parts.map(({ name }) => name), ["edge", "queue", "prefill", "decode", "transport", "network"])
  assert.equal(fall.totalMs, 660)
})

test("a worker that was lost is a part of its own", () => {
  const fall = waterfall({ ...TOLD, reconnect_ms: 90, total_ms: 600 }, 660)
  assert.equal(asMap(fall).reconnect, 90)
  assert.equal(asMap(fall).network, 60)
})

test("what an older gateway did not tell is one part, not guessed apart", () => {
  const older = { ...TOLD, prefill_ms: null, decode_ms: null, reconnect_ms: undefined, transport_ms: undefined }
  const { parts } = waterfall(older, 660)
  assert.deepEqual(parts[2], { name: "untold", of: ["prefill", "decode", "reconnect", "transport"], ms: 465 })
  assert.deepEqual(parts[3], { name: "network", ms: 150 })
})

test("no timings at all: the whole is told, and that it cannot be taken apart", () => {
  const fall = waterfall({}, 660)
  const of = ["edge", "queue", "prefill", "decode", "reconnect", "transport"]
  assert.deepEqual(fall.parts, [{ name: "untold", of, ms: 660 }])
})

test("sent by an earlier load of the page: the network is unknown", () => {
  const fall = waterfall(TOLD, null)
  assert.equal(fall.totalMs, 510)
  assert.equal(asMap(fall).network, null)
  assert.equal(sumOf(fall), 510)
})

test("nothing known, nothing shown", () => assert.equal(waterfall({}, null), null))

test("two clocks that disagree are told, and still add up", () => {
  const fall = waterfall(TOLD, 500)
  assert.equal(asMap(fall).network, 0)
  assert.equal(asMap(fall).overlap, -10)
  assert.equal(sumOf(fall), 500)
})

test("the known parts add up to the browser's total, whatever is told", () => {
  const keys = Object.keys(TOLD)
  for (let told = 0; told < 2 ** keys.length; told += 1) {
    const timings = Object.fromEntries(keys.map((key, bit) => [key, told & (2 ** bit) ? TOLD[key] : null]))
    for (const totalMs of [1, 300, 509.5, 510, 5000]) {
      const fall = waterfall(timings, totalMs)
      assert.ok(Math.abs(sumOf(fall) - totalMs) < 1e-9, JSON.stringify({ timings, totalMs, fall }))
      assert.ok(fall.parts.every(({ name, ms }) => name === "overlap" || ms >= 0))
    }
  }
})

test("durations are read at a glance", () => {
  assert.deepEqual([3.14159, 42.4, 999.4, 1234, 12345].map(duration), ["3.1 ms", "42 ms", "999 ms", "1.23 s", "12.3 s"])
})
