// A gateway's client for any web page; no build step, no dependencies:
//
//   import { HeadraceClient } from "https://gateway.example/assets/headrace.js"
//   const client = new HeadraceClient("wss://gateway.example/v1/responses")
//   const answer = client.respond({ input: "Hello" }, { onEvent: (event) => console.log(event) })
//   answer.cancel()
//
// Owns the connection, and that each answer's events arrive once and in order whatever breaks on the way.
// It must not know any DOM, nor of an event more than its type, its number and whose it is.

const CONNECT_TIMEOUT_MS = 10_000
const PING_EVERY_MS = 15_000
const PONG_WITHIN_MS = 10_000
const RECONNECT = { firstMs: 250, maxMs: 8_000 }
const REFUSED = { firstMs: 250, maxMs: 5_000 }
// A connection that lived this long was a good one: the next loss starts the backoff anew.
const STABLE_AFTER_MS = 2_000
const GIVE_UP_AFTER_MS = 60_000
const PASSING = new Set([429, 503]) // statuses of refusals that another try may not meet
const LAST = new Set(["response.completed", "response.incomplete", "response.failed"])

// crypto.randomUUID would need a secure context, which plain HTTP from another machine is not.
export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}

/** Half fixed, half random: clients of a dead gateway do not come back in step. */
function backoffMs({ firstMs, maxMs }, tries) {
  return Math.min(maxMs, firstMs * 2 ** tries) * (0.5 + 0.5 * Math.random())
}

/**
 * The state of one response on its way here. Pure: events and the time (milliseconds) come in, what to do
 * comes out. `id` names it on every connection, as its stream_id and its idempotency_key.
 */
export class Delivery {
  #following = false // the present connection was asked for its events
  #mayExist // it was sent, and not refused since
  #troubleSinceMs = null
  #tries = 0

  constructor({ id = newId("stream_"), params, responseId = null, cursor = -1, cancelled = false }, sent = false) {
    this.id = id
    this.params = params
    this.responseId = responseId
    this.cursor = cursor
    this.cancelled = cancelled
    this.#mayExist = sent
  }

  /** All that another page needs to go on from here. */
  get checkpoint() {
    const { id, params, responseId, cursor, cancelled } = this
    return { id, params, responseId, cursor, cancelled }
  }

