// The browser client against a scripted socket and a stopped clock: what it sends, and what it delivers.

import assert from "node:assert/strict"
import { afterEach, beforeEach, mock, test } from "node:test"

import { Delivery, HeadraceClient } from "../../../../gateway/page/headrace.js"

const ID = "resp_01"
const sockets = []

/** As much of a browser's WebSocket as a script needs: the test is the server. */
class ScriptedSocket {
  sent = []
  closed = false

  constructor(_url, protocols) {
    this.protocols = protocols
    sockets.push(this)
  }

  send(text) {
    this.sent.push(JSON.parse(text))
  }

  close() {
    this.closed = true
  }

  accept() {
    this.onopen()
  }

  say(...events) {
    for (const event of events) this.onmessage?.({ data: JSON.stringify(event) })
  }

  drop(code = 1006, reason = "") {
    this.onclose({ code, reason })
  }

  get types() {
    return this.sent.map((event) => event.type)
  }
}

const latest = () => sockets.at(-1)

beforeEach(() => {
  sockets.length = 0
  globalThis.WebSocket = ScriptedSocket
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 })
})

afterEach(() => mock.timers.reset())

const created = (stream) => ({ type: "response.created", sequence_number: 0, response: { id: ID }, stream_id: stream })
const delta = (stream, number, text) => ({
  type: "response.output_text.delta",
  sequence_number: number,
  delta: text,
  stream_id: stream,
})
const completed = (stream, number) => ({
  type: "response.completed",
  sequence_number: number,
  response: {},
  stream_id: stream,
})
const refusal = (stream, code, status) => ({ type: "error", status, error: { code }, stream_id: stream })

/** A client with one connection, and one answer that was asked for; what it delivers is recorded. */
function started(params = { input: "Hello" }) {
  const seen = { states: [], notices: [], events: [], waits: [] }
  const client = new HeadraceClient("ws://gateway", {
    onState: (state) => seen.states.push(state.name),
    onNotice: (error) => seen.notices.push(error.code),
  })
  latest().accept()
  const answer = client.respond(params, recorder(seen))
  return { client, answer, seen, stream: answer.checkpoint().id }
}

const recorder = (seen) => ({
  onEvent: (event) => seen.events.push(event.delta ?? event.error?.code ?? event.type),
  onWaiting: (error) => seen.waits.push(error.code),
})

/** Lets the client wait as long as it wants before its next connection, and accepts that. */
function reconnected() {
  mock.timers.tick(30_000)
  latest().accept()
  return latest()
}

test("a response is created once, under an id of its own", () => {
  const { client, seen, stream } = started()
  client.respond({ input: "Bye" }, recorder(seen))
  const [first, second] = latest().sent
  assert.deepEqual(first, { type: "response.create", input: "Hello", stream_id: stream, idempotency_key: stream })
  assert.notEqual(second.stream_id, stream)
  assert.equal(second.idempotency_key, second.stream_id)
})

test("events go to their answer, the last one ends it", () => {
  const { client, seen, stream } = started()
  const other = { states: [], events: [], waits: [] }
  const second = client.respond({ input: "Bye" }, recorder(other)).checkpoint().id
  latest().say(created(stream), delta(second, 1002, "B"), delta(stream, 1002, "A"), completed(stream, 2001))
  latest().say(delta(stream, 3000, "too late"), refusal(stream, "internal_error", 500))
  assert.deepEqual(seen.events, ["response.created", "A", "response.completed"])
  assert.deepEqual(other.events, ["B"])
  assert.deepEqual(seen.notices, [])
})

test("a lost connection is opened again at once, and the answer goes on behind its last event", () => {
  const { seen, stream } = started()
  latest().say(created(stream), delta(stream, 1002, "A"))
  mock.timers.tick(5_000)
  latest().drop()
  mock.timers.tick(0)
  assert.equal(sockets.length, 2)
  latest().accept()
  assert.deepEqual(latest().sent, [
    { type: "response.resume", response_id: ID, starting_after: 1002, stream_id: stream },
  ])
  latest().say(delta(stream, 1002, "A"), delta(stream, 3000, "BC"), completed(stream, 4001))
  assert.deepEqual(seen.events, ["response.created", "A", "BC", "response.completed"])
  assert.deepEqual(seen.states, ["connecting", "connected", "offline", "connecting", "connected"])
})

test("an answer that was not accepted yet is asked for again under the same key", () => {
  const { stream } = started()
  const [create] = latest().sent
  latest().drop()
  assert.deepEqual(reconnected().sent[0], create)
  assert.equal(create.idempotency_key, stream)
})

