// Owns the state of one conversation: its turns, and the one answer that may be under way. It turns what
// the user says into requests, and protocol events into state. It must not know connections, storage or the
// DOM; the time comes in as an argument (milliseconds, any steady clock; `changedMs`: the wall's).

import { titleOf } from "./conversations.js"
import { newId } from "./headrace.js"

/**
 * An answer goes through the phases
 *   sent -> queued -> working -> thinking -> streaming -> one of ENDED
 * and may skip any but the last.
 */
export const ENDED = new Set(["completed", "truncated", "stopped", "interrupted", "failed"])

const GONE = "response_not_found" // to a resume: no gateway holds the rest
const FORGOTTEN = new Set(["previous_response_not_found", "context_unavailable"])
const TOLD_ROUNDS = 10 // as many as a gateway remembers by default

const newAnswer = (question, { model, instructions }) => ({
  role: "assistant",
  question,
  model, // as asked for, then as served
  instructions,
  responseId: null,
  phase: "sent",
  waiting: null, // the error for which the service was asked again, or null
  reasoning: "",
  reasoningMs: null,
  calls: [], // [{id, name, arguments, done}]
  text: "",
  position: null,
  etaMs: null,
  error: null,
  reason: null, // why a truncated answer ended: "max_output_tokens", …
  meta: null,
})

export class Chat {
  active = null // the answer under way
  #retold = false // its request carries the conversation in words
  #stopRequested = false
  #sentMs = null // null: by an earlier load of the page
  #firstMs = null
  #lastMs = null
  #reasoningSinceMs = null

  /** `record`: what `save` returned. */
  constructor({ id = newId("chat_"), title = "", turns = [], changedMs = 0, checkpoint = null } = {}) {
    this.id = id
    this.title = title
    this.turns = turns
    this.changedMs = changedMs
    if (checkpoint !== null) {
      this.active = turns.at(-1)
      this.#stopRequested = checkpoint.cancelled
    }
  }

  /** What a reload of the page needs. `checkpoint`: where the answer under way stands, or null. */
  save(checkpoint) {
    const { id, title, turns, changedMs } = this
    return { id, title, turns, changedMs, checkpoint }
  }

  get busy() {
    return this.active !== null
  }

  get stopping() {
    return this.#stopRequested
  }

  /** The turn that `again` and `rephrase` are about, or null. */
  get lastQuestion() {
    return this.turns.findLast((turn) => turn.role === "user") ?? null
  }

  /**
   * A new user turn. Returns the request, whose events are those of `active`.
   * `settings`: those of settings.js; `now`: {ms, wallMs}.
   */
  ask(text, settings, now) {
    this.title ||= titleOf(text)
    this.turns.push({ role: "user", text })
    return this.#begin(text, settings, now)
  }

  /** The last question once more; the new answer takes the old one's place. Returns the request. */
  again(settings, now) {
    return this.rephrase(this.lastQuestion.text, settings, now)
  }

  /** The last question in other words, in its place. Returns the request. */
  rephrase(text, settings, now) {
    this.turns.splice(this.turns.indexOf(this.lastQuestion))
    return this.ask(text, settings, now)
  }

