// Owns the DOM of one turn: what the user said, or an answer with its progress, text and figures.
// It draws the state that chat.js keeps and must not change it.

import { ENDED } from "./chat.js"
import { MarkdownStream } from "./markdown.js"

const node = (name, className, text = "") => {
  const element = document.createElement(name)
  element.className = className
  element.textContent = text
  return element
}

const button = (action, label) => {
  const element = node("button", "quiet", label)
  element.type = "button"
  element.dataset.action = action
  return element
}

export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`
}

function progress({ phase, waiting, position, etaMs }) {
  if (phase === "sent") return waiting ? "Waiting for the service" : "Sending"
  if (phase === "working") return "Reading your message"
  const place = position > 0 ? `Waiting, position ${position}` : "Waiting"
  return etaMs >= 1000 ? `${place}, about ${Math.round(etaMs / 1000)} s` : place
}

// The stages of a response in the order it passes them; the other timings overlap these.
const STAGES = ["edge_ms", "queue_ms", "engine_queue_ms", "prefill_ms", "decode_ms"]

const TRUNCATED = { max_output_tokens: "Ended at the length limit." }

function ending({ phase, reason }) {
  if (phase === "stopped") return "Stopped."
  if (phase === "interrupted") return "Interrupted: the connection was lost for too long."
  if (phase === "truncated") return TRUNCATED[reason] ?? "Ended early."
  return ""
}

export class UserTurn {
  constructor(turn) {
    this.root = node("article", "turn user")
    this.root.setAttribute("aria-label", "You")
    this.root.append(node("p", "bubble", turn.text))
  }

  update() {} // what the user said stays
}

export class AnswerTurn {
  #turn
  #drawnPhase = null
  #progress = node("p", "progress")
  #prose = node("div", "prose")
  #foot = node("div", "foot")
  #markdown = new MarkdownStream(this.#prose)

  constructor(turn) {
    this.#turn = turn
    this.root = node("article", "turn answer")
    this.root.setAttribute("aria-label", "Answer")
    this.root.append(this.#progress, this.#prose, this.#foot)
  }

  update() {
    const { phase, text } = this.#turn
    if (phase === this.#drawnPhase && ENDED.has(phase)) return
    const ended = ENDED.has(phase)
    this.root.dataset.phase = phase
    // Announced once, as a whole, and not word by word.
    this.root.setAttribute("aria-busy", String(!ended))
    this.#progress.hidden = ended || phase === "streaming"
    if (!this.#progress.hidden) this.#progress.textContent = progress(this.#turn)
    if (ended) {
      this.#markdown.finish(text)
      this.#foot.replaceChildren(...this.#ending())
    } else {
      this.#markdown.update(text)
    }
    this.#drawnPhase = phase
  }

  *#ending() {
    const { phase, error, text, forgetful, meta } = this.#turn
    if (phase === "failed") yield this.#failure(error)
    if (ending(this.#turn)) yield node("p", "ending", ending(this.#turn))
    if (forgetful) yield node("p", "ending", "Answered without the earlier turns: their memory is away.")
    const actions = node("div", "actions")
    if (phase === "failed" || phase === "interrupted") actions.append(button("retry", "Retry"))
    if (text) actions.append(button("copy", "Copy"))
    if (meta?.ttftMs != null || meta?.outputTokens > 0) actions.append(this.#figures(meta))
    if (actions.hasChildNodes()) yield actions
  }

  #failure(error) {
    const box = node("p", "error", error?.message ?? "The answer failed.")
    if (error?.code) box.append(" ", node("code", "", error.code))
    return box
  }

  #figures({ ttftMs, outputTokens, tokensPerS, timings }) {
    const parts = ttftMs === null ? [] : [`First token ${duration(ttftMs)}`] // it came before a reload
    if (outputTokens !== null) parts.push(`${outputTokens} ${outputTokens === 1 ? "token" : "tokens"}`)
    if (tokensPerS !== null) parts.push(`${tokensPerS.toFixed(tokensPerS < 10 ? 1 : 0)} tokens/s`)
    const stages = STAGES.filter((key) => timings[key] > 0).map((key) => [key, timings[key]])
    if (stages.length === 0) return node("p", "meta", parts.join(" · "))
    const details = node("details", "meta")
    details.append(node("summary", "", parts.join(" · ")), stageBar(stages), stageList(stages))
    return details
  }
}

const stageName = (key) => key.slice(0, -"_ms".length).replaceAll("_", " ")

function stageBar(stages) {
  const bar = node("div", "stages")
  bar.setAttribute("aria-hidden", "true") // the list beside it says the same
  for (const [key, ms] of stages) {
    const part = node("span", "stage")
    part.dataset.stage = stageName(key)
    part.style.flexGrow = ms
    bar.append(part)
  }
  return bar
}

function stageList(stages) {
  const list = node("dl", "stage-list")
  for (const [key, ms] of stages) {
    const pair = node("div", "")
    pair.dataset.stage = stageName(key)
    pair.append(node("dt", "", stageName(key)), node("dd", "", duration(ms)))
    list.append(pair)
  }
  return list
}