test("what is asked without a connection is sent with the next one", () => {
  const { client, seen } = started()
  latest().drop()
  client.respond({ input: "Meanwhile" }, recorder(seen))
  assert.deepEqual(reconnected().sent.map((event) => event.input), ["Hello", "Meanwhile"])
})

test("attempts to connect come ever later, never beyond the limit, and never in step", () => {
  started()
  const waits = []
  for (let attempt = 0; attempt < 12; attempt += 1) {
    const before = sockets.length
    latest().drop()
    let waitedMs = 0
    while (sockets.length === before) {
      mock.timers.tick(1)
      waitedMs += 1
    }
    waits.push(waitedMs)
  }
  assert.ok(waits[0] <= 1)
  assert.ok(waits.every((wait) => wait <= 8_001))
  assert.ok(waits.slice(-3).every((wait) => wait >= 4_000))
  assert.ok(waits[5] > waits[3] && waits[3] > waits[1])
  assert.ok(new Set(waits.slice(-3)).size > 1)
})

test("a good connection is missed at once, however long the last one took to come", () => {
  started()
  for (let attempt = 0; attempt < 6; attempt += 1) {
    latest().drop()
    mock.timers.tick(8_000)
  }
  latest().accept()
  mock.timers.tick(5_000)
  const before = sockets.length
  latest().drop()
  mock.timers.tick(0)
  assert.equal(sockets.length, before + 1)
})

test("an attempt to connect that gets no answer is given up", () => {
  started()
  latest().drop()
  mock.timers.tick(1)
  assert.equal(sockets.length, 2)
  mock.timers.tick(10_000)
  assert.equal(sockets[1].closed, true)
  mock.timers.tick(1_000)
  assert.equal(sockets.length, 3)
})

test("a cancel lands on the connection there is", () => {
  const { answer, stream } = started()
  latest().say(created(stream))
  answer.cancel()
  answer.cancel()
  assert.deepEqual(latest().sent.at(-1), { type: "response.cancel", event_id: stream, response_id: ID })
  assert.deepEqual(latest().types, ["response.create", "response.cancel"])
})

test("a cancel before the response has a name waits for it", () => {
  const { answer, stream } = started()
  answer.cancel()
  assert.deepEqual(latest().types, ["response.create"])
  latest().say(created(stream))
  assert.deepEqual(latest().types, ["response.create", "response.cancel"])
})

test("a cancel in a gap is sent behind the resume", () => {
  const { answer, stream } = started()
  latest().say(created(stream))
  latest().drop()
  answer.cancel()
  assert.deepEqual(reconnected().types.slice(0, 2), ["response.resume", "response.cancel"])
})

test("a cancel of what no server has ever seen needs none", () => {
  const { client, seen } = started()
  latest().drop()
  client.respond({ input: "Meanwhile" }, recorder(seen)).cancel()
  assert.deepEqual(seen.events, ["cancelled"])
  assert.deepEqual(reconnected().types.slice(0, 1), ["response.create"])
  assert.equal(latest().sent.filter((event) => event.input === "Meanwhile").length, 0)
})

test("a cancel of what was refused needs no server either", () => {
  const { answer, seen, stream } = started()
  latest().say(refusal(stream, "no_worker", 503))
  answer.cancel()
  mock.timers.tick(10_000)
  assert.deepEqual(seen.events, ["cancelled"])
  assert.deepEqual(latest().types, ["response.create"])
})

test("a refusal that finds a cancel is not tried again", () => {
  const { answer, seen, stream } = started()
  answer.cancel()
  latest().say(refusal(stream, "no_worker", 503))
  mock.timers.tick(10_000)
  assert.deepEqual(seen.events, ["no_worker"])
  assert.deepEqual(latest().types, ["response.create"])
})

test("a cancel that was refused for a passing reason is repeated alone", () => {
  const { answer, stream, seen } = started()
  latest().say(created(stream))
  answer.cancel()
  latest().say({ type: "error", status: 503, error: { code: "broker_unavailable" }, event_id: stream })
  mock.timers.tick(1_000)
  assert.deepEqual(latest().types, ["response.create", "response.cancel", "response.cancel"])
  latest().say({ type: "error", status: 404, error: { code: "response_not_found" }, event_id: stream })
  mock.timers.tick(10_000)
  assert.equal(latest().types.filter((type) => type === "response.cancel").length, 2)
  assert.deepEqual(seen.events, ["response.created"])
})

