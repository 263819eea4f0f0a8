// Owns the state of one conversation: its turns, and the one answer that may be under way. It turns what
// the user does into protocol events, and protocol events into state. It must not know sockets or the DOM;
// the time comes in as an argument (milliseconds, any steady clock).

/**
 * An answer goes through the phases
 *   sent -> queued -> working -> streaming -> one of ENDED
 * and may skip any but the last.
 */
export const ENDED = new Set(["completed", "truncated", "stopped", "interrupted", "failed"])

const newId = (prefix) => {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}

const TEMPERATURE = 0.3 // for chat; the API's own default of 1 makes small models ramble

// Errors to a cancel carry its event_id, and are no news: the response is over, or unknown by now.
const CANCEL = "cancel"
const cancelOf = (responseId) => ({ type: "response.cancel", event_id: CANCEL, response_id: responseId })

const newAnswer = (question, model) => ({
  role: "assistant",
  id: newId("lane_"), // the protocol's stream_id: every event and error of this answer carries it
  responseId: null,
  question,
  model,
  phase: "sent",
  text: "",
  position: null,
  etaMs: null,
  error: null,
  reason: null, // why a truncated answer ended: "max_output_tokens", …
  forgetful: false, // the conversation's memory was away, and the answer knows only its own question
  meta: null,
})

export class Chat {
  conversation = newId("conv_")
  turns = []
  active = null // the answer under way
  #abandoned = new Set() // ids of answers dropped before the server had named their responses
  #stopRequested = false
  #sentMs = 0
  #firstMs = 0
  #lastMs = 0

  get busy() {
    return this.active !== null
  }

  get stopping() {
    return this.#stopRequested
  }

  /** A new user turn. Returns the event to send. */
  ask(text, model, nowMs) {
    this.turns.push({ role: "user", text })
    return this.#begin(text, model, nowMs)
  }

  /** Asks the question of an ended answer again, in its place. Returns the event to send. */
  retry(answer, model, nowMs) {
    this.turns.splice(this.turns.indexOf(answer), 1)
    return this.#begin(answer.question, model, nowMs)
  }

  #begin(text, model, nowMs) {
    this.active = newAnswer(text, model)
    this.turns.push(this.active)
    this.#stopRequested = false
    this.#sentMs = nowMs
    this.#firstMs = 0
    this.#lastMs = 0
    const { conversation, active } = this
    const request = { model, input: text, conversation, temperature: TEMPERATURE }
    return { type: "response.create", ...request, stream_id: active.id, stream: true }
  }

  /** Returns the event to send, or null where there is nothing to cancel yet or any more. */
  stop() {
    if (this.active === null || this.#stopRequested) return null
    this.#stopRequested = true
    return this.#cancel()
  }

  /** A new, empty conversation. Returns the event to send for an answer still under way, or null. */
  reset() {
    const cancel = this.stop()
    if (this.active?.responseId === null) this.#abandoned.add(this.active.id)
    this.conversation = newId("conv_")
    this.turns = []
    this.active = null
    this.#stopRequested = false
    return cancel
  }

  /**
   * There is a new connection. The server goes on with an answer whose connection was lost, and no other
   * turn of its conversation may begin meanwhile. Returns the event to send, or null.
   */
  connected() {
    const last = this.turns.at(-1)
    if (last?.phase !== "interrupted" || last.responseId === null) return null
    const cancel = cancelOf(last.responseId)
    last.responseId = null
    return cancel
  }

  /** The connection is gone, and the answer under way with it. */
  lost() {
    this.#abandoned.clear()
    if (this.active !== null) this.#end("interrupted")
  }

  /**
   * A server event. Returns {reply, notice}: an event to send or null, and an error that belongs to no
   * answer or null.
   */
  receive(event, nowMs) {
    const nothing = { reply: null, notice: null }
    const answer = this.active
    if (answer === null || event.stream_id !== answer.id) return { ...nothing, ...this.#stray(event) }
    switch (event.type) {
      case "error":
        answer.error = event.error
        this.#end("failed")
        return nothing
      case "response.created":
        answer.responseId = event.response.id
        return { ...nothing, reply: this.#stopRequested ? this.#cancel() : null }
      case "response.queued":
        answer.phase = "queued"
        answer.position = event.position ?? null
        answer.etaMs = event.eta_ms ?? null
        return nothing
      case "response.in_progress":
        answer.phase = "working"
        return nothing
      case "response.output_text.delta":
        answer.phase = "streaming"
        answer.text += event.delta
        this.#firstMs ||= nowMs
        this.#lastMs = nowMs
        return nothing
      case "response.completed":
        this.#end("completed", event)
        return nothing
      case "response.incomplete": {
        const cancelled = this.#stopRequested || event.response.incomplete_details?.reason === "cancelled"
        this.#end(cancelled ? "stopped" : "truncated", event)
        return nothing
      }
      case "response.failed":
        answer.error = event.response.error
        this.#end("failed", event)
        return nothing
      default: // the structural events of the protocol, which a page of plain text has no use for
        return nothing
    }
  }

  #cancel() {
    return this.active.responseId === null ? null : cancelOf(this.active.responseId)
  }

  /** An event that is not of the answer under way: of the connection as a whole, or of a dropped answer. */
  #stray(event) {
    if (event.type === "response.created" && this.#abandoned.delete(event.stream_id)) {
      return { reply: cancelOf(event.response.id) }
    }
    const ofNoAnswer = event.stream_id === undefined && event.event_id !== CANCEL
    return event.type === "error" && ofNoAnswer ? { notice: event.error } : {}
  }

  #end(phase, event) {
    const answer = this.active
    const outputTokens = event?.response.usage?.output_tokens ?? null
    const timings = event?.response.timings ?? {}
    const decodeMs = timings.decode_ms || this.#lastMs - this.#firstMs
    answer.phase = phase
    answer.reason = event?.response.incomplete_details?.reason ?? null
    answer.forgetful = event?.response.memory === "unavailable"
    answer.meta = {
      ttftMs: this.#firstMs ? this.#firstMs - this.#sentMs : null,
      outputTokens,
      // The first token is the prefill's: the rest came during the decode.
      tokensPerS: outputTokens > 1 && decodeMs > 0 ? ((outputTokens - 1) * 1000) / decodeMs : null,
      timings,
    }
    this.active = null
    this.#stopRequested = false
  }

  /** What a reload of the page needs; an answer under way counts as interrupted. */
  save() {
    const turns = this.turns.map((turn) => (turn === this.active ? { ...turn, phase: "interrupted" } : turn))
    return { conversation: this.conversation, turns }
  }

  restore({ conversation, turns }) {
    this.conversation = conversation
    this.turns = turns
  }
}
