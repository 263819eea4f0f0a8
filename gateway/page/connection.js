// Owns the WebSocket: connecting, heartbeat, and reconnecting with jittered exponential backoff.
// It carries JSON objects and must not know what they mean (only `ping` and `pong`), nor any DOM.

const CONNECT_TIMEOUT_MS = 10_000
const PING_EVERY_MS = 15_000
const PONG_WITHIN_MS = 10_000
const BACKOFF_FIRST_MS = 500
const BACKOFF_MAX_MS = 15_000
// A connection that lived this long was a good one: the next loss starts the backoff anew.
const STABLE_AFTER_MS = 5_000

/**
 * States, given to `onState`:
 *   {name: "connecting"} | {name: "connected"} | {name: "offline", retryAtMs} | {name: "refused", reason}
 * `retryAtMs` is on the clock of Date.now(). "refused" is final: the server closed with a code of 44xx.
 */
export class Connection {
  #url
  #onState
  #onEvent
  #socket = null
  #failures = 0
  #openedAtMs = 0
  #lastHeardMs = 0
  #timers = { connect: 0, ping: 0, pong: 0, retry: 0 }
  #state = { name: "connecting" }

  constructor(url, { onState, onEvent }) {
    this.#url = url
    this.#onState = onState
    this.#onEvent = onEvent
  }

  get state() {
    return this.#state
  }

  open() {
    this.#clearTimers()
    this.#setState({ name: "connecting" })
    const socket = new WebSocket(this.#url)
    this.#socket = socket
    // A socket that was given up may still report; only the present one counts.
    const current = (handle) => (event) => {
      if (socket === this.#socket) handle(event)
    }
    socket.onopen = current(() => this.#opened())
    socket.onmessage = current((event) => this.#heard(event.data))
    socket.onclose = current((event) => this.#lost(event.code, event.reason))
    this.#timers.connect = setTimeout(() => this.#giveUp(), CONNECT_TIMEOUT_MS)
  }

  /** Sends one event. Returns false, and sends nothing, unless connected. */
  send(event) {
    if (this.#state.name !== "connected") return false
    this.#socket.send(JSON.stringify(event))
    return true
  }

  /** Ends a wait for the next attempt: the network came back, or the reader did. */
  retryNow() {
    if (this.#state.name === "offline") this.open()
  }

  /** Moves to a new connection at once, for a server that said it is going away. */
  renew() {
    if (this.#state.name !== "connected") return
    this.#abandon()
    this.open()
  }

  #opened() {
    clearTimeout(this.#timers.connect)
    this.#openedAtMs = Date.now()
    this.#setState({ name: "connected" })
    this.#timers.ping = setInterval(() => this.#ping(), PING_EVERY_MS)
  }

  #ping() {
    const sentAtMs = Date.now()
    this.send({ type: "ping" })
    clearTimeout(this.#timers.pong)
    this.#timers.pong = setTimeout(() => {
      // Anything heard since is as good as a pong.
      if (this.#lastHeardMs < sentAtMs) this.#giveUp()
    }, PONG_WITHIN_MS)
  }

  #heard(data) {
    this.#lastHeardMs = Date.now()
    const event = JSON.parse(data)
    if (event.type !== "pong") this.#onEvent(event)
  }

  #giveUp() {
    this.#abandon()
    this.#lost(1006, "")
  }

  #abandon() {
    const socket = this.#socket
    this.#socket = null
    socket.close()
  }

  #lost(code, reason) {
    const wasConnected = this.#state.name === "connected"
    this.#clearTimers()
    this.#socket = null
    if (code >= 4400 && code < 4500) {
      this.#setState({ name: "refused", reason })
      return
    }
    if (wasConnected && Date.now() - this.#openedAtMs >= STABLE_AFTER_MS) this.#failures = 0
    const ceilingMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** this.#failures)
    // Half fixed, half random: never at once, and never in step with the other clients of a dead gateway.
    const delayMs = ceilingMs * (0.5 + 0.5 * Math.random())
    this.#failures += 1
    this.#timers.retry = setTimeout(() => this.open(), delayMs)
    this.#setState({ name: "offline", retryAtMs: Date.now() + delayMs })
  }

  #clearTimers() {
    clearTimeout(this.#timers.connect)
    clearInterval(this.#timers.ping)
    clearTimeout(this.#timers.pong)
    clearTimeout(this.#timers.retry)
  }

  #setState(state) {
    this.#state = state
    this.#onState(state)
  }
}