test("a passing refusal is tried again for a minute, and then told", () => {
  const { seen, stream } = started()
  for (let waitedMs = 0; seen.events.length === 0; waitedMs += 6_000) {
    assert.ok(waitedMs < 120_000)
    latest().say(refusal(stream, "no_worker", 503))
    mock.timers.tick(6_000)
  }
  assert.ok(seen.waits.length >= 9)
  assert.deepEqual(seen.events, ["no_worker"])
  assert.equal(latest().types.filter((type) => type === "response.create").length, seen.waits.length + 1)
})

test("a passing refusal of a resume leaves the answer where it stands", () => {
  const { seen, stream } = started()
  latest().say(created(stream), delta(stream, 1002, "A"))
  latest().drop()
  const socket = reconnected()
  socket.say(refusal(stream, "broker_unavailable", 503))
  mock.timers.tick(1_000)
  assert.deepEqual(socket.types.slice(0, 2), ["response.resume", "response.resume"])
  socket.say(delta(stream, 2000, "B"))
  assert.deepEqual(seen.events, ["response.created", "A", "B"])
  assert.deepEqual(seen.waits, ["broker_unavailable"])
})

test("a refusal that waits is not sent twice when the connection breaks meanwhile", () => {
  const { stream } = started()
  latest().say(refusal(stream, "queue_full", 429))
  latest().drop()
  mock.timers.tick(1)
  latest().accept()
  mock.timers.tick(10_000)
  assert.deepEqual(latest().types, ["response.create"])
})

test("other refusals end the answer", () => {
  for (const [code, status] of [["model_not_found", 404], ["response_not_found", 404], ["internal_error", 500]]) {
    const { seen, stream } = started()
    latest().say(refusal(stream, code, status))
    mock.timers.tick(10_000)
    assert.deepEqual(seen.events, [code])
    assert.equal(latest().types.filter((type) => type !== "ping").length, 1)
  }
})

test("a gateway that goes away is left only for one that is there", () => {
  const { seen, stream } = started()
  const old = latest()
  mock.timers.tick(5_000)
  old.say(created(stream), { type: "session.going_away", time_left_ms: 20_000 })
  mock.timers.tick(0)
  assert.equal(sockets.length, 2)
  old.say(delta(stream, 1002, "A"))
  assert.equal(old.closed, false)
  latest().accept()
  assert.equal(old.closed, true)
  assert.equal(latest().sent[0].starting_after, 1002)
  old.say(delta(stream, 2000, "B"))
  latest().say(delta(stream, 3000, "BC"))
  assert.deepEqual(seen.events, ["response.created", "A", "BC"])
  assert.deepEqual(seen.states, ["connecting", "connected", "leaving", "connected"])
})

test("a gateway that greets with going away is not asked in a tight loop", () => {
  started()
  mock.timers.tick(5_000)
  latest().say({ type: "session.going_away", time_left_ms: 20_000 })
  let greeted = 1
  for (let waitedMs = 0; waitedMs < 10_000; waitedMs += 10) {
    mock.timers.tick(10)
    if (sockets.length === greeted) continue
    greeted = sockets.length
    latest().accept()
    latest().say({ type: "session.going_away", time_left_ms: 10_000 })
  }
  assert.ok(greeted >= 6)
  assert.ok(greeted <= 9)
  assert.equal(sockets.filter((socket) => !socket.closed).length, 1)
})

test("a successor that does not come up is tried again while the old one serves", () => {
  const { seen, stream } = started()
  const old = latest()
  mock.timers.tick(5_000)
  old.say(created(stream), { type: "session.going_away", time_left_ms: 20_000 })
  mock.timers.tick(0)
  latest().drop()
  old.say(delta(stream, 1002, "A"))
  reconnected()
  latest().say(delta(stream, 2000, "B"))
  assert.deepEqual(seen.events, ["response.created", "A", "B"])
  assert.ok(!seen.states.includes("offline"))
})

test("a close with 44xx is final", () => {
  const { client, seen } = started()
  latest().drop(4403, "Pages of other origins may not use this gateway.")
  mock.timers.tick(60_000)
  client.wake()
  assert.equal(sockets.length, 1)
  assert.deepEqual(seen.events, ["forbidden"])
  assert.equal(seen.states.at(-1), "refused")
  assert.throws(() => client.respond({ input: "Hello" }, recorder(seen)))
})

test("a token goes with each connection, and one that is not taken is told", () => {
  const states = []
  const tokens = ["old", "new"]
  const client = new HeadraceClient("ws://gateway", {
    token: () => tokens.shift(),
    onState: (state) => states.push(state),
  })
  const events = []
  latest().accept()
  client.respond({ input: "Hello" }, { onEvent: (event) => events.push(event.error.code) })
  latest().drop()
  mock.timers.tick(10_000)
  assert.deepEqual(
    sockets.map(({ protocols }) => protocols),
    [["headrace.v1", "headrace.token.old"], ["headrace.v1", "headrace.token.new"]],
  )
  latest().drop(4401, "The key was revoked.")
  assert.deepEqual(states.at(-1), { name: "refused", reason: "The key was revoked.", code: "invalid_api_key" })
  assert.deepEqual(events, ["invalid_api_key"])
})