  /** There is a connection. Returns the events to send. */
  open() {
    this.#following = true
    this.#mayExist = true
    if (this.responseId === null) {
      // Sent twice, the key makes it one response.
      return [{ ...this.params, type: "response.create", stream_id: this.id, idempotency_key: this.id }]
    }
    const { id, responseId, cursor } = this
    const resume = { type: "response.resume", response_id: responseId, starting_after: cursor, stream_id: id }
    return [resume, ...this.#cancelling()]
  }

  /** The connection is gone. */
  lost() {
    this.#following = false
    this.#troubleSinceMs = null
    this.#tries = 0
  }

  /** Returns the events to send, where there is a connection. */
  retry() {
    return this.#following ? this.#cancelling() : this.open()
  }

  /** Returns {send} or, where no server can know of the response, {deliver, ended}. */
  cancel() {
    if (this.cancelled) return { send: [] }
    this.cancelled = true
    if (this.#mayExist) return { send: this.#following ? this.#cancelling() : [] }
    const error = { code: "cancelled", message: "Cancelled before it was accepted." }
    return { deliver: { type: "error", stream_id: this.id, error }, ended: true }
  }

  /**
   * A server event of this response. Returns what to do, each where it applies: `deliver` an event, `send`
   * events, `retry` later what was refused ({tries, error}: how often before, and why), and whether it `ended`.
   */
  receive(event, nowMs) {
    if (event.type === "error") return this.#refused(event, nowMs)
    const isPosition = event.type === "response.queued" && event.sequence_number === this.cursor // it moved up
    if (event.sequence_number <= this.cursor && !isPosition) return {}
    this.cursor = event.sequence_number ?? this.cursor
    this.#troubleSinceMs = null
    this.#tries = 0
    if (event.type !== "response.created") return { deliver: event, ended: LAST.has(event.type) }
    this.responseId = event.response.id
    return { deliver: event, send: this.#cancelling() }
  }

  /** What the server refused is the request for events or, where only event_id tells whose, a cancel. */
  #refused(event, nowMs) {
    const ofCancel = event.stream_id === undefined
    this.#troubleSinceMs ??= nowMs
    const passing = PASSING.has(event.status) && nowMs - this.#troubleSinceMs < GIVE_UP_AFTER_MS
    const retry = { tries: this.#tries, error: event.error }
    this.#tries += 1
    if (ofCancel) return passing ? { retry } : {} // else over by now, or unknown: the events tell which
    this.#following = false
    if (this.responseId === null) this.#mayExist = false
    const unwanted = this.cancelled && !this.#mayExist
    return passing && !unwanted ? { retry } : { deliver: event, ended: true }
  }

  #cancelling() {
    if (!this.cancelled || this.responseId === null) return []
    return [{ type: "response.cancel", event_id: this.id, response_id: this.responseId }]
  }
}

/** One WebSocket with its heartbeat. Reports `onOpen()`, `onEvent(event)`, and once `onLost(code, reason)`. */
class Link {
  openedAtMs = 0
  #socket
  #on
  #lastHeardMs = 0
  #connectTimer
  #pingTimer = 0
  #pongTimer = 0

  constructor(url, on) {
    this.#on = on
    this.#socket = new WebSocket(url)
    this.#socket.onopen = () => this.#opened()
    this.#socket.onmessage = (event) => this.#heard(event.data)
    this.#socket.onclose = (event) => this.#lost(event.code, event.reason)
    this.#connectTimer = setTimeout(() => this.#lost(1006, ""), CONNECT_TIMEOUT_MS)
  }

  send(event) {
    this.#socket.send(JSON.stringify(event))
  }

  /** Asks for a sign of life; without one in time the link counts as lost. */
  ping() {
    const sentAtMs = Date.now()
    this.send({ type: "ping" })
    clearTimeout(this.#pongTimer)
    this.#pongTimer = setTimeout(() => {
      // Anything heard since is as good as a pong.
      if (this.#lastHeardMs < sentAtMs) this.#lost(1006, "")
    }, PONG_WITHIN_MS)
  }

  /** Nothing is reported any more. */
  close() {
    clearTimeout(this.#connectTimer)
    clearInterval(this.#pingTimer)
    clearTimeout(this.#pongTimer)
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null
    this.#socket.close()
  }

  #opened() {
    clearTimeout(this.#connectTimer)
    this.openedAtMs = Date.now()
    this.#pingTimer = setInterval(() => this.ping(), PING_EVERY_MS)
    this.#on.onOpen()
  }

  #heard(data) {
    this.#lastHeardMs = Date.now()
    const event = JSON.parse(data)
    if (event.type !== "pong") this.#on.onEvent(event)
  }

  #lost(code, reason) {
    this.close()
    this.#on.onLost(code, reason)
  }
}

/**
 * Any number of responses on one connection to `url`, which is opened at once and again whenever it is lost.
 *   onState(state): {name: "connecting"} | {name: "connected"} | {name: "offline", retryAtMs}
 *     | {name: "refused", reason}. `retryAtMs` is on the clock of Date.now(). "refused" is final: the server
 *     closed with a code of 44xx, and every answer has ended with the error `forbidden`.
 *   onNotice(error): a refusal that belongs to no answer.
 */
export class HeadraceClient {
  #url
  #onState
  #onNotice
  #link = null // in use
  #next = null // being opened, to become the link
  #retryTimer = null
  #retryAtMs = 0
  #failures = 0
  #closed = false
  #streams = new Map() // id -> {delivery, onEvent, onWaiting, timer}

  constructor(url, { onState = () => {}, onNotice = () => {} } = {}) {
    this.#url = url
    this.#onState = onState
    this.#onNotice = onNotice
    this.#connect()
  }

  /**
   * Creates a response; `params` are those of `response.create`. Returns
   *   cancel(): ends it, now or as soon as there is a connection; its events tell when;
   *   checkpoint(): plain data for `resume`, after a reload too, to go on behind the last event delivered.
   * Handlers:
   *   onEvent(event): each event once and in order. The last is response.completed, .incomplete or .failed,
   *     or an `error` event: refused, or (`response_not_found`) no gateway holds the rest any more.
   *   onWaiting(error): refused for a passing reason, and asked for again by itself, for a minute at most.
   */
  respond(params, handlers) {
    return this.#begin(new Delivery({ params }), handlers)
  }

  /** Goes on with the response of a checkpoint; the rest as for `respond`. */
  resume(checkpoint, handlers) {
    return this.#begin(new Delivery(checkpoint, true), handlers)
  }

  /** The network came back, or the reader did: tries at once, or checks that the connection lives. */
  wake() {
    if (this.#link !== null) this.#link.ping()
    else if (this.#next === null && !this.#closed) this.#connect()
  }

  /** For good. Answers under way are left; the server goes on with them for its grace time. */
  close() {
    this.#closed = true
    clearTimeout(this.#retryTimer)
    for (const link of [this.#link, this.#next]) link?.close()
    this.#link = this.#next = null
    this.#streams.clear()
  }

  #begin(delivery, { onEvent, onWaiting = () => {} }) {
    if (this.#closed) throw new Error("this client is closed")
    const stream = { delivery, onEvent, onWaiting, timer: 0 }
    this.#streams.set(delivery.id, stream)
    if (this.#link !== null) this.#send(delivery.open())
    return {
      cancel: () => {
        if (this.#streams.has(delivery.id)) this.#do(stream, delivery.cancel())
      },
      checkpoint: () => delivery.checkpoint,
    }
  }

  #send(events) {
    for (const event of events) this.#link?.send(event)
  }

  #do(stream, { deliver, send = [], retry, ended = false }) {
    this.#send(send)
    if (ended) this.#forget(stream)
    if (deliver !== undefined) stream.onEvent(deliver)
    if (retry === undefined) return
    clearTimeout(stream.timer)
    stream.timer = setTimeout(() => {
      if (this.#link !== null) this.#send(stream.delivery.retry())
    }, backoffMs(REFUSED, retry.tries))
    stream.onWaiting(retry.error)
  }

  #forget(stream) {
    clearTimeout(stream.timer)
    this.#streams.delete(stream.delivery.id)
  }

  #received(event) {
    const { type, status, stream_id, event_id } = event
    const stream = this.#streams.get(stream_id ?? event_id)
    if (stream !== undefined) this.#do(stream, stream.delivery.receive(event, Date.now()))
    else if (type === "session.going_away") this.#reconnect(this.#link)
    else if (type === "error" && (stream_id ?? event_id) === undefined && !PASSING.has(status)) {
      this.#onNotice(event.error)
    }
  }

  #connect() {
    clearTimeout(this.#retryTimer)
    this.#retryTimer = null
    const link = new Link(this.#url, {
      onOpen: () => this.#opened(link),
      onEvent: (event) => this.#received(event),
      onLost: (code, reason) => this.#lost(link, code, reason),
    })
    this.#next = link
    if (this.#link === null) this.#onState({ name: "connecting" })
  }

  /** The new link takes over, and only then is one that is still alive given up. */
  #opened(link) {
    const before = this.#link
    this.#link = link
    this.#next = null
    before?.close()
    for (const { delivery } of this.#streams.values()) this.#send(delivery.open())
    this.#onState({ name: "connected" })
  }

  #lost(link, code, reason) {
    if (link === this.#next) this.#next = null
    else {
      this.#link = null
      for (const { delivery } of this.#streams.values()) delivery.lost()
    }
    if (code >= 4400 && code < 4500) this.#refuse(reason)
    else this.#reconnect(link)
  }

  /** After a good connection at once, then ever later. */
  #reconnect(after) {
    const wasGood = after.openedAtMs > 0 && Date.now() - after.openedAtMs >= STABLE_AFTER_MS
    if (wasGood) this.#failures = 0
    if (this.#next === null && (wasGood || this.#retryTimer === null)) {
      const waitMs = this.#failures === 0 ? 0 : backoffMs(RECONNECT, this.#failures - 1)
      this.#failures += 1
      this.#retryAtMs = Date.now() + waitMs
      clearTimeout(this.#retryTimer)
      this.#retryTimer = setTimeout(() => this.#connect(), waitMs)
    }
    if (this.#link !== null) return
    const waits = this.#next === null
    this.#onState(waits ? { name: "offline", retryAtMs: this.#retryAtMs } : { name: "connecting" })
  }

  #refuse(reason) {
    const streams = [...this.#streams.values()]
    this.close()
    this.#onState({ name: "refused", reason })
    for (const { delivery, onEvent } of streams) {
      onEvent({ type: "error", stream_id: delivery.id, error: { code: "forbidden", message: reason } })
    }
  }
}
