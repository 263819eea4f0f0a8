// Owns the state of one conversation: its turns, and the one answer that may be under way. It turns what
// the user does into protocol events, and protocol events into state. It must not know sockets or the DOM;
// the time comes in as an argument (milliseconds, any steady clock).

/**
 * An answer goes through the phases
 *   sent -> queued -> working -> streaming -> one of ENDED
 * and may skip any but the last.
 */
export const ENDED = new Set(["completed", "truncated", "stopped", "interrupted", "failed"])

const newConversationId = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return "conv_" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}

const newAnswer = (question, model) => ({
  role: "assistant",
  question,
  model,
  phase: "sent",
  text: "",
  position: null,
  etaMs: null,
  error: null,
  reason: null, // why a truncated answer ended: "max_output_tokens", "deadline", …
  forgetful: false, // the conversation's memory was away, and the answer knows only its own question
  meta: null,
})

export class Chat {
  conversation = newConversationId()
  turns = []
  // The answer under way, or null. It outlives `reset` until its end has come, since a connection
  // carries one response at a time.
  active = null
  #responseId = null
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
    this.#responseId = null
    this.#stopRequested = false
    this.#sentMs = nowMs
    this.#firstMs = 0
    this.#lastMs = 0
    return { type: "response.create", model, input: text, conversation: this.conversation, stream: true }
  }

  /** Returns the event to send, or null where there is nothing to cancel yet or any more. */
  stop() {
    if (this.active === null || this.#stopRequested) return null
    this.#stopRequested = true
    return this.#cancel()
  }

  /** A new, empty conversation. Returns the event to send for an answer still under way, or null. */
  reset() {
    this.conversation = newConversationId()
    this.turns = []
    return this.stop()
  }

  /** The connection is gone, and the answer under way with it. */
  lost() {
    if (this.active !== null) this.#end("interrupted")
  }

  /**
   * A server event. Returns {reply, notice}: an event to send or null, and an error that belongs to no
   * answer or null.
   */
  receive(event, nowMs) {
    const nothing = { reply: null, notice: null }
    if (event.type === "error") return { reply: null, notice: this.#refused(event.error) }
    const answer = this.active
    if (answer === null) return nothing
    switch (event.type) {
      case "response.created":
        this.#responseId = event.response.id
        return { reply: this.#stopRequested ? this.#cancel() : null, notice: null }
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
    return this.#responseId === null ? null : { type: "response.cancel", response_id: this.#responseId }
  }

  #refused(error) {
    // An accepted response ends in a terminal event and in nothing else; before that, an error is its end.
    if (this.active === null || this.#responseId !== null) return error
    this.active.error = error
    this.#end("failed")
    return null
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