  #begin(text, settings, now) {
    const { model, instructions, temperature, maxOutputTokens } = settings
    const previous = this.#previous()
    this.active = newAnswer(text, settings)
    this.turns.push(this.active)
    this.changedMs = now.wallMs
    this.#stopRequested = false
    this.#sentMs = now.ms
    this.#firstMs = this.#lastMs = this.#reasoningSinceMs = null
    // A server keeps the instructions of a conversation that it continues: to drop them, it is told anew.
    this.#retold = previous !== null && previous.instructions !== "" && instructions === ""
    return {
      model,
      input: this.#retold ? this.#told() : text,
      previous_response_id: this.#retold ? undefined : previous?.responseId,
      instructions: instructions || undefined,
      temperature,
      max_output_tokens: maxOutputTokens ?? undefined,
    }
  }

  /** The answer to go on from: the last that a server could remember. */
  #previous() {
    return this.turns.findLast((turn) => turn.responseId && turn.text !== "" && turn.phase !== "failed") ?? null
  }

  /** The conversation in words, the question of `active` at its end. */
  #told() {
    const items = this.turns
      .filter((turn) => turn !== this.active && turn.text !== "")
      .map(({ role, text }) => ({ role, content: text }))
    return items.slice(-(2 * TOLD_ROUNDS + 1))
  }

  /**
   * The service no longer remembers what `active` continues (`error` says so): returns the request with the
   * conversation in words, or null where that is not so or was tried.
   */
  retell(error, request) {
    if (this.#retold || !FORGOTTEN.has(error.code)) return null
    this.#retold = true
    return { ...request, input: this.#told(), previous_response_id: undefined }
  }

  /** The answer under way shall end; its last event tells when it has. */
  stop() {
    this.#stopRequested = this.busy
  }

  /** The request was refused for a passing reason, and will be repeated. */
  refused(error) {
    this.active.waiting = error
  }

  /** A server event of the answer under way. */
  receive(event, nowMs) {
    const answer = this.active
    answer.waiting = null
    switch (event.type) {
      case "error":
        answer.error = event.error
        this.#endEarly(event.error.code === GONE ? "interrupted" : "failed", nowMs)
        return
      case "response.created":
        answer.responseId = event.response.id
        return
      case "response.queued":
        answer.phase = "queued"
        answer.position = event.position ?? null
        answer.etaMs = event.eta_ms ?? null
        return
      case "response.in_progress":
        answer.phase = "working"
        return
      case "response.reasoning_text.delta":
      case "response.reasoning_summary_text.delta":
        this.#begins("thinking", nowMs)
        this.#reasoningSinceMs ??= nowMs
        answer.reasoning += event.delta
        return
      case "response.output_text.delta":
        this.#begins("streaming", nowMs)
        this.#endReasoning(nowMs)
        answer.text += event.delta
        return
      case "response.output_item.added":
        if (event.item.type === "function_call") this.#call(event.item, nowMs)
        return
      case "response.function_call_arguments.delta": {
        const call = answer.calls.find(({ id }) => id === event.item_id)
        if (call !== undefined) call.arguments += event.delta
        this.#lastMs = nowMs
        return
      }
      case "response.output_item.done":
        if (event.item.type === "function_call") this.#called(event.item)
        return
      case "response.completed":
        this.#end("completed", event.response, nowMs)
        return
      case "response.incomplete": {
        const reason = event.response.incomplete_details?.reason
        // Cancelled, and not from here: by the server, for want of a reader.
        this.#endEarly(reason === "cancelled" ? "interrupted" : "truncated", nowMs, event.response)
        return
      }
      case "response.failed":
        answer.error = event.response.error
        this.#end("failed", event.response, nowMs)
        return
      default: // the structural events of the protocol, which say nothing that the page shows
        return
    }
  }

  #begins(phase, nowMs) {
    this.active.phase = phase
    this.#firstMs ??= nowMs
    this.#lastMs = nowMs
  }

  #endReasoning(nowMs) {
    if (this.#reasoningSinceMs === null) return
    // Begun before a reload: how long it took is not known.
    this.active.reasoningMs ??= this.#sentMs === null ? null : nowMs - this.#reasoningSinceMs
    this.#reasoningSinceMs = null
  }

  #call({ id, name, arguments: given = "" }, nowMs) {
    this.#begins("streaming", nowMs)
    this.#endReasoning(nowMs)
    this.active.calls.push({ id, name, arguments: given, done: false })
  }

  #called({ id, name, arguments: given }) {
    const call = this.active.calls.find((each) => each.id === id)
    if (call !== undefined) Object.assign(call, { name, arguments: given, done: true })
  }

  /** Whatever ends an answer that was told to stop, it was stopped. */
  #endEarly(phase, nowMs, response) {
    this.#end(this.#stopRequested ? "stopped" : phase, response, nowMs)
  }

  #end(phase, response, nowMs) {
    const answer = this.active
    const sentMs = this.#sentMs
    const outputTokens = response?.usage?.output_tokens ?? null
    const timings = response?.timings ?? {}
    this.#endReasoning(nowMs)
    const decodeMs = timings.decode_ms || (sentMs === null ? 0 : this.#lastMs - this.#firstMs)
    answer.phase = phase
    answer.model = response?.model ?? answer.model
    answer.reason = response?.incomplete_details?.reason ?? null
    answer.meta = {
      ttftMs: this.#firstMs !== null && sentMs !== null ? this.#firstMs - sentMs : null,
      totalMs: sentMs === null || response === undefined ? null : nowMs - sentMs,
      inputTokens: response?.usage?.input_tokens ?? null,
      cachedTokens: response?.usage?.input_tokens_details?.cached_tokens ?? null,
      outputTokens,
      // The first token is the prefill's: the rest came during the decode.
      tokensPerS: outputTokens > 1 && decodeMs > 0 ? ((outputTokens - 1) * 1000) / decodeMs : null,
      timings,
    }
    this.active = null
    this.#stopRequested = false
  }
}
