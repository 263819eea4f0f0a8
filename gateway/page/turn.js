// Owns the DOM of one turn: what the user said, or an answer with its progress, reasoning, calls and text.
// It draws the state that chat.js keeps and must not change it.

import { ENDED } from "./chat.js"
import { button, element, icon, iconButton } from "./dom.js"
import { figures } from "./figures.js"
import { MarkdownStream } from "./markdown.js"
import { trouble } from "./trouble.js"
import { duration } from "./waterfall.js"

const PROGRESS = {
  sent: "Sending",
  working: "Reading your message",
  thinking: "Thinking",
}

const WAITING = {
  deadline_unreachable: "The line is too long, asking again",
  queue_full: "The line is full, asking again",
  rate_limit_exceeded: "Your share is used up, asking again",
  too_many_responses: "Other answers come first",
}

function progress({ phase, waiting, position, etaMs }) {
  if (waiting !== null) return WAITING[waiting.code] ?? "Waiting for the service"
  if (phase !== "queued") return PROGRESS[phase]
  const place = position > 0 ? `In line, at place ${position}` : "In line"
  return etaMs >= 1000 ? `${place}, about ${Math.round(etaMs / 1000)} s` : place
}

const TRUNCATED = { max_output_tokens: "Ended at the length limit." }

function ending({ phase, reason }) {
  if (phase === "stopped") return "Stopped."
  if (phase === "interrupted") return "Interrupted: the connection was lost for too long."
  if (phase === "truncated") return TRUNCATED[reason] ?? "Ended early."
  return ""
}

export class UserTurn {
  constructor(turn) {
    this.root = element("article", "turn user")
    this.root.setAttribute("aria-label", "You")
    const bubble = element("p", "bubble", turn.text)
    bubble.dir = "auto"
    const actions = element("div", "actions", iconButton("edit", "edit", "Edit this question"))
    this.root.append(bubble, actions)
  }

  update() {} // what the user said stays
}

export class AnswerTurn {
  #turn
  #drawnPhase = null
  #progress = element("p", "progress")
  #reasoning = null // its <details>, once there is any
  #calls = element("div", "calls")
  #drawnCalls = ""
  #prose = element("div", "prose")
  #foot = element("div", "foot")
  #markdown = new MarkdownStream(this.#prose)

  constructor(turn) {
    this.#turn = turn
    this.root = element("article", "turn answer", this.#progress, this.#calls, this.#prose, this.#foot)
    this.root.setAttribute("aria-label", "Answer")
  }

  update() {
    const { phase, text } = this.#turn
    if (phase === this.#drawnPhase && ENDED.has(phase)) return
    const ended = ENDED.has(phase)
    this.root.dataset.phase = phase
    this.root.setAttribute("aria-busy", String(!ended))
    this.#progress.hidden = ended || phase === "streaming"
    if (!this.#progress.hidden) this.#progress.textContent = progress(this.#turn)
    this.#drawReasoning(ended)
    this.#drawCalls()
    if (ended) {
      this.#markdown.finish(text)
      this.#foot.replaceChildren(...this.#ending())
    } else {
      this.#markdown.update(text)
    }
    this.#drawnPhase = phase
  }

  #drawReasoning(ended) {
    const { reasoning, reasoningMs, phase } = this.#turn
    if (reasoning === "") return
    if (this.#reasoning === null) {
      const text = element("p", "reasoning-text")
      text.dir = "auto"
      this.#reasoning = element("details", "reasoning", element("summary", "", icon("more"), element("span", "")), text)
      this.#progress.after(this.#reasoning)
    }
    const thought = reasoningMs === null ? "Thought" : `Thought for ${duration(reasoningMs)}`
    const label = phase === "thinking" && !ended ? "Show the thoughts" : thought
    this.#reasoning.querySelector("span").textContent = label
    this.#reasoning.lastChild.textContent = reasoning
  }

  #drawCalls() {
    const { calls } = this.#turn
    if (calls.length === 0) return
    const drawn = JSON.stringify(calls)
    if (drawn === this.#drawnCalls) return
    this.#drawnCalls = drawn
    const open = [...this.#calls.children].map((card) => card.open)
    this.#calls.replaceChildren(...calls.map((call, index) => callCard(call, open[index] ?? false)))
  }

  *#ending() {
    const { phase, error, text, meta, calls } = this.#turn
    const wrong = phase === "failed" ? trouble(error) : null
    if (wrong !== null) yield failure(wrong)
    if (ending(this.#turn)) yield element("p", "ending", ending(this.#turn))
    if (phase === "completed" && text === "" && calls.length === 0) yield element("p", "ending", "The model said nothing.")
    const actions = element("div", "actions")
    const retries = phase === "interrupted" || wrong?.retry
    if (retries) actions.append(button("quiet", "again", icon("again"), "Try again"))
    if (text) actions.append(iconButton("copy", "copy", "Copy the answer"))
    if (!retries && wrong === null) actions.append(iconButton("again", "again", "Another answer"))
    if (meta?.ttftMs != null || meta?.outputTokens > 0) actions.append(figures(this.#turn))
    if (actions.hasChildNodes()) yield actions
  }
}

function failure({ code, what, hint }) {
  const box = element("p", "error", element("strong", "", what), hint && ` ${hint}`)
  if (code) box.append(" ", element("code", "", code))
  return box
}

function callCard({ name, arguments: given, done }, open) {
  const state = element("span", "call-state", done ? "called" : "calling…")
  const summary = element("summary", "", icon("tool"), element("code", "", name || "…"), state)
  const text = element("pre", "", element("code", "", pretty(given)))
  text.tabIndex = 0
  text.setAttribute("role", "group")
  text.setAttribute("aria-label", `Arguments of ${name}`)
  const card = element("details", "call", summary, text)
  card.open = open
  return card
}

function pretty(given) {
  try {
    return JSON.stringify(JSON.parse(given), null, 2)
  } catch {
    return given // half of it, so far
  }
}