test("a server with too much to do is left alone for as long as it asks", () => {
  const { seen, stream } = started()
  const busy = (seconds) => ({
    ...refusal(stream, "queue_full", 429),
    error: { code: "queue_full", headers: { "retry-after": String(seconds) } },
  })
  latest().say(busy(20))
  mock.timers.tick(19_999)
  assert.deepEqual(latest().types.filter((type) => type === "response.create").length, 1)
  mock.timers.tick(1)
  assert.deepEqual(latest().types.filter((type) => type === "response.create").length, 2)
  latest().say(busy(90)) // beyond the minute: told at once
  assert.deepEqual(seen.events, ["queue_full"])
})

test("the place in the queue is told as often as it changes, until something follows it", () => {
  const { client } = started()
  const places = []
  const answer = client.respond({ input: "Hi" }, { onEvent: ({ type, position }) => places.push([type, position]) })
  const { id } = answer.checkpoint()
  const queued = (position) => ({ type: "response.queued", sequence_number: 1, position, stream_id: id })
  latest().say(created(id), queued(3), queued(2))
  latest().say({ type: "response.in_progress", sequence_number: 2, stream_id: id }, queued(1))
  assert.deepEqual(places.slice(1), [["response.queued", 3], ["response.queued", 2], ["response.in_progress", undefined]])
})

test("a connection without a sign of life is given up", () => {
  started()
  mock.timers.tick(15_000)
  latest().say({ type: "pong" })
  mock.timers.tick(15_000)
  assert.deepEqual(latest().types, ["response.create", "ping", "ping"])
  assert.equal(sockets.length, 1)
  mock.timers.tick(10_001)
  assert.equal(sockets[0].closed, true)
  assert.equal(sockets.length, 2)
})

test("a wake asks a connection for a sign of life, and ends a wait for one", () => {
  const { client } = started()
  client.wake()
  assert.deepEqual(latest().types, ["response.create", "ping"])
  for (let attempt = 0; attempt < 8; attempt += 1) {
    latest().drop()
    if (attempt < 7) mock.timers.tick(20_000)
  }
  const before = sockets.length
  client.wake()
  assert.equal(sockets.length, before + 1)
})

test("an error that belongs to no answer is told, a passing one is not", () => {
  const { seen } = started()
  latest().say({ type: "error", status: 403, error: { code: "forbidden" } })
  latest().say({ type: "error", status: 429, error: { code: "too_many_connections" } })
  assert.deepEqual(seen.notices, ["forbidden"])
})

test("a checkpoint goes on in another page", () => {
  const { client, answer, seen, stream } = started()
  latest().say(created(stream), delta(stream, 1002, "A"))
  const checkpoint = JSON.parse(JSON.stringify(answer.checkpoint()))
  client.close()
  const next = new HeadraceClient("ws://gateway")
  const resumed = next.resume(checkpoint, recorder(seen))
  latest().accept()
  assert.equal(latest().sent[0].starting_after, 1002)
  latest().say(delta(stream, 2000, "B"), completed(stream, 3001))
  assert.deepEqual(seen.events, ["response.created", "A", "B", "response.completed"])
  assert.equal(resumed.checkpoint().cursor, 3001)
})

test("a checkpoint of an answer not yet accepted may exist on a server, so its cancel is sent", () => {
  const { client, answer, seen } = started()
  const checkpoint = answer.checkpoint()
  client.close()
  const resumed = new HeadraceClient("ws://gateway").resume(checkpoint, recorder(seen))
  resumed.cancel()
  latest().accept()
  latest().say(created(checkpoint.id))
  assert.deepEqual(latest().types, ["response.create", "response.cancel"])
})

test("a closed client is silent", () => {
  const { client, seen } = started()
  client.close()
  assert.equal(latest().closed, true)
  mock.timers.tick(120_000)
  assert.equal(sockets.length, 1)
  assert.deepEqual(seen.events, [])
})

test("events without a number are delivered and move nothing", () => {
  const delivery = new Delivery({ params: {} })
  delivery.open()
  delivery.receive(created(delivery.id), 0)
  const position = { type: "response.queued", position: 3, stream_id: delivery.id }
  assert.equal(delivery.receive(position, 0).deliver, position)
  assert.equal(delivery.checkpoint.cursor, 0)
})
