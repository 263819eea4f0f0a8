// Owns the state of one conversation: its turns, and the one answer that may be under way. It turns what
// the user says into requests, and protocol events into state. It must not know connections or the DOM;
// the time comes in as an argument (milliseconds, any steady clock).

import { newId } from "./headrace.js"

/**
 * An answer goes through the phases
 *   sent -> queued -> working -> streaming -> one of ENDED
 * and may skip any but the last.
 */
export const ENDED = new Set(["completed", "truncated", "stopped", "interrupted", "failed"])

const GONE = "response_not_found" // to a resume: no gateway holds the rest
const TEMPERATURE = 0.3 // for chat; the API's own default of 1 makes small models ramble

const newAnswer = (question, model) => ({
  role: "assistant",
  question,
  model,
  phase: "sent",
  waiting: false, // the service cannot take or continue it just now, and is asked again
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
  #stopRequested = false
  #sentMs = null // null: by an earlier load of the page
  #firstMs = 0
  #lastMs = 0

  get busy() {
    return this.active !== null
  }

  get stopping() {
    return this.#stopRequested
  }

  /** A new user turn. Returns the request, whose events are those of `active`. */
  ask(text, model, nowMs) {
    this.turns.push({ role: "user", text })
    return this.#begin(text, model, nowMs)
  }

  /** Asks the question of an ended answer again, in its place. Returns the request. */
  retry(answer, model, nowMs) {
    this.turns.splice(this.turns.indexOf(answer), 1)
    return this.#begin(answer.question, model, nowMs)
  }

  #begin(text, model, nowMs) {
    this.active = newAnswer(text, model)
    this.turns.push(this.active)
    this.#follow(nowMs, false)
    return { model, input: text, conversation: this.conversation, temperature: TEMPERATURE }
  }

  #follow(sentMs, stopRequested) {
    this.#stopRequested = stopRequested
    this.#sentMs = sentMs
    this.#firstMs = 0
    this.#lastMs = 0
  }

  /** The answer under way shall end; its last event tells when it has. */
  stop() {
    this.#stopRequested = this.busy
  }

  /** A new, empty conversation. */
  reset() {
    this.conversation = newId("conv_")
    this.turns = []
    this.active = null
    this.#stopRequested = false
  }

  /** The answer's request was refused for a passing reason, and will be repeated. */
  refused(answer) {
    answer.waiting = true
  }

  /** A server event of that answer. Those of one that was left behind change nothing. */
  receive(answer, event, nowMs) {
    if (answer !== this.active) return
    answer.waiting = false
    switch (event.type) {
      case "error":
        answer.error = event.error
        this.#endEarly(event.error.code === GONE ? "interrupted" : "failed")
        return
      case "response.queued":
        answer.phase = "queued"
        answer.position = event.position ?? null
        answer.etaMs = event.eta_ms ?? null
        return
      case "response.in_progress":
        answer.phase = "working"
        return
      case "response.output_text.delta":
        answer.phase = "streaming"
        answer.text += event.delta
        this.#firstMs ||= nowMs
        this.#lastMs = nowMs
        return
      case "response.completed":
        this.#end("completed", event)
        return
      case "response.incomplete": {
        const reason = event.response.incomplete_details?.reason
        // Cancelled, and not from here: by the server, for want of a reader.
        this.#endEarly(reason === "cancelled" ? "interrupted" : "truncated", event)
        return
      }
      case "response.failed":
        answer.error = event.response.error
        this.#end("failed", event)
        return
      default: // the structural events of the protocol, which a page of plain text has no use for
        return
    }
  }

  /** Whatever ends an answer that was told to stop, it was stopped. */
  #endEarly(phase, event) {
    this.#end(this.#stopRequested ? "stopped" : phase, event)
  }

  #end(phase, event) {
    const answer = this.active
    const outputTokens = event?.response.usage?.output_tokens ?? null
    const timings = event?.response.timings ?? {}
    const decodeMs = timings.decode_ms || (this.#sentMs === null ? 0 : this.#lastMs - this.#firstMs)
    answer.phase = phase
    answer.reason = event?.response.incomplete_details?.reason ?? null
    answer.forgetful = event?.response.memory === "unavailable"
    answer.meta = {
      ttftMs: this.#firstMs && this.#sentMs !== null ? this.#firstMs - this.#sentMs : null,
      outputTokens,
      // The first token is the prefill's: the rest came during the decode.
      tokensPerS: outputTokens > 1 && decodeMs > 0 ? ((outputTokens - 1) * 1000) / decodeMs : null,
      timings,
    }
    this.active = null
    this.#stopRequested = false
  }

  /** What a reload of the page needs. `checkpoint`: where the answer under way stands, or null. */
  save(checkpoint) {
    return { conversation: this.conversation, turns: this.turns, checkpoint }
  }

  /** Returns the checkpoint to go on from, whose events are those of `active`, or null. */
  restore({ conversation, turns, checkpoint }) {
    this.conversation = conversation
    this.turns = turns
    if (checkpoint === null) return null
    this.active = turns.at(-1)
    this.#follow(null, checkpoint.cancelled)
    return checkpoint
  }
}
