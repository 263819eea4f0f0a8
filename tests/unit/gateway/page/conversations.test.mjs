// What the browser keeps of conversations, on a Storage with a size that can run out.

import assert from "node:assert/strict"
import { test } from "node:test"

import { Conversations, titleOf } from "../../../../gateway/page/conversations.js"

class SmallStorage {
  #entries = new Map()
  constructor(maxChars = Infinity) {
    this.maxChars = maxChars
  }
  get length() {
    return this.#entries.size
  }
  key(index) {
    return [...this.#entries.keys()][index] ?? null
  }
  getItem(key) {
    return this.#entries.get(key) ?? null
  }
  setItem(key, text) {
    const others = [...this.#entries].filter(([name]) => name !== key)
    const size = others.reduce((sum, [name, value]) => sum + name.length + value.length, key.length + text.length)
    if (size > this.maxChars) throw new DOMException("full", "QuotaExceededError")
    this.#entries.set(key, text)
  }
  removeItem(key) {
    this.#entries.delete(key)
  }
}

const record = (id, changedMs, text = "Why?") => ({ id, title: text, changedMs, turns: [{ role: "user", text }] })
const idsOf = (conversations) => conversations.list().map(({ id }) => id)

test("what was put is there after a reload, the latest first", () => {
  const storage = new SmallStorage()
  const before = new Conversations(storage)
  before.put(record("a", 1))
  before.put(record("b", 3))
  before.put(record("c", 2))
  const after = new Conversations(storage)
  assert.deepEqual(idsOf(after), ["b", "c", "a"])
  assert.deepEqual(after.get("a"), record("a", 1))
})

test("renamed and deleted is renamed and deleted for the next page, too", () => {
  const storage = new SmallStorage()
  const before = new Conversations(storage)
  before.put(record("a", 1))
  before.put(record("b", 2))
  before.rename("a", "  Rivers ")
  before.rename("a", "   ")
  before.delete("b")
  before.rename("b", "Ghost")
  const after = new Conversations(storage)
  assert.deepEqual(after.list(), [{ id: "a", title: "Rivers", changedMs: 1 }])
})

test("two tabs do not lose each other's conversations", () => {
  const storage = new SmallStorage()
  const [one, other] = [new Conversations(storage), new Conversations(storage)]
  one.put(record("a", 1))
  other.put(record("b", 2))
  one.reload()
  assert.deepEqual(idsOf(one), ["b", "a"])
})

test("a full storage gives up its oldest conversations, never the one that is written", () => {
  const storage = new SmallStorage(1_000)
  const conversations = new Conversations(storage)
  for (const [index, id] of ["a", "b", "c"].entries()) conversations.put(record(id, index, "x".repeat(150)))
  conversations.put(record("d", 3, "y".repeat(200)))
  const kept = idsOf(new Conversations(storage))
  assert.equal(kept[0], "d")
  assert.ok(!kept.includes("a"))
  conversations.put(record("e", 4, "z".repeat(2_000)))
  assert.ok(conversations.has("e"), "too large to keep, it lasts as long as the page")
  assert.ok(!new Conversations(storage).has("e"))
})

test("what is not ours is left alone", () => {
  const storage = new SmallStorage()
  storage.setItem("other", "1")
  storage.setItem("headrace.chat.3.broken", "{")
  storage.setItem("headrace.chat.3.odd", '"text"')
  assert.deepEqual(idsOf(new Conversations(storage)), [])
  assert.equal(storage.length, 3)
})

test("without a storage conversations last as long as the page", () => {
  const conversations = new Conversations(null)
  conversations.put(record("a", 1))
  conversations.reload()
  assert.deepEqual(idsOf(conversations), ["a"])
  conversations.delete("a")
  assert.deepEqual(idsOf(conversations), [])
})

test("a title is the first line of the first question", () => {
  assert.equal(titleOf("  What is\ta headrace?\nAnd why?"), "What is a headrace?")
  assert.equal(titleOf("word ".repeat(30)), `${"word ".repeat(12).trim()}…`)
  assert.equal(titleOf("x".repeat(100)), `${"x".repeat(60)}…`)
})
